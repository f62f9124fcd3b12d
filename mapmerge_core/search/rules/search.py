"""From a rule to a model: the front's winner, refined on the surrogates inside the sampled box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from mapmerge_core.errors import SearchError
from mapmerge_core.search.fronts import Front, signs
from mapmerge_core.search.rules.parser import parse_rule
from mapmerge_core.search.surrogates.quadratic import Surrogate, predict_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from mapmerge_core.search.links.base import Array
    from mapmerge_core.search.rules.rule import Rule

N_STARTS = 6
"""From how many rows of the front SciPy's SLSQP sets out: the winner and the next best."""
ROUNDING = 1e-9
"""A threshold that is missed by no more is met: rounding alone does not decide."""
MARGIN = 1e-6
"""How much more than a threshold SLSQP is asked for, so that its own tolerance leaves the rule met."""


@dataclass(frozen=True)
class Miss:
    """A threshold that the nearest model misses: the task, the metric wanted and the metric predicted."""

    task: str
    wanted: float
    got: float


@dataclass(frozen=True, eq=False)
class RuleResult:
    """What a rule leads to.

    Attributes:
        c: Coefficients (N,): the best model that meets the rule, or else the one whose largest miss is least.
        predicted: Its metrics (K,).
        lower: Lower ends of their 90 % prediction intervals (K,).
        upper: Upper ends (K,).
        feasible: Whether the predicted metrics meet every threshold.
        misses: The thresholds missed, the largest first; empty if feasible.
        message: One sentence for people.
    """

    c: Array
    predicted: Array
    lower: Array
    upper: Array
    feasible: bool
    misses: tuple[Miss, ...]
    message: str


def apply_rule(
    rule: Rule,
    front: Front,
    surrogates: Sequence[Surrogate],
    *,
    low: ArrayLike,
    high: ArrayLike,
    single: ArrayLike | None = None,
    maximize: Sequence[bool] | None = None,
) -> RuleResult:
    """The model of the box [low, high]^N that a rule asks for, as the surrogates see it.

    The front's best row that meets the rule is refined by SLSQP with analytic gradients, from it and a few
    more rows; a refined model counts only if it meets the rule and is better. If no row meets the rule, SLSQP
    first looks for a model that does, by making the smallest slack as large as it can.

    Args:
        rule: The rule; its tasks are the metrics, in order.
        front: The surrogates' front.
        surrogates: K fitted surrogates.
        low: Lower end of the box, a number or one for each coefficient.
        high: Upper end.
        single: The single-task models' metrics (K,), needed by thresholds "of single".
        maximize: For each metric, whether more is better; all are, unless told otherwise.

    Raises:
        RuleError: The rule's directions are not the metrics' (its position refers to ``str(rule)``).
        SearchError: The rule has another number of tasks, or the single-task metrics it needs are missing.
    """
    n_metrics = len(surrogates)
    directions = [True] * n_metrics if maximize is None else list(maximize)
    if len(rule.tasks) != n_metrics or len(directions) != n_metrics or front.predicted.shape[1] != n_metrics:
        raise SearchError(f"The rule is about {len(rule.tasks)} tasks, and there are {n_metrics} surrogates.")
    anything = [(-np.inf, np.inf)] * n_metrics
    parse_rule(str(rule), rule.tasks, maximize=directions, bounds=anything)  # raises where directions clash
    problem = _Problem(
        rule, surrogates, (low, high), _wanted(rule, single, signs(directions)), signs(directions)
    )

    rows = front.c
    if not (problem.slack(rows) >= -ROUNDING).any():
        rows = np.vstack([rows, problem.nearest(rows)])
    slack = problem.slack(rows)
    feasible = bool((slack >= -ROUNDING).any())
    if feasible:
        rows = np.vstack([rows, problem.best(rows[slack >= -ROUNDING])])
        meets = problem.slack(rows) >= -ROUNDING
        c = rows[np.argmax(np.where(meets, problem.objective(rows), -np.inf))]
    else:
        c = rows[np.argmax(slack)]
    return _result(problem, c, feasible)


