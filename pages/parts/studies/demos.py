"""The demos that Home offers: which tasks each has, and pictures of their data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mapmerge_core.studies.config.demo import demo_tasks, kept_skills, read_manifest
from pages.parts.shared import pictures, state

N_IMAGES = 16
"""How many pictures a demo shows."""


@dataclass(frozen=True)
class Card:
    """What a demo's card says.

    Attributes:
        key: What tells it from the others.
        n_models: How many models it merges.
        points: How many points its run evaluates.
        title: Its title.
        lead: One sentence.
        expected: How long its run takes on two cores, measured.
        keeps_skills: Whether it also measures what the pre-trained model can do without fine-tuning.
    """

    key: str
    n_models: int
    points: int
    title: str
    lead: str
    expected: str
    keeps_skills: bool = False


CARDS = (
    Card("2", 2, 30, "Two tasks", "A front you can see whole.", "20 seconds"),
    Card("4", 4, 60, "Four tasks", "Trade-offs that no table shows.", "1 minute"),
    Card("8", 8, 100, "Eight tasks", "Preferences and rules decide.", "3 minutes"),
    Card("kept", 2, 30, "A skill to keep", "Merge, and watch what is forgotten.", "30 seconds", keeps_skills=True),
)


@dataclass(frozen=True)
class Demo:
    """A demo that the zoo has models for.

    Attributes:
        card: What its card says.
        tasks: Names of its tasks.
        images: Pictures of their data, each as data URI and class name.
    """

    card: Card
    tasks: tuple[str, ...]
    images: Sequence[tuple[str, str]]


def find() -> list[Demo]:
    """Return the demos that the zoo has models for.

    Raises:
        MapMergeError: The zoo or its data is missing or damaged.
    """
    zoo = state.zoo()
    config = read_manifest(zoo).config
    data = {task.name: task.data for task in config.tasks if task.data}
    n_models = len(config.models)
    kept = kept_skills(zoo)
    demos: list[Demo] = []
    shown: dict[str, Sequence[tuple[str, str]]] = {}
    for card in CARDS:
        if card.n_models > n_models or (card.keeps_skills and not kept):
            continue
        names = demo_tasks(card.n_models, zoo) + (kept if card.keeps_skills else ())
        share = -(-N_IMAGES // len(names))
        for name in names:
            # The smallest demo shows most of a dataset, and decompressing one takes a while.
            shown[name] = shown.get(name) or pictures.samples(data[name], share)
        images = [image for name in names for image in shown[name][:share]]
        demos.append(Demo(card, names, images[:N_IMAGES]))
    return demos
