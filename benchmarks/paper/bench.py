"""What every table works with: a store of evaluations and learned merges, which are made where they are missing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open

from benchmarks.pareto_merging import merges as _registers  # noqa: F401 - merges of the benchmarks' own
from mapmerge_core.registries import MERGES, METHODS
from mapmerge_core.search.designs import make_design
from mapmerge_core.search.fronts import Front, find_front
from mapmerge_core.search.preferences import normalise
from mapmerge_core.search.spaces import Box, Space
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates, fit_surrogates
from mapmerge_core.settings import to_dict
from mapmerge_core.studies.config import Compute, RunConfig
from mapmerge_core.studies.config.demo import demo_merge_settings
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.measuring import Progress, measure
from mapmerge_core.studies.runs.preparing import prepare_merge

if TYPE_CHECKING:
    from benchmarks.paper.models import Models
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.studies.store import Split, Store, StoredMerge, Study
    from mapmerge_core.tasks.evaluator import Evaluator

_STEPS = 10
"""How many steps of one task take about as long as one of its evaluations, for the time left."""
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
class Learned:
    """A merge that was learned to the end.

    Attributes:
        study: Its study.
        merge: The merge.
        n_extra: How many parameters it adds.
    """

    study: Study
    merge: StoredMerge
    n_extra: int

    @property
    def seconds(self) -> float:
        """What learning took."""
        return self.merge.seconds

    @property
    def default(self) -> Array:
        """The one preference of a merge that has one model for all, `1 x N`."""
        return self.merge.space.default[None]


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
        steps: Steps of every training.
    """

    models: Models
    store: Store
    counter: Counter
    device: str = "auto"
    sample: int = 100
    thresholds: tuple[float, float] | None = None
    map_points: int | None = None
    direct_points: int | None = None
    steps: int = 2000
    _cache: EvaluatorCache = field(default_factory=EvaluatorCache)

    def study(self, names: Sequence[str], held: Sequence[str] = ()) -> Study:
        """Return the store's study of these tasks, which is made where there is none; see `Models.subset`."""
        config = self.models.subset(names, held)
        for study in self.store.studies.all():
            if study.config == config:
                return study
        return self.store.studies.create(None, config)

    def evaluator(self, study: Study) -> Evaluator:
        """Return the study's evaluator; the last one used is kept."""
        return self._cache.get(study, Compute(device=self.device))

    def get_evaluator(self, study: Study, compute: Compute) -> Evaluator:
        """Return the study's evaluator, as `complete` asks for it."""
        return self._cache.get(study, compute)

    def run(self, n_tasks: int, method: str = "map", **settings: Any) -> RunConfig:  # noqa: ANN401
        """Return a method on the box of n tasks."""
        return RunConfig(method=method, method_settings=settings, high=self.models.upper(n_tasks))

    def space(self, study: Study) -> Space:
        """Return the box that is sampled."""
        return self.run(len(study.config.models)).space(study.config)

    def budget(self, n_tasks: int) -> int:
        """Return MAP's points."""
        return self.map_points or self._default_points("map", n_tasks)

    def direct_budget(self, n_tasks: int) -> int:
        """Return direct search's points."""
        return self.direct_points or self._default_points("direct", n_tasks)

    def _default_points(self, method: str, n_tasks: int) -> int:
        points: int = METHODS[method].default_points(Box([f"c{n}" for n in range(n_tasks)]))
        return points

    def design(self, study: Study, points: int, seed: int) -> Array:
        """Return the first points (`points x N`) of a uniform sequence that all methods with the seed share."""
        return make_design("uniform", points, self.space(study), seed=seed)

    def measure(
        self,
        study: Study,
        X: ArrayLike,
        split: Split = "val",
        tasks: Sequence[str] | None = None,
        merge: StoredMerge | None = None,
    ) -> Array:
        """Return metrics (`m x K`) at the rows of ``X``; what the store lacks is measured, and kept at once.

        Args:
            study: The study.
            X: Points.
            split: "val" or "test".
            tasks: The columns; all by default.
            merge: Task arithmetic by default.
        """
        merge = merge or self.store.merges.all(study.id)[0]
        keys = {objective.task: objective.key for objective in study.config.objectives}
        columns = [list(keys).index(task) for task in tasks or keys]
        table = self.store.evaluations.table(merge.id, split)
        known = {x.tobytes(): row for x, row in zip(table.X, table.Y, strict=True)}
        rows = merge.space.points(X)
        nothing = np.full(len(keys), np.nan)
        values = np.array([known.get(x.tobytes(), nothing) for x in rows])[:, columns]
        if np.isnan(values).any():
            values = measure(
                self.store,
                study,
                self.evaluator(study),
                merge.id,
                rows,
                objectives=[keys[task] for task in tasks or keys],
                split=split,
                progress=lambda done, _: self.counter.show(done),
            )
        self.counter.advance(values.size)
        return values

    def fit(self, study: Study, X: Array, Y: Array, errors: Array | None = None) -> SpaceSurrogates:
        """Return one surrogate a task, fitted to the points inside the box alone."""
        inside = self.inside(study, X)
        links = [(objective.metric.link, objective.metric.bounds) for objective in study.config.objectives]
        noise = None if errors is None else errors[inside]
        return fit_surrogates(self.space(study), X[inside], Y[inside], links[: Y.shape[1]], errors=noise)

    def front(self, study: Study, X: Array, surrogates: SpaceSurrogates, seed: int) -> Front:
        """Return the surrogates' front inside the box, for which the fitted points compete too."""
        directions = maximize(study)[: len(surrogates)]
        include = X[self.inside(study, X)]
        return find_front(surrogates, maximize=directions, seed=seed, include=include)

    def inside(self, study: Study, X: Array) -> NDArray[np.bool_]:
        """Return which rows (m,) lie in the box: single-task models may not."""
        return self.space(study).contains(X)

    def training(self, n_tasks: int, **changes: Any) -> Any:  # noqa: ANN401 - Pareto Merging's settings
        """Return how zoos of small models are learned from, with ``changes``."""
        usual = demo_merge_settings("pareto_merging", n_tasks)
        return MERGES["pareto_merging"]({**usual, "steps": self.steps, **changes}).settings

    def pareto(
        self,
        study: Study,
        seed: int,
        *,
        structure: str = "tensor",
        trimmed: bool = False,
        **changes: Any,  # noqa: ANN401 - settings
    ) -> Learned:
        """Return Pareto Merging, with ``changes`` to the usual training.

        Args:
            study: The study.
            seed: Of the training.
            structure: One of `STRUCTURES`.
            trimmed: Whether TIES trims the task vectors first (the paper's "++").
            changes: Other settings.
        """
        keep = {"keep": 0.2} if trimmed else {}
        settings = to_dict(self.training(len(study.config.models), seed=seed, **keep, **changes))
        if structure == "tensor":
            return self.learn(study, "pareto_merging", settings)
        return self.learn(study, "structured_merging", {**settings, "structure": structure})

    def adamerging(
        self,
        study: Study,
        seed: int,
        gamma: ArrayLike | None = None,
        *,
        trimmed: bool = False,
        **changes: Any,  # noqa: ANN401
    ) -> Learned:
        """Return AdaMerging, by default with equal preference; the same steps and images as `pareto`."""
        models = study.config.model_names
        shares = normalise(np.ones(len(models)) if gamma is None else gamma, len(models))
        keep = {"keep": 0.2} if trimmed else {}
        changes = {**keep, **changes, "scalarisation": "linear", "beta_cos": 0.0, "beta_norm": 0.0, "rank": 1}
        settings = to_dict(self.training(len(models), seed=seed, **changes))
        preference = dict(zip(models, shares.tolist(), strict=True))
        return self.learn(study, "preferred_adamerging", {**settings, "gamma": preference})

    def learn(self, study: Study, name: str, settings: Mapping[str, Any]) -> Learned:
        """Return a merge that was learned; what is missing of its training is done.

        Raises:
            MapMergeError: Something can't be read, trained or kept.
        """
        merge = self.store.merges.add(study.id, name, settings)
        size = self.worth(len(study.config.models))
        if not merge.is_prepared:
            prepare_merge(self.store, merge.id, self.evaluator(study), progress=self.counter.part(size))
            merge = self.store.merges.get(merge.id)
        self.counter.advance(size)
        with safe_open(self.store.merges.state_file(merge.id), "pt") as state:
            sizes = [int(np.prod(state.get_slice(key).get_shape())) for key in state.keys() if key != "lambda"]  # noqa: SIM118
        return Learned(study, merge, sum(sizes))

    def values(self, learned: Learned, gammas: Array, tasks: Sequence[str] | None = None) -> Array:
        """Return metrics (`m x K`) on the test split of the models for ``gammas`` (`m x N`)."""
        return self.measure(learned.study, gammas, "test", tasks, learned.merge)

    def worth(self, n_tasks: int, runs: int = 1) -> int:
        """Return how many evaluations take about as long as ``runs`` trainings."""
        return runs * (n_tasks * self.steps // _STEPS)


def maximize(study: Study) -> list[bool]:
    """Return for each task whether more is better."""
    return [objective.metric.maximize for objective in study.config.objectives]
