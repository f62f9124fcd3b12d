"""From a rule to a model: the front's winner, refined on the surrogates inside the space that was sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapmerge_core.errors import SearchError
from mapmerge_core.search.domains import domain_of
from mapmerge_core.search.fronts import Front, signs
from mapmerge_core.search.rules.parser import parse_rule
from mapmerge_core.search.spaces import Box
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
        box = Box([f"c{i + 1}" for i in range(surrogates[0].n_features_in_)], low, high)
        surrogates = SpaceSurrogates(box, surrogates)
    n = len(surrogates)
    directions = [True] * n if maximize is None else list(maximize)
    if len(rule.names) != n or len(directions) != n or front.predicted.shape[1] != n:
        raise SearchError(f"The rule is about {len(rule.names)} objectives, and there are {n} surrogates.")
    anything = [(-np.inf, np.inf)] * n
    parse_rule(str(rule), rule.names, maximize=directions, bounds=anything)  # raises where directions clash
    wanted = _wanted(rule, {"single": single, "pretrained": pretrained}, signs(directions))
    problem = _Problem(rule, surrogates, wanted, signs(directions))

    rows = problem.domain.from_points(front.x)
    if not (problem.slack(rows) >= -ROUNDING).any():
        rows = np.vstack([rows, problem.nearest(rows)])
    slack = problem.slack(rows)
    feasible = bool((slack >= -ROUNDING).any())
    if feasible:
        rows = np.vstack([rows, problem.best(rows[slack >= -ROUNDING])])
        meets = problem.slack(rows) >= -ROUNDING
        best = rows[np.argmax(np.where(meets, problem.objective(rows), -np.inf))]
    else:
        best = rows[np.argmax(slack)]
    return _result(problem, surrogates.space.points(problem.domain.points(best[None]))[0], feasible)


@dataclass(frozen=True, eq=False)
class Judged:
    """How models fare by a rule, given their values.

    Attributes:
        slack: By how much each model (m,) meets the threshold that it meets least; negative if it misses it.
        objective: What is to be maximised (m,).
        best: The row to take: of those that meet the rule the best, else the nearest.
        misses: The thresholds that it misses, the largest first.
    """

    slack: Array
    objective: Array
    best: int
    misses: tuple[Miss, ...]

    @property
    def feasible(self) -> bool:
        """Whether the best row meets the rule."""
        return bool(self.slack[self.best] >= -ROUNDING)

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
    aim = _Aim(rule, _wanted(rule, {"single": single, "pretrained": pretrained}, directions), directions)
    slack, objective = aim.slack(table * directions), aim.objective(table * directions)
    meets = slack >= -ROUNDING
    best = int(np.argmax(np.where(meets, objective, -np.inf) if meets.any() else slack))
    return Judged(slack, objective, best, aim.misses(table[best] * directions))


class _Aim:
    """A rule over metrics turned so that more is better (goodness)."""

    def __init__(self, rule: Rule, wanted: Array, directions: Array) -> None:
        self.rule, self.wanted, self.directions = rule, wanted, directions
        self.constrained = np.flatnonzero(np.isfinite(wanted))
        if rule.target.kind == "sum":
            self.weights = np.zeros(len(wanted))
            for name, weight in rule.target.weights:
                self.weights[rule.names.index(name)] = weight
        else:
            self.weights = np.full(len(wanted), 1 / len(wanted))

    def slack(self, goodness: Array) -> Array:
        """Return by how much each row meets the threshold that it meets least; negative if it misses it."""
        kept = self.constrained
        if not len(kept):
            return np.full(len(goodness), np.inf)
        return np.asarray((goodness[:, kept] - self.wanted[kept]).min(axis=1))

    def objective(self, goodness: Array) -> Array:
        """Return each row's value of what the rule maximises."""
        if self.rule.target.kind == "worst":
            return np.asarray(goodness.min(axis=1))
        return np.asarray(goodness @ self.weights)

    def misses(self, goodness: Array) -> tuple[Miss, ...]:
        """Return the thresholds that one model (K,) misses, the largest miss first."""
        predicted, wanted = goodness * self.directions, self.wanted * self.directions
        short = np.where(np.isfinite(self.wanted), self.wanted - goodness, -np.inf)
        missed = [k for k in np.argsort(-short, kind="stable") if short[k] > ROUNDING]
        return tuple(Miss(self.rule.names[k], float(wanted[k]), float(predicted[k])) for k in missed)


class _Problem:
    """A rule over surrogates, on rows of their domain; goodness is an objective turned so that more is better."""

    def __init__(self, rule: Rule, surrogates: SpaceSurrogates, wanted: Array, directions: Array) -> None:
        self.surrogates, self.domain, self.aim = (surrogates, domain_of(surrogates), _Aim(rule, wanted, directions))
        self.rule, self.wanted, self.directions = rule, wanted, directions
        self.low, self.high = self.domain.low, self.domain.high
        self.constrained, self.weights = self.aim.constrained, self.aim.weights

    def goodness(self, C: Array) -> Array:
        return self.domain.stack.predict(C) * self.directions

    def slopes(self, c: Array) -> Array:
        """Return the derivatives (`K x n`) of the goodness at one row."""
        return np.asarray(self.domain.stack.predict_with_gradients(c[None])[1][0] * self.directions[:, None])

    def slack(self, C: Array) -> Array:
        """Return by how much each row meets the threshold that it meets least; negative if it misses it."""
        return self.aim.slack(self.goodness(C))

    def objective(self, C: Array) -> Array:
        """Return each row's value of what the rule maximises."""
        return self.aim.objective(self.goodness(C))

    def nearest(self, rows: Array) -> Array:
        """Return where SLSQP ends (`N_STARTS x n`) that maximises the slack from the rows that have most of it."""
        starts = rows[np.argsort(-self.slack(rows), kind="stable")[:N_STARTS]]
        return np.array([self._raise_least(c, self.wanted, self.constrained) for c in starts])

    def best(self, rows: Array) -> Array:
        """Return where SLSQP ends (`N_STARTS x n`) that maximises the objective from the rows that have most of it."""
        starts = rows[np.argsort(-self.objective(rows), kind="stable")[:N_STARTS]]
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

        n = len(self.low)
        bounds = [*zip(self.low, self.high, strict=True), *[(None, None)] * (len(start) - n)]
        end = minimize(
            loss, start, jac=True, bounds=bounds, constraints=constraints, method="SLSQP", options={"ftol": 1e-9}
        ).x[:n]
        return np.clip(end, self.low, self.high) if np.isfinite(end).all() else start[:n]


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


def _result(problem: _Problem, x: Array, feasible: bool) -> RuleResult:
    predicted = problem.surrogates.predict(x[None])[0]
    lower, upper = problem.surrogates.predict_interval(x[None])
    misses = () if feasible else problem.aim.misses(predicted * problem.directions)
    if feasible:
        message = "This model meets the rule, as the surrogates see it."
    else:
        message = f"No model meets this rule; the nearest misses {_missed(misses)}."
    return RuleResult(x, predicted, lower[0], upper[0], feasible, misses, message)


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
