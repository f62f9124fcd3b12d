"""The server's one store and one set of jobs, and what pages read from them again and again.

What takes long to import is imported where it is needed: the first page needs none of it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.errors import ExportError, StudyError
from mapmerge_core.studies.config.demo import DEMO_ZOO
from mapmerge_core.studies.store import ACTIVE, Run, Store

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.analysis import StudyAnalysis
    from mapmerge_core.studies.analysis.comparing import Comparison
    from mapmerge_core.studies.analysis.references import References
    from mapmerge_core.studies.analysis.replay import RunResult
    from mapmerge_core.studies.config import RunConfig
    from mapmerge_core.studies.jobs.job import JobKind, JobSnapshot
    from mapmerge_core.studies.jobs.jobs import Jobs


@st.cache_resource(show_spinner=False)
def store() -> Store:
    """Return the store, opened once for the whole server."""
    return Store()


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    """Return the background jobs of the whole server: whoever looks sees the same ones."""
    from mapmerge_core.studies.jobs.jobs import Jobs  # noqa: PLC0415

    store().runs.recover()
    return Jobs(store())


def close() -> None:
    """Stop the jobs, if there may be any."""
    if "mapmerge_core.studies.jobs.jobs" in sys.modules:
        jobs().close()


def zoo() -> Path:
    """Return the folder that the demos are made from: $MAPMERGE_ZOO, or the bundled one."""
    return Path(os.environ.get("MAPMERGE_ZOO") or DEMO_ZOO)


# What evaluations say. The arguments after the study, or the run, are the caches' keys.


def fingerprint(study_id: int) -> str:
    """Return what changes whenever the study's validation points or merges do."""
    ids = [merge.id for merge in store().merges.all(study_id)]
    return f"{store().evaluations.fingerprint(study_id)} {ids}"


@st.cache_resource(show_spinner="Fitting surrogates and finding the front…", max_entries=32)
def _analysis(study_id: int, merges: tuple[int, ...] | None, key: str) -> StudyAnalysis:  # noqa: ARG001
    from mapmerge_core.studies.analysis.analysis import analyse  # noqa: PLC0415

    return analyse(store(), study_id, merges=merges)


@st.cache_resource(show_spinner=False, max_entries=8)
def _rough_analysis(study_id: int, merges: tuple[int, ...] | None, key: str) -> StudyAnalysis:  # noqa: ARG001
    from mapmerge_core.studies.analysis.analysis import analyse  # noqa: PLC0415

    return analyse(store(), study_id, merges=merges, generations=0)


def analysis(study_id: int, merges: Collection[int] | None = None, *, rough: bool = False) -> StudyAnalysis:
    """Return the study's surrogates and fronts, computed again only when its evaluations have changed.

    Args:
        study_id: The study.
        merges: Ids of the merges to look at; all by default.
        rough: Whether to leave out the search for the front, for studies that are being evaluated.
    """
    key = fingerprint(study_id)
    chosen = None if merges is None else tuple(sorted(merges))
    return (_rough_analysis if rough else _analysis)(study_id, chosen, key)


@st.cache_data(show_spinner=False, max_entries=512)
def _mean_r2(study_id: int, key: str) -> float | None:  # noqa: ARG001
    from mapmerge_core.studies.analysis.analysis import analyse  # noqa: PLC0415

    fitted = [merge for merge in analyse(store(), study_id, with_front=False).merges if merge.surrogates]
    return float(sum(merge.r2.mean() for merge in fitted) / len(fitted)) if fitted else None


def mean_r2(study_id: int) -> float | None:
    """Return the mean leave-one-out R² of all the study's surrogates, None while there are too few points."""
    return _mean_r2(study_id, fingerprint(study_id))


@st.cache_resource(show_spinner=False, max_entries=64)
def _references(study_id: int, key: str) -> References:  # noqa: ARG001
    from mapmerge_core.studies.analysis.references import references  # noqa: PLC0415

    return references(store(), study_id)


