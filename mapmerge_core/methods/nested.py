"""Nested-merging MAP: two models at a time, up a tree (MAP, Algorithm 2, Appendices C and G.2)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import SearchError
from mapmerge_core.methods.base import Batch, check_told
from mapmerge_core.methods.tree import (
    Leaf,
    Node,
    Pair,
    Pairing,
    closest,
    leaf_order,
    loss_of,
    most_tasks,
    neighbours,
    shares,
)
from mapmerge_core.search.designs import anchors_outside, make_design
from mapmerge_core.search.fronts import best_sum, find_front, signs
from mapmerge_core.search.preferences import choose_by_preference
from mapmerge_core.search.rules import Objective, Rule, apply_rule, parse_rule
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate, fit_all, predict_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike

    from mapmerge_core.search.surrogates.fitting import LossName
    from mapmerge_core.search.fronts import Front
    from mapmerge_core.search.links.base import LinkName
    from mapmerge_core.tasks.metric import Metric

PAPER_POINTS = 20
"""Points of every pair (MAP, Appendix C.1)."""


class NestedMAP:
    """Algorithm 2: pairs of nodes are merged by a 2-D MAP each, round by round, until one node is left.

    Every nested model is linear in the task vectors, so each has a c (N,) and nothing is kept in between
    (line 7 is meant as θ_pre + c_i v_i + c_j v_j: its minus sign is a slip). What the paper leaves open:

    - Rounds. Line 3 would let a merged pair compete at once; the count of Appendix C.1 (480 evaluations for
      8 tasks) and Figure 10b go by rounds, in which every node is paired: the two closest losses first. An
      odd node waits for the next round.
    - Losses. How far a metric is from its best possible value: 1 - accuracy. A leaf's is measured; a merged
      node's is predicted by the surrogates, which costs no evaluation. Line 8's weighted average is divided
      by the node's share of the preference, so that nodes of different sizes compare.
    - Fronts. Line 5 names two metrics a pair, and Appendix C.1 measures all tasks of both nodes. The front
      is over all these tasks: the best weighted sum of the tasks is on it just as on the front of the two
      averages, but only it holds the models that a rule about single tasks asks for (Appendix C.3).
      ``Pair.sides`` gives the two averages to draw.
    - Preference. A pair's choice uses the weights of its own tasks, all alike where they are all zero. The
      front's best row is only as near as NSGA-III came: it is refined on the surrogates, as a rule's is.
    - Rule. A pair keeps the thresholds and the objective's tasks that are its own. Where the objective is
      about none of them, their plain sum is the objective, of those whose direction is the first one's. Where
      no point meets the thresholds, the one whose largest miss is least goes on. A pair gives the tasks
      that it doesn't maximise no more than their thresholds, so that later rounds tend to miss them: the
      paper's pairs keep 70% where its last front asks for 65%.
    - Designs. Uniform in (α, β). Where a node is a single-task model, the design starts with it, and where
      both are, with the pre-trained one too: those are shared with the pairing, with "of single" and with the
      study's other runs. A merged node's own model is shared with nothing, so it is no anchor.

    Surrogates are fitted to the points inside the box alone. The same (c, task) is never asked twice.

    Args:
        n_vectors: Number of task vectors N.
        points: Points of every pair, anchors included.
        seed: Seed; each pair's own derives from it, the round and the pair's number in the round.
        low: Lower end of the box, for both coefficients of every pair.
        high: Upper end.
        tasks: N names.
        metrics: Their metrics.
        weights: The preference, weights by task name; tasks without one have none. All tasks alike if
            neither it nor a rule is given.
        rule: A rule such as ``all >= 70% of single, maximize MNIST``, instead of a preference.
        order: All task names in the order of the tree's leaves: neighbours are paired, round by round
            (Appendix H, Q1 leaves the order to the person). By loss if left out.
        links: Each task's link and its metric's bounds, for the surrogates; the metric's own if left out.
        loss: What the surrogates' fit minimises: "squared", "absolute" or "huber".

    Raises:
        SearchError: for fewer than two tasks, names or metrics that don't fit, a budget or a box that can't
            be sampled, a preference that can't be used or comes with a rule, an order that isn't one.
        RuleError: for a text that is no rule over the tasks.
    """

    def __init__(
        self,
        n_vectors: int,
        points: int = PAPER_POINTS,
        *,
        seed: int = 0,
        low: float = 0.0,
        high: float = 1.0,
        tasks: Sequence[str],
        metrics: Sequence[Metric],
        weights: Mapping[str, float] | None = None,
        rule: str | None = None,
        order: Sequence[str] | None = None,
        links: Sequence[tuple[LinkName, tuple[float, float]]] | None = None,
        loss: LossName = "squared",
    ) -> None:
        if n_vectors < 2 or not len(tasks) == len(metrics) == n_vectors:
            raise SearchError(
                "Nested MAP merges two task vectors or more, with a task name and a metric for each: got "
                f"{n_vectors} task vectors, {len(tasks)} names and {len(metrics)} metrics."
            )
        if weights is not None and rule is not None:
            raise SearchError("Nested MAP chooses by a preference or by a rule: give one of them.")
        self._n_vectors = n_vectors
        self._points, self._seed, self._low, self._high = points, seed, low, high
        self._tasks, self._metrics = tuple(tasks), tuple(metrics)
        self._links = list(links or [(metric.link, metric.bounds) for metric in metrics])
        self._fit_loss: LossName = loss
        self._maximize = [metric.maximize for metric in metrics]
        self._weights = _check_weights(weights, self._tasks)
        self._rule: Rule | None = None
        if rule is not None:
            bounds = [metric.bounds for metric in metrics]
            self._rule = parse_rule(rule, self._tasks, maximize=self._maximize, bounds=bounds)
        self._order = None if order is None else leaf_order(order, self._tasks)
        _check_budget(points, seed, low, high)

        self._known: dict[tuple[bytes, int], float] = {}
        self._pairs: list[Pair] = []
        self._most = points * most_tasks([1] * n_vectors)
        self._steps = self._work()
        self._batch = next(self._steps, None)

    @property
    def n_evaluations(self) -> int:
        """Distinct pairs of coefficients and task that it asks for in all: 480 for 8 tasks and 20 points.

        Where losses pair an odd number of nodes it is the most there can be, and settles round by round.
        """
        return self._most

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs merged so far, each after those that it holds; the last is the tree once all is told."""
        return tuple(self._pairs)

    @property
    def tree(self) -> Pair:
        """The last pair, which holds all others.

        Raises:
            SearchError: while there is something left to ask.
        """
        if not self._pairs or len(self._pairs[-1].tasks) < self._n_vectors:
            raise SearchError("The tree isn't complete yet: evaluate what nested MAP still asks for.")
        return self._pairs[-1]

    @property
    def c(self) -> np.ndarray:
        """The merged model's coefficients (N,), once all is told (see ``tree``)."""
        return self.tree.c

    @property
    def predicted(self) -> np.ndarray:
        """Its metrics (N,) by the last pair's surrogates."""
        return self.tree.predicted

    @property
    def feasible(self) -> bool:
        """Whether it meets the rule as those surrogates see it; true without a rule."""
        return self.tree.feasible

    @property
    def message(self) -> str:
        """How it was chosen: where it misses the rule, which thresholds and by how much."""
        return self.tree.message

    def ask(self) -> Batch | None:
        """What is wanted next, the same until it has been told; None once the tree is complete."""
        return self._batch

    def tell(self, batch: Batch, values: ArrayLike) -> None:
        """Takes the values of what was asked for, ``m x len(batch.tasks)``.

        The last batch of a pair fits its surrogates, finds its front and chooses, which takes up to seconds.

        Raises:
            SearchError: where the batch isn't the one that was asked for, or the values don't fit it.
        """
        table = check_told(self._batch, batch, values)
        for c, row in zip(batch.C, table, strict=True):
            for task, value in zip(batch.tasks, row, strict=True):
                self._known[c.tobytes(), task] = float(value)
        self._batch = next(self._steps, None)

    def _work(self) -> Iterator[Batch]:
        """The algorithm itself: gives the batches, and goes on when their values are known."""
        leaves = [Leaf(task, c) for task, c in enumerate(np.eye(self._n_vectors))]
        nodes: list[Node] = [leaves[task] for task in self._order or range(self._n_vectors)]
        by_loss = self._order is None and self._n_vectors > 2
        if by_loss:
            for leaf in leaves:
                yield Batch(leaf.c[None], leaf.tasks)
        round_ = 0
        while len(nodes) > 1:
            round_ += 1
            if by_loss:
                nodes.sort(key=lambda node: node.tasks)
            pairing = closest([self._loss(node) for node in nodes]) if by_loss else neighbours(len(nodes))
            self._settle(nodes, pairing)
            merged: list[Node] = []
            for index, (i, j) in enumerate(pairing):
                seed = _derived_seed(self._seed, round_, index)
                tasks = tuple(sorted(nodes[i].tasks + nodes[j].tasks))
                design = self._design(nodes[i], nodes[j], seed)
                C = _models(design, nodes[i], nodes[j])
                yield from self._missing(C, tasks)
                measured = np.array([[self._known[c.tobytes(), task] for task in tasks] for c in C])
                self._pairs.append(self._merge(round_, (nodes[i], nodes[j]), tasks, (design, measured), seed))
                merged.append(self._pairs[-1])
            paired = {position for two in pairing for position in two}
            nodes = merged + [node for position, node in enumerate(nodes) if position not in paired]

    def _settle(self, nodes: Sequence[Node], pairing: Pairing) -> None:
        """Counts the evaluations anew now that a round's pairs are known."""
        sizes = [len(node.tasks) for node in nodes]
        now = [sizes[i] + sizes[j] for i, j in pairing]
        over = sum(sizes) - sum(now)
        before = sum(len(pair.tasks) for pair in self._pairs)
        self._most = self._points * (before + sum(now) + most_tasks(now + [over] * (over > 0)))

    def _loss(self, node: Node) -> float:
        """The node's loss: its tasks' weighted average (line 8)."""
        if isinstance(node, Leaf):
            values = np.array([self._known[node.c.tobytes(), node.task]])
        else:
            values = node.predicted
        losses = [loss_of(value, self._metrics[task]) for value, task in zip(values, node.tasks, strict=True)]
        return float(np.dot(losses, shares(self._weights[list(node.tasks)])))

    def _design(self, left: Node, right: Node, seed: int) -> np.ndarray:
        """Points (α, β) to measure, ``points x 2``: the single-task models first."""
        single = [isinstance(node, Leaf) for node in (left, right)]
        anchors = np.vstack([np.zeros((int(all(single)), 2)), np.eye(2)[single]])
        n_free = self._points - len(anchors)
        free = make_design("uniform", n_free, 2, low=self._low, high=self._high, seed=seed, anchors=False)
        return np.vstack([anchors, free])

    def _missing(self, C: np.ndarray, tasks: tuple[int, ...]) -> Iterator[Batch]:
        """What isn't known yet of ``m x N`` models on these tasks, a batch for each set of missing tasks."""
        groups: defaultdict[tuple[int, ...], dict[bytes, np.ndarray]] = defaultdict(dict)
        for c in C:
            missing = tuple(task for task in tasks if (c.tobytes(), task) not in self._known)
            if missing:
                groups[missing][c.tobytes()] = c
        for missing, rows in groups.items():
            yield Batch(np.array(list(rows.values())), missing)

    def _merge(
        self,
        round_: int,
        nodes: tuple[Node, Node],
        tasks: tuple[int, ...],
        table: tuple[np.ndarray, np.ndarray],
        seed: int,
    ) -> Pair:
        """Algorithm 1 on a pair, and the choice on its front (lines 5 to 7)."""
        design, measured = table
        inside = ((self._low <= design) & (design <= self._high)).all(axis=1)
        links = [self._links[task] for task in tasks]
        surrogates = fit_all(design[inside], measured[inside], links, self._fit_loss)
        front = find_front(
            surrogates,
            self._low,
            self._high,
            maximize=[self._maximize[task] for task in tasks],
            seed=seed,
            include=design[inside],
        )
        if self._rule is None:
            chosen = self._by_preference(tasks, front, surrogates)
        else:
            chosen = self._by_rule(self._rule, tasks, front, surrogates)
        return Pair(
            round=round_,
            left=nodes[0],
            right=nodes[1],
            tasks=tasks,
            design=design,
            measured=measured,
            surrogates=surrogates,
            front=front,
            weights=shares(self._weights[list(tasks)]),
            c=_models(chosen.point[None], *nodes)[0],
            **vars(chosen),
        )

    def _by_preference(
        self, tasks: tuple[int, ...], front: Front, surrogates: tuple[QuadraticSurrogate, ...]
    ) -> _Choice:
        """The front's best row for the preference among these tasks (line 6), refined on the surrogates."""
        weights = shares(self._weights[list(tasks)])
        maximize = [self._maximize[task] for task in tasks]
        row = choose_by_preference(front.predicted, weights, maximize=maximize)
        point = best_sum(surrogates, weights * signs(maximize), front.c[row], self._low, self._high)
        names = [self._tasks[task] for task in tasks]
        if self._weights[list(tasks)].any():
            listed = ", ".join(f"{100 * w:.3g}% {name}" for w, name in zip(weights, names, strict=True))
            message = f"This model is the best for a preference of {listed}."
        else:
            message = f"The preference gives {' and '.join(names)} no weight, so they count alike here."
        return _Choice(point, predict_all(surrogates, point[None])[0], feasible=True, message=message)

    def _by_rule(
        self, rule: Rule, tasks: tuple[int, ...], front: Front, surrogates: tuple[QuadraticSurrogate, ...]
    ) -> _Choice:
        """The pair's share of the rule applied to it (Appendix C.3)."""
        eye = np.eye(self._n_vectors)
        result = apply_rule(
            _restricted(rule, tasks, self._maximize),
            front,
            surrogates,
            low=self._low,
            high=self._high,
            single=[self._known[eye[task].tobytes(), task] for task in tasks],
            maximize=[self._maximize[task] for task in tasks],
        )
        return _Choice(result.c, result.predicted, result.feasible, result.message)


