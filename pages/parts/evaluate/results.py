"""What a study has measured so far: training, points, contours and the quality of the fit, merge by merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from mapmerge_core.charts.contours import contours, plane_grid, plane_info, usable_axes
from mapmerge_core.charts.evaluations import evaluations_info, evaluations_scatter, fit_info, fit_scatter
from mapmerge_core.charts.training import training_info, training_lines
from mapmerge_core.charts.units import point_text
from pages.parts.shared import choice as choosing
from pages.parts.shared import pictures, shell, state

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.analysis import MergeAnalysis, StudyAnalysis
    from mapmerge_core.studies.store import Study

SLICE = 5
"""Points along each side of a measured slice."""


def draw(study: Study, merge_id: int | None, *, is_live: bool) -> None:
    """Draw everything; again every few seconds while a run is live.

    Args:
        study: The study.
        merge_id: The merge of the latest run, which is in view at first.
        is_live: Whether a run is going on.
    """
    # A rough front of many tasks costs nearly a second of processor time, which the run would miss.
    every = 2 if len(study.config.objectives) == 2 else 6
    st.fragment(_results, run_every=every if is_live else None)(study, merge_id, is_live)


def _results(study: Study, merge_id: int | None, is_live: bool) -> None:
    with shell.errors_shown():
        analysis = state.analysis(study.id, rough=is_live)
        shown = [merge for merge in analysis.merges if len(merge.X) or merge.merge.id == merge_id]
        merge = choose_merge(study.id, shown, merge_id)
        if merge is None:
            pictures.busy("Reading the models; the first point will be here soon…")
            return
        trained = training(study, merge)
        if not len(merge.X):
            if not trained and is_live:
                pictures.busy("Preparing the merge; the first point will be here soon…")
            return
        quality(analysis, merge)
        st.subheader("Points measured so far" if is_live else "Points measured", anchor=False)
        points(analysis, shown)
        if merge.space.n_free:
            slices(study.id, analysis, merge, is_live=is_live)
        if merge.surrogates and not is_live:
            with st.expander(
                "How well does the fit predict points that it has not seen?", icon=":material/query_stats:"
            ):
                fit(analysis, merge)


def choose_merge(study_id: int, merges: list[MergeAnalysis], merge_id: int | None) -> MergeAnalysis | None:
    """Return the merge in view, asked for where there are several; None where there is none."""
    if not merges:
        return None
    ids = [merge.merge.id for merge in merges]
    chosen = merge_id if merge_id in ids else ids[-1]
    if len(merges) > 1:
        titles = {merge.merge.id: merge.title for merge in merges}
        chosen = st.selectbox(
            "Results of",
            ids,
            ids.index(chosen),
            format_func=titles.__getitem__,
            key=f"merge_in_view_{study_id}_{merge_id}",
            width=420,
        )
    return merges[ids.index(chosen)]


def training(study: Study, merge: MergeAnalysis) -> bool:
    """Draw how the merge's training went, if it was trained; returns whether it was."""
    steps = state.store().training.all(merge.merge.id)
    if not steps:
        return False
    st.subheader("Training", anchor=False)
    st.plotly_chart(
        training_lines(training_info(study.config.model_names, steps), shell.palette()),
        key="training_chart",
        theme=None,
        config=shell.PLOT,
    )
    return True


def quality(analysis: StudyAnalysis, merge: MergeAnalysis) -> None:
    """Draw R² so far, one number an objective."""
    if merge.surrogates is None:
        st.caption(shell.plain(merge.problem or ""))
        return
    tiles = [pictures.Tile(name, f"{r2:.3f}") for name, r2 in zip(analysis.names, merge.r2, strict=True)]
    st.subheader("Quality of the fit, R²", anchor=False)
    pictures.tiles(tiles, "plain")
    st.caption(
        "Leave-one-out: how much of a metric's variation the surrogate explains at points that it has not "
        "seen. 1 is perfect, 0 is no better than the mean."
    )


