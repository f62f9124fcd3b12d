"""What every experiment works with: trained sets and what was measured of them, kept as files and shared."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.paper.bench import Bench
from benchmarks.pareto_merging.adamerging import AdaMerging, adamerging_training
from benchmarks.pareto_merging.personalisations import STRUCTURES
from mapmerge_core.errors import MapMergeError
from mapmerge_core.merges._pareto_training import ParetoMerging
from mapmerge_core.search.preferences import normalise
from mapmerge_core.studies.inputs.evaluators import load_evaluator
from mapmerge_core.studies.config.manifest import demo_training
from mapmerge_core.studies.analysis.siblings import sibling
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.tasks.evaluator import choose_device

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mapmerge_core.merges._pareto_set import ParetoSet
    from mapmerge_core.merges._training_settings import Training
    from mapmerge_core.search.links import Array
    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.tasks.evaluator import Evaluator

SAVED_EVERY = 10.0
"""Seconds between two checkpoints: what an interruption loses at most."""
_EVALUATORS = 3
_STEPS = 10
"""How many steps of one task take about as long as one of its evaluations, for the time left."""


@dataclass(frozen=True)
class KeepingBench(Bench):
    """A bench that keeps the evaluators of some studies: experiments go to and fro between their models."""

    _kept: dict[int, Evaluator] = field(default_factory=dict)

    def evaluator(self, study: StudyRow) -> Evaluator:
        """The study's evaluator; the last few that were read are kept."""
        if study.id not in self._kept:
            if len(self._kept) == _EVALUATORS:
                del self._kept[next(iter(self._kept))]
            self._kept[study.id] = load_evaluator(study, self.device)
        return self._kept[study.id]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is learned.

    Attributes:
        names: The tasks.
        training: How.
        seed: Its seed.
        structure: One of `STRUCTURES`.
        gamma: The one preference of AdaMerging; None for Pareto Merging.
        trimmed: Whether TIES trims the task vectors first (the paper's "++").
    """

    names: tuple[str, ...]
    training: Training
    seed: int
    structure: str = "tensor"
    gamma: tuple[float, ...] | None = None
    trimmed: bool = False


@dataclass(frozen=True)
class Learned:
    """Something that was trained to the end.

    Attributes:
        recipe: How.
        seconds: What the steps took.
        n_extra: Parameters that it adds.
        n_parameters: Parameters of the pre-trained model's merged part.
    """

    recipe: Recipe
    seconds: float
    n_extra: int
    n_parameters: int


@dataclass(frozen=True)
class Lab:
    """An experiment's surroundings.

    Attributes:
        bench: Studies, evaluators and measured coefficients, as for the MAP paper's tables.
        steps: Steps of every training.
        folder: Where trainings are kept.
    """

    bench: Bench
    steps: int
    folder: Path
    _sets: dict[Recipe, ParetoSet] = field(default_factory=dict)
    _studies: dict[tuple[object, ...], StudyRow] = field(default_factory=dict)

    def training(self, n_tasks: int, **changes: Any) -> Training:  # noqa: ANN401 - Training's own fields
        """How zoos of small models are learned from, with ``changes``."""
        return demo_training(n_tasks, **{"steps": self.steps, **changes})

    def study(self, names: Sequence[str], *, trimmed: bool = False) -> StudyRow:
        """The store's study of these tasks, made where there is none; or that on trimmed task vectors."""
        key = (*names, trimmed)
        if key not in self._studies:
            study = self.bench.study(names)
            transform = Transform("ties_trim") if trimmed else None
            self._studies[key] = sibling(self.bench.store, study, transform)
        return self._studies[key]

    def pareto(
        self,
        names: tuple[str, ...],
        seed: int,
        *,
        structure: str = "tensor",
        trimmed: bool = False,
        **changes: Any,  # noqa: ANN401 - Training's own fields
    ) -> Learned:
        """Pareto Merging, with ``changes`` to the usual training."""
        training = self.training(len(names), **changes)
        return self.learn(Recipe(names, training, seed, structure, trimmed=trimmed))

    def adamerging(
        self,
        names: tuple[str, ...],
        seed: int,
        gamma: Sequence[float] | None = None,
        *,
        trimmed: bool = False,
        **changes: Any,  # noqa: ANN401 - Training's own fields
    ) -> Learned:
        """AdaMerging, by default with equal preference; the same steps and images as `pareto`."""
        n = len(names)
        training = adamerging_training(self.training(n, **changes))
        preference = normalise(np.ones(n) if gamma is None else gamma, n)
        return self.learn(Recipe(names, training, seed, gamma=tuple(preference.tolist()), trimmed=trimmed))

    def worth(self, n_tasks: int, runs: int = 1) -> int:
        """How many evaluations take about as long as ``runs`` trainings."""
        return runs * (n_tasks * self.steps // _STEPS)

    def learn(self, recipe: Recipe) -> Learned:
        """Trains, goes on with a training, or takes one that is there.

        Raises:
            MapMergeError: Something can't be read, trained or kept.
        """
        notes = self._notes(recipe)
        size = self.worth(len(recipe.names))
        if notes.get("steps", 0) < recipe.training.steps:
            notes = self._train(recipe, notes, size)
        self.bench.counter.advance(size)
        return Learned(recipe, notes["seconds"], notes["n_extra"], notes["n_parameters"])

    def pareto_set(self, learned: Learned) -> ParetoSet:
        """The models themselves; the last set asked for is kept."""
        if learned.recipe not in self._sets:
            self._sets.clear()
            self._sets[learned.recipe] = self._merging(learned.recipe).pareto_set()
        return self._sets[learned.recipe]

    def measure(
        self,
        learned: Learned,
        gammas: Array,
        tasks: Sequence[str] | None = None,
        among: Sequence[str] | None = None,
    ) -> Array:
        """Metrics (``m x T``) on the test split of the models for ``gammas`` (``m x K``).

        What wasn't measured yet is, and is kept at once.

        Args:
            learned: Where the models come from; AdaMerging's is the same for every preference.
            gammas: Preferences.
            tasks: What to measure on; by default all tasks that were learned from.
            among: The tasks of the study that has all of ``tasks``, where some weren't learned from.
        """
        recipe = learned.recipe
        tasks = tasks or recipe.names
        notes = self._notes(recipe)
        measured: dict[str, dict[str, float]] = notes.setdefault("measured", {})
        rows = [normalise(gamma, len(recipe.names)) for gamma in gammas]
        keys = [" ".join(map(repr, row.tolist())) for row in rows]
        for number, (key, row) in enumerate(zip(keys, rows, strict=True)):
            known = measured.setdefault(key, {})
            missing = [task for task in tasks if task not in known]
            if missing:
                model = self.pareto_set(learned).merge(row)
                study = self.study(among) if among else self._study(recipe)
                outcomes = self.bench.evaluator(study).outcomes_of(model, missing, "test")
                known |= {task: outcome.value for task, outcome in outcomes}
                self._keep(recipe, notes)
            self.bench.counter.show((number + 1) * len(tasks))
        self.bench.counter.advance(len(keys) * len(tasks))
        return np.array([[measured[key][task] for task in tasks] for key in keys])

    def _train(self, recipe: Recipe, notes: dict[str, Any], size: int) -> dict[str, Any]:
        """Takes the steps that are missing."""
        evaluator = self.bench.evaluator(self._study(recipe))
        merging = self._merging(recipe)
        report = self.bench.counter.part(size)
        seconds = notes.get("seconds", 0.0)

        def noted() -> dict[str, Any]:
            return {
                "recipe": asdict(recipe),
                "steps": merging.steps_done,
                "seconds": seconds,
                "n_extra": merging.n_extra,
                "n_parameters": evaluator.vectors.n_parameters,
            }

        while not merging.is_done:
            started = time.perf_counter()
            while True:
                _, objective = merging.step()
                report(merging.steps_done, recipe.training.steps)
                if merging.is_done or time.perf_counter() - started >= SAVED_EVERY:
                    break
            float(objective)  # waits for the device
            seconds += time.perf_counter() - started
            merging.save(self._file(recipe))
            self._keep(recipe, noted())
        # Once more: an earlier call may have been stopped between the checkpoint and the notes.
        self._keep(recipe, noted())
        return noted()

    def _merging(self, recipe: Recipe) -> ParetoMerging:
        """The training as far as it is kept."""
        evaluator = self.bench.evaluator(self._study(recipe))
        if recipe.gamma is not None:
            merging: ParetoMerging = AdaMerging(evaluator, recipe.gamma, recipe.training, seed=recipe.seed)
        else:
            merging = ParetoMerging(
                evaluator, recipe.training, seed=recipe.seed, structure=STRUCTURES[recipe.structure][1]
            )
        file = self._file(recipe)
        if file.exists():
            merging.resume(file)
        return merging

    def _study(self, recipe: Recipe) -> StudyRow:
        return self.study(recipe.names, trimmed=recipe.trimmed)

    def _file(self, recipe: Recipe) -> Path:
        """The training's checkpoint, called by all that decides it, the models and images included."""
        sources = [source.sha256 for source in self._study(recipe).sources]
        device = choose_device(self.bench.device).type
        text = json.dumps([asdict(recipe), sources, device], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    def _notes(self, recipe: Recipe) -> dict[str, Any]:
        """What is known of a training beside its checkpoint: nothing where there is none."""
        file = self._file(recipe)
        path = file.with_suffix(".json")
        if not (file.exists() and path.exists()):
            return {}
        try:
            notes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MapMergeError(f"{path} can't be read ({error}): delete it to train anew.") from error
        return notes

    def _keep(self, recipe: Recipe, notes: dict[str, Any]) -> None:
        path = self._file(recipe).with_suffix(".json")
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps(notes, indent=1), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise MapMergeError(f"{path} can't be written: {error.strerror}.") from error
