"""The pre-training mixture held out: what the pre-trained model knew, which no model of the zoo was fine-tuned for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.random import Generator

from . import artwork, pool
from .artwork import Artwork
from .classes import CLOTHES, DIGITS, DRAWN, EMOJI_CLASSES, FLAG_CODES, TEXTURES, emoji_name
from .publish import MANIFEST, ZOO, sha256, write_splits
from .settings import EVALUATION_SIZE, MIXTURE_SEED
from .tasks import TaskData, shuffled, split_fonts, unseen_rows

NAME, TITLE = "Mixture", "The pre-training mixture, held out"
SKETCHES, EMOJI, FLAGS = 30, 30, 20
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _choose(rng: Generator, names: list[str], n: int) -> list[str]:
    return sorted(names[i] for i in rng.choice(len(names), n, replace=False))


def choose_artwork(art: Artwork) -> Artwork:
    """Keep some sketches, emoji and flags that pre-training saw, and that are no class of a task."""
    rng = np.random.default_rng([MIXTURE_SEED, 0])
    words = [emoji_name(name) for name in art.emoji]
    single = [name for name in sorted(art.emoji) if words.count(emoji_name(name)) == 1]
    sketches = _choose(rng, sorted(set(art.drawings) - set(DRAWN)), SKETCHES)
    emoji = _choose(rng, [name for name in single if name not in EMOJI_CLASSES], EMOJI)
    flags = _choose(rng, sorted(set(art.flags) - set(FLAG_CODES)), FLAGS)
    return replace(
        art,
        drawings={name: art.drawings[name] for name in sketches},
        emoji={name: art.emoji[name] for name in emoji},
        flags={code: art.flags[code] for code in flags},
    )


def captions(art: Artwork) -> dict[str, list[str]]:
    """The exact captions of each kind of image: the mixture's classes."""
    return {
        "sketch": [f"a sketch of a {name}" for name in art.drawings],
        "emoji": [f"an emoji of a {emoji_name(name)}" for name in art.emoji],
        "flag": [f"the flag of {art.countries[code].lower()}" for code in art.flags],
        "sign": [f"a photo of the number {word} on a sign" for word in DIGITS]
        + [f"a photo of the letter {letter}" for letter in LETTERS],
        "printed": [f"a printed digit {word}" for word in DIGITS] + [f"a printed letter {x}" for x in LETTERS],
        "texture": [f"a {name} texture" for name in TEXTURES],
        "mnist": [f"a handwritten digit {word}" for word in DIGITS],
        "fashion": [f"a photo of a {name}" for name in CLOTHES],
    }


def _share_out(names: list[str], total: int) -> dict[str, int]:
    """How many images of each class, as equal as can be."""
    return {name: len(range(i, total, len(names))) for i, name in enumerate(names)}


def make_mixture(art: Artwork) -> TaskData:
    """Draw images as pre-training's pool draws them, in its shares, each with its exact caption as its class.

    Fonts and photographs are ones that pre-training never saw. Sketches, emoji and flags are the same artwork in
    other warps, colours and grounds, since pre-training saw all there is.
    """
    art = choose_artwork(art)
    by_kind = captions(art)
    classes = [caption for names in by_kind.values() for caption in names]
    ends = np.cumsum([kind.total for kind in pool.KINDS])
    ends = (EVALUATION_SIZE * ends / ends[-1]).round().astype(int)
    splits = {}
    for number, split in enumerate(("val", "test"), 1):
        fonts = split_fonts(art.fonts)[split]
        images, labels = [], []
        for k, kind in enumerate(pool.KINDS):
            rng = np.random.default_rng([MIXTURE_SEED, number, k])
            draw = pool.drawer(kind, art, fonts, unseen_rows)
            wanted = _share_out(by_kind[kind.name], ends[k] - len(labels))
            while any(wanted.values()):
                image, caption = draw(rng)
                if wanted[caption]:
                    wanted[caption] -= 1
                    images.append(image)
                    labels.append(classes.index(caption))
        rng = np.random.default_rng([MIXTURE_SEED, number])
        splits[split] = shuffled(rng, np.stack(images), np.array(labels))
    return TaskData(NAME, TITLE, tuple(classes), ("{}",), splits)


def publish_mixture(work: Path) -> None:
    """Write mixture.npz and its entry in the manifest: a task without a model."""
    task = make_mixture(artwork.load(work))
    write_splits(task)
    manifest = json.loads(MANIFEST.read_text())
    file = task.file_name(".npz")
    manifest["tasks"] = [entry for entry in manifest["tasks"] if entry["name"] != NAME]
    manifest["tasks"].append({"name": NAME, "title": TITLE, "data": file})
    manifest["sha256"][file] = sha256(ZOO / file)
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n")
