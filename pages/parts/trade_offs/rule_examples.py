"""Rules and objectives that suit a study's metrics, which may go up or down and need not be percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.search.rules.rule import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapmerge_core.tasks.metric import Metric


def rules(tasks: Sequence[str], metrics: Sequence[Metric]) -> tuple[str, ...]:
    """A few rules, the first one with a threshold and one task as its objective."""
    favourite = f"{_verb(metrics[0])} {quoted(tasks[0])}"
    if not _one_way(metrics):
        # "all", "mean" and "worst" have no direction where the tasks have two.
        other, metric = quoted(tasks[-1]), metrics[-1]
        return f"{other} {_sign(metric)} {_share(metric)} of single, {favourite}", favourite
    verb, sign = _verb(metrics[0]), _sign(metrics[0])
    return (
        f"all {sign} {_threshold(metrics)}, {favourite}",
        f"all {sign} {_share(metrics[0])} of single, {verb} mean",
        f"{verb} worst",
    )


def for_mean(tasks: Sequence[str], metrics: Sequence[Metric]) -> str:
    """A rule with a threshold for all tasks and their mean as its objective, if they have one."""
    if not _one_way(metrics):
        return rules(tasks, metrics)[0]
    return f"all {_sign(metrics[0])} {_threshold(metrics)}, {_verb(metrics[0])} mean"


def objectives(tasks: Sequence[str], metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Every plain objective, the one to start with last."""
    own = [f"{_verb(metric)} {quoted(task)}" for task, metric in zip(tasks, metrics, strict=True)]
    if not _one_way(metrics):
        return tuple(own)
    return (*own, f"{_verb(metrics[0])} mean", f"{_verb(metrics[0])} worst")


def weighted_sum(tasks: Sequence[str]) -> str:
    """A sum of tasks as an objective has it."""
    return f"2 {quoted(tasks[0])} + {quoted(tasks[1])}"


def _one_way(metrics: Sequence[Metric]) -> bool:
    """Whether all metrics go up, or all go down."""
    return len({metric.maximize for metric in metrics}) == 1


def _verb(metric: Metric) -> str:
    return "maximize" if metric.maximize else "minimize"


def _sign(metric: Metric) -> str:
    return ">=" if metric.maximize else "<="


def _share(metric: Metric) -> str:
    return "90%" if metric.maximize else "110%"


def _threshold(metrics: Sequence[Metric]) -> str:
    """What all tasks can be asked for: losses have no scale that is known beforehand."""
    shares = all(metric.is_share and metric.maximize for metric in metrics)
    return "70%" if shares else f"{_share(metrics[0])} of single"
