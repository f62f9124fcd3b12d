"""The demo: a study of the bundled zoo, ready to run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.search.surrogate import QuadraticSurrogate
from mapmerge_core.studies.spec import (
    DEMO_ZOO,
    demo_settings,
    demo_tasks,
    read_manifest,
    spec_from_manifest,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.rows import RunRow
    from mapmerge_core.studies.store import Store


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
    everything = n_tasks > 4 and n_tasks == len(read_manifest(zoo).tasks)
    names = f"all {n_tasks} tasks" if everything else " + ".join(spec.task_names)
    settings = replace(demo_settings(n_tasks, points, seed), device=device)
    settings.make_method("map", spec)  # refuses what can't be sampled before a study is kept
    # Where the box ends below 1, the single-task models lie outside it and aren't fitted.
    needed = QuadraticSurrogate.n_parameters(n_tasks) + (n_tasks if settings.high < 1 else 0)
    if settings.points < needed:
        raise StudyError(
            f"{settings.points} points are too few to see the trade-offs of {n_tasks} tasks: choose {needed} "
            "or more."
        )
    return store.create_run(store.create_study(f"Demo: {names}", spec).id, settings)
