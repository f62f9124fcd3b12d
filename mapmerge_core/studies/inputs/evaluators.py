"""From a study's files to an evaluator: models read, examples on the device, ready to measure any merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.run import Compute
from mapmerge_core.studies.inputs.sources import check_sources, weights_of_sources
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.task import Task

if TYPE_CHECKING:
    import torch

    from mapmerge_core.studies.config.study import StudyConfig
    from mapmerge_core.studies.inputs.kept import KeptStudy
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.tasks.families.base import Family
    from mapmerge_core.weights.vectors.streamed import Vectors


def open_study_vectors(
    config: StudyConfig,
    weights: Mapping[str, Path],
    *,
    on_disk: bool | None = None,
    device: torch.device | str = "cpu",
    rounded: bool = False,
) -> Vectors:
    """Open a study's task vectors, on the CPU.

    Args:
        config: The study.
        weights: Where each model's weights lie, by role (see `StudyConfig.weights`).
        on_disk: As for `open_vectors`; merges on a CPU have the same bits either way.
        device: Where they will be merged.
        rounded: Whether to hold them in bfloat16, if they are kept in memory.

    Raises:
        CheckpointError: A checkpoint can't be read or doesn't fit.
    """
    from mapmerge_core.weights.vectors.streamed import open_vectors

    family, pretrained = find_family(config.family), weights["pretrained"]
    return open_vectors(
        pretrained,
        {name: weights[f"{name} model"] for name in config.models},
        part=family.loaded().part,
        without=family.loaded().left_out(config.architecture, pretrained),
        on_disk=on_disk,
        device=device,
        rounded=rounded,
    )


def load_evaluator(study: KeptStudy, compute: Compute | None = None) -> Evaluator:
    """Read a study's checkpoints and datasets.

    Args:
        study: The study.
        compute: Where and in which numbers to measure; of several devices the first one's evaluator has the
            others' as its siblings. Where task vectors are held in bfloat16, the test split's merges read the
            checkpoints instead.

    Raises:
        StudyError: A file has changed since the study was created, or memory is too small.
        CheckpointError: A checkpoint can't be read or doesn't fit.
        DatasetError: A dataset can't be read.
    """
    import torch

    from mapmerge_core.tasks.devices import choose_devices
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

    compute = compute or Compute()
    check_sources(study.sources)
    devices = choose_devices(compute.device)
    weights = weights_of_sources(study.config, study.sources)
    precision: str = compute.precision
    try:
        rounded = compute.vectors == "bfloat16"
        held = exported = open_study_vectors(study.config, weights, device=devices[0], rounded=rounded)
        if isinstance(held, TaskVectors) and held.is_rounded:
            exported = open_study_vectors(study.config, weights, on_disk=True)
        evaluators: list[Evaluator] = []
        for device in devices:
            family, tasks = load_family(study.config, weights["pretrained"]), tasks_of(study.config)
            evaluator = Evaluator(family, held, tasks, exported=exported, device=device, precision=precision)
            evaluators.append(evaluator)
            precision = evaluator.precision  # the same on all devices
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StudyError(
            f"The models of '{study.name}' don't fit into the memory of {', '.join(map(str, devices))}: merge "
            "fewer models, choose another device, or close other programs."
        ) from error
    first, *first.siblings = evaluators
    return first


def tasks_of(config: StudyConfig) -> list[Task]:
    """Return a study's tasks as evaluators know them."""
    return [Task(task.name, task.data, task.metrics, task.model) for task in config.tasks]


def load_family(config: StudyConfig, pretrained: Path) -> Family:
    """Make a study's family, holding the pre-trained model that lies at ``pretrained``.

    Raises:
        CheckpointError: The model can't be made or read.
        MapMergeError: A person's own family can't be imported.
    """
    family = find_family(config.family)
    options = {**config.options, **family.options_for(config.pretrained)}
    return family.make(config.architecture, pretrained, options, tasks_of(config))


@dataclass
class _Kept:
    """An evaluator with what it was read for."""

    study_id: int
    precision: str
    vectors: str
    evaluator: Evaluator


class EvaluatorCache:
    """Keeps the evaluator that was used last on each device, since reading large models takes long.

    Names of one device, such as "auto" and "cpu" where there is no GPU, share an evaluator; so does "auto" with
    the precision that it comes to.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[tuple[str, ...], _Kept] = {}

    def get(self, study: KeptStudy, compute: Compute | None = None) -> Evaluator:
        """Return the study's evaluator, read anew where another was used last (errors as `load_evaluator`)."""
        from mapmerge_core.tasks.devices import choose_devices, choose_precision, name_of

        compute = compute or Compute()
        devices = choose_devices(compute.device)
        key = tuple(name_of(device) for device in devices)
        precision = choose_precision(devices[0].type) if compute.precision == "auto" else compute.precision
        with self._lock:
            kept = self._kept.get(key)
            wanted = study.id, precision, compute.vectors
            if kept is not None and (kept.study_id, kept.precision, kept.vectors) == wanted:
                check_sources(study.sources)
                return kept.evaluator
            del kept
            self._kept.pop(key, None)  # before others are read, which may need its memory
            evaluator = load_evaluator(study, compute)
            self._kept[key] = _Kept(*wanted, evaluator)
            return evaluator

    def clear(self) -> None:
        """Let go of the models and the devices' memory."""
        with self._lock:
            self._kept.clear()
