"""The eight tasks: classes, prompts, and train, validation and test splits that share no sample."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from . import render
from .artwork import Artwork, Idx
from .classes import CAPITALS, CLOTHES, DIGITS, DRAWN, EMOJI_CLASSES, FLAG_CODES, TEXTURES
from .settings import EVALUATION_SIZE, FONT_SEED, TASK_SEED, TEST_FAMILIES, VALIDATION_FAMILIES

SPLITS = ("train", "val", "test")
DRAWINGS = {"test": slice(0, 25), "val": slice(25, 40), "train": slice(40, 100)}
MNIST_TRAIN, FASHION_TRAIN = 8000, 16000
GOOGLE, TWITTER = 0, 2  # places in `sources.EMOJI`


@dataclass(frozen=True)
class Split:
    """Images (n, 32, 32) or (n, 32, 32, 3) uint8 and labels (n,) int64."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class TaskData:
    """One task's words and its three splits by name."""

    name: str
    title: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    splits: dict[str, Split]

    def file_name(self, suffix: str) -> str:
        """The task's file with a suffix, such as "mnist.npz"."""
        return self.name.lower() + suffix

    @property
    def prompts(self) -> list[list[str]]:
        """For each class, its name in every template."""
        return [[template.format(name) for template in self.templates] for name in self.class_names]


def split_fonts(families: list[list[Path]]) -> dict[str, list[list[Path]]]:
    """Share the font families out: no family is in two splits."""
    order = np.random.default_rng(FONT_SEED).permutation(len(families))
    shuffled = [families[i] for i in order]
    last = TEST_FAMILIES + VALIDATION_FAMILIES
    return {"train": shuffled[last:], "val": shuffled[TEST_FAMILIES:last], "test": shuffled[:TEST_FAMILIES]}


def shuffled(rng: Generator, images: np.ndarray, labels: np.ndarray) -> Split:
    """A split of these images in random order."""
    order = rng.permutation(len(labels))
    return Split(np.ascontiguousarray(images[order]), labels[order].astype(np.int64))


def _drawn(
    seed: list[int], classes: int, train: int, draw: Callable[[Generator, int, str], np.ndarray]
) -> dict[str, Split]:
    """Draw the splits of a rendered task, classes in equal shares."""
    splits = {}
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([*seed, number])
        labels = np.arange(train if split == "train" else EVALUATION_SIZE) % classes
        splits[split] = shuffled(rng, np.stack([draw(rng, int(label), split) for label in labels]), labels)
    return splits


def _photographed(seed: list[int], data: Idx, train: int) -> dict[str, Split]:
    """Cut the splits of MNIST or Fashion-MNIST: test images come from the authors' test set."""
    rng = np.random.default_rng(seed)
    order = reserved_order(len(data.train_labels))
    held_out = rng.permutation(len(data.test_labels))[:EVALUATION_SIZE]
    chosen = {"train": order[:train], "val": order[train : train + EVALUATION_SIZE]}
    splits = {
        name: Split(render.framed(data.train_images[rows]), data.train_labels[rows].astype(np.int64))
        for name, rows in chosen.items()
    }
    splits["test"] = Split(render.framed(data.test_images[held_out]), data.test_labels[held_out].astype(np.int64))
    return splits


def reserved_order(n: int) -> np.ndarray:
    """The order in which training images are given out: tasks take from its start, the pool from its end."""
    return np.random.default_rng(TASK_SEED).permutation(n)


