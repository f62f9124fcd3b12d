"""What a row of the benchmark of speed is, and how things are timed side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mapmerge_core.errors import MapMergeError

ROUNDS = 5
"""How often everything is timed at least; figures are medians."""


@dataclass(frozen=True)
class Measured:
    """What a row came to.

    Attributes:
        value: Ours.
        against: The peer's or the limit's in the same unit, measured in the same run; None where the target
            is a figure of its own.
        unit: Their unit, such as ``"GB/s"`` or ``"ms"``.
        score: What the target is about: ``value`` itself, or a ratio of the two.
        note: What a reader has to know, such as sizes and counts.
    """

    value: float
    against: float | None
    unit: str
    score: float
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: What ``--rows`` calls it.
        title: What is measured.
        peer: What it is measured against, in words.
        target: The bound that ``score`` must keep to.
        at_most: Whether the target is an upper bound (times) or a lower one (ratios to a limit or a peer).
        unit: Of the target; ``"x"`` for ratios.
        device: ``"cpu"``, or ``"cuda"`` for rows that only count on a GPU.
        measure: Measures it; gets the device's name.
        profile: Prints where the time goes.
    """

    name: str
    title: str
    peer: str
    target: float
    at_most: bool
    measure: Callable[[str], Measured]
    unit: str = "x"
    device: str = "cpu"
    profile: Callable[[str], None] | None = None

    def is_met(self, score: float) -> bool:
        """Whether the target is."""
        return score <= self.target if self.at_most else score >= self.target


def medians(*runs: Callable[[], object], rounds: int = ROUNDS, warm: bool = True) -> list[float]:
    """Seconds that each function takes, the median of rounds in which they take turns.

    Args:
        runs: What is timed; each has to wait for its device itself.
        rounds: How many rounds.
        warm: Whether each is called once before.
    """
    if warm:
        for run in runs:
            run()
    gc.collect()
    gc.disable()
    try:
        seconds = [[_seconds(run) for run in runs] for _ in range(rounds)]
    finally:
        gc.enable()
    return [float(median) for median in np.median(seconds, axis=0)]


def ratio(value: float, against: float, unit: str, *, note: str = "") -> Measured:
    """A row whose score is ``value / against``."""
    return Measured(value, against, unit, value / against, note)


def times_faster(ours: float, theirs: float, *, note: str = "") -> Measured:
    """A row of two times in seconds, whose score is how many times faster ours is."""
    return Measured(ours * 1000, theirs * 1000, "ms", theirs / ours, note)


def chosen(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """The rows with these names, or all.

    Raises:
        MapMergeError: There is no row of a name.
    """
    known = {row.name: row for row in rows}
    for name in names or ():
        if name not in known:
            raise MapMergeError(f"There is no row '{name}': choose from {', '.join(known)}.")
    return list(rows) if names is None else [known[name] for name in names]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
