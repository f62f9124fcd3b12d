"""Folders of models that a manifest.json describes, and the studies that the bundled demo zoo offers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import StudyError
from mapmerge_core.files import absolute, bundled
from mapmerge_core.registries import METHODS
from mapmerge_core.search.designs import anchors_outside
from mapmerge_core.studies.config.run import Compute, RunConfig
from mapmerge_core.studies.config.study_file import StudyFile, config_of

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudyConfig

DEMO_ZOO = bundled("assets", "zoo")
# In this order each demo holds the smaller ones, and its first tasks are the ones that clash most visibly.
_DEMO_ORDER = ("MNIST", "Emoji", "Letters", "Textures", "Fashion", "QuickDraw", "Flags", "Street")


@dataclass(frozen=True)
class Manifest:
    """A folder of models that belong together, as its manifest.json describes it.

    Attributes:
        title: What people call it.
        config: The study of all its tasks.
    """

    title: str
    config: StudyConfig


def read_manifest(folder: Path | str) -> Manifest:
    """Read the manifest.json of a folder of models: a study without a run, with a title and whatever else.

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
    if not isinstance(values, dict):
        raise StudyError(f"{path} isn't a manifest: compare it with the README's.")
    tasks = values.get("tasks")
    if isinstance(tasks, list):
        values["tasks"] = [
            {key: value for key, value in task.items() if key != "title"} if isinstance(task, dict) else task
            for task in tasks
        ]
    fields = ("name", "family", "architecture", "pretrained", "models", "tasks", "options")
    # Without a run, whose method takes scikit-learn, so that the dashboard's first page is quick.
    config = config_of({name: values[name] for name in fields if name in values}, folder, called=str(path))
    title = values.get("title", values.get("name"))
    return Manifest(title if isinstance(title, str) else folder.name, config)


def config_from_manifest(folder: Path | str, task_names: Sequence[str] | None = None) -> StudyConfig:
    """Return the study of a zoo's tasks, all of them or those named, in the order given.

    Raises:
        StudyError: The folder has no good manifest, or no such task.
    """
    config = read_manifest(folder).config
    return config if task_names is None else config.with_tasks(task_names)


def demo_tasks(n_models: int, zoo: Path | str = DEMO_ZOO) -> tuple[str, ...]:
    """Return the names of the tasks that the demo of ``n_models`` merges, of the demo zoo or of another.

    Raises:
        StudyError: There are fewer than two or more than the zoo has, or the folder has no manifest.
    """
    offered = [task.name for task in read_manifest(zoo).config.tasks if task.model]
    if not 2 <= n_models <= len(offered):
        raise StudyError(f"The demo merges 2 to {len(offered)} tasks, not {n_models}.")
    first = [name for name in _DEMO_ORDER if name in offered]
    return tuple([*first, *(name for name in offered if name not in first)][:n_models])


def kept_skills(zoo: Path | str = DEMO_ZOO) -> tuple[str, ...]:
    """Return the names of a zoo's tasks without a model: skills of the pre-trained model to keep."""
    return tuple(task.name for task in read_manifest(zoo).config.tasks if not task.model)


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
    names = [task.name for task in config.tasks]
    everything = len(names) > 4 and len(names) == len(read_manifest(zoo).config.models)
    return f"Demo: {f'all {len(names)} tasks' if everything else ' + '.join(names)}"
