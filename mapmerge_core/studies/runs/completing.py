"""Make and measure what a comparison lacks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled
from mapmerge_core.registries import MERGES
from mapmerge_core.settings import to_dict
from mapmerge_core.studies.analysis.comparing import baselines, compare, is_made, is_searched, scalar_search
from mapmerge_core.studies.runs.measuring import Progress, measure, reference_points
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.studies.runs.runner import GetEvaluator, execute_run, last_compute

if TYPE_CHECKING:
    from mapmerge_core.merges.base import Merge
    from mapmerge_core.studies.config import Compute
    from mapmerge_core.studies.store import Split, Store, Study

# How much longer an example takes in float32 than on the validation split, until one was measured: from 1
# where validation runs in float32, too, to 5 where bfloat16 is fastest.
_FLOAT32 = 2.5


def complete(
    store: Store,
    study_id: int,
    get_evaluator: GetEvaluator,
    *,
    merges: bool | Collection[str] = True,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    compute: Compute | None = None,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> None:
    """Measure on the test split what a comparison lacks, and make and measure missing baselines.

    Runs and references come first, then one merge after another at its default points, then the searches for
    the best scalar. Each evaluation is kept as soon as it is made and each merge too, so that the next call
    goes on where this one was interrupted.

    Args:
        store: Where everything goes.
        study_id: The study.
        get_evaluator: Gives the study's evaluator, as `EvaluatorCache.get` does.
        merges: Whether to make the missing merges that the study can have, or the names of those to make.
        weights: As in `compare`.
        seed: As in `compare`.
        compute: What to compute with; by default as the study's latest run did.
        cancel: Set it to stop after the evaluation or the step in flight.
        progress: Called with what is done of all, in evaluations: preparing a merge counts as those that take
            as long.

    Raises:
        StudyError: There is no such study or objective, or a merge was named that the study can't have.
        RegistryError: A merge was named that there isn't.
        SearchError: The weights can't be used.
        Cancelled: ``cancel`` was set.
    """
    study = store.studies.get(study_id)
    # Merges that change task vectors take them in float32.
    compute = replace(compute or last_compute(store, study_id), vectors="float32")
    plan = _plan(store, study, merges, weights, seed)
    n_objectives = len(study.config.objectives)
    sizes = _timings(store, study, "val")[0]

    def measure_at(merge_id: int, X: np.ndarray, report: Progress | None) -> None:
        evaluator = get_evaluator(study, compute)
        measure(store, study, evaluator, merge_id, X, split="test", cancel=cancel, progress=report)

    def make_one(merge: Merge, report: Progress) -> None:
        stored = store.merges.add(study_id, merge.name, to_dict(merge.settings))
        prepare_merge(store, stored.id, get_evaluator(study, compute), cancel=cancel, progress=report)
        measure_at(stored.id, _defaults(merge, study), None)

    def search(merge: Merge, report: Progress) -> None:
        config = replace(scalar_search(merge), compute=compute)
        run = store.runs.find_same(study_id, config) or store.runs.create(study_id, config)
        claim = store.runs.claim(run.id)
        try:
            ended = execute_run(store, run.id, get_evaluator, cancel=cancel, progress=report)
        finally:
            claim.release()
        if ended.status != "done":
            raise Cancelled
        wanted = compare(store, study_id, weights=weights, seed=seed).wanted
        if run.merge_id in wanted:
            measure_at(run.merge_id, wanted[run.merge_id], None)

    steps: list[tuple[int, Callable[[Progress], object]]] = [
        (_n_missing(store, study, merge_id, X), partial(measure_at, merge_id, X)) for merge_id, X in plan.wanted.items()
    ]
    for merge in plan.made:
        effort = _passes(merge, study, sizes) / max(1.0, median(sizes.values() or [1]))
        steps.append((round(effort) + len(_defaults(merge, study)) * n_objectives, partial(make_one, merge)))
    steps += [(_n_searched(merge, study) + n_objectives, partial(search, merge)) for merge in plan.searched]
    _take(steps, progress or (lambda _done, _total: None))


def estimate_completion(
    store: Store,
    study_id: int,
    *,
    merges: bool | Collection[str] = True,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> float | None:
    """Return roughly how many seconds `complete` will take.

    Preparing a merge is counted in passes of one example forward (`Merge.passes`). They are done in float32,
    as is measuring on the test split, so a pass takes as long as in the study's test evaluations, and until
    there are some 2.5 times as long as on the validation split. Evaluations of another device mislead.

    Args:
        store: What has been made and measured, and how long that took.
        study_id: The study.
        merges: As in `complete`.
        weights: As in `compare`.
        seed: As in `compare`.

    Returns:
        Seconds; None where some objective was never measured on a whole validation split.

    Raises:
        StudyError, RegistryError, SearchError: As for `complete`.
    """
    study = store.studies.get(study_id)
    plan = _plan(store, study, merges, weights, seed)
    sizes, seconds = _timings(store, study, "val")
    n_objectives = len(study.config.objectives)
    if len(seconds) < n_objectives:
        return None
    of_point = sum(seconds.values())
    test_sizes, test_seconds = _timings(store, study, "test")
    if len(test_seconds) == n_objectives:
        of_test_point, n_examples = sum(test_seconds.values()), sum(test_sizes.values())
    else:
        of_test_point, n_examples = _FLOAT32 * of_point, sum(sizes.values())
    n_wanted = sum(_n_missing(store, study, merge_id, X) for merge_id, X in plan.wanted.items())
    n_points = n_wanted / n_objectives + sum(len(_defaults(merge, study)) for merge in plan.made)
    passes = sum(_passes(merge, study, sizes) for merge in plan.made)
    searches = sum(_n_searched(merge, study) / n_objectives * of_point + of_test_point for merge in plan.searched)
    return n_points * of_test_point + passes * of_test_point / n_examples + searches


@dataclass(frozen=True)
class _Plan:
    """What is left to do.

    Attributes:
        wanted: By merge id the points (``m x D``) of the comparison's rows that lack a value.
        made: Merges to prepare, and to measure at their default points.
        searched: Merges whose best scalar is to be found.
    """

    wanted: Mapping[int, np.ndarray]
    made: Sequence[Merge]
    searched: Sequence[Merge]


def _plan(
    store: Store, study: Study, merges: bool | Collection[str], weights: Mapping[str, float] | None, seed: int
) -> _Plan:
    chosen = _chosen(study, merges)
    return _Plan(
        wanted=compare(store, study.id, weights=weights, seed=seed).wanted,
        made=[merge for merge in chosen if not is_made(store, study.id, merge)],
        searched=[merge for merge in chosen if not is_searched(store, study.id, merge)],
    )


def _chosen(study: Study, merges: bool | Collection[str]) -> list[Merge]:
    """Return the merges to offer, in each of their variants: all that the study can have, or those named."""
    if isinstance(merges, bool):
        return list(baselines(study.config)) if merges else []
    kinds = [MERGES[name] for name in merges]
    for kind in kinds:
        kind().check(study.config.facts())
    # What is trained for long has no variants, and is made by name alone.
    return [kind(settings) for kind in kinds for settings in kind.variants or ({},)]


def _defaults(merge: Merge, study: Study) -> np.ndarray:
    return np.array([x for _, x in merge.baselines(study.config.model_names)])


def _n_searched(merge: Merge, study: Study) -> int:
    """Return how many evaluations finding a merge's best scalar takes."""
    return scalar_search(merge).make_method(study.config).n_evaluations


