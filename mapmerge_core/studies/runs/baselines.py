"""The merges that no search chose: made, kept and measured, and what that will take."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mapmerge_core.errors import Cancelled
from mapmerge_core.studies.analysis.baseline_kinds import (
    BASELINES,
    BaselineKind,
    check_offered,
    check_settings,
    find_kind,
    label,
    offered,
)
from mapmerge_core.studies.runs.baseline_weights import has_weights, make_weights, weights_of
from mapmerge_core.studies.runs.measuring import measure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event

    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store.rows import BaselineRow, Split, StudyRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

__all__ = [
    "BASELINES",
    "BaselineKind",
    "baseline_values",
    "check_offered",
    "estimate_baselines",
    "find_kind",
    "find_made",
    "label",
    "make_baseline",
    "measure_baseline",
    "missing",
    "offered",
    "passes_to_make",
    "weights_of",
]

# What the search of one scalar tries; tenths as they are typed, so that its 0.3 is the fixed scalar's.
_SCALARS = np.arange(11) / 10
# How much longer an image takes in float32 than on the validation split, until one was measured: from 1 where
# validation runs in float32, too, to 5 where bfloat16 is fastest.
_FLOAT32 = 2.5


def find_made(store: Store, study: StudyRow, name: str) -> BaselineRow | None:
    """The study's baseline of that name with the default settings, if it has been made.

    Raises:
        StudyError: for an unknown name.
    """
    settings = dict(find_kind(name).settings)
    if name == "dare":
        search = store.find_baseline(study.id, "scalar", {})
        if search is None:
            return None
        settings["scale"] = _scalar(search)
    row = store.find_baseline(study.id, name, settings)
    return row if row is not None and has_weights(store, row) else None


def missing(store: Store, study: StudyRow) -> tuple[BaselineKind, ...]:
    """The baselines that the study can have and hasn't, with the default settings."""
    return tuple(kind for kind in offered(study.spec) if find_made(store, study, kind.name) is None)


