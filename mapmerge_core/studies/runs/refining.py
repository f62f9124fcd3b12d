"""Come nearer to what a rule asks for, by measuring where the surrogates say that it is met best."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled
from mapmerge_core.studies.analysis.analysis import RuleChoice, analyse
from mapmerge_core.studies.runs.measuring import Progress, measure

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

_APART = 0.005
"""Least distance (the sum of the coordinates' differences) from a measured point to one worth measuring."""


def refine(
    store: Store,
    merge_id: int,
    evaluator: Evaluator,
    rule: str,
    *,
    budget: int = 12,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> RuleChoice:
    """Measure the point of a merge that a rule chooses, fit again, and so on until the choice stays.

    Args:
        store: Where each value is committed as soon as it is measured.
        merge_id: The merge, with points enough for surrogates.
        evaluator: Its study's evaluator.
        rule: Such as "all >= 70%, maximize MNIST".
        budget: How many points to measure at most.
        cancel: Set it to stop after the evaluation in flight; what was measured is kept.
        progress: Called with the evaluations made and those of the whole budget.

    Returns:
        What the rule chooses by all that is known in the end.

    Raises:
        RuleError: It is no rule over the study's objectives.
        StudyError: There is no such merge, or it has no surrogates yet.
        SearchError: The rule needs single-task models that haven't been measured.
        Cancelled: ``cancel`` was set.
    """
    study = store.studies.get(store.merges.get(merge_id).study_id)
    n_objectives = len(study.config.objectives)
    for number in range(budget):
        choice = analyse(store, study.id, merges=[merge_id]).by_rule(rule)
        known = store.evaluations.table(merge_id).X
        if np.abs(known - choice.x).sum(axis=1).min() < _APART:
            return choice
        if cancel and cancel.is_set():
            raise Cancelled

        def report(done: int, _: int, before: int = number * n_objectives) -> None:
            if progress:
                progress(before + done, budget * n_objectives)

        measure(store, study, evaluator, merge_id, choice.x[None], cancel=cancel, progress=report)
    return analyse(store, study.id, merges=[merge_id]).by_rule(rule)
