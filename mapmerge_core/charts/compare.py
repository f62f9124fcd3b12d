"""Runs and baselines together: how each looks in every figure, and one line each over many objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.fronts import parallel_axis, single_diamonds
from mapmerge_core.charts.palette import Palette, draw, translucent
from mapmerge_core.charts.units import PERCENT, Notation, axis_title, notation, relative_title, shared_axis

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric

Kind = Literal["run", "baseline", "single", "pretrained"]

# Circles are runs', squares the pre-trained model's and diamonds the fine-tuned models' in every figure.
_SYMBOLS = (
    "triangle-up",
    "x",
    "star",
    "triangle-down",
    "cross",
    "hexagon",
    "star-triangle-up",
    "bowtie",
    "pentagon",
    "hourglass",
    "triangle-left",
    "triangle-right",
)
MARGIN = {"l": 16, "r": 16, "t": 12, "b": 16}
"""Around figures whose legend stands beside or below them."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One row of a comparison.

    Attributes:
        key: What tells it from all others.
        name: What the legend calls it.
        kind: What it is.
        values: Its metrics (K,) on the test split, NaN where not measured.
        front: Measured metrics (``m x K``) of the models that it offers for different preferences, NaN where
            not measured; no rows where it is one model.
    """

    key: str
    name: str
    kind: Kind
    values: NDArray[np.float64]
    front: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CompareInfo:
    """What the figures of all rows show.

    Attributes:
        objectives: K names.
        titles: K axis titles with their units.
        notations: How each objective's values are written (K,).
        shared: The title of an axis that all objectives share.
        scale: What each objective's values are multiplied by on that axis (K,).
        entries: The rows that have values to draw, or a front, as shown: in percent, or in the metric's unit.
        single: The single models' values (K,), as shown; NaN where not measured.
        chosen: Key of the row that stands out, if any.
    """

    objectives: tuple[str, ...]
    titles: tuple[str, ...]
    notations: tuple[Notation, ...]
    shared: str
    scale: NDArray[np.float64]
    entries: tuple[Entry, ...]
    single: NDArray[np.float64]
    chosen: str | None = None


def compare_info(
    objectives: Sequence[str],
    metrics: Sequence[Metric],
    entries: Sequence[Entry],
    single: NDArray[np.float64],
    *,
    normalise: bool,
    chosen: str | None = None,
) -> CompareInfo:
    """Gather the rows that were measured, as they are shown: if ``normalise`` in percent of the single models'.

    Args are as in `CompareInfo`, with values as fractions.
    """
    factors = 100.0 / single if normalise else np.array([notation(metric).factor for metric in metrics])
    axis = shared_axis(metrics, single)

    def convert(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values * factors

    drawn = []
    for entry in entries:
        front = entry.front[~np.isnan(entry.front).any(axis=1)]
        # Every point of a panel needs two values, which a measurement under way may lack.
        if np.isfinite(entry.values).sum() >= min(2, len(metrics)) or len(front):
            drawn.append(Entry(entry.key, entry.name, entry.kind, convert(entry.values), convert(front)))
    return CompareInfo(
        objectives=tuple(objectives),
        titles=tuple(
            f"{name}, % of the single model" if normalise else axis_title(name, metric)
            for name, metric in zip(objectives, metrics, strict=True)
        ),
        notations=tuple(PERCENT if normalise else notation(metric) for metric in metrics),
        shared=relative_title(metrics) if normalise else axis.title,
        scale=np.ones(len(metrics)) if normalise else axis.scale / factors,
        entries=tuple(drawn),
        single=convert(single),
        chosen=chosen,
    )


def looks(entries: Sequence[Entry], palette: Palette) -> dict[str, tuple[str, str]]:
    """Return each row's colour and symbol, by its key.

    Baselines differ in symbol and colour, so that nobody has to go by colour alone; orange is the pick's.
    """
    colours = [colour for colour in palette.categorical if colour not in (palette.front, palette.pick)]
    runs = baselines = 0
    styles = {}
    for entry in entries:
        if entry.kind == "run":
            # The first run is what everything else is held against.
            styles[entry.key] = ([palette.front, *colours[2:]][runs % (len(colours) - 1)], "circle")
            runs += 1
        elif entry.kind == "baseline":
            styles[entry.key] = (colours[baselines % len(colours)], _SYMBOLS[baselines % len(_SYMBOLS)])
            baselines += 1
        elif entry.kind == "single":
            styles[entry.key] = (palette.single, "diamond")
        else:
            styles[entry.key] = (palette.pretrained, "square")
    return styles


def legend_height(info: CompareInfo) -> int:
    """Return the pixels that a figure needs for a legend of all rows beside it."""
    n_rows = sum(entry.kind != "single" for entry in info.entries)
    return max(440, 60 + 20 * (n_rows + 2))


def parallel(info: CompareInfo, palette: Palette) -> go.Figure:
    """Draw one line a row over all objectives; single models are diamonds."""
    look = looks(info.entries, palette)
    traces: list[go.Scatter] = []
    positions = list(range(len(info.objectives)))
    for entry in info.entries:
        if entry.kind == "single":
            continue
        colour, symbol = look[entry.key]
        strong = entry.key == info.chosen
        run = entry.kind == "run"
        traces.append(
            go.Scatter(
                x=positions,
                y=entry.values * info.scale,
                mode="lines+markers",
                line={
                    "color": palette.pick if strong else translucent(colour, 1.0 if run else 0.45),
                    "width": 4 if strong else 3 if run else 1.3,
                    "dash": "dot" if entry.kind == "pretrained" else "solid",
                },
                marker={"size": 9, "symbol": symbol, "color": palette.pick if strong else colour},
                name=entry.name,
                # It lies so far below all others that these would be hard to tell apart.
                visible=True if strong or entry.kind != "pretrained" else "legendonly",
                zorder=2 if strong else 1 if run else 0,
                text=_texts(info, entry.values),
                hovertemplate=f"<b>{entry.name}</b>  %{{text}}<extra></extra>",
            )
        )
    if not np.isnan(info.single).all():
        singles = single_diamonds(info.objectives, info.single * info.scale, _texts(info, info.single), palette)
        traces.append(singles)
    return draw(
        traces,
        palette,
        height=legend_height(info),
        showlegend=True,  # Plotly leaves out that of a single line, which would then have no name
        legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"},
        margin=MARGIN,
        xaxis=parallel_axis(info.objectives, palette),
        yaxis_title_text=info.shared,
    )


def _texts(info: CompareInfo, values: NDArray[np.float64]) -> list[str]:
    """Return each objective's value (K,) as people read it."""
    return [how.text(value) for how, value in zip(info.notations, values, strict=True)]
