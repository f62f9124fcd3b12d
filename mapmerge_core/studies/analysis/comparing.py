"""Every run, merge and fine-tuned model of a study side by side, by what was measured on the test split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import nan, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.merges.base import applicable
from mapmerge_core.registries import METHODS
from mapmerge_core.search.fronts import signs
from mapmerge_core.search.indicators import hypervolume, preference_sums, preference_win_rate, sample_preferences
from mapmerge_core.settings import check_seed, to_dict
from mapmerge_core.studies.analysis.references import references, shares_of
from mapmerge_core.studies.analysis.replay import run_result, unfinished
from mapmerge_core.studies.config.run import RunConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pandas import DataFrame

    from mapmerge_core.merges.base import Merge
    from mapmerge_core.studies.config.study import StudyConfig
    from mapmerge_core.studies.store import Run, Store, StoredMerge
    from mapmerge_core.tasks.metrics import Metric
    from mapmerge_core.tasks.objective import Objective

Kind = Literal["run", "baseline", "single", "pretrained"]

N_PREFERENCES = 20
"""Sampled preferences of a comparison (MAP, Table 3)."""

Z_90 = 1.6448536269514722
"""The standard normal's 95 % quantile: 90 % of it lies within ± this."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """A run's, a baseline's or a reference's models, and their values on the test split.

    Attributes:
        key: The same whenever the study is compared: "run-3", "merge-2", "preference", "single-MNIST",
            "pretrained".
        name: What people call it; no two rows have the same.
        kind: A "run", a "baseline" (a merge at points that no search chose), a "single" fine-tuned model or the
            "pretrained" one.
        method: The name of the run's method or the baseline's merge; "" for references.
        merge_id: The merge that its models are of.
        run_id: The run, of a run.
        x: The point (D,) of the model for the shown preference; None where there is nothing to show.
        metrics: That model's values (K,), NaN where they haven't been measured.
        models: The different models for the shown and for the sampled preferences (``m x D``), the shown one's
            first; None of rows that have one model for all.
        front: Their values (``m x K``), NaN where they haven't been measured.
        hypervolume: What the models for the sampled preferences dominate, or the one model where a row has one:
            as shares of the single models' values, from 0 for metrics that go up and 2 for those that go down.
            NaN until all are measured.
        evaluations: Pairs of a point and an objective on the validation split that the row rests on, whoever
            measured them.
        seconds: What those took, and preparing the merge.
        problem: One sentence where there is nothing to show, otherwise "".
    """

    key: str
    name: str
    kind: Kind
    method: str
    merge_id: int
    run_id: int | None
    x: np.ndarray | None
    metrics: np.ndarray
    models: np.ndarray | None
    front: np.ndarray | None
    hypervolume: float
    evaluations: int
    seconds: float
    problem: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows and what they are compared by.

    Attributes:
        study_id: The study.
        objectives: Its K objectives.
        weights: The shown preference (K,), summing to 1.
        rows: Runs, then baselines, then references.
        single: What the single models reach on the test split (K,), see `References.single`.
        n_test: How many test examples each objective was measured on (K,), NaN where it wasn't yet.
        preferences: The sampled preferences, ``20 x K``, each summing to 1.
        sums: For each row by its key, the preference-weighted sums of its models for these (20,), NaN where they
            haven't been measured. A row with one model has that for all.
        winner: The latest run that leads to a front of surrogates, once it is measured; whose ``wins`` are counted.
        wins: For each other row by its key, on which share of the preferences the winner's sum is higher, with
            its standard error (MAP, Table 3); rows that haven't been measured are left out.
        missing: How many values the rows' models lack.
        wanted: By merge id the models that lack some (``m x D``).
        offered: Merges whose baselines are still to be made or searched for.
    """

    study_id: int
    objectives: tuple[Objective, ...]
    weights: np.ndarray
    rows: tuple[Row, ...]
    single: np.ndarray
    n_test: np.ndarray
    preferences: np.ndarray
    sums: Mapping[str, np.ndarray]
    winner: Row | None
    wins: Mapping[str, tuple[float, float]]
    missing: int
    wanted: Mapping[int, np.ndarray]
    offered: tuple[Merge, ...]

    @property
    def maximize(self) -> tuple[bool, ...]:
        """For each objective, whether more is better."""
        return tuple(objective.metric.maximize for objective in self.objectives)

    @property
    def weighed(self) -> tuple[Metric, ...]:
        """The metrics of the objectives that have a weight in the shown preference."""
        return tuple(o.metric for o, weight in zip(self.objectives, self.weights, strict=True) if weight > 0)

    @property
    def falls(self) -> bool:
        """Whether less of the weighted sum is better: all metrics that are weighed go down."""
        return not any(metric.maximize for metric in self.weighed)

    @property
    def has_intervals(self) -> bool:
        """Whether weighted sums of what has been measured have intervals, see `weighted`."""
        return bool(self._error_known[self.weights > 0].all())

    @property
    def _error_known(self) -> np.ndarray:
        """For each objective whether its error is known (K,): a share of right answers among several."""
        return np.array([o.metric.is_share_right for o in self.objectives]) & (self.n_test > 1)

    def row(self, key: str) -> Row:
        """Return the row with this key.

        Raises:
            StudyError: There is none.
        """
        for row in self.rows:
            if row.key == key:
                return row
        raise StudyError(f"The comparison has no row '{key}': it has {'; '.join(r.name for r in self.rows)}.")

    def weighted(self, row: Row, normalise: bool = False) -> tuple[float, float, float]:
        """Return a row's weighted sum for the shown preference; metrics that go down count negatively.

        The interval is normal, from the binomial errors of shares, as accuracies are, measured on ``n_test``
        examples each; other metrics' errors aren't known.

        Args:
            row: One of the rows.
            normalise: Whether to weigh shares of the single models' values.

        Returns:
            The sum and the ends of its 90 % interval, NaN where something hasn't been measured; the ends also
            where the error of an objective that has a weight isn't known.
        """
        factors = self.weights * signs(self.maximize) / (self.single if normalise else 1.0)
        value = float(factors @ row.metrics)
        variances = np.where(self._error_known, row.metrics * (1 - row.metrics), nan) / self.n_test
        weighty = factors != 0
        error = sqrt(float(factors[weighty] ** 2 @ variances[weighty]))
        return value, value - Z_90 * error, value + Z_90 * error

    def single_weighted(self, normalise: bool = False) -> float:
        """Return the same sum over the single models: the level that merging gives something up of.

        Args:
            normalise: As for `weighted`.

        Returns:
            The sum, NaN where a single model hasn't been measured.
        """
        directed = self.weights * signs(self.maximize)
        return float(directed @ (self.single / (self.single if normalise else 1.0)))


