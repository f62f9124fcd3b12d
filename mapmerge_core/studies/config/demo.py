"""The demo: studies of the bundled zoo, ready to run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import SEARCHES, default_points
from mapmerge_core.search.designs import anchors_outside
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.studies.config.manifest import (
    DEMO_ZOO,
    demo_settings,
    demo_tasks,
    read_manifest,
    spec_from_manifest,
)
from mapmerge_core.studies.inputs.sources import read_sources

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.config.run import RunSettings
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.store import Store


def create_demo_study(
    store: Store,
    n_tasks: int,
    *,
    points: int | None = None,
    seed: int = 0,
    device: str = "auto",
    zoo: Path | str = DEMO_ZOO,
) -> RunRow:
    """Keeps a new study of a zoo's first tasks and a run of MAP for it, both in their default settings.

    Returns:
        The run, queued; start it with ``Jobs.start_run`` or ``execute_run``.

    Raises:
        StudyError: for a number of tasks that the zoo doesn't have, and for a folder that is no zoo.
        StudyError: for too few points to fit surrogates to.
        SearchError: for points and seeds that can't be sampled.
    """
    spec = spec_from_manifest(zoo, demo_tasks(n_tasks, zoo))
    settings = replace(demo_settings(n_tasks, points, seed), device=device)
    _check_map(spec, settings)  # before a study is kept
    return store.create_run(store.create_study(_name(spec, zoo), spec).id, settings)


def find_demo_study(store: Store, n_tasks: int, *, zoo: Path | str = DEMO_ZOO) -> StudyRow:
    """The latest demo study of a zoo's first tasks, kept anew where there is none or the zoo has changed.

    Raises:
        StudyError: for a number of tasks that the zoo doesn't have, and for a folder that is no zoo.
    """
    spec = spec_from_manifest(zoo, demo_tasks(n_tasks, zoo))
    name = _name(spec, zoo)
    for study in store.studies():
        if study.name.startswith(name) and study.spec == spec and study.sources == read_sources(spec):
            return study
    return store.create_study(name, spec)


def demo_runs(
    n_tasks: int,
    *,
    points: int | None = None,
    direct_points: int | None = None,
    seed: int = 0,
    device: str = "auto",
    zoo: Path | str = DEMO_ZOO,
) -> list[tuple[MethodName, RunSettings]]:
    """Every search for the comparison of the demo with ``n_tasks``, in the order in which to run them.

    MAP, Bayesian MAP and direct search sample the demo's box; nested MAP merges two models at a time and
    samples [0, 1].

    Args:
        n_tasks: Tasks to merge.
        points: MAP's budget, by default the demo's (``demo_settings``).
        direct_points: Direct search's budget, by default the paper's.
        seed: Seed of all.
        device: Where to evaluate.
        zoo: The folder of models.

    Raises:
        StudyError: for a number of tasks that the zoo doesn't have, and for too few points.
        SearchError: for points and seeds that can't be sampled.
    """
    spec = spec_from_manifest(zoo, demo_tasks(n_tasks, zoo))
    plain = replace(demo_settings(n_tasks, points, seed), device=device)
    _check_map(spec, plain)
    budgets = {
        "map": plain.points,
        "bayesian": default_points("bayesian", n_tasks),
        "nested": default_points("nested", n_tasks),
        "direct": default_points("direct", n_tasks) if direct_points is None else direct_points,
    }
    runs = [
        (method, replace(plain, points=budgets[method], high=1.0 if method == "nested" else plain.high))
        for method in SEARCHES
    ]
    for method, settings in runs:
        settings.make_method(method, spec)
    return runs


def _name(spec: StudySpec, zoo: Path | str) -> str:
    n_tasks = len(spec.tasks)
    everything = n_tasks > 4 and n_tasks == len(read_manifest(zoo).tasks)
    return f"Demo: {f'all {n_tasks} tasks' if everything else ' + '.join(spec.task_names)}"


def _check_map(spec: StudySpec, settings: RunSettings) -> None:
    """Refuses what MAP can't sample or fit."""
    settings.make_method("map", spec)
    n_tasks = len(spec.tasks)
    # Where the box ends below 1, the single-task models lie outside it and aren't fitted.
    outside = anchors_outside(n_tasks, settings.low, settings.high)
    needed = QuadraticSurrogate.n_parameters(n_tasks) + outside
    if settings.points < needed:
        raise StudyError(
            f"{settings.points} points are too few to see the trade-offs of {n_tasks} tasks: choose {needed} "
            "or more."
        )
