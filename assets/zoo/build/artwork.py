"""Read the fetched packages into arrays, pictures and font files."""

import gzip
import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from . import sources
from .classes import EMOJI_CLASSES
from .sources import SourceError

PICTURE_WIDTH = 64
EMOJI_CATEGORIES = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Smileys & Emotion", "Travel & Places")


@dataclass(frozen=True)
class Idx:
    """MNIST or Fashion-MNIST: images (n, 28, 28) uint8 and labels (n,) uint8 of both of its splits."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Artwork:
    """All raw material.

    Attributes:
        mnist: Handwritten digits.
        fashion: Clothes.
        drawings: Class name -> (100, 28, 28) uint8.
        emoji: Emoji name -> the other vendors' pictures, in the order of `sources.EMOJI`.
        emoji_unseen: Emoji name -> the picture of the vendor whose task classes pre-training does not see.
        flags: Country code -> picture for training.
        flags_held_out: Country code -> the other package's picture.
        countries: Country code -> name.
        fonts: Font files of each family.
    """

    mnist: Idx
    fashion: Idx
    drawings: dict[str, np.ndarray]
    emoji: dict[str, list[Image.Image]]
    emoji_unseen: dict[str, Image.Image]
    flags: dict[str, Image.Image]
    flags_held_out: dict[str, Image.Image]
    countries: dict[str, str]
    fonts: list[list[Path]]


def read_idx(path: Path) -> np.ndarray:
    """Read one file of the IDX format (unsigned bytes, big-endian sizes), gzipped or not."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = raw[3]
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load_idx(folder: Path) -> Idx:
    """Read the four IDX files somewhere below a folder."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = [next(folder.rglob(f"{name}-ubyte*"), None) for name in names]
    if None in files:
        raise SourceError(f"{folder.name} does not hold the four IDX files.")
    return Idx(*(read_idx(path) for path in files))


def load_drawings(folder: Path) -> dict[str, np.ndarray]:
    """Read Quick, Draw!: each line is a list whose first 784 numbers are a 28 x 28 image in [0, 1]."""
    drawings = {}
    for path in sorted(folder.rglob("drawings/*.ndjson.gz")):
        with gzip.open(path, "rt") as lines:
            values = np.array([json.loads(line)[:784] for line in lines], np.float32)
        drawings[path.name.removesuffix(".ndjson.gz")] = (
            (values * 255).clip(0, 255).astype(np.uint8).reshape(-1, 28, 28)
        )
    return drawings


def draw_svg(text: str) -> Image.Image:
    """Render an SVG to an RGBA picture `PICTURE_WIDTH` wide."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=PICTURE_WIDTH))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def load_emoji(folder: Path, wanted: set[str] | None) -> dict[str, Image.Image]:
    """Render an Iconify icon set: the names wanted, or all names of `EMOJI_CATEGORIES`."""
    package = folder / "package"
    icons = json.loads((package / "icons.json").read_text())
    if wanted is None:
        categories = json.loads((package / "metadata.json").read_text())["categories"]
        wanted = {name for category in EMOJI_CATEGORIES for name in categories[category]}
    pictures = {}
    for name in sorted(wanted):
        source = icons["aliases"].get(name, {}).get("parent", name)
        icon = icons["icons"].get(source)
        if icon is not None:
            width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
            pictures[name] = draw_svg(
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
            )
    return pictures


def load_fonts(folders: list[Path]) -> list[list[Path]]:
    """List each family's regular and bold Latin files."""
    families = []
    for folder in folders:
        files = sorted(
            path
            for weight in (400, 700)
            for path in (folder / "package" / "files").glob(f"*-latin-{weight}-normal.woff")
            if "-ext-" not in path.name
        )
        if not files:
            raise SourceError(f"{folder.name} holds no Latin font file.")
        families.append(files)
    return families


def load(work: Path) -> Artwork:
    """Fetch every package and read it (about a minute the first time).

    Raises:
        SourceError: A package could not be fetched or lacks a file.
    """
    at = {package: sources.fetch(package, work) for package in sources.PACKAGES}
    first, *others = (at[package] for package in sources.EMOJI)
    vendors = [load_emoji(first, None)]
    names = set(vendors[0]) | set(EMOJI_CLASSES)
    vendors += [load_emoji(folder, names) for folder in others]
    emoji = {name: [v[name] for v in vendors if name in v] for name in sorted(names)}
    held_out = load_emoji(at[sources.EMOJI_UNSEEN], names)
    countries = {
        entry["code"]: entry["name"]
        for entry in json.loads((at[sources.FLAGS] / "package" / "country.json").read_text())
    }
    flags = {}
    for path in sorted((at[sources.FLAGS] / "package" / "flags" / "4x3").glob("*.svg")):
        if path.stem in countries:
            flags[path.stem] = draw_svg(path.read_text())
    flags_held_out = {
        path.stem.lower(): draw_svg(path.read_text())
        for path in sorted((at[sources.FLAGS_HELD_OUT] / "package" / "3x2").glob("*.svg"))
    }
    return Artwork(
        mnist=load_idx(at[sources.MNIST]),
        fashion=load_idx(at[sources.FASHION]),
        drawings=load_drawings(at[sources.QUICKDRAW]),
        emoji=emoji,
        emoji_unseen=held_out,
        flags=flags,
        flags_held_out=flags_held_out,
        countries=countries,
        fonts=load_fonts([at[package] for package in sources.FONTS]),
    )
