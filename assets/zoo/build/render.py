"""Draw 32 x 32 images. Every function takes the random generator it may draw from."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 32
Colour = tuple[int, int, int]
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - (SIZE - 1) / 2
LUMINANCE = np.array([0.3, 0.6, 0.1])


def luminance(colour: Colour) -> float:
    """A colour's brightness, 0 to 255."""
    return float(np.dot(LUMINANCE, colour))


def random_colour(rng: Generator, low: int = 0, high: int = 256) -> Colour:
    """A colour whose channels lie in [low, high)."""
    red, green, blue = rng.integers(low, high, 3)
    return int(red), int(green), int(blue)


def contrasting_pair(rng: Generator, least: float = 70, *, dark_first: bool = False) -> tuple[Colour, Colour]:
    """Two colours whose brightness differs by more than `least`."""
    while True:
        first, second = random_colour(rng), random_colour(rng)
        difference = luminance(second) - luminance(first)
        if difference > least or (difference < -least and not dark_first):
            return first, second


def background(rng: Generator, colour: Colour, clutter: int) -> Image.Image:
    """A plain ground with up to three soft shapes whose colours differ by at most `clutter`."""
    image = Image.new("RGB", (SIZE, SIZE), colour)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        fill = tuple(int(v) for v in (np.array(colour) + rng.integers(-clutter, clutter + 1, 3)).clip(0, 255))
        x, y, width, height = (int(v) for v in rng.integers((-8, -8, 4, 4), (32, 32, 36, 36)))
        shape = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        shape([x, y, x + width, y + height], fill=fill)
    return image.filter(ImageFilter.GaussianBlur(2 * rng.random()))


def degrade(rng: Generator, image: Image.Image, noise: float, blur: float) -> np.ndarray:
    """What a poor camera does: blur, contrast, brightness, gray noise up to `noise`, 32 levels a channel.

    Few levels and gray noise keep the shipped arrays small: noise hardly compresses.

    Returns:
        (32, 32, 3) uint8.
    """
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(blur * rng.random()))
    values = np.asarray(image, np.float32)
    values = (values - 128) * rng.uniform(0.65, 1.15) + 128 + rng.uniform(-25, 25)
    values = values + rng.normal(0, noise * rng.random(), (SIZE, SIZE, 1))
    return values.clip(0, 255).astype(np.uint8) & 0xF8


def warp(rng: Generator, image: Image.Image, amount: float, angle: float = 0) -> Image.Image:
    """Move the four corners by up to `amount` of the size and turn by up to `angle` degrees; 32 x 32."""
    width, height = image.size
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)])
    moved = corners + rng.uniform(-amount, amount, (4, 2)) * (width, height)
    image = image.transform((SIZE, SIZE), Image.Transform.QUAD, moved.ravel().tolist(), Image.Resampling.BILINEAR)
    return image.rotate(rng.uniform(-angle, angle), Image.Resampling.BILINEAR) if angle else image