def compare(store: Store, study_id: int, *, weights: Mapping[str, float] | None = None, seed: int = 0) -> Comparison:
    """Compare what the store has, without torch; seconds the first time for each run, then milliseconds.

    A run counts for the models that it offers for the shown preference and for each of 20 sampled ones (MAP,
    Table 3). A merge counts at its usual points (`Merge.baselines`). Task arithmetic with the preference as
    coefficients is the row "preference", in studies whose every objective has a model of its own.

    Args:
        store: Where everything is.
        study_id: The study.
        weights: The shown preference by objective; objectives without a weight have none. All alike if left out.
        seed: Seed of the sampled preferences and of the search for fronts.

    Raises:
        StudyError: There is no such study, or it has no such objective.
        SearchError: The weights can't be used.
        SettingError: The seed can't be used.
    """
    check_seed(seed)
    config = store.merges.config(study_id)
    objectives = config.objectives
    maximize = [objective.metric.maximize for objective in objectives]
    shown = shares_of(weights, objectives)
    sampled = sample_preferences(len(objectives), N_PREFERENCES, seed)
    entries = list(_entries(store, study_id, config, np.vstack([shown, sampled]), seed))
    measured = _Measured(store, study_id, len(objectives))
    single = references(store, study_id, "test").single
    rows, sums = [], {}
    for entry, name in zip(entries, _names(entries), strict=True):
        values = None if entry.X is None else measured.at(entry.merge_id, entry.X)
        rows.append(_row(entry, name, values, single, maximize))
        sums[entry.key] = _sums(values, sampled, maximize)
    winner, wins = _wins(rows, sums)
    return Comparison(
        study_id=study_id,
        objectives=objectives,
        weights=shown,
        rows=tuple(rows),
        single=single,
        n_test=measured.n_examples,
        preferences=sampled,
        sums=sums,
        winner=winner,
        wins=wins,
        missing=measured.missing,
        wanted=measured.wanted,
        offered=tuple(
            merge
            for merge in baselines(config)
            if not is_made(store, study_id, merge) or not is_searched(store, study_id, merge)
        ),
    )


