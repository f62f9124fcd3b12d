from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.checkpoints import inspect, open_state_dict, read_state_dict, sha256
from mapmerge_core.weights.io.folders import main_file, weights_files

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
        "import resource, sys; from pathlib import Path; from mapmerge_core.weights.io.checkpoints import read_state_dict\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); kept = [read_state_dict(Path(p)) for p in sys.argv[1:]]; print(peak() - before)"
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


def test_inspects_and_hashes(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    info = inspect(tmp_path / "a.safetensors")
    assert info.n_tensors == 3
    assert info.dtypes == {"float16": 1, "float32": 1, "int64": 1}
    content = (tmp_path / "a.safetensors").read_bytes()
    assert info.n_bytes == len(content)
    assert sha256(tmp_path / "a.safetensors") == hashlib.sha256(content).hexdigest()


SHARDED = {f"layer{i}.weight": torch.randn(16, 16) for i in range(5)}


def shard(folder, **options):
    """A checkpoint in several files, as the hub's own library writes it."""
    folder.mkdir(exist_ok=True)
    save_torch_state_dict(SHARDED, folder, max_shard_size=2 * 16 * 16 * 4, **options)
    (index,) = folder.glob("*.index.json")
    assert len({*json.loads(index.read_text())["weight_map"].values()}) == 3
    return index


def assert_read(source, expected):
    opened, read = open_state_dict(source), read_state_dict(source)
    assert opened.keys() == read.keys() == expected.keys()
    assert len(opened) == len(expected)
    for name, tensor in expected.items():
        assert name in opened
        assert opened.describe(name) == (tensor.shape, tensor.dtype)
        for found in (opened[name], read[name]):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


def refused(says, source):
    texts = set()
    for read in (read_state_dict, open_state_dict):
        with pytest.raises(CheckpointError, match=says) as error:
            read(source)
        assert_one_sentence(error)
        texts.add(str(error.value))
    assert len(texts) == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_a_lazy_state_dict_tells_shapes_and_reads_afresh(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(WEIGHTS, path)
    assert_read(path, WEIGHTS)
    opened = open_state_dict(path)
    opened["a.weight"].zero_()
    assert torch.equal(opened["a.weight"], WEIGHTS["a.weight"])
    with pytest.raises(KeyError):
        opened["none"]
    save({"a.weight": torch.ones(9)}, path)
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read") as error:
        opened["a.weight"]
    assert_one_sentence(error)


def test_a_lazy_read_leaves_the_others_on_disk(tmp_path):
    content = {f"w{i}": torch.full((8 << 18,), float(i)) for i in range(8)}  # 64 MiB
    save_file(content, tmp_path / "m.safetensors")
    torch.save(content, tmp_path / "m.pt")
    program = (
        "import resource, sys; from pathlib import Path; from mapmerge_core.weights.io.checkpoints import open_state_dict\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); opened = [open_state_dict(Path(path)) for path in sys.argv[1:]]\n"
        "assert [float(t[-1]) for o in opened for t in o.values()] == [*range(8)] * 2; print(peak() - before)"
    )
    files = [str(tmp_path / name) for name in ("m.safetensors", "m.pt")]
    ran = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 30  # MiB, of 128


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_checkpoints_in_several_files(tmp_path, safe):
    index = shard(tmp_path / "m", safe_serialization=safe)
    for source in (index, tmp_path / "m"):
        assert_read(source, SHARDED)
    files = weights_files(tmp_path / "m")
    assert files[0] == index
    assert len(files) == 4
    info = inspect(tmp_path / "m")
    assert info.n_tensors == 5
    assert info.n_bytes == sum(file.stat().st_size for file in files)


def test_the_hash_of_several_files_is_that_of_what_sha256sum_prints(tmp_path):
    index = shard(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    names = sorted(file.name for file in weights_files(index))
    printed = subprocess.run(["sha256sum", *names], cwd=tmp_path / "m", capture_output=True, check=True).stdout
    assert sha256(index) == sha256(tmp_path / "m") == hashlib.sha256(printed).hexdigest()


def test_a_model_that_transformers_saved(tmp_path):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size=2000)
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    for folder in ("one", "many"):
        assert_read(tmp_path / folder, model.state_dict())


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"], "model.safetensors"),
        (["open_clip_pytorch_model.bin", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
        (["pytorch_model.bin", "other.bin", "training_args.bin"], "pytorch_model.bin"),
        (["finetuned.pt", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"], "finetuned.pt"),
    ],
)
def test_which_file_of_a_folder_counts(tmp_path, names, chosen):
    for number, name in enumerate(names):
        content = {"w": torch.full((2,), float(number))}
        save_file(content, tmp_path / name) if name.endswith("s") else torch.save(content, tmp_path / name)
    assert read_state_dict(tmp_path)["w"][0] == names.index(chosen)
    assert sha256(tmp_path) == sha256(tmp_path / chosen)


def test_folders_without_a_checkpoint_or_with_several(tmp_path):
    refused("is a folder with no weights", tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save(WEIGHTS, tmp_path / name)
    refused("is a folder with 2 checkpoints: choose a checkpoint file", tmp_path)


def test_an_index_that_is_wrong(tmp_path):
    index = shard(tmp_path / "m")
    listed = json.loads(index.read_text())
    secret = tmp_path / "secret.safetensors"
    save_file({"layer0.weight": torch.ones(2)}, secret)
    first = listed["weight_map"]["layer0.weight"]

    def write(**weight_map):
        index.write_text(json.dumps({"weight_map": listed["weight_map"] | weight_map}))

    for outside in ("../secret.safetensors", str(secret), "sub/../../secret.safetensors", "..\\secret.bin"):
        write(**{"layer0.weight": outside})
        refused("not a checkpoint file in the same folder", index)
    write(**{"layer9.weight": first})
    refused(f"{first} lacks the tensor 'layer9.weight'", index)
    write(**{"layer9.weight": "model-9.safetensors"})
    refused("names the shard 'model-9.safetensors', which is missing", tmp_path / "m")
    for text in ("", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        refused("damaged or not an index", index)
    index.write_text('{"weight_map": {}}')
    refused("lists no tensors", index)


def test_a_damaged_shard_is_named(tmp_path):
    index = shard(tmp_path / "m")
    path = weights_files(index)[-1]
    path.write_bytes(path.read_bytes()[:50])
    refused(re.escape(str(path)), index)


def test_tensors_that_an_index_forgot_count_too(tmp_path):
    index = shard(tmp_path / "m")
    listed = json.loads(index.read_text())
    del listed["weight_map"]["layer1.weight"]
    index.write_text(json.dumps(listed))
    assert_read(index, SHARDED)


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    refused("is an adapter, not a whole model", tmp_path)
    files = [tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"]
    assert [*weights_files(tmp_path)] == files
    assert inspect(tmp_path).n_tensors == 1
    assert sha256(tmp_path) == sha256(files[1]) != hashlib.sha256(files[1].read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (["finetuned.pt", "notes.txt"], "finetuned.pt"),
        (["a.pt", "b.pt"], None),
        (["finetuned.pt", "optimizer.pt", "rng_state_0.pth"], "finetuned.pt"),
        (["adapter_config.json", "adapter_model.safetensors", "model.safetensors"], "adapter_model.safetensors"),
        (
            ["own.safetensors.index.json", "own-1-of-2.safetensors", "own-2-of-2.safetensors"],
            "own.safetensors.index.json",
        ),
        (["own-1-of-2.safetensors"], None),
        ([], None),
    ],
)
def test_folders_weights_are_found_by_their_names(names, main):
    assert main_file(names) == main


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2, torch.uint16, torch.bool, torch.complex64])
def test_every_dtype_of_safetensors_is_described(tmp_path, dtype):
    tensor = torch.tensor([0.0, 1.0]).to(dtype)
    save_file({"w": tensor}, tmp_path / "m.safetensors")
    assert open_state_dict(tmp_path / "m.safetensors").describe("w") == (torch.Size([2]), dtype)
