"""The store's evaluations: each on the disk the moment it is added, once for a (merge, x, objective, split)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from sqlalchemy import Row, func, select

from mapmerge_core.errors import PointError, StudyError
from mapmerge_core.registries import METHODS
from mapmerge_core.search.spaces import Box, Product, Space
from mapmerge_core.studies.config.run import RunConfig
from mapmerge_core.studies.store.database import Database, as_id, insert_or_replace
from mapmerge_core.studies.store.rows import Evaluation, Measurements, Split
from mapmerge_core.studies.store.tables import evaluations, merges, runs

if TYPE_CHECKING:
    from mapmerge_core.studies.store.merges import Merges
    from mapmerge_core.tasks.outcome import Outcome

# Built once: writing it out takes longer than running it, and the next evaluation waits.
_ADD = insert_or_replace(
    evaluations,
    ["merge_id", "x", "objective", "split"],
    # What is known of a part of a split gives way to more examples, or to the whole split.
    when=lambda new: (
        evaluations.c.n_total.is_not(None) & (new.n_total.is_(None) | (new.n_examples > evaluations.c.n_examples))
    ),
).returning(evaluations.c.id)

_OF_STUDY = evaluations.c.merge_id == merges.c.id


class Evaluations:
    """Evaluations of models: a merge at an x."""

    def __init__(self, database: Database, merges: Merges) -> None:
        self._database, self._merges = database, merges
        # By merge: how long its x are, and the study's objectives. These never change.
        self._shapes: dict[int, tuple[int, list[str]]] = {}

    def add(
        self, merge_id: int, x: np.ndarray, objective: str, split: Split, outcome: Outcome, *, run_id: int | None = None
    ) -> bool:
        """Commit an evaluation; return False and change nothing where as much was measured before.

        One of a part of the validation split takes the place of one of fewer examples, and one of the whole
        split that of any part.

        Args:
            merge_id: The merge.
            x: A point that the merge's space has made canonical.
            objective: The objective's key.
            split: "val" or "test".
            outcome: What was measured.
            run_id: The run that counts it as its own.

        Raises:
            PointError: ``x`` isn't D finite numbers.
            StudyError: There is no such merge, objective or split; a part of the test split.
        """
        point = self._check(merge_id, x, objective)
        if split not in get_args(Split):
            raise StudyError(f"The split '{split}' is unknown: use 'val' or 'test'.")
        if split == "test" and outcome.n_total is not None:
            raise StudyError("The test split is measured whole, so that models compare: measure the rest.")
        values = {
            "merge_id": merge_id,
            "run_id": run_id,
            "x": point,
            "objective": objective,
            "split": split,
            "value": outcome.value,
            "standard_error": outcome.standard_error,
            "n_examples": outcome.n_examples,
            "n_total": outcome.n_total,
            "per_example": outcome.per_example,
            "seconds": outcome.seconds,
            "created": datetime.now(UTC),
        }
        with self._database.write() as connection:
            return connection.scalar(_ADD, values) is not None

    def measured(self, merge_id: int, x: np.ndarray, split: Split) -> dict[str, float]:
        """Return the values measured at a point on a whole split, by objective.

        Raises:
            PointError: ``x`` isn't D finite numbers.
            StudyError: There is no such merge.
        """
        rows = self._at(merge_id, x, split)
        return {row.objective: row.value for row in rows if row.is_whole}

    def partial(self, merge_id: int, x: np.ndarray) -> dict[str, Evaluation]:
        """Return what was measured at a point on a part of the validation split alone, by objective.

        Raises:
            PointError: ``x`` isn't D finite numbers.
            StudyError: There is no such merge.
        """
        return {row.objective: row for row in self._at(merge_id, x, "val") if not row.is_whole}

    def rows(self, merge_id: int, split: Split = "val") -> list[Evaluation]:
        """Return a merge's evaluations on a split, whole or part, in the order of measuring first."""
        return self._select((evaluations.c.merge_id == as_id(merge_id)) & (evaluations.c.split == split))

    def table(self, merge_id: int, split: Split = "val") -> Measurements:
        """Return a merge's evaluations on a split as arrays.

        Raises:
            StudyError: There is no such merge.
        """
        n, objectives = self._shape(merge_id)
        with self._database.read() as connection:
            rows = connection.execute(_cells(evaluations.c.merge_id == merge_id, split)).all()
        return _measurements(rows, n, objectives)

    def tables(self, study_id: int, split: Split = "val") -> dict[int, Measurements]:
        """Return `table` of each of a study's merges by id, read at once; without those never measured."""
        query = _cells(merges.c.study_id == as_id(study_id), split).join(merges, _OF_STUDY)
        by_merge: dict[int, list[Row[Any]]] = {}
        with self._database.read() as connection:
            for row in connection.execute(query):
                by_merge.setdefault(row.merge_id, []).append(row)
        return {merge_id: _measurements(rows, *self._shape(merge_id)) for merge_id, rows in by_merge.items()}

    def fingerprint(self, study_id: int) -> tuple[int, int, int]:
        """Return three numbers that change whenever something is measured on a validation split."""
        query = select(
            func.count(),
            func.coalesce(func.max(evaluations.c.id), 0),
            # A part that grows keeps its id.
            func.coalesce(func.sum(evaluations.c.n_examples), 0) + func.count().filter(evaluations.c.n_total.is_(None)),
        )
        query = query.join_from(evaluations, merges, _OF_STUDY)
        query = query.where(merges.c.study_id == as_id(study_id), evaluations.c.split == "val")
        with self._database.read() as connection:
            count, latest, size = connection.execute(query).one()
        return int(count), int(latest), int(size)

    def regions(self, study_id: int) -> dict[int, Space]:
        """Return the part of each merge's space that its runs really sampled, by merge id.

        A run counts once it has measured a point that isn't one of the space's anchors, which lie where they
        lie whatever the run's box is, and if its method leads to more than a single model: one that follows a
        path says nothing about a whole box. Of boxes it is the smallest that holds them all; the whole space
        of a merge that no run sampled.
        """
        config = self._merges.config(study_id)
        spaces = {merge.id: merge.space for merge in self._merges.all(study_id)}
        anchors = {_bytes(x) for space in spaces.values() for x in space.anchors}
        sampled = (
            select(evaluations.c.id)
            .where(
                evaluations.c.run_id == runs.c.id, evaluations.c.split == "val", evaluations.c.x.not_in(sorted(anchors))
            )
            .exists()
        )
        query = select(runs.c.merge_id, runs.c.config).where(runs.c.study_id == as_id(study_id), sampled)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        sampled_spaces: dict[int, Space] = {}
        for merge_id, values in rows:
            run = RunConfig.from_dict(values)
            if METHODS[run.method].is_front != "single":
                space = run.space(config)
                sampled_spaces[merge_id] = _hull(sampled_spaces.get(merge_id, space), space)
        return spaces | sampled_spaces

    def _at(self, merge_id: int, x: np.ndarray, split: Split) -> list[Evaluation]:
        point = self._check(merge_id, x)
        return self._select(
            (evaluations.c.merge_id == merge_id) & (evaluations.c.x == point) & (evaluations.c.split == split)
        )

    def _select(self, condition: Any) -> list[Evaluation]:  # noqa: ANN401 - an SQL expression
        query = select(evaluations).where(condition).order_by(evaluations.c.id)
        with self._database.read() as connection:
            return [
                Evaluation(**row._asdict() | {"x": np.frombuffer(row.x, "<f8")}) for row in connection.execute(query)
            ]

    def _check(self, merge_id: int, x: np.ndarray, objective: str | None = None) -> bytes:
        """Return a point as the database holds it, once it and the objective are the merge's."""
        n, objectives = self._shape(merge_id)
        if objective is not None and objective not in objectives:
            raise StudyError(f"The study has no objective '{objective}': it has {', '.join(objectives)}.")
        x = np.asarray(x, dtype=np.float64)
        if x.shape != (n,) or not np.isfinite(x).all():
            raise PointError(f"A point of this merge is {n} finite numbers, not {x.tolist()}.")
        return _bytes(x)

    def _shape(self, merge_id: int) -> tuple[int, list[str]]:
        if merge_id not in self._shapes:
            merge = self._merges.get(merge_id)
            objectives = self._merges.config(merge.study_id).objectives
            self._shapes[merge_id] = merge.space.n, [objective.key for objective in objectives]
        return self._shapes[merge_id]


