"""Write the files that ship: models as float16 safetensors, splits as compressed arrays, manifest, sheet."""

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from . import tasks
from .settings import FINETUNING, PRETRAINING
from .sheet import save_sheet
from .tasks import TaskData

ZOO = Path(__file__).resolve().parents[1]
MANIFEST = ZOO / "manifest.json"
PRETRAINED = "pretrained.safetensors"
ARCHITECTURE = "mapmerge-zoo.json"
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that the same arrays give the same file


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as an LZMA-compressed .npz, which `numpy.load` reads like any other."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", FIRST_DAY)
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_splits(task: TaskData) -> None:
    """Write a task's validation and test splits and its words."""
    arrays = {}
    for split in ("val", "test"):
        arrays[f"{split}_images"] = task.splits[split].images
        arrays[f"{split}_labels"] = task.splits[split].labels
    arrays |= {"class_names": np.array(task.class_names), "templates": np.array(task.templates)}
    write_arrays(ZOO / task.file_name(".npz"), arrays)


def publish_task(name: str, work: Path) -> np.ndarray:
    """Copy one task's model and write its validation and test splits; return its test images."""
    task = tasks.load(name, work / "tasks")
    write_splits(task)
    checkpoint = task.file_name(".safetensors")
    shutil.copyfile(work / "finetuned" / checkpoint, ZOO / checkpoint)
    return task.splits["test"].images


def write_manifest(work: Path) -> None:
    """Write the manifest, without the mixture and results: `mixture` and `evaluate` add them."""
    entries = []
    for name in tasks.NAMES:
        task = tasks.load(name, work / "tasks")
        files = {"checkpoint": task.file_name(".safetensors"), "data": task.file_name(".npz")}
        entries.append({"name": name, "title": task.title, **files})
    files = [ARCHITECTURE, PRETRAINED, *(entry[key] for entry in entries for key in ("checkpoint", "data"))]
    manifest = {
        "name": "mapmerge-zoo",
        "title": "A small zoo of eight image tasks",
        "family": "clip",
        "architecture": ARCHITECTURE,
        "pretrained": PRETRAINED,
        "tasks": entries,
        "sha256": {file: sha256(ZOO / file) for file in files},
        "training": {
            "pretraining": dataclasses.asdict(PRETRAINING),
            "finetuning": {name: dataclasses.asdict(settings) for name, settings in FINETUNING.items()},
        },
    }
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n")


def publish(work: Path) -> None:
    """Write every shipped file but the results."""
    state = torch.load(work / "pretrain" / "model.pt")
    halves = {name: tensor.half().contiguous() for name, tensor in state.items()}
    save_file(halves, ZOO / PRETRAINED)
    (ZOO / PRETRAINED).chmod(0o644)
    save_sheet({name: publish_task(name, work) for name in tasks.NAMES}, ZOO / "sheet.png")
    write_manifest(work)
    total = sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file())
    print(f"  {total / 1e6:.1f} MB in all", flush=True)
