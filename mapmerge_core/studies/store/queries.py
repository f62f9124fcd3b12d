"""The store's longer queries, and how their results become rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Select, distinct, func, select, true

from mapmerge_core.studies.store.rows import LearnedPickRow, PickRow, RunRow, RunStatus, StudyRow
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.inputs.sources import Source
from mapmerge_core.studies.config.study import StudySpec
from mapmerge_core.studies.store.tables import (
    Evaluation,
    LearnedEvaluation,
    LearnedPick,
    Pick,
    Run,
    Study,
    SubsetEvaluation,
    TrainingStep,
)

if TYPE_CHECKING:
    from datetime import datetime

    from mapmerge_core.methods.catalogue import MethodName


def as_id(number: int) -> int:
    """The number as the database takes it, 0, which is nobody's id, for those that SQLite can't hold."""
    return number if 0 < number < 2**63 else 0


def select_studies() -> Select[Any]:
    """Studies, each with its counts, its latest run's status and evaluation's time (see ``study_row``)."""
    evaluations = Evaluation.study_id == Study.id
    parts = SubsetEvaluation.study_id == Study.id
    same_c = (
        select(Evaluation.id)
        .where(evaluations, Evaluation.split == "val", Evaluation.c == SubsetEvaluation.c)
        .exists()
    )
    learned = LearnedEvaluation.run_id.in_(select(Run.id).where(Run.study_id == Study.id).scalar_subquery())
    learned_picks = LearnedPick.run_id.in_(select(Run.id).where(Run.study_id == Study.id).scalar_subquery())
    latest = select(Run.status).where(Run.study_id == Study.id).order_by(Run.id.desc()).limit(1)
    return select(
        Study,
        select(func.count(distinct(Evaluation.c)))
        .where(evaluations, Evaluation.split == "val")
        .scalar_subquery()
        + select(func.count(distinct(SubsetEvaluation.c))).where(parts, ~same_c).scalar_subquery(),
        select(func.count()).where(evaluations).scalar_subquery()
        + select(func.count()).where(parts).scalar_subquery()
        + select(func.count()).where(learned).scalar_subquery(),
        select(func.count()).where(Pick.study_id == Study.id).scalar_subquery()
        + select(func.count()).where(learned_picks).scalar_subquery(),
        latest.scalar_subquery(),
        select(func.max(Evaluation.created)).where(evaluations).scalar_subquery(),
        select(func.max(SubsetEvaluation.created)).where(parts).scalar_subquery(),
        select(func.max(LearnedEvaluation.created)).where(learned).scalar_subquery(),
    )


def study_row(
    study: Study,
    n_points: int,
    n_evaluations: int,
    n_picks: int,
    status: RunStatus | None,
    *changed: datetime | None,
) -> StudyRow:
    """One result of ``select_studies``."""
    return StudyRow(
        id=study.id,
        name=study.name,
        spec=StudySpec.from_dict(study.spec),
        sources=tuple(source_from_dict(source) for source in study.sources),
        created=study.created,
        n_points=n_points,
        n_evaluations=n_evaluations,
        n_picks=n_picks,
        status=status,
        changed=max((each for each in changed if each is not None), default=study.created),
    )


def select_runs() -> Select[Any]:
    """Runs, each with the number of its measurements and the seconds they took (see ``run_row``)."""
    n_evaluations: Any = 0
    seconds: Any = 0.0
    for table, is_val in (
        (Evaluation, Evaluation.split == "val"),
        (SubsetEvaluation, true()),
        (LearnedEvaluation, LearnedEvaluation.split == "val"),
    ):
        mine = (table.run_id == Run.id) & is_val
        n_evaluations += select(func.count()).where(mine).scalar_subquery()
        seconds += select(func.coalesce(func.sum(table.seconds), 0.0)).where(mine).scalar_subquery()
    training = TrainingStep.run_id == Run.id
    seconds += select(func.coalesce(func.sum(TrainingStep.seconds), 0.0)).where(training).scalar_subquery()
    return select(Run, n_evaluations, seconds)


def run_row(run: Run, n_evaluations: int, seconds: float) -> RunRow:
    """One result of ``select_runs``."""
    return RunRow(
        id=run.id,
        study_id=run.study_id,
        method=cast("MethodName", run.method),
        settings=RunSettings.from_dict(run.settings),
        status=cast("RunStatus", run.status),
        error=run.error,
        created=run.created,
        started=run.started,
        finished=run.finished,
        n_evaluations=n_evaluations,
        seconds=seconds,
    )


def pick_row(pick: Pick) -> PickRow:
    """A pick that no longer depends on its session."""
    return PickRow(
        id=pick.id,
        study_id=pick.study_id,
        c=pick.c,
        how=pick.how,
        name=pick.name,
        shortlisted=pick.shortlisted,
        exported=None if pick.exported is None else Path(pick.exported),
        created=pick.created,
    )


def learned_pick_row(pick: LearnedPick, study_id: int) -> LearnedPickRow:
    """A learned set's pick that no longer depends on its session."""
    return LearnedPickRow(
        id=pick.id,
        study_id=study_id,
        run_id=pick.run_id,
        gamma=pick.gamma,
        how=pick.how,
        name=pick.name,
        shortlisted=pick.shortlisted,
        exported=None if pick.exported is None else Path(pick.exported),
        created=pick.created,
    )


def source_to_dict(source: Source) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "role": source.role,
        "path": str(source.path),
        "sha256": source.sha256,
        "n_bytes": source.n_bytes,
    }


def source_from_dict(values: dict[str, Any]) -> Source:
    """The source that ``source_to_dict`` described."""
    return Source(values["role"], Path(values["path"]), values["sha256"], values["n_bytes"])
