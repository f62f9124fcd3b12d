"""Folders of models that a manifest.json describes, and which studies the demo zoo offers.

Nothing here imports torch, so that pages can list and describe studies at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import StudyError
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.files import absolute
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import StudySpec, TaskSpec
from mapmerge_core.tasks.data_source import DataSource

if TYPE_CHECKING:
    from collections.abc import Sequence

DEMO_ZOO = Path(__file__).resolve().parents[2] / "assets" / "zoo"
# In this order each demo holds the smaller ones, and its first tasks are the ones that clash most visibly.
_DEMO_ORDER = ("MNIST", "Emoji", "Letters", "Textures", "Fashion", "QuickDraw", "Flags", "Street")


@dataclass(frozen=True)
class ManifestTask:
    """A task that a zoo offers."""

    name: str
    title: str
    checkpoint: Path
    data: Path


@dataclass(frozen=True)
class Manifest:
    """A folder of models that belong together, as its manifest.json describes it; all paths are absolute."""

    name: str
    title: str
    family: str
    architecture: str
    pretrained: Path
    tasks: tuple[ManifestTask, ...]


def read_manifest(folder: Path | str) -> Manifest:
    """Reads the manifest.json of a folder of models.

    Raises:
        StudyError: where there is none, or it isn't what a manifest should be.
    """
    folder = absolute(folder)
    path = folder / "manifest.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"{folder} has no manifest.json: choose a folder with one, or add the checkpoints one by one."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{path} can't be read as JSON: {error}.") from error
    try:
        name, architecture = _text(values, "name"), _text(values, "architecture")
        if architecture.endswith(".json"):
            architecture = str(folder / architecture)
        family, pretrained = _text(values, "family"), folder / _text(values, "pretrained")
        tasks = tuple(
            ManifestTask(
                name=_text(task, "name"),
                title=_text({"title": task["name"]} | task, "title"),
                checkpoint=folder / _text(task, "checkpoint"),
                data=folder / _text(task, "data"),
            )
            for task in _list(values, "tasks")
        )
        title = _text({"title": name} | values, "title")
    except KeyError as error:
        raise StudyError(f"{path} has no {error}: add it, as the README's manifest shows.") from error
    except TypeError as error:
        raise StudyError(f"{path} isn't a manifest ({error}): compare it with the README's.") from error
    names = [task.name for task in tasks]
    for task_name in names:
        if names.count(task_name) > 1:
            raise StudyError(f"{path} has two tasks called '{task_name}': give each a name of its own.")
    return Manifest(name, title, family, architecture, pretrained, tasks)


def _list(values: dict[str, Any], key: str) -> list[Any]:
    found = values[key]
    if not isinstance(found, list):
        raise TypeError(f"'{key}' isn't a list")
    return found


def _text(values: object, key: str) -> str:
    """A manifest's text (KeyError where there is none, TypeError where it is something else)."""
    if not isinstance(values, dict):
        raise TypeError(f"{json.dumps(values)[:40]} isn't an object")
    text = values[key]
    if not isinstance(text, str) or not text.strip():
        raise TypeError(f"'{key}' is {json.dumps(text)[:40]} and should be text")
    return text


def spec_from_manifest(folder: Path | str, task_names: Sequence[str] | None = None) -> StudySpec:
    """The study of a zoo's tasks, all of them or those named, in the order given.

    Raises:
        StudyError: for a folder without a good manifest, and for a task that it doesn't have.
    """
    manifest = read_manifest(folder)
    offered = {task.name: task for task in manifest.tasks}
    chosen = list(offered) if task_names is None else list(task_names)
    for name in chosen:
        if name not in offered:
            raise StudyError(f"{folder} has no task '{name}': choose among {', '.join(offered)}.")
    return StudySpec(
        family=manifest.family,
        architecture=manifest.architecture,
        pretrained=manifest.pretrained,
        tasks=tuple(
            TaskSpec(name, offered[name].checkpoint, DataSource(path=offered[name].data)) for name in chosen
        ),
    )


def demo_tasks(n_tasks: int, zoo: Path | str = DEMO_ZOO) -> tuple[str, ...]:
    """Names of the tasks that the demo with ``n_tasks`` merges, of the demo zoo or of another.

    Raises:
        StudyError: for fewer than two tasks, for more than the zoo has, and for a folder without a manifest.
    """
    offered = [task.name for task in read_manifest(zoo).tasks]
    if not 2 <= n_tasks <= len(offered):
        raise StudyError(f"The demo merges 2 to {len(offered)} tasks, not {n_tasks}.")
    known = [name for name in _DEMO_ORDER if name in offered]
    return tuple([*known, *(name for name in offered if name not in known)][:n_tasks])


def demo_settings(n_tasks: int, points: int | None = None, seed: int = 0) -> RunSettings:
    """What the demo with ``n_tasks`` evaluates.

    The paper's budgets, but at most 100 points, enough for the demo's models. Many full task vectors at once
    ruin a model, so from five tasks on the box ends at 0.6.
    """
    from mapmerge_core.methods.map import MAP

    if points is None:
        points = min(MAP.default_points(n_tasks), 100)
    return RunSettings(points=points, seed=seed, high=1.0 if n_tasks <= 4 else 0.6)


def is_demo(spec: StudySpec, zoo: Path | str = DEMO_ZOO) -> bool:
    """Whether a study merges models of a zoo's own."""
    return isinstance(spec.pretrained, Path) and spec.pretrained.is_relative_to(absolute(zoo))


def demo_training(n_tasks: int, **changes: Any) -> Training:  # noqa: ANN401 - Training's own fields
    """How Pareto Merging learns from the demo's models with ``n_tasks``, with ``changes`` to its settings.

    The paper's way, but for three settings. Merges of these small models are weak, so that without balance
    the least entropy is that of calling everything by one class. Their entropies are less steep than those of
    large models, so that the paper's weight of the norm would keep all models the same. And of many tasks a
    uniform preference hardly ever puts most of its weight on one, so that no model would learn to.
    """
    usual = {"beta_norm": round(0.24 / n_tasks, 3), "balance": 1.0, "concentration": 2 / n_tasks}
    return Training(**{**usual, **changes})
