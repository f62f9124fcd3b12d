"""How sure merged models are of images that nobody has labelled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.tasks.evaluator import PRECISIONS
from mapmerge_core.merges._merged_gradients import mean_entropy
from mapmerge_core.merges._statistics import running_out_of_memory
from mapmerge_core.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event

    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.tasks.families.images import ImageClassifier
    from mapmerge_core.weights.vectors.layout import StateDict


def entropies(
    evaluator: Evaluator,
    source: DataSource,
    models: Sequence[np.ndarray | Callable[[], StateDict]],
    *,
    cancel: Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, int]:
    """Returns the mean Shannon entropy of each model's predictions on unlabelled images.

    Models are merged and run as for the validation split; the last one is left in the family.

    Args:
        evaluator: Whose family and task vectors to use; it measures as before afterwards.
        source: The images; of its labels none is read.
        models: Coefficients (N,), or functions that make a model with the pre-trained one's keys.
        cancel: Set it to stop between two batches.
        progress: Called with the number of batches done and their total after each.

    Returns:
        In nats, one for each of ``models``, and the number of images.

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
    dtype, size = PRECISIONS[evaluator.precision], evaluator.batch_size
    found = np.zeros(len(models))
    with running_out_of_memory(evaluator, size):
        images = family.images(task, "val")
        family.head(task)
        batches = images.split(size)
        for i, wanted in enumerate(models):
            _merge(evaluator, wanted, dtype)
            for j, batch in enumerate(batches):
                if cancel and cancel.is_set():
                    raise Cancelled
                with torch.inference_mode():
                    entropy = mean_entropy(family.logits(batch, task, dtype))
                found[i] += float(entropy) * len(batch) / len(images)
                if progress:
                    progress(i * len(batches) + j + 1, len(models) * len(batches))
    if not np.isfinite(found).all():
        raise MapMergeError("A model's predictions are not finite numbers: sample a smaller box.")
    return found, len(images)


def _merge(evaluator: Evaluator, wanted: np.ndarray | Callable[[], StateDict], dtype: torch.dtype) -> None:
    """Writes a model into the family's own."""
    model = evaluator.family.model_in(dtype)
    if isinstance(wanted, np.ndarray):
        evaluator.vectors.merge_into(model, wanted)
    else:
        evaluator.vectors.release(model)
        evaluator.exported_vectors.load_into(model, wanted())
    evaluator.family.merged(dtype)
