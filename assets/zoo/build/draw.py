"""Draw the tasks and the pool on all cores, from one seed whatever the number of processes."""

import json
import multiprocessing
from pathlib import Path

import numpy as np

from . import artwork, pool, tasks
from .artwork import Artwork
from .render import SIZE

_art: Artwork | None = None  # set before forking, so that the workers share it


def _make_task(job: tuple[str, Path]) -> str:
    name, folder = job
    tasks.save(tasks.MAKERS[name](_art), folder)
    return name


def _draw_chunk(job: tuple[int, pool.Kind, int, int]) -> tuple[int, int, np.ndarray, list[str]]:
    number, kind, first, last = job
    images, captions = pool.draw_chunk(number, kind, last - first, _art)
    return first, last, images, captions


def draw(work: Path) -> None:
    """Write work/tasks/*.npz and work/pool/{images.npy, captions.json}."""
    global _art  # noqa: PLW0603
    _art = artwork.load(work)
    task_folder, pool_folder = work / "tasks", work / "pool"
    task_folder.mkdir(parents=True, exist_ok=True)
    pool_folder.mkdir(parents=True, exist_ok=True)
    total = sum(kind.total for kind in pool.KINDS)
    shape = (total, SIZE, SIZE, 3)
    images = np.lib.format.open_memmap(pool_folder / "images.npy", "w+", dtype=np.uint8, shape=shape)
    captions = [""] * total
    with multiprocessing.get_context("fork").Pool() as workers:
        for name in workers.imap_unordered(_make_task, [(name, task_folder) for name in tasks.NAMES]):
            print(f"  drew {name}", flush=True)
        for first, last, part, words in workers.imap_unordered(_draw_chunk, pool.chunks()):
            images[first:last], captions[first:last] = part, words
    images.flush()
    (pool_folder / "captions.json").write_text(json.dumps(captions))
    print(f"  drew a pool of {total:,} images with {len(set(captions)):,} captions", flush=True)
