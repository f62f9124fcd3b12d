"""Nested-merging MAP: two models at a time, up a tree (MAP, Algorithm 2, Appendices C and G.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mapmerge_core.errors import SearchError
from mapmerge_core.methods._tree import (
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
from mapmerge_core.methods.base import Batch, Choice, Method, links_of, register, weights_of
from mapmerge_core.search.designs import anchors_outside, make_design
from mapmerge_core.search.domains import best_sum
from mapmerge_core.search.fronts import Front, find_front, signs
from mapmerge_core.search.links.base import make_link
from mapmerge_core.search.preferences import choose_by_preference, normalise
from mapmerge_core.search.rules import Rule, Target, apply_rule, parse_rule
from mapmerge_core.search.spaces import Box, Space
from mapmerge_core.search.surrogates.features import n_parameters
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates, fit_surrogates
from mapmerge_core.settings import seed_setting, setting, settings

PAPER_POINTS = 20
"""Points of every pair (MAP, Appendix C.1)."""


@register
class NestedMAP(Method):
    """Merge two models at a time, up a tree, towards one model for a preference or a rule.

    Pairs of nodes are merged by a 2-D MAP each, round by round, until one node is left (Algorithm 2).

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
    - Preference. A pair's choice uses the weights of its own tasks, equal ones where they are all zero. The
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

    Task n is the first objective of model n's own; other objectives of the study are not looked at.

    Raises:
        SearchError: The space is no box of two coefficients or more, a model has no objective of its own, the
            budget can't be sampled, the preference can't be used or comes with a rule, or the order isn't one.
        RuleError: The text is no rule over the models' own objectives.
    """

    name = "nested"
    title = "Nested MAP"
    source = "MAP (ICLR 2025), Algorithm 2"
    advice = "many models, with a preference or a rule in mind: one model, no front"
    is_front = "single"
    # A pair's choice, and with it what the next round asks, ends in other digits on another processor (by 1e-8
    # between the kernels of one BLAS).
    tolerance = 1e-6
    per_pair = True

    @settings
    class Settings:
        points: int | None = setting(None, at_least=1, help="Points of every pair of models; 20 if left out.")
        seed: int = seed_setting()
        weights: dict[str, float] | None = setting(
            None, help="The preference: weights of objectives; equal ones if left out."
        )
        rule: str | None = setting(None, help="A rule instead of a preference, such as all >= 70%, maximize MNIST.")
        order: tuple[str, ...] | None = setting(
            None, help="The objectives in the order of the tree's leaves, neighbours merged first; by loss if left out."
        )

    @classmethod
    def default_points(cls, space: Space) -> int:
        del space
        return PAPER_POINTS

    def start(self) -> None:
        how = self.settings
        if not isinstance(self.space, Box) or self.space.n < 2:
            raise SearchError(
                "Nested MAP merges the task vectors of two models or more, each with a coefficient: choose another "
                "method for this merge."
            )
        if np.ptp(self.space.low) or np.ptp(self.space.high):
            raise SearchError(
                "Nested MAP needs the same lowest and highest coefficient for all models, and they differ: give one "
                "number for each end, or choose another method."
            )
        self._own = self._own_objectives()
        own = [self.objectives[k] for k in self._own]
        self._n_vectors = self.space.n
        self._seed, self._low, self._high = how.seed, float(self.space.low[0]), float(self.space.high[0])
        self._tasks, self._metrics = tuple(objective.name for objective in own), own
        if how.weights is not None and how.rule is not None:
            raise SearchError("Nested MAP chooses by a preference or by a rule: give one of them.")
        self._links = links_of(own)
        self._maximize = [objective.maximize for objective in own]
        preference = dict.fromkeys(self._tasks, 1.0) if how.weights is None else how.weights
        self._weights = normalise(weights_of(preference, own), len(own))
        self._rule: Rule | None = None
        if how.rule is not None:
            bounds = [objective.bounds for objective in own]
            self._rule = parse_rule(how.rule, self._tasks, maximize=self._maximize, bounds=bounds)
        self._order = None if how.order is None else leaf_order(how.order, self._tasks)
        self._pair_box = Box(["α", "β"], self._low, self._high)
        _check_budget(self.points, self._pair_box)

        self._known: dict[tuple[bytes, int], float] = {}
        self._pairs: list[Pair] = []
        self._origin = np.zeros((1, self._n_vectors))
        thresholds = () if self._rule is None else self._rule.thresholds
        self._needs_origin = any(threshold.reference == "pretrained" for threshold in thresholds)
        # Pairs of leaves measure the pre-trained model anyway: a leaf that is left over doesn't.
        self._extra = self._n_vectors % 2 if self._needs_origin else 0
        self._most = self.points * most_tasks([1] * self._n_vectors) + self._extra
        self._steps = self._work()
        self._waiting = self._next()

    def _own_objectives(self) -> list[int]:
        """Return the column of each model's own objective."""
        own = {}
        for column, objective in reversed(list(enumerate(self.objectives))):
            own[objective.model] = column
        for model, name in enumerate(self.space.names):
            if model not in own:
                raise SearchError(
                    f"Nested MAP needs an objective of its own for each model, and '{name}' has none: add a task with "
                    "that model, or choose another method."
                )
        return [own[model] for model in range(self.space.n)]

    def _next(self) -> Batch | None:
        """Return the algorithm's next batch, with the study's columns of its tasks."""
        batch = next(self._steps, None)
        return batch and Batch(batch.X, tuple(self._own[task] for task in batch.objectives))

    @property
    def n_evaluations(self) -> int:
        """How many pairs of coefficients and a task it asks for in all: 480 for 8 tasks and 20 points.

        Where an odd number of nodes is paired by loss, this is an upper bound that settles round by round.
        """
        return self._most

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs merged so far, each after those that it holds; the last is the whole tree in the end."""
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

    def choose(self) -> Choice:
        values = np.full(len(self.objectives), np.nan)
        values[[self._own[task] for task in self.tree.tasks]] = self.tree.predicted
        return Choice(self.tree.c, values, self.tree.feasible, self.tree.message)

    def take(self, batch: Batch, values: np.ndarray) -> Batch | None:
        # The last batch of a pair fits its surrogates, finds its front and chooses, which takes up to seconds.
        tasks = [self._own.index(column) for column in batch.objectives]
        for task, column in zip(tasks, values.T, strict=True):  # now: a pair that can't be fitted ends the algorithm
            make_link(*self._links[task]).check_values(column)
        for c, row in zip(batch.X, values, strict=True):
            for task, value in zip(tasks, row, strict=True):
                self._known[c.tobytes(), task] = float(value)
        return self._next()

    def _work(self) -> Iterator[Batch]:
        """Run the algorithm: yield its batches, and go on once their values are in ``_known``."""
        leaves = [Leaf(task, c) for task, c in enumerate(np.eye(self._n_vectors))]
        nodes: list[Node] = [leaves[task] for task in self._order or range(self._n_vectors)]
        by_loss = self._order is None and self._n_vectors > 2
        if by_loss:
            for leaf in leaves:
                yield Batch(leaf.c[None], leaf.tasks)
        if self._needs_origin:
            yield Batch(self._origin, tuple(range(self._n_vectors)))
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
        """Count the evaluations anew now that a round's pairs are known."""
        sizes = [len(node.tasks) for node in nodes]
        now = [sizes[i] + sizes[j] for i, j in pairing]
        over = sum(sizes) - sum(now)
        before = sum(len(pair.tasks) for pair in self._pairs)
        self._most = self.points * (before + sum(now) + most_tasks(now + [over] * (over > 0))) + self._extra

    def _loss(self, node: Node) -> float:
        """Return a node's loss, the weighted average of its tasks' (line 8)."""
        if isinstance(node, Leaf):
            return loss_of(self._known[node.c.tobytes(), node.task], self._metrics[node.task])
        losses = [loss_of(value, self._metrics[task]) for value, task in zip(node.predicted, node.tasks, strict=True)]
        return float(np.dot(losses, shares(self._weights[list(node.tasks)])))

    def _design(self, left: Node, right: Node, seed: int) -> np.ndarray:
        """Return the points (α, β) to measure (`points x 2`), the single-task models first."""
        single = [isinstance(node, Leaf) for node in (left, right)]
        anchors = np.vstack([np.zeros((int(all(single)), 2)), np.eye(2)[single]])
        n_free = self.points - len(anchors)
        free = make_design("uniform", n_free, self._pair_box, seed=seed, anchors=False)
        return np.vstack([anchors, free])

    def _missing(self, C: np.ndarray, tasks: tuple[int, ...]) -> Iterator[Batch]:
        """Yield what isn't known yet of `m x N` models on these tasks, a batch for each set of missing tasks."""
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
        """Run Algorithm 1 on a pair, and choose from its front (lines 5 to 7)."""
        design, measured = table
        inside = self._pair_box.contains(design)
        links = [self._links[task] for task in tasks]
        surrogates = fit_surrogates(self._pair_box, design[inside], measured[inside], links, self.loss)
        front = find_front(
            surrogates, maximize=[self._maximize[task] for task in tasks], seed=seed, include=design[inside]
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

    def _by_preference(self, tasks: tuple[int, ...], front: Front, surrogates: SpaceSurrogates) -> _Choice:
        """Return the front's best row for the preference among these tasks (line 6), refined on the surrogates."""
        weights = shares(self._weights[list(tasks)])
        maximize = [self._maximize[task] for task in tasks]
        row = choose_by_preference(front.predicted, weights, maximize=maximize)
        point = best_sum(surrogates, weights * signs(maximize), front.x[row])
        names = [self._tasks[task] for task in tasks]
        if self._weights[list(tasks)].any():
            listed = ", ".join(f"{100 * w:.3g}% {name}" for w, name in zip(weights, names, strict=True))
            message = f"This model is the best for a preference of {listed}."
        else:
            message = f"The preference gives {' and '.join(names)} no weight, so they count alike here."
        return _Choice(point, surrogates.predict(point[None])[0], feasible=True, message=message)

    def _by_rule(self, rule: Rule, tasks: tuple[int, ...], front: Front, surrogates: SpaceSurrogates) -> _Choice:
        """Apply the pair's share of the rule to it (Appendix C.3)."""
        eye = np.eye(self._n_vectors)
        result = apply_rule(
            _restricted(rule, tasks, self._maximize),
            front,
            surrogates,
            single=[self._known[eye[task].tobytes(), task] for task in tasks],
            pretrained=[self._known.get((self._origin.tobytes(), task), np.nan) for task in tasks],
            maximize=[self._maximize[task] for task in tasks],
        )
        return _Choice(result.x, result.predicted, result.feasible, result.message)


@dataclass(frozen=True, eq=False)
class _Choice:
    """The choice on a pair's front: the attributes of a ``Pair`` of these names."""

    point: np.ndarray
    predicted: np.ndarray
    feasible: bool
    message: str


def _models(points: np.ndarray, left: Node, right: Node) -> np.ndarray:
    """Return the coefficients (`m x N`) of a pair's points (α, β)."""
    C = points @ np.vstack([left.c, right.c])
    return np.asarray(C + 0.0)  # turns -0 into 0, so that equal rows have equal bytes


def _restricted(rule: Rule, tasks: tuple[int, ...], maximize: Sequence[bool]) -> Rule:
    """Return the part of a rule that is about these tasks alone."""
    names = tuple(rule.names[task] for task in tasks)
    thresholds = tuple(t for t in rule.thresholds if set(rule.covered(t)) & set(tasks))
    target = rule.target
    if target.kind == "sum":
        terms = tuple(term for term in target.weights if term[0] in names)
        target = replace(target, weights=terms)
        if not terms:
            up = maximize[tasks[0]]
            terms = tuple((rule.names[task], 1.0) for task in tasks if maximize[task] == up)
            target = Target("sum", not up, terms)
    return Rule(names, thresholds, target)


def _derived_seed(seed: int, round_: int, index: int) -> int:
    """Return a seed of its own for each pair, of the 31 bits that every generator takes."""
    return int(np.random.SeedSequence((seed, round_, index)).generate_state(1)[0]) >> 1


def _check_budget(points: int, box: Box) -> None:
    """Refuse what the pairs' surrogates couldn't be fitted to."""
    outside = anchors_outside(box)
    needed = n_parameters(2) + outside
    if points < needed:
        why = f", and {outside} of them lie outside the box" if outside else ""
        raise SearchError(
            f"Nested MAP needs at least {needed} points for every pair of models, not {points}: a quadratic "
            f"in two coefficients has 6 parameters{why}."
        )
