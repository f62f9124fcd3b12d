"""Every run, baseline and single-task model of a study side by side, by what was measured on the test split.

All of it comes from the store, without torch; ``complete`` makes and measures what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.search.fronts import signs
from mapmerge_core.search.indicators import (
    hypervolume,
    preference_sums,
    preference_win_rate,
)
from mapmerge_core.studies.runs.baselines import missing
from mapmerge_core.studies.runs.completing import complete
from mapmerge_core.studies.analysis.entries import Entry, Kind, gather

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pandas import DataFrame

    from mapmerge_core.studies.runs.baselines import BaselineKind
    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.metric import Metric

__all__ = ["Comparison", "Row", "compare", "complete", "to_table"]

Z_90 = 1.6448536269514722
"""The standard normal's 95 % quantile: 90 % of it lies within ± this."""


@dataclass(frozen=True, eq=False)
class Row:
    """A method's, a baseline's or a reference's models and their metrics on the test split.

    Attributes:
        key: The same whenever the study is compared: "run-3", "soup", "preference", "single-MNIST",
            "pretrained".
        name: What people call it; no two rows have the same.
        kind: A "run", a one-shot "baseline", or a "reference" (pre-trained and single-task models).
        method: The method's or baseline's name; "single" and "pretrained" for references.
        study_id: The study whose task vectors ``c`` belongs to: perhaps a sibling with another transform.
        run_id: The run, of a run.
        baseline_id: The baseline in the store, of a baseline that has one.
        c: Coefficients (N,) of the model for the shown preference; None where it isn't a c.
        gamma: Of a learned set, the shown preference (K,).
        metrics: That model's metrics (K,), NaN where they haven't been measured.
        front_c: Of runs and of "preference", the different models for the shown and for the sampled
            preferences (``m x N``), the shown one's first; of a learned set the preferences (``m x K``).
        front: Their metrics (``m x K``), NaN where they haven't been measured.
        hypervolume: What the models for the sampled preferences dominate, or the one model where a row has
            one: as shares of the single-task models' metrics, from 0 for metrics that go up and 2 for those
            that go down. NaN until all are measured.
        evaluations: (c, task) pairs on the validation split that the row rests on, whoever measured them.
        seconds: What those took, and making the merge.
        problem: One sentence where there is nothing to show, otherwise "".
    """

    key: str
    name: str
    kind: Kind
    method: str
    study_id: int
    run_id: int | None
    baseline_id: int | None
    c: np.ndarray | None
    gamma: np.ndarray | None
    metrics: np.ndarray
    front_c: np.ndarray | None
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
        tasks: K names.
        metrics: Their metrics.
        weights: The shown preference (K,), summing to 1.
        rows: This study's runs, its siblings' runs, the baselines, then the references.
        single: Each task's metric of its own single-task model (K,), NaN where it hasn't been measured.
        n_test: Examples in each task's test split (K,), NaN where nothing has been measured.
        preferences: The sampled preferences, ``20 x K``, each summing to 1.
        sums: For each row by its key, the preference-weighted sums of its models for these (20,), NaN where
            they haven't been measured. A row with one model has that for all.
        wins: For each other row by its key, on which share of the preferences the sum of the study's latest
            MAP run is higher, with its standard error (MAP, Table 3). Empty without such a run; rows that
            haven't been measured are left out.
        missing: Evaluations on the test split that the rows still lack.
        offered: Baselines that haven't been made yet.
    """

    study_id: int
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    weights: np.ndarray
    rows: tuple[Row, ...]
    single: np.ndarray
    n_test: np.ndarray
    preferences: np.ndarray
    sums: Mapping[str, np.ndarray]
    wins: Mapping[str, tuple[float, float]]
    missing: int
    offered: tuple[BaselineKind, ...]

    @property
    def maximize(self) -> tuple[bool, ...]:
        """For each task, whether more is better."""
        return tuple(metric.maximize for metric in self.metrics)

    @property
    def weighed(self) -> tuple[Metric, ...]:
        """The metrics of the tasks that have a weight in the shown preference."""
        return tuple(m for m, weight in zip(self.metrics, self.weights, strict=True) if weight > 0)

    @property
    def falls(self) -> bool:
        """Whether less of the weighted sum is better: all metrics that are weighed go down."""
        return not any(metric.maximize for metric in self.weighed)

    @property
    def has_intervals(self) -> bool:
        """Whether weighted sums of what has been measured have intervals, see ``weighted``."""
        return bool(self._error_known[self.weights > 0].all())

    @property
    def _error_known(self) -> np.ndarray:
        """For each task whether its metric's error is known (K,): a share of right answers among several."""
        return np.array([metric.of_right_answers for metric in self.metrics]) & (self.n_test > 1)

    def row(self, key: str) -> Row:
        """The row with this key.

        Raises:
            StudyError: where there is none.
        """
        for row in self.rows:
            if row.key == key:
                return row
        raise StudyError(f"The comparison has no row '{key}': it has {'; '.join(r.name for r in self.rows)}.")

    def weighted(self, row: Row, normalise: bool = False) -> tuple[float, float, float]:
        """A row's preference-weighted sum for the shown preference; metrics that go down count negatively.

        The interval is normal, from the binomial errors of shares, as accuracies are, measured on ``n_test``
        examples each; other metrics' errors aren't known.

        Args:
            row: One of the rows.
            normalise: Whether to weigh shares of the single-task models' metrics.

        Returns:
            The sum and the ends of its 90 % interval, NaN where something hasn't been measured; the ends also
            where the error of a task that has a weight isn't known.
        """
        factors = self.weights * signs(self.maximize) / (self.single if normalise else 1.0)
        value = float(factors @ row.metrics)
        variances = np.where(self._error_known, row.metrics * (1 - row.metrics), nan) / self.n_test
        weighty = factors != 0
        error = sqrt(float(factors[weighty] ** 2 @ variances[weighty]))
        return value, value - Z_90 * error, value + Z_90 * error

    def own_weighted(self, normalise: bool = False) -> float:
        """The same sum over each task's own single-task model: the level that merging gives something up of.

        Args:
            normalise: As for ``weighted``.

        Returns:
            The sum, NaN where a single-task model hasn't been measured.
        """
        directed = self.weights * signs(self.maximize)
        return float(directed @ (self.single / (self.single if normalise else 1.0)))


