from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.checkpoints import find_checkpoints, inspect, read_state_dict, sha256

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {
    "a.weight": torch.arange(6, dtype=torch.float16).view(2, 3),
    "a.bias": torch.tensor(0.5),
    "steps": torch.tensor([3]),
}


class Hostile:
    """Pickles to a call that makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def assert_one_sentence(error: pytest.ExceptionInfo) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert not re.search(r"Traceback|Error\b", text)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_reads_back_what_other_libraries_wrote(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    save_file(WEIGHTS, path) if suffix == ".safetensors" else torch.save(WEIGHTS, path)
    read = read_state_dict(path)
    assert read.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)


def test_reads_torchs_old_format_and_unwraps_training_checkpoints(tmp_path):
    torch.save({"epoch": 3, "state_dict": WEIGHTS}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "old.pt").keys() == WEIGHTS.keys()


def test_reading_maps_the_file_instead_of_copying_it(tmp_path):
    for name, save in (("m.safetensors", save_file), ("m.pt", torch.save)):
        save({"w": torch.zeros(64 << 18)}, tmp_path / name)  # 64 MiB
    program = (
        "import resource, sys; from mapmerge_core.weights.checkpoints import read_state_dict\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); kept = [read_state_dict(p) for p in sys.argv[1:]]; print(peak() - before)"
    )
    files = [str(tmp_path / name) for name in ("m.safetensors", "m.pt")]
    ran = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 30  # MiB, of 128


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    raw = [lambda o, p, protocol=protocol: p.write_bytes(pickle.dumps(o, protocol)) for protocol in (2, 5)]
    for number, write in enumerate((torch.save, *raw)):
        target, path = tmp_path / "made-by-pickle", tmp_path / f"{number}.pt"
        write({"w": torch.zeros(2), "bad": Hostile(target)}, path)
        with pytest.raises(CheckpointError, match="never executed") as error:
            read_state_dict(path)
        assert_one_sentence(error)
        assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists(), "the pickle was not hostile, so this test showed nothing"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "random"])
def test_damaged_files_end_in_one_sentence(tmp_path, suffix, damage):
    path = tmp_path / f"model{suffix}"
    save_file(WEIGHTS, path) if suffix == ".safetensors" else torch.save(WEIGHTS, path)
    whole = path.read_bytes()
    random = np.random.default_rng(0).bytes(5000)
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "random": random}[damage])
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as error:
        read_state_dict(path)
    assert_one_sentence(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({}, "no tensors"),
        ({"w": torch.zeros(2), "epoch": 3}, "'epoch' is a int"),
        ({3: torch.zeros(2)}, "3 is a Tensor, not a named tensor"),
        ({"state_dict": {"state_dict": {"w": torch.zeros(2)}}}, "'state_dict' is a dict"),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path, content, says):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=says) as error:
        read_state_dict(tmp_path / "x.pt")
    assert_one_sentence(error)


def test_missing_files_folders_and_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for name, says in (("none.pt", "There is no"), (".", "is a folder"), ("notes.txt", "name ends in")):
        with pytest.raises(CheckpointError, match=says) as error:
            read_state_dict(tmp_path / name)
        assert_one_sentence(error)
    with pytest.raises(CheckpointError, match="can't be listed"):
        find_checkpoints(tmp_path / "none")


def test_finds_inspects_and_hashes(tmp_path):
    for name in ("b.safetensors", "a.safetensors"):
        save_file(WEIGHTS, tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder.pt").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["a.safetensors", "b.safetensors"]
    info = inspect(tmp_path / "a.safetensors")
    assert (info.n_tensors, info.n_parameters) == (3, 8)
    assert info.dtypes == {"float16": 1, "float32": 1, "int64": 1}
    content = (tmp_path / "a.safetensors").read_bytes()
    assert info.n_bytes == len(content)
    assert sha256(tmp_path / "a.safetensors") == hashlib.sha256(content).hexdigest()
