"""What is compared: runs, baselines and references, each with the models that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan
from typing import TYPE_CHECKING, Literal

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.search.indicators import sample_preferences
from mapmerge_core.search.preferences import normalise
from mapmerge_core.studies.runs.baselines import baseline_values, find_made, label
from mapmerge_core.studies.analysis.findings import finding_of, unfinished
from mapmerge_core.studies.analysis.learned import measured_at, run_name
from mapmerge_core.studies.config.run import check_seed
from mapmerge_core.studies.analysis.siblings import family_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.store.store import Store

Kind = Literal["run", "baseline", "reference"]

N_PREFERENCES = 20
"""Sampled preferences of a comparison (MAP, Table 3)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """A row of a comparison before its models' metrics are looked up; what both have means the same.

    Attributes:
        C: Coefficients of its models: one for all preferences (``1 x N``), or one for each (``m x N``, in the
            preferences' order). None where its model isn't a c, or there is none.
        gammas: Of a learned set, the preferences themselves (``m x K``), for each of which it has a model.
        values: Metrics on the test split of models that aren't a c (``1 x K``, of a learned set ``m x K``),
            NaN where not measured.
    """

    key: str
    name: str
    kind: Kind
    method: str
    study_id: int
    run_id: int | None = None
    baseline_id: int | None = None
    C: np.ndarray | None = None
    gammas: np.ndarray | None = None
    values: np.ndarray | None = None
    evaluations: int = 0
    seconds: float = 0.0
    problem: str = ""

    @property
    def by_preference(self) -> bool:
        """Whether it is a front or a rule that has a model for each preference."""
        return self.kind == "run" or self.method == "preference"

    @property
    def n_missing(self) -> int:
        """Evaluations that models that aren't a c lack."""
        if self.values is None:
            return 0
        rows = self.values
        if self.gammas is not None:
            rows = rows[np.unique(self.gammas, axis=0, return_index=True)[1]]
        return int(np.isnan(rows).sum())


class Measured:
    """A study's test split, by c; counts what was looked up in vain.

    Attributes:
        n_examples: Examples of each task (K,), NaN where nothing has been measured, by c or of a learned set.
        wanted: The different c that were looked up and lack a task.
    """

    def __init__(self, store: Store, study: StudyRow) -> None:
        tasks = study.spec.task_names
        self._known: dict[bytes, np.ndarray] = {}
        self.n_examples = np.full(len(tasks), nan)
        self.wanted: dict[bytes, np.ndarray] = {}
        for run in store.runs(study.id):
            for task, n in store.learned_examples(run.id, "test").items():
                self.n_examples[tasks.index(task)] = n
        for evaluation in store.evaluations(study.id, "test"):
            k = tasks.index(evaluation.task)
            values = self._known.setdefault(evaluation.c.tobytes(), np.full(len(tasks), nan))
            values[k] = evaluation.value
            self.n_examples[k] = evaluation.n_examples

    @property
    def n_missing(self) -> int:
        """Evaluations that what was looked up lacks."""
        return int(sum(np.isnan(self._values(key)).sum() for key in self.wanted))

    def at(self, C: np.ndarray) -> np.ndarray:
        """Metrics (``m x K``) at the rows of ``C`` (``m x N``), NaN where they haven't been measured."""
        values = np.array([self._values(c.tobytes()) for c in C])
        self.wanted |= {c.tobytes(): c for c, row in zip(C, values, strict=True) if np.isnan(row).any()}
        return values

    def _values(self, key: bytes) -> np.ndarray:
        return self._known.get(key, np.full(len(self.n_examples), nan))


@dataclass(frozen=True, eq=False)
class Gathered:
    """What there is to compare.

    Attributes:
        preferences: The shown preference, then the sampled ones.
        measured: What has been measured, by the study's id; it has been asked for all entries' models.
    """

    study: StudyRow
    family: list[StudyRow]
    preferences: np.ndarray
    entries: list[Entry]
    measured: Mapping[int, Measured]

    def values(self, entry: Entry) -> np.ndarray | None:
        """Metrics (``m x K``) of an entry's models; None where it has none."""
        return entry.values if entry.C is None else self.measured[entry.study_id].at(entry.C)

    @property
    def n_missing(self) -> int:
        """Evaluations on the test split that the entries' models lack."""
        tables = sum(table.n_missing for table in self.measured.values())
        return tables + sum(entry.n_missing for entry in self.entries)


def gather(store: Store, study_id: int, weights: Mapping[str, float] | None, seed: int) -> Gathered:
    """Looks up all that is compared; arguments and errors are ``comparing.compare``'s."""
    check_seed(seed)
    study = store.study(study_id)
    tasks = study.spec.task_names
    preferences = np.vstack([shares_of(weights, tasks), sample_preferences(len(tasks), N_PREFERENCES, seed)])
    family = family_of(store, study)
    entries = _entries(store, study, family, preferences, seed)
    measured = {member.id: Measured(store, member) for member in family}
    gathered = Gathered(study, family, preferences, entries, measured)
    for entry in entries:
        gathered.values(entry)
    return gathered


