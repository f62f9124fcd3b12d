"""Fronts and baselines of two or three objectives, a panel for each pair (MAP, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.compare import MARGIN, CompareInfo, Entry, legend_height, looks
from mapmerge_core.charts.palette import Palette, draw, translucent

_LETTER, _LINE = 6.4, 15.0
"""About how wide a label's letter is, and how high the label, in pixels."""


def fronts(info: CompareInfo, palette: Palette) -> go.Figure:
    """Draw fronts and points of two or three objectives, a panel for each pair (MAP, Figure 3).

    Runs are the measured models of their fronts, joined by a line where there are two objectives, with a ring
    about the one for the preference; baselines are symbols, with their names where there is room; dotted
    lines are what the single models reach on their own objectives. As points, these and the pre-trained model
    lie so far off that they are drawn only once they are chosen in the legend.
    """
    pairs = list(combinations(range(len(info.objectives)), 2))
    traces: list[go.Scatter] = []
    layout: dict[str, Any] = {}
    height = legend_height(info) if len(pairs) == 1 else 460
    gap = 0.07
    width = (1 - gap * (len(pairs) - 1)) / len(pairs)
    for number, (x, y) in enumerate(pairs):
        suffix = "" if number == 0 else str(number + 1)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"} | ({"showlegend": False} if number else {})
        # The figure takes a page's width, less the legend and the titles.
        size = ((1000 if len(pairs) > 1 else 800) * width, height - 120.0)
        traces += [trace.update(axes) for trace in _panel(info, palette, x, y, size=size)]
        left = number * (width + gap)
        layout[f"xaxis{suffix}"] = {
            "domain": [left, left + width],
            "anchor": f"y{suffix}",
            "title_text": info.titles[x],
        }
        layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}", "title_text": info.titles[y]}
    # Beside the panel; under several, which need the width.
    legend = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "tracegroupgap": 0}
    if len(pairs) > 1:
        legend = {"y": -0.22, "yanchor": "top", "tracegroupgap": 0}
    return draw(traces, palette, height=height, legend=legend, margin=MARGIN, **layout)


def _panel(info: CompareInfo, palette: Palette, x: int, y: int, *, size: tuple[float, float]) -> list[go.Scatter]:
    """Return every trace of one pair of objectives, but for its axes."""
    look = looks(info.entries, palette)
    across, along = info.notations[x].hover("x"), info.notations[y].hover("y")
    hover = f"{info.objectives[x]} {across}<br>{info.objectives[y]} {along}<extra></extra>"
    traces = [_single_lines(info, palette, x, y)]
    points = [entry for entry in info.entries if entry.kind == "baseline" and _has(entry, x, y)]
    for entry in info.entries:
        if len(entry.front) or (entry.kind == "run" and _has(entry, x, y)):
            traces += _front_traces(info, palette, entry, (x, y), look[entry.key], hover)
    spots = np.array([entry.values[[x, y]] for entry in points]).reshape(-1, 2)
    others = [entry.front[:, [x, y]] for entry in info.entries if len(entry.front)]
    corner = info.single[None, [x, y]]
    taken = np.vstack([spots, *others, *([] if np.isnan(corner).any() else [corner])])
    places = label_places([entry.name for entry in points], spots, taken, size=size)
    for entry, place in zip(points, places, strict=True):
        traces.append(
            _symbol(
                entry,
                palette,
                x,
                y,
                look=look[entry.key],
                strong=entry.key == info.chosen,
                mode="markers+text" if place else "markers",
                text=[entry.name],
                textposition=place,
                hovertemplate=f"<b>{entry.name}</b><br>{hover}",
            )
        )
    named: set[str] = set()
    for entry in info.entries:
        if entry.kind in ("single", "pretrained") and _has(entry, x, y):
            strong = entry.key == info.chosen
            traces.append(
                _symbol(
                    entry,
                    palette,
                    x,
                    y,
                    look=look[entry.key],
                    strong=strong,
                    mode="markers",
                    name={"single": "Single models", "pretrained": "Pre-trained"}[entry.kind],
                    legendgroup=entry.kind,
                    visible=True if strong else "legendonly",
                    hovertemplate=f"<b>{entry.name}</b><br>{hover}",
                )
            )
            if entry.kind in named:
                traces[-1].showlegend = False
            named.add(entry.kind)
    return traces


def _has(entry: Entry, x: int, y: int) -> bool:
    return not np.isnan(entry.values[[x, y]]).any()


