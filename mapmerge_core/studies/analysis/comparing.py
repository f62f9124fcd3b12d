"""Every run, merge and fine-tuned model of a study side by side, by what was measured on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.merges.base import Merge, applicable
from mapmerge_core.registries import METHODS
from mapmerge_core.search.fronts import signs
from mapmerge_core.search.indicators import hypervolume, preference_sums, preference_win_rate, sample_preferences
from mapmerge_core.settings import check_seed, to_dict
from mapmerge_core.studies.analysis.entries import Entry, Kind, Tested, gather
from mapmerge_core.studies.analysis.references import references, shares_of
from mapmerge_core.studies.config.run import RunConfig
from mapmerge_core.tasks.objective import Objective, maximize_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from mapmerge_core.studies.config.study import StudyConfig
    from mapmerge_core.studies.store import Store
    from mapmerge_core.tasks.metrics import Metric

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
        errors: Their standard errors as estimates of all data like the test split (K,), NaN where they aren't
            known.
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
    errors: np.ndarray
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
        return maximize_of(self.objectives)

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
        known = np.isfinite(np.array([row.errors for row in self.rows])).any(axis=0)
        return bool(np.all(known | (self.weights == 0)))

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

        The interval is normal, from the values' standard errors.

        Args:
            row: One of the rows.
            normalise: Whether to weigh shares of the single models' values.

        Returns:
            The sum and the ends of its 90 % interval, NaN where something hasn't been measured; the ends also
            where the error of an objective that has a weight isn't known.
        """
        factors = self.weights * signs(self.maximize) / (self.single if normalise else 1.0)
        value = float(factors @ row.metrics)
        weighty = factors != 0
        error = float(np.linalg.norm(factors[weighty] * row.errors[weighty]))
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
    coefficients is the row "preference", where each objective that is weighed has a model of its own.

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
    maximize = maximize_of(objectives)
    shown = shares_of(weights, objectives)
    sampled = sample_preferences(len(objectives), N_PREFERENCES, seed)
    tested = Tested(store, study_id, len(objectives))
    single = references(store, study_id, "test").single
    rows, sums = [], {}
    for entry in gather(store, study_id, config, np.vstack([shown, sampled]), seed):
        row, sums[entry.key] = _row(entry, tested, single, sampled, maximize)
        rows.append(row)
    winner, wins = _wins(rows, sums)
    return Comparison(
        study_id=study_id,
        objectives=objectives,
        weights=shown,
        rows=tuple(rows),
        single=single,
        n_test=tested.n_examples,
        preferences=sampled,
        sums=sums,
        winner=winner,
        wins=wins,
        missing=tested.missing,
        wanted=tested.wanted,
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
    return any(kept.is_usable and (kept.name, dict(kept.settings)) == key for kept in store.merges.all(study_id))


def is_searched(store: Store, study_id: int, merge: Merge) -> bool:
    """Return whether the best scalar of a merge is known, or nobody asks for it."""
    if not merge.searches_scalar:
        return True
    run = store.runs.find_same(study_id, scalar_search(merge))
    return run is not None and run.status == "done"


def scalar_search(merge: Merge) -> RunConfig:
    """Return the run that finds a merge's best scalar."""
    return RunConfig(merge=merge.name, merge_settings=to_dict(merge.settings), method="scalar")


def is_of_comparison(config: RunConfig) -> bool:
    """Return whether a run is a search for a merge's best scalar, as comparisons start by themselves."""
    return config.is_same_as(scalar_search(config.make_merge()))


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


def _row(
    entry: Entry, tested: Tested, single: np.ndarray, preferences: np.ndarray, maximize: Sequence[bool]
) -> tuple[Row, np.ndarray]:
    """Return an entry's row, and the weighted sums (20,) of its models for the sampled preferences."""
    row = Row(
        key=entry.key,
        name=entry.name,
        kind=entry.kind,
        method=entry.method,
        merge_id=entry.merge_id,
        run_id=entry.run_id,
        x=None,
        metrics=np.full(len(single), nan),
        errors=np.full(len(single), nan),
        models=None,
        front=None,
        hypervolume=nan,
        evaluations=entry.evaluations,
        seconds=entry.seconds,
        problem=entry.problem,
    )
    sums = np.full(len(preferences), nan)
    if entry.X is None:
        return row, sums
    values, errors = tested.at(entry.merge_id, entry.X)
    row = replace(row, x=entry.X[0], metrics=values[0], errors=errors[0])
    if len(entry.X) > 1:
        first = np.sort(np.unique(entry.X, axis=0, return_index=True)[1])
        row, values = replace(row, models=entry.X[first], front=values[first]), values[1:]
    shares = np.unique(values / single, axis=0)
    if np.isfinite(shares).all():
        row = replace(row, hypervolume=hypervolume(shares, np.where(maximize, 0.0, 2.0), maximize))
    models = np.broadcast_to(values, preferences.shape)
    known = np.isfinite(models).all(axis=1)
    if known.any():
        sums[known] = preference_sums(models[known], preferences[known], maximize)
    return row, sums


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
