"""The demos that Home offers: which tasks each has, and pictures of their data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapmerge_core.studies.config.manifest import demo_tasks, read_manifest
from pages.parts.shared import pictures, state

if TYPE_CHECKING:
    from collections.abc import Sequence

DEMOS = (
    (2, "Two tasks", "A front you can see whole."),
    (4, "Four tasks", "Trade-offs that no table shows."),
    (8, "Eight tasks", "Preferences and rules decide."),
)
"""How many tasks each has, its title, and a sentence on it."""
N_IMAGES = 16
"""How many pictures a demo shows."""


@dataclass(frozen=True)
class Demo:
    """A demo.

    Attributes:
        tasks: Names of its tasks.
        images: Pictures of their data, each as data URI and class name.
    """

    tasks: Sequence[str]
    images: Sequence[tuple[str, str]]


def find() -> dict[int, Demo]:
    """The demos that the zoo has models for, by their number of tasks.

    Raises:
        MapMergeError: where the zoo or its data is missing or damaged.
    """
    data = {task.name: task.data for task in read_manifest(state.zoo()).tasks}
    found: dict[int, Demo] = {}
    shown: dict[str, Sequence[tuple[str, str]]] = {}
    for count, _, _ in DEMOS:
        if count <= len(data):
            names, share = demo_tasks(count, state.zoo()), N_IMAGES // count
            for name in names:
                # The smallest demo shows most of a dataset, and decompressing one takes a while.
                shown[name] = shown.get(name) or pictures.samples(data[name], share)
            found[count] = Demo(names, [image for name in names for image in shown[name][:share]])
    return found
