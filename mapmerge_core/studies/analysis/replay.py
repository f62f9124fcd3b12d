"""What one run found: its own points, whoever measured them, and the front that its method makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import TITLES
from mapmerge_core.methods.nested import NestedMAP
from mapmerge_core.search.fronts import find_front, non_dominated
from mapmerge_core.search.preferences import choose_by_preference
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate, fit_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mapmerge_core.methods.base import Method
    from mapmerge_core.studies.store.rows import RunRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.metric import Metric


SAME = 1e-6
"""Coefficients of nested MAP that differ by no more are one point: a pair's choice, and with it what the next
round asks, ends in other digits on another processor (by 1e-8 between the kernels of one BLAS)."""


@dataclass(frozen=True, eq=False)
class Replay:
    """A finished run, replayed from the store.

    Attributes:
        run: The run.
        method: The method, told everything.
        C: The coefficients that it asked for (``n x N``), in its order, as they were measured.
        Y: Their validation values (``n x K``), NaN for tasks that it didn't ask for.
        S: The values' standard errors (``n x K``), see ``Measurements``.
    """

    run: RunRow
    method: Method
    C: np.ndarray
    Y: np.ndarray
    S: np.ndarray

    @property
    def n_evaluations(self) -> int:
        """Pairs of coefficients and task that the run rests on, whoever measured them."""
        return int(np.isfinite(self.Y).sum())


@dataclass(frozen=True, eq=False)
class RunFront:
    """The models that a run offers.

    Attributes:
        c: Coefficients (``m x N``); of nested MAP the one model that it leads to.
        values: Metrics on the validation split (``m x K``).
        measured: Whether the values were measured (direct search) or are the surrogates' predictions.
        surrogates: One for each task, over all N coefficients; None where the method has none.
    """

    c: np.ndarray
    values: np.ndarray
    measured: bool
    surrogates: tuple[QuadraticSurrogate, ...] | None

    def choose(self, weights: Sequence[float] | np.ndarray, maximize: Sequence[bool]) -> np.ndarray:
        """The coefficients (N,) of the model that suits a preference (K weights) best.

        Raises:
            SearchError: for weights that can't be used.
        """
        return np.asarray(self.c[choose_by_preference(self.values, weights, maximize=maximize)])


def replay(store: Store, run_id: int) -> Replay:
    """Lets a run's method ask again for what it asked for, answering from the store.

    Raises:
        StudyError: where the run isn't finished, so that some of it hasn't been measured, or it learned a set
            of models, which have no coefficients.
    """
    run = store.run(run_id)
    if run.method == "pareto_merging":
        raise StudyError(
            f"The models that run {run_id} learned have no coefficients: choose one by its preference, on "
            f"Trade-offs or with `pick --learned {run_id}`."
        )
    study = store.study(run.study_id)
    known = store.measurements(study.id)
    known_C, known_Y, nothing = known.C, known.Y, np.full(len(study.spec.tasks), np.nan)
    rows = {c.tobytes(): row for row, c in enumerate(known_C)}
    method = run.settings.make_method(run.method, study.spec)
    values: dict[bytes, np.ndarray] = {}
    errors: dict[bytes, np.ndarray] = {}
    points: list[np.ndarray] = []
    while (batch := method.ask()) is not None:
        told = np.full((len(batch.C), len(batch.tasks)), np.nan)
        for number, asked in enumerate(batch.C + 0.0):  # −0.0 becomes 0.0, as the store writes it
            row = rows.get(asked.tobytes())
            if row is None and run.method == "nested":
                row = _nearest(known_C, asked)
            if row is not None:
                told[number] = known_Y[row, batch.tasks]
            c = asked if row is None else known_C[row]
            key = c.tobytes()
            if key not in values:
                values[key], errors[key] = nothing.copy(), nothing if row is None else known.S[row]
                points.append(c)
            values[key][list(batch.tasks)] = told[number]
        if np.isnan(told).any():
            if run.status == "done" and run.settings.images is not None:
                raise StudyError(
                    f"What run {run_id} measured has been refined on more images since, by which its "
                    f"{TITLES[run.method]} would choose other points: look at the later run."
                )
            if run.status == "done":
                raise StudyError(
                    f"Run {run_id} was made by another version of mapmerge, whose {TITLES[run.method]} chose "
                    "other points: start a new run to compare it."
                )
            raise StudyError(f"Run {run_id} hasn't measured everything yet: resume it first.")
        method.tell(batch, told)
    Y, S = (np.array([table[c.tobytes()] for c in points]) for table in (values, errors))
    return Replay(run, method, np.array(points), Y, S)


def _nearest(C: np.ndarray, c: np.ndarray) -> int | None:
    """Which row of ``C`` (``n x N``) is the same point as ``c`` (N,), if one is."""
    if len(C) == 0:
        return None
    gaps = np.abs(C - c).max(axis=1)
    return int(gaps.argmin()) if gaps.min() <= SAME else None


def run_front(store: Store, run_id: int, *, seed: int = 0) -> RunFront:
    """The front of a finished run, from its own points alone.

    Direct search keeps what nothing measured dominates; MAP and Bayesian MAP fit surrogates to their points
    inside the box and search it; nested MAP leads to one model.

    Raises:
        StudyError: where the run isn't finished, or it learned a set of models.
        SearchError: where it has too few points for its surrogates.
    """
    return front_of(replay(store, run_id), store.study(store.run(run_id).study_id).spec.metrics, seed=seed)


def front_of(found: Replay, metrics: Sequence[Metric], *, seed: int = 0) -> RunFront:
    """The front of a replayed run, see ``run_front``."""
    settings = found.run.settings
    if isinstance(found.method, NestedMAP):
        return RunFront(found.method.c[None], found.method.predicted[None], measured=False, surrogates=None)
    maximize = [metric.maximize for metric in metrics]
    if found.run.method == "direct":
        kept = non_dominated(found.Y, maximize)
        return RunFront(found.C[kept], found.Y[kept], measured=True, surrogates=None)
    inside = ((settings.low <= found.C) & (settings.high >= found.C)).all(axis=1)
    C, Y = found.C[inside], found.Y[inside]
    surrogates = fit_all(C, Y, settings.links(metrics), settings.loss, found.S[inside])
    front = find_front(surrogates, settings.low, settings.high, maximize=maximize, seed=seed, include=C)
    return RunFront(front.c, front.predicted, measured=False, surrogates=surrogates)
