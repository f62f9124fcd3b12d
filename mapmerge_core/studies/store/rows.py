"""What the store hands out: frozen rows that outlive the database session, for any thread to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.studies.config.run import RunSettings
    from mapmerge_core.studies.inputs.sources import Source
    from mapmerge_core.studies.config.study import StudySpec

RunStatus = Literal["queued", "running", "stopped", "interrupted", "done", "failed"]
Split = Literal["val", "test"]


@dataclass(frozen=True, eq=False)
class StudyRow:
    """A study.

    Attributes:
        sources: Its files as they were when it was created.
        n_points: Different c with a validation value.
        n_evaluations: Measurements, on either split.
        n_picks: Picks.
        status: The latest run's status, None before the first run.
        changed: Time (UTC) of the latest evaluation, else of its creation.
    """

    id: int
    name: str
    spec: StudySpec
    sources: tuple[Source, ...]
    created: datetime
    n_points: int
    n_evaluations: int
    n_picks: int
    status: RunStatus | None
    changed: datetime


@dataclass(frozen=True, eq=False)
class RunRow:
    """A run; times are UTC.

    Attributes:
        error: One sentence, where the run failed.
        n_evaluations: Measurements that this run made (others it found in the store). One that a later run
            makes on more images is the later run's.
        seconds: What those measurements took, and training.
    """

    id: int
    study_id: int
    method: MethodName
    settings: RunSettings
    status: RunStatus
    error: str | None
    created: datetime
    started: datetime | None
    finished: datetime | None
    n_evaluations: int
    seconds: float


@dataclass(frozen=True, eq=False)
class EvaluationRow:
    """One measurement on a whole split: ``value`` of ``task`` at ``c`` (read-only, length N).

    Attributes:
        correct: One bit per example, packed as ``np.packbits`` does.
        seconds: What measuring took.
    """

    id: int
    study_id: int
    run_id: int | None
    c: np.ndarray
    task: str
    split: Split
    value: float
    n_examples: int
    per_example: bytes
    seconds: float
    created: datetime


@dataclass(frozen=True, eq=False)
class SubsetEvaluationRow:
    """One measurement on a part of a validation split: ``value`` of ``task`` at ``c`` (read-only, length N).

    Attributes:
        run_id: The run that measured the latest of its examples.
        n_examples: How many were measured, the first ones of the split's ``nested_order``.
        n_total: How many the split has.
        per_example: One number for each of them in that order, see ``pack``.
        seconds: What measuring all of them took.
    """

    id: int
    study_id: int
    run_id: int | None
    c: np.ndarray
    task: str
    value: float
    n_examples: int
    n_total: int
    per_example: bytes
    seconds: float
    created: datetime


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured on a split at n different c, of each task the best there is.

    Attributes:
        C: Coefficients (``n x N``).
        Y: Values (``n x K``), NaN where a task hasn't been measured.
        S: Their standard errors as estimates of the whole split's values (``n x K``), 0 where that was
            measured, NaN where nothing was.
        n_examples: How many examples were measured (``n x K``), 0 where none were.
        whole: Whether these are the whole split (``n x K``).
    """

    C: np.ndarray
    Y: np.ndarray
    S: np.ndarray
    n_examples: np.ndarray
    whole: np.ndarray

    def on(self, images: int | None) -> np.ndarray:
        """The values (``n x K``) that so many examples tell, or more, else NaN.

        Args:
            images: How many at least, where the split has more; None for the whole split.
        """
        enough = self.whole if images is None else self.whole | (self.n_examples >= images)
        return np.where(enough, self.Y, np.nan)


@dataclass(frozen=True, eq=False)
class PickRow:
    """Coefficients ``c`` (read-only, length N) that a person chose.

    Attributes:
        how: {"kind": "preference", "weights": {task: weight}}, {"kind": "rule", "text": ...} or
            {"kind": "point"}, or {"kind": "compared", "name": ...} for a row of a comparison.
        shortlisted: Whether the person keeps it in sight.
        exported: The file that it was last exported to.
    """

    id: int
    study_id: int
    c: np.ndarray
    how: Mapping[str, Any]
    name: str
    shortlisted: bool
    exported: Path | None
    created: datetime


@dataclass(frozen=True, eq=False)
class LearnedPickRow:
    """A preference ``gamma`` (read-only, (K,)) whose model of a run's learned set a person chose.

    Attributes:
        how: {"kind": "preference"}, {"kind": "rule", "text": ...}, {"kind": "point"},
            {"kind": "unlabelled", "data": ...} or {"kind": "compared", "name": ...}.
        shortlisted: Whether the person keeps it in sight.
        exported: The file that it was last exported to.
    """

    id: int
    study_id: int
    run_id: int
    gamma: np.ndarray
    how: Mapping[str, Any]
    name: str
    shortlisted: bool
    exported: Path | None
    created: datetime


@dataclass(frozen=True, eq=False)
class BaselineRow:
    """A merge that no search chose.

    Attributes:
        name: Which one, see ``studies.baselines``.
        settings: What it was made with.
        c: Its coefficients (read-only, length N), where it is a c.
        layers: Layer-wise coefficients (read-only, ``L x N``), where it is merged so.
        evaluations: (model, task) pairs on the validation split that choosing it took.
        seconds: What making it took.
    """

    id: int
    study_id: int
    name: str
    settings: Mapping[str, Any]
    c: np.ndarray | None
    layers: np.ndarray | None
    evaluations: int
    seconds: float
    created: datetime
