"""Every run, baseline and single-task model of a study side by side, by what was measured on the test split.

All of it comes from the store, without torch; ``complete`` makes and measures what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import TITLES
from mapmerge_core.search.front import signs
from mapmerge_core.search.preferences import normalise
from mapmerge_core.studies.findings import finding_of
from mapmerge_core.studies.spec import check_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.studies.baselines import BaselineKind
    from mapmerge_core.studies.rows import RunRow, StudyRow
    from mapmerge_core.studies.store import Store
    from mapmerge_core.tasks.metric import Metric

RowKind = Literal["run", "baseline", "reference"]

N_PREFERENCES = 20
"""Sampled preferences of a comparison (MAP, Table 3)."""
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
        metrics: That model's metrics (K,), NaN where they haven't been measured.
        front_c: Of runs and of "preference", the different models for the shown and for the sampled
            preferences (``m x N``), the shown one's first.
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
    kind: RowKind
    method: str
    study_id: int
    run_id: int | None
    baseline_id: int | None
    c: np.ndarray | None
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

    def row(self, key: str) -> Row:
        """The row with this key.

        Raises:
            StudyError: where there is none.
        """
        for row in self.rows:
            if row.key == key:
                return row
        raise StudyError(f"The comparison has no row '{key}': it has {', '.join(r.key for r in self.rows)}.")

    def weighted(self, row: Row, normalise: bool = False) -> tuple[float, float, float]:
        """A row's preference-weighted sum for the shown preference; metrics that go down count negatively.

        The interval is normal, from the binomial errors of accuracies measured on ``n_test`` examples each.

        Args:
            row: One of the rows.
            normalise: Whether to weigh shares of the single-task models' metrics.

        Returns:
            The sum and the ends of its 90 % interval, NaN where something hasn't been measured.
        """
        factors = self.weights * signs(self.maximize) / (self.single if normalise else 1.0)
        value = float(factors @ row.metrics)
        error = sqrt(float(factors**2 @ (row.metrics * (1 - row.metrics) / self.n_test)))
        return value, value - Z_90 * error, value + Z_90 * error


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
    check_seed(seed)
    study = store.study(study_id)
    tasks, metrics = study.spec.task_names, study.spec.metrics
    maximize = [metric.maximize for metric in metrics]
    shown = _preference(weights, tasks)
    sampled = np.random.default_rng(seed).dirichlet(np.ones(len(tasks)), N_PREFERENCES)
    family = _family(store, study)
    base = family[0]
    measured = {member.id: _Measured(store, member) for member in family}
    entries = [
        *_run_entries(store, study, family, np.vstack([shown, sampled]), seed),
        _preference_entry(base, np.vstack([shown, sampled])),
        *_reference_entries(base),
    ]
    single = np.diag(measured[base.id].at(np.eye(len(tasks)))).copy()
    rows, sums = [], {}
    for entry in entries:
        values = entry.values if entry.C is None else measured[entry.row.study_id].at(entry.C)
        rows.append(_filled(entry, values))
        sums[entry.row.key] = _sums(values, sampled, maximize)
    return Comparison(
        study_id=study_id,
        tasks=tasks,
        metrics=metrics,
        weights=shown,
        rows=tuple(rows),
        single=single,
        n_test=measured[base.id].n_examples,
        preferences=sampled,
        sums=sums,
        wins={},
        missing=sum(table.missing for table in measured.values()),
        offered=(),
    )


@dataclass(frozen=True, eq=False)
class _Entry:
    """A row before its metrics are looked up.

    Attributes:
        row: The row as far as it is known.
        C: Its models for the shown preference, then for each sampled one; one model alone where it has one
            for all; None where there is none or it isn't a c.
        values: Where it isn't a c, its model's metrics (``1 x K``).
    """

    row: Row
    C: np.ndarray | None
    values: np.ndarray | None = None


class _Measured:
    """A study's test split, by c; counts what was looked up in vain.

    Attributes:
        n_examples: Examples of each task (K,), NaN where nothing has been measured.
        wanted: The c that were looked up and lack a task.
    """

    def __init__(self, store: Store, study: StudyRow) -> None:
        tasks = study.spec.task_names
        self._known: dict[bytes, np.ndarray] = {}
        self.n_examples = np.full(len(tasks), nan)
        self.wanted: dict[bytes, np.ndarray] = {}
        for evaluation in store.evaluations(study.id, "test"):
            k = tasks.index(evaluation.task)
            values = self._known.setdefault(evaluation.c.tobytes(), np.full(len(tasks), nan))
            values[k] = evaluation.value
            self.n_examples[k] = evaluation.n_examples

    @property
    def missing(self) -> int:
        """Evaluations that what was looked up still lacks."""
        return int(sum(np.isnan(self._values(key)).sum() for key in self.wanted))

    def at(self, C: np.ndarray) -> np.ndarray:
        """Metrics (``m x K``) at the rows of ``C`` (``m x N``), NaN where they haven't been measured."""
        values = np.array([self._values(c.tobytes()) for c in C])
        self.wanted |= {c.tobytes(): c for c, row in zip(C, values, strict=True) if np.isnan(row).any()}
        return values

    def _values(self, key: bytes) -> np.ndarray:
        return self._known.get(key, np.full(len(self.n_examples), nan))