@dataclass(frozen=True, eq=False)
class Judged:
    """What a rule says of models by their metrics.

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
    maximize: Sequence[bool] | None = None,
) -> Judged:
    """Applies a rule to models whose metrics are known.

    Args:
        rule: The rule; its tasks are the metrics, in order.
        values: Metrics of the models, ``m x K``.
        single: The single-task models' metrics (K,), needed by thresholds "of single".
        maximize: For each metric, whether more is better; all are, unless told otherwise.

    Raises:
        SearchError: The rule has another number of tasks, or the single-task metrics it needs are missing.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not len(table) or table.shape[1] != len(rule.tasks):
        raise SearchError(f"The rule is about {len(rule.tasks)} tasks, and the metrics have {table.shape}.")
    directions = signs([True] * len(rule.tasks) if maximize is None else maximize)
    aim = _Aim(rule, _wanted(rule, single, directions), directions)
    slack, objective = aim.slack(table * directions), aim.objective(table * directions)
    meets = slack >= -ROUNDING
    best = int(np.argmax(np.where(meets, objective, -np.inf) if meets.any() else slack))
    return Judged(slack, objective, best, aim.misses(table[best] * directions))


class _Aim:
    """A rule over metrics turned so that more is better (goodness)."""

    def __init__(self, rule: Rule, wanted: Array, directions: Array) -> None:
        self.rule, self.wanted, self.directions = rule, wanted, directions
        self.constrained = np.flatnonzero(np.isfinite(wanted))
        if rule.objective.kind == "sum":
            self.weights = np.zeros(len(wanted))
            for task, weight in rule.objective.weights:
                self.weights[rule.tasks.index(task)] = weight
        else:
            self.weights = np.full(len(wanted), 1 / len(wanted))

    def slack(self, goodness: Array) -> Array:
        """By how much each row meets the threshold it meets least; negative if it misses it."""
        kept = self.constrained
        if not len(kept):
            return np.full(len(goodness), np.inf)
        return np.asarray((goodness[:, kept] - self.wanted[kept]).min(axis=1))

    def objective(self, goodness: Array) -> Array:
        """What is to be maximised."""
        if self.rule.objective.kind == "worst":
            return np.asarray(goodness.min(axis=1))
        return np.asarray(goodness @ self.weights)

    def misses(self, goodness: Array) -> tuple[Miss, ...]:
        """The thresholds that one model (K,) misses, the largest first."""
        predicted, wanted = goodness * self.directions, self.wanted * self.directions
        short = np.where(np.isfinite(self.wanted), self.wanted - goodness, -np.inf)
        missed = [k for k in np.argsort(-short, kind="stable") if short[k] > ROUNDING]
        return tuple(Miss(self.rule.tasks[k], float(wanted[k]), float(predicted[k])) for k in missed)


