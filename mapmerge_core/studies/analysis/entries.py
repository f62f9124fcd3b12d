"""What a comparison is about: runs, baselines and references, each with its models, and what was measured of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import nan
from typing import TYPE_CHECKING, Literal

import numpy as np

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.analysis.replay import run_result, unfinished
from mapmerge_core.studies.store import Run, Store, StoredMerge, point_key
from mapmerge_core.tasks.objective import maximize_of

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudyConfig

Kind = Literal["run", "baseline", "single", "pretrained"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
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


def gather(store: Store, study_id: int, config: StudyConfig, preferences: np.ndarray, seed: int) -> list[Entry]:
    """Return a study's runs, then its baselines, then its references.

    Args:
        store: Where the study is.
        study_id: The study.
        config: Its configuration.
        preferences: The preferences for which runs offer a model each (``m x K``), the shown one first.
        seed: Seed of the search for fronts.
    """
    merges = store.merges.all(study_id)
    by_id = {merge.id: merge for merge in merges}
    entries = [_run(store, run, by_id[run.merge_id], config, preferences, seed) for run in store.runs.all(study_id)]
    entries += _by_preference(merges[0], config, preferences)
    entries += [entry for merge in merges for entry in _baselines(merge, config)]
    # Every study's first merge is task arithmetic: the fine-tuned models and the pre-trained one are points of it.
    n = len(config.model_names)
    for model, x in zip(config.model_names, np.eye(n), strict=True):
        name = f"{model}'s own model"
        entries.append(Entry(key=f"single-{model}", name=name, kind="single", merge_id=merges[0].id, X=x[None]))
    origin = np.zeros((1, n))
    entries.append(Entry(key="pretrained", name="Pre-trained", kind="pretrained", merge_id=merges[0].id, X=origin))
    count = Counter(entry.name for entry in entries)
    return [entry if count[entry.name] == 1 else replace(entry, name=_told_apart(entry)) for entry in entries]


def _run(store: Store, run: Run, merge: StoredMerge, config: StudyConfig, preferences: np.ndarray, seed: int) -> Entry:
    entry = Entry(
        key=f"run-{run.id}",
        name=run.config.label,
        kind="run",
        method=run.config.method,
        merge_id=run.merge_id,
        run_id=run.id,
        X=None,
        evaluations=run.n_evaluations,
        seconds=run.seconds,
    )
    if run.status != "done":
        return replace(entry, problem=unfinished(run))
    try:
        result = run_result(store, run.id, seed=seed)
    except MapMergeError as error:
        return replace(entry, problem=str(error))
    maximize = maximize_of(config.objectives)
    X = result.x if len(result.x) == 1 else np.array([result.choose(weights, maximize) for weights in preferences])
    return replace(
        entry,
        X=merge.space.points(X),
        evaluations=result.evaluations + merge.evaluations,
        seconds=result.seconds + merge.seconds,
    )


def _by_preference(merge: StoredMerge, config: StudyConfig, preferences: np.ndarray) -> list[Entry]:
    """Return task arithmetic with a preference's shares as coefficients (MAP, Table 3).

    An objective's share goes to its own model; none is left out of the shown preference for want of one.
    """
    own = np.array([[objective.model == model for model in config.model_names] for objective in config.objectives])
    if not own[preferences[0] > 0].any(axis=1).all():
        return []
    shares = preferences @ own.astype(np.float64)
    X = merge.space.points(shares / shares.sum(axis=1, keepdims=True))
    name = f"{merge.title} by preference"
    return [Entry(key="preference", name=name, kind="baseline", method=merge.name, merge_id=merge.id, X=X)]


def _baselines(merge: StoredMerge, config: StudyConfig) -> Iterator[Entry]:
    if not merge.is_usable:
        return
    for number, (title, x) in enumerate(merge.make().baselines(config.model_names)):
        yield Entry(
            key=f"merge-{merge.id}" + (f"-{number + 1}" if number else ""),
            name=title,
            kind="baseline",
            method=merge.name,
            merge_id=merge.id,
            X=merge.space.points(np.asarray(x, dtype=np.float64)[None]),
            evaluations=merge.evaluations,
            seconds=merge.seconds,
        )


def _told_apart(entry: Entry) -> str:
    """Return the name of an entry that is called as another one."""
    return f"{entry.name}, " + (f"merge {entry.merge_id}" if entry.run_id is None else f"run {entry.run_id}")


class Tested:
    """A study's test split by model; notes what was looked up in vain.

    Args:
        store: Where the study is.
        study_id: The study.
        n_objectives: How many objectives it has, K.

    Attributes:
        n_examples: How many examples each objective was measured on (K,), NaN where it wasn't yet.
    """

    def __init__(self, store: Store, study_id: int, n_objectives: int) -> None:
        tables = store.evaluations.tables(study_id, "test")
        self._known = {
            point_key(merge_id, x): (values, errors)
            for merge_id, table in tables.items()
            for x, values, errors in zip(table.X, table.Y, table.errors, strict=True)
        }
        self._unknown = (np.full(n_objectives, nan),) * 2
        self._lacking: dict[tuple[int, bytes], tuple[np.ndarray, int]] = {}
        counts = [table.n_examples.max(axis=0) for table in tables.values()]
        most = np.max(counts, axis=0) if counts else np.zeros(n_objectives)
        self.n_examples = np.where(most > 0, most, nan)

    def at(self, merge_id: int, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up a merge's models (``m x D``).

        Returns:
            Values and their standard errors, each ``m x K``, NaN where they haven't been measured.
        """
        pairs = [self._known.get(point_key(merge_id, x), self._unknown) for x in X]
        values, errors = (np.array(column) for column in zip(*pairs, strict=True))
        for x, lacking in zip(X, np.isnan(values).sum(axis=1), strict=True):
            if lacking:
                self._lacking[point_key(merge_id, x)] = x, int(lacking)
        return values, errors

    @property
    def missing(self) -> int:
        """How many values what was looked up lacks."""
        return sum(count for _, count in self._lacking.values())

    @property
    def wanted(self) -> dict[int, np.ndarray]:
        """By merge id the models (``m x D``) that lack some."""
        points: dict[int, list[np.ndarray]] = {}
        for (merge_id, _), (x, _) in self._lacking.items():
            points.setdefault(merge_id, []).append(x)
        return {merge_id: np.array(X) for merge_id, X in points.items()}
