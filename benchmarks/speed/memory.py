"""What a study of eight ViT-B/32 holds in memory."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from benchmarks.speed.evaluating import demo, some_c
from benchmarks.speed.row import Measured, Row
from benchmarks.speed.towers import ARCHITECTURE, N_MODELS, finetuned
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families.clip import ClipZeroShot
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.task_vectors import TaskVectors

N_IMAGES = 8


def write_study(folder: Path) -> None:
    """Writes the pre-trained model, eight vision towers beside it, and a few images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "pretrained.safetensors")
    towers = {name: tensor for name, tensor in weights.items() if name.startswith("visual.")}
    for n in range(1, N_MODELS + 1):
        save_file(finetuned(towers, n), folder / f"{n}.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 224, 224, 3), np.uint8)
    arrays = {f"{split}_images": images for split in ("val", "test")}
    arrays |= {f"{split}_labels": np.arange(N_IMAGES) % 2 for split in ("val", "test")}
    np.savez(folder / "data.npz", class_names=np.array(["a", "b"]), templates=np.array(["a {}."]), **arrays)


def held() -> int:
    """Bytes of memory that belong to this process alone (Linux); mapped files don't count.

    What the C library keeps of freed memory for later goes back first.
    """
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return 1024 * int(found[1])


def measure_study(folder: Path) -> None:
    """Opens the study, evaluates two c in float32, and prints what is held then, in towers."""
    small = demo("cpu")  # so that what the libraries keep for themselves isn't counted
    small.evaluate(some_c(len(small.vectors)), precision="float32")
    before = held()
    family = ClipZeroShot(ARCHITECTURE, folder / "pretrained.safetensors")
    models = {str(n): folder / f"{n}.safetensors" for n in range(1, N_MODELS + 1)}
    vectors = TaskVectors.from_files(folder / "pretrained.safetensors", models, part=family.part)
    evaluator = Evaluator(
        family, vectors, [Task.from_file("task", folder / "data.npz")], device="cpu", precision="float32"
    )
    for c in (0.1, 0.2):
        evaluator.evaluate(np.full(N_MODELS, c))
    tower = 4 * vectors.n_parameters
    text = 4 * sum(p.numel() for name, p in family.model.named_parameters() if not name.startswith("visual."))
    sys.stdout.write(json.dumps({"towers": (held() - before - text) / tower, "tower": tower, "text": text}))


def towers(_: str) -> Measured:
    """Towers of float32 that a study of eight models holds, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder))
        command = [sys.executable, "-m", "benchmarks.speed.memory", folder]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    sizes = [f"{told[what] / 2**20:.0f} MiB" for what in ("tower", "text")]
    note = "a tower is {}; the text tower, {}, is apart, as is what libraries hold for themselves".format(
        *sizes
    )
    return Measured(told["towers"], N_MODELS + 2, "towers", told["towers"], note)


ROWS = (
    Row(
        "memory",
        "memory of a study of 8 ViT-B/32, evaluated in float32",
        "task vectors, θ_pre and the model",
        target=1.02 * (N_MODELS + 2),  # 2 % for the tokenizer, images, activations and all the rest
        at_most=True,
        measure=towers,
        unit="towers",
    ),
)

if __name__ == "__main__":
    measure_study(Path(sys.argv[1]))
