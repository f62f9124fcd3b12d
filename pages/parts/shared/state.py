"""The server's one store and one set of jobs, and what pages read from them again and again.

What takes long to import is imported where it is needed: the first page needs none of it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import streamlit as st
from mapmerge_core.studies.store.run_store import ACTIVE

from mapmerge_core.errors import ExportError, StudyError
from mapmerge_core.studies.config.manifest import DEMO_ZOO
from mapmerge_core.studies.jobs.job import JobSnapshot
from mapmerge_core.studies.store.rows import StudyRow
from mapmerge_core.studies.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapmerge_core.merges._training_settings import TrainingPoint
    from mapmerge_core.studies.analysis.learned import LearnedSet

    from mapmerge_core.charts.learning import Look
    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.methods.nested import NestedMAP
    from mapmerge_core.methods.tree import Pair
    from mapmerge_core.studies.analysis.analysis import Analysis, Anchor
    from mapmerge_core.studies.analysis.comparing import Comparison
    from mapmerge_core.studies.config.run import RunSettings
    from mapmerge_core.studies.jobs.job import JobKind
    from mapmerge_core.studies.jobs.jobs import Jobs
    from mapmerge_core.studies.store.rows import RunRow

__all__ = [
    "JobSnapshot",
    "StudyRow",
    "analysis",
    "anchors",
    "checksum",
    "close",
    "comparison",
    "comparison_seconds",
    "export",
    "export_job",
    "exported_file",
    "job",
    "jobs",
    "learned_file",
    "learned_looks",
    "learned_runs",
    "learned_set",
    "live_job",
    "nested_tree",
    "plan",
    "planned",
    "run_elsewhere",
    "run_going_on",
    "store",
    "training_points",
    "zoo",
]


@st.cache_resource(show_spinner=False)
def store() -> Store:
    """The store, opened once for the whole server."""
    return Store()


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    """The background jobs of the whole server: whoever looks sees the same ones."""
    from mapmerge_core.studies.jobs.jobs import Jobs  # noqa: PLC0415

    store().recover()
    return Jobs(store())


def close() -> None:
    """Stop the jobs, if there may be any."""
    if "mapmerge_core.studies.jobs.jobs" in sys.modules:
        jobs().close()


@st.cache_resource(show_spinner="Fitting surrogates and finding the front…", max_entries=32)
def _analysis(study_id: int, fingerprint: object) -> Analysis:  # noqa: ARG001 - the cache's key
    from mapmerge_core.studies.analysis.analysis import analyse  # noqa: PLC0415

    return analyse(store(), study_id)


@st.cache_resource(show_spinner=False, max_entries=8)
def _rough_analysis(study_id: int, fingerprint: object) -> Analysis:  # noqa: ARG001 - the cache's key
    from mapmerge_core.studies.analysis.analysis import analyse  # noqa: PLC0415

    return analyse(store(), study_id, generations=0)


def analysis(study_id: int, *, rough: bool = False) -> Analysis:
    """The study's surrogates and front, computed again only when its evaluations have changed.

    A ``rough`` one leaves out the search for the front, for studies that are being evaluated.
    """
    fingerprint = store().fingerprint(study_id)
    return _rough_analysis(study_id, fingerprint) if rough else _analysis(study_id, fingerprint)


@st.cache_data(show_spinner=False, max_entries=512)
def _mean_r2(study_id: int, fingerprint: object) -> float | None:  # noqa: ARG001 - the cache's key
    from mapmerge_core.studies.analysis.analysis import analyse  # noqa: PLC0415

    analysis = analyse(store(), study_id, with_front=False)
    return float(analysis.r2.mean()) if analysis.surrogates else None


def mean_r2(study_id: int) -> float | None:
    """The mean leave-one-out R² of the study's surrogates, None while there are too few points."""
    return _mean_r2(study_id, store().fingerprint(study_id))


@st.cache_data(show_spinner=False, max_entries=64)
def _anchors(study_id: int, fingerprint: object) -> list[Anchor]:  # noqa: ARG001 - the cache's key
    from mapmerge_core.studies.analysis.analysis import analyse  # noqa: PLC0415

    return analyse(store(), study_id, with_front=False).anchors()


def anchors(study_id: int) -> list[Anchor]:
    """The study's pre-trained and single-task models, as far as they were measured on every task."""
    return _anchors(study_id, store().fingerprint(study_id))


def learned_runs(study_id: int) -> list[RunRow]:
    """The study's runs that have learned a set, latest first."""
    from mapmerge_core.studies import learned  # noqa: PLC0415

    return learned.learned_runs(store(), study_id)


def learned_set(run_id: int) -> LearnedSet:
    """What a run has learned.

    Raises:
        StudyError: where there is no such run, it isn't done, or its file is gone or damaged.
    """
    from mapmerge_core.studies import learned  # noqa: PLC0415

    return learned.learned_set(store(), run_id)


def training_points(run_id: int) -> list[TrainingPoint]:
    """How a run's training went so far."""
    return store().training_points(run_id)


