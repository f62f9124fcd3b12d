"""How a learned set forms: the tasks' objectives over the steps, and what its models measured on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from mapmerge_core.charts.palette import Palette, draw
from mapmerge_core.charts.units import axis_title, hover_texts, notation, shared_title, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mapmerge_core.merges._training_settings import Training, TrainingPoint
    from mapmerge_core.tasks.metric import Metric

_STRIP = 0.24
"""Share of the figure's height that the objective takes, under the tasks'."""
_A_ROW = 4
_LEAST_SPAN = 5.0
"""Percentage points that a panel shows at least: of less, most is chance."""
_PANEL, _TITLE = 130, 44
"""Pixels of a panel's height, and of the space above it."""
_BETWEEN = 0.055
"""Share of the figure's width between two panels."""
_FAINTEST, _STRONGEST = 3, 6
"""Sequential colours of looks: those below can't be told from the background, those above from the newest."""


@dataclass(frozen=True, eq=False)
class TrainingInfo:
    """How training goes.

    Attributes:
        tasks: K names.
        steps: Steps taken at each point (n,).
        f: The tasks' objectives (``n x K``), means over the steps since the point before.
        objective: What is minimised (n,), likewise.
        title: What f is, with its unit.
    """

    tasks: tuple[str, ...]
    steps: NDArray[np.int64]
    f: NDArray[np.float64]
    objective: NDArray[np.float64]
    title: str


def training_info(tasks: Sequence[str], points: Sequence[TrainingPoint], training: Training) -> TrainingInfo:
    """Gathers what training has come to.

    Args:
        tasks: K names.
        points: In the order of the steps.
        training: How the set is learned, which says what f is.
    """
    if training.data_free:
        title = "Distance, share of that at the start"
    else:
        title = "Entropy + imbalance (nats)" if training.balance else "Entropy (nats)"
    return TrainingInfo(
        tuple(tasks),
        np.array([point.step for point in points], dtype=np.int64),
        np.array([point.f for point in points], dtype=np.float64).reshape(-1, len(tasks)),
        np.array([point.objective for point in points], dtype=np.float64),
        title,
    )


def training_lines(info: TrainingInfo, palette: Palette, *, height: int = 380) -> go.Figure:
    """A line for each task over the steps, and the objective in a strip below."""
    # A line through a single point can't be seen.
    mode = "lines" if len(info.steps) > 1 else "markers"
    traces = [
        go.Scatter(
            x=info.steps,
            y=info.f[:, k],
            mode=mode,
            line={"color": palette.categorical[k % len(palette.categorical)], "width": 2},
            name=task,
            hovertemplate=f"<b>{task}</b>  %{{y:.3f}}<br>after %{{x:,}} steps<extra></extra>",
        )
        for k, task in enumerate(info.tasks)
    ]
    traces.append(
        go.Scatter(
            x=info.steps,
            y=info.objective,
            yaxis="y2",
            mode=mode,
            line={"color": palette.muted, "width": 2},
            name="Objective",
            showlegend=False,
            hovertemplate="<b>Objective</b>  %{y:.3f}<br>after %{x:,} steps<extra></extra>",
        )
    )
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        xaxis={"anchor": "y2", "title": {"text": "Steps"}},
        yaxis={"domain": [_STRIP + 0.08, 1], "title": {"text": info.title}},
        yaxis2={"domain": [0, _STRIP], "title": {"text": "Objective"}, "nticks": 3},
    )


@dataclass(frozen=True, eq=False)
class Look:
    """What models measured after ``step`` steps: ``values`` (``m x K``) for ``gammas`` (``m x K``)."""

    step: int
    gammas: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FormingInfo:
    """How the models of a learned set change as it learns.

    Attributes:
        tasks: K names.
        metrics: K metrics.
        looks: What was measured on all tasks, oldest first; each look's preferences in the order of the
            first task's weight.
        steps: After how many steps each look was (n,).
        equal: Metrics at equal preference at each look (``n x K``), NaN where not measured.
        own: Each task's metric at the followed preference that gives it most weight, likewise.
        is_finished: Whether the last look is at the finished set.
    """

    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    looks: tuple[Look, ...]
    steps: NDArray[np.int64]
    equal: NDArray[np.float64]
    own: NDArray[np.float64]
    is_finished: bool


def forming_info(
    tasks: Sequence[str],
    metrics: Sequence[Metric],
    looks: Sequence[Look],
    *,
    followed: NDArray[np.float64],
    steps: int,
) -> FormingInfo:
    """Gathers what was measured on the way.

    Args:
        tasks: K names.
        metrics: K metrics.
        looks: What was measured, oldest first, NaN where it isn't yet.
        followed: The preferences that every look measures (``m x K``).
        steps: Steps of the whole training.
    """
    whole = tuple(look for look in map(_whole, looks) if len(look.gammas))
    n, n_tasks = len(whole), len(tasks)
    equal, own = np.full((n, n_tasks), np.nan), np.full((n, n_tasks), np.nan)
    for row, look in enumerate(whole):
        equal[row] = _values_at(look, np.full(n_tasks, 1 / n_tasks))
        own[row] = [_values_at(look, followed[followed[:, k].argmax()])[k] for k in range(n_tasks)]
    taken = np.array([look.step for look in whole], dtype=np.int64)
    is_finished = bool(n) and int(taken[-1]) == steps
    return FormingInfo(tuple(tasks), tuple(metrics), whole, taken, equal, own, is_finished)


