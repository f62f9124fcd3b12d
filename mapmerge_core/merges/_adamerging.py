"""AdaMerging: coefficients learnt from images without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.merges._merged_gradients import (
    contract,
    logits_of_tasks,
    mean_entropy,
    merge_unrounded,
    mixed_precision,
)
from mapmerge_core.merges._statistics import classifier_of, running_out_of_memory
from mapmerge_core.weights.vectors.streamed import in_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Event

    from torch import Tensor

    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


def adamerge(
    evaluator: Evaluator,
    *,
    layer_wise: bool,
    vectors: TaskVectors | None = None,
    steps: int = 500,
    batch_size: int = 16,
    lr: float = 1e-3,
    start: float = 0.3,
    seed: int = 0,
    cancel: Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Finds coefficients by Adam, minimising the entropy of the merged model's predictions.

    Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024, section 3.2;
    with TIES-trimmed ``vectors`` it is their AdaMerging++. As in their code, models are merged with the
    coefficients clipped to [0, 1]. Each step draws ``batch_size`` images of each task's validation split;
    labels are never read. Models are merged in float32, without a checkpoint's rounding, computed in the
    evaluator's precision, and left in the family.

    Args:
        evaluator: Whose family and tasks to use; it measures as before afterwards.
        layer_wise: Whether each merged tensor has coefficients of its own. Those of a tensor that is not a
            parameter (a batch norm's statistics) stay at ``start``.
        vectors: Task vectors for the same models, by default the evaluator's.
        steps: How many steps Adam takes, with β = (0.9, 0.999).
        batch_size: Images of each task in a step, or all of them where there are fewer.
        lr: Adam's learning rate.
        start: What every coefficient starts from, in [0, 1].
        seed: Decides which images are drawn.
        cancel: Set it to stop between two steps.
        progress: Called with the number of steps done and their total after each.

    Returns:
        Coefficients in [0, 1], float64: (N,), or L x N in the order of `TaskVectors.layers`.

    Raises:
        Cancelled: Once ``cancel`` is set.
        DatasetError: A dataset can't be read.
        MapMergeError: There is less than one step or image, ``start`` is outside [0, 1], ``lr`` is not
            positive, or the device runs out of memory.
    """
    for number, what in ((steps, "step"), (batch_size, "image in a batch")):
        if number < 1:
            raise MapMergeError(f"AdaMerging needs at least 1 {what}, not {number}.")
    if not 0 <= start <= 1:
        raise MapMergeError(f"AdaMerging's coefficients must start from 0 to 1, not {start:g}.")
    if not lr > 0:
        raise MapMergeError(f"AdaMerging's learning rate must be above 0, not {lr:g}.")
    with running_out_of_memory(evaluator, batch_size):
        vectors = in_memory(evaluator.vectors) if vectors is None else vectors.to(evaluator.device)
        family, rng = classifier_of(evaluator), np.random.default_rng(seed)
        images = {name: family.images(task, "val") for name, task in evaluator.tasks.items()}
        shape = (len(vectors.layers), len(vectors))
        # Once, for the tensors that are not merged; from then on the merged ones are written in place.
        vectors.merge_into(family.model_in(torch.float32), np.full(len(vectors), start))
        raw = torch.full(shape if layer_wise else shape[1:], start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([raw], lr=lr, betas=(0.9, 0.999))
        for step in range(steps):
            if cancel and cancel.is_set():
                raise Cancelled
            batches = {
                name: some[torch.from_numpy(rng.permutation(len(some))[:batch_size]).to(some.device)]
                for name, some in images.items()
            }
            coefficients = raw.clamp(0, 1).expand(shape)
            gradient = _gradient(evaluator, vectors, coefficients.detach(), batches)
            optimizer.zero_grad()
            coefficients.backward(gradient)
            optimizer.step()
            if progress:
                progress(step + 1, steps)
    found: np.ndarray = raw.detach().clamp(0, 1).numpy()
    return found


def entropy_and_gradient(
    evaluator: Evaluator, vectors: TaskVectors, coefficients: Tensor, batches: Mapping[str, Tensor]
) -> tuple[float, Tensor]:
    """Returns the mean entropy of a merged model's predictions and its gradient by the coefficients.

    One forward and one backward pass, whatever the numbers of tasks and of task vectors (see `contract`).

    Args:
        evaluator: Whose family and tasks to use; tensors that are not merged are taken as they are.
        vectors: N task vectors of L tensors, on the evaluator's device.
        coefficients: L x N.
        batches: Prepared images for each task.

    Returns:
        The mean over tasks of the mean entropy over a task's images, in nats, and its gradient, L x N,
        float64, on the CPU.
    """
    family = classifier_of(evaluator)
    parameters = merge_unrounded(family.model_in(torch.float32), vectors, coefficients)
    heads = [family.head(evaluator.tasks[name]) for name in batches]
    with mixed_precision(evaluator):
        logits = logits_of_tasks(family, heads, list(batches.values()), parameters)
    entropy = torch.stack([mean_entropy(some) for some in logits]).mean()
    slopes = torch.autograd.grad(entropy, list(parameters.values()), allow_unused=True)
    gradient = contract(vectors, dict(zip(parameters, slopes, strict=True)))
    return entropy.item(), gradient.cpu().double()


def _gradient(
    evaluator: Evaluator, vectors: TaskVectors, coefficients: Tensor, batches: Mapping[str, Tensor]
) -> Tensor:
    """The gradient of `entropy_and_gradient`, task by task where the memory is too small for all of them."""
    try:
        return entropy_and_gradient(evaluator, vectors, coefficients, batches)[1]
    except torch.OutOfMemoryError:
        if len(batches) == 1:
            raise
    gradients = [
        entropy_and_gradient(evaluator, vectors, coefficients, {name: batch})[1]
        for name, batch in batches.items()
    ]
    return torch.stack(gradients).mean(dim=0)
