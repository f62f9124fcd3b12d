"""Methods on a box of coefficients, one for each model, and objectives of any links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mapmerge_core.methods.base import Method, ObjectiveInfo
from mapmerge_core.search.spaces import Box

NAMES = "ABCDEFGHIJ"


def objectives_of(links: Sequence[tuple[str, tuple[float, float]]], *, maximize: bool = True) -> list[ObjectiveInfo]:
    """Return an objective for each link and bounds, the k-th one model k's own."""
    return [ObjectiveInfo(NAMES[k], maximize, bounds, link, k) for k, (link, bounds) in enumerate(links)]


def make_method(
    kind: type[Method],
    n: int,
    points: int | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    objectives: Sequence[ObjectiveInfo] | None = None,
    loss: Any = "squared",
    **settings: object,
) -> Any:
    """Return a method on the box [low, high]^n; its objectives are n accuracies unless others are given."""
    if objectives is None:
        objectives = objectives_of([("sigmoid", (0.0, 1.0))] * n)
    return kind(Box(NAMES[:n], low, high), objectives, {"points": points, **settings}, loss=loss)


def play(method: Method, values: Any, most: int = 10_000) -> list[np.ndarray]:
    """Tell a method the values (`m x D` -> `m x K`) of all that it asks for, and return the points of each batch."""
    asked = []
    while (batch := method.ask()) is not None and len(asked) < most:
        asked.append(batch.X)
        method.tell(batch, values(batch.X)[:, list(batch.objectives)])
    return asked