def compare(
    store: Store, study_id: int, *, weights: Mapping[str, float] | None = None, seed: int = 0
) -> Comparison:
    """Compares what the store has, without torch; seconds the first time for each run, then milliseconds.

    A run counts for the models that its own front offers for the shown preference and for each of 20 sampled
    ones (MAP, Table 3). Task arithmetic with the normalised preference as coefficients is the row
    "preference". Studies that differ by their transform alone are one family: the others' finished runs are
    rows too, and baselines and references are those of the one without a transform.

    Args:
        store: Where everything is.
        study_id: The study.
        weights: The shown preference by task; tasks without a weight have none. All tasks alike if left out.
        seed: Seed of the sampled preferences and of the search for fronts.

    Raises:
        StudyError: where there is no such study, and for a task that it doesn't have.
        SearchError: for weights and seeds that can't be used.
    """
    gathered = gather(store, study_id, weights, seed)
    study, base = gathered.study, gathered.family[0]
    metrics = study.spec.metrics
    maximize = [metric.maximize for metric in metrics]
    shown, sampled = gathered.preferences[0], gathered.preferences[1:]
    single = np.diag(gathered.measured[base.id].at(np.eye(len(metrics)))).copy()
    rows, sums = [], {}
    for entry in gathered.entries:
        values = gathered.values(entry)
        rows.append(_make_row(entry, values, single, maximize))
        sums[entry.key] = _sums(values, sampled, maximize)
    return Comparison(
        study_id=study_id,
        tasks=study.spec.task_names,
        metrics=metrics,
        weights=shown,
        rows=tuple(rows),
        single=single,
        n_test=gathered.measured[base.id].n_examples,
        preferences=sampled,
        sums=sums,
        wins=_wins(study, rows, sums),
        missing=gathered.n_missing,
        offered=missing(store, base),
    )


