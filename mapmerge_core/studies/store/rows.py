"""What the store hands out: frozen rows that outlive the database's connection, for any thread to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mapmerge_core.errors import MapMergeError
from mapmerge_core.registries import MERGES
from mapmerge_core.studies.inputs.kept import KeptStudy
from mapmerge_core.tasks.outcome import unpack

if TYPE_CHECKING:
    from mapmerge_core.merges.base import Merge
    from mapmerge_core.search.spaces import Space
    from mapmerge_core.studies.config.run import RunConfig

RunStatus = Literal["queued", "running", "stopped", "interrupted", "done", "failed"]
ACTIVE: tuple[RunStatus, ...] = ("queued", "running")
Split = Literal["val", "test"]


def point_key(merge_id: int, x: np.ndarray) -> tuple[int, bytes]:
    """Return what two picks, rows or evaluations share if, and only if, they are one model.

    Args:
        merge_id: The merge.
        x: A point that its space has made canonical (`Space.point`).
    """
    return merge_id, x.tobytes()


@dataclass(frozen=True, eq=False)
class Study(KeptStudy):
    """A study with what has been done in it.

    Attributes:
        n_points: Different models (a merge and an x) with a value on the validation split.
        n_evaluations: Evaluations, on either split.
        n_picks: Picks.
        status: The latest run's status, None before the first run.
        changed: Time (UTC) of the latest evaluation, or of the study's creation.
    """

    created: datetime
    n_points: int
    n_evaluations: int
    n_picks: int
    status: RunStatus | None
    changed: datetime


@dataclass(frozen=True, eq=False)
class StoredMerge:
    """A merge of a study.

    Attributes:
        name: Its name in the registry.
        settings: All of its settings, as plain values.
        space: Where its points lie.
        is_prepared: Whether it has been prepared, so that its state's file is there if it needs one.
        seconds: What preparing it took.
        evaluations: Evaluations that preparing it took.
    """

    id: int
    study_id: int
    name: str
    settings: Mapping[str, Any]
    space: Space
    is_prepared: bool
    seconds: float
    evaluations: int
    created: datetime

    def make(self) -> Merge:
        """Return the merge itself.

        Raises:
            RegistryError: It came with another package, which isn't installed.
            SettingError: Its settings are those of another version.
        """
        return MERGES[self.name](dict(self.settings))

    @property
    def title(self) -> str:
        """What people call it; its name where the package that brought it isn't installed."""
        try:
            return self.make().label
        except MapMergeError:
            return self.name

    @property
    def is_usable(self) -> bool:
        """Whether its models can be measured without a long preparation."""
        try:
            return self.is_prepared or not self.make().has_state
        except MapMergeError:  # the package that brought it isn't installed
            return False


@dataclass(frozen=True, eq=False)
class Run:
    """A run; times are UTC.

    Attributes:
        error: One sentence, where the run failed.
        n_evaluations: Evaluations on the validation split that this run made (others it found in the store).
            One that a later run makes on more examples is the later run's.
        seconds: What those evaluations took.
    """

    id: int
    study_id: int
    merge_id: int
    config: RunConfig
    status: RunStatus
    error: str | None
    created: datetime
    started: datetime | None
    finished: datetime | None
    n_evaluations: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The value of one objective of the model at ``x`` (read-only, length D).

    Attributes:
        run_id: The run that measured it, if one did.
        objective: The objective's key.
        standard_error: See `Outcome`.
        n_examples: How many examples were measured.
        n_total: How many the split has, where only some were measured; None where all were.
        per_example: One number for each example, see `pack`.
        seconds: What measuring all of them took.
    """

    id: int
    merge_id: int
    run_id: int | None
    x: np.ndarray
    objective: str
    split: Split
    value: float
    standard_error: float | None
    n_examples: int
    n_total: int | None
    seconds: float
    created: datetime
    per_example: bytes

    @property
    def is_whole(self) -> bool:
        """Whether the whole split was measured."""
        return self.n_total is None

    @property
    def values(self) -> np.ndarray:
        """An array of each example's number (n_examples,)."""
        return unpack(self.per_example, self.n_examples)


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured on a split at n points of a merge; columns are the study's K objectives.

    Attributes:
        X: The points (``n x D``), in the order in which they were measured first.
        Y: Their values (``n x K``), NaN where nothing was measured.
        S: Standard errors of the values as estimates of the whole split's (``n x K``): 0 where that was
            measured, NaN where nothing was.
        errors: Standard errors of the values of whole splits as estimates of all data like them (``n x K``),
            NaN where they aren't known.
        n_examples: How many examples were measured (``n x K``).
        is_whole: Whether these are the whole split (``n x K``).
    """

    X: np.ndarray
    Y: np.ndarray
    S: np.ndarray
    errors: np.ndarray
    n_examples: np.ndarray
    is_whole: np.ndarray

    @classmethod
    def empty(cls, n: int, n_objectives: int) -> Measurements:
        """Return what is known of a merge with ``n`` coordinates before anything was measured."""
        nothing = np.empty((0, n_objectives))
        counts = nothing.astype(np.int64)
        return cls(np.empty((0, n)), nothing, nothing, nothing, counts, counts.astype(bool))

    def on(self, images: int | None) -> np.ndarray:
        """Return the values (``n x K``) measured on at least ``images`` examples, NaN elsewhere.

        Args:
            images: How many at least, where the split has more; None for whole splits alone.
        """
        enough = self.is_whole if images is None else self.is_whole | (self.n_examples >= images)
        return np.where(enough, self.Y, np.nan)

    def at(self, x: np.ndarray) -> np.ndarray:
        """Return the values (K,) measured at a point, NaN where nothing was."""
        rows = np.flatnonzero((x == self.X).all(axis=1))
        return self.Y[rows[0]] if rows.size else np.full(self.Y.shape[1], np.nan)


@dataclass(frozen=True, eq=False)
class Pick:
    """A model, ``x`` (read-only, length D) of a merge, that a person chose.

    Attributes:
        how: {"kind": "preference", "weights": {objective: weight}}, {"kind": "rule", "text": ...},
            {"kind": "point"}, {"kind": "unlabelled", "data": ...}, or {"kind": "compared", "name": ...} for
            a row of a comparison.
        notes: What the person wrote about it.
        shortlisted: Whether the person keeps it in sight.
        exported: The file that it was last exported to.
    """

    id: int
    study_id: int
    merge_id: int
    x: np.ndarray
    how: Mapping[str, Any]
    name: str
    notes: str
    shortlisted: bool
    exported: Path | None
    created: datetime

    @property
    def key(self) -> tuple[int, bytes]:
        """What all picks of this model share, see `point_key`."""
        return point_key(self.merge_id, self.x)
