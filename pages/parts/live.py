"""Jobs as they go on: a bar that moves by itself and leaves once the job has ended."""

from __future__ import annotations

import streamlit as st

from pages.parts import state
from pages.parts.words import duration

EVERY = 0.7
"""Seconds between looks at a live job."""


def watch(study_id: int, kind: str) -> None:
    """Show the study's latest job of a kind: a bar while it is live, its error if it failed.

    Redraws the page once when the job ends. Nothing polls while no job is live.
    """
    job = latest(study_id, kind)
    if job is None or job.status in ("done", "stopped"):
        return
    if job.status == "failed":
        st.error(job.error, icon=":material/error:")
        return
    st.fragment(_bar, run_every=EVERY)(job.id)


def latest(study_id: int, kind: str) -> state.JobSnapshot | None:
    """The study's latest job of a kind since the server started."""
    return next((job for job in state.jobs().for_study(study_id) if job.kind == kind), None)


def _bar(job_id: int) -> None:
    job = state.jobs().snapshot(job_id)
    if not job.is_live:
        st.rerun()
    st.progress(share(job), text=line(job))


def share(job: state.JobSnapshot) -> float:
    """How much of a job is done, in [0, 1]."""
    return min(1.0, job.done / job.total) if job.total else 0.0


def line(job: state.JobSnapshot) -> str:
    """One line on how a job stands: "Measure the pick: 3 of 8, about 12 s left"."""
    if job.status == "queued":
        return f"{job.title}: waiting for its turn"
    if not job.total:
        return f"{job.title}: reading the models"
    left = "" if job.seconds_left is None else f", about {duration(job.seconds_left)} left"
    return f"{job.title}: {job.done} of {job.total} evaluations{left}"
