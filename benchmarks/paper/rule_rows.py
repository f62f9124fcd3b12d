"""What tables about rules share: single-task models, and how well a chosen model keeps a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.paper.bench import Bench
    from mapmerge_core.search.links.base import Array
    from mapmerge_core.studies.store import Split, Study


def quoted(name: str) -> str:
    """A task's name as a rule takes it, whatever is in it."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def single_values(bench: Bench, study: Study, split: Split = "val") -> Array:
    """Each task's metric by its own single-task model (K,)."""
    names = [task.name for task in study.config.tasks]
    eye = np.eye(len(names))
    return np.array(
        [bench.measure(study, c[None], split, tasks=[task])[0, 0] for task, c in zip(names, eye, strict=True)]
    )


def measured_shares(bench: Bench, study: Study, C: Array) -> tuple[Array, Array]:
    """Test metrics of models (``m x K``), and of each the least share of a single-task model's (m,)."""
    values = bench.measure(study, C, "test")
    return values, (values / single_values(bench, study, "test")).min(axis=1)