def _n_missing(store: Store, study: Study, merge_id: int, X: np.ndarray) -> int:
    known = sum(len(store.evaluations.measured(merge_id, x, "test")) for x in X)
    return len(X) * len(study.config.objectives) - known


def _passes(merge: Merge, study: Study, sizes: Mapping[str, int]) -> int:
    """Return the passes that preparing a merge takes; 0 until its tasks' sizes are known."""
    facts = study.config.facts()
    return merge.passes([sizes.get(facts.own_task(model) or "", 0) for model in facts.models])


def _timings(store: Store, study: Study, split: Split) -> tuple[dict[str, int], dict[str, float]]:
    """Return each task's number of examples, and each objective's median seconds, of whole splits."""
    tasks = {objective.key: objective.task for objective in study.config.objectives}
    rows = [row for row in store.evaluations.rows(reference_points(store, study)[0], split) if row.is_whole]
    seconds: dict[str, list[float]] = {}
    for row in rows:
        seconds.setdefault(row.objective, []).append(row.seconds)
    return (
        {tasks[row.objective]: row.n_examples for row in rows},
        {key: median(values) for key, values in seconds.items()},
    )


def _take(steps: Sequence[tuple[int, Callable[[Progress], object]]], progress: Progress) -> None:
    """Take steps one after another, each of which is worth the evaluations beside it."""
    total, before = sum(size for size, _ in steps), 0
    progress(0, total)
    for size, step in steps:

        def report(done: int, of: int, before: int = before, size: int = size) -> None:
            progress(before + size * done // max(of, 1), total)

        step(report)
        before += size
        progress(before, total)
