from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mapmerge_core.errors import CheckpointError, ExportError
from mapmerge_core.weights.io.tensor_files import read_tensors, write_tensors

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def test_every_dtype_reads_back_with_the_formats_own_library_and_is_aligned(tmp_path):
    tensors = {f"{i}": (3 * torch.rand(3, 5)).to(dtype) for i, dtype in enumerate(reversed(DTYPES))}
    tensors |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.rand(4, 3).T,
        "ö": torch.ones(1),
    }
    path = tmp_path / "all.safetensors"
    write_tensors(path, tensors)
    written = load_file(path)
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape)
        same = tensor.contiguous().reshape(-1).view(torch.uint8), written[name].reshape(-1).view(torch.uint8)
        assert torch.equal(*same), name
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, tensor in tensors.items():
        assert (8 + size + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0
    with pytest.raises(ExportError, match="'x' is complex128, which safetensors files can't hold"):
        write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1, dtype=torch.complex128)})
    assert [file.name for file in tmp_path.iterdir()] == ["all.safetensors"]


@pytest.mark.parametrize("place", [0.001, 0.5, 0.999])
def test_a_disk_that_gives_back_other_bytes_is_noticed(tmp_path, monkeypatch, place):
    sync, damaged = os.fsync, []

    def sync_and_damage(descriptor):
        sync(descriptor)
        file = Path(f"/proc/self/fd/{descriptor}").resolve()
        if file.suffix == ".part" and not damaged:
            content = bytearray(file.read_bytes())
            content[int(place * len(content))] ^= 1
            file.write_bytes(content)
            damaged.append(file)

    monkeypatch.setattr(os, "fsync", sync_and_damage)
    tensors = {"a": torch.rand(50, 50), "b": torch.rand(7, dtype=torch.float64)}
    with pytest.raises(ExportError, match=r"merged\.safetensors did not read back as it was written"):
        write_tensors(tmp_path / "merged.safetensors", tensors)
    assert damaged
    assert not list(tmp_path.iterdir())


def test_tensors_and_metadata_come_back_whole_or_not_at_all(tmp_path):
    tied = torch.ones(3, dtype=torch.float16)
    path = tmp_path / "new" / "part.safetensors"
    write_tensors(path, {"a": tied, "b": tied}, {"key": "ü"})
    tensors, metadata = read_tensors(path, "make it again")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"a": [1] * 3, "b": [1] * 3}
    assert metadata == {"format": "pt", "key": "ü"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"can't be written .*: free space, or choose another folder"):
        write_tensors(tmp_path / "file" / "part.safetensors", {"a": tied})
    with pytest.raises(ExportError, match="too large"):
        write_tensors(path, {"a": tied / 0})
    assert read_tensors(path, "")[0].keys() == {"a", "b"}, "a failure leaves the file that was there"
    with pytest.raises(CheckpointError, match=r"can't be read .*: make it again"):
        read_tensors(tmp_path / "file", "make it again")
    with pytest.raises(CheckpointError, match=r"can't be read .*: make it again"):
        read_tensors(tmp_path / "none", "make it again")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "new", "part.safetensors"]