def make_baseline(
    store: Store,
    study: StudyRow,
    name: str,
    evaluator: Evaluator,
    *,
    settings: Mapping[str, Any] | None = None,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> BaselineRow:
    """Makes a baseline and keeps it; one that the study has already is handed out as it is.

    Args:
        store: Where it is kept, and with it what its search measures.
        study: A study without a transform.
        name: One of `BASELINES`.
        evaluator: The study's.
        settings: Those that differ from the defaults.
        cancel: Set it to stop after the evaluation, the images or the step in flight.
        progress: Called with what is done and its total: evaluations of the scalar's search, steps of
            AdaMerging, hundredths of each task's images for Fisher merging and RegMean.

    Raises:
        StudyError: for an unknown baseline or setting, and for a baseline that the study can't have.
        MapMergeError: for settings out of range, and where the device runs out of memory.
        Cancelled: once ``cancel`` is set.
    """
    kind = check_offered(study.spec, name)
    chosen = check_settings(kind, settings or {})
    search = None
    if name == "dare" and chosen["scale"] is None:
        search = make_baseline(store, study, "scalar", evaluator, cancel=cancel, progress=progress)
        chosen["scale"] = _scalar(search)
    found = store.find_baseline(study.id, name, chosen)
    if found is not None and has_weights(store, found):
        return found
    if found is not None:  # its file was deleted, and data don't decide twice alike
        store.delete_baseline(found.id)
    if cancel and cancel.is_set():
        raise Cancelled
    if name == "scalar":
        return _search_scalar(store, study, evaluator, cancel, progress)
    start = time.perf_counter()
    made = make_weights(store, name, chosen, evaluator, cancel=cancel, progress=progress)
    try:
        return store.add_baseline(
            study.id,
            name,
            chosen,
            c=made.c,
            layers=made.layers,
            file=made.file,
            evaluations=search.evaluations if search else 0,
            seconds=time.perf_counter() - start + (search.seconds if search else 0),
        )
    finally:
        if made.file:  # where another process was faster, or the database failed
            made.file.unlink(missing_ok=True)


def measure_baseline(
    store: Store,
    baseline_id: int,
    evaluator: Evaluator,
    *,
    split: Split = "test",
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measures a baseline on every task, unless the store knows the values; a c shares the study's.

    Args:
        store: Where each value is committed as soon as it is measured.
        baseline_id: The baseline.
        evaluator: Its study's.
        split: "val" or "test".
        cancel: Set it to stop after the evaluation in flight.
        progress: Called with the evaluations that the store has and those wanted in all.

    Returns:
        A value for each task.

    Raises:
        StudyError: where there is no such baseline, or its file is gone.
        Cancelled: once ``cancel`` is set.
    """
    baseline = store.baseline(baseline_id)
    study = store.study(baseline.study_id)
    tasks = study.spec.task_names
    if baseline.c is not None:
        values = measure(
            store, study, evaluator, baseline.c[None], split=split, cancel=cancel, progress=progress
        )
        return dict(zip(tasks, values[0].tolist(), strict=True))
    known = store.baseline_measured(baseline_id, split)
    wanted = [task for task in tasks if task not in known]
    done = len(known)
    if progress:
        progress(done, len(tasks))
    if cancel and cancel.is_set() and wanted:
        raise Cancelled
    if wanted:
        weights = weights_of(store, baseline, evaluator.exported_vectors)
        for task, outcome in evaluator.outcomes_of(weights, wanted, split):
            store.add_baseline_evaluation(baseline_id, task, split, outcome)
            done += 1
            if progress:
                progress(done, len(tasks))
            if cancel and cancel.is_set() and done < len(tasks):
                raise Cancelled
    known = store.baseline_measured(baseline_id, split)
    return {task: known[task] for task in tasks}


def baseline_values(store: Store, baseline: BaselineRow, split: Split = "test") -> np.ndarray:
    """What was measured of a baseline: (K,) in the study's order of tasks, NaN where nothing was yet."""
    if baseline.c is not None:
        known = store.measured(baseline.study_id, baseline.c, split)
    else:
        known = store.baseline_measured(baseline.id, split)
    tasks = store.study(baseline.study_id).spec.task_names
    return np.array([known.get(task, np.nan) for task in tasks])


def estimate_baselines(store: Store, study: StudyRow, seconds_per_point: float | None = None) -> float | None:
    """How long making all missing baselines and measuring all of them on the test split will take, roughly.

    Counted in passes of one image forward through the model, a pass backward as two. Fisher merging takes
    four for an image (labels are drawn first), RegMean two (a Gram matrix costs about as much as its layer),
    AdaMerging three for each image of each step; measuring takes one. All of that is done in float32, so a
    pass takes as long as in the study's test evaluations, and until there are some 2.5 times as long as on
    the validation split. Merging the weights themselves is not counted, and evaluations of another device
    mislead.

    Args:
        store: What has been made and measured, and how long that took.
        study: The study.
        seconds_per_point: To measure one c on the validation split of every task (`Estimate`), by default the
            median of what is in the store.

    Returns:
        Seconds; None where some task has no validation value yet.
    """
    sizes, medians = _timings(store, study, "val")
    if len(sizes) < len(study.spec.tasks):
        return None
    seconds = sum(medians.values()) if seconds_per_point is None else seconds_per_point
    test_sizes, test_medians = _timings(store, study, "test")
    if test_sizes:
        each = sum(test_medians.values()) / sum(test_sizes.values())
    else:
        each = _FLOAT32 * seconds / sum(sizes.values())
    passes, total = 0, 0.0
    for kind in offered(study.spec):
        row = find_made(store, study, kind.name)
        known = [] if row is None else np.isfinite(baseline_values(store, row)).tolist()
        for task, measured in zip(study.spec.task_names, known or [False] * len(sizes), strict=True):
            passes += 0 if measured else test_sizes.get(task, sizes[task])
        if row is None and kind.name == "scalar":
            known_C, known_Y = store.table(study.id)
            C = _scalars(study)
            n_known = sum(int(np.isfinite(known_Y[(known_C == c).all(axis=1)]).sum()) for c in C)
            total += (1 - n_known / C.size) * len(C) * seconds
        elif row is None:
            passes += passes_to_make(kind, list(sizes.values()))
    return total + passes * each


def passes_to_make(kind: BaselineKind, sizes: list[int]) -> int:
    """Passes of one image that making a baseline takes, for tasks with as many validation images as given."""
    settings = kind.settings
    if "examples" in settings:
        images = sum(min(n, int(settings["examples"] or n)) for n in sizes)
        return 4 * images if kind.name == "fisher" else 2 * images
    if "steps" in settings:
        images = sum(min(n, int(settings["batch_size"])) for n in sizes)
        return 3 * int(settings["steps"]) * images
    return 0


def _timings(store: Store, study: StudyRow, split: Split) -> tuple[dict[str, int], dict[str, float]]:
    """For each task that was measured on a split the number of examples and the median of the seconds."""
    rows = store.evaluations(study.id, split)
    sizes = {row.task: row.n_examples for row in rows}
    return sizes, {task: median(row.seconds for row in rows if row.task == task) for task in sizes}


def _scalars(study: StudyRow) -> np.ndarray:
    """The coefficients that the scalar's search tries (11 x N)."""
    return np.repeat(_SCALARS[:, None], len(study.spec.tasks), axis=1)


def _scalar(search: BaselineRow) -> float:
    """What the scalar's search found."""
    return float(cast("np.ndarray", search.c)[0])


def _search_scalar(
    store: Store, study: StudyRow, evaluator: Evaluator, cancel: Event | None, progress: Progress | None
) -> BaselineRow:
    C = _scalars(study)
    Y = measure(store, study, evaluator, C, cancel=cancel, progress=progress)
    signs = [1 if metric.maximize else -1 for metric in study.spec.metrics]
    tried = {c.tobytes() for c in C}
    return store.add_baseline(
        study.id,
        "scalar",
        {},
        c=C[(Y * signs).mean(axis=1).argmax()],
        evaluations=Y.size,
        seconds=sum(row.seconds for row in store.evaluations(study.id) if row.c.tobytes() in tried),
    )