def references(study_id: int) -> References:
    """Return what the pre-trained and the fine-tuned models measured on validation, NaN where nothing was."""
    return _references(study_id, fingerprint(study_id))


def comparison(study_id: int, weights: Mapping[str, float]) -> Comparison:
    """Return the study's comparison as the store has it now; a run's front is searched once."""
    from mapmerge_core.studies.analysis.comparing import compare  # noqa: PLC0415

    with st.spinner("Fitting surrogates and finding fronts…"):
        return compare(store(), study_id, weights=weights)


def comparison_seconds(study_id: int, weights: Mapping[str, float]) -> float | None:
    """Return about how long making and measuring what the comparison lacks takes; None where nobody knows."""
    from mapmerge_core.studies.runs.completing import estimate_completion  # noqa: PLC0415

    return estimate_completion(store(), study_id, weights=weights)


def run_result(run_id: int) -> RunResult:
    """Return what a finished run's method came to, told again what the store knows."""
    from mapmerge_core.studies.analysis.replay import run_result  # noqa: PLC0415

    with st.spinner("Fitting the run's surrogates…"):
        return run_result(store(), run_id)


# Runs and jobs.


def plan(study_id: int, run: RunConfig) -> None:
    """Keep how a new study is to be run, as its study file says."""
    st.session_state[f"planned_{study_id}"] = run


def planned(study_id: int) -> RunConfig | None:
    """Return how a study is to be run, if its study file was opened in this session."""
    run: RunConfig | None = st.session_state.get(f"planned_{study_id}")
    return run


def job(job_id: int | None) -> JobSnapshot | None:
    """Return a job; None where there is none, or it ended so long ago that it was forgotten."""
    try:
        return None if job_id is None else jobs().snapshot(job_id)
    except StudyError:
        return None


def live_job(study_id: int, kind: JobKind) -> JobSnapshot | None:
    """Return the study's job of a kind that is waiting or running, if any."""
    return next((job for job in jobs().for_study(study_id) if job.kind == kind and job.is_live), None)


def run_elsewhere(study_id: int) -> Run | None:
    """Return the study's run that another process waits with or executes; those of dead ones are ended."""
    if live_job(study_id, "run") is not None:
        return None
    store().runs.recover()
    return next((run for run in store().runs.all(study_id) if run.status in ACTIVE), None)


def run_going_on(study_id: int) -> int | None:
    """Return the id of the study's run that some process waits with or executes, if any."""
    here = live_job(study_id, "run")
    elsewhere = run_elsewhere(study_id)
    return here.run_id if here else elsewhere.id if elsewhere else None


# Exports.


@st.cache_resource(show_spinner=False)
def _export_jobs() -> dict[int, int]:
    return {}


def export(pick_id: int) -> None:
    """Start writing the merged model of a pick."""
    _export_jobs()[pick_id] = jobs().export(pick_id)


def export_job(pick_id: int) -> JobSnapshot | None:
    """Return a pick's latest export since the server started."""
    return job(_export_jobs().get(pick_id))


def exported_file(pick_id: int) -> Path:
    """Return the file that a pick was last exported to.

    Raises:
        StudyError: There is no such pick.
        ExportError: It wasn't exported, or the file is gone.
    """
    path = store().picks.get(pick_id).exported
    if path is None:
        raise ExportError(f"Pick {pick_id} has not been exported: export it first.")
    if not path.is_file():
        raise ExportError(f"{path} is gone: export the pick again.")
    return path


def state_file(merge_id: int) -> Path:
    """Return the file that a merge's preparation wrote.

    Raises:
        StudyError: There is no such merge.
        ExportError: It keeps nothing, isn't prepared, or the file is gone.
    """
    merge = store().merges.get(merge_id)
    path = store().merges.state_file(merge.id)
    if not merge.is_prepared or not path.is_file():
        raise ExportError(f"Merge {merge.id} has no file of what it prepared: prepare it first.")
    return path


@st.cache_data(show_spinner=False, max_entries=64)
def checksum(path: Path, changed: int) -> str:  # noqa: ARG001 - `changed` is the cache's key
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
