"""The pre-training pool: captioned images of all kinds, disjoint from every validation and test image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator

from . import render
from .artwork import Artwork, Idx
from .classes import CAPITALS, CLOTHES, DIGITS, DRAWN, EMOJI_CLASSES, TEXTURES, emoji_name
from .settings import POOL_CHUNK, POOL_SEED
from .tasks import DRAWINGS, pooled_rows, split_fonts

Pair = tuple[np.ndarray, str]


@dataclass(frozen=True)
class Kind:
    """One kind of image in the pool.

    Attributes:
        name: What it is called.
        total: How many images.
        general: The caption that fits every image of the kind.
        wrong: Share of captions taken from another image of the kind.
    """

    name: str
    total: int
    general: str
    wrong: float


GENERAL_SHARE = 0.10
KINDS = (
    Kind("sketch", 56_000, "a simple sketch", 0.05),
    Kind("emoji", 40_000, "an emoji", 0.05),
    Kind("flag", 12_000, "a flag", 0.15),
    Kind("sign", 56_000, "a street sign", 0.05),
    Kind("printed", 12_000, "a printed character", 0.05),
    Kind("texture", 32_000, "a pattern", 0.15),
    Kind("mnist", 12_000, "a handwritten digit", 0.15),
    Kind("fashion", 16_000, "a photo of clothing", 0.15),
)


def _choice(rng: Generator, options: list) -> object:
    return options[rng.integers(len(options))]


def _character(rng: Generator, digits: float) -> tuple[str, str]:
    """A random digit, capital or small letter, and the words for it."""
    if rng.random() < digits:
        digit = int(rng.integers(10))
        return str(digit), DIGITS[digit]
    letter = CAPITALS[rng.integers(26)]
    return (letter if rng.random() < 0.55 else letter.lower()), letter.lower()


def draw_sketch(rng: Generator, art: Artwork) -> Pair:
    """A drawing of any of the 345 classes, gray or tinted."""
    name = _choice(rng, list(art.drawings))
    rows = art.drawings[name][DRAWINGS["train"]] if name in DRAWN else art.drawings[name]
    drawing = rows[rng.integers(len(rows))]
    if rng.random() < 0.6:
        return np.repeat(render.sketch(rng, drawing)[..., None], 3, -1), f"a sketch of a {name}"
    return render.tinted(rng, drawing, 15), f"a sketch of a {name}"


def draw_emoji(rng: Generator, art: Artwork) -> Pair:
    """An emoji of any vendor, but Microsoft's are left out for the words of the task's classes."""
    name = _choice(rng, list(art.emoji))
    pictures = list(art.emoji[name])
    if name in art.emoji_unseen and emoji_name(name) not in EMOJI_CLASSES.values():
        pictures.append(art.emoji_unseen[name])
    image = render.sticker(rng, _choice(rng, pictures), rng.uniform(0.2, 0.8))
    return image, f"an emoji of a {emoji_name(name)}"


def draw_flag(rng: Generator, art: Artwork) -> Pair:
    """A flag of any country."""
    code = _choice(rng, list(art.flags))
    return render.waved_flag(rng, art.flags[code], rng.uniform(0, 0.6)), f"the flag of {art.countries[code].lower()}"


def draw_sign(rng: Generator, fonts: list[list[Path]]) -> Pair:
    """A digit or letter on a sign or wall."""
    character, word = _character(rng, 0.4)
    if rng.random() < 0.6:
        image = render.street_sign(rng, character, fonts, angle=8, neighbours=0.1, smallest=24, noise=5)
    else:
        image = render.house_number(rng, character, fonts)
    what = f"number {word} on a sign" if character.isdigit() else f"letter {word}"
    return image, f"a photo of the {what}"


def draw_printed(rng: Generator, fonts: list[list[Path]]) -> Pair:
    """A printed digit or letter, on paper or white on black."""
    character, word = _character(rng, 0.35)
    if rng.random() < 0.4:
        image = render.white_on_black(rng, character, fonts)
    else:
        image = render.printed(rng, character, fonts, angle=15, smallest=23, reach=2, noise=5)
    return image, f"a printed {'digit' if character.isdigit() else 'letter'} {word}"


def draw_texture(rng: Generator) -> Pair:
    """A texture, easier than the task's, and often light on dark where the task is dark on light."""
    name = TEXTURES[rng.integers(len(TEXTURES))]
    image = render.texture(rng, name, rng.uniform(0, 0.5), 0.1, dark_first=rng.random() < 0.5)
    return image, f"a {name} texture"


def draw_tinted(rng: Generator, data: Idx, rows: np.ndarray, caption: str, words: list[str], angle: float) -> Pair:
    """A tinted, turned image of MNIST or Fashion-MNIST from some rows of its training set."""
    row = rows[rng.integers(len(rows))]
    return render.tinted(rng, data.train_images[row], angle), caption.format(words[data.train_labels[row]])


def drawer(
    kind: Kind, art: Artwork, fonts: list[list[Path]], photographs: Callable[[Idx], np.ndarray]
) -> Callable[[Generator], Pair]:
    """What draws images of a kind with their exact captions.

    Args:
        kind: Which.
        art: What to draw.
        fonts: The families to draw characters in.
        photographs: Which rows of MNIST's and Fashion-MNIST's training images to take.
    """
    digits, clothes = photographs(art.mnist), photographs(art.fashion)
    drawers: dict[str, Callable[[Generator], Pair]] = {
        "sketch": lambda rng: draw_sketch(rng, art),
        "emoji": lambda rng: draw_emoji(rng, art),
        "flag": lambda rng: draw_flag(rng, art),
        "sign": lambda rng: draw_sign(rng, fonts),
        "printed": lambda rng: draw_printed(rng, fonts),
        "texture": draw_texture,
        "mnist": lambda rng: draw_tinted(rng, art.mnist, digits, "a handwritten digit {}", DIGITS, 25),
        "fashion": lambda rng: draw_tinted(rng, art.fashion, clothes, "a photo of a {}", CLOTHES, 30),
    }
    return drawers[kind.name]


def chunks() -> Iterator[tuple[int, Kind, int, int]]:
    """The pool in parts that can be drawn apart: number, kind, first row, last row + 1."""
    number = row = 0
    for kind in KINDS:
        edges = [*range(0, kind.total, POOL_CHUNK), kind.total]
        for first, last in pairwise(edges):
            yield number, kind, row + first, row + last
            number += 1
        row += kind.total


def draw_chunk(number: int, kind: Kind, n: int, art: Artwork) -> tuple[np.ndarray, list[str]]:
    """Draw one part, (n, 32, 32, 3) uint8 with n captions, some of them general and some of them wrong."""
    rng = np.random.default_rng([POOL_SEED, number])
    draw = drawer(kind, art, split_fonts(art.fonts)["train"], pooled_rows)
    images, exact = zip(*(draw(rng) for _ in range(n)), strict=True)
    chance = rng.random(n)
    other = rng.integers(n, size=n)
    captions = [
        kind.general if u < GENERAL_SHARE else exact[j] if u < GENERAL_SHARE + kind.wrong else own
        for own, u, j in zip(exact, chance, other, strict=True)
    ]
    return np.stack(images), captions