@dataclass(frozen=True, eq=False)
class _Choice:
    """What was chosen on a pair's front: the attributes of a ``Pair`` of these names."""

    point: np.ndarray
    predicted: np.ndarray
    feasible: bool
    message: str


def _models(points: np.ndarray, left: Node, right: Node) -> np.ndarray:
    """Coefficients (``m x N``) of a pair's points (α, β)."""
    C = points @ np.vstack([left.c, right.c])
    return np.asarray(C + 0.0)  # turns -0 into 0, so that equal rows have equal bytes


def _restricted(rule: Rule, tasks: tuple[int, ...], maximize: Sequence[bool]) -> Rule:
    """What a rule says about some of its tasks alone."""
    names = tuple(rule.tasks[task] for task in tasks)
    thresholds = tuple(t for t in rule.thresholds if set(rule.covered(t)) & set(tasks))
    objective = rule.objective
    if objective.kind == "sum":
        terms = tuple(term for term in objective.weights if term[0] in names)
        objective = replace(objective, weights=terms)
        if not terms:
            up = maximize[tasks[0]]
            alike = tuple((rule.tasks[task], 1.0) for task in tasks if maximize[task] == up)
            objective = Objective("sum", not up, alike)
    return Rule(names, thresholds, objective)


def _derived_seed(seed: int, round_: int, index: int) -> int:
    """A seed of its own for each pair, which every generator takes (31 bits)."""
    return int(np.random.SeedSequence((seed, round_, index)).generate_state(1)[0]) >> 1


