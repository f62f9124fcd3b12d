"""From a rule to a model: the front's winner, refined on the surrogates inside the space that was sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapmerge_core.errors import SearchError
from mapmerge_core.search.domains import Domain
from mapmerge_core.search.fronts import Front, signs
from mapmerge_core.search.rules.parser import parse_rule
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates

if TYPE_CHECKING:
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.rules.rule import Rule
    from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate

N_STARTS = 6
"""From how many rows of the front SciPy's SLSQP sets out: the winner and the next best."""
ROUNDING = 1e-9
"""A threshold that is missed by no more is met: rounding alone does not decide."""
MARGIN = 1e-6
"""How much more than a threshold SLSQP is asked for, so that its own tolerance leaves the rule met."""


@dataclass(frozen=True)
class Miss:
    """A threshold that the nearest model misses: the objective, the value wanted and the value that it has."""

    name: str
    wanted: float
    got: float


@dataclass(frozen=True, eq=False)
class RuleResult:
    """What a rule leads to.

    Attributes:
        x: A point (D,): the best model that meets the rule, or else the one whose largest miss is least.
        predicted: Its metrics (K,).
        lower: Lower ends of their 90 % prediction intervals (K,).
        upper: Upper ends (K,).
        feasible: Whether the predicted metrics meet every threshold.
        misses: The thresholds missed, the largest first; empty if feasible.
        message: One sentence for people.
    """

    x: Array
    predicted: Array
    lower: Array
    upper: Array
    feasible: bool
    misses: tuple[Miss, ...]
    message: str


def apply_rule(
    rule: Rule,
    front: Front,
    surrogates: SpaceSurrogates | Sequence[QuadraticSurrogate],
    *,
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
    single: ArrayLike | None = None,
    pretrained: ArrayLike | None = None,
    maximize: Sequence[bool] | None = None,
) -> RuleResult:
    """Return the model of a space that a rule asks for, as the surrogates see it.

    The front's best row that meets the rule is refined by SLSQP with analytic gradients, from it and a few
    more rows; a refined model counts only if it meets the rule and is better. If no row meets the rule, SLSQP
    first looks for a model that does, by making the smallest slack as large as it can.

    Args:
        rule: The rule; its names are the objectives, in order.
        front: The surrogates' front.
        surrogates: K fitted surrogates with their space; or K surrogates of the coefficients of a box.
        low: Lower end of that box, a number or one for each coefficient.
        high: Upper end.
        single: The own models' values (K,), needed by thresholds "of single".
        pretrained: The pre-trained model's values (K,), needed by thresholds "of pretrained".
        maximize: For each objective, whether more is better; all by default.

    Raises:
        RuleError: The rule's directions are not the objectives' (its position refers to ``str(rule)``).
        SearchError: The rule has another number of objectives, or values that it needs are missing.
    """
    if not isinstance(surrogates, SpaceSurrogates):
        surrogates = SpaceSurrogates.in_box(surrogates, low, high)
    n = len(surrogates)
    directions = [True] * n if maximize is None else list(maximize)
    if len(rule.names) != n or len(directions) != n or front.predicted.shape[1] != n:
        raise SearchError(f"The rule is about {len(rule.names)} objectives, and there are {n} surrogates.")
    anything = [(-np.inf, np.inf)] * n
    parse_rule(str(rule), rule.names, maximize=directions, bounds=anything)  # raises where directions clash
    problem = _Problem(rule, {"single": single, "pretrained": pretrained}, signs(directions), Domain(surrogates))

    rows = problem.domain.from_points(front.x)
    if not problem.meets(rows).any():
        rows = np.vstack([rows, problem.nearest(rows)])
    meets = problem.meets(rows)
    if meets.any():
        rows = np.vstack([rows, problem.best(rows[meets])])
    best = problem.best_row(problem.goodness(rows))
    x = surrogates.space.points(problem.domain.points(rows[best : best + 1]))[0]
    predicted = surrogates.predict(x[None])[0]
    lower, upper = surrogates.predict_interval(x[None])
    misses = problem.misses(predicted * problem.directions)
    message = "This model meets the rule, as the surrogates see it."
    if misses:
        message = f"No model meets this rule; the nearest misses {_missed(misses)}."
    return RuleResult(x, predicted, lower[0], upper[0], not misses, misses, message)


