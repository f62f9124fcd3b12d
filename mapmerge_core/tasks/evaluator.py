"""Coefficients in, outcomes out: merges a model in place and measures it on tasks."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError
from mapmerge_core.tasks.metric import Outcome, pack
from mapmerge_core.tasks.subsets import mean_of, nested_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn

    from mapmerge_core.tasks.families.base import Family, Scores
    from mapmerge_core.tasks.task import Task
    from mapmerge_core.weights.vectors.layout import StateDict
    from mapmerge_core.weights.vectors.streamed import Vectors

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# On a CPU without bfloat16 instructions the ratio is below 1, with them 2 to 5: a wide gap, so the choice is
# stable.
_WORTHWHILE_SPEEDUP = 1.5


_BATCH_SIZES = {"cpu": (256, 64), "other": (1024, 256)}
"""Examples in a batch as a rule, and what is tried beside it, by the type of device."""
_CLEARLY_FASTER = 0.85
_TRIALS, _TRIAL_SECONDS = 3, 1.0


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device of that name; ``"auto"`` is CUDA if there is one, else MPS, else the CPU.

    Raises:
        MapMergeError: There is no such device on this machine.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise MapMergeError(
            f"There is no device '{name}' here: choose auto or one of {', '.join(available)}."
        )
    return torch.device(name)


def choose_devices(names: str = "auto") -> list[torch.device]:
    """Returns devices that share work: those that commas separate, or with ``"auto"`` every GPU there is.

    Raises:
        MapMergeError: One of them isn't there, or is named twice.
    """
    if names == "auto" and torch.cuda.device_count() > 1:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    devices = [choose_device(name.strip()) for name in names.split(",")]
    chosen = [name_of(device) for device in devices]
    for device, name in zip(devices, chosen, strict=True):
        if chosen.count(name) > 1:
            raise MapMergeError(f"The device '{device}' is named twice: name each once.")
    return devices


def name_of(device: torch.device) -> str:
    """Returns the one name of a device that has several, as ``cuda`` and ``cuda:0``."""
    return f"{device.type}:{device.index or 0}"


@cache
def choose_precision(device_type: str) -> str:
    """Returns ``"bfloat16"`` where a type of device (``"cpu"``, ``"cuda"``) is fast at it, or ``"float32"``.

    A CPU is asked by timing one matrix product in both, once in a process.
    """
    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device_type != "cpu":
        return "float32"
    speedup = _seconds_of_product(torch.float32) / _seconds_of_product(torch.bfloat16)
    return "bfloat16" if speedup > _WORTHWHILE_SPEEDUP else "float32"


def _seconds_of_product(dtype: torch.dtype) -> float:
    a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 2048, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Evaluator:
    """Measures merged models on tasks; the merged model is the family's own, merged in place.

    Args:
        family: How parameters become predictions; moved to ``device``.
        vectors: The task vectors, of the family's part. Elsewhere than on a CPU they are held
            twice: on ``device`` for the validation split's fast merges, and on the CPU for the test split's,
            which an export repeats bit by bit.
        exported: The same task vectors as an export merges them, where ``vectors`` are rounded.
        tasks: What can be measured, with different names.
        device: A device or its name, see `choose_device`.
        precision: ``"float32"``, ``"bfloat16"`` or ``"auto"`` (see `choose_precision`) for the validation
            split.
        batch_size: Examples in a batch; by default 256 on a CPU, 1,024 elsewhere, but on the validation split
            what turns out to be clearly faster. Families of large models take fewer at a time, and so does
            everybody once the device's memory is full.

    Attributes:
        device: Where models are merged and measured.
        precision: What ``precision`` came to; hand it and `batch_size` to another `Evaluator` to get the
            same outcomes.
        batch_size: Examples in a batch, as a rule.
        siblings: Evaluators of the same tasks and vectors on other devices, to measure other c meanwhile.
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
        _dtype(self.precision)
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
        family.use(tasks)
        family.to(self.device)
        self.family = family
        self.vectors = vectors.to(self.device)
        self.siblings: Sequence[Evaluator] = ()
        self.in_use = Lock()
        self._exported = (exported or vectors).to("cpu")
        self._orders: dict[tuple[str, str], NDArray[np.intp]] = {}

    @property
    def exported_vectors(self) -> Vectors:
        """The task vectors as an export merges them: on the CPU."""
        return self._exported

    def prepare(self, tasks: Sequence[str] | None = None, split: str = "val") -> None:
        """Loads images and computes heads, so that the first `evaluate` takes no longer than the next.

        Raises:
            DatasetError: A task is unknown, or its dataset can't be read.
        """
        for task in self._chosen(tasks):
            self.family.prepare(task, split)

    def evaluate(
        self,
        c: ArrayLike,
        tasks: Sequence[str] | None = None,
        split: str = "val",
        precision: str | None = None,
    ) -> dict[str, Outcome]:
        """Measures θ(c).

        Args:
            c: N coefficients.
            tasks: Names of the tasks to measure; all by default.
            split: ``"val"`` or ``"test"``; for the latter, merges are computed on the CPU, as for an
                export.
            precision: By default `precision` for the validation split and float32 for the test split, so that
                a measured figure is what any other program gets from the exported model.

        Returns:
            An outcome for each task. The first one's seconds include the merge.

        Raises:
            PointError: ``c`` has another length, or holds NaN or infinity.
            DatasetError: A task is unknown, or its dataset can't be read.
            MapMergeError: The device runs out of memory.
        """
        return dict(self.outcomes(c, tasks, split, precision))

    def outcomes(
        self,
        c: ArrayLike,
        tasks: Sequence[str] | None = None,
        split: str = "val",
        precision: str | None = None,
        *,
        images: int | None = None,
        known: Mapping[str, NDArray[Any]] | None = None,
    ) -> Iterator[tuple[str, Outcome]]:
        """As `evaluate`, but hands out each task's name and outcome as soon as it is measured.

        The validation split can be measured in part: on the first examples of its `nested_order`. Where these
        are all there are, the outcome is that of the whole split.

        Args:
            c: N coefficients.
            tasks: Names of the tasks to measure; all by default.
            split: ``"val"`` or ``"test"``, which is measured whole always.
            precision: As for `evaluate`.
            images: How many examples of each task's validation split to measure; all by default.
            known: By task what is known of these already: a number for each of the first examples of the
                order, as `unpack` gives it. Only the others are measured.

        Raises:
            MapMergeError: The metric is no mean over examples, or the family measures whole splits only.
            PointError, DatasetError: As for `evaluate`.
        """
        vectors = self._exported if split == "test" else self.vectors
        if split == "test":
            images, known = None, None
        return self._measured(
            lambda model: vectors.merge_into(model, c), tasks, split, precision, images=images, known=known
        )

    def outcomes_of(
        self,
        state_dict: StateDict,
        tasks: Sequence[str] | None = None,
        split: str = "val",
        precision: str | None = None,
    ) -> Iterator[tuple[str, Outcome]]:
        """As `outcomes`, for any model with the pre-trained one's keys, such as a one-shot merge.

        Only the part that the family merges is taken from ``state_dict``, rounded to the pre-trained
        checkpoint's dtypes; heads stay the pre-trained model's.

        Raises:
            CheckpointError: A key of that part is missing or new, or a shape differs.
            DatasetError, MapMergeError: As for `evaluate`.
        """
        return self._measured(lambda model: self._load(model, state_dict), tasks, split, precision)

    def extras(self, c: ArrayLike) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """What an export of θ(c) holds besides the merge (see `Family.extras`), as the test split sees it.

        Raises:
            PointError, DatasetError, MapMergeError: As for `evaluate`.
        """
        return self._extras(lambda model: self._exported.merge_into(model, c))

    def extras_of(
        self, state_dict: StateDict
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """As `extras`, for any model with the pre-trained one's keys (see `outcomes_of`)."""
        return self._extras(lambda model: self._load(model, state_dict))

    def _extras(
        self, write: Callable[[nn.Module], None]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        self.prepare(split="test")
        write(self.family.model_in(torch.float32))
        self.family.merged(torch.float32)
        return self.family.extras()

    def _load(self, model: nn.Module, state_dict: StateDict) -> None:
        self.vectors.release(model)
        self._exported.load_into(model, state_dict)

    def _measured(
        self,
        write: Callable[[nn.Module], None],
        tasks: Sequence[str] | None,
        split: str,
        precision: str | None,
        *,
        images: int | None = None,
        known: Mapping[str, NDArray[Any]] | None = None,
    ) -> Iterator[tuple[str, Outcome]]:
        """Measures the model that ``write`` makes of the family's, one task after the other."""
        chosen = self._chosen(tasks)
        dtype = _dtype(precision or ("float32" if split == "test" else self.precision))
        try:
            self.prepare(tasks, split)
            start = time.perf_counter()
            write(self.family.model_in(dtype))
            self.family.merged(dtype)
            if split == "val" and images is None and chosen and dtype not in self._fastest:
                before = time.perf_counter()
                self._fastest[dtype] = self._fastest_size(chosen[0], dtype)
                start += time.perf_counter() - before
            for task in chosen:
                outcome = self._outcome(task, split, dtype, images, (known or {}).get(task.name))
                yield task.name, replace(outcome, seconds=time.perf_counter() - start)
                start = time.perf_counter()
        except torch.OutOfMemoryError as error:
            raise MapMergeError(
                f"The device {self.device} runs out of memory, however few examples pass at once: close "
                "other programs that use it, or choose another device."
            ) from error

    def _outcome(
        self, task: Task, split: str, dtype: torch.dtype, images: int | None, known: NDArray[Any] | None
    ) -> Outcome:
        """Measures the model as it is merged on one task, see `outcomes`; without the seconds."""
        if images is None and known is None:
            return self._whole(task, split, dtype)
        if not task.metric.is_mean:
            raise MapMergeError(
                f"The {task.metric.name} on '{task.name}' is no mean over examples, so that some of them "
                "don't tell it: leave the number of images out."
            )
        order = self._nested_order(task, split)
        n = len(order) if images is None else min(images, len(order))
        if n == len(order) and known is None:
            return self._whole(task, split, dtype)
        parts = [] if known is None else [known[:n]]
        missing = order[sum(map(len, parts)) : n]
        if len(missing):
            parts.append(self._scores(task, split, dtype, missing).per_example)
        per_example = np.concatenate(parts)
        if n == len(order):
            in_order = np.empty_like(per_example)
            in_order[order] = per_example
            return _outcome_of(task, mean_of(in_order), in_order)
        return _outcome_of(task, mean_of(per_example), per_example, len(order))

    def _whole(self, task: Task, split: str, dtype: torch.dtype) -> Outcome:
        scores = self._scores(task, split, dtype)
        return _outcome_of(task, scores.value, scores.per_example)

    def _scores(
        self, task: Task, split: str, dtype: torch.dtype, examples: NDArray[np.intp] | None = None
    ) -> Scores:
        """Measures in smaller batches, from now on, when the device's memory is full."""
        some = () if examples is None else (examples,)
        while True:
            size = self._fastest.get(dtype, self.batch_size) if split == "val" else self.batch_size
            size = self.family.at_once(task, split, size)
            try:
                return self.family.measure(task, split, dtype, size, *some)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self.batch_size = min(self.batch_size, size // 2)
            self._fastest = {known: min(best, size // 2) for known, best in self._fastest.items()}

    def _fastest_size(self, task: Task, dtype: torch.dtype) -> int:
        """How large batches are of which most examples pass in a second; as usual unless it's clear."""
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
        """What a batch takes; infinitely long where the memory is too small."""
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

    def _chosen(self, names: Sequence[str] | None) -> list[Task]:
        for name in names or ():
            if name not in self.tasks:
                raise DatasetError(f"There is no task '{name}': choose from {', '.join(self.tasks)}.")
        return list(self.tasks.values()) if names is None else [self.tasks[name] for name in names]


def _outcome_of(task: Task, value: float, per_example: NDArray[Any], n_total: int | None = None) -> Outcome:
    if not math.isfinite(value):
        raise MapMergeError(
            f"The {task.metric.name} on '{task.name}' of the model at these coefficients is not a finite "
            "number: sample a smaller box."
        )
    return Outcome(value, len(per_example), pack(per_example), 0.0, n_total)


def _dtype(precision: str) -> torch.dtype:
    if precision not in PRECISIONS:
        raise MapMergeError(
            f"There is no precision '{precision}': choose auto or one of {', '.join(PRECISIONS)}."
        )
    return PRECISIONS[precision]