def baselines(config: StudyConfig) -> tuple[Merge, ...]:
    """Return all merges, in each of their variants, with which a study's runs are compared."""
    merges = applicable(config.facts())
    return tuple(type(merge)(settings) for merge in merges for settings in merge.variants)


def is_made(store: Store, study_id: int, merge: Merge) -> bool:
    """Return whether a study has a merge, prepared if it has a state."""
    key = merge.name, to_dict(merge.settings)
    return any(_is_usable(kept) and (kept.name, dict(kept.settings)) == key for kept in store.merges.all(study_id))


def is_searched(store: Store, study_id: int, merge: Merge) -> bool:
    """Return whether the best scalar of a merge is known, or nobody asks for it."""
    if not merge.searches_scalar:
        return True
    run = store.runs.find_same(study_id, scalar_search(merge))
    return run is not None and run.status == "done"


def scalar_search(merge: Merge) -> RunConfig:
    """Return the run that finds a merge's best scalar."""
    return RunConfig(merge=merge.name, merge_settings=to_dict(merge.settings), method="scalar")


def _is_usable(merge: StoredMerge) -> bool:
    try:
        return merge.is_prepared or not merge.make().has_state
    except MapMergeError:  # the package that brought it isn't installed
        return False


def to_table(comparison: Comparison, normalise: bool = False) -> DataFrame:
    """Return the comparison as a table, a line for each row, for the shown preference.

    Args:
        comparison: What `compare` returned.
        normalise: Whether values are shares of the single models'.

    Returns:
        Columns "model", "kind", one for each objective by its name, "mean", "worst", "hypervolume", "preference"
        (the weighted sum; metrics that go down count negatively in it, unless all that are weighed do), "wins"
        (on which share of the sampled preferences the winner is better), "evaluations", "seconds". An objective
        that is called as one of these gets " (objective)" after its name. Missing figures are NaN.
    """
    import pandas as pd

    own = ("model", "kind", "mean", "worst", "hypervolume", "preference", "wins", "evaluations", "seconds")
    names = [f"{o.name} (objective)" if o.name in own else o.name for o in comparison.objectives]
    directions = signs(comparison.maximize)
    sign = -1.0 if comparison.falls else 1.0
    lines = []
    for row in comparison.rows:
        values = row.metrics / (comparison.single if normalise else 1.0)
        worst = values[np.argmin(values * directions)]  # NaN, where there is one
        lines.append(
            {"model": row.name, "kind": row.kind}
            | dict(zip(names, values.tolist(), strict=True))
            | {
                "mean": values.mean(),
                "worst": worst,
                "hypervolume": row.hypervolume,
                "preference": sign * comparison.weighted(row, normalise)[0],
                "wins": comparison.wins.get(row.key, (nan, nan))[0],
                "evaluations": row.evaluations,
                "seconds": row.seconds,
            }
        )
    return pd.DataFrame(lines)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Entry:
    """A row before its models' values are looked up; what both have means the same.

    Attributes:
        X: Its models' points: one for all preferences (``1 x D``), or one for each (in their order); None where
            there is a problem.
    """

    key: str
    name: str
    kind: Kind
    method: str = ""
    merge_id: int
    run_id: int | None = None
    X: np.ndarray | None
    evaluations: int = 0
    seconds: float = 0.0
    problem: str = ""


