"""Pareto Merging in a study: trains, keeps and measures learned sets."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import Cancelled, StudyError
from mapmerge_core.merges._training_settings import Training, TrainingPoint
from mapmerge_core.search.preference_grid import preference_grid
from mapmerge_core.search.preferences import normalise
from mapmerge_core.search.rules import judge, parse_rule
from mapmerge_core.studies.analysis.learned import LearnedRule, learned_set, measured_at
from mapmerge_core.studies.runs.measuring import measure

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from torch import Tensor

    from mapmerge_core.merges._pareto_training import ParetoMerging
    from mapmerge_core.merges._pareto_set import ParetoSet
    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.studies.store.rows import RunRow, Split, StudyRow
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

POINTS = 100
"""How often training says how it goes."""
LOOKS = 5
"""How often a few preferences are measured on the way, the end included."""
SAVED_EVERY = 10.0
"""Seconds between two checkpoints: what a killed process loses at most."""
_TIMED = 3
_CANDIDATES = 500
_APART = 0.005
"""Least distance (the sum of the shares' differences) from a measured preference to one worth measuring."""


def look_preferences(n_tasks: int) -> np.ndarray:
    """The preferences (``m x K``) that are measured on the way."""
    return preference_grid(n_tasks, max(5, n_tasks + 1))


def look_steps(steps: int) -> list[int]:
    """After which steps they are measured, without the end."""
    return sorted({round(steps * i / LOOKS) for i in range(1, LOOKS)} - {0, steps})


def n_units(settings_points: int, training: Training, n_tasks: int) -> int:
    """What a run counts up to: its steps, and the evaluations on the validation split."""
    looks = len(look_steps(training.steps)) * len(look_preferences(n_tasks))
    return training.steps + (looks + settings_points + n_tasks + 1) * n_tasks


def n_evaluations(settings_points: int, training: Training, n_tasks: int) -> int:
    """How many evaluations of a model on a task a run makes, on the way and at its end."""
    return n_units(settings_points, training, n_tasks) - training.steps


def learn(
    store: Store,
    run: RunRow,
    study: StudyRow,
    evaluator: Evaluator,
    *,
    cancel: Event,
    progress: Progress | None = None,
) -> None:
    """Trains a run's learned set, or goes on with it, and measures its grid on the validation split.

    Every `SAVED_EVERY` seconds all that resuming needs is written, so that a process that is killed loses
    no more than that; a resumed training ends as one that was never stopped. The pre-trained and the
    single-task models are measured, too: every comparison needs them.

    Raises:
        Cancelled: once ``cancel`` is set.
        MapMergeError: as for `pareto_merge`.
    """
    training = run.settings.training or Training()
    n_tasks = len(study.spec.tasks)
    total = n_units(run.settings.points, training, n_tasks)
    measured_on_the_way = len(look_steps(training.steps)) * len(look_preferences(n_tasks)) * n_tasks

    def report(done: int) -> None:
        if progress:
            progress(min(done, total), total)

    if not store.learned_file(run.id).exists():
        _Trainer(store, run, study, evaluator, training, cancel, report).train()
    before = training.steps + measured_on_the_way
    grid = preference_grid(n_tasks, run.settings.points, run.settings.seed)
    measure_learned(
        store, run.id, evaluator, grid, cancel=cancel, progress=lambda done, _: report(before + done)
    )
    before += grid.size
    anchors = np.eye(n_tasks + 1, n_tasks, k=-1)
    measure(
        store,
        study,
        evaluator,
        anchors,
        run_id=run.id,
        cancel=cancel,
        progress=lambda done, _: report(before + done),
    )


def seconds_per_step(evaluator: Evaluator, training: Training) -> float:
    """What a step of a training takes; the first ones, which prepare much, aside."""
    from mapmerge_core.merges._pareto_training import ParetoMerging

    merging = ParetoMerging(evaluator, training)
    merging.step()
    started = time.perf_counter()
    for _ in range(_TIMED):
        _, objective = merging.step()
    float(objective)  # waits for the device
    return (time.perf_counter() - started) / _TIMED


class _Trainer:
    """Takes the steps, and keeps how they go."""

    def __init__(
        self,
        store: Store,
        run: RunRow,
        study: StudyRow,
        evaluator: Evaluator,
        training: Training,
        cancel: Event,
        report: Callable[[int], None],
    ) -> None:
        from mapmerge_core.merges._pareto_training import ParetoMerging

        self._store, self._run, self._study, self._evaluator = store, run, study, evaluator
        self._cancel, self._report = cancel, report
        self._merging: ParetoMerging = ParetoMerging(evaluator, training, seed=run.settings.seed)
        self._file = store.training_file(run.id)
        if self._file.exists():
            self._merging.resume(self._file)
        self._steps: list[tuple[Tensor, Tensor]] = []  # on the device until they are needed
        self._seconds = 0.0
        self._points: list[TrainingPoint] = []
        self._measured = 0

    def train(self) -> None:
        steps = self._merging.training.steps
        looks, each = look_steps(steps), max(1, steps // POINTS)
        saved = time.monotonic()
        for step in [step for step in looks if step <= self._merging.steps_done]:
            self._look(step)  # one that a stop interrupted
        while not self._merging.is_done:
            if self._cancel.is_set():
                self._save()
                raise Cancelled
            started = time.perf_counter()
            self._steps.append(self._merging.step())
            done = self._merging.steps_done
            if done % each == 0 or done == steps:
                self._note(time.perf_counter() - started)
            else:
                self._seconds += time.perf_counter() - started
            self._report(done + self._measured)
            if done in looks:
                self._save()
                self._look(done)
                saved = time.monotonic()
            elif time.monotonic() - saved >= SAVED_EVERY:
                self._save()
                saved = time.monotonic()
        self._finish()

    def _note(self, seconds: float = 0.0) -> None:
        """Turns the steps since the last point into the next one; waits for the device."""
        import torch

        if not self._steps:
            return
        started = time.perf_counter()
        f = torch.stack([each for each, _ in self._steps]).double().mean(dim=0).cpu().numpy()
        objective = float(torch.stack([each for _, each in self._steps]).double().mean())
        seconds += self._seconds + time.perf_counter() - started
        self._points.append(TrainingPoint(self._merging.steps_done, objective, f, seconds))
        self._steps, self._seconds = [], 0.0

    def _save(self) -> None:
        """Keeps everything up to here."""
        self._note()
        # The points first: those of steps that a kill takes back are replaced when they are taken again.
        self._store.add_training_points(self._run.id, self._points)
        self._points = []
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._merging.save(self._file)

    def _look(self, step: int) -> None:
        """Measures a few preferences as the set is now, those that a look before a kill didn't reach too."""
        gammas = look_preferences(len(self._study.spec.tasks))
        if step != self._merging.steps_done:
            known, _ = self._store.learned_table(self._run.id, step=step)
            self._measured += gammas.size if len(known) else 0
            return

        def count(done: int, _: int) -> None:
            self._report(step + self._measured + done)

        _measure_models(
            self._store,
            self._run.id,
            self._evaluator,
            self._merging.pareto_set(),
            gammas,
            step=step,
            cancel=self._cancel,
            progress=count,
        )
        self._measured += gammas.size

    def _finish(self) -> None:
        """Writes the artifact, and only then lets go of the checkpoint."""
        from mapmerge_core.studies.runs.exporting import make_recipe

        self._save()
        recipe = asdict(make_recipe(self._store, self._study, None)) | {
            "method": "Pareto Merging",
            "training": asdict(self._merging.training),
            "seed": self._run.settings.seed,
            "n_extra": self._merging.n_extra,
            "n_parameters": self._evaluator.vectors.n_parameters,
        }
        self._merging.pareto_set().save(self._store.learned_file(self._run.id), recipe)
        self._file.unlink(missing_ok=True)


def load_learned(store: Store, run_id: int, vectors: TaskVectors) -> ParetoSet:
    """Reads a run's learned set.

    Raises:
        StudyError: where it isn't trained yet, or its file is gone.
        CheckpointError: where the file can't be read.
    """
    from mapmerge_core.merges._pareto_set import ParetoSet

    file = store.learned_file(run_id)
    if not file.exists():
        run = store.run(run_id)
        raise StudyError(
            f"Run {run_id} has learned no set yet: run it to its end first."
            if run.status != "done"
            else f"The learned set of run {run_id} is gone from {file}: run Pareto Merging again."
        )
    return ParetoSet.read(file, vectors)


def measure_learned(
    store: Store,
    run_id: int,
    evaluator: Evaluator,
    gammas: np.ndarray,
    *,
    split: Split = "val",
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Measures a learned set's models on every task, unless the store knows the values.

    Args:
        store: Where each value is committed as soon as it is measured.
        run_id: The run that learned the set.
        evaluator: Its study's.
        gammas: Preferences (``m x K``).
        split: "val" or "test".
        cancel: Set it to stop after the evaluation in flight.
        progress: Called with the evaluations that the store has and those wanted in all.

    Returns:
        The values (``m x K``).

    Raises:
        StudyError: where there is no learned set.
        SearchError: where a row is no preference.
        Cancelled: once ``cancel`` is set.
    """
    from mapmerge_core.weights.vectors.streamed import in_memory

    learned = load_learned(store, run_id, in_memory(evaluator.exported_vectors))
    return _measure_models(
        store, run_id, evaluator, learned, gammas, split=split, cancel=cancel, progress=progress
    )


def _measure_models(
    store: Store,
    run_id: int,
    evaluator: Evaluator,
    learned: ParetoSet,
    gammas: np.ndarray,
    *,
    split: Split = "val",
    step: int | None = None,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """As `measure_learned`, for the set as it is after ``step``, or finished."""
    tasks = learned.names
    gammas = np.array([normalise(gamma, len(tasks)) for gamma in gammas])
    values = measured_at(*store.learned_table(run_id, split, step), gammas)
    if step is None:
        step = max((point.step for point in store.training_points(run_id)), default=0)
    done = int(np.isfinite(values).sum())
    if progress:
        progress(done, values.size)
    for gamma, row in zip(gammas, values, strict=True):
        missing = [task for task, value in zip(tasks, row, strict=True) if np.isnan(value)]
        if not missing:
            continue
        if cancel and cancel.is_set():
            raise Cancelled
        for task, outcome in evaluator.outcomes_of(learned.merge(gamma), missing, split):
            store.add_learned_evaluation(run_id, gamma, task, split, outcome, step)
            row[tasks.index(task)] = outcome.value
            done += 1
            if progress:
                progress(done, values.size)
            if cancel and cancel.is_set() and done < values.size:
                raise Cancelled
    return values


def refine_by_rule(
    store: Store,
    run_id: int,
    evaluator: Evaluator,
    rule: str,
    *,
    budget: int = 12,
    cancel: Event | None = None,
    progress: Progress | None = None,
) -> LearnedRule:
    """Looks for a preference that meets a rule better than those measured, by measuring more of them.

    One after another, the preference that the interpolation thinks best of many drawn around the best one so
    far, nearer and nearer, is measured on the validation split.

    Args:
        store: Where each value is committed as soon as it is measured.
        run_id: The run that learned the set.
        evaluator: Its study's.
        rule: Such as "all >= 70%, maximize MNIST".
        budget: Preferences to measure.
        cancel: Set it to stop after the evaluation in flight; what was measured is kept.
        progress: Called with the evaluations made and those of the budget.

    Returns:
        The best measured preference.

    Raises:
        RuleError: where it is no rule over the study's tasks.
        StudyError: where there is no learned set.
        SearchError: where the rule needs single-task models that haven't been measured.
        Cancelled: once ``cancel`` is set.
    """
    rng = np.random.default_rng(run_id)
    learned = learned_set(store, run_id)
    n_tasks = len(learned.tasks)
    bounds = [metric.bounds for metric in learned.metrics]
    parsed = parse_rule(rule, learned.tasks, maximize=learned.maximize, bounds=bounds)
    best = learned.by_rule(rule)
    if progress:
        progress(0, budget * n_tasks)
    for number in range(budget):
        if cancel and cancel.is_set():
            raise Cancelled
        reach = 0.5 * 0.8**number
        drawn = rng.dirichlet(np.ones(n_tasks), _CANDIDATES)
        candidates = (1 - reach) * best.gamma + reach * drawn
        apart = np.abs(candidates[:, None] - learned.gammas).sum(axis=2).min(axis=1)
        candidates = candidates[apart >= _APART] if (apart >= _APART).any() else candidates
        predicted = np.array([learned.predict(gamma)[0] for gamma in candidates])
        row = judge(parsed, predicted, single=learned.single, maximize=learned.maximize).best

        def report(done: int, _: int, before: int = number * n_tasks) -> None:
            if progress:
                progress(before + done, budget * n_tasks)

        measure_learned(store, run_id, evaluator, candidates[row : row + 1], cancel=cancel, progress=report)
        learned = learned_set(store, run_id)
        best = learned.by_rule(rule)
    return best
