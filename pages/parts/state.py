"""The server's one store and one set of jobs, and what pages read from them again and again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import streamlit as st

from mapmerge_core.errors import ExportError, StudyError
from mapmerge_core.studies.analysis import Analysis, analyse
from mapmerge_core.studies.jobs import Jobs, JobSnapshot
from mapmerge_core.studies.rows import RunRow, StudyRow
from mapmerge_core.studies.run_store import ACTIVE
from mapmerge_core.studies.spec import DEMO_ZOO
from mapmerge_core.studies.store import Store

__all__ = [
    "JobSnapshot",
    "StudyRow",
    "analysis",
    "checksum",
    "export",
    "export_job",
    "exported_file",
    "job",
    "jobs",
    "live_run",
    "run_elsewhere",
    "run_going_on",
    "store",
    "zoo",
]


@st.cache_resource(show_spinner=False)
def store() -> Store:
    """The store, opened once for the whole server."""
    return Store()


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    """The background jobs of the whole server: whoever looks sees the same ones."""
    store().recover()
    return Jobs(store())


@st.cache_resource(show_spinner="Fitting surrogates and finding the front…", max_entries=32)
def _analysis(study_id: int, fingerprint: object) -> Analysis:  # noqa: ARG001 - the cache's key
    return analyse(store(), study_id)


@st.cache_resource(show_spinner=False, max_entries=8)
def _rough_analysis(study_id: int, fingerprint: object) -> Analysis:  # noqa: ARG001 - the cache's key
    return analyse(store(), study_id, generations=0)


def analysis(study_id: int, *, rough: bool = False) -> Analysis:
    """The study's surrogates and front, computed again only when its evaluations have changed.

    A ``rough`` one leaves out the search for the front, for studies that are being evaluated.
    """
    fingerprint = store().fingerprint(study_id)
    return _rough_analysis(study_id, fingerprint) if rough else _analysis(study_id, fingerprint)


@st.cache_data(show_spinner=False, max_entries=512)
def _mean_r2(study_id: int, fingerprint: object) -> float | None:  # noqa: ARG001 - the cache's key
    analysis = analyse(store(), study_id, with_front=False)
    return float(analysis.r2.mean()) if analysis.surrogates else None


def mean_r2(study_id: int) -> float | None:
    """The mean leave-one-out R² of the study's surrogates, None while there are too few points."""
    return _mean_r2(study_id, store().fingerprint(study_id))


def zoo() -> Path:
    """The folder that the demos are made from: $MAPMERGE_ZOO, or the bundled one."""
    return Path(os.environ.get("MAPMERGE_ZOO") or DEMO_ZOO)


def job(number: int | None) -> JobSnapshot | None:
    """A job by its number; None where there is none, or it ended so long ago that it was forgotten."""
    try:
        return None if number is None else jobs().snapshot(number)
    except StudyError:
        return None


def live_run(study_id: int) -> JobSnapshot | None:
    """The study's run that is waiting or running, if any."""
    every = jobs().for_study(study_id)
    return next((found for found in every if found.kind == "run" and found.is_live), None)


def run_elsewhere(study_id: int) -> RunRow | None:
    """The study's run that another process waits with or executes, if any; those of dead ones are ended."""
    if live_run(study_id) is not None:
        return None
    store().recover()
    return next((run for run in store().runs(study_id) if run.status in ACTIVE), None)


def run_going_on(study_id: int) -> int | None:
    """The number of the study's run that some process waits with or executes, if any."""
    here = live_run(study_id)
    elsewhere = run_elsewhere(study_id)
    return here.run_id if here else elsewhere.id if elsewhere else None


@st.cache_resource(show_spinner=False)
def _export_jobs() -> dict[int, int]:
    return {}


def export(pick_id: int) -> None:
    """Start writing a pick's merged model."""
    _export_jobs()[pick_id] = jobs().export(pick_id)


def export_job(pick_id: int) -> JobSnapshot | None:
    """The latest export of a pick since the server started."""
    return job(_export_jobs().get(pick_id))


def exported_file(pick_id: int) -> Path:
    """The file that a pick was last exported to.

    Raises:
        StudyError: where there is no such pick.
        ExportError: where the pick wasn't exported, or the file is gone.
    """
    path = store().pick(pick_id).exported
    if path is None:
        raise ExportError(f"Pick {pick_id} has not been exported: export it first.")
    if not path.is_file():
        raise ExportError(f"{path} is gone: export the pick again.")
    return path


@st.cache_data(show_spinner=False, max_entries=64)
def checksum(path: Path, changed: int) -> str:  # noqa: ARG001 - `changed` is the cache's key
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
