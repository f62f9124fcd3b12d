"""The demos that Home offers: which tasks each has, and pictures of their data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapmerge_core.studies.manifest import demo_tasks, read_manifest
from pages.parts import pictures, state

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
    found = {}
    for count, _, _ in DEMOS:
        if count <= len(data):
            names = demo_tasks(count, state.zoo())
            images = [image for name in names for image in pictures.samples(data[name], N_IMAGES // count)]
            found[count] = Demo(names, images)
    return found
