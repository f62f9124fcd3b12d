"""The chart of the front: a scatter or parallel coordinates, in which a click picks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from mapmerge_core.charts.fronts import (
    MOST_LINES,
    Backdrop,
    FrontInfo,
    Spot,
    front_info,
    parallel_backdrop,
    scatter_backdrop,
)
from mapmerge_core.charts.palette import Palette
from mapmerge_core.charts.units import point_text
from pages.parts.shared import shell

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.analysis import StudyAnalysis

STILL = ("pretrained", "single")
"""Kinds of spots that stay where they are while the pick moves."""


def draw(view: StudyAnalysis, spots: Sequence[Spot], clicked: Callable[[int], None]) -> None:
    """Draw the chart with what can be set of it.

    Args:
        view: The merges whose front it is.
        spots: Models drawn by themselves.
        clicked: Called with the front's row that was clicked.
    """
    names, front = view.names, view.fitted_front
    ids = [merge.merge.id for merge in view.merges]
    key = f"{view.study_id}_{'_'.join(map(str, ids))}"
    shown, x, y, colour = settings(view, key)
    spaces = {merge.merge.id: merge.space.names for merge in view.merges}
    members = [ids.index(merge_id) for merge_id in front.keys]
    info = front_info(
        names,
        [objective.metric for objective in view.objectives],
        front.predicted,
        points=[point_text(spaces[at], x) for at, x in zip(front.keys, front.x, strict=True)],
        merges=[merge.title for merge in view.merges],
        members=np.array(members),
        single=view.single,
        spots=[spot for spot in spots if spot.kind in STILL],
        most=MOST_LINES if shown == "Parallel" else None,
    )
    if shown == "Scatter":
        backdrop = _scatter(info, shell.palette(), x, y, colour)
    else:
        backdrop = _parallel(info, shell.palette(), colour)
    st.plotly_chart(
        backdrop.with_spots([spot for spot in spots if spot.kind not in STILL]),
        key=f"front_chart_{key}",
        on_select=lambda: _point_clicked(key, len(front), clicked),
        selection_mode="points",
        theme=None,
        config=shell.PLOT,
    )


def settings(view: StudyAnalysis, key: str) -> tuple[str, int, int, int | None]:
    """Return the kind of chart, the objectives of its axes and the one that colours it; None: the merge does."""
    names, count = view.names, len(view.names)
    if count < 3:
        return ("Parallel" if count == 1 else "Scatter"), 0, min(1, count - 1), None
    numbers = list(range(count))
    x, y = 0, 1
    with st.container(horizontal=True):
        kinds = ["Scatter", "Parallel"] if count == 3 else ["Parallel", "Scatter"]
        shown = st.segmented_control(
            "View", kinds, default=kinds[0], required=True, key=f"front_view_{view.study_id}", persist_state="session"
        )

        def choose(label: str, options: Sequence[int | None], number: int, of: str) -> int | None:
            return st.selectbox(
                label,
                options,
                number,
                key=f"front_{label.lower()}_{of}",
                format_func=lambda k: "Merge" if k is None else names[k],
                width=170,
            )

        if shown == "Scatter":
            x = choose("Across", numbers, 0, str(view.study_id)) or 0
            y = choose("Up", numbers, 1, str(view.study_id)) or 0
        several = len({*view.fitted_front.keys}) > 1
        options = [None, *numbers] if several else numbers
        colour = choose("Colour", options, 0 if several or count > 3 else 2, key)
    return shown, x, y, colour


# Pictures are kept by all that they show, so that a front that moved can't be drawn as it was. Pickling says
# what that is in a tenth of the time that Streamlit takes to look into every field.
KEY: dict[str | type[Any], Callable[[Any], Any]] = {FrontInfo: pickle.dumps, Palette: pickle.dumps}


@st.cache_resource(show_spinner=False, max_entries=32, hash_funcs=KEY)
def _scatter(info: FrontInfo, palette: Palette, x: int, y: int, colour: int | None) -> Backdrop:
    return scatter_backdrop(info, palette, x=x, y=y, colour=colour).packed()


@st.cache_resource(show_spinner=False, max_entries=32, hash_funcs=KEY)
def _parallel(info: FrontInfo, palette: Palette, colour: int | None) -> Backdrop:
    return parallel_backdrop(info, palette, colour=colour).packed()


def _point_clicked(key: str, n_rows: int, clicked: Callable[[int], None]) -> None:
    """Call ``clicked`` with the row that was clicked; also with one clicked again, which unselects it."""
    points = st.session_state[f"front_chart_{key}"]["selection"]["points"]
    rows = [point["customdata"] for point in points if isinstance(point.get("customdata"), int | float)]
    row = int(rows[0]) if rows else st.session_state.get(f"clicked_row_{key}")
    if row is None or not 0 <= row < n_rows:
        return
    st.session_state[f"clicked_row_{key}"] = row
    clicked(row)
