"""How sure merged models are of images that nobody has labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.tasks.devices import dtype_of
from mapmerge_core.tasks.task import Task

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.evaluator import Evaluator, MergedPoint
    from mapmerge_core.tasks.families._models.images import ImageClassifier


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the mean Shannon entropy, in nats, of the distributions with ``logits`` (n x classes)."""
    log_p = logits.float().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def entropies(
    evaluator: Evaluator,
    source: DataSource,
    points: Sequence[MergedPoint],
    *,
    cancel: Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, int]:
    """Return the mean Shannon entropy of each model's predictions on unlabelled images.

    Models are merged and run as for the validation split; the last one is left in the family.

    Args:
        evaluator: Whose family to use; it measures as before afterwards.
        source: The images; of its labels none is read.
        points: P merges with a point each (see `Evaluator.outcomes`).
        cancel: Set it to stop between two batches.
        progress: Called with the number of batches done and their total after each.

    Returns:
        In nats, a `P` array, and the number of images.

    Raises:
        Cancelled: Once ``cancel`` is set.
        DatasetError: The images can't be read, or their classes have no names.
        MapMergeError: The family makes no heads of class names alone, a model's predictions are no finite
            numbers, or the device runs out of memory.
    """
    if not evaluator.family.gives_logits:
        raise MapMergeError(
            "Unlabelled images need models that classify by the names of classes alone, as CLIP's do: these "
            "have no head for images without labels."
        )
    family = cast("ImageClassifier", evaluator.family)
    task = Task("unlabelled images", replace(source, labelled=False))
    dtype, size = dtype_of(evaluator.precision), evaluator.batch_size
    means = np.zeros(len(points))
    try:
        images = family.images(task, "val")
        family.head(task)
        batches = images.split(size)
        for i, (merge, x) in enumerate(points):
            merge.write(family.model_in(dtype), x)
            family.merged(dtype)
            for j, batch in enumerate(batches):
                if cancel and cancel.is_set():
                    raise Cancelled
                with torch.inference_mode():
                    entropy = mean_entropy(family.logits(batch, task, dtype))
                means[i] += float(entropy) * len(batch) / len(images)
                if progress:
                    progress(i * len(batches) + j + 1, len(points) * len(batches))
    except torch.OutOfMemoryError as error:
        raise MapMergeError(
            f"The device {evaluator.device} ran out of memory with {size} images in a batch: choose a "
            "smaller batch size."
        ) from error
    if not np.isfinite(means).all():
        raise MapMergeError("A model's predictions are not finite numbers: sample a smaller box.")
    return means, len(images)
