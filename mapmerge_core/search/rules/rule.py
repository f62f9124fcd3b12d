"""What a rule is: thresholds and one objective, as text and as a table (MAP, Appendix C.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYWORDS = (
    "all",
    "others",
    "and",
    "of",
    "single",
    "mean",
    "worst",
    "maximize",
    "minimize",
    "maximise",
    "minimise",
)
PLAIN_NAME = re.compile(r"[^\W\d](?:[\w.\-/]*\w)?")
"""Task names that need no quotes, unless they are keywords."""

Scope = Literal["all", "others", "task"]
Row = dict[str, str | float]


def quoted(name: str) -> str:
    """A task's name as a rule spells it: in double quotes unless it is one plain word."""
    if PLAIN_NAME.fullmatch(name) and name.lower() not in KEYWORDS:
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def number_text(value: float, percent: bool = False) -> str:
    """The shortest decimal text, in percent if wanted, that reads back as the same float."""
    if not isfinite(value):
        return str(value)
    exact = Decimal(repr(float(value))) * (100 if percent else 1)
    return f"{exact.normalize():f}" + ("%" if percent else "")


@dataclass(frozen=True)
class Threshold:
    """One condition, such as ``MNIST >= 90%``.

    Attributes:
        scope: ``all`` tasks, the ``others`` (those that no threshold names), or one ``task``.
        task: The task's name, empty unless the scope is ``task``.
        at_least: Whether the metric must reach the value (>=) or stay within it (<=).
        value: The value, a fraction where it was written in percent.
        relative: Whether the value is a share of what the task's single-task model reaches.
        percent: Whether it is written in percent; 90% and 0.9 are the same threshold.
    """

    scope: Scope
    task: str
    at_least: bool
    value: float
    relative: bool = False
    percent: bool = field(default=True, compare=False)

    @property
    def who(self) -> str:
        """Whom it is about, as a rule spells it."""
        return quoted(self.task) if self.scope == "task" else self.scope

    def __str__(self) -> str:
        sign, single = ">=" if self.at_least else "<=", " of single" if self.relative else ""
        return f"{self.who} {sign} {number_text(self.value, self.percent)}{single}"


@dataclass(frozen=True)
class Objective:
    """What is best among the models that meet the thresholds.

    Attributes:
        kind: ``mean`` or ``worst`` of all tasks, or a weighted ``sum``, of one task for instance.
        minimize: Whether less is better.
        weights: (task, weight) pairs of a ``sum``, empty otherwise.
    """

    kind: Literal["sum", "mean", "worst"]
    minimize: bool = False
    weights: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        terms = [
            quoted(task) if weight == 1 else f"{number_text(weight)} {quoted(task)}"
            for task, weight in self.weights
        ]
        target = " + ".join(terms) if self.kind == "sum" else self.kind
        return f"{'minimize' if self.minimize else 'maximize'} {target}"


@dataclass(frozen=True)
class Rule:
    """Thresholds and an objective over a study's tasks.

    ``str(rule)`` is its text, which ``parse_rule`` turns into an equal rule.

    Attributes:
        tasks: All tasks, in the study's order.
        thresholds: Conditions that all must hold, none about the same tasks as another.
        objective: What is best among the models that meet them.
    """

    tasks: tuple[str, ...]
    thresholds: tuple[Threshold, ...]
    objective: Objective

    def __str__(self) -> str:
        return ", ".join([*map(str, self.thresholds), str(self.objective)])

    def covered(self, threshold: Threshold) -> tuple[int, ...]:
        """Indices of the tasks that a threshold of this rule is about."""
        if threshold.scope == "task":
            return (self.tasks.index(threshold.task),)
        if threshold.scope == "all":
            return tuple(range(len(self.tasks)))
        named = {other.task for other in self.thresholds}
        return tuple(index for index, task in enumerate(self.tasks) if task not in named)

    def to_table(self) -> tuple[list[Row], str]:
        """The rule as a form shows it.

        Returns:
            One row a threshold: ``task`` (a name as a rule spells it, ``all`` or ``others``), ``comparison``
            (``at least`` or ``at most``), ``value`` and ``unit`` (``%``, ``% of single``, ``of single`` or
            nothing); and the objective's text, such as ``maximize worst``.
        """
        rows: list[Row] = [
            {
                "task": t.who,
                "comparison": "at least" if t.at_least else "at most",
                "value": float(number_text(t.value, t.percent).rstrip("%")),
                "unit": f"{'%' if t.percent else ''} {'of single' if t.relative else ''}".strip(),
            }
            for t in self.thresholds
        ]
        return rows, str(self.objective)

    @staticmethod
    def from_table(
        rows: Sequence[Row],
        objective: str,
        tasks: Sequence[str],
        *,
        maximize: Sequence[bool] | None = None,
        bounds: Sequence[tuple[float, float]] | None = None,
    ) -> Rule:
        """The rule that :meth:`to_table` showed, perhaps edited since; names need no quotes here.

        Raises:
            RuleError: As ``parse_rule``, about the text that the table amounts to.
        """
        from mapmerge_core.search.rules.parser import parse_rule

        clauses = [_clause(row, tasks) for row in rows]
        return parse_rule(", ".join([*clauses, objective]), tasks, maximize=maximize, bounds=bounds)


def _clause(row: Row, tasks: Sequence[str]) -> str:
    """A table's row as a rule's text; what makes no sense in it is left to the parser to point at."""
    name, value, unit = str(row["task"]), row["value"], str(row["unit"])
    who = quoted(name) if name in tasks and name.lower() not in KEYWORDS else name
    comparison = {"at least": ">=", "at most": "<="}.get(str(row["comparison"]), row["comparison"])
    number = number_text(float(value)) if isinstance(value, int | float) else str(value)
    return f"{who} {comparison} {number}{unit if unit.startswith('%') else ' ' + unit}".rstrip()