def _entries(store: Store, study_id: int, config: StudyConfig, preferences: np.ndarray, seed: int) -> Iterator[_Entry]:
    merges = store.merges.all(study_id)
    for run in store.runs.all(study_id):
        yield _run(store, run, config, preferences, seed)
    first = merges[0]  # every study's first merge is task arithmetic
    own = [[objective.model == model for model in config.model_names] for objective in config.objectives]
    if all(objective.model is not None for objective in config.objectives):
        X = first.space.points(preferences @ np.array(own, dtype=np.float64))  # a preference's shares (MAP, Table 3)
        yield _Entry(
            key="preference", name="Task arithmetic by preference", kind="baseline", method=first.name,
            merge_id=first.id, X=X,
        )  # fmt: skip
    for merge in merges:
        yield from _baselines(merge, config)
    refs = references(store, study_id)
    keys = [*(f"single-{model}" for model in refs.models), "pretrained"]
    for key, name, x in zip(keys, [*refs.names[1:], refs.names[0]], [*refs.X[1:], refs.X[0]], strict=True):
        kind: Kind = "pretrained" if key == keys[-1] else "single"
        yield _Entry(key=key, name=name, kind=kind, merge_id=refs.merge_id, X=x[None])


def _run(store: Store, run: Run, config: StudyConfig, preferences: np.ndarray, seed: int) -> _Entry:
    row = {
        "key": f"run-{run.id}", "name": run.config.label, "kind": "run", "method": run.config.method,
        "merge_id": run.merge_id, "run_id": run.id,
    }  # fmt: skip
    if run.status != "done":
        spent = {"evaluations": run.n_evaluations, "seconds": run.seconds}
        return _Entry(**row, **spent, X=None, problem=unfinished(run))
    try:
        result = run_result(store, run.id, seed=seed)
    except MapMergeError as error:
        spent = {"evaluations": run.n_evaluations, "seconds": run.seconds}
        return _Entry(**row, **spent, X=None, problem=str(error))
    merge = store.merges.get(run.merge_id)
    maximize = [objective.metric.maximize for objective in config.objectives]
    X = result.x if len(result.x) == 1 else np.array([result.choose(weights, maximize) for weights in preferences])
    return _Entry(
        **row,
        X=merge.space.points(X),
        evaluations=result.evaluations + merge.evaluations,
        seconds=result.seconds + merge.seconds,
    )


def _baselines(merge: StoredMerge, config: StudyConfig) -> Iterator[_Entry]:
    if not _is_usable(merge):
        return
    for number, (title, x) in enumerate(merge.make().baselines(config.model_names)):
        yield _Entry(
            key=f"merge-{merge.id}" + (f"-{number + 1}" if number else ""),
            name=title,
            kind="baseline",
            method=merge.name,
            merge_id=merge.id,
            X=merge.space.points(np.asarray(x, dtype=np.float64)[None]),
            evaluations=merge.evaluations,
            seconds=merge.seconds,
        )


def _names(entries: list[_Entry]) -> list[str]:
    """Return the rows' names, with what tells those apart that are called the same."""
    count = Counter(entry.name for entry in entries)

    def name(entry: _Entry) -> str:
        if count[entry.name] == 1:
            return entry.name
        return f"{entry.name}, " + (f"merge {entry.merge_id}" if entry.run_id is None else f"run {entry.run_id}")

    return [name(entry) for entry in entries]


