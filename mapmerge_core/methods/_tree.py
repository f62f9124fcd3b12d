"""The tree of nested-merging MAP: its nodes, and which of them are paired next (MAP, Algorithm 2, line 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import SearchError

if TYPE_CHECKING:
    from mapmerge_core.methods.base import ObjectiveInfo
    from mapmerge_core.search.fronts import Front
    from mapmerge_core.search.surrogates.spaces import SpaceSurrogates

Pairing = list[tuple[int, int]]
"""Positions of the nodes that belong together, a pair each."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """A single-task model.

    Attributes:
        task: Its task, a column in the study's order.
        c: Its unit vector (N,).
    """

    task: int
    c: np.ndarray

    @property
    def tasks(self) -> tuple[int, ...]:
        """Its one task."""
        return (self.task,)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two nodes and the model that a 2-D MAP made of them.

    A point (α, β) of the pair stands for the model c = α c_left + β c_right.

    Attributes:
        round: In which round it was merged, from 1.
        left: One node.
        right: The other.
        tasks: The K tasks of both, in the study's order; the columns of all that follows.
        design: The points that were measured, ``n x 2``.
        measured: Their metrics, ``n x K``.
        surrogates: K quadratics in (α, β).
        front: The front in (α, β), ``m x 2``, with the predicted metrics, ``m x K``.
        weights: Each task's weight (K,), summing to 1: the preference's share; equal where the preference
            gives these tasks nothing or a rule chose.
        point: The chosen (α, β). A preference takes a row of the front, a rule refines one.
        c: The chosen model's coefficients (N,).
        predicted: Its metrics (K,) as the surrogates see them.
        feasible: Whether it meets the rule's thresholds for these tasks; true without a rule.
        message: How it was chosen, one sentence for people.
    """

    round: int
    left: Node
    right: Node
    tasks: tuple[int, ...]
    design: np.ndarray
    measured: np.ndarray
    surrogates: SpaceSurrogates
    front: Front
    weights: np.ndarray
    point: np.ndarray
    c: np.ndarray
    predicted: np.ndarray
    feasible: bool
    message: str

    @property
    def r2(self) -> np.ndarray:
        """Leave-one-out R² of each surrogate (K,), NaN where there are too few points for one."""
        return self.surrogates.r2

    @property
    def front_c(self) -> np.ndarray:
        """The front's coefficients in the study's task vectors, ``m x N``."""
        return np.asarray(self.front.x @ np.vstack([self.left.c, self.right.c]))

    def sides(self, values: np.ndarray) -> np.ndarray:
        """Return the two axes on which a pair is drawn: each node's average metric by ``weights``.

        Args:
            values: Metrics of the pair's tasks, ``n x K``: the front's, the measured or the chosen ones.

        Returns:
            The left node's average and the right node's, ``n x 2``: for two leaves their very metrics.
        """
        columns = []
        for node in (self.left, self.right):
            mine = np.isin(self.tasks, node.tasks)
            columns.append(values[:, mine] @ shares(self.weights[mine]))
        return np.column_stack(columns)


Node = Leaf | Pair


def shares(weights: np.ndarray) -> np.ndarray:
    """Return weights (K,) of at least 0 as shares of their sum; equal shares where they are all zero."""
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def loss_of(value: float, metric: ObjectiveInfo) -> float:
    """Return how far a metric is from its best possible value, as a share of its range where that is finite."""
    low, high = metric.bounds
    best, sign = (high, 1) if metric.maximize else (low, -1)
    loss = sign * (best - value) if isfinite(best) else -sign * value
    width = high - low
    return loss / width if isfinite(width) else loss


def closest(losses: Sequence[float]) -> Pairing:
    """Pair nodes by their losses: the two closest first, then the two closest of the others, and so on.

    Of pairs that are as close to nine decimals, the first wins; an odd number leaves one node over
    (Algorithm 2, line 4).
    """
    free, pairs = list(range(len(losses))), []
    while len(free) > 1:
        pair = min(combinations(free, 2), key=lambda two: round(abs(losses[two[0]] - losses[two[1]]), 9))
        pairs.append(pair)
        free = [node for node in free if node not in pair]
    return pairs


def neighbours(n_nodes: int) -> Pairing:
    """Pair the first node with the second, the third with the fourth, and so on; an odd number leaves the last over."""
    return [(node, node + 1) for node in range(0, n_nodes - 1, 2)]


def most_tasks(sizes: Sequence[int]) -> int:
    """Return the most tasks that the pairs of all rounds can have together.

    In every round all tasks belong to a pair but those of the node left over, which is at least the
    smallest. Eight leaves: 3 rounds of 8 tasks (Appendix C.1).
    """
    nodes, total = sorted(sizes), 0
    while len(nodes) > 1:
        over, paired = (nodes[:1], nodes[1:]) if len(nodes) % 2 else ([], nodes)
        total += sum(paired)
        nodes = sorted([*over, *(paired[i] + paired[i + 1] for i in range(0, len(paired), 2))])
    return total


def leaf_order(order: Sequence[str], tasks: tuple[str, ...]) -> list[int]:
    """Return the order of the leaves as columns.

    Raises:
        SearchError: It names something that is no objective, or an objective twice or never.
    """
    for name in order:
        if name not in tasks:
            raise SearchError(f"The order names '{name}', but the objectives are {', '.join(tasks)}.")
        if list(order).count(name) > 1:
            raise SearchError(f"The order names '{name}' twice: name every objective once.")
    missing = [task for task in tasks if task not in order]
    if missing:
        raise SearchError(f"The order leaves out {', '.join(missing)}: name every objective once.")
    return [tasks.index(name) for name in order]