def _check_weights(weights: Mapping[str, float] | None, tasks: tuple[str, ...]) -> np.ndarray:
    """The preference as shares (N,)."""
    if weights is None:
        return np.full(len(tasks), 1 / len(tasks))
    for name, weight in weights.items():
        if name not in tasks:
            raise SearchError(f"The preference names '{name}', but the tasks are {', '.join(tasks)}.")
        if not (isfinite(weight) and weight >= 0):
            raise SearchError(f"A preference's weights are numbers from zero up, but {name} has {weight:g}.")
    if not any(weights.values()):
        raise SearchError("Every weight is zero: give at least one task a weight above zero.")
    return shares(np.array([weights.get(task, 0.0) for task in tasks], dtype=np.float64))


def _check_budget(points: int, seed: int, low: float, high: float) -> None:
    """Refuses what the pairs' designs couldn't be made of, or their surrogates not be fitted to."""
    make_design("uniform", points, 2, low=low, high=high, seed=seed, anchors=False)
    outside = anchors_outside(2, low, high)
    needed = QuadraticSurrogate.n_parameters(2) + outside
    if points < needed:
        why = f", and {outside} of them lie outside the box" if outside else ""
        raise SearchError(
            f"Nested MAP needs at least {needed} points for every pair of models, not {points}: a quadratic "
            f"in two coefficients has 6 parameters{why}."
        )