def to_table(comparison: Comparison, normalise: bool = False) -> DataFrame:
    """The comparison as a table, a row for each row, for the shown preference.

    Args:
        comparison: What ``compare`` returned.
        normalise: Whether metrics are shares of the single-task models'.

    Returns:
        Columns "model", "kind", one for each task by its name, "mean", "worst", "hypervolume", "preference"
        (the weighted sum; metrics that go down count negatively in it, unless all that are weighed do), "MAP
        wins" (on which share of the sampled preferences), "evaluations", "seconds". A
        task that is called as one of these gets " (task)" after its name. Missing figures are NaN.
    """
    import pandas as pd

    own = (
        "model",
        "kind",
        "mean",
        "worst",
        "hypervolume",
        "preference",
        "MAP wins",
        "evaluations",
        "seconds",
    )
    names = [f"{task} (task)" if task in own else task for task in comparison.tasks]
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
                "MAP wins": comparison.wins.get(row.key, (nan, nan))[0],
                "evaluations": row.evaluations,
                "seconds": row.seconds,
            }
        )
    return pd.DataFrame(lines)


def _make_row(entry: Entry, values: np.ndarray | None, single: np.ndarray, maximize: Sequence[bool]) -> Row:
    """The entry with the metrics (``m x K``) of its models."""
    front_c = front = None
    models = entry.C if entry.gammas is None else entry.gammas
    if models is not None and values is not None and entry.by_preference:
        _, first = np.unique(models, axis=0, return_index=True)
        kept = np.sort(first)
        front_c, front = models[kept], values[kept]
    return Row(
        key=entry.key,
        name=entry.name,
        kind=entry.kind,
        method=entry.method,
        study_id=entry.study_id,
        run_id=entry.run_id,
        baseline_id=entry.baseline_id,
        c=None if entry.C is None else entry.C[0],
        gamma=None if entry.gammas is None else entry.gammas[0],
        metrics=np.full(len(single), nan) if values is None else values[0],
        front_c=front_c,
        front=front,
        hypervolume=nan if values is None else _hypervolume(values, single, maximize),
        evaluations=entry.evaluations,
        seconds=entry.seconds,
        problem=entry.problem,
    )


def _hypervolume(values: np.ndarray, single: np.ndarray, maximize: Sequence[bool]) -> float:
    """What a row's models dominate, see ``Row``."""
    shares = np.unique(_sampled(values) / single, axis=0)
    if not np.isfinite(shares).all():
        return nan
    return hypervolume(shares, np.where(maximize, 0.0, 2.0), maximize)


def _sampled(values: np.ndarray) -> np.ndarray:
    """Of a row's models those for the sampled preferences, or its only one."""
    return values[1:] if len(values) > 1 else values


def _sums(values: np.ndarray | None, preferences: np.ndarray, maximize: Sequence[bool]) -> np.ndarray:
    """The preference-weighted sum (20,) of a row's model for each sampled preference."""
    sums = np.full(len(preferences), nan)
    if values is not None:
        models = np.broadcast_to(_sampled(values), preferences.shape)
        known = np.isfinite(models).all(axis=1)
        if known.any():
            sums[known] = preference_sums(models[known], preferences[known], maximize)
    return sums


def _wins(
    study: StudyRow, rows: Sequence[Row], sums: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Of the study's latest MAP run over every other row that has been measured."""
    measured = [row for row in rows if np.isfinite(sums[row.key]).all()]
    ours = [row for row in measured if row.method == "map" and row.study_id == study.id]
    if not ours:
        return {}
    best = max(ours, key=lambda row: row.run_id or 0)
    return {
        row.key: preference_win_rate(sums[best.key], sums[row.key]) for row in measured if row is not best
    }