def _preference(weights: Mapping[str, float] | None, tasks: Sequence[str]) -> np.ndarray:
    """The shown preference (K,), summing to 1."""
    weights = dict.fromkeys(tasks, 1.0) if weights is None else weights
    for name in weights:
        if name not in tasks:
            raise StudyError(f"There is no task '{name}': the study has {', '.join(tasks)}.")
    return normalise([weights.get(task, 0.0) for task in tasks], len(tasks))


def _family(store: Store, study: StudyRow) -> list[StudyRow]:
    """The study and its siblings, which differ by the transform; first the one without, if there is one."""
    plain = replace(study.spec, transform=None)
    others = [
        other
        for other in reversed(store.studies())
        if replace(other.spec, transform=None) == plain
        and other.sources == study.sources
        and other.spec.transform != study.spec.transform
    ]
    return sorted([study, *others], key=lambda member: member.spec.transform is not None)


def _run_entries(
    store: Store, study: StudyRow, family: Sequence[StudyRow], preferences: np.ndarray, seed: int
) -> list[_Entry]:
    """This study's runs, then its siblings' finished ones."""
    runs = [(study, run) for run in store.runs(study.id)]
    for other in family:
        if other.id != study.id:
            runs += [(other, run) for run in store.runs(other.id) if run.status == "done"]
    names = _run_names(runs)
    maximize = [metric.maximize for metric in study.spec.metrics]
    entries = []
    for (owner, run), name in zip(runs, names, strict=True):
        found = finding_of(store, run, seed=seed)
        C = None
        if found.front is not None:
            C = np.array([found.front.choose(weights, maximize) for weights in preferences]) + 0.0
            C = C[:1] if len(found.front.c) == 1 else C
        row = _empty_row(
            f"run-{run.id}", name, "run", run.method, owner, (found.evaluations, found.seconds), run_id=run.id
        )
        entries.append(_Entry(replace(row, problem=found.problem), C))
    return entries


def _run_names(runs: Sequence[tuple[StudyRow, RunRow]]) -> list[str]:
    """Each run's name, with what tells it from others of the same method."""
    plain = [
        TITLES[run.method] + (f" on {study.spec.transform.label}" if study.spec.transform else "")
        for study, run in runs
    ]
    names = []
    for name, (_, run) in zip(plain, runs, strict=True):
        alike = [other for also, (_, other) in zip(plain, runs, strict=True) if also == name]
        if len(alike) == 1:
            names.append(name)
        elif len({other.settings.seed for other in alike}) == len(alike):
            names.append(f"{name}, seed {run.settings.seed}")
        elif len({other.settings.points for other in alike}) == len(alike):
            names.append(f"{name}, {run.settings.points} points")
        else:
            names.append(f"{name}, run {run.id}")
    return names


def _preference_entry(base: StudyRow, preferences: np.ndarray) -> _Entry:
    """Task arithmetic with the normalised preference as coefficients (MAP, Table 3)."""
    row = _empty_row("preference", "Task arithmetic by preference", "baseline", "preference", base)
    return _Entry(row, preferences)


def _reference_entries(base: StudyRow) -> list[_Entry]:
    """The single-task models and the pre-trained one."""
    tasks = base.spec.task_names
    entries = []
    for name, c in zip(tasks, np.eye(len(tasks)), strict=True):
        row = _empty_row(f"single-{name}", f"{name}'s own model", "reference", "single", base)
        entries.append(_Entry(row, c[None]))
    row = _empty_row("pretrained", "Pre-trained", "reference", "pretrained", base)
    return [*entries, _Entry(row, np.zeros((1, len(tasks))))]


def _empty_row(
    key: str,
    name: str,
    kind: RowKind,
    method: str,
    study: StudyRow,
    spent: tuple[int, float] = (0, 0.0),
    *,
    run_id: int | None = None,
    baseline_id: int | None = None,
) -> Row:
    """A row of which nothing has been measured."""
    nothing = np.full(len(study.spec.tasks), nan)
    return Row(
        key, name, kind, method, study.id, run_id, baseline_id, None, nothing, None, None, nan, *spent, ""
    )


def _filled(entry: _Entry, values: np.ndarray | None) -> Row:
    """The entry's row with the metrics (``m x K``) of its models."""
    if values is None:
        return entry.row
    row = replace(entry.row, metrics=values[0])
    if entry.C is None:
        return row
    several = row.kind == "run" or row.method == "preference"
    _, first = np.unique(entry.C, axis=0, return_index=True)
    kept = np.sort(first)
    return replace(
        row,
        c=entry.C[0],
        front_c=entry.C[kept] if several else None,
        front=values[kept] if several else None,
    )


def _sums(values: np.ndarray | None, preferences: np.ndarray, maximize: Sequence[bool]) -> np.ndarray:
    """The preference-weighted sum of a row's model for each sampled preference (20,)."""
    if values is None:
        return np.full(len(preferences), nan)
    models = values[1:] if len(values) > 1 else np.repeat(values, len(preferences), axis=0)
    return np.asarray((preferences * models * signs(maximize)).sum(axis=1))
