"""Makes and measures what a comparison lacks."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import TYPE_CHECKING, cast

import numpy as np

from mapmerge_core.studies.runs.baselines import (
    check_offered,
    estimate_baselines,
    make_baseline,
    measure_baseline,
    missing,
    passes_to_make,
)
from mapmerge_core.studies.analysis.entries import gather
from mapmerge_core.studies.runs.learning import measure_learned
from mapmerge_core.studies.runs.measuring import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from threading import Event

    from mapmerge_core.studies.runs.baselines import BaselineKind
    from mapmerge_core.studies.analysis.entries import Entry
    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator


def complete(
    store: Store,
    study_id: int,
    get_evaluator: Callable[[StudyRow], Evaluator],
    *,
    baselines: bool | Collection[str] = True,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> None:
    """Measures on the test split what ``comparing.compare`` lacks, and makes and measures missing baselines.

    Runs and references come first, then one baseline after another. Each evaluation is kept as soon as
    it is made and each baseline too, so that the next call goes on where this one was interrupted.

    Args:
        store: Where everything goes.
        study_id: The study.
        get_evaluator: Gives a study's evaluator, as ``EvaluatorCache.get`` does.
        baselines: Whether to make the missing baselines, or the names of those to make.
        weights: As in ``comparing.compare``.
        seed: As in ``comparing.compare``.
        cancel: Set it to stop after the evaluation or the step in flight.
        progress: Called with what is done of all, in evaluations: making a baseline counts as those that take
            as long.

    Raises:
        StudyError: where there is no such study, for a task that it doesn't have, and for a baseline that is
            unknown or that it can't have.
        SearchError: for weights and seeds that can't be used.
        Cancelled: once ``cancel`` is set.
    """
    gathered = gather(store, study_id, weights, seed)
    base = gathered.family[0]
    kinds = _to_make(store, base, baselines)
    steps: list[tuple[int, Callable[[Progress], object]]] = []

    def measure_at(study: StudyRow, C: np.ndarray, report: Progress) -> None:
        measure(store, study, get_evaluator(study), C, split="test", cancel=cancel, progress=report)

    def measure_set(study: StudyRow, entry: Entry, report: Progress) -> None:
        measure_learned(
            store,
            cast("int", entry.run_id),
            get_evaluator(study),
            cast("np.ndarray", entry.gammas),
            split="test",
            cancel=cancel,
            progress=report,
        )

    def measure_made(baseline_id: int, report: Progress) -> None:
        measure_baseline(store, baseline_id, get_evaluator(base), cancel=cancel, progress=report)

    def make(name: str, report: Progress) -> None:
        evaluator = get_evaluator(base)
        made = make_baseline(store, base, name, evaluator, cancel=cancel, progress=report)
        measure_baseline(store, made.id, evaluator, cancel=cancel)

    for member in gathered.family:
        table = gathered.measured[member.id]
        if table.wanted:
            C = np.array(list(table.wanted.values()))
            steps.append((table.n_missing, partial(measure_at, member, C)))
        steps += [
            (entry.n_missing, partial(measure_set, member, entry))
            for entry in gathered.entries
            if entry.study_id == member.id and entry.gammas is not None and entry.n_missing
        ]
    steps += [
        (entry.n_missing, partial(measure_made, entry.baseline_id))
        for entry in gathered.entries
        if entry.baseline_id is not None and entry.n_missing
    ]
    steps += [(_effort(store, base, kind), partial(make, kind.name)) for kind in kinds]
    _work(steps, progress)


def estimate_completion(
    store: Store, study_id: int, *, weights: Mapping[str, float] | None = None, seed: int = 0
) -> float | None:
    """How long ``complete`` will take, roughly (see ``estimate_baselines``).

    Args:
        store: Where everything is.
        study_id: The study.
        weights: As in ``comparing.compare``.
        seed: As in ``comparing.compare``.

    Returns:
        Seconds; None where the family's first study has no evaluation of some task yet.

    Raises:
        StudyError: where there is no such study, and for a task that it doesn't have.
        SearchError: for weights and seeds that can't be used.
    """
    gathered = gather(store, study_id, weights, seed)
    base = gathered.family[0]
    of_baselines = estimate_baselines(store, base)
    if of_baselines is None:
        return None
    seconds = [row.seconds for row in store.evaluations(base.id, "test") or store.evaluations(base.id)]
    missing_c = sum(table.n_missing for table in gathered.measured.values())
    missing_learned = sum(entry.n_missing for entry in gathered.entries if entry.gammas is not None)
    return of_baselines + (missing_c + missing_learned) * median(seconds)


def _to_make(store: Store, base: StudyRow, baselines: bool | Collection[str]) -> list[BaselineKind]:
    """The missing baselines, or those of them that were named."""
    absent = missing(store, base)
    if isinstance(baselines, bool):
        return list(absent) if baselines else []
    for name in baselines:
        check_offered(base.spec, name)
    # DARE's coefficient is the one that the scalar's search finds, so that comes with it.
    wanted = {*baselines, *(["scalar"] if "dare" in baselines else [])}
    return [kind for kind in absent if kind.name in wanted]


def _effort(store: Store, base: StudyRow, kind: BaselineKind) -> int:
    """How many evaluations take as long as making and measuring a baseline."""
    sizes = {row.task: row.n_examples for row in store.evaluations(base.id)}
    n_tasks = len(base.spec.tasks)
    if kind.name == "scalar":
        return 12 * n_tasks
    images = passes_to_make(kind, list(sizes.values()))
    return n_tasks + (round(images * len(sizes) / sum(sizes.values())) if sizes else 0)


def _work(steps: Sequence[tuple[int, Callable[[Progress], object]]], progress: Progress | None) -> None:
    """Takes the steps one after another, each of which is worth the evaluations beside it."""
    total, before = sum(size for size, _ in steps), 0

    def count(done: int) -> None:
        if progress:
            progress(done, total)

    count(0)
    for size, step in steps:

        def report(done: int, of: int, before: int = before, size: int = size) -> None:
            count(before + size * done // max(of, 1))

        step(report)
        before += size
        count(before)
