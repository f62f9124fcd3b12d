"""The store's baselines: how each was made and what was measured of it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.store.database import Database
from mapmerge_core.studies.store.queries import as_id
from mapmerge_core.studies.store.rows import BaselineRow
from mapmerge_core.studies.store.tables import Baseline, BaselineEvaluation, Study

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from mapmerge_core.studies.store.rows import Split
    from mapmerge_core.tasks.metric import Outcome


# Writing a model takes minutes at most: an unfinished one this old is what a killed process left.
_LEFT_SECONDS = 24 * 60 * 60


class BaselineStore(Database):
    """The part of the store that keeps baselines; use it through ``Store``."""

    folder: Path

    def add_baseline(
        self,
        study_id: int,
        name: str,
        settings: Mapping[str, Any],
        *,
        c: np.ndarray | None = None,
        layers: np.ndarray | None = None,
        file: Path | None = None,
        evaluations: int = 0,
        seconds: float = 0.0,
    ) -> BaselineRow:
        """Keeps a baseline; where the study has one with this name and these settings, that one stays.

        Args:
            study_id: The study.
            name: Which baseline.
            settings: What it is made with, plain values for JSON.
            c: Its coefficients (N,), where it is a c.
            layers: Its layer-wise coefficients (``L x N``), where it has some.
            file: Its model, where it is neither; moved to ``baseline_file`` as the baseline is kept.
            evaluations: (model, task) pairs that choosing it took.
            seconds: What making it took.
        """
        statement = (
            insert(Baseline)
            .values(
                study_id=study_id,
                name=name,
                settings=_as_text(settings),
                c=c,
                layers=layers,
                evaluations=evaluations,
                seconds=seconds,
                created=datetime.now(UTC),
            )
            .on_conflict_do_nothing(index_elements=["study_id", "name", "settings"])
            .returning(Baseline.id)
        )
        with self._write() as session:
            added = session.scalar(statement)
            if added is not None and file is not None:
                file.replace(self.baseline_file(added))
        return cast("BaselineRow", self.find_baseline(study_id, name, settings))

    def find_baseline(self, study_id: int, name: str, settings: Mapping[str, Any]) -> BaselineRow | None:
        """The study's baseline with this name and these settings, if it has been made."""
        query = select(Baseline).where(
            Baseline.study_id == as_id(study_id),
            Baseline.name == name,
            Baseline.settings == _as_text(settings),
        )
        return next(iter(self._select(query)), None)

    def baselines(self, study_id: int) -> list[BaselineRow]:
        """A study's baselines, oldest first."""
        return self._select(
            select(Baseline).where(Baseline.study_id == as_id(study_id)).order_by(Baseline.id)
        )

    def baseline(self, baseline_id: int) -> BaselineRow:
        """One baseline.

        Raises:
            StudyError: where there is none with this id.
        """
        found = self._select(select(Baseline).where(Baseline.id == as_id(baseline_id)))
        if not found:
            raise StudyError(f"There is no baseline {baseline_id}: it may have been deleted.")
        return found[0]

    def delete_baseline(self, baseline_id: int) -> None:
        """Deletes a baseline with its measurements and its file; those of a c are the study's, and stay."""
        with self._write() as session:
            session.execute(delete(Baseline).where(Baseline.id == as_id(baseline_id)))
        self.baseline_file(baseline_id).unlink(missing_ok=True)

    def baseline_file(self, baseline_id: int) -> Path:
        """Where a baseline's model lies, if it is neither coefficients nor made again from settings."""
        return self._baselines_folder / f"baseline-{baseline_id}.safetensors"

    def new_baseline_file(self) -> Path:
        """Where to write a model for ``add_baseline``; removes what processes killed at it left long ago."""
        for left in self._baselines_folder.glob(".*.safetensors"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                    left.unlink()
        return self._baselines_folder / f".{uuid4().hex}.safetensors"

    @property
    def _baselines_folder(self) -> Path:
        if self.path.parent == self.folder and self.path.name == "mapmerge.db":
            return self.folder / "baselines"
        # Other databases may share the data folder, and each counts its baselines from 1.
        return self.path.with_name(f"{self.path.name}-baselines")

    def add_baseline_evaluation(self, baseline_id: int, task: str, split: Split, outcome: Outcome) -> bool:
        """Commits a measurement; returns False and changes nothing where it was measured before."""
        statement = (
            insert(BaselineEvaluation)
            .values(
                baseline_id=baseline_id,
                task=task,
                split=split,
                value=outcome.value,
                n_examples=outcome.n_examples,
                per_example=outcome.per_example,
                seconds=outcome.seconds,
                created=datetime.now(UTC),
            )
            .on_conflict_do_nothing(index_elements=["baseline_id", "task", "split"])
            .returning(BaselineEvaluation.id)
        )
        with self._write() as session:
            return session.scalar(statement) is not None

    def baseline_measured(self, baseline_id: int, split: Split) -> dict[str, float]:
        """Values measured of a baseline that is no c, by task."""
        query = select(BaselineEvaluation.task, BaselineEvaluation.value).where(
            BaselineEvaluation.baseline_id == as_id(baseline_id), BaselineEvaluation.split == split
        )
        with self._read() as session:
            return {row.task: row.value for row in session.execute(query)}

    def _select(self, query: Any) -> list[BaselineRow]:  # noqa: ANN401 - SQLAlchemy's own type is longer
        with self._read() as session:
            rows = session.execute(
                query.join(Study, Study.id == Baseline.study_id).add_columns(Study.spec)
            ).all()
        return [_baseline_row(baseline, len(spec["tasks"])) for baseline, spec in rows]


def _as_text(settings: Mapping[str, Any]) -> str:
    """Settings as the database compares them."""
    return json.dumps(settings, sort_keys=True)


def _baseline_row(baseline: Baseline, n_vectors: int) -> BaselineRow:
    return BaselineRow(
        id=baseline.id,
        study_id=baseline.study_id,
        name=baseline.name,
        settings=json.loads(baseline.settings),
        c=baseline.c,
        layers=None if baseline.layers is None else baseline.layers.reshape(-1, n_vectors),
        evaluations=baseline.evaluations,
        seconds=baseline.seconds,
        created=baseline.created,
    )
