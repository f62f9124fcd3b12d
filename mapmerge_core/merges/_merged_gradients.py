"""From a merged model's gradients to gradients by what it was merged with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.tasks.families._models.images import ImageClassifier
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@torch.no_grad()
def merge_unrounded(model: nn.Module, vectors: TaskVectors, coefficients: Tensor) -> dict[str, Tensor]:
    """Make ``model`` the merge in place, without the checkpoint's rounding.

    Args:
        model: A float32 model on the vectors' device.
        vectors: N task vectors of L tensors.
        coefficients: L x N.

    Returns:
        Its merged parameters by name, as leaves that take gradients and share the model's memory.
    """
    targets = model.state_dict(keep_vars=True)
    rows = iter(coefficients.float().to(vectors.device))
    leaves = {}
    for group in vectors.groups:
        for slot in group.slots:
            base, V, target = slot.columns(group.base), slot.columns(group.V), targets[slot.name]
            target.copy_(torch.addmv(base, V.T, next(rows).to(V.dtype)).view(slot.shape))
            if isinstance(target, nn.Parameter):
                leaves[slot.name] = target.detach().requires_grad_()
    return leaves


def contract(vectors: TaskVectors, slopes: Mapping[str, Tensor | None]) -> Tensor:
    """Turn a gradient by the merged parameters into one by the coefficients.

    The model depends on λ_ln as ∂θ_l/∂λ_ln = v_ln, so the gradient is <∂f/∂θ_l, v_ln>.

    Args:
        vectors: N task vectors of L tensors.
        slopes: ∂f/∂θ_l by name; those that are missing or None are 0.

    Returns:
        L x N, float32, on the vectors' device.
    """
    rows = []
    for group in vectors.groups:
        for slot in group.slots:
            V, slope = slot.columns(group.V), slopes.get(slot.name)
            rows.append(V.new_zeros(len(V)) if slope is None else V @ slope.flatten().to(V.dtype))
    return torch.stack([row.float() for row in rows])


@contextmanager
def mixed_precision(evaluator: Evaluator) -> Iterator[None]:
    """Compute in bfloat16 where the evaluator does, heads included; weights and gradients stay float32."""
    device, narrow = evaluator.device.type, evaluator.precision == "bfloat16"
    # A CPU's fused attention takes three times as long backward in bfloat16 as its parts do.
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" and narrow else nullcontext()
    with torch.autocast(device, torch.bfloat16, enabled=narrow), attention:
        yield


def logits_of_tasks(
    family: ImageClassifier, heads: Sequence[Tensor], batches: Sequence[Tensor], parameters: Mapping[str, Tensor]
) -> list[Tensor]:
    """Pass the images of several tasks through a model at once.

    Args:
        family: Whose model.
        heads: Each task's head, d x classes.
        batches: Prepared images of each task.
        parameters: As for `ImageClassifier.class_logits`.

    Returns:
        For each task its images' logits by its own head, images x classes, float32.
    """
    images = torch.cat([batch.to(family.device) for batch in batches])  # some splits stay on the CPU
    logits = family.class_logits(images, torch.cat(list(heads), dim=1), parameters).float()
    ends = list(accumulate((head.shape[1] for head in heads), initial=0))
    rows = logits.split([len(batch) for batch in batches])
    return [own[:, a:b] for own, (a, b) in zip(rows, pairwise(ends), strict=True)]


def imbalance(logits: Tensor) -> Tensor:
    """Return how far the classes predicted for a batch (n x classes) are from being equally many, in nats.

    It is by how much the entropy of their mean distribution is below the uniform one's: from 0 to the
    logarithm of the number of classes. The mean entropy plus this is, but for a constant, minus the mutual
    information of images and predictions (Krause et al., "Discriminative Clustering by Regularized
    Information Maximization", NIPS 2010), which calling everything by one class doesn't improve.
    """
    p = logits.float().softmax(dim=1).mean(dim=0)
    # A class that nothing is called may underflow to 0, where the logarithm has no slope.
    return (p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum() + math.log(len(p))
