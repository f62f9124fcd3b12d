"""A baseline's weights: made once, and made again bit by bit where they are measured and exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.analysis.baseline_kinds import label

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from threading import Event

    from torch import Tensor

    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store.rows import BaselineRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.merges._averages import Gram
    from mapmerge_core.weights.vectors.streamed import Vectors
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

# Merges that data decided, too large for the database and not made again: kept as files.
_KEPT = ("fisher", "regmean")


def has_weights(store: Store, baseline: BaselineRow) -> bool:
    """Whether nobody deleted the file that a baseline's weights lie in, if they lie in one."""
    return baseline.name not in _KEPT or store.baseline_file(baseline.id).exists()


@dataclass(frozen=True, eq=False)
class Made:
    """What is kept of a merge: one of these, or nothing where it is made again from its settings.

    Attributes:
        c: Coefficients (N,).
        layers: Layer-wise coefficients (``L x N``).
        file: A temporary file with the merged tensors.
    """

    c: np.ndarray | None = None
    layers: np.ndarray | None = None
    file: Path | None = None


def make_weights(
    store: Store,
    name: str,
    settings: Mapping[str, Any],
    evaluator: Evaluator,
    *,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> Made:
    """Makes the merge called ``name``, any but the searched scalar, with complete settings.

    Raises:
        MapMergeError: for settings out of range, and where the device runs out of memory.
        ExportError: where a file can't be written.
        Cancelled: once ``cancel`` is set.
    """
    n = len(evaluator.vectors)
    if name == "soup":
        return Made(c=np.full(n, 1 / n))
    if name == "scalar_03":
        return Made(c=np.full(n, settings["scale"]))
    if name.startswith("adamerging"):
        found = _learn(name, settings, evaluator, cancel, progress)
        return Made(c=found) if found.ndim == 1 else Made(layers=found)
    if name in _KEPT:
        weights = _average(name, settings, evaluator, cancel, progress)
        return Made(file=_save(store, weights, evaluator.vectors.part))
    from mapmerge_core.weights.vectors.streamed import in_memory

    _merge(name, settings, in_memory(evaluator.exported_vectors))  # so that settings out of range are refused
    return Made()


def weights_of(store: Store, baseline: BaselineRow, vectors: Vectors) -> dict[str, Tensor]:
    """The very weights that are measured and exported, as `TaskVectors.merge` gives them, on the CPU.

    Args:
        store: Where the models of Fisher merging and RegMean lie; all others are made again.
        baseline: The baseline.
        vectors: Its study's task vectors.

    Raises:
        StudyError: where its file is gone.
        CheckpointError: where its file can't be read.
    """
    from mapmerge_core.weights.io.checkpoints import read_state_dict
    from mapmerge_core.weights.vectors.streamed import in_memory
    from mapmerge_core.merges._sparse import ties_trim

    if baseline.c is not None:
        return vectors.to("cpu").merge(baseline.c)
    vectors = in_memory(vectors.to("cpu"))
    if baseline.layers is not None:
        if "keep" in baseline.settings:
            vectors = ties_trim(vectors, baseline.settings["keep"])
        return vectors.merge_layers(baseline.layers)
    if baseline.name not in _KEPT:
        return _merge(baseline.name, baseline.settings, vectors)
    if not has_weights(store, baseline):
        raise StudyError(
            f"The model of {label(baseline)} is gone from {store.baseline_file(baseline.id)}: make it again."
        )
    kept = read_state_dict(store.baseline_file(baseline.id))
    return vectors.merge(np.zeros(len(vectors))) | kept


def _merge(name: str, settings: Mapping[str, Any], vectors: TaskVectors) -> dict[str, Tensor]:
    """A merge from the task vectors alone; on the CPU, so that it is the same bit by bit each time."""
    from mapmerge_core.merges._one_shot import dare, dare_ties, slerp, ties

    merges: dict[str, Callable[..., dict[str, Tensor]]]
    merges = {"ties": ties, "dare": dare, "dare_ties": dare_ties, "slerp": slerp}
    return merges[name](vectors, **settings)


def _learn(
    name: str,
    settings: Mapping[str, Any],
    evaluator: Evaluator,
    cancel: Event | None,
    progress: Progress | None,
) -> np.ndarray:
    """Coefficients of AdaMerging: (N,), or ``L x N``."""
    from mapmerge_core.merges._adamerging import adamerge
    from mapmerge_core.weights.vectors.streamed import in_memory
    from mapmerge_core.merges._sparse import ties_trim

    settings, vectors = dict(settings), None
    if name == "adamerging_ties":
        vectors = ties_trim(in_memory(evaluator.exported_vectors), settings.pop("keep"))
    layer_wise = name != "adamerging"
    return adamerge(
        evaluator, layer_wise=layer_wise, vectors=vectors, cancel=cancel, progress=progress, **settings
    )


def _average(
    name: str,
    settings: Mapping[str, Any],
    evaluator: Evaluator,
    cancel: Event | None,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Fisher merging or RegMean, on the evaluator's device."""
    from mapmerge_core.merges._statistics import fisher_diagonals, gram_matrices
    from mapmerge_core.merges._averages import (
        check_floor,
        check_off_diagonal,
        fisher_merge,
        regmean_merge,
    )
    from mapmerge_core.weights.vectors.streamed import in_memory

    # Before the images, which may take hours.
    if name == "fisher":
        check_floor(settings["floor"])
    else:
        check_off_diagonal(settings["off_diagonal"])
    vectors = in_memory(evaluator.vectors)
    names = vectors.names
    observe: Callable[..., Any] = fisher_diagonals if name == "fisher" else gram_matrices
    found: list[dict[str, Any]] = []
    for number, task in enumerate(names):

        def report(done: int, total: int, number: int = number) -> None:
            if progress:
                progress(100 * number + 100 * done // total, 100 * len(names))

        kept = {key: settings[key] for key in ("examples", "seed")}
        statistics = observe(evaluator, task, cancel=cancel, progress=report, **kept)
        # The device holds one task's at a time: they are as large as the model, Gram matrices larger.
        found.append({layer: _on_the_host(value) for layer, value in statistics.items()})
    if name == "fisher":
        return fisher_merge(vectors, found, floor=settings["floor"])
    return regmean_merge(vectors, found, off_diagonal=settings["off_diagonal"])


def _on_the_host(value: Tensor | Gram) -> Tensor | Gram:
    """A tensor or Gram matrix in the CPU's memory."""
    return value._replace(matrix=value.matrix.cpu()) if isinstance(value, tuple) else value.cpu()


def _save(store: Store, weights: Mapping[str, Tensor], part: str) -> Path:
    """Writes the merged part of a model to a temporary file beside its place."""
    from mapmerge_core.weights.export.writing import save_tensors

    path = store.new_baseline_file()
    save_tensors(path, {name: tensor for name, tensor in weights.items() if name.startswith(part)})
    return path
