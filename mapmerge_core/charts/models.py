"""Models against each other: metric bars, cosines of task vectors, contact sheets of their images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from mapmerge_core.charts.palette import Palette, assembled, draw, parts, translucent
from mapmerge_core.charts.units import shared_axis, value_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mapmerge_core.tasks.metric import Metric


@dataclass(frozen=True)
class BarsInfo:
    """One group of bars a task.

    Attributes:
        tasks: K names.
        metrics: K metrics.
        pretrained: (K,) the pre-trained model's metrics; NaN where unknown.
        single: (K,) each task's own model's metrics; NaN where unknown.
        predicted: (K,) the pick's; of a learned set's pick perhaps measured on the validation split.
        lower: (K,) lower ends of its prediction intervals; the metrics themselves where they are measured.
        upper: (K,) upper ends.
        measured: (K,) the pick measured on the test split; None before that.
        pick: What the pick's bars are called.
    """

    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    pretrained: NDArray[np.float64]
    single: NDArray[np.float64]
    predicted: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    measured: NDArray[np.float64] | None = None
    pick: str = "Pick, predicted"

    def share_of_single(self) -> NDArray[np.float64]:
        """(K,) the pick's predicted metric as a fraction of the task's own model's."""
        return self.predicted / self.single


def metric_bars(info: BarsInfo, palette: Palette, *, height: int = 320) -> go.Figure:
    """Bars of the pre-trained model, the pick (with interval and, if any, measurement) and the own model.

    Metrics without a common unit are drawn as percent of the own models', see `units.shared_axis`.
    """
    traces: list[go.Bar] = []
    axis = shared_axis(info.metrics, info.single)
    error: dict[str, object] = {
        "type": "data",
        "symmetric": False,
        "array": (info.upper - info.predicted) * axis.scale,
        "arrayminus": (info.predicted - info.lower) * axis.scale,
        "color": palette.text,
        "thickness": 1.4,
        "width": 4,
    }
    series: list[tuple[str, NDArray[np.float64], str, dict[str, object] | None]] = [
        ("Pre-trained", info.pretrained, translucent(palette.pretrained, 0.55), None),
        (info.pick, info.predicted, palette.pick, error if (info.upper > info.lower).any() else None),
    ]
    if info.measured is not None:
        series.append(("Pick, measured on test", info.measured, translucent(palette.pick, 0.55), None))
    series.append(("Its own model", info.single, palette.single, None))
    for name, values, colour, interval in series:
        traces.append(
            go.Bar(
                x=list(info.tasks),
                y=values * axis.scale,
                name=name,
                marker={"color": colour, "cornerradius": 3, "line": {"width": 0}},
                error_y=interval,
                customdata=value_texts(values, info.metrics),
                hovertemplate=f"<b>%{{x}}</b><br>{name} %{{customdata}}<extra></extra>",
            )
        )
    return assembled(traces, _bars_layout(palette, height, axis.title))


@lru_cache
def _bars_layout(palette: Palette, height: int, title: str) -> dict[str, Any]:
    """The layout of `metric_bars`, which stays while the bars change."""
    figure = draw(
        [],
        palette,
        height=height,
        barmode="group",
        bargap=0.28,
        bargroupgap=0.06,
        xaxis={"showgrid": False, "tickfont": {"color": palette.text, "size": 13}},
        yaxis_title_text=title,
    )
    return parts(figure)[1]


def cosine_heatmap(
    names: Sequence[str], cosines: NDArray[np.float64], palette: Palette, *, height: int | None = None
) -> go.Figure:
    """Cosines between task vectors (N x N), the diagonal left blank, each cell with its figure."""
    values = np.array(cosines, dtype=np.float64)
    np.fill_diagonal(values, np.nan)
    limit = max(0.1, float(np.nanmax(np.abs(values)))) if len(names) > 1 else 1.0
    texts = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in values]
    heatmap = go.Heatmap(
        z=values,
        x=list(names),
        y=list(names),
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 12},
        colorscale=palette.scale,
        zmin=min(0.0, float(np.nanmin(values))) if len(names) > 1 else 0.0,
        zmax=limit,
        xgap=2,
        ygap=2,
        hovertemplate="%{y} and %{x}<br>cosine %{z:.3f}<extra></extra>",
        showscale=False,
    )
    return draw(
        [heatmap],
        palette,
        height=height or 120 + 40 * len(names),
        xaxis={"showgrid": False, "tickangle": 0 if len(names) <= 4 else -35},
        yaxis={"showgrid": False, "autorange": "reversed"},
    )


def one_of_each(labels: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Row numbers of ``count`` examples of as many different classes as possible, spread over the classes.

    Args:
        labels: (n,) class numbers.
        count: How many examples are wanted; fewer come back when there are fewer examples.
    """
    classes, first = np.unique(labels, return_index=True)
    step = max(1, len(classes) // max(1, count))
    rows = list(first[::step][:count])
    rest = [row for row in range(len(labels)) if row not in set(rows)]
    return np.array([*rows, *rest[: count - len(rows)]], dtype=np.int64)
