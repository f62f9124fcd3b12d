"""What one run came to: its own points, whoever measured them, and the models that its method makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.search.fronts import non_dominated
from mapmerge_core.search.preferences import choose_by_preference
from mapmerge_core.settings import check_seed
from mapmerge_core.studies.analysis.analysis import fit, search_front
from mapmerge_core.studies.store import Measurements, Run, Store
from mapmerge_core.tasks.objective import maximize_of

if TYPE_CHECKING:
    from mapmerge_core.methods.base import Choice, Method
    from mapmerge_core.search.surrogates.spaces import SpaceSurrogates


@dataclass(frozen=True, eq=False)
class RunResult:
    """The models that a finished run offers, from its own points alone.

    Attributes:
        run: The run.
        method: Its method, which has been told all values.
        points: What it asked for, in its order, as it was measured; NaN for objectives that it didn't ask for.
        x: The models' points (``m x D``); one where the method leads to a single model.
        values: Their objectives on the validation split (``m x K``).
        is_measured: Whether the values were measured, or are the surrogates' predictions.
        choice: The single model that the method leads to; None where it leads to a front.
        surrogates: What the front was found on; None where there was no need for any.
        seconds: What measuring the points took, whenever that was.
    """

    run: Run
    method: Method
    points: Measurements
    x: np.ndarray
    values: np.ndarray
    is_measured: bool
    choice: Choice | None
    surrogates: SpaceSurrogates | None
    seconds: float

    @property
    def evaluations(self) -> int:
        """How many pairs of a point and an objective it rests on, whoever measured them."""
        return int(np.isfinite(self.points.Y).sum())

    def choose(self, weights: Sequence[float] | np.ndarray, maximize: Sequence[bool]) -> np.ndarray:
        """Return the point (D,) of the model that suits a preference (K weights) best.

        Raises:
            SearchError: The weights can't be used.
        """
        return np.asarray(self.x[choose_by_preference(self.values, weights, maximize=maximize)])


def run_result(store: Store, run_id: int, *, seed: int = 0) -> RunResult:
    """Let a finished run's method ask again for what it asked for, and answer from the store.

    This takes up to seconds the first time, and nothing after that: results are kept in memory.

    Args:
        store: Where the run is.
        run_id: The run.
        seed: Seed of the search for its front.

    Raises:
        StudyError: There is no such run, or it isn't finished, so that some of it hasn't been measured.
        SearchError: It has too few points for its surrogates.
        SettingError: The seed can't be used.
    """
    check_seed(seed)
    run = store.runs.get(run_id)
    if run.status != "done":
        raise StudyError(unfinished(run))
    # What was measured on some images may be refined.
    state = None if run.config.images is None else store.evaluations.fingerprint(run.study_id)
    return _run_result(store, run_id, run.created, seed, state)


@lru_cache(maxsize=64)
def _run_result(store: Store, run_id: int, created: datetime, seed: int, state: object) -> RunResult:
    del created, state  # they tell a run from an earlier one with its id, and from itself before it was refined
    run = store.runs.get(run_id)
    objectives = store.merges.config(run.study_id).objectives
    maximize = maximize_of(objectives)
    method, points = _replay(store, run)
    choice: Choice | None = None
    surrogates: SpaceSurrogates | None = None
    if method.is_front == "single":
        choice = method.chosen
        x, values = choice.x[None], choice.values[None]
    elif method.is_front == "measured":
        kept = non_dominated(points.Y, maximize)
        x, values = points.X[kept], points.Y[kept]
    else:
        surrogates = fit(method.space, points, run.config, objectives)
        front = search_front(surrogates, points, objectives, seed)
        x, values = front.x, front.predicted
    return RunResult(
        run=run,
        method=method,
        points=points,
        x=x + 0.0,  # -0 becomes 0, as the store has it
        values=values,
        is_measured=method.is_front == "measured",
        choice=choice,
        surrogates=surrogates,
        seconds=_seconds(store, run, points),
    )


def _replay(store: Store, run: Run) -> tuple[Method, Measurements]:
    """Return a run's method, told everything, and what it asked for."""
    config = store.merges.config(run.study_id)
    space, table = store.merges.get(run.merge_id).space, store.evaluations.table(run.merge_id)
    method = run.config.make_method(config)
    asked: dict[int, np.ndarray] = {}  # by row of the table, which objectives
    while (batch := method.ask()) is not None:
        columns = list(batch.objectives)
        rows = [_row(table.X, x, method.tolerance) for x in space.points(batch.X)]
        known = [row for row in rows if row is not None]
        values = table.Y[np.ix_(known, columns)]
        if len(known) < len(rows) or np.isnan(values).any():
            raise StudyError(_lacking(run, method))
        for row in known:
            asked.setdefault(row, np.zeros(len(config.objectives), dtype=bool))[columns] = True
        method.tell(batch, values)
    known, wanted = list(asked), np.array(list(asked.values()))
    return method, Measurements(
        table.X[known],
        np.where(wanted, table.Y[known], np.nan),
        np.where(wanted, table.S[known], np.nan),
        np.where(wanted, table.errors[known], np.nan),
        np.where(wanted, table.n_examples[known], 0),
        table.is_whole[known] & wanted,
    )


def _row(X: np.ndarray, x: np.ndarray, tolerance: float) -> int | None:
    """Return which row of ``X`` (``n x D``) is the point ``x`` (D,), if one is."""
    if len(X) == 0:
        return None
    gaps = np.abs(X - x).max(axis=1)
    return int(gaps.argmin()) if gaps.min() <= tolerance else None


def _lacking(run: Run, method: Method) -> str:
    """Return why a finished run asks for what the store hasn't."""
    if run.config.images is not None:
        return (
            f"What run {run.id} measured has been refined on more images since, by which its {method.title} "
            "would choose other points: look at the later run."
        )
    return (
        f"Run {run.id} was made by another version of mapmerge, whose {method.title} chose other points: start a "
        "new run to compare it."
    )


def _seconds(store: Store, run: Run, points: Measurements) -> float:
    """Return what the run's own points took, whoever measured them."""
    keys = [objective.key for objective in store.merges.config(run.study_id).objectives]
    used = {
        (x.tobytes(), keys[k])
        for x, values in zip(points.X, points.Y, strict=True)
        for k in np.flatnonzero(np.isfinite(values))
    }
    rows = store.evaluations.rows(run.merge_id)
    return sum(row.seconds for row in rows if (row.x.tobytes(), row.objective) in used)


def unfinished(run: Run) -> str:
    """Return why a run that isn't done has no result, as a sentence."""
    if run.status == "failed":
        return f"Run {run.id} failed: {run.error}"
    if run.status in ("queued", "running"):
        return f"Run {run.id} is still going on: look at it once it is done."
    return f"Run {run.id} hasn't measured everything yet: resume it first."
