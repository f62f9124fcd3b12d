"""Rules and targets that suit a study's metrics, which may go up or down and need not be percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mapmerge_core.search.rules.rule import quoted

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric
    from mapmerge_core.tasks.objective import Objective


def rules(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Return a few rules, the first one with a threshold and one objective to optimise."""
    first, last = objectives[0], objectives[-1]
    metric = first.metric
    verb, sign = _verb(metric), _sign(metric)
    favourite = f"{verb} {quoted(first.name)}"
    if not _one_way(objectives):
        # "all", "mean" and "worst" have no direction where the objectives have two.
        other = f"{quoted(last.name)} {_sign(last.metric)}"
        share = _share(last.metric)
        return f"{other} {share} of single, {favourite}", f"{other} {share} of pretrained, {favourite}", favourite
    shares = all(objective.metric.is_share and objective.metric.maximize for objective in objectives)
    # Losses have no scale that is known beforehand.
    threshold = "70%" if shares else f"{_share(metric)} of single"
    return (
        f"all {sign} {threshold}, {favourite}",
        f"all {sign} {_share(metric)} of single, {verb} mean",
        f"{quoted(last.name)} {sign} {_share(metric)} of pretrained, {favourite}",
        f"{verb} worst",
    )


def targets(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Return every plain target, the one to start with last."""
    own = [f"{_verb(objective.metric)} {quoted(objective.name)}" for objective in objectives]
    if not _one_way(objectives):
        return tuple(own)
    verb = _verb(objectives[0].metric)
    return (*own, f"{verb} mean", f"{verb} worst")


def weighted_sum(objectives: Sequence[Objective]) -> str:
    """Return a sum of objectives as a target has it."""
    return f"2 {quoted(objectives[0].name)} + {quoted(objectives[-1].name)}"


def _one_way(objectives: Sequence[Objective]) -> bool:
    """Return whether all metrics go up, or all go down."""
    return len({objective.metric.maximize for objective in objectives}) == 1


def _verb(metric: Metric) -> str:
    return "maximize" if metric.maximize else "minimize"


def _sign(metric: Metric) -> str:
    return ">=" if metric.maximize else "<="


def _share(metric: Metric) -> str:
    return "90%" if metric.maximize else "110%"