@dataclass(frozen=True, eq=False)
class Judged:
    """How models fare by a rule, given their values.

    Attributes:
        best: The row to take: of those that meet the rule the best, else the nearest.
        misses: The thresholds that it misses, the largest first.
    """

    best: int
    misses: tuple[Miss, ...]

    @property
    def feasible(self) -> bool:
        """Whether the best row meets the rule."""
        return not self.misses

    @property
    def missed(self) -> str:
        """The misses in words, such as "MNIST by 1.0 points (89.0% of 90.0%)"."""
        return _missed(self.misses)


def judge(
    rule: Rule,
    values: ArrayLike,
    *,
    single: ArrayLike | None = None,
    pretrained: ArrayLike | None = None,
    maximize: Sequence[bool] | None = None,
) -> Judged:
    """Apply a rule to models whose objectives are known.

    Args:
        rule: The rule; its names are the objectives, in order.
        values: The models' values, `m x K`.
        single: The own models' values (K,), needed by thresholds "of single".
        pretrained: The pre-trained model's values (K,), needed by thresholds "of pretrained".
        maximize: For each objective, whether more is better; all by default.

    Raises:
        SearchError: The rule has another number of objectives, or values that it needs are missing.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not len(table) or table.shape[1] != len(rule.names):
        raise SearchError(f"The rule is about {len(rule.names)} objectives, and the values have shape {table.shape}.")
    directions = signs([True] * len(rule.names) if maximize is None else maximize)
    aim = _Aim(rule, {"single": single, "pretrained": pretrained}, directions)
    best = aim.best_row(table * directions)
    return Judged(best, aim.misses(table[best] * directions))


class _Aim:
    """A rule over goodness: objectives (`m x K`), turned so that more is better.

    Attributes:
        wanted: The least goodness that the thresholds allow each objective (K,), minus infinity without one.
        constrained: The columns that have a threshold.
        weights: Each objective's weight in the sum or the mean to be maximised (K,).
    """

    def __init__(self, rule: Rule, references: Mapping[str, ArrayLike | None], directions: Array) -> None:
        self.rule, self.directions = rule, directions
        self.wanted = _wanted(rule, references, directions)
        self.constrained = np.flatnonzero(np.isfinite(self.wanted))
        n = len(directions)
        terms = dict(rule.target.weights if rule.target.kind == "sum" else ((name, 1 / n) for name in rule.names))
        self.weights = np.array([terms.get(name, 0.0) for name in rule.names])

    def slack(self, goodness: Array) -> Array:
        """Return by how much each row meets the threshold that it meets least; negative if it misses it."""
        kept = self.constrained
        return np.asarray((goodness[:, kept] - self.wanted[kept]).min(axis=1, initial=np.inf))

    def objective(self, goodness: Array) -> Array:
        """Return each row's value of what the rule maximises."""
        return np.asarray(goodness.min(axis=1) if self.rule.target.kind == "worst" else goodness @ self.weights)

    def best_row(self, goodness: Array) -> int:
        """Return the best row of those that meet the rule, or else the one that misses it least."""
        slack = self.slack(goodness)
        meets = slack >= -ROUNDING
        return int(np.argmax(np.where(meets, self.objective(goodness), -np.inf) if meets.any() else slack))

    def misses(self, goodness: Array) -> tuple[Miss, ...]:
        """Return the thresholds that one model (K,) misses, the largest miss first."""
        values, wanted = goodness * self.directions, self.wanted * self.directions
        short = self.wanted - goodness
        missed = [k for k in np.argsort(-short, kind="stable") if short[k] > ROUNDING]
        return tuple(Miss(self.rule.names[k], float(wanted[k]), float(values[k])) for k in missed)


