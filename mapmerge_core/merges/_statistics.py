"""What a fine-tuned model's own data says about its parameters: Fisher diagonals and Gram matrices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from mapmerge_core.errors import Cancelled, MapMergeError

if TYPE_CHECKING:
    from mapmerge_core.merges.base import Progress
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.tasks.families._models.images import ImageClassifier
    from mapmerge_core.tasks.task import Task

# Per-example gradients of this many bytes are held at a time, or those of one example where they are more.
_GRADIENT_BYTES = 256 << 20

Chunk = TypeVar("Chunk")

_MATMULS = (torch.matmul, torch.Tensor.matmul)


class Gram(NamedTuple):
    """What a linear layer's inputs X (rows x in) say about its weight.

    Attributes:
        matrix: XᵀX divided by the number of rows, in x in.
        axis: The axis of the weight that meets the inputs: 1 for X Wᵀ (W is out x in), 0 for X W.
    """

    matrix: Tensor
    axis: int


def fisher_diagonals(
    evaluator: Evaluator,
    model: str,
    *,
    examples: int | None = 256,
    seed: int = 0,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal of a fine-tuned model's Fisher information, on the images of its own task.

    F = mean over images x of (∇_θ log p_θ(y|x))², squared for each image, with one label y drawn from the
    model's own p_θ(y|x) (Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022),
    in float32. The model is left in the family.

    Args:
        evaluator: Whose family, task vectors and images to use; it measures as before afterwards.
        model: One of the models, with a task of its own.
        examples: How many images of the validation split to draw; None, or more than there are, for all.
        seed: Decides which images and labels are drawn.
        cancel: Set it to stop between two chunks of images.
        progress: Called with the number of images done and their total after each chunk.

    Returns:
        For each merged parameter a float32 tensor of its shape, on the CPU.

    Raises:
        Cancelled: Once ``cancel`` is set.
        DatasetError: The task's dataset can't be read.
        MapMergeError: The model has no task of its own, or the device runs out of memory.
    """
    with running_out_of_memory(evaluator, evaluator.batch_size):
        images, head = _single_task_model(evaluator, model, examples, seed)
    family = classifier_of(evaluator)
    parameters = {name: p.detach() for name, p in _merged_parameters(evaluator)}

    def loss(parameters: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(family.class_logits(image[None], head, parameters), label[None])

    gradients_of_each = vmap(grad(loss), in_dims=(None, 0, 0))
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    n_parameters = sum(parameter.numel() for parameter in parameters.values())
    chunk = min(evaluator.batch_size, max(1, _GRADIENT_BYTES // (4 * max(1, n_parameters))))
    # The fused kernels of attention have no rule for a batch of gradients; they would run one by one. The
    # switch is the whole process's: elsewhere attention is only slower for as long as this takes.
    with running_out_of_memory(evaluator, evaluator.batch_size), sdpa_kernel(SDPBackend.MATH):
        labels = _drawn_labels(evaluator, images, head, seed)
        pairs = zip(images.split(chunk), labels.split(chunk), strict=True)
        for batch, drawn in _reported(pairs, chunk, len(images), cancel, progress):
            for name, gradients in gradients_of_each(parameters, batch.to(evaluator.device), drawn).items():
                sums[name] += gradients.square_().sum(dim=0)
    return {name: total.div_(len(images)).cpu() for name, total in sums.items()}


@torch.no_grad()
def gram_matrices(
    evaluator: Evaluator,
    model: str,
    *,
    examples: int | None = None,
    seed: int = 0,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> dict[str, Gram]:
    """Return XᵀX of the inputs of every linear layer of a fine-tuned model, on the images of its own task.

    For RegMean (Jin et al., ICLR 2023). Divided by the number of rows (images times tokens), so
    that a task with more images doesn't outweigh the others. Attention's packed and output projections and
    weights that are right operands of ``@`` count as linear layers. The model is left in the family.

    Args:
        evaluator: Whose family, task vectors and images to use; it measures as before afterwards.
        model: One of the models, with a task of its own.
        examples: How many images of the validation split to draw; None, or more than there are, for all.
        seed: Decides which images are drawn.
        cancel: Set it to stop between two batches.
        progress: Called with the number of images done and their total after each batch.

    Returns:
        For each merged weight of a linear layer its Gram matrix, float32, on the CPU. A packed projection
        whose query, key and value differ has none.

    Raises:
        Cancelled: Once ``cancel`` is set.
        DatasetError: The task's dataset can't be read.
        MapMergeError: The model has no task of its own, or the device runs out of memory.
    """
    size = evaluator.batch_size
    with running_out_of_memory(evaluator, size):
        images, head = _single_task_model(evaluator, model, examples, seed)
    family = classifier_of(evaluator)
    inputs = _LinearInputs(dict(_merged_parameters(evaluator)))
    with running_out_of_memory(evaluator, size), inputs:
        for batch in _reported(images.split(size), size, len(images), cancel, progress):
            family.class_logits(batch, head, {})
    return inputs.grams()


@contextmanager
def running_out_of_memory(evaluator: Evaluator, batch_size: int) -> Iterator[None]:
    """Turn a full device into one sentence.

    Raises:
        MapMergeError: Instead of ``torch.OutOfMemoryError``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MapMergeError(
            f"The device {evaluator.device} ran out of memory with {batch_size} images in a batch: "
            "choose a smaller batch size."
        ) from error


class _LinearInputs(TorchFunctionMode):
    """Sum XᵀX over every call of a linear layer in its ``with`` block, in this thread alone.

    Module hooks would miss layers that call functions with their parameters, as ``nn.MultiheadAttention``
    does. That one is also not seen by this mode from within, so its output projection is made here.

    Args:
        parameters: Those to look for, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items() if parameter.ndim == 2}
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._axes: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            return self._attend(inspect.signature(func).bind(*args, **kwargs))
        if func is functional.linear or func in _MATMULS:
            operands = [*args, *(kwargs[name] for name in ("input", "weight", "other") if name in kwargs)]
            self._add(operands[1], operands[0], axis=1 if func is functional.linear else 0)
        return func(*args, **kwargs)

    def grams(self) -> dict[str, Gram]:
        """Return the sums, divided by their numbers of rows, on the CPU."""
        return {name: Gram((total / self._rows[name]).cpu(), self._axes[name]) for name, total in self._sums.items()}

    def _attend(self, call: inspect.BoundArguments) -> tuple[Tensor, Tensor | None]:
        call.apply_defaults()
        a = call.arguments
        query, key, value = a["query"], a["key"], a["value"]
        if a["use_separate_proj_weight"]:
            for name, inputs in (("q", query), ("k", key), ("v", value)):
                self._add(a[f"{name}_proj_weight"], inputs, axis=1)
        elif query is key is value:
            self._add(a["in_proj_weight"], query, axis=1)
        weight, bias = a["out_proj_weight"], a["out_proj_bias"]
        # With an identity for the output projection, attention returns that projection's inputs.
        a["out_proj_weight"] = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        a["out_proj_bias"] = None
        heads, attention = functional.multi_head_attention_forward(*call.args, **call.kwargs)
        self._add(weight, heads, axis=1)
        return functional.linear(heads, weight, bias), attention

    def _add(self, weight: Tensor, inputs: Tensor, axis: int) -> None:
        name = self._names.get(id(weight))
        if name is None:
            return
        X = inputs.reshape(-1, inputs.shape[-1]).float()
        gram = X.T @ X
        self._sums[name] = self._sums[name].add_(gram) if name in self._sums else gram
        self._rows[name] = self._rows.get(name, 0) + len(X)
        self._axes[name] = axis


def _single_task_model(evaluator: Evaluator, model: str, examples: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Make the family's model a fine-tuned one; return validation images of its task, and the head."""
    family, task = classifier_of(evaluator), own_task(evaluator, model)
    names = evaluator.vectors.names
    evaluator.vectors.merge_into(family.model_in(torch.float32), np.eye(len(names))[names.index(model)])
    images = family.images(task, "val")
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(images))[:examples])
    return images[chosen.to(images.device)], family.head(task)


def own_task(evaluator: Evaluator, model: str) -> Task:
    """Return the first task with data that a model was fine-tuned for.

    Raises:
        MapMergeError: There is none.
    """
    for task in evaluator.tasks.values():
        if task.model == model and task.data is not None:
            return task
    raise MapMergeError(
        f"The model '{model}' has no task of its own with examples: add a dataset, and name the model as its task's."
    )


def classifier_of(evaluator: Evaluator) -> ImageClassifier:
    """Return the evaluator's family, whose logits merges that look at data need.

    Raises:
        MapMergeError: It gives none.
    """
    if not evaluator.family.gives_logits:
        raise MapMergeError("This merge needs the logits of image classifiers: choose another merge.")
    return cast("ImageClassifier", evaluator.family)


def _merged_parameters(evaluator: Evaluator) -> list[tuple[str, Tensor]]:
    merged = set(evaluator.vectors.layers)
    model = evaluator.family.model_in(torch.float32)
    return [(name, p) for name, p in model.named_parameters() if name in merged]


@torch.no_grad()
def _drawn_labels(evaluator: Evaluator, images: Tensor, head: Tensor, seed: int) -> Tensor:
    """Draw one label for each image (n) on the CPU, from the model's distribution over classes."""
    family = classifier_of(evaluator)
    logits = [family.class_logits(batch, head, {}) for batch in images.split(evaluator.batch_size)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.cat(logits).softmax(dim=1).cpu(), 1, generator=generator)
    return labels.squeeze(1).to(evaluator.device)


def _reported(
    chunks: Iterable[Chunk], size: int, total: int, cancel: Event | None, progress: Progress | None
) -> Iterator[Chunk]:
    """Hands out chunks of ``size`` images, stopping when asked to and reporting each that is done."""
    for i, chunk in enumerate(chunks):
        if cancel and cancel.is_set():
            raise Cancelled
        yield chunk
        if progress:
            progress(min((i + 1) * size, total), total)
