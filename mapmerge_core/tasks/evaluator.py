"""Points in, outcomes out: writes merged models into a family's own and measures them on tasks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError
from mapmerge_core.tasks.devices import choose_device, choose_precision, dtype_of
from mapmerge_core.tasks.metrics.base import Metric, Score
from mapmerge_core.tasks.objective import Objective, objectives_of
from mapmerge_core.tasks.outcome import Outcome, pack
from mapmerge_core.tasks.subsets import nested_order, standard_error

if TYPE_CHECKING:
    from mapmerge_core.tasks.families.base import Family
    from mapmerge_core.tasks.task import Task
    from mapmerge_core.weights.vectors.streamed import Vectors

    MergedPoint: TypeAlias = "tuple[WritesModels, ArrayLike]"

_BATCH_SIZES = {"cpu": (256, 64), "other": (1024, 256)}
"""Examples in a batch as a rule, and what is tried beside it, by the type of device."""
_CLEARLY_FASTER = 0.85
_TRIALS, _TRIAL_SECONDS = 3, 1.0


class WritesModels(Protocol):
    """What turns a point into a model, such as a prepared merge."""

    def write(self, module: nn.Module, x: ArrayLike) -> None:
        """Make ``module`` the model at ``x``, in place, the fast way."""

    def write_exact(self, module: nn.Module, x: ArrayLike) -> None:
        """Make ``module`` the model at ``x``, bit for bit as an export holds it."""


class VectorSum:
    """θ_pre + Σ x_n v_n of task vectors on the device of the models to write, and the same on the CPU."""

    def __init__(self, vectors: Vectors, exported: Vectors) -> None:
        self._vectors, self._exported = vectors, exported

    def write(self, module: nn.Module, x: ArrayLike) -> None:
        """Write θ(x), see `WritesModels.write`."""
        self._vectors.merge_into(module, x)

    def write_exact(self, module: nn.Module, x: ArrayLike) -> None:
        """Write θ(x), see `WritesModels.write_exact`."""
        self._exported.merge_into(module, x)


class Evaluator:
    """Measures merged models on tasks; the merged model is the family's own, merged in place.

    Args:
        family: How parameters become predictions; moved to ``device``.
        vectors: The N models' task vectors, of the family's part. Elsewhere than on a CPU they are held
            twice: on ``device`` for the validation split's fast merges, and on the CPU for the test split's,
            which an export repeats bit by bit.
        tasks: What can be measured, with different names; their metrics are the K objectives.
        exported: The same task vectors as an export merges them, where ``vectors`` are rounded.
        device: A device or its name, see `choose_device`.
        precision: "float32", "bfloat16" or "auto" (see `choose_precision`) for the validation split.
        batch_size: Examples in a batch; by default 256 on a CPU, 1,024 elsewhere, but on the validation split
            what turns out to be clearly faster. Families of large models take fewer at a time, and so does
            everybody once the device's memory is full.

    Attributes:
        tasks: By name.
        objectives: The K objectives, in order.
        device: Where models are merged and measured.
        precision: What ``precision`` came to; hand it and `batch_size` to another `Evaluator` to get the same outcomes.
        batch_size: Examples in a batch, as a rule.
        exported_vectors: The task vectors as an export merges them, on the CPU.
        siblings: Evaluators of the same tasks and vectors on other devices, for other points meanwhile.
        in_use: Who shares it among threads holds this lock while evaluating: there is one model.

    Raises:
        MapMergeError: Two tasks share a name, the device is missing, the family can't measure a task's
            metric, or the vectors are of another part.
    """

    def __init__(
        self,
        family: Family,
        vectors: Vectors,
        tasks: Sequence[Task],
        *,
        exported: Vectors | None = None,
        device: torch.device | str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.device = choose_device(str(device))
        self.precision = choose_precision(self.device.type) if precision == "auto" else precision
        dtype_of(self.precision)
        usual, other = _BATCH_SIZES.get(self.device.type, _BATCH_SIZES["other"])
        self.batch_size = batch_size or usual
        self._other_size = None if batch_size else other
        self._fastest: dict[torch.dtype, int] = {}
        if vectors.part != family.part:
            raise CheckpointError(
                f"The task vectors cover '{vectors.part}', but this family of models merges '{family.part}'."
            )
        self.tasks = {task.name: task for task in tasks}
        if len(self.tasks) < len(tasks):
            names = [task.name for task in tasks]
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"Two tasks are named '{twice}': give each its own name.")
        self.objectives = objectives_of(tasks)
        self._objectives = {objective.key: objective for objective in self.objectives}
        family.use(tasks)
        family.to(self.device)
        self.family = family
        self.vectors = vectors.to(self.device)
        self.exported_vectors = (exported or vectors).to("cpu")
        self.siblings: Sequence[Evaluator] = ()
        self.in_use = Lock()
        self._orders: dict[tuple[str, str], NDArray[np.intp]] = {}

    def prepare(self, tasks: Sequence[str] | None = None, split: str = "val") -> None:
        """Load images and compute heads, so that the first measurement takes no longer than the next.

        Raises:
            DatasetError: A task is unknown, or its dataset can't be read.
        """
        for name in self.tasks if tasks is None else tasks:
            self.family.prepare(self._task(name), split)

    def at(self, c: ArrayLike) -> MergedPoint:
        """Return the point θ_pre + Σ c_n v_n, as task arithmetic has it, for `outcomes` and `extras`."""
        return VectorSum(self.vectors, self.exported_vectors), c

    def evaluate(
        self, c: ArrayLike, tasks: Sequence[str] | None = None, split: str = "val", precision: str | None = None
    ) -> dict[str, Outcome]:
        """Measure θ(c) = θ_pre + Σ c_n v_n, as task arithmetic has it.

        Args:
            c: N coefficients.
            tasks: Names of the tasks to measure; all by default.
            split: "val" or "test"; for the latter, merges are computed on the CPU, as for an export.
            precision: As for `outcomes`.

        Returns:
            An outcome for each objective, by its name: that of its task where the task has one metric. The
            first one's seconds include the merge.

        Raises:
            PointError: ``c`` has another length, or holds NaN or infinity.
            DatasetError: A task is unknown, or its dataset can't be read.
            MapMergeError: The device runs out of memory.
        """
        names = [self._task(name).name for name in (self.tasks if tasks is None else tasks)]
        keys = [objective.key for name in names for objective in self.objectives if objective.task == name]
        outcomes = self.outcomes(self.at(c), keys, split, precision)
        return {self._objectives[key].name: outcome for key, outcome in outcomes}

    def outcomes(
        self,
        point: MergedPoint,
        objectives: Sequence[str] | None = None,
        split: str = "val",
        precision: str | None = None,
        *,
        images: int | None = None,
        measured: Mapping[str, NDArray[Any]] | None = None,
    ) -> Iterator[tuple[str, Outcome]]:
        """Measure the model at a point, and hand out each objective's key and outcome as soon as it is known.

        Objectives of one task are measured by one pass over its examples. The validation split can be
        measured in part: on the first examples of its `nested_order`. Where these are all there are, the
        outcome is that of the whole split.

        Args:
            point: What writes models, such as a prepared merge, and x, a point of its space.
            objectives: Keys of the objectives to measure; all by default.
            split: "val" or "test"; the latter is measured whole, and the model is written as an export holds it.
            precision: By default `precision` for the validation split and float32 for the test split, so that
                a measured figure is what any other program gets from the exported model.
            images: How many examples of each task's validation split to measure; all by default.
            measured: By key what is measured already: a number for each of the first examples of the order,
                as `unpack` gives it. Only the others are measured.

        Raises:
            PointError: x is no point of its space.
            DatasetError: An objective is unknown, or its dataset can't be read.
            MapMergeError: Parts are asked for where a metric is no mean over examples or the family measures
                whole splits only, or the device runs out of memory.
        """
        tasks = self._with_metrics(objectives)
        dtype = dtype_of(precision or ("float32" if split == "test" else self.precision))
        if split == "test":
            images, measured = None, None
        try:
            self.prepare([task.name for task in tasks], split)
            start = time.perf_counter()
            self._write(point, split, dtype)
            if split == "val" and images is None and tasks and dtype not in self._fastest:
                before = time.perf_counter()
                self._fastest[dtype] = self._fastest_size(tasks[0], dtype)
                start += time.perf_counter() - before
            for task in tasks:
                for key, outcome in self._measured(task, split, dtype, images, measured or {}).items():
                    yield key, replace(outcome, seconds=time.perf_counter() - start)
                    start = time.perf_counter()
        except torch.OutOfMemoryError as error:
            raise MapMergeError(
                f"The device {self.device} runs out of memory, however few examples pass at once: close "
                "other programs that use it, or choose another device."
            ) from error

    def extras(self, point: MergedPoint) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """Return what an export of a point holds besides the merge (see `Family.extras`).

        Raises:
            PointError, DatasetError, MapMergeError: As for `outcomes`.
        """
        self.prepare(split="test")
        self._write(point, "test", torch.float32)
        return self.family.extras()

    def _write(self, point: MergedPoint, split: str, dtype: torch.dtype) -> None:
        """Make the family's model the one at a point."""
        merge, x = point
        write = merge.write_exact if split == "test" else merge.write
        write(self.family.model_in(dtype), x)
        self.family.merged(dtype)

    def _measured(
        self, task: Task, split: str, dtype: torch.dtype, images: int | None, measured: Mapping[str, NDArray[Any]]
    ) -> dict[str, Outcome]:
        """Measure the model as it is written on one task, see `outcomes`; without the seconds."""
        keys = {metric: Objective(task.name, metric, None, "").key for metric in task.metrics}
        known = {metric: measured[key] for metric, key in keys.items() if key in measured}
        n_total = None
        if images is None and not known:
            scores = self._scores(task, split, dtype)
        else:
            for metric in task.metrics:
                if not metric.is_mean:
                    raise MapMergeError(
                        f"The {metric.name} on '{task.name}' is no mean over examples, so that some of them "
                        "don't tell it: leave the number of images out."
                    )
            order = self._nested_order(task, split)
            n = len(order) if images is None else min(images, len(order))
            n_total = len(order) if n < len(order) else None
            if n_total is None and not known:
                scores = self._scores(task, split, dtype)
            else:
                numbers = self._completed(task, split, dtype, order[:n], known)
                scores = {metric: _mean(order, of_metric) for metric, of_metric in numbers.items()}
        return {keys[metric]: _outcome_of(task, metric, scores, n_total) for metric in task.metrics}

    def _completed(
        self,
        task: Task,
        split: str,
        dtype: torch.dtype,
        examples: NDArray[np.intp],
        known: Mapping[Metric, NDArray[Any]],
    ) -> dict[Metric, NDArray[Any]]:
        """Return a number for each of ``examples``, measuring those that aren't known for some metric."""
        begin = min(len(known.get(metric, ())) for metric in task.metrics)
        missing = examples[begin:]
        scores = self._scores(task, split, dtype, missing) if len(missing) else {}
        numbers = {}
        for metric in task.metrics:
            first = known.get(metric, np.empty(0))[: len(examples)]
            rest = [scores[metric].per_example[len(first) - begin :]] if len(first) < len(examples) else []
            numbers[metric] = np.concatenate([*([first] if len(first) else []), *rest])
        return numbers

    def _scores(
        self, task: Task, split: str, dtype: torch.dtype, examples: NDArray[np.intp] | None = None
    ) -> Mapping[Metric, Score]:
        """Measure in smaller batches, from now on, when the device's memory is full."""
        chosen = () if examples is None else (examples,)
        while True:
            size = self._fastest.get(dtype, self.batch_size) if split == "val" else self.batch_size
            size = self.family.at_once(task, split, size)
            try:
                return self.family.measure(task, split, dtype, size, *chosen)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self.batch_size = min(self.batch_size, size // 2)
            self._fastest = {dtype: min(best, size // 2) for dtype, best in self._fastest.items()}

    def _fastest_size(self, task: Task, dtype: torch.dtype) -> int:
        """Return the batch size by which most examples pass in a second; the usual one unless it's clear."""
        usual, other = self.batch_size, self._other_size
        if other is None:
            return usual
        try:
            n = self.family.n_examples(task, "val")
        except MapMergeError:  # whole splits only
            return usual
        sizes = {self.family.at_once(task, "val", size) for size in (usual, other)}
        if n < max(usual, other) or len(sizes) < 2:
            return usual
        as_usual = otherwise = math.inf
        start = time.perf_counter()
        for _ in range(_TRIALS):
            as_usual = min(as_usual, self._seconds_per_example(task, dtype, usual))
            otherwise = min(otherwise, self._seconds_per_example(task, dtype, other))
            if time.perf_counter() - start > _TRIAL_SECONDS:
                break
        return other if otherwise < _CLEARLY_FASTER * as_usual else usual

    def _seconds_per_example(self, task: Task, dtype: torch.dtype, size: int) -> float:
        """Return what a batch takes; infinity where the memory is too small."""
        start = time.perf_counter()
        try:
            self.family.measure(task, "val", dtype, size, np.arange(size))
        except torch.OutOfMemoryError:
            return math.inf
        return (time.perf_counter() - start) / size

    def _nested_order(self, task: Task, split: str) -> NDArray[np.intp]:
        key = (task.name, split)
        if key not in self._orders:
            n, strata = self.family.n_examples(task, split), self.family.strata(task, split)
            self._orders[key] = nested_order(strata, n)
        return self._orders[key]

    def _task(self, name: str) -> Task:
        if name not in self.tasks:
            raise DatasetError(f"There is no task '{name}': choose from {', '.join(self.tasks)}.")
        return self.tasks[name]

    def _with_metrics(self, keys: Sequence[str] | None) -> list[Task]:
        """Return the tasks of objectives, each with those of its metrics that are asked for."""
        metrics: dict[str, list[Metric]] = {}
        for key in dict.fromkeys(self._objectives if keys is None else keys):
            if key not in self._objectives:
                raise DatasetError(f"There is no objective '{key}': choose from {', '.join(self._objectives)}.")
            objective = self._objectives[key]
            metrics.setdefault(objective.task, []).append(objective.metric)
        return [replace(self.tasks[name], metrics=tuple(chosen)) for name, chosen in metrics.items()]


def _mean(order: NDArray[np.intp], numbers: NDArray[Any]) -> Score:
    """Return the mean of the numbers of the first examples of an order."""
    n, per_example = len(numbers), numbers
    if n == len(order):
        per_example = np.empty_like(numbers)
        per_example[order] = numbers
    error = standard_error(per_example, None if n == len(order) else len(order))
    return Score(float(per_example.mean(dtype=np.float64)), error, per_example)


def _outcome_of(task: Task, metric: Metric, scores: Mapping[Metric, Score], n_total: int | None) -> Outcome:
    if metric not in scores:
        raise MapMergeError(
            f"The family of models measured no {metric.name} on '{task.name}': let its `measure` return a "
            "score for each of the task's metrics."
        )
    score = scores[metric]
    if not math.isfinite(score.value):
        raise MapMergeError(
            f"The {metric.name} on '{task.name}' of the model at this point is not a finite number: sample a "
            "smaller box."
        )
    error = score.standard_error
    if error is None and metric.is_mean and len(score.per_example):
        error = standard_error(score.per_example)
    return Outcome(float(score.value), len(score.per_example), pack(score.per_example), 0.0, n_total, error)
