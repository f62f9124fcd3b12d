"""Every run, baseline and single-task model side by side, by what was measured on unseen data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from mapmerge_core.studies.analysis.siblings import sibling

from mapmerge_core.errors import MapMergeError
from pages.parts.compare import comparison_figures, comparison_table
from pages.parts.evaluate import transform_form
from pages.parts.shared import live, preference, shell, state
from pages.parts.shared.words import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapmerge_core.studies.analysis.comparing import Comparison
    from mapmerge_core.studies.store.rows import StudyRow

EVERY = 3
"""Seconds between looks at what a job has made and measured."""


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Compare",
        "Every method and baseline, by what was measured on the test split: data that none has seen.",
    )
    if study.n_points == 0:
        shell.empty(
            "Nothing measured yet",
            "Start a run first: its models are compared here with every baseline and single-task model.",
            ("pages/evaluate.py", "Go to Evaluate", ":material/monitoring:"),
            study.id,
        )
        return
    job = state.live_job(study.id, "compare")
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        weights = preference.popover(study.id, study.spec.task_names, key="compare_preference")
        normalise = st.toggle(
            "Relative to single-task models",
            key="compare_normalise",
            persist_state="session",
            help="Each task's metric as a share of what the task's own model reaches.",
        )
        st.space("stretch")
        other_vectors(study)
    try:
        comparison = state.comparison(study.id, weights)
    except MapMergeError as error:
        shell.show_error(error)
        return
    if job:
        going_on(job)
    else:
        actions(comparison, weights)
    st.fragment(body, run_every=EVERY if job else None)(comparison, weights if job else None, normalise=normalise)


def other_vectors(study: StudyRow) -> None:
    """The way to a run on task vectors that TIES or DARE has changed, which then is a row here."""
    with st.popover("Run on other task vectors", icon=":material/content_cut:", key="other_vectors"):
        st.caption(
            "A study of the same models, whose task vectors are trimmed or dropped before they are merged. "
            "Its runs are rows of this comparison."
        )
        with shell.errors_shown():
            transform = transform_form.draw("sibling", none=False)
            if st.button("Set up its run", key="make_sibling", type="primary", icon=":material/arrow_forward:"):
                shell.go("pages/evaluate.py", sibling(state.store(), study, transform).id)


def going_on(job: state.JobSnapshot) -> None:
    """The bar of what is being made and measured, and the way to stop it."""
    bar, stop = st.columns([6, 1], vertical_alignment="center")
    with bar:
        live.bar(job.id)
    if stop.button("Stop", key="compare_stop", icon=":material/stop:", width="stretch"):
        state.jobs().stop(job.id)
        st.rerun()


def actions(comparison: Comparison, weights: Mapping[str, float]) -> None:
    """What can be made and measured, with the time that it takes."""
    live.watch(comparison.study_id, "compare")
    if not comparison.offered and not comparison.missing:
        st.caption(":material/check: Every row is measured on the test split.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        if comparison.offered and st.button(
            "Run all baselines", key="run_baselines", type="primary", icon=":material/play_arrow:"
        ):
            start(comparison.study_id, weights, baselines=True)
        if comparison.missing and st.button(
            "Measure what is missing",
            key="measure_missing",
            type="secondary" if comparison.offered else "primary",
            icon=":material/straighten:",
        ):
            start(comparison.study_id, weights, baselines=False)
        st.caption(what_it_takes(comparison, weights))


def what_it_takes(comparison: Comparison, weights: Mapping[str, float]) -> str:
    """What is missing, and about how long it takes."""
    count = len(comparison.offered)
    made = f"{count} baseline{'' if count == 1 else 's'} to make" if count else ""
    lacking = f"{comparison.missing:,} test evaluations missing" if comparison.missing else ""
    text = " · ".join(part for part in (made, lacking) if part)
    seconds = state.comparison_seconds(comparison.study_id, weights)
    return text if seconds is None else f"{text} · :material/schedule: all of it about **{duration(seconds)}**"


def start(study_id: int, weights: Mapping[str, float], *, baselines: bool) -> None:
    """Make and measure in the background."""
    with shell.errors_shown():
        state.jobs().compare(study_id, baselines=baselines, weights=weights)
        st.rerun()


def body(comparison: Comparison, weights: Mapping[str, float] | None, *, normalise: bool) -> None:
    """Figures and table, redrawn alone when a row is chosen.

    While something is being made or measured they follow the store, for these ``weights``.
    """
    with shell.errors_shown():
        if weights is not None:
            comparison = state.comparison(comparison.study_id, weights)
        chosen = comparison_table.chosen(comparison)
        comparison_figures.models(comparison, chosen, normalise=normalise)
        comparison_table.draw(comparison, chosen, normalise=normalise)
        comparison_figures.preferences(comparison, chosen, normalise=normalise)


draw()