def _whole(look: Look) -> Look:
    """The look's preferences that were measured on every task, in the order of the first task's weight."""
    rows = np.flatnonzero(np.isfinite(look.values).all(axis=1))
    rows = rows[np.lexsort(look.gammas[rows].T[::-1])]
    return Look(look.step, look.gammas[rows], look.values[rows])


def _values_at(look: Look, gamma: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.flatnonzero(np.isclose(look.gammas, gamma, rtol=0, atol=1e-9).all(axis=1))
    return look.values[rows[0]] if len(rows) else np.full(len(gamma), np.nan)


def forming_scatter(info: FormingInfo, palette: Palette, *, height: int = 400) -> go.Figure:
    """Two tasks against each other, a line for each look: the earlier it was, the fainter."""
    traces = []
    for look, shade in zip(info.looks, _shades(len(info.looks), palette), strict=True):
        is_last = look is info.looks[-1]
        after = f"{look.step:,} step{'' if look.step == 1 else 's'}"
        traces.append(
            go.Scatter(
                x=shown(look.values[:, 0], info.metrics[0]),
                y=shown(look.values[:, 1], info.metrics[1]),
                mode="lines+markers",
                line={"color": shade, "width": 2.5 if is_last else 1.5},
                marker={"color": shade, "size": 9 if is_last else 7},
                name=f"{after}, finished" if is_last and info.is_finished else after,
                text=hover_texts(look.gammas, look.values, info.tasks, info.metrics, "preference"),
                hovertemplate=f"%{{text}}<extra>After {after}</extra>",
            )
        )
    return draw(
        traces,
        palette,
        height=height,
        live=True,
        showlegend=True,
        xaxis_title_text=axis_title(info.tasks[0], info.metrics[0]),
        yaxis_title_text=axis_title(info.tasks[1], info.metrics[1]),
    )


def _shades(count: int, palette: Palette) -> list[str]:
    """A colour for each of ``count`` looks: the front's own for the newest, fainter ones for those before."""
    faint = np.linspace(_FAINTEST, _STRONGEST, max(count - 1, 0)).round().astype(int)
    return [*(palette.sequential[shade] for shade in faint), palette.front][:count]


def forming_panels(info: FormingInfo, palette: Palette) -> go.Figure:
    """A panel for each task over the steps: its metric at equal preference, and where it has most weight.

    How far the two lines part is what the set has learned to trade off.
    """
    n_tasks = len(info.tasks)
    n_columns = min(_A_ROW, n_tasks)
    n_rows = -(-n_tasks // n_columns)
    width = (1 + _BETWEEN) / n_columns - _BETWEEN
    pixels = n_rows * (_PANEL + _TITLE) - _TITLE
    layout: dict[str, object] = {}
    titles: list[dict[str, object]] = []
    traces = []
    for k, (task, metric) in enumerate(zip(info.tasks, info.metrics, strict=True)):
        number = str(k + 1) if k else ""
        row, column = divmod(k, n_columns)
        left = column * (width + _BETWEEN)
        top = 1 - row * (_PANEL + _TITLE) / pixels
        has_axis = k + n_columns >= n_tasks
        layout[f"xaxis{number}"] = {
            "domain": [left, left + width],
            "anchor": f"y{number}",
            "showticklabels": has_axis,
            "showgrid": False,
            "nticks": 4,
            "rangemode": "tozero",
            "title": {"text": "Steps" if has_axis else ""},
        }
        layout[f"yaxis{number}"] = {
            "domain": [top - _PANEL / pixels, top],
            "anchor": f"x{number}",
            "nticks": 4,
            "range": _range(np.concatenate([info.equal[:, k], info.own[:, k]]), metric),
        }
        titles.append(
            {
                "text": f"<b>{task}</b>  {shared_title(metric)}",
                "x": left,
                "y": top,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "yshift": 4,
                "showarrow": False,
                "font": {"size": 12, "color": palette.text},
            }
        )
        for name, values, colour in (
            ("Equal preference", info.equal[:, k], palette.measured),
            ("Preference for this task", info.own[:, k], palette.front),
        ):
            traces.append(
                go.Scatter(
                    x=info.steps,
                    y=shown(values, metric),
                    xaxis=f"x{number}",
                    yaxis=f"y{number}",
                    mode="lines+markers",
                    line={"color": colour, "width": 2},
                    marker={"color": colour, "size": 6},
                    name=name,
                    legendgroup=name,
                    showlegend=k == 0,
                    hovertemplate=f"<b>{task}</b>  {notation(metric).hover('y')}<br>after %{{x:,}} steps"
                    f"<extra>{name}</extra>",
                )
            )
    return draw(
        traces,
        palette,
        height=pixels + 130,
        live=True,
        annotations=titles,
        legend={"y": 1 + 26 / pixels},
        margin={"l": 16, "r": 16, "t": 70, "b": 60},
        **layout,
    )


def _range(values: NDArray[np.float64], metric: Metric) -> list[float] | None:
    """From where to where a panel goes; None for what suits its values best."""
    known = shown(values[np.isfinite(values)], metric)
    if not len(known) or not metric.is_share:
        return None
    low, high = float(known.min()), float(known.max())
    beyond = max(0.1 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    return [low - beyond, high + beyond]
