"""Folders of models that a manifest.json describes, and the studies that the bundled demo zoo offers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import StudyError
from mapmerge_core.files import absolute, bundled
from mapmerge_core.registries import METHODS
from mapmerge_core.search.designs import anchors_outside
from mapmerge_core.studies.config.run import Compute, RunConfig
from mapmerge_core.studies.config.study import StudyConfig, TaskConfig
from mapmerge_core.studies.config.study_file import StudyFile
from mapmerge_core.tasks.data_source import DataSource

if TYPE_CHECKING:
    from collections.abc import Sequence

DEMO_ZOO = bundled("assets", "zoo")
# In this order each demo holds the smaller ones, and its first tasks are the ones that clash most visibly.
_DEMO_ORDER = ("MNIST", "Emoji", "Letters", "Textures", "Fashion", "QuickDraw", "Flags", "Street")


@dataclass(frozen=True)
class ManifestTask:
    """A task that a zoo offers, with the model that was fine-tuned for it, if there is one."""

    name: str
    title: str
    checkpoint: Path | None
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
    """Read the manifest.json of a folder of models.

    Raises:
        StudyError: There is none, or it isn't what a manifest should be.
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
                checkpoint=folder / _text(task, "checkpoint") if "checkpoint" in task else None,
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
    listed = values[key]
    if not isinstance(listed, list):
        raise TypeError(f"'{key}' isn't a list")
    return listed


def _text(values: object, key: str) -> str:
    """Return a manifest's text (KeyError where there is none, TypeError where it is something else)."""
    if not isinstance(values, dict):
        raise TypeError(f"{json.dumps(values)[:40]} isn't an object")
    text = values[key]
    if not isinstance(text, str) or not text.strip():
        raise TypeError(f"'{key}' is {json.dumps(text)[:40]} and should be text")
    return text


def config_from_manifest(folder: Path | str, task_names: Sequence[str] | None = None) -> StudyConfig:
    """Return the study of a zoo's tasks, all of them or those named, in the order given.

    Raises:
        StudyError: The folder has no good manifest, or no such task.
    """
    manifest = read_manifest(folder)
    offered = {task.name: task for task in manifest.tasks}
    names = list(offered) if task_names is None else list(task_names)
    for name in names:
        if name not in offered:
            raise StudyError(f"{folder} has no task '{name}': choose among {', '.join(offered)}.")
    chosen = [offered[name] for name in names]
    return StudyConfig(
        family=manifest.family,
        architecture=manifest.architecture,
        pretrained=manifest.pretrained,
        models={task.name: task.checkpoint for task in chosen if task.checkpoint},
        tasks=tuple(
            TaskConfig(name=task.name, data=DataSource(path=task.data), model=task.name if task.checkpoint else None)
            for task in chosen
        ),
    )


def demo_tasks(n_models: int, zoo: Path | str = DEMO_ZOO) -> tuple[str, ...]:
    """Return the names of the tasks that the demo of ``n_models`` merges, of the demo zoo or of another.

    Raises:
        StudyError: There are fewer than two or more than the zoo has, or the folder has no manifest.
    """
    offered = [task.name for task in read_manifest(zoo).tasks if task.checkpoint]
    if not 2 <= n_models <= len(offered):
        raise StudyError(f"The demo merges 2 to {len(offered)} tasks, not {n_models}.")
    first = [name for name in _DEMO_ORDER if name in offered]
    return tuple([*first, *(name for name in offered if name not in first)][:n_models])


def kept_skills(zoo: Path | str = DEMO_ZOO) -> tuple[str, ...]:
    """Return the names of a zoo's tasks without a model: skills of the pre-trained model to keep."""
    return tuple(task.name for task in read_manifest(zoo).tasks if not task.checkpoint)


def demo_study(
    tasks: int | Sequence[str],
    *,
    points: int | None = None,
    seed: int = 0,
    device: str = "auto",
    zoo: Path | str = DEMO_ZOO,
) -> StudyFile:
    """Return a demo's study and its run of MAP.

    The paper's budgets, but at most 100 points, enough for the demo's models. Many full task vectors at once
    ruin a model, so from five tasks on the box ends at 0.6.

    Args:
        tasks: How many of the first tasks, or their names.
        points: MAP's budget.
        seed: Its seed.
        device: Where to evaluate.
        zoo: The folder of models.

    Raises:
        StudyError: The zoo doesn't have such tasks, or the points are too few to fit surrogates to.
        SearchError, SettingError: The points or the seed can't be used.
    """
    from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate  # takes scikit-learn

    names = demo_tasks(tasks, zoo) if isinstance(tasks, int) else tuple(tasks)
    config = config_from_manifest(zoo, names)
    n = len(config.models)
    high = 1.0 if n <= 4 else 0.6
    if points is None:
        space = RunConfig(high=high).space(config)
        points = min(METHODS["map"].default_points(space), 100)
    run = RunConfig(
        method_settings={"points": points, "seed": seed}, high=None if n <= 4 else high, compute=Compute(device=device)
    )
    run.check(config)
    space = run.space(config)
    # Where the box ends below 1, the single-task models lie outside it and aren't fitted.
    needed = QuadraticSurrogate.n_parameters(space.n_free) + anchors_outside(space)
    if points < needed:
        raise StudyError(f"{points} points are too few to see the trade-offs of {n} tasks: choose {needed} or more.")
    return StudyFile(name=_demo_name(config, zoo), config=config, run=run)


def demo_comparison(study: StudyFile, direct_points: int | None = None) -> list[RunConfig]:
    """Return every search for the comparison of a demo, in the order in which to run them.

    MAP, Bayesian MAP and direct search sample the demo's box; nested MAP merges two models at a time and samples
    [0, 1].

    Args:
        study: The demo's study with its run of MAP.
        direct_points: Direct search's budget, by default the paper's.

    Raises:
        StudyError, SearchError: A search can't be run.
    """
    usual = study.run
    runs = [usual]
    for name, points in (("bayesian", None), ("nested", None), ("direct", direct_points)):
        method = METHODS[name]
        settings = {"seed": usual.seed} | ({} if points is None else {"points": points})
        runs.append(
            RunConfig(
                method=name,
                method_settings=settings,
                high=None if method.per_pair else usual.high,
                compute=usual.compute,
            )
        )
    for run in runs:
        run.check(study.config)
    return runs


def demo_merge_settings(merge: str, n_models: int) -> dict[str, Any]:
    """Return the settings of a merge that suit the demo's models, where they aren't the usual ones.

    Pareto Merging learns in the paper's way, but for three settings. Merges of these small models are weak, so
    that without balance the least entropy is that of calling everything by one class. Their entropies are less
    steep than those of large models, so that the paper's weight of the norm would keep all models the same. And
    of many tasks a uniform preference hardly ever puts most of its weight on one, so that no model would learn to.
    """
    suited: dict[str, dict[str, Any]] = {
        "pareto_merging": {"beta_norm": round(0.24 / n_models, 3), "balance": 1.0, "concentration": 2 / n_models}
    }
    return suited.get(merge, {})


def is_demo(config: StudyConfig, zoo: Path | str = DEMO_ZOO) -> bool:
    """Return whether a study merges models of a zoo's own."""
    return isinstance(config.pretrained, Path) and config.pretrained.is_relative_to(absolute(zoo))


def _demo_name(config: StudyConfig, zoo: Path | str) -> str:
    n = len(config.tasks)
    n_models = sum(1 for task in read_manifest(zoo).tasks if task.checkpoint)
    everything = n > 4 and n == n_models
    return f"Demo: {f'all {n} tasks' if everything else ' + '.join(task.name for task in config.tasks)}"
