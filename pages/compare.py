"""Every run, baseline and fine-tuned model side by side, by what was measured on unseen data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import streamlit as st

from pages.parts.compare import comparison_figures, comparison_table
from pages.parts.shared import live, preference, shell, state
from pages.parts.shared.words import duration

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.comparing import Comparison
    from mapmerge_core.studies.jobs.job import JobSnapshot

EVERY = 3
"""Seconds between looks at what a job has made and measured."""


def draw() -> None:
    """Draw the page."""
    study = shell.study_heading(
        "Compare", "Every run and every merge, by what was measured on the test split: data that none has seen."
    )
    if study.n_points == 0:
        shell.empty(
            "Nothing measured yet",
            "Start a run first: its models are compared here with every baseline and fine-tuned model.",
            ("pages/evaluate.py", "Go to Evaluate", ":material/monitoring:"),
            study.id,
        )
        return
    job = state.live_job(study.id, "complete")
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        names = [objective.name for objective in study.config.objectives]
        weights = preference.popover(study.id, names, key="compare_preference")
        normalise = st.toggle(
            "Relative to single models",
            key="compare_normalise",
            persist_state="session",
            help="Each metric as a share of what the task's own model reaches, or the best fine-tuned one.",
        )
    comparison = state.comparison(study.id, weights)
    if job:
        going_on(job)
    else:
        actions(comparison, weights)
    st.fragment(body, run_every=EVERY if job else None)(comparison, weights if job else None, normalise=normalise)


def going_on(job: JobSnapshot) -> None:
    """Draw the bar of what is being made and measured, and the way to stop it."""
    bar, stop = st.columns([6, 1], vertical_alignment="center")
    with bar:
        live.bar(job.id)
    if stop.button("Stop", key="compare_stop", icon=":material/stop:", width="stretch"):
        state.jobs().stop(job.id)
        st.rerun()


def actions(comparison: Comparison, weights: Mapping[str, float]) -> None:
    """Draw what can be made and measured, with the time that it takes."""
    live.watch(comparison.study_id, "complete")
    if not comparison.offered and not comparison.missing:
        st.caption(":material/check: Every row is measured on the test split.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        if comparison.offered and st.button(
            "Run all baselines", key="run_baselines", type="primary", icon=":material/play_arrow:"
        ):
            start(comparison.study_id, weights, merges=True)
        if comparison.missing and st.button(
            "Measure what is missing",
            key="measure_missing",
            type="secondary" if comparison.offered else "primary",
            icon=":material/straighten:",
        ):
            start(comparison.study_id, weights, merges=False)
        st.caption(what_it_takes(comparison, weights))


def what_it_takes(comparison: Comparison, weights: Mapping[str, float]) -> str:
    """Return what is missing, and about how long it takes."""
    count = len(comparison.offered)
    parts = [f"{count} merge{'' if count == 1 else 's'} to make"] if count else []
    if comparison.missing:
        parts.append(f"{comparison.missing:,} test evaluations missing")
    seconds = state.comparison_seconds(comparison.study_id, weights)
    if seconds is not None:
        parts.append(f":material/schedule: all of it about **{duration(seconds)}**")
    return " · ".join(parts)


def start(study_id: int, weights: Mapping[str, float], *, merges: bool) -> None:
    """Make and measure in the background."""
    with shell.errors_shown():
        state.jobs().complete(study_id, merges=merges, weights=weights)
        st.rerun()


def body(comparison: Comparison, weights: Mapping[str, float] | None, *, normalise: bool) -> None:
    """Draw figures and table, redrawn alone when a row is chosen.

    While something is being made or measured they follow the store, for these ``weights``.
    """
    with shell.errors_shown():
        if weights is not None:
            comparison = state.comparison(comparison.study_id, weights)
        chosen = comparison_table.chosen(comparison)
        comparison_figures.models(comparison, chosen, normalise=normalise)
        comparison_table.draw(comparison, chosen, normalise=normalise)
        comparison_figures.preferences(comparison, chosen, normalise=normalise)


with shell.errors_shown():
    draw()
