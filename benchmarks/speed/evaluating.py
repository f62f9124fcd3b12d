"""Evaluating, against a bare forward loop, float32, and a GPU's peak."""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.row import ROUNDS, Measured, Row, medians, ratio
from benchmarks.speed.towers import ARCHITECTURE, N_MODELS, finetuned
from mapmerge_core.studies.config.demo import DEMO_ZOO, config_from_manifest
from mapmerge_core.studies.inputs.evaluators import load_family, tasks_of
from mapmerge_core.studies.runs.measuring import measure as measure_points
from mapmerge_core.studies.store import Store
from mapmerge_core.tasks.devices import dtype_of
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

DEMO_TASKS = ("MNIST", "Fashion")
N_CLASSES = 100
PIXELS = 224
N_POINTS, N_AT_ONCE = 250, 5
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16 FLOP a second by the makers' data sheets."""


@cache
def demo(device: str, *, rounded: bool = False) -> Evaluator:
    """An evaluator of the demo zoo's first two tasks, whose task vectors may be in bfloat16."""
    config = config_from_manifest(DEMO_ZOO, DEMO_TASKS)
    files = config.files()
    family = load_family(config, files["pretrained"])
    checkpoints = {name: files[f"{name} model"] for name in config.model_names}
    vectors = TaskVectors.from_files(files["pretrained"], checkpoints, part=family.part, rounded=rounded)
    return Evaluator(family, vectors, tasks_of(config), device=device)