def _single_lines(info: CompareInfo, palette: Palette, x: int, y: int) -> go.Scatter:
    """Return dotted lines at what the two single models reach on their own objectives."""
    rows = [entry.values[None] for entry in info.entries if entry.kind in ("run", "baseline")]
    rows += [entry.front for entry in info.entries]
    seen = np.vstack([*rows, info.single[None]])[:, [x, y]]
    seen = seen[~np.isnan(seen).any(axis=1)]
    low = seen.min(axis=0) if len(seen) else np.zeros(2)
    high = seen.max(axis=0) if len(seen) else np.ones(2)
    return go.Scatter(
        x=[info.single[x], info.single[x], None, low[0], high[0]],
        y=[low[1], high[1], None, info.single[y], info.single[y]],
        mode="lines",
        line={"color": palette.single, "width": 1.5, "dash": "dot"},
        name="Single models' levels",
        legendgroup="levels",
        hoverinfo="skip",
    )


def _front_traces(
    info: CompareInfo, palette: Palette, entry: Entry, axes: tuple[int, int], look: tuple[str, str], hover: str
) -> list[go.Scatter]:
    """Return a row with a model for every preference: its measured models, and a run's for the one in view."""
    (x, y), (colour, symbol) = axes, look
    is_run = entry.kind == "run"
    front = entry.front[np.argsort(entry.front[:, x], kind="stable")] if len(entry.front) else entry.front
    strong = entry.key == info.chosen
    traces = []
    if len(front):
        traces.append(
            go.Scatter(
                x=front[:, x],
                y=front[:, y],
                mode="lines+markers" if is_run and len(info.objectives) == 2 else "markers",
                line={"color": translucent(colour, 0.4), "width": 2},
                marker={
                    "size": 8 if is_run else 6,
                    "symbol": symbol if is_run else f"{symbol}-open",
                    "color": colour,
                    "line": {"width": 1, "color": palette.background if is_run else colour},
                },
                name=entry.name,
                legendgroup=entry.key,
                showlegend=is_run,
                hovertemplate=f"<b>{entry.name}</b>, measured<br>{hover}",
            )
        )
    if is_run and _has(entry, x, y):
        traces.append(
            go.Scatter(
                x=[entry.values[x]],
                y=[entry.values[y]],
                mode="markers",
                marker={
                    "size": 18 if strong else 15,
                    "symbol": "circle" if strong else "circle-open",
                    "color": palette.pick if strong else colour,
                    "line": {"width": 2.5, "color": palette.background if strong else colour},
                },
                name=entry.name,
                legendgroup=entry.key,
                showlegend=not len(front),
                hovertemplate=f"<b>{entry.name}</b>, for the preference<br>{hover}",
            )
        )
    return traces


def _symbol(
    entry: Entry, palette: Palette, x: int, y: int, *, look: tuple[str, str], strong: bool, **more: object
) -> go.Scatter:
    """Return one model as one symbol."""
    colour, symbol = look
    marker = {
        "size": 16 if strong else 11,
        "symbol": symbol,
        "color": palette.pick if strong else colour,
        "line": {"width": 1, "color": palette.background},
    }
    values = {
        "x": [entry.values[x]],
        "y": [entry.values[y]],
        "marker": marker,
        "textfont": {"color": palette.text, "size": 11},
        "name": entry.name,
        "legendgroup": entry.key,
    }
    return go.Scatter(values | more)


def label_places(
    names: Sequence[str], spots: NDArray[np.float64], taken: NDArray[np.float64], *, size: tuple[float, float]
) -> list[str | None]:
    """Return where each label stands beside its point so that none covers another label or point.

    Args:
        names: n labels.
        spots: Their points, ``n x 2``.
        taken: Points that no label may cover, ``m x 2``, theirs among them.
        size: Width and height of the panel in pixels, about.

    Returns:
        For each a Plotly text position, None where there is no room.
    """
    if not len(names):
        return []
    low, spread = taken.min(axis=0), np.maximum(np.ptp(taken, axis=0), 1e-9)
    pixels = (taken - low) / spread * np.array(size)
    boxes: list[tuple[float, float, float, float]] = []
    places: list[str | None] = []
    for name, (x, y) in zip(names, (spots - low) / spread * np.array(size), strict=True):
        width = _LETTER * len(name)
        offsets = {
            "top center": (-width / 2, 6.0),
            "bottom center": (-width / 2, -6.0 - _LINE),
            "middle right": (8.0, -_LINE / 2),
            "middle left": (-8.0 - width, -_LINE / 2),
        }
        free = None
        for place, (dx, dy) in offsets.items():
            box = (x + dx, y + dy, x + dx + width, y + dy + _LINE)
            covers = (pixels > box[:2]).all(axis=1) & (pixels < box[2:]).all(axis=1)
            apart = [box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes]
            if box[0] >= 0 and box[2] <= size[0] and not covers.any() and all(apart):
                free = place
                boxes.append(box)
                break
        places.append(free)
    return places
