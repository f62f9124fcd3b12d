"""What a rule is: thresholds and one target, as text and as a table (MAP, Appendix C.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from math import isfinite
from typing import Literal

KEYWORDS = (
    "all",
    "others",
    "and",
    "of",
    "single",
    "pretrained",
    "mean",
    "worst",
    "maximize",
    "minimize",
    "maximise",
    "minimise",
)
PLAIN_NAME = re.compile(r"[^\W\d](?:[\w.\-/]*\w)?")
"""Names of objectives that need no quotes, unless they are keywords."""

Scope = Literal["all", "others", "one"]
Reference = Literal["", "single", "pretrained"]
Row = dict[str, str | float]


def quoted(name: str) -> str:
    """Return an objective's name as a rule spells it: in double quotes unless it is one plain word."""
    if PLAIN_NAME.fullmatch(name) and name.lower() not in KEYWORDS:
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def number_text(value: float, percent: bool = False) -> str:
    """Return the shortest decimal text, in percent if wanted, that reads back as the same float."""
    if not isfinite(value):
        return str(value)
    exact = Decimal(repr(float(value))) * (100 if percent else 1)
    return f"{exact.normalize():f}" + ("%" if percent else "")


@dataclass(frozen=True)
class Threshold:
    """One condition, such as ``MNIST >= 90%``.

    Attributes:
        scope: ``all`` objectives, the ``others`` (those that no threshold names), or ``one``.
        name: The objective's name, empty unless the scope is ``one``.
        at_least: Whether the objective must reach the value (>=) or stay within it (<=).
        value: The value, a fraction where it was written in percent.
        reference: Of what the value is a share: of what the task's ``single`` model reaches, of what the
            ``pretrained`` model does, or of nothing.
        percent: Whether it is written in percent; 90% and 0.9 are the same threshold.
    """

    scope: Scope
    name: str
    at_least: bool
    value: float
    reference: Reference = ""
    percent: bool = field(default=True, compare=False)

    @property
    def who(self) -> str:
        """Whom it is about, as a rule spells it."""
        return quoted(self.name) if self.scope == "one" else self.scope

    def __str__(self) -> str:
        sign, of = ">=" if self.at_least else "<=", f" of {self.reference}" if self.reference else ""
        return f"{self.who} {sign} {number_text(self.value, self.percent)}{of}"


@dataclass(frozen=True)
class Target:
    """What is best among the models that meet the thresholds.

    Attributes:
        kind: ``mean`` or ``worst`` of all objectives, or a weighted ``sum``, of one of them for instance.
        minimize: Whether less is better.
        weights: (name, weight) pairs of a ``sum``, empty otherwise.
    """

    kind: Literal["sum", "mean", "worst"]
    minimize: bool = False
    weights: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        terms = [
            quoted(name) if weight == 1 else f"{number_text(weight)} {quoted(name)}" for name, weight in self.weights
        ]
        target = " + ".join(terms) if self.kind == "sum" else self.kind
        return f"{'minimize' if self.minimize else 'maximize'} {target}"


@dataclass(frozen=True)
class Rule:
    """Thresholds and a target over a study's objectives.

    ``str(rule)`` is its text, which ``parse_rule`` turns into an equal rule.

    Attributes:
        names: All objectives' names, in the study's order.
        thresholds: Conditions that all must hold, none about the same objectives as another.
        target: What is best among the models that meet them.
    """

    names: tuple[str, ...]
    thresholds: tuple[Threshold, ...]
    target: Target

    def __str__(self) -> str:
        return ", ".join([*map(str, self.thresholds), str(self.target)])

    def covered(self, threshold: Threshold) -> tuple[int, ...]:
        """Return the columns of the objectives that a threshold of this rule is about."""
        if threshold.scope == "one":
            return (self.names.index(threshold.name),)
        if threshold.scope == "all":
            return tuple(range(len(self.names)))
        named = {other.name for other in self.thresholds}
        return tuple(index for index, name in enumerate(self.names) if name not in named)

    def to_table(self) -> tuple[list[Row], str]:
        """Return the rule as a form shows it.

        Returns:
            One row a threshold: ``objective`` (a name as a rule spells it, ``all`` or ``others``), ``comparison``
            (``at least`` or ``at most``), ``value`` and ``unit`` (``%``, nothing, or either with ``of single`` or
            ``of pretrained``); and the target's text, such as ``maximize worst``.
        """
        rows: list[Row] = [
            {
                "objective": t.who,
                "comparison": "at least" if t.at_least else "at most",
                "value": float(number_text(t.value, t.percent).rstrip("%")),
                "unit": f"{'%' if t.percent else ''} {f'of {t.reference}' if t.reference else ''}".strip(),
            }
            for t in self.thresholds
        ]
        return rows, str(self.target)
