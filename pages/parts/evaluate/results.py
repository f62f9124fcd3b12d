"""What a study has measured so far: points, contours and the quality of the fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.contours import contours, plane_info, plane_points
from mapmerge_core.charts.evaluations import evaluations_info, evaluations_scatter, fit_info, fit_scatter
from pages.parts.shared import choice as choosing
from pages.parts.shared import live, pictures, shell, state

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.analysis import Analysis

SLICE = 5
"""Points along each side of a measured slice."""


def draw(study_id: int, *, n_tasks: int, is_live: bool) -> None:
    """Points, contours and fit, with the front so far; redrawn every few seconds while a run is live."""
    # A rough front of eight tasks costs nearly a second of processor time, which the run would miss.
    every = 2 if n_tasks == 2 else 6
    st.fragment(_results, run_every=every if is_live else None)(study_id, is_live)


def _results(study_id: int, is_live: bool) -> None:
    with shell.errors_shown():
        analysis = state.analysis(study_id, rough=is_live)
        if not len(analysis.C):
            pictures.busy("Reading the models; the first point will be here soon…")
            return
        fit_quality(analysis)
        st.subheader("Points measured so far" if is_live else "Points measured", anchor=False)
        info = evaluations_info(analysis.tasks, analysis.metrics, analysis.C, analysis.Y)
        st.plotly_chart(
            evaluations_scatter(info, shell.palette(), height=360),
            key="points_chart",
            theme=None,
            config=shell.PLOT,
        )
        slices(study_id, analysis, is_live=is_live)
        if analysis.surrogates and not is_live:
            with st.expander(
                "How well does the fit predict points that it has not seen?", icon=":material/query_stats:"
            ):
                fit(analysis)


def fit_quality(analysis: Analysis) -> None:
    """R² so far, one number a task."""
    if analysis.surrogates is None:
        st.caption(shell.plain(analysis.problem or ""))
        return
    cells = [pictures.Tile(task, f"{r2:.3f}") for task, r2 in zip(analysis.tasks, analysis.r2, strict=True)]
    st.subheader("Quality of the fit, R²", anchor=False)
    pictures.tiles(cells, "plain")
    st.caption(
        "Leave-one-out: how much of a metric's variation the surrogate explains at points that it has not "
        "seen. 1 is perfect, 0 is no better than the mean."
    )


def slices(study_id: int, analysis: Analysis, *, is_live: bool) -> None:
    """Measured and fitted contours of one task on a plane of two coefficients."""
    tasks, count = analysis.tasks, len(analysis.tasks)
    numbers = list(range(count))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader("Measured against fitted", anchor=False, width="stretch")
        task = st.selectbox(
            "Metric of",
            numbers,
            key=f"contour_task_{study_id}",
            format_func=tasks.__getitem__,
            width=180,
            persist_state="session",
        )
        x, y = 0, 1
        if count > 2:
            x = st.selectbox(
                "Across", numbers, 0, key=f"contour_x_{study_id}", format_func=tasks.__getitem__, width=180
            )
            y = st.selectbox(
                "Up",
                [n for n in numbers if n != x],
                0,
                key=f"contour_y_{study_id}",
                format_func=tasks.__getitem__,
                width=180,
            )
        through = analysis.C.mean(axis=0) if analysis.front is None else choosing.recall(study_id, analysis).c
        if (
            count > 2
            and not is_live
            and st.button(
                f"Measure this slice ({SLICE * SLICE} points)", key="measure_slice", icon=":material/grid_on:"
            )
        ):
            C = plane_points(through, (x, y), analysis.low, analysis.high, SLICE)
            state.jobs().measure(study_id, C, "val", f"Measure the slice of {tasks[x]} and {tasks[y]}")
            st.rerun()
    if not is_live:
        live.watch(study_id, "measure")
    pick = None if analysis.front is None or is_live else through
    info = plane_info(
        task,
        tasks,
        analysis.metrics[task],
        analysis.surrogates[task] if analysis.surrogates else None,
        analysis.C,
        analysis.Y[:, task],
        through=through,
        axes=(x, y),
        low=analysis.low,
        high=analysis.high,
        front=analysis.front.c if analysis.front is not None else None,
        pick=pick,
    )
    st.plotly_chart(contours(info, shell.palette()), key="contour_chart", theme=None, config=shell.PLOT)
    if info.through:
        held = ", ".join(f"{name} {value:.2f}" for name, value in info.through.items())
        place = "the middle of the points" if pick is None else "your pick"
        st.caption(f"A plane through {place}: {shell.plain(held)}.")


def fit(analysis: Analysis) -> None:
    """Measured against left-out predictions."""
    left_out = [surrogate.loo_predictions_ for surrogate in analysis.surrogates or ()]
    info = fit_info(analysis.tasks, analysis.metrics, analysis.Y, analysis.inside, left_out)
    st.plotly_chart(fit_scatter(info, shell.palette(), height=420), key="fit_chart", theme=None, config=shell.PLOT)