def shares_of(weights: Mapping[str, float] | None, tasks: Sequence[str]) -> np.ndarray:
    """A preference as shares of the tasks (K,), which sum to 1; all alike for None.

    Raises:
        StudyError: for a task that isn't one.
        SearchError: for weights that are negative, not finite or all zero.
    """
    weights = dict.fromkeys(tasks, 1.0) if weights is None else weights
    for name in weights:
        if name not in tasks:
            raise StudyError(f"There is no task '{name}': the study has {', '.join(tasks)}.")
    return normalise([weights.get(task, 0.0) for task in tasks], len(tasks))


def _entries(
    store: Store, study: StudyRow, family: Sequence[StudyRow], preferences: np.ndarray, seed: int
) -> list[Entry]:
    """All that is compared: the study's runs, its siblings' finished ones, baselines, references.

    Args:
        store: Where everything is.
        study: The study.
        family: It and its siblings, see ``siblings.family_of``; baselines and references are the first one's.
        preferences: Preferences for which runs offer a model each (``m x K``).
        seed: Seed of the search for fronts.
    """
    return [
        *_runs(store, study, family, preferences, seed),
        *_baselines(store, family[0], preferences),
        *_references(family[0]),
    ]


def _runs(
    store: Store, study: StudyRow, family: Sequence[StudyRow], preferences: np.ndarray, seed: int
) -> list[Entry]:
    runs = [(study, run) for run in store.runs(study.id)]
    for other in family:
        if other.id != study.id:
            runs += [(other, run) for run in store.runs(other.id) if run.status == "done"]
    maximize = [metric.maximize for metric in study.spec.metrics]
    entries = []
    for (owner, run), name in zip(runs, _run_names(runs), strict=True):
        if run.method == "pareto_merging":
            entries.append(_learned(store, owner, run, name, preferences))
            continue
        found = finding_of(store, run, seed=seed)
        C = None
        if found.front is not None and len(found.front.c) == 1:
            C = found.front.c
        elif found.front is not None:
            C = np.array([found.front.choose(weights, maximize) for weights in preferences])
        entries.append(
            Entry(
                key=f"run-{run.id}",
                name=name,
                kind="run",
                method=run.method,
                study_id=owner.id,
                run_id=run.id,
                C=None if C is None else C + 0.0,  # turns -0 into 0, as the store writes it
                evaluations=found.evaluations,
                seconds=found.seconds,
                problem=found.problem,
            )
        )
    return entries


def _learned(store: Store, owner: StudyRow, run: RunRow, name: str, preferences: np.ndarray) -> Entry:
    """A learned set's models for the preferences."""
    entry = Entry(
        key=f"run-{run.id}",
        name=name,
        kind="run",
        method=run.method,
        study_id=owner.id,
        run_id=run.id,
        evaluations=run.n_evaluations,
        seconds=run.seconds,
    )
    if run.status != "done":
        return replace(entry, problem=unfinished(run))
    values = measured_at(*store.learned_table(run.id, "test"), preferences)
    return replace(entry, gammas=preferences, values=values)


def _run_names(runs: Sequence[tuple[StudyRow, RunRow]]) -> list[str]:
    """Each run's name, with what tells it from others of the same method."""
    titles = [run_name(run, study.spec) for study, run in runs]
    names = []
    for title, (_, run) in zip(titles, runs, strict=True):
        alike = [other for its, (_, other) in zip(titles, runs, strict=True) if its == title]
        if len(alike) == 1:
            names.append(title)
        elif len({other.settings.seed for other in alike}) == len(alike):
            names.append(f"{title}, seed {run.settings.seed}")
        elif len({other.settings.points for other in alike}) == len(alike):
            what = "preferences" if run.method == "pareto_merging" else "points"
            names.append(f"{title}, {run.settings.points} {what}")
        else:
            names.append(f"{title}, run {run.id}")
    return names


def _baselines(store: Store, base: StudyRow, preferences: np.ndarray) -> list[Entry]:
    entries = [
        # A preference's shares as coefficients (MAP, Table 3).
        Entry(
            key="preference",
            name="Task arithmetic by preference",
            kind="baseline",
            method="preference",
            study_id=base.id,
            C=preferences,
        )
    ]
    for baseline in store.baselines(base.id):
        made = find_made(store, base, baseline.name)
        usual = made is not None and made.id == baseline.id
        entries.append(
            Entry(
                key=baseline.name if usual else f"{baseline.name}-{baseline.id}",
                name=label(baseline),
                kind="baseline",
                method=baseline.name,
                study_id=base.id,
                baseline_id=baseline.id,
                C=None if baseline.c is None else baseline.c[None],
                values=baseline_values(store, baseline)[None] if baseline.c is None else None,
                evaluations=baseline.evaluations,
                seconds=baseline.seconds,
            )
        )
    return entries


def _references(base: StudyRow) -> list[Entry]:
    tasks = base.spec.task_names
    entries = [
        Entry(
            key=f"single-{task}",
            name=f"{task}'s own model",
            kind="reference",
            method="single",
            study_id=base.id,
            C=c[None],
        )
        for task, c in zip(tasks, np.eye(len(tasks)), strict=True)
    ]
    pretrained = Entry(
        key="pretrained",
        name="Pre-trained",
        kind="reference",
        method="pretrained",
        study_id=base.id,
        C=np.zeros((1, len(tasks))),
    )
    return [*entries, pretrained]