@lru_cache(maxsize=4096)
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a pixel size."""
    return ImageFont.truetype(path, size)


def pick_font(rng: Generator, families: Sequence[Sequence[Path]]) -> Path:
    """A font file: first a family, then a weight."""
    family = families[rng.integers(len(families))]
    return family[rng.integers(len(family))]


def draw_glyph(
    image: Image.Image,
    character: str,
    font: ImageFont.FreeTypeFont,
    fill: Colour,
    centre: tuple[int, int],
    angle: float = 0,
) -> None:
    """Draw one character into an image, its box centred at a point and turned by an angle."""
    left, top, right, bottom = font.getbbox(character)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), character, 255, font=font)
    mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    if max(mask.size) >= SIZE:
        scale = (SIZE - 2) / max(mask.size)
        mask = mask.resize([max(1, int(side * scale)) for side in mask.size], Image.Resampling.BILINEAR)
    image.paste(fill, (centre[0] - mask.width // 2, centre[1] - mask.height // 2), mask)


def jitter(rng: Generator, reach: int) -> tuple[int, int]:
    """A point at most `reach` pixels from the middle, along each axis."""
    x, y = rng.integers(-reach, reach + 1, 2)
    return SIZE // 2 + int(x), SIZE // 2 + int(y)


def street_sign(
    rng: Generator,
    character: str,
    families: Sequence[Sequence[Path]],
    *,
    angle: float,
    neighbours: float,
    smallest: int,
    noise: float,
) -> np.ndarray:
    """A light character on a darker coloured sign, with a digit on either side by chance."""
    ink = random_colour(rng, 190)
    ground = random_colour(rng)
    while luminance(ink) - luminance(ground) < 80:
        ground = random_colour(rng)
    image = background(rng, ground, 30)
    font = load_font(pick_font(rng, families), int(rng.integers(smallest, 30)))
    for side in (-1, 1):
        if rng.random() < neighbours:
            at = (16 + side * int(rng.integers(15, 19)), 16 + int(rng.integers(-3, 4)))
            draw_glyph(image, str(rng.integers(10)), font, ink, at, rng.uniform(-angle, angle))
    draw_glyph(image, character, font, ink, jitter(rng, 2), rng.uniform(-angle, angle))
    return degrade(rng, image, noise, 0.8)


def house_number(rng: Generator, character: str, families: Sequence[Sequence[Path]]) -> np.ndarray:
    """A character in any colour on a ground of any other."""
    ground, ink = contrasting_pair(rng)
    image = background(rng, ground, 20)
    font = load_font(pick_font(rng, families), int(rng.integers(19, 28)))
    draw_glyph(image, character, font, ink, jitter(rng, 2), rng.uniform(-12, 12))
    return degrade(rng, image, 6, 1)


def printed(
    rng: Generator,
    character: str,
    families: Sequence[Sequence[Path]],
    *,
    angle: float,
    smallest: int,
    reach: int,
    noise: float,
) -> np.ndarray:
    """A dark character on light paper."""
    image = background(rng, random_colour(rng, 185), 15)
    font = load_font(pick_font(rng, families), int(rng.integers(smallest, 30)))
    draw_glyph(image, character, font, random_colour(rng, 0, 90), jitter(rng, reach), rng.uniform(-angle, angle))
    return degrade(rng, image, noise, 0.6)


def white_on_black(rng: Generator, character: str, families: Sequence[Sequence[Path]]) -> np.ndarray:
    """A plain white character on black."""
    image = Image.new("RGB", (SIZE, SIZE))
    font = load_font(pick_font(rng, families), int(rng.integers(20, 28)))
    draw_glyph(image, character, font, (255, 255, 255), jitter(rng, 0), rng.uniform(-15, 15))
    return np.asarray(image)


def sticker(rng: Generator, picture: Image.Image, hardness: float) -> np.ndarray:
    """An emoji, warped, turned and shrunk, on a cluttered ground."""
    picture = warp(rng, picture, 0.12 * hardness + 0.02, 20 * hardness)
    side = int(rng.integers(20, 33))
    picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    image = background(rng, random_colour(rng), int(60 * hardness))
    x, y = (int(v) for v in rng.integers(0, 33 - side, 2))
    image.paste(picture, (x, y), picture)
    return degrade(rng, image, 8 * hardness, 1.2 * hardness)


def waved_flag(rng: Generator, picture: Image.Image, hardness: float) -> np.ndarray:
    """A flag, warped and turned, on a cluttered ground."""
    image = background(rng, random_colour(rng), 50)
    width = int(rng.integers(20, 33))
    height = int(width * rng.uniform(0.62, 0.8))
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(
        picture.resize((width, height), Image.Resampling.BILINEAR), ((SIZE - width) // 2, (SIZE - height) // 2)
    )
    canvas = warp(rng, canvas, 0.12 * hardness, 15 * hardness)
    image.paste(canvas, (0, 0), canvas)
    return degrade(rng, image, 8 * hardness, 1.4 * hardness)


def framed(gray: np.ndarray) -> np.ndarray:
    """Put 28 x 28 images (..., 28, 28) in the middle of 32 x 32."""
    return np.pad(gray, [(0, 0)] * (gray.ndim - 2) + [(2, 2), (2, 2)])


def sketch(rng: Generator, drawing: np.ndarray, *, plain: bool = False) -> np.ndarray:
    """A 28 x 28 drawing, slightly warped and turned unless `plain`; (32, 32) gray."""
    image = Image.fromarray(framed(drawing))
    return np.asarray(image if plain else warp(rng, image, 0.06, 12))


def tinted(rng: Generator, gray: np.ndarray, angle: float) -> np.ndarray:
    """A 28 x 28 gray image turned, warped and drawn between two random colours."""
    share = np.asarray(warp(rng, Image.fromarray(framed(gray)), 0.07, angle), np.float32)[..., None] / 255
    ground, ink = contrasting_pair(rng)
    return (np.array(ground) * (1 - share) + np.array(ink) * share).clip(0, 255).astype(np.uint8)


def _smooth_noise(rng: Generator, cells: int, deviation: float) -> np.ndarray:
    """Gaussian noise on a coarse grid, interpolated to 32 x 32."""
    coarse = Image.fromarray(rng.normal(0, deviation, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _nearest_gap(rng: Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much farther off the second nearest random point is than the nearest: small at cell borders."""
    points = rng.uniform(-20, 20, (int(rng.integers(12, 30)), 2))
    distances = np.sort(np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1]), -1)
    return distances[..., 1] - distances[..., 0]


