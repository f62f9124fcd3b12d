"""The contact sheet: a row of test images for each task."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def coloured(images: np.ndarray) -> np.ndarray:
    """Images (n, H, W) or (n, H, W, 3) as (n, H, W, 3)."""
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, -1)


def save_sheet(rows: Mapping[str, np.ndarray], path: Path, columns: int = 16, scale: int = 2) -> None:
    """Write the first `columns` images of each task, one row each, enlarged without smoothing."""
    lines = [np.concatenate(list(coloured(images[:columns])), axis=1) for images in rows.values()]
    sheet = Image.fromarray(np.concatenate(lines))
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    sheet.save(path, optimize=True)
