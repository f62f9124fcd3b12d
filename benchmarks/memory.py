"""What merging large models and adapters takes: bytes held and peak resident memory of whole processes.

Run ``python -m benchmarks.memory [FOLDER]``: FOLDER gets 6 GiB of synthetic checkpoints for a while. Peaks
are those of processes of their own, the import of PyTorch included.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mapmerge_core.weights.export.writing import save_merged
from mapmerge_core.weights.io.adapters import Adapter, LowRank
from mapmerge_core.weights.io.checkpoints import open_state_dict
from mapmerge_core.weights.io.checks import Described
from mapmerge_core.weights.io.tensor_files import write_safetensors
from mapmerge_core.weights.vectors.streamed import StreamedVectors

MIB = 1 << 20
N_MODELS = 4

# The shapes of Llama 2 7B.
N_LAYERS, HIDDEN, INNER, VOCABULARY, RANK, N_ADAPTERS = 32, 4096, 11008, 32000, 16, 8


class Synthetic(Mapping[str, Tensor]):
    """A model of random numbers that are drawn when a tensor is asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> None:
        self.shapes, self.seed, self.dtype = shapes, seed, dtype

    def __getitem__(self, name: str) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed + sum(name.encode()))
        tensor = torch.empty(self.shapes[name], dtype=self.dtype)
        return tensor.uniform_(-0.02, 0.02, generator=draw)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def describe(self, name: str) -> Described:
        """Returns a tensor's shape and dtype."""
        return Described(torch.Size(self.shapes[name]), self.dtype)


def llama() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a Llama of 7 billion parameters by name."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(N_LAYERS):
        place = f"model.layers.{layer}"
        shapes |= {f"{place}.self_attn.{which}_proj.weight": (HIDDEN, HIDDEN) for which in "qkvo"}
        shapes |= {f"{place}.mlp.{which}_proj.weight": (INNER, HIDDEN) for which in ("gate", "up")}
        shapes |= {f"{place}.mlp.down_proj.weight": (HIDDEN, INNER)}
        shapes |= {f"{place}.{which}_layernorm.weight": (HIDDEN,) for which in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def make_adapter(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Adapter:
    """Returns a synthetic adapter of the four attention matrices of each layer."""
    draw = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, shape in shapes.items():
        if "self_attn" in name:
            A, B = (torch.empty(size, dtype=torch.bfloat16) for size in ((RANK, shape[1]), (shape[0], RANK)))
            A.uniform_(-0.1, 0.1, generator=draw)
            B.uniform_(-0.1, 0.1, generator=draw)
            deltas[name] = LowRank(A, B, 2.0, transposed=False)
    return Adapter(deltas=deltas, full={})


def peak() -> int:
    """Returns this process's peak resident memory in bytes (Linux)."""
    # That of getrusage would begin with the peak of the process that started this one.
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def measure_adapters() -> None:
    """Prints what the task vectors of eight adapters hold, and what merging some matrices takes."""
    before = peak()
    shapes = llama()
    base = Synthetic(shapes, 0, torch.bfloat16)
    adapters = {f"adapter {n}": make_adapter(shapes, n) for n in range(N_ADAPTERS)}
    vectors = StreamedVectors.from_state_dicts(base, adapters)
    low_rank = [delta for adapter in adapters.values() for delta in adapter.deltas.values()]
    held, opened = sum(delta.A.nbytes + delta.B.nbytes for delta in low_rank), peak()
    start, merged = time.perf_counter(), 0
    for name, tensor in vectors.tensors([0.1] * N_ADAPTERS):
        del tensor  # before the next one is made
        merged += name in vectors.layers
        if merged == 16:
            break
    print(
        f"{N_ADAPTERS} adapters of rank {RANK} on a Llama of {vectors.n_parameters / 1e9:.2f} billion "
        f"parameters: {held / MIB:.0f} MiB of factors held, peak resident memory "
        f"+{(opened - before) / MIB:.0f} MiB; as "
        f"dense float32 task vectors {4 * vectors.n_parameters * N_ADAPTERS / 1e9:.0f} GB."
    )
    print(
        f"Merging the first 16 of {len(vectors.layers)} matrices tensor by tensor, the base drawn on the "
        f"way: {time.perf_counter() - start:.1f} s, +{(peak() - before) / MIB:.0f} MiB."
    )


def transformer(n_bytes: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a float32 transformer as wide as ViT-L, of just more than ``n_bytes``."""
    shapes: dict[str, tuple[int, ...]] = {}
    while 4 * sum(n_rows * n_columns for n_rows, n_columns in shapes.values()) < n_bytes:
        place = f"layers.{len(shapes) // 4}"
        shapes |= {f"{place}.in_proj": (3072, 1024), f"{place}.out_proj": (1024, 1024)}
        shapes |= {f"{place}.c_fc": (4096, 1024), f"{place}.c_proj": (1024, 4096)}
    return shapes


def write_checkpoints(folder: Path) -> None:
    """Writes the pre-trained model and four others, 1 GiB each."""
    shapes = transformer(1 << 30)
    for seed in range(N_MODELS + 1):
        model = Synthetic(shapes, seed, torch.float32)
        described = {name: model.describe(name) for name in model}
        write_safetensors(folder / f"{seed}.safetensors", described, model.items(), {})


def measure_export(folder: Path) -> None:
    """Prints what exporting a merge of the checkpoints takes."""
    imported = peak()
    start = time.perf_counter()
    models = {str(n): open_state_dict(folder / f"{n}.safetensors") for n in range(1, N_MODELS + 1)}
    vectors = StreamedVectors.from_state_dicts(open_state_dict(folder / "0.safetensors"), models)
    exported = save_merged(folder / "merged.safetensors", vectors, [0.1, 0.2, 0.3, 0.4])
    print(
        f"Exporting a merge of {N_MODELS} models of {exported.n_bytes / MIB:,.0f} MiB: peak resident memory "
        f"{peak() / MIB:.0f} MiB, of which imports {imported / MIB:.0f} MiB; "
        f"{time.perf_counter() - start:.1f} s."
    )
    vectors.cosines()
    print(f"With norms and cosines: {peak() / MIB:.0f} MiB; {time.perf_counter() - start:.1f} s.")


def main() -> None:
    """Runs each measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where 6 GiB are free")
    parser.add_argument("--measure", choices=("adapters", "export", "write"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "adapters":
        measure_adapters()
    elif options.measure == "write":
        write_checkpoints(options.folder)
    elif options.measure == "export":
        measure_export(options.folder)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for what in ("adapters", "write", "export"):
                command = [sys.executable, "-m", "benchmarks.memory", folder, "--measure", what]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
