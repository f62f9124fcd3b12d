"""The tree of nested MAP, each pair with the front that its model was chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.palette import Palette, draw, translucent
from mapmerge_core.charts.units import Notation, notation
from mapmerge_core.methods._tree import Node, Pair

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics import Metric

_PANEL, _AXIS, _BRANCH, _TITLE = 175, 46, 34, 26
"""Pixels of a panel, of the axis under it, of the lines to the next round and of the title over it."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of nodes; values are as shown, the left node's average metric and the right node's.

    Attributes:
        title: The names of its tasks.
        round: In which round it was merged, from 1.
        span: The columns of leaves over it, from the first to beyond the last.
        sides: What the two axes are, in words.
        notations: How values along them are written: in percent where all of a node's metrics are shares.
        front: The front's predicted metrics, ``m x 2``.
        measured: The measured points', ``n x 2``.
        chosen: The chosen model's predicted metrics (2,).
        point: How much of the left and of the right node it takes (2,).
        r2: The lowest leave-one-out R² of its surrogates; NaN where there is none.
        feeds: Columns, in leaves, of the middles of its two nodes, and the round of each (0 for a leaf).
    """

    title: str
    round: int
    span: tuple[int, int]
    sides: tuple[str, str]
    notations: tuple[Notation, Notation]
    front: NDArray[np.float64]
    measured: NDArray[np.float64]
    chosen: NDArray[np.float64]
    point: NDArray[np.float64]
    r2: float
    feeds: tuple[tuple[float, int], tuple[float, int]]


@dataclass(frozen=True, eq=False)
class TreeInfo:
    """All pairs of a nested run.

    Attributes:
        leaves: N task names, from left to right.
        panels: One for each pair, in the order of merging.
    """

    leaves: tuple[str, ...]
    panels: tuple[Panel, ...]


def tree_info(tree: Pair, tasks: Sequence[str], metrics: Sequence[Metric]) -> TreeInfo:
    """Lay out a nested run's tree: leaves from left to right, rounds from top to bottom.

    Args:
        tree: The last pair, which holds all others.
        tasks: N names.
        metrics: N metrics.
    """
    leaves: list[str] = []
    panels: list[Panel] = []

    def place(node: Node) -> tuple[float, int]:
        """The node's middle column and its round."""
        if not isinstance(node, Pair):
            leaves.append(tasks[node.task])
            return len(leaves) - 0.5, 0
        first = len(leaves)
        feeds = (place(node.left), place(node.right))
        r2 = node.r2
        left, right = (notation(*(metrics[task] for task in side.tasks)) for side in (node.left, node.right))
        factors = np.array([left.factor, right.factor])
        panels.append(
            Panel(
                title=_names(node, tasks),
                round=node.round,
                span=(first, len(leaves)),
                sides=(_names(node.left, tasks), _names(node.right, tasks)),
                notations=(left, right),
                front=node.sides(node.front.predicted) * factors,
                measured=node.sides(node.measured) * factors,
                chosen=node.sides(node.predicted[None])[0] * factors,
                point=node.point,
                r2=float("nan") if np.isnan(r2).all() else float(np.nanmin(r2)),
                feeds=feeds,
            )
        )
        return (first + len(leaves)) / 2, node.round

    place(tree)
    panels.sort(key=lambda panel: (panel.round, panel.span))
    return TreeInfo(tuple(leaves), tuple(panels))


def _names(node: Node, tasks: Sequence[str]) -> str:
    """A node's tasks: "MNIST + Emoji", or how many there are from four on."""
    names = [tasks[task] for task in node.tasks]
    return " + ".join(names) if len(names) < 4 else f"{len(names)} tasks"