def random_weights() -> dict[str, torch.Tensor]:
    """A whole ViT-B/32 without training."""
    model = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE))
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def write_data(path: Path, n_images: int) -> None:
    """Writes a dataset of random images of a hundred classes, with as many prompts."""
    draw, arrays = np.random.default_rng(0), dict[str, np.ndarray]()
    for split, size in (("val", n_images), ("test", N_CLASSES)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (size, PIXELS, PIXELS, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(size) % N_CLASSES
    names = np.array([f"class {i}" for i in range(N_CLASSES)])
    arrays |= {"class_names": names, "templates": np.array(["a {}."])}
    np.savez(path, allow_pickle=False, **arrays)


def large(device: str, n_images: int, n_tasks: int) -> Evaluator:
    """An evaluator of ViT-B/32 with random weights on random images, with eight task vectors."""
    weights = random_weights()
    towers = {name: tensor for name, tensor in weights.items() if name.startswith("visual.")}
    models = {f"model {n}": {**weights, **finetuned(towers, n)} for n in range(1, N_MODELS + 1)}
    vectors = TaskVectors.from_state_dicts(weights, models, part="visual.")
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MAPMERGE_HOME=folder):
        save_file(weights, Path(folder) / "pretrained.safetensors")
        family = ClipZeroShot(ARCHITECTURE, Path(folder) / "pretrained.safetensors")
        write_data(Path(folder) / "data.npz", n_images)
        tasks = [Task.from_file(f"task {k}", Path(folder) / "data.npz") for k in range(n_tasks)]
        evaluator = Evaluator(family, vectors, tasks, device=device)
        evaluator.prepare()
    return evaluator


def some_c(n: int) -> np.ndarray:
    """Coefficients (N,) whose merge is no extreme one."""
    return np.random.default_rng(0).uniform(0, 2 / n, n)


def bare_loop(evaluator: Evaluator, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """A function that passes every validation image through the tower once, and how many these are.

    Images are normalised and cast already: no merge, no head, no counting.
    """
    family = evaluator.family
    assert isinstance(family, ClipZeroShot)
    tower = family.model_in(dtype).get_submodule("visual")
    batches: list[torch.Tensor] = []
    for task in evaluator.tasks.values():
        images = family.normalise(family.images(task, "val")).to(dtype)
        batches += images.split(evaluator.batch_size)

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            features = tower(batch)
        features.cpu()  # waits for an accelerator

    return run, sum(map(len, batches))


def limit(device: str) -> Measured:
    """Images a second of a study's points, from what is known to what is stored, beside the bare loop's."""
    evaluator, rng = demo(device), np.random.default_rng(0)
    precision = evaluator.precision
    loop, n_images = bare_loop(evaluator, dtype_of(precision))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        study = store.studies.create("Speed", config_from_manifest(DEMO_ZOO, DEMO_TASKS))
        [merge] = store.merges.all(study.id)
        shape = (N_AT_ONCE, len(evaluator.vectors))
        ours, theirs = medians(
            lambda: measure_points(store, study, evaluator, merge.id, rng.uniform(0, 1, shape)), loop, rounds=9
        )
        ours /= N_AT_ONCE
        store.close()
    note = f"the demo zoo, {precision}, {evaluator.batch_size} images a batch, {torch.get_num_threads()} threads"
    return ratio(n_images / ours, n_images / theirs, "images/s", note=note)


def narrow(device: str) -> Measured:
    """Images a second of ViT-B/32 in the precision that is chosen by itself, beside float32."""
    evaluator, n_images = large(device, 2 * N_CLASSES, 1), 2 * N_CLASSES
    c = some_c(N_MODELS)
    ours, theirs = medians(lambda: evaluator.evaluate(c), lambda: evaluator.evaluate(c, precision="float32"))
    note = f"{evaluator.precision} was chosen; {n_images} images, {evaluator.batch_size} a batch"
    return ratio(n_images / ours, n_images / theirs, "images/s", note=note)


def rounding(device: str) -> Measured:
    """How far accuracies in the precision that is chosen by itself are from float32's, on average."""
    evaluator = demo(device)
    return _differences(accuracies(evaluator, evaluator.precision), accuracies(evaluator, "float32"))


def rounded_vectors(device: str) -> Measured:
    """How far accuracies with task vectors in bfloat16 are from those in float32, on average."""
    return _differences(accuracies(demo(device, rounded=True), "float32"), accuracies(demo(device), "float32"))


def accuracies(evaluator: Evaluator, precision: str) -> np.ndarray:
    """Accuracies (c x tasks) in percent, at the same ten c always."""
    C = np.random.default_rng(1).uniform(0, 1, (10, len(evaluator.vectors)))
    values = [[100 * o.value for o in evaluator.evaluate(c, precision=precision).values()] for c in C]
    return np.array(values)


def _differences(ours: np.ndarray, theirs: np.ndarray) -> Measured:
    differences = np.abs(ours - theirs)
    note = f"{len(ours)} c on two tasks of 1,000 images; the largest is {differences.max():.1f} points"
    return Measured(float(differences.mean()), None, "points", float(differences.mean()), note)


def flop_of(evaluator: Evaluator) -> float:
    """FLOP of passing one image through the tower: two for each multiplication that is added."""
    tower = evaluator.family.model_in(torch.float32).get_submodule("visual")
    image = torch.zeros(1, 3, PIXELS, PIXELS, device=evaluator.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(image)
    return float(counter.get_total_flops())


def heads(device: str) -> Measured:
    """The head of a hundred prompts in a new process, beside computing it."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MAPMERGE_HOME=folder):
        weights, data = Path(folder) / "pretrained.safetensors", Path(folder) / "data.npz"
        save_file(random_weights(), weights)
        write_data(data, N_CLASSES)
        task = Task.from_file("task", data)
        family = ClipZeroShot(ARCHITECTURE, weights)
        family.to(torch.device(device))
        family.dataset(task)
        start = time.perf_counter()
        family.head(task)
        theirs = time.perf_counter() - start

        seconds = []
        for _ in range(ROUNDS):
            other = ClipZeroShot(ARCHITECTURE, weights)
            other.to(torch.device(device))
            other.dataset(task)
            start = time.perf_counter()
            other.head(task)
            seconds.append(time.perf_counter() - start)
    note = f"{ARCHITECTURE}; both once in a process, the text tower's digest included"
    return ratio(1000 * float(np.median(seconds)), 1000 * theirs, "ms", note=note)


def gpu_share(device: str) -> Measured:
    """FLOP a second of evaluating ViT-B/32, beside the device's dense bfloat16 peak."""
    evaluator = large(device, 8192, 1)
    per_image, name = flop_of(evaluator), torch.cuda.get_device_name()
    peak = next((flop for model, flop in PEAKS.items() if model in name), None)
    c = some_c(N_MODELS)
    (seconds,) = medians(lambda: evaluator.evaluate(c))
    if peak is None:
        a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
        (product,) = medians(lambda: float((a @ a)[0, 0]))
        peak = 2 * 8192**3 / product
    note = f"{per_image / 1e9:.2f} GFLOP an image, {evaluator.precision}, {name}"
    return ratio(8192 * per_image / seconds / 1e12, peak / 1e12, "TFLOP/s", note=note)


def gpu_point(device: str) -> Measured:
    """One c on eight tasks of 1,000 images."""
    evaluator = large(device, 1000, N_MODELS)
    c = some_c(N_MODELS)
    (seconds,) = medians(lambda: evaluator.evaluate(c))
    return Measured(seconds, None, "s", seconds, torch.cuda.get_device_name())


def gpu_study(device: str) -> Measured:
    """A whole study of 250 points on eight tasks of 1,000 images, once everything is read."""
    evaluator = large(device, 1000, N_MODELS)
    rng = np.random.default_rng(0)
    evaluator.evaluate(some_c(N_MODELS))
    start = time.perf_counter()
    for c in rng.uniform(0, 1, (N_POINTS, N_MODELS)):
        evaluator.evaluate(c)
    seconds = time.perf_counter() - start
    return Measured(seconds, None, "s", seconds, torch.cuda.get_device_name())


def show_profile(device: str) -> None:
    """Where the time of an evaluation goes."""
    evaluator = demo(device)
    c = some_c(len(evaluator.vectors))
    evaluator.evaluate(c)
    with cProfile.Profile() as profile:
        evaluator.evaluate(c)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(12)


TOWER = "ViT-B/32's tower"
ROWS = (
    Row(
        "evaluate_limit",
        "evaluating a study: images/s, merges and the store included",
        "a bare forward loop",
        target=0.95,
        at_most=False,
        measure=limit,
        profile=show_profile,
    ),
    Row(
        "evaluate_narrow",
        f"evaluating {TOWER} in the precision chosen by itself",
        "float32",
        target=2.5,
        at_most=False,
        measure=narrow,
    ),
    Row(
        "evaluate_rounding",
        "accuracies in the precision chosen by itself: mean difference",
        "float32",
        target=0.2,
        at_most=True,
        measure=rounding,
        unit="points",
    ),
    Row(
        "vectors_rounding",
        "accuracies with task vectors in bfloat16: mean difference",
        "task vectors in float32",
        target=0.1,
        at_most=True,
        measure=rounded_vectors,
        unit="points",
    ),
    Row(
        "heads",
        f"a head of {N_CLASSES} prompts in a new process",
        "computing it",
        target=0.5,
        at_most=True,
        measure=heads,
    ),
    Row(
        "gpu_peak",
        f"evaluating {TOWER} on a GPU",
        "the device's dense bfloat16 peak",
        target=0.45,
        at_most=False,
        measure=gpu_share,
        device="cuda",
    ),
    Row(
        "gpu_point",
        "one c on eight tasks of 1,000 images on a GPU",
        "",
        target=0.5,
        at_most=True,
        measure=gpu_point,
        unit="s",
        device="cuda",
    ),
    Row(
        "gpu_study",
        f"{N_POINTS} points of the same on a GPU",
        "",
        target=180,
        at_most=True,
        measure=gpu_study,
        unit="s",
        device="cuda",
    ),
)
