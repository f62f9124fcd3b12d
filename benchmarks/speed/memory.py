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
from mapmerge_core.tasks.devices import PRECISIONS
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.streamed import open_vectors

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
    arrays |= {"class_names": np.array(["a", "b"]), "templates": np.array(["a {}."])}
    np.savez(folder / "data.npz", allow_pickle=False, **arrays)


def held() -> int:
    """Bytes of memory that belong to this process alone (Linux); mapped files don't count.

    What the C library keeps of freed memory for later goes back first.
    """
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return 1024 * int(found[1])


def measure_study(folder: Path, vectors_in: str, precision: str) -> None:
    """Opens the study, evaluates two c, and prints what is held then, in float32 towers."""
    small = demo("cpu")  # so that what the libraries keep for themselves isn't counted
    small.evaluate(some_c(len(small.vectors)), precision=precision)
    before = held()
    pretrained = folder / "pretrained.safetensors"
    family = ClipZeroShot(ARCHITECTURE, pretrained)
    models = {str(n): folder / f"{n}.safetensors" for n in range(1, N_MODELS + 1)}
    rounded = vectors_in == "bfloat16"
    vectors = open_vectors(pretrained, models, part=family.part, on_disk=False, rounded=rounded)
    evaluator = Evaluator(
        family,
        vectors,
        [Task.from_file("task", folder / "data.npz")],
        exported=open_vectors(pretrained, models, part=family.part, on_disk=True) if rounded else None,
        device="cpu",
        precision=precision,
    )
    for c in (0.1, 0.2):
        evaluator.evaluate(np.full(N_MODELS, c))
    tower = 4 * vectors.n_parameters
    sys.stdout.write(json.dumps({"towers": (held() - before) / tower, "tower": tower}))


def towers(vectors_in: str, others: float) -> Measured:
    """Towers of float32 that a study of eight models holds, in a process of its own.

    Args:
        vectors_in: What task vectors are held in.
        others: How many towers they come to, with what is needed beside them.
    """
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder))
        for precision in PRECISIONS:
            command = [sys.executable, "-m", "benchmarks.speed.memory", folder, vectors_in, precision]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            told[precision] = json.loads(ended.stdout)
    value, narrow = told["float32"]["towers"], told["bfloat16"]["towers"]
    note = (
        f"a tower is {told['float32']['tower'] / 2**20:.0f} MiB; what is mapped to the checkpoints' files "
        f"isn't counted; evaluated in bfloat16 it is {narrow:.1f} towers"
    )
    return Measured(value, others, "towers", value, note)


SLACK = 0.2
"""Towers for the tokenizer, images, activations and all the rest: 67 MiB."""
ROWS = (
    Row(
        "memory",
        "memory of a study of 8 ViT-B/32, evaluated in float32",
        "task vectors, θ_pre and the model",
        target=N_MODELS + 2 + SLACK,
        at_most=True,
        measure=lambda _: towers("float32", N_MODELS + 2),
        unit="towers",
    ),
    Row(
        "memory_half",
        "the same with task vectors in bfloat16",
        "half of that",
        target=(N_MODELS + 2) / 2 + SLACK,
        at_most=True,
        measure=lambda _: towers("bfloat16", (N_MODELS + 2) / 2),
        unit="towers",
    ),
)

if __name__ == "__main__":
    measure_study(Path(sys.argv[1]), *sys.argv[2:])
