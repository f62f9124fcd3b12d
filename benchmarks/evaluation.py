"""Evaluation against its limit: images per second of the evaluator and of a bare forward loop.

Run ``python -m benchmarks.evaluation [ZOO]``. The loop is the merged tower alone on images that are
normalised and cast
already: no merge, no head, no counting. Both run in turns with the same model, batch size, dtype and threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mapmerge_core.tasks.evaluator import PRECISIONS, Evaluator
from mapmerge_core.tasks.families.clip import ClipZeroShot
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.task_vectors import TaskVectors

if TYPE_CHECKING:
    from collections.abc import Callable

ZOO = Path(__file__).parents[1] / "assets" / "zoo"


def load_evaluator(zoo: Path, device: str, batch_size: int | None, n_tasks: int | None) -> Evaluator:
    """Builds an evaluator of a zoo's first tasks."""
    manifest = json.loads((zoo / "manifest.json").read_text())
    entries = manifest["tasks"][:n_tasks]
    family = ClipZeroShot(str(zoo / manifest["architecture"]), zoo / manifest["pretrained"])
    checkpoints = {task["name"]: zoo / task["checkpoint"] for task in entries}
    vectors = TaskVectors.from_files(zoo / manifest["pretrained"], checkpoints, part=family.part)
    tasks = [Task.from_file(task["name"], zoo / task["data"]) for task in entries]
    return Evaluator(family, vectors, tasks, device=device, batch_size=batch_size)


def bare_loop(evaluator: Evaluator, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """Returns a function that runs the tower over every validation image once, and how many these are."""
    family = evaluator.family
    tower = family.model_in(dtype).visual
    batches = []
    for task in evaluator.tasks.values():
        images = family.normalise(family.images(task, "val")).to(dtype)
        batches += images.split(evaluator.batch_size)

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            features = tower(batch)
        features.cpu()  # waits for an accelerator

    return run, sum(map(len, batches))


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of one call."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    """Measures both and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", nargs="?", type=Path, default=ZOO)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--tasks", type=int, help="only the first tasks of the zoo")
    parser.add_argument("--rounds", type=int, default=7, help="at least 5")
    options = parser.parse_args()
    evaluator = load_evaluator(options.zoo, options.device, options.batch_size, options.tasks)
    n_vectors = len(evaluator.vectors)
    rng = np.random.default_rng(0)
    print(
        f"{options.zoo.resolve().name}: {n_vectors} tasks, device {evaluator.device}, "
        f"{torch.get_num_threads()} threads, batch {evaluator.batch_size}, "
        f"chosen precision {evaluator.precision}, torch {torch.__version__}, {platform.machine()}"
    )
    for precision, dtype in PRECISIONS.items():

        def evaluate(precision: str = precision) -> None:
            evaluator.evaluate(rng.uniform(0, 1 / n_vectors, n_vectors), precision=precision)

        loop, n_images = bare_loop(evaluator, dtype)
        evaluate()
        loop()
        rounds = np.array([(seconds(evaluate), seconds(loop)) for _ in range(max(5, options.rounds))])
        ours, bare = np.median(rounds, axis=0)  # (wall, processor) each
        print(
            f"{precision}: evaluator {n_images / ours[0]:,.0f} images/s, bare loop {n_images / bare[0]:,.0f} "
            f"images/s, ratio {bare[0] / ours[0]:.3f} (by processor time {bare[1] / ours[1]:.3f})"
        )


if __name__ == "__main__":
    main()
