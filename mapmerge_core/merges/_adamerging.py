"""AdaMerging: coefficients learned from images without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mapmerge_core.errors import Cancelled, PointError
from mapmerge_core.files import DAMAGED
from mapmerge_core.merges._merged_gradients import contract, logits_of_tasks, merge_unrounded, mixed_precision
from mapmerge_core.merges._state import damaged, read_state, write_state
from mapmerge_core.merges._statistics import classifier_of, own_task, running_out_of_memory
from mapmerge_core.merges.base import PreparedMerge, Progress
from mapmerge_core.tasks.unlabelled import mean_entropy
from mapmerge_core.weights.io.checks import check_coefficients

if TYPE_CHECKING:
    from mapmerge_core.merges.adamerging import AdaMerging
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


class PreparedAdaMerging(PreparedMerge):
    """Task arithmetic with learned coefficients.

    Args:
        merge: The merge and its settings.
        vectors: The task vectors that are merged, on the evaluator's device.
        exported: The same on the CPU.
        learned: N coefficients, or `L x N` in the order of `TaskVectors.layers`.
    """

    def __init__(self, merge: AdaMerging, vectors: TaskVectors, exported: TaskVectors, learned: np.ndarray) -> None:
        super().__init__(merge.space(exported.names), vectors, exported)
        self.learned = learned
        self._merge, self._fast, self._exact = merge, vectors, exported

    def write(self, module: nn.Module, x: ArrayLike) -> None:
        self._write(self._fast, module, x)

    def write_exact(self, module: nn.Module, x: ArrayLike) -> None:
        self._write(self._exact, module, x)

    def tensors(self, x: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        self.space.point(x)
        if self.learned.ndim == 1:
            return self._exact.tensors(self.learned)
        return iter(self._exact.merge_layers(self.learned).items())

    def coefficients(self, x: ArrayLike) -> np.ndarray | None:
        self.space.point(x)
        return self.learned if self._merge.settings.keep is None else None

    def save(self, path: Path) -> None:
        write_state(path, self._merge, self._exact, {"coefficients": torch.from_numpy(self.learned)})

    @classmethod
    def read(cls, path: Path, merge: AdaMerging, vectors: TaskVectors, exported: TaskVectors) -> PreparedAdaMerging:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file can't be read, is damaged, or is of another merge or other models.
        """
        tensors = read_state(path, merge, exported)[1]
        rows = len(exported.layers) if merge.settings.level == "layer" else None
        try:
            learned = check_coefficients(exported.names, tensors["coefficients"].numpy(), rows)
        except (PointError, *DAMAGED) as error:
            raise damaged(path, merge) from error
        return cls(merge, vectors, exported, learned)

    def _write(self, vectors: TaskVectors, module: nn.Module, x: ArrayLike) -> None:
        self.space.point(x)
        if self.learned.ndim == 1:
            vectors.merge_into(module, self.learned)
        else:
            vectors.load_into(module, vectors.merge_layers(self.learned))


def learn_coefficients(
    evaluator: Evaluator,
    vectors: TaskVectors,
    settings: AdaMerging.Settings,
    *,
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> np.ndarray:
    """Return the coefficients that minimise the entropy of the merged model's predictions, found by Adam.

    Yang et al., ICLR 2024, section 3.2; with trimmed ``vectors`` it is their AdaMerging++. As in their code,
    models are merged with the coefficients clipped to [0, 1]. Each step draws images of the validation split
    of each model's own task; labels are never read. Models are merged in float32, without a checkpoint's
    rounding, computed in the evaluator's precision, and left in the family.

    Args:
        evaluator: Whose family and tasks to use; it measures as before afterwards.
        vectors: Task vectors on the evaluator's device.
        settings: How. Layer-wise coefficients of a tensor that is not a parameter (a batch norm's statistics)
            stay at the start.
        progress: Called with the number of steps done and their total after each.
        cancel: Set it to stop between two steps.

    Returns:
        Coefficients in [0, 1], float64: `N`, or `L x N` in the order of `TaskVectors.layers`.

    Raises:
        Cancelled: Once ``cancel`` is set.
        DatasetError: A dataset can't be read.
        MapMergeError: A model has no task of its own, or the device runs out of memory.
    """
    with running_out_of_memory(evaluator, settings.batch_size):
        family, rng = classifier_of(evaluator), np.random.default_rng(settings.seed)
        own = {own_task(evaluator, model).name for model in vectors.names}
        images = {name: family.images(task, "val") for name, task in evaluator.tasks.items() if name in own}
        shape = (len(vectors.layers), len(vectors))
        # Once, for the tensors that are not merged; from then on the merged ones are written in place.
        vectors.merge_into(family.model_in(torch.float32), np.full(len(vectors), settings.start))
        raw = torch.full(
            shape if settings.level == "layer" else shape[1:], settings.start, dtype=torch.float64, requires_grad=True
        )
        optimizer = torch.optim.Adam([raw], lr=settings.lr, betas=(0.9, 0.999))
        for step in range(settings.steps):
            if cancel and cancel.is_set():
                raise Cancelled
            batches = {
                name: own[torch.from_numpy(rng.permutation(len(own))[: settings.batch_size]).to(own.device)]
                for name, own in images.items()
            }
            coefficients = raw.clamp(0, 1).expand(shape)
            gradient = _gradient(evaluator, vectors, coefficients.detach(), batches)
            optimizer.zero_grad()
            coefficients.backward(gradient)
            optimizer.step()
            if progress:
                progress(step + 1, settings.steps)
    learned: np.ndarray = raw.detach().clamp(0, 1).numpy()
    return learned


def entropy_and_gradient(
    evaluator: Evaluator, vectors: TaskVectors, coefficients: Tensor, batches: Mapping[str, Tensor]
) -> tuple[float, Tensor]:
    """Return the mean entropy of a merged model's predictions and its gradient by the coefficients.

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
    entropy = torch.stack([mean_entropy(own) for own in logits]).mean()
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
        entropy_and_gradient(evaluator, vectors, coefficients, {name: batch})[1] for name, batch in batches.items()
    ]
    return torch.stack(gradients).mean(dim=0)
