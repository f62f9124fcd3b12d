"""The chart of a front or of a learned set: a scatter or parallel coordinates, in which a click picks."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.palette import Palette
from mapmerge_core.charts.trade_offs import (
    MOST_LINES,
    Backdrop,
    FrontInfo,
    front_info,
    parallel_backdrop,
    scatter_backdrop,
)
from pages.parts.shared import shell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from mapmerge_core.tasks.metric import Metric

    from mapmerge_core.charts.trade_offs import Spot
    from mapmerge_core.charts.units import Made

STILL = ("pretrained", "single")
"""Kinds of spots that stay where they are while the pick moves."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What the chart shows.

    Attributes:
        tasks: K names.
        metrics: K metrics.
        c: The models' coefficients (``m x N``) or preferences (``m x K``).
        values: Their metrics, ``m x K``.
        spots: Models drawn by themselves.
        made_by: Which of the two ``c`` holds.
    """

    tasks: Sequence[str]
    metrics: Sequence[Metric]
    c: np.ndarray
    values: np.ndarray
    spots: Sequence[Spot]
    made_by: Made = "coefficients"


def draw(study_id: int, key: str, shown: Shown, clicked: Callable[[int], None]) -> None:
    """The chart with what can be set of it.

    Args:
        study_id: The study, whose view is kept.
        key: What tells this chart from others.
        shown: What it shows.
        clicked: Called with the row of a model that was clicked.
    """
    tasks, count = shown.tasks, len(shown.tasks)
    view, x, y, colour = "Scatter", 0, 1, None
    numbers = list(range(count))
    if count > 2:
        with st.container(horizontal=True):
            view = st.segmented_control(
                "View",
                ["Parallel", "Scatter"] if count > 3 else ["Scatter", "Parallel"],
                default="Parallel" if count > 3 else "Scatter",
                required=True,
                key=f"front_view_{study_id}",
                persist_state="session",
            )
            if view == "Scatter":
                x = st.selectbox(
                    "Across", numbers, 0, key=f"front_x_{study_id}", format_func=tasks.__getitem__, width=170
                )
                y = st.selectbox("Up", numbers, 1, key=f"front_y_{study_id}", format_func=tasks.__getitem__, width=170)
            colour = st.selectbox(
                "Colour",
                numbers,
                2 if count == 3 else 0,
                key=f"front_colour_{study_id}",
                format_func=tasks.__getitem__,
                width=170,
            )
    info = front_info(
        tasks,
        shown.metrics,
        shown.c,
        shown.values,
        spots=[spot for spot in shown.spots if spot.kind in STILL],
        most=MOST_LINES if view == "Parallel" else None,
        made_by=shown.made_by,
    )
    if view == "Scatter":
        backdrop = _scatter(info, shell.palette(), x, y, colour)
    else:
        backdrop = _parallel(info, shell.palette(), colour or 0)
    st.plotly_chart(
        backdrop.with_spots([spot for spot in shown.spots if spot.kind not in STILL]),
        key=f"front_chart_{key}",
        on_select=lambda: _point_clicked(key, len(shown.c), clicked),
        selection_mode="points",
        theme=None,
        config=shell.PLOT,
    )


# Pictures are kept by all that they show, so that a front that moved can't be drawn as it was. Pickling says
# what that is in a tenth of the time that Streamlit takes to look into every field.
KEY = {FrontInfo: pickle.dumps, Palette: pickle.dumps}


@st.cache_resource(show_spinner=False, max_entries=32, hash_funcs=KEY)
def _scatter(info: FrontInfo, palette: Palette, x: int, y: int, colour: int | None) -> Backdrop:
    return scatter_backdrop(info, palette, x=x, y=y, colour=colour).packed()


@st.cache_resource(show_spinner=False, max_entries=32, hash_funcs=KEY)
def _parallel(info: FrontInfo, palette: Palette, colour: int) -> Backdrop:
    return parallel_backdrop(info, palette, colour=colour).packed()


def _point_clicked(key: str, n_rows: int, clicked: Callable[[int], None]) -> None:
    """Says which row was clicked; also of one clicked again, which unselects it."""
    points = st.session_state[f"front_chart_{key}"]["selection"]["points"]
    rows = [point["customdata"] for point in points if isinstance(point.get("customdata"), int | float)]
    row = int(rows[0]) if rows else st.session_state.get(f"clicked_row_{key}")
    if row is None or not 0 <= row < n_rows:
        return
    st.session_state[f"clicked_row_{key}"] = row
    clicked(row)
