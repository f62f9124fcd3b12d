"""How a merge's training goes: each model's own objective over the steps, and what is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.palette import Palette, draw

if TYPE_CHECKING:
    from mapmerge_core.merges.base import TrainingPoint

_STRIP = 0.24
"""Share of the figure's height that the objective takes, under the models'."""


@dataclass(frozen=True, eq=False)
class TrainingInfo:
    """How training goes.

    Attributes:
        models: N names.
        steps: Steps taken at each point (n,).
        f: The models' own objectives (``n x N``), means over the steps since the point before.
        objective: What is minimised (n,), likewise.
    """

    models: tuple[str, ...]
    steps: NDArray[np.int64]
    f: NDArray[np.float64]
    objective: NDArray[np.float64]


def training_info(models: Sequence[str], points: Sequence[TrainingPoint]) -> TrainingInfo:
    """Gather how far the training of N models' merge has come, from points in the order of the steps."""
    return TrainingInfo(
        tuple(models),
        np.array([point.step for point in points], dtype=np.int64),
        np.array([point.f for point in points], dtype=np.float64).reshape(-1, len(models)),
        np.array([point.objective for point in points], dtype=np.float64),
    )


def training_lines(info: TrainingInfo, palette: Palette, *, height: int = 380) -> go.Figure:
    """Draw a line for each model over the steps, and what is minimised in a strip below."""
    # A line through a single point can't be seen.
    mode = "lines" if len(info.steps) > 1 else "markers"
    traces = [
        go.Scatter(
            x=info.steps,
            y=values,
            mode=mode,
            line={"color": palette.categorical[n % len(palette.categorical)], "width": 2},
            name=model,
            hovertemplate=f"<b>{model}</b>  %{{y:.3f}}<br>after %{{x:,}} steps<extra></extra>",
        )
        for n, (model, values) in enumerate(zip(info.models, info.f.T, strict=True))
    ]
    traces.append(
        go.Scatter(
            x=info.steps,
            y=info.objective,
            yaxis="y2",
            mode=mode,
            line={"color": palette.muted, "width": 2},
            name="Minimised",
            showlegend=False,
            hovertemplate="<b>Minimised</b>  %{y:.3f}<br>after %{x:,} steps<extra></extra>",
        )
    )
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        xaxis={"anchor": "y2", "title": {"text": "Steps"}},
        yaxis={"domain": [_STRIP + 0.08, 1], "title": {"text": "Each model's objective"}},
        yaxis2={"domain": [0, _STRIP], "title": {"text": "Minimised"}, "nticks": 3},
    )