@dataclass
class _Measured:
    """A study's test split by model; notes what was looked up in vain.

    Attributes:
        n_examples: How many examples each objective was measured on (K,), NaN where it wasn't yet.
    """

    store: Store
    study_id: int
    n_objectives: int
    _lacking: dict[tuple[int, bytes], tuple[np.ndarray, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tables = self.store.evaluations.tables(self.study_id, "test")
        self._known = {
            (merge_id, x.tobytes()): values
            for merge_id, table in self._tables.items()
            for x, values in zip(table.X, table.Y, strict=True)
        }
        counts = [table.n_examples.max(axis=0) for table in self._tables.values()]
        most = np.max(counts, axis=0) if counts else np.zeros(self.n_objectives)
        self.n_examples = np.where(most > 0, most, nan)

    def at(self, merge_id: int, X: np.ndarray) -> np.ndarray:
        """Return the values (``m x K``) of a merge's models (``m x D``), NaN where they haven't been measured."""
        unknown = np.full(self.n_objectives, nan)
        values = np.array([self._known.get((merge_id, x.tobytes()), unknown) for x in X])
        for x, lacking in zip(X, np.isnan(values).sum(axis=1), strict=True):
            if lacking:
                self._lacking[merge_id, x.tobytes()] = x, int(lacking)
        return values

    @property
    def missing(self) -> int:
        """How many values what was looked up lacks."""
        return sum(count for _, count in self._lacking.values())

    @property
    def wanted(self) -> dict[int, np.ndarray]:
        """By merge id the models that lack some."""
        points: dict[int, list[np.ndarray]] = {}
        for (merge_id, _), (x, _) in self._lacking.items():
            points.setdefault(merge_id, []).append(x)
        return {merge_id: np.array(X) for merge_id, X in points.items()}


def _row(entry: _Entry, name: str, values: np.ndarray | None, single: np.ndarray, maximize: list[bool]) -> Row:
    """Return the row of an entry whose models have these values (``m x K``)."""
    models = front = None
    if entry.X is not None and values is not None and len(entry.X) > 1:
        first = np.sort(np.unique(entry.X, axis=0, return_index=True)[1])
        models, front = entry.X[first], values[first]
    return Row(
        key=entry.key,
        name=name,
        kind=entry.kind,
        method=entry.method,
        merge_id=entry.merge_id,
        run_id=entry.run_id,
        x=None if entry.X is None else entry.X[0],
        metrics=np.full(len(single), nan) if values is None else values[0],
        models=models,
        front=front,
        hypervolume=nan if values is None else _hypervolume(values, single, maximize),
        evaluations=entry.evaluations,
        seconds=entry.seconds,
        problem=entry.problem,
    )


def _hypervolume(values: np.ndarray, single: np.ndarray, maximize: list[bool]) -> float:
    """Return what a row's models dominate, see `Row`."""
    shares = np.unique(_sampled(values) / single, axis=0)
    if not np.isfinite(shares).all():
        return nan
    return hypervolume(shares, np.where(maximize, 0.0, 2.0), maximize)


def _sampled(values: np.ndarray) -> np.ndarray:
    """Return the values of a row's models for the sampled preferences, or of its only one."""
    return values[1:] if len(values) > 1 else values


def _sums(values: np.ndarray | None, preferences: np.ndarray, maximize: list[bool]) -> np.ndarray:
    """Return the preference-weighted sum (20,) of a row's model for each sampled preference."""
    sums = np.full(len(preferences), nan)
    if values is not None:
        models = np.broadcast_to(_sampled(values), preferences.shape)
        known = np.isfinite(models).all(axis=1)
        if known.any():
            sums[known] = preference_sums(models[known], preferences[known], maximize)
    return sums


def _wins(rows: list[Row], sums: Mapping[str, np.ndarray]) -> tuple[Row | None, dict[str, tuple[float, float]]]:
    """Return the winner and how often it does better than every other row that has been measured."""
    measured = [row for row in rows if np.isfinite(sums[row.key]).all()]
    fronts = [row for row in measured if row.kind == "run" and METHODS[row.method].is_front == "surrogates"]
    if not fronts:
        return None, {}
    winner = max(fronts, key=lambda row: row.run_id or 0)
    return winner, {
        row.key: preference_win_rate(sums[winner.key], sums[row.key]) for row in measured if row is not winner
    }