class _Problem(_Aim):
    """A rule over surrogates, on rows of their domain."""

    def __init__(
        self, rule: Rule, references: Mapping[str, ArrayLike | None], directions: Array, domain: Domain
    ) -> None:
        super().__init__(rule, references, directions)
        self.domain = domain

    def goodness(self, C: Array) -> Array:
        return self.domain.predict(C) * self.directions

    def meets(self, C: Array) -> NDArray[np.bool_]:
        """Return which rows meet the rule (m,)."""
        return self.slack(self.goodness(C)) >= -ROUNDING

    def slopes(self, c: Array) -> Array:
        """Return the derivatives (`K x n`) of the goodness at one row."""
        return np.asarray(self.domain.predict_with_gradients(c[None])[1][0] * self.directions[:, None])

    def nearest(self, rows: Array) -> Array:
        """Return where SLSQP ends (`N_STARTS x n`) that maximises the slack from the rows that have most of it."""
        starts = rows[np.argsort(-self.slack(self.goodness(rows)), kind="stable")[:N_STARTS]]
        return np.array([self._raise_least(c, self.wanted, self.constrained) for c in starts])

    def best(self, rows: Array) -> Array:
        """Return where SLSQP ends (`N_STARTS x n`) that maximises the objective from the rows that have most of it."""
        starts = rows[np.argsort(-self.objective(self.goodness(rows)), kind="stable")[:N_STARTS]]
        if self.rule.target.kind == "worst":
            everything = np.arange(len(self.wanted))
            return np.array([self._raise_least(c, np.zeros(len(self.wanted)), everything, keep=True) for c in starts])
        return np.array([self._raise_sum(c) for c in starts])

    def _raise_sum(self, start: Array) -> Array:
        """Maximise the weighted sum subject to the thresholds."""
        return self._slsqp(
            start,
            lambda c: (-float(self.goodness(c[None])[0] @ self.weights), -self.weights @ self.slopes(c)),
            self._thresholds(len(start)),
        )

    def _raise_least(self, start: Array, base: Array, which: NDArray[np.intp], *, keep: bool = False) -> Array:
        """Maximise the least of goodness − base over the metrics ``which``: one more variable t that none is below.

        ``keep`` holds the thresholds too.
        """
        n = len(start)
        first = float((self.goodness(start[None])[0, which] - base[which]).min())
        above = {
            "type": "ineq",
            "fun": lambda x: self.goodness(x[None, :n])[0, which] - base[which] - x[n],
            "jac": lambda x: np.hstack([self.slopes(x[:n])[which], -np.ones((len(which), 1))]),
        }
        constraints = [above, *(self._thresholds(n) if keep else [])]
        return self._slsqp(np.append(start, first), lambda x: (-float(x[n]), -np.eye(n + 1)[n]), constraints)

    def _thresholds(self, n: int) -> list[dict[str, object]]:
        """Return the thresholds on the first ``n`` variables in SLSQP's form."""
        kept = self.constrained
        if not len(kept):
            return []
        return [
            {
                "type": "ineq",
                "fun": lambda x: self.goodness(x[None, :n])[0, kept] - self.wanted[kept] - MARGIN,
                "jac": lambda x: np.pad(self.slopes(x[:n])[kept], ((0, 0), (0, len(x) - n))),
            }
        ]

    def _slsqp(
        self, start: Array, loss: Callable[[Array], tuple[float, Array]], constraints: list[dict[str, object]]
    ) -> Array:
        from scipy.optimize import minimize

        low, high = self.domain.low, self.domain.high
        n = len(low)
        bounds = [*zip(low, high, strict=True), *[(None, None)] * (len(start) - n)]
        end = minimize(
            loss, start, jac=True, bounds=bounds, constraints=constraints, method="SLSQP", options={"ftol": 1e-9}
        ).x[:n]
        return np.clip(end, low, high) if np.isfinite(end).all() else start[:n]


_OF = {"single": "the own model", "pretrained": "the pre-trained model"}


def _wanted(rule: Rule, references: Mapping[str, ArrayLike | None], directions: Array) -> Array:
    """Return the least goodness that the thresholds allow each objective (K,), minus infinity where there is none."""
    wanted = np.full(len(rule.names), -np.inf)
    for threshold in rule.thresholds:
        for index in rule.covered(threshold):
            value = threshold.value
            if threshold.reference:
                values = references[threshold.reference]
                reference = np.nan if values is None else np.asarray(values, dtype=np.float64)[index]
                if not np.isfinite(reference):
                    raise SearchError(
                        f'"{threshold}" needs {_OF[threshold.reference]} measured on {rule.names[index]}: measure '
                        f'it first, or write the threshold without "of {threshold.reference}".'
                    )
                value *= reference
            wanted[index] = max(wanted[index], directions[index] * value)
    return wanted


def _missed(misses: Sequence[Miss]) -> str:
    listed = [_in_words(miss) for miss in misses[:3]]
    if len(misses) > 3:
        listed.append(f"{len(misses) - 3} more")
    return _joined(listed)


def _in_words(miss: Miss) -> str:
    gap = abs(miss.wanted - miss.got)
    if min(miss.wanted, miss.got) >= 0 and max(miss.wanted, miss.got) <= 1:
        return f"{miss.name} by {100 * gap:.1f} points ({100 * miss.got:.1f}% of {100 * miss.wanted:.1f}%)"
    return f"{miss.name} by {gap:.3g} ({miss.got:.4g} instead of {miss.wanted:.4g})"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
