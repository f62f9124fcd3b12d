"""Which images can't be read: found before anything is measured, and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event

from mapmerge_core.errors import DatasetError
from mapmerge_core.files import DAMAGED, write_atomically
from mapmerge_core.tasks.datasets.base import Images, shown
from mapmerge_core.tasks.datasets.cache import cache_folder, in_threads, writing

_NAMED = 3


def unreadable(
    images: Images, key: str, progress: Callable[[int, int], None] | None = None, cancel: Event | None = None
) -> list[int]:
    """Read every image, unless that was done before.

    Args:
        images: n images.
        key: Tells them from any others.
        progress: Called with how many are done, and n.
        cancel: Set by whoever wants it to stop.

    Returns:
        Rows of those that can't be read, ascending.

    Raises:
        DatasetError: The cache can't be written.
        Cancelled: ``cancel`` is set.
    """
    path = cache_folder() / "checked" / f"{key}.json"
    if (known := _known(path, len(images))) is not None:
        return known

    def fine(row: int) -> bool:
        try:
            images[row]
        except DatasetError:
            return False
        return True

    bad = [row for row, read in enumerate(in_threads(fine, len(images), progress, cancel)) if not read]
    with writing(path.parent), write_atomically(path) as part:
        part.write_text(json.dumps({"checked": len(images), "unreadable": bad}), encoding="utf-8")
    return bad


def refuse(where: object, split: str, names: list[str], count: int) -> DatasetError:
    """Return the error that names the images that can't be read."""
    return DatasetError(
        f"{where}: {len(names):,} of the {count:,} images of '{split}' can't be read "
        f"({shown(names, _NAMED)}): repair or remove them, or agree to leave "
        "unreadable images out (skip_corrupt: true)."
    )


def _known(path: Path, count: int) -> list[int] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        rows = [int(row) for row in known["unreadable"]]
    except DAMAGED:
        return None
    return rows if known["checked"] == count else None