def _hull(one: Space, other: Space) -> Space:
    """Return the smallest space that holds two parts of a merge's space."""
    if isinstance(one, Box) and isinstance(other, Box):
        return Box(one.names, np.minimum(one.low, other.low), np.maximum(one.high, other.high), one.default)
    if isinstance(one, Product) and isinstance(other, Product):
        return Product([_hull(*parts) for parts in zip(one.parts, other.parts, strict=True)])
    return one


def _bytes(x: np.ndarray) -> bytes:
    return (x.astype("<f8") + 0.0).tobytes()  # −0 becomes 0


def _cells(condition: Any, split: Split) -> Any:  # noqa: ANN401 - SQL expressions
    names = ("merge_id", "x", "objective", "value", "standard_error", "n_examples", "n_total")
    query = select(*[evaluations.c[name] for name in names])
    return query.where(condition, evaluations.c.split == split).order_by(evaluations.c.id)


def _measurements(rows: Sequence[Row[Any]], n: int, objectives: Sequence[str]) -> Measurements:
    columns = {key: k for k, key in enumerate(objectives)}
    points: dict[bytes, int] = {}
    at = (
        np.array([points.setdefault(row.x, len(points)) for row in rows], dtype=np.intp),
        np.array([columns[row.objective] for row in rows], dtype=np.intp),
    )
    shape = len(points), len(objectives)
    Y, S, errors = (np.full(shape, np.nan) for _ in range(3))
    n_examples, is_whole = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    Y[at] = [row.value for row in rows]
    S[at] = [0.0 if row.n_total is None else row.standard_error or 0.0 for row in rows]
    errors[at] = [np.nan if row.n_total or row.standard_error is None else row.standard_error for row in rows]
    n_examples[at] = [row.n_examples for row in rows]
    is_whole[at] = [row.n_total is None for row in rows]
    X = np.frombuffer(b"".join(points), "<f8").reshape(len(points), n)
    return Measurements(X, Y, S, errors, n_examples, is_whole)
