"""Learned sets, for pages and command line: what was measured, and a model for a preference or a rule."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import TITLES
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.search.fronts import non_dominated
from mapmerge_core.search.preference_grid import PreferenceInterpolator
from mapmerge_core.search.preferences import normalise
from mapmerge_core.search.rules import judge, parse_rule
from mapmerge_core.studies.analysis.analysis import corner_values

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.store.rows import RunRow
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.metric import Metric

# A safetensors file begins with the length of its header, in so many bytes.
_LENGTH = 8
_MOST_HEADER = 100_000_000
# Preferences that differ by no more are one: their last bits depend on how they were divided.
_SAME = 1e-9


@dataclass(frozen=True, eq=False)
class LearnedRule:
    """What a rule leads to in a learned set.

    Attributes:
        gamma: The preference (K,) of the best measured model that meets the rule, or else of the nearest.
        values: Its metrics (K,) on the validation split.
        feasible: Whether it meets the rule.
        message: One sentence for people.
    """

    gamma: np.ndarray
    values: np.ndarray
    feasible: bool
    message: str


@dataclass(frozen=True, eq=False)
class LearnedSet:
    """A learned set by what was measured of it on the validation split.

    Attributes:
        run: The run that learned it.
        tasks: K names.
        metrics: Their metrics.
        gammas: Preferences that were measured (``m x K``), in the order of measuring.
        values: Their metrics (``m x K``).
        n_extra: Parameters of its low-rank tensors.
        n_parameters: Parameters of the part of a model that is merged.
        train_seconds: What training took.
        single: Each task's metric of its own single-task model (K,), NaN where it hasn't been measured.
        pretrained: The pre-trained model's metrics (K,), NaN where they haven't been measured.
    """

    run: RunRow
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    gammas: np.ndarray
    values: np.ndarray
    n_extra: int
    n_parameters: int
    train_seconds: float
    single: np.ndarray
    pretrained: np.ndarray
    _between: PreferenceInterpolator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bounds = [metric.bounds for metric in self.metrics]
        object.__setattr__(self, "_between", PreferenceInterpolator(self.gammas, self.values, bounds))

    @property
    def maximize(self) -> tuple[bool, ...]:
        """For each task, whether more is better."""
        return tuple(metric.maximize for metric in self.metrics)

    @property
    def is_flat(self) -> bool:
        """Whether all measured preferences gave the same metrics, to three digits: one model for all."""
        digits = self.values.round(3)
        return len(digits) > 1 and bool((digits == digits[0]).all())

    def predict(self, gamma: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Metrics for a preference (K,), which is divided by its sum.

        Returns:
            Values and the ends of their intervals, each (K,), and whether they were measured; others lie
            between measured ones (see `PreferenceInterpolator`).

        Raises:
            SearchError: where it is no preference.
        """
        shares = normalise(gamma, len(self.tasks))
        lower, upper = self._between.interval(shares)
        return self._between.predict(shares), lower, upper, self._between.is_measured(shares)

    def front(self) -> np.ndarray:
        """The rows of ``gammas`` whose models no other's dominates."""
        return np.flatnonzero(non_dominated(self.values, self.maximize))

    def by_rule(self, text: str) -> LearnedRule:
        """The measured preference whose model meets a rule best.

        Raises:
            RuleError: where the text is no rule over the study's tasks.
            SearchError: where the rule needs single-task models that haven't been measured.
        """
        rule = parse_rule(
            text, self.tasks, maximize=self.maximize, bounds=[metric.bounds for metric in self.metrics]
        )
        judged = judge(rule, self.values, single=self.single, maximize=self.maximize)
        if judged.feasible:
            message = "This model meets the rule, as measured on the validation split."
        else:
            message = f"No measured model meets this rule; the nearest misses {judged.missed}."
        row = judged.best
        return LearnedRule(self.gammas[row], self.values[row], judged.feasible, message)


def learned_runs(store: Store, study_id: int) -> list[RunRow]:
    """A study's runs that have learned a set, the latest first."""
    return [run for run in reversed(store.runs(study_id)) if _is_learned(run)]


def learned_set(store: Store, run_id: int) -> LearnedSet:
    """What a run has learned.

    Raises:
        StudyError: where there is no such run, it isn't one of Pareto Merging, it isn't done, or its file is
            gone or damaged.
    """
    run = store.run(run_id)
    if not _is_learned(run):
        raise StudyError(
            f"Run {run_id} has learned no set yet: run it to its end first."
            if run.method == "pareto_merging"
            else f"Run {run_id} learns no set of models: choose a run of Pareto Merging."
        )
    study = store.study(run.study_id)
    gammas, values = store.learned_table(run_id)
    known = np.isfinite(values).all(axis=1)
    n_extra, n_parameters = _sizes(store.learned_file(run_id))
    single, pretrained = corner_values(*store.table(study.id))
    return LearnedSet(
        run=run,
        tasks=study.spec.task_names,
        metrics=study.spec.metrics,
        gammas=gammas[known],
        values=values[known],
        n_extra=n_extra,
        n_parameters=n_parameters,
        train_seconds=sum(point.seconds for point in store.training_points(run_id)),
        single=single,
        pretrained=pretrained,
    )


def measured_at(gammas: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What is known about preferences.

    Args:
        gammas: Those that were measured (``n x K``), see ``Store.learned_table``.
        values: Their metrics (``n x K``).
        wanted: Those that are asked for (``m x K``), each summing to 1.

    Returns:
        Their metrics (``m x K``), NaN where they haven't been measured.
    """
    found = np.full(wanted.shape, np.nan)
    for row, preference in zip(found, wanted, strict=True):
        for known in values[(np.abs(gammas - preference) <= _SAME).all(axis=1)]:
            np.copyto(row, known, where=np.isfinite(known))
    return found


def run_title(run: RunRow) -> str:
    """What a run does, in a few words: "Evaluate 50 points"."""
    points = run.settings.points
    if run.method == "pareto_merging":
        steps = (run.settings.training or Training()).steps
        return f"Train {steps:,} steps, then measure {points:,} preference{'' if points == 1 else 's'}"
    return f"Evaluate {points} points{' a pair' if run.method == 'nested' else ''}"


def run_name(run: RunRow, spec: StudySpec) -> str:
    """What tables call a run's method: "Pareto Merging++" on TIES-trimmed task vectors, "MAP on DARE" ..."""
    title = TITLES[run.method]
    if run.method == "pareto_merging" and spec.transform and spec.transform.kind == "ties_trim":
        title += "++"
    elif spec.transform:
        title += f" on {spec.transform.label}"
    data_free = run.settings.training is not None and run.settings.training.data_free
    return f"{title}, data-free" if data_free else title


def _is_learned(run: RunRow) -> bool:
    return run.method == "pareto_merging" and run.status == "done"


def _sizes(path: Path) -> tuple[int, int]:
    """A learned set's extra parameters and those of a merged model, from its file's header, without torch."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            header = json.loads(file.read(min(length, _MOST_HEADER)))
        recipe = json.loads(header["__metadata__"]["mapmerge-pareto-set"])["recipe"]
        return recipe["n_extra"], recipe["n_parameters"]
    except FileNotFoundError:
        raise StudyError(f"The learned set is gone from {path}: run Pareto Merging again.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"The learned set {path} can't be read: run Pareto Merging again.") from error