def _texture_field(rng: Generator, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A texture's height at each pixel: positive is ink, negative is ground."""
    turn = rng.uniform(0, np.pi)
    u = np.cos(turn) * x + np.sin(turn) * y + rng.uniform(0, 20)
    v = -np.sin(turn) * x + np.cos(turn) * y + rng.uniform(0, 20)
    period = rng.uniform(4, 11)
    k = 2 * np.pi / period
    from_middle = np.hypot(x - rng.uniform(-9, 9), y - rng.uniform(-9, 9))
    match name:
        case "striped":
            return np.sin(k * u)
        case "checkered":
            return 3 * np.sin(k * u) * np.sin(k * v)
        case "dotted":
            return np.cos(k * u) + np.cos(k * v) - rng.uniform(0.6, 1.2)
        case "grid":
            return np.maximum(np.cos(k * u), np.cos(k * v)) - 0.75
        case "zigzag":
            return np.sin(k * (u + rng.uniform(0.6, 1.2) * period * np.abs((v / period / 1.5) % 2 - 1)))
        case "wavy":
            return np.sin(k * u + rng.uniform(1.2, 2.5) * np.sin(k * v * rng.uniform(0.4, 0.8)))
        case "rings":
            return np.sin(k * from_middle)
        case "radial":
            angle = np.arctan2(y - rng.uniform(-9, 9), x - rng.uniform(-9, 9))
            return np.sin(rng.integers(4, 11) * angle + rng.uniform(0, 6))
        case "cracked":
            return _nearest_gap(rng, x, y) - 1.3
        case "marbled":
            return np.sin(2 * sum(_smooth_noise(rng, cells, 4 / cells) for cells in (3, 5, 9, 16)) + 0.3 * u)
        case "speckled":
            return rng.normal(0, 1.2, (SIZE, SIZE))
        case _:  # brick
            height = 0.9 * period
            row = np.floor(u / height)
            joint = np.abs((v + (row % 2) * period) / (2 * period) % 1 - 0.5)
            return np.minimum(8 * (0.33 - np.abs(u / height % 1 - 0.5)), 16 * (0.42 - joint))


def texture(rng: Generator, name: str, hardness: float, tilt: float, *, dark_first: bool) -> np.ndarray:
    """A procedural texture between two colours, seen at an angle of up to `tilt`, with uneven light."""
    depth = 1 + (rng.uniform(-tilt, tilt) * COLUMNS + rng.uniform(-tilt, tilt) * ROWS) / (SIZE / 2)
    height = _texture_field(rng, name, COLUMNS / depth, ROWS / depth)
    share = 1 / (1 + np.exp(-height * rng.uniform(1.5, 5)))[..., None]
    ground, ink = contrasting_pair(rng, dark_first=dark_first)
    values = np.array(ground) * (1 - share) + np.array(ink) * share
    values = values + _smooth_noise(rng, 3, 30 * hardness)[..., None]
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return degrade(rng, image, 20 * hardness, 1.2 * hardness)
