"""Anything that may hold an image, as pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mapmerge_core.errors import DatasetError, reason_of
from mapmerge_core.files import DAMAGED

# Kinds of images that are opened, whatever a file is called. Pillow knows more, such as EPS, a program that
# it hands to Ghostscript.
_KINDS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")

_DAMAGED = (*DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning)


def to_pixels(held: object, name: str, folder: Path | None = None) -> np.ndarray:
    """Return an image's pixels as they are meant to be seen.

    Args:
        held: A file's path, bytes or both (``{"bytes": ..., "path": ...}``), a Pillow image, an array, or nested lists.
        name: What a message calls it.
        folder: Where relative paths start.

    Returns:
        uint8, H x W x 3; H x W for gray arrays. Transparency is dropped, 16-bit gray is brought to 8 bits,
        and a picture that a camera marked as turned is turned.

    Raises:
        DatasetError: It is not a whole image, or has more pixels than Pillow holds safe.
    """
    try:
        if isinstance(held, Mapping):
            held = held["bytes"] if held.get("bytes") is not None else held.get("path")
        if isinstance(held, np.ndarray | list):
            return _array_to_pixels(np.asarray(held))
        if isinstance(held, Image.Image):
            return _picture_to_pixels(held)
        if isinstance(held, bytes):
            if not held:
                raise ValueError("it holds no bytes")
            with Image.open(io.BytesIO(held), formats=_KINDS) as picture:
                return _picture_to_pixels(picture)
        if isinstance(held, str | Path):
            with Image.open((folder or Path()) / held, formats=_KINDS) as picture:
                return _picture_to_pixels(picture)
    except _DAMAGED as error:
        raise DatasetError(f"{name} can't be read as an image: {_reason(error)}.") from error
    raise DatasetError(f"{name} can't be read as an image: it is {'empty' if held is None else type(held)}.")


def _picture_to_pixels(picture: Image.Image) -> np.ndarray:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise Image.DecompressionBombError(f"its {picture.width} x {picture.height} pixels are too many")
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # Pillow would clip at 255.
        gray = np.clip(np.asarray(picture).astype(np.float64) / 257, 0, 255).round().astype(np.uint8)
        picture = Image.fromarray(gray)
    elif picture.mode == "F":
        values = np.asarray(picture)
        picture = Image.fromarray(_array_to_pixels(values))
    elif picture.mode == "P":
        # Palettes with transparency lose it quietly only this way.
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB"))


def _array_to_pixels(values: np.ndarray) -> np.ndarray:
    if values.ndim == 3 and values.shape[2] not in {1, 3, 4} and values.shape[0] in {1, 3, 4}:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.size == 0 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in {3, 4})):
        raise ValueError(f"an array of shape {values.shape} is no image")
    values = values[..., :3] if values.ndim == 3 else values
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return (values * 255).round().astype(np.uint8)
    raise ValueError(f"{values.dtype} values must be whole from 0 to 255, or fractions from 0 to 1")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is no image, or of another kind than {', '.join(_KINDS)}"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than is safe to open"
    return reason_of(error)
