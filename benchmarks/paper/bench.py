"""What every table works with: a store of evaluations, which are measured where they are missing."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.methods.direct import DirectSearch
from mapmerge_core.methods.map import MAP
from mapmerge_core.search.designs import make_design
from mapmerge_core.search.fronts import Front, find_front
from mapmerge_core.search.surrogates.quadratic import fit_all
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.measuring import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.paper.models import Models
    from mapmerge_core.search.links import Array
    from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store.rows import Split, StudyRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

EVERY = 60.0
"""Seconds between two lines of progress where standard error is no terminal."""


@dataclass
class Counter:
    """Evaluations done of those that the whole table takes at most, stored ones included.

    Attributes:
        total: All of them.
        report: Shows it; lines on standard error if None.
    """

    total: int
    report: Progress | None
    before: int = 0
    _start: tuple[float, int] | None = None
    _last: float = 0.0

    def part(self, size: int) -> Progress:
        """Progress of something that is worth ``size`` evaluations, whatever it counts itself."""
        return lambda done, total: self.show(size * done // max(total, 1))

    def advance(self, size: int) -> None:
        """``size`` evaluations are done with."""
        self.before += size
        self.show(0)

    def show(self, done: int) -> None:
        """``done`` more than ``before`` are there now."""
        done = min(self.before + done, self.total)
        if self.report:
            self.report(done, self.total)
            return
        now = time.monotonic()
        if now - self._last < EVERY and done < self.total:
            return
        if self._start is None:
            self._start = now, done
        self._last = now
        seconds, gained = now - self._start[0], done - self._start[1]
        left = f", {seconds / gained * (self.total - done) / 60:.0f} min left" if gained else ""
        sys.stderr.write(f"{done} of {self.total} evaluations{left}\n")
        sys.stderr.flush()


@dataclass(frozen=True)
class Bench:
    """A table's surroundings.

    Attributes:
        models: What is merged.
        store: Where evaluations are.
        counter: What is told about progress.
        device: Where missing evaluations are made.
        sample: The most points of a front that are measured.
        thresholds: Shares of the single-task models' metrics that rules ask for; None for the table's own.
        map_points: MAP's budget; None for the paper's.
        direct_points: Direct search's budget; None for the paper's.
    """

    models: Models
    store: Store
    counter: Counter
    device: str = "auto"
    sample: int = 100
    thresholds: tuple[float, float] | None = None
    map_points: int | None = None
    direct_points: int | None = None
    _cache: EvaluatorCache = field(default_factory=EvaluatorCache)

    def study(self, names: Sequence[str]) -> StudyRow:
        """The store's study of these tasks, which is made where there is none."""
        spec = self.models.subset(names)
        for study in self.store.studies():
            if study.spec == spec:
                return study
        return self.store.create_study(None, spec)

    def evaluator(self, study: StudyRow) -> Evaluator:
        """The study's evaluator; the last one used is kept."""
        return self._cache.get(study, self.device)

    def budget(self, n_tasks: int) -> int:
        """MAP's points."""
        return self.map_points or MAP.default_points(n_tasks)

    def direct_budget(self, n_tasks: int) -> int:
        """Direct search's points."""
        return self.direct_points or DirectSearch.default_points(n_tasks)

    def design(self, n_tasks: int, points: int, seed: int) -> Array:
        """The first points (``points x N``) of a uniform sequence that all methods with the seed share."""
        return make_design("uniform", points, n_tasks, high=self.models.upper(n_tasks), seed=seed)

    def measure(
        self, study: StudyRow, C: Array, split: Split = "val", tasks: Sequence[str] | None = None
    ) -> Array:
        """Metrics (``m x K``) of the rows of ``C``; what the store lacks is measured, and kept at once.

        Rows that repeat are measured once. Models are read only where something is missing.
        """
        names = study.spec.task_names
        columns = [names.index(task) for task in tasks or names]
        known_C, known_Y = self.store.table(study.id, split)
        known = {c.tobytes(): row for c, row in zip(known_C, known_Y, strict=True)}
        nothing = np.full(len(names), np.nan)
        C = C + 0.0  # turns -0 into 0, as the store writes it
        values = np.array([known.get(c.tobytes(), nothing) for c in C])[:, columns]
        lacking = np.isnan(values).any(axis=1)
        if lacking.any():
            before = int(np.isfinite(values).sum())

            def report(done: int, _: int) -> None:
                self.counter.show(before + done)

            wanted, place = np.unique(C[lacking], axis=0, return_inverse=True)
            evaluator = self.evaluator(study)
            found = measure(self.store, study, evaluator, wanted, tasks=tasks, split=split, progress=report)
            values[lacking] = found[place.reshape(-1)]
        self.counter.advance(values.size)
        return values

    def fit(self, study: StudyRow, C: Array, Y: Array) -> tuple[QuadraticSurrogate, ...]:
        """One surrogate a task, fitted to the points inside the box alone."""
        inside = self.inside(C)
        links = [(metric.link, metric.bounds) for metric in study.spec.metrics]
        return fit_all(C[inside], Y[inside], links)

    def front(self, study: StudyRow, C: Array, surrogates: Sequence[QuadraticSurrogate], seed: int) -> Front:
        """The surrogates' front inside the box, for which the fitted points compete too."""
        high = self.models.upper(C.shape[1])
        return find_front(
            surrogates, 0.0, high, maximize=maximize(study), seed=seed, include=C[self.inside(C)]
        )

    def inside(self, C: Array) -> NDArray[np.bool_]:
        """Which rows (n,) lie in the box: single-task models may not."""
        return np.asarray(((C >= 0) & (self.models.upper(C.shape[1]) >= C)).all(axis=1))


def maximize(study: StudyRow) -> list[bool]:
    """For each task, whether more is better."""
    return [metric.maximize for metric in study.spec.metrics]


def evenly(n_rows: int, n_wanted: int) -> Array:
    """Numbers of at most ``n_wanted`` rows, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, n_wanted)).round().astype(int))