def points(analysis: StudyAnalysis, merges: list[MergeAnalysis]) -> None:
    """Draw all measured points, coloured by merge."""
    tables = [
        (merge.title, merge.Y, [point_text(merge.space.names, x) for x in merge.X]) for merge in merges if len(merge.X)
    ]
    info = evaluations_info(analysis.names, [objective.metric for objective in analysis.objectives], tables)
    st.plotly_chart(
        evaluations_scatter(info, shell.palette(), height=360), key="points_chart", theme=None, config=shell.PLOT
    )


def slices(study_id: int, analysis: StudyAnalysis, merge: MergeAnalysis, *, is_live: bool) -> None:
    """Draw measured and fitted contours of one objective on a plane of two coordinates."""
    space, names = merge.space, merge.space.names
    usable = list(usable_axes(space))
    numbers = list(range(len(analysis.names)))
    surrogates = merge.surrogates

    def choose(label: str, options: list[int], titles: tuple[str, ...], key: str) -> int:
        return st.selectbox(
            label, options, key=f"{key}_{study_id}_{merge.merge.id}", format_func=titles.__getitem__, width=170
        )

    st.subheader("Measured against fitted", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        objective = choose("Metric of", numbers, analysis.names, "contour_objective")
        axes = tuple(usable[:2])
        if len(usable) > 2:
            x = choose("Across", usable, names, "contour_x")
            axes = (x, choose("Up", [axis for axis in usable if axis != x], names, "contour_y"))
        pick = None if is_live else pick_of(study_id, analysis, merge)
        through = centre(merge) if pick is None else pick
        can_measure = len(axes) == 2 and len(axes) < space.n_free and not is_live
        if can_measure and st.button(
            f"Measure this slice ({SLICE} × {SLICE} points)", key="measure_slice", icon=":material/grid_on:"
        ):
            X = plane_grid(space, through, axes, SLICE)
            title = f"Measure the slice of {names[axes[0]]} and {names[axes[1]]}"
            state.jobs().measure(merge.merge.id, X, "val", title)
            st.rerun()
    info = plane_info(
        analysis.names[objective],
        analysis.objectives[objective].metric,
        space,
        None if surrogates is None else lambda X: surrogates.predict(X)[:, objective],
        merge.X,
        merge.Y[:, objective],
        through=through,
        axes=axes,
        front=merge.front.x if merge.front is not None else None,
        pick=pick,
    )
    st.plotly_chart(contours(info, shell.palette()), key="contour_chart", theme=None, config=shell.PLOT)
    if info.caption:
        st.caption(shell.plain(info.caption))


def pick_of(study_id: int, analysis: StudyAnalysis, merge: MergeAnalysis) -> np.ndarray | None:
    """Return the point of the visitor's pick; None where that is another merge's, or there is no front yet."""
    if analysis.front is None:
        return None
    choice = choosing.recall(study_id, analysis, analysis)
    return choice.x if choice.merge_id == merge.merge.id else None


def centre(merge: MergeAnalysis) -> np.ndarray:
    """Return the point that planes pass through: the front's middle, or that of the measured points."""
    if merge.front is not None and len(merge.front.x):
        return np.asarray(merge.front.x[len(merge.front.x) // 2])
    return np.asarray((merge.X[merge.inside] if merge.inside.any() else merge.X).mean(axis=0))


def fit(analysis: StudyAnalysis, merge: MergeAnalysis) -> None:
    """Draw measured values against left-out predictions."""
    left_out = [fitted.loo_predictions_ for fitted in merge.surrogates.surrogates] if merge.surrogates else []
    info = fit_info(
        analysis.names, [objective.metric for objective in analysis.objectives], merge.Y, merge.inside, left_out
    )
    st.plotly_chart(fit_scatter(info, shell.palette(), height=420), key="fit_chart", theme=None, config=shell.PLOT)