class _Problem:
    """A rule over surrogates; goodness is a metric turned so that more is better."""

    def __init__(
        self,
        rule: Rule,
        surrogates: Sequence[Surrogate],
        box: tuple[ArrayLike, ArrayLike],
        wanted: Array,
        directions: Array,
    ) -> None:
        self.surrogates, self.aim = surrogates, _Aim(rule, wanted, directions)
        self.rule, self.wanted, self.directions = rule, wanted, directions
        n_vectors = surrogates[0].n_features_in_
        self.low, self.high = (
            np.broadcast_to(np.asarray(end, dtype=np.float64), (n_vectors,)) for end in box
        )
        self.constrained, self.weights = self.aim.constrained, self.aim.weights

    def goodness(self, C: Array) -> Array:
        return predict_all(self.surrogates, C) * self.directions

    def slopes(self, c: Array) -> Array:
        """Derivatives of the goodness at one c, ``K x N``."""
        return np.vstack([s.gradient(c[None]) for s in self.surrogates]) * self.directions[:, None]

    def slack(self, C: Array) -> Array:
        """By how much each row (n,) meets the threshold it meets least; negative if it misses it."""
        return self.aim.slack(self.goodness(C))

    def objective(self, C: Array) -> Array:
        """What is to be maximised (n,)."""
        return self.aim.objective(self.goodness(C))

    def nearest(self, rows: Array) -> Array:
        """Where SLSQP gets from the rows of the largest slack, looking for still more, ``N_STARTS x N``."""
        starts = rows[np.argsort(-self.slack(rows), kind="stable")[:N_STARTS]]
        return np.array([self._raise_least(c, self.wanted, self.constrained) for c in starts])

    def best(self, rows: Array) -> Array:
        """Where SLSQP gets from the rows of the best objective, looking for better, ``N_STARTS x N``."""
        starts = rows[np.argsort(-self.objective(rows), kind="stable")[:N_STARTS]]
        if self.rule.objective.kind == "worst":
            everything = np.arange(len(self.wanted))
            return np.array(
                [self._raise_least(c, np.zeros(len(self.wanted)), everything, keep=True) for c in starts]
            )
        return np.array([self._raise_sum(c) for c in starts])

    def _raise_sum(self, start: Array) -> Array:
        """Maximise the weighted sum subject to the thresholds."""
        return self._slsqp(
            start,
            lambda c: (-float(self.goodness(c[None])[0] @ self.weights), -self.weights @ self.slopes(c)),
            self._thresholds(len(start)),
        )

    def _raise_least(
        self, start: Array, base: Array, which: NDArray[np.intp], *, keep: bool = False
    ) -> Array:
        """Maximise the least of goodness − base over some metrics: one more variable t that none is below.

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
        """SLSQP's form of the thresholds on the first ``n`` variables."""
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
        n = len(self.low)
        bounds = [*zip(self.low, self.high, strict=True), *[(None, None)] * (len(start) - n)]
        found = minimize(
            loss,
            start,
            jac=True,
            bounds=bounds,
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-9},
        ).x[:n]
        return np.clip(found, self.low, self.high) if np.isfinite(found).all() else start[:n]


def _wanted(rule: Rule, single: ArrayLike | None, directions: Array) -> Array:
    """The least goodness that the thresholds leave each task (K,); minus infinity where there is none."""
    wanted = np.full(len(rule.tasks), -np.inf)
    references = None if single is None else np.asarray(single, dtype=np.float64)
    for threshold in rule.thresholds:
        for index in rule.covered(threshold):
            value = threshold.value
            if threshold.relative:
                if references is None or not np.isfinite(references[index]):
                    raise SearchError(
                        f'"{threshold}" needs the single-task model of {rule.tasks[index]}: measure it '
                        'first, or write the threshold without "of single".'
                    )
                value *= references[index]
            wanted[index] = max(wanted[index], directions[index] * value)
    return wanted


def _result(problem: _Problem, c: Array, feasible: bool) -> RuleResult:
    goodness = problem.goodness(c[None])[0]
    predicted = goodness * problem.directions
    misses = () if feasible else problem.aim.misses(goodness)
    if feasible:
        message = "This model meets the rule, as the surrogates see it."
    else:
        message = f"No model in the box meets this rule; the nearest misses {_missed(misses)}."
    lower, upper = (
        np.concatenate(side)
        for side in zip(*[s.predict_interval(c[None]) for s in problem.surrogates], strict=True)
    )
    return RuleResult(c, predicted, lower, upper, feasible, misses, message)


def _missed(misses: Sequence[Miss]) -> str:
    listed = [_in_words(miss) for miss in misses[:3]]
    if len(misses) > 3:
        listed.append(f"{len(misses) - 3} more")
    return _joined(listed)


def _in_words(miss: Miss) -> str:
    gap = abs(miss.wanted - miss.got)
    if min(miss.wanted, miss.got) >= 0 and max(miss.wanted, miss.got) <= 1:
        return f"{miss.task} by {100 * gap:.1f} points ({100 * miss.got:.1f}% of {100 * miss.wanted:.1f}%)"
    return f"{miss.task} by {gap:.3g} ({miss.got:.4g} instead of {miss.wanted:.4g})"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