def learned_looks(run_id: int) -> list[Look]:
    """What a run's models measured on the validation split so far, after which steps."""
    from mapmerge_core.charts.learning import Look  # noqa: PLC0415

    return [Look(step, *store().learned_table(run_id, step=step)) for step in store().learned_steps(run_id)]


def learned_file(run_id: int) -> Path:
    """The file of a learned set.

    Raises:
        StudyError: where there is no such run.
        ExportError: where it has learned none, or the file is gone.
    """
    run = store().run(run_id)
    path = store().learned_file(run.id)
    if not path.is_file():
        raise ExportError(f"Run {run.id} has no learned set: run Pareto Merging to its end first.")
    return path


def plan(study_id: int, method: MethodName, settings: RunSettings) -> None:
    """Keep how a new study is to be run, as its study file says."""
    st.session_state[f"planned_{study_id}"] = method, settings


def planned(study_id: int) -> tuple[MethodName, RunSettings] | None:
    """How a study is to be run, if its study file was opened in this session."""
    found: tuple[MethodName, RunSettings] | None = st.session_state.get(f"planned_{study_id}")
    return found


def zoo() -> Path:
    """The folder that the demos are made from: $MAPMERGE_ZOO, or the bundled one."""
    return Path(os.environ.get("MAPMERGE_ZOO") or DEMO_ZOO)


def job(number: int | None) -> JobSnapshot | None:
    """A job by its number; None where there is none, or it ended so long ago that it was forgotten."""
    try:
        return None if number is None else jobs().snapshot(number)
    except StudyError:
        return None


def live_job(study_id: int, kind: JobKind) -> JobSnapshot | None:
    """The study's job of a kind that is waiting or running, if any."""
    every = jobs().for_study(study_id)
    return next((found for found in every if found.kind == kind and found.is_live), None)


def run_elsewhere(study_id: int) -> RunRow | None:
    """The study's run that another process waits with or executes, if any; those of dead ones are ended."""
    if live_job(study_id, "run") is not None:
        return None
    store().recover()
    return next((run for run in store().runs(study_id) if run.status in ACTIVE), None)


def run_going_on(study_id: int) -> int | None:
    """The number of the study's run that some process waits with or executes, if any."""
    here = live_job(study_id, "run")
    elsewhere = run_elsewhere(study_id)
    return here.run_id if here else elsewhere.id if elsewhere else None


def comparison(study_id: int, weights: Mapping[str, float]) -> Comparison:
    """The study's comparison as the store has it now; a run's front is searched once."""
    from mapmerge_core.studies.analysis.comparing import compare  # noqa: PLC0415

    with st.spinner("Fitting surrogates and finding fronts…"):
        return compare(store(), study_id, weights=weights)


def comparison_seconds(study_id: int, weights: Mapping[str, float]) -> float | None:
    """About how long it takes to make and measure what the comparison lacks; None where nobody knows yet."""
    from mapmerge_core.studies.runs.completing import estimate_completion  # noqa: PLC0415

    return estimate_completion(store(), study_id, weights=weights)


def nested_tree(run_id: int) -> Pair:
    """The tree of a nested run that is done.

    Raises:
        StudyError: where it can't be grown again.
    """
    from mapmerge_core.studies.analysis.findings import finding_of  # noqa: PLC0415

    with st.spinner("Fitting each pair's surrogates…"):
        finding = finding_of(store(), store().run(run_id))
    if finding.replay is None:
        raise StudyError(finding.problem)
    nested: NestedMAP = finding.replay.method
    return nested.tree


ExportKind = Literal["pick", "baseline", "learned"]
"""What a model that can be exported is in the store."""


@st.cache_resource(show_spinner=False)
def _export_jobs() -> dict[tuple[ExportKind, int], int]:
    return {}


def export(kind: ExportKind, number: int) -> None:
    """Start writing the merged model of a pick, a baseline or a learned set's pick."""
    start = {
        "pick": jobs().export,
        "baseline": jobs().export_baseline,
        "learned": jobs().export_learned,
    }
    _export_jobs()[kind, number] = start[kind](number)


def export_job(kind: ExportKind, number: int) -> JobSnapshot | None:
    """A model's latest export since the server started."""
    return job(_export_jobs().get((kind, number)))


def exported_file(kind: ExportKind, number: int) -> Path:
    """The file that a model was last exported to.

    Raises:
        StudyError: where there is no such pick or baseline.
        ExportError: where it wasn't exported, or the file is gone.
    """
    from mapmerge_core.studies.runs.exporting import exported_baseline  # noqa: PLC0415

    if kind == "baseline":
        path = exported_baseline(store(), number)
    else:
        path = (store().pick if kind == "pick" else store().learned_pick)(number).exported
        if path is not None and not path.is_file():
            raise ExportError(f"{path} is gone: export the pick again.")
    if path is None:
        what = "Baseline" if kind == "baseline" else "Pick"
        raise ExportError(f"{what} {number} has not been exported: export it first.")
    return path


@st.cache_data(show_spinner=False, max_entries=64)
def checksum(path: Path, changed: int) -> str:  # noqa: ARG001 - `changed` is the cache's key
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
