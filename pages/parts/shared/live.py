"""Jobs as they go on: a bar that moves by itself and leaves once the job has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from pages.parts.shared import pictures, shell, state
from pages.parts.shared.words import duration

if TYPE_CHECKING:
    from mapmerge_core.studies.jobs.job import JobKind, JobSnapshot

EVERY = 0.7
"""Seconds between looks at a live job."""
COUNTED: dict[JobKind, str] = {"choose": "batches of images", "prepare": "steps"}
"""What a kind of job counts where it isn't evaluations."""


def watch(study_id: int, kind: JobKind) -> None:
    """Show the study's latest job of a kind: a bar while it is live, its error if it failed.

    Redraws the page once when the job ends. Nothing polls while no job is live.
    """
    job = latest(study_id, kind)
    if job is None or job.status in ("done", "stopped"):
        return
    if job.status == "failed":
        st.error(shell.plain(job.error or ""), icon=":material/error:")
        return
    bar(job.id)


def latest(study_id: int, kind: JobKind) -> JobSnapshot | None:
    """Return the study's latest job of a kind since the server started."""
    return next((job for job in state.jobs().for_study(study_id) if job.kind == kind), None)


def bar(job_id: int) -> None:
    """Draw a live job's bar; redraws the page once when the job ends."""
    st.fragment(_bar, run_every=EVERY)(job_id)


def _bar(job_id: int) -> None:
    job = state.job(job_id)
    if job is None or not job.is_live:
        st.rerun()
    st.progress(_share(job), text=shell.plain(_line(job)))


def watch_elsewhere(study_id: int) -> None:
    """Show how a run in another process goes on, as the store has it; redraws the page once when it ends."""
    st.fragment(_elsewhere, run_every=EVERY)(study_id)


def _elsewhere(study_id: int) -> None:
    run = state.run_elsewhere(study_id)
    if run is None:
        st.rerun()
    so_far = f"{run.n_evaluations:,} evaluations"
    points = state.store().training.all(run.merge_id)
    if points:
        so_far = f"{points[-1].step:,} steps and {so_far}"
    pictures.busy(f"Running in another process: {run.config.label}; {so_far} so far")


def wait(is_over: Callable[[], bool], text: str) -> None:
    """Say what is going on until ``is_over()``; then redraw the page once."""
    st.fragment(_wait, run_every=EVERY)(is_over, text)


def wait_for_job(job_id: int, text: str) -> None:
    """Say what a job is doing until it ends; then redraw the page once."""
    wait(lambda: not state.jobs().snapshot(job_id).is_live, text)


def _wait(is_over: Callable[[], bool], text: str) -> None:
    if is_over():
        st.rerun()
    pictures.busy(text)


def _share(job: JobSnapshot) -> float:
    """Return how much of a job is done, in [0, 1]."""
    return min(1.0, job.done / job.total) if job.total else 0.0


def _line(job: JobSnapshot) -> str:
    """Return one line on how a job stands: "Measure the pick: 3 of 8, about 12 s left"."""
    if job.status == "queued":
        return f"{job.title}: waiting for its turn"
    if not job.total:
        return f"{job.title}: reading the models"
    left = "" if job.seconds_left is None else f", about {duration(job.seconds_left)} left"
    return f"{job.title}: {job.done:,} of {job.total:,} {_counted(job)}{left}"


def _counted(job: JobSnapshot) -> str:
    """Return what a job counts."""
    if job.run_id is not None and state.store().runs.get(job.run_id).config.make_merge().is_trained:
        return "steps and evaluations"
    return COUNTED.get(job.kind, "evaluations")
