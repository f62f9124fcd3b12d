"""A ResNet-18 study on small images: what recalibrating BatchNorm and refitting heads each do.

Run ``python -m benchmarks.resnet FOLDER``. A timm ResNet-18 is pre-trained on six of the demo zoo's tasks and
fine-tuned on the other two. Of these the zoo's validation images are trained on, and its test images are
divided into a validation and a test split. Everything is computed on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families._models.classifier import ClassifierWithHeads
from mapmerge_core.tasks.families.classifier import Classifier
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.io.checkpoints import read_state_dict
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

ZOO = Path(__file__).parents[1] / "assets" / "zoo"
NAMES = ("MNIST", "Fashion", "QuickDraw", "Emoji", "Flags", "Street", "Letters", "Textures")
ARCHITECTURE, SIZE = "resnet18", 32
PRE_TRAINING_BATCH, FINE_TUNING_BATCH = 128, 64
STUDY = """\
name: ResNet-18
family: classifier
architecture: {architecture}
pretrained: pretrained.safetensors
tasks:
{tasks}
options: {{image_size: {size}}}
run: {{method: {{name: map, points: 30}}}}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the models unless they are there, and prints the table."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_zoo(folder, options.tasks, options.pre_training, options.fine_tuning)
    print_table(folder, options.tasks, options.coefficients)


def make_zoo(folder: Path, tasks: Sequence[str], pre_training: int, fine_tuning: int) -> None:
    """Writes datasets, checkpoints as timm users have them, and ``study.yaml``; finished files are kept."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in _normalisation())
    pretrained = folder / "pretrained.safetensors"
    if not pretrained.exists():
        images, labels = _mixture([name for name in NAMES if name not in tasks])
        torch.manual_seed(0)
        model = timm.create_model(ARCHITECTURE, num_classes=int(labels.max()) + 1)
        print("Pre-training", flush=True)
        _train(model, (images - mean) / std, labels, pre_training, PRE_TRAINING_BATCH, 2e-3)
        _save(model, pretrained)
    for number, name in enumerate(tasks, start=1):
        data, checkpoint = folder / f"{name.lower()}.npz", folder / f"{name.lower()}.safetensors"
        _write_dataset(data)
        if not checkpoint.exists():
            with np.load(data) as stored:
                images = _pixels(stored["train_images"])
                labels = torch.from_numpy(stored["train_labels"])
            torch.manual_seed(number)
            model = timm.create_model(ARCHITECTURE, num_classes=int(labels.max()) + 1)
            backbone = {key: t for key, t in load_file(pretrained).items() if not key.startswith("fc.")}
            model.load_state_dict(backbone, strict=False)
            print(f"Fine-tuning on {name}", flush=True)
            _train(model, (images - mean) / std, labels, fine_tuning, FINE_TUNING_BATCH, 5e-4)
            _save(model, checkpoint)
    entries = "\n".join(
        f"  - {{name: {name}, checkpoint: {name.lower()}.safetensors, data: {{path: {name.lower()}.npz}}}}"
        for name in tasks
    )
    study = STUDY.format(architecture=ARCHITECTURE, tasks=entries, size=SIZE)
    (folder / "study.yaml").write_text(study, encoding="utf-8")


def print_table(folder: Path, names: Sequence[str], coefficients: Sequence[float]) -> None:
    """Measures models on the test splits: with and without recalibration, with old and with new heads."""
    tasks = [Task.from_file(name, folder / f"{name.lower()}.npz") for name in names]
    pretrained = folder / "pretrained.safetensors"
    checkpoints = {name: folder / f"{name.lower()}.safetensors" for name in names}
    models = {name: read_state_dict(path) for name, path in checkpoints.items()}
    without = Classifier.left_out(ARCHITECTURE, pretrained)
    evaluators = []
    for recalibrate in (False, True):
        settings = Classifier.Settings(recalibrate=recalibrate, image_size=SIZE)
        family = ClassifierWithHeads(ARCHITECTURE, pretrained, settings)
        vectors = TaskVectors.from_files(pretrained, checkpoints, without=without)
        evaluators.append(Evaluator(family, vectors, tasks, device="cpu", precision="float32"))
    rows = {"pre-trained": np.zeros(len(tasks))}
    rows |= {f"{name}'s model": row for name, row in zip(names, np.eye(len(tasks)), strict=True)}
    rows |= {f"all c = {c:g}": np.full(len(tasks), c) for c in coefficients}
    print(f"\nAccuracy on the test splits in percent: {', '.join(names)}\n")
    print("| model | as merged | heads refitted | recalibrated | both |\n| --- | ---: | ---: | ---: | ---: |")
    for label, c in rows.items():
        cells = [cell for evaluator in evaluators for cell in _measured(evaluator, c, models)]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)
    print_cost(evaluators[1])


def _measured(evaluator: Evaluator, c: np.ndarray, models: dict[str, dict[str, torch.Tensor]]) -> list[str]:
    """Accuracies with the fine-tuned models' heads, and with refitted ones."""
    try:
        refitted = [outcome.value for outcome in evaluator.evaluate(c, split="test").values()]
    except MapMergeError:  # variances became negative
        return ["not finite"] * 2
    family = evaluator.family
    assert isinstance(family, ClassifierWithHeads)
    own = [_with_own_head(family, task, models[task.name]) for task in evaluator.tasks.values()]
    return [", ".join(f"{100 * value:.1f}" for value in values) for values in (own, refitted)]