def pooled_rows(data: Idx) -> np.ndarray:
    """The half of MNIST's or Fashion-MNIST's training images that pre-training's pool is made of."""
    order = reserved_order(len(data.train_labels))
    return order[len(order) // 2 :]


def unseen_rows(data: Idx) -> np.ndarray:
    """The training images of MNIST or Fashion-MNIST that neither the pool nor a task has."""
    order = reserved_order(len(data.train_labels))
    return order[FASHION_TRAIN + EVALUATION_SIZE : len(order) // 2]


def _sketched(seed: list[int], drawings: dict[str, np.ndarray]) -> dict[str, Split]:
    """Variants of real drawings; no drawing is in two splits."""
    splits = {}
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([*seed, number])
        originals = np.concatenate([drawings[name][DRAWINGS[split]] for name in DRAWN])
        labels = np.repeat(np.arange(len(DRAWN)), len(originals) // len(DRAWN))
        total = 8000 if split == "train" else EVALUATION_SIZE
        rounds = [rng.permutation(len(labels)) for _ in range(-(-total // len(labels)))]
        rows = np.concatenate(rounds)[:total]
        images = [render.sketch(rng, originals[row], plain=i < len(labels)) for i, row in enumerate(rows)]
        splits[split] = shuffled(rng, np.stack(images), labels[rows])
    return splits


def make_mnist(art: Artwork) -> TaskData:
    """MNIST itself."""
    splits = _photographed([TASK_SEED, 1], art.mnist, MNIST_TRAIN)
    return TaskData("MNIST", "MNIST digits", tuple(DIGITS), ("a handwritten digit {}",), splits)


def make_fashion(art: Artwork) -> TaskData:
    """Fashion-MNIST itself."""
    splits = _photographed([TASK_SEED, 2], art.fashion, FASHION_TRAIN)
    return TaskData("Fashion", "Fashion-MNIST clothes", tuple(CLOTHES), ("a gray photo of a {}",), splits)


def make_quickdraw(art: Artwork) -> TaskData:
    """Ten classes of Quick, Draw!."""
    splits = _sketched([TASK_SEED, 3], art.drawings)
    return TaskData("QuickDraw", "Quick, Draw! sketches", tuple(DRAWN), ("a sketch of a {}",), splits)


def make_emoji(art: Artwork) -> TaskData:
    """Thirty emoji by Google, Twitter and Microsoft; splits differ in warps and grounds, not in artwork.

    Towers of this size do not carry over to a vendor that fine-tuning does not show (65 %, from 50 %).
    """
    pictures = [(art.emoji[key][GOOGLE], art.emoji[key][TWITTER], art.emoji_unseen[key]) for key in EMOJI_CLASSES]

    def draw(rng: Generator, label: int, split: str) -> np.ndarray:  # noqa: ARG001
        return render.sticker(rng, pictures[label][rng.integers(3)], 0.85)

    splits = _drawn([TASK_SEED, 4], len(pictures), 9000, draw)
    return TaskData("Emoji", "Emoji", tuple(EMOJI_CLASSES.values()), ("an emoji of a {}",), splits)


def make_flags(art: Artwork) -> TaskData:
    """Forty flags; validation and test show another package's artwork."""

    def draw(rng: Generator, label: int, split: str) -> np.ndarray:
        pictures = art.flags if split == "train" else art.flags_held_out
        return render.waved_flag(rng, pictures[FLAG_CODES[label]], 1.2)

    splits = _drawn([TASK_SEED, 5], len(FLAG_CODES), 8000, draw)
    names = tuple(art.countries[code].lower() for code in FLAG_CODES)
    return TaskData("Flags", "Flags of 40 countries", names, ("the flag of {}",), splits)


def make_street(art: Artwork) -> TaskData:
    """Digits on street signs; no font family is in two splits."""
    fonts = split_fonts(art.fonts)

    def draw(rng: Generator, label: int, split: str) -> np.ndarray:
        return render.street_sign(rng, str(label), fonts[split], angle=28, neighbours=0.6, smallest=20, noise=7)

    splits = _drawn([TASK_SEED, 6], len(DIGITS), 9000, draw)
    template = "a photo of the number {} on a street sign"
    return TaskData("Street", "Street-sign digits", tuple(DIGITS), (template,), splits)


def make_letters(art: Artwork) -> TaskData:
    """Printed capital letters; no font family is in two splits."""
    fonts = split_fonts(art.fonts)

    def draw(rng: Generator, label: int, split: str) -> np.ndarray:
        return render.printed(rng, CAPITALS[label], fonts[split], angle=27, smallest=18, reach=3, noise=7)

    splits = _drawn([TASK_SEED, 7], len(CAPITALS), 10400, draw)
    return TaskData("Letters", "Printed letters", tuple(CAPITALS.lower()), ("a printed letter {}",), splits)


def make_textures(art: Artwork) -> TaskData:  # noqa: ARG001  (textures need no artwork; all makers look alike)
    """Twelve procedural textures, every image drawn afresh."""

    def draw(rng: Generator, label: int, split: str) -> np.ndarray:  # noqa: ARG001
        return render.texture(rng, TEXTURES[label], 0.6, 0.42, dark_first=True)

    splits = _drawn([TASK_SEED, 8], len(TEXTURES), 9000, draw)
    return TaskData("Textures", "Procedural textures", tuple(TEXTURES), ("a {} texture",), splits)


MAKERS: dict[str, Callable[[Artwork], TaskData]] = {
    "MNIST": make_mnist,
    "Fashion": make_fashion,
    "QuickDraw": make_quickdraw,
    "Emoji": make_emoji,
    "Flags": make_flags,
    "Street": make_street,
    "Letters": make_letters,
    "Textures": make_textures,
}
NAMES = tuple(MAKERS)


def save(task: TaskData, folder: Path) -> None:
    """Keep a task, its training split included, for later stages."""
    arrays = {f"{name}_images": split.images for name, split in task.splits.items()}
    arrays |= {f"{name}_labels": split.labels for name, split in task.splits.items()}
    words = {"class_names": np.array(task.class_names), "templates": np.array(task.templates)}
    np.savez(folder / task.file_name(".npz"), title=np.array(task.title), **words, **arrays)


def load(name: str, folder: Path) -> TaskData:
    """Read what `save` kept."""
    with np.load(folder / f"{name.lower()}.npz") as stored:
        splits = {split: Split(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in SPLITS}
        words = {key: tuple(str(word) for word in stored[key]) for key in ("class_names", "templates")}
        return TaskData(name, str(stored["title"]), words["class_names"], words["templates"], splits)