def tree_figure(info: TreeInfo, palette: Palette) -> go.Figure:
    """A panel for each pair under its two nodes: measured points, the front, and the model chosen on it."""
    rounds = max(panel.round for panel in info.panels)
    traces: list[go.Scatter] = []
    layout: dict[str, Any] = {"shapes": [], "annotations": []}
    for number, panel in enumerate(info.panels):
        suffix = "" if number == 0 else str(number + 1)
        left, right = _across(panel, len(info.leaves))
        bottom, top = _along(panel.round, rounds)
        layout[f"xaxis{suffix}"] = {
            "domain": [left, right],
            "anchor": f"y{suffix}",
            "title": {"text": panel.sides[0], "font": {"size": 12}, "standoff": 4},
            "nticks": 5,
        }
        layout[f"yaxis{suffix}"] = {
            "domain": [bottom, top],
            "anchor": f"x{suffix}",
            "title": {"text": panel.sides[1], "font": {"size": 12}, "standoff": 4},
            "nticks": 5,
        }
        traces += [
            trace.update({"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": number == 0})
            for trace in _traces(panel, palette)
        ]
        fit = "" if np.isnan(panel.r2) else f", R² {panel.r2:.2f}"
        layout["annotations"].append(_label(f"<b>{panel.title}</b>{fit}", (left + right) / 2, top, palette))
        layout["shapes"] += _branches(panel, info, rounds, palette)
    over = [leaf for panel in info.panels for leaf, round_ in panel.feeds if round_ == 0 and panel.round > 1]
    for column in over:
        name = info.leaves[int(column)]
        layout["annotations"].append(_label(f"<b>{name}</b>", column / len(info.leaves), _along(1, rounds)[1], palette))
    return draw(
        traces,
        palette,
        height=_height(rounds) + 64 + _AXIS,
        legend={"y": 1 + 30 / _height(rounds)},
        margin={"l": 16, "r": 16, "t": 64, "b": _AXIS},
        **layout,
    )


def _across(panel: Panel, n_leaves: int) -> tuple[float, float]:
    """The panel's left and right end, as shares of the figure: under its leaves, but never very wide."""
    middle = sum(panel.span) / 2 / n_leaves
    half = min((panel.span[1] - panel.span[0]) / n_leaves, 0.6) / 2 - 0.035
    return middle - half, middle + half


def _height(rounds: int) -> int:
    """Pixels of all rounds, from the first panels' top to the last one's bottom."""
    return rounds * _PANEL + (rounds - 1) * (_AXIS + _BRANCH + _TITLE)


def _along(round_: int, rounds: int) -> tuple[float, float]:
    """The lower and upper end of a round's panels, as shares of the figure; round 1 is on top."""
    down = (round_ - 1) * (_PANEL + _AXIS + _BRANCH + _TITLE)
    return 1 - (down + _PANEL) / _height(rounds), 1 - down / _height(rounds)


def _branches(panel: Panel, info: TreeInfo, rounds: int, palette: Palette) -> list[dict[str, object]]:
    """Lines from the panel's nodes down to it; none for leaves right above it, which its title names."""
    middle = sum(_across(panel, len(info.leaves))) / 2
    end = _along(panel.round, rounds)[1] + _TITLE / _height(rounds)
    bend = end + _BRANCH / _height(rounds)
    shapes: list[dict[str, object]] = []
    for column, round_ in panel.feeds:
        if round_ == 0 and panel.round == 1:
            continue
        x = column / len(info.leaves)
        start = _along(round_, rounds)[0] - _AXIS / _height(rounds) if round_ else _along(1, rounds)[1]
        shapes.append(
            {
                "type": "path",
                "xref": "paper",
                "yref": "paper",
                "path": f"M {x} {start} L {x} {bend} L {middle} {end}",
                "line": {"color": palette.muted, "width": 1.5},
                "layer": "below",
            }
        )
    return shapes


def _label(text: str, x: float, y: float, palette: Palette) -> dict[str, object]:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12, "color": palette.text},
    }


def _traces(panel: Panel, palette: Palette) -> list[go.Scatter]:
    left, right = panel.sides
    across, along = panel.notations
    hover = f"{left} {across.hover('x')}<br>{right} {along.hover('y')}"
    front = panel.front[np.argsort(panel.front[:, 0], kind="stable")]
    return [
        go.Scatter(
            x=panel.measured[:, 0],
            y=panel.measured[:, 1],
            mode="markers",
            marker={"size": 5, "color": translucent(palette.measured, 0.8)},
            name="Measured",
            legendgroup="measured",
            hovertemplate=f"{hover}<extra>Measured</extra>",
        ),
        go.Scatter(
            x=front[:, 0],
            y=front[:, 1],
            mode="markers",
            marker={"size": 5, "color": palette.front},
            name="Front, predicted",
            legendgroup="front",
            hovertemplate=f"{hover}<extra>Front, predicted</extra>",
        ),
        go.Scatter(
            x=panel.chosen[:1],
            y=panel.chosen[1:],
            mode="markers",
            marker={"size": 14, "color": palette.pick, "line": {"width": 2.5, "color": palette.background}},
            name="Chosen",
            legendgroup="chosen",
            hovertemplate=f"<b>Chosen: {panel.point[0]:.2f} of {left}, {panel.point[1]:.2f} of {right}</b>"
            f"<br>{hover}<extra></extra>",
        ),
    ]