def print_cost(evaluator: Evaluator) -> None:
    """Seconds that the parts of an evaluation take, medians of five."""
    family, seconds = evaluator.family, []
    assert isinstance(family, ClassifierWithHeads)
    c, task = np.full(len(evaluator.tasks), 0.5), next(iter(evaluator.tasks.values()))
    for _ in range(5):
        marks = [time.perf_counter()]
        evaluator.vectors.merge_into(family.model, c)
        marks.append(time.perf_counter())
        family.merged(torch.float32)
        marks.append(time.perf_counter())
        family.head(task)
        marks.append(time.perf_counter())
        family.measure(task, "val", torch.float32, evaluator.batch_size)
        marks.append(time.perf_counter())
        seconds.append(np.diff(marks))
    merge, calibration, head, measuring = np.median(seconds, axis=0)
    print(
        f"\nmerge {merge:.3f} s, recalibration {calibration:.2f} s, a head {head:.2f} s, "
        f"classifying {len(family.labels(task, 'val'))} images {measuring:.2f} s"
    )


def _with_own_head(family: ClassifierWithHeads, task: Task, model: dict[str, torch.Tensor]) -> float:
    """A task's accuracy with its fine-tuned model's head on the features of the last merge."""
    features = torch.from_numpy(family.features(family.images(task, "test")))
    logits = functional.linear(features, model["fc.weight"], model["fc.bias"])
    return float((logits.argmax(dim=1) == family.labels(task, "test")).float().mean())


def _normalisation() -> tuple[Sequence[float], Sequence[float]]:
    config = timm.get_pretrained_cfg(ARCHITECTURE)
    assert config is not None
    return config.mean, config.std


def _pixels(images: np.ndarray) -> torch.Tensor:
    """Images as n x 3 x height x width, from 0 to 1."""
    colours = np.repeat(images[..., None], 3, axis=3) if images.ndim == 3 else images
    return torch.from_numpy(colours.transpose(0, 3, 1, 2).copy()).float() / 255


def _mixture(names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of some of the zoo's tasks, every task's classes apart from the others'."""
    images, labels, n_classes = [], [], 0
    for name in names:
        with np.load(ZOO / f"{name.lower()}.npz") as stored:
            for split in ("val", "test"):
                images.append(_pixels(stored[f"{split}_images"]))
                labels.append(torch.from_numpy(stored[f"{split}_labels"] + n_classes))
            n_classes += len(stored["class_names"])
    return torch.cat(images), torch.cat(labels)


def _write_dataset(path: Path) -> None:
    """The zoo's validation images to train on, its test images divided into validation and test."""
    with np.load(ZOO / path.name) as stored:
        labels = stored["test_labels"]
        val, test = train_test_split(np.arange(len(labels)), train_size=0.4, random_state=0, stratify=labels)
        arrays = {"train_images": stored["val_images"], "train_labels": stored["val_labels"]}
        for split, rows in (("val", np.sort(val)), ("test", np.sort(test))):
            arrays[f"{split}_images"] = stored["test_images"][rows]
            arrays[f"{split}_labels"] = labels[rows]
        np.savez_compressed(path, class_names=stored["class_names"], templates=stored["templates"], **arrays)


def _train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, batch: int, rate: float) -> None:
    """Trains on images that are shifted a little, and says how it goes."""
    rng, per_epoch = np.random.default_rng(0), len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * per_epoch, pct_start=0.1)
    model.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in rng.permutation(len(images))[: per_epoch * batch].reshape(-1, batch):
            shift = tuple(rng.integers(-3, 4, 2).tolist())
            loss = functional.cross_entropy(model(images[rows].roll(shift, dims=(2, 3))), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch} of {epochs}: loss {total / per_epoch:.3f}", flush=True)


def _save(model: nn.Module, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resnet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where datasets, models and study.yaml go")
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=["Fashion", "Emoji"], metavar="TASK")
    parser.add_argument("--coefficients", nargs="+", type=float, default=[0.3, 0.4, 0.5, 0.7, 1.0], metavar="C")
    parser.add_argument("--pre-training", type=int, default=5, metavar="EPOCHS")
    parser.add_argument("--fine-tuning", type=int, default=15, metavar="EPOCHS")
    return parser


if __name__ == "__main__":
    main()
