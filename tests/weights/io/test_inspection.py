"""References are worked out with NumPy from the same tensors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import constants, save_torch_state_dict
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from mapmerge_core.__main__ import main
from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.inspection import inspect_models, odd_one

SHAPES = {"visual.conv1.weight": (4, 3), "visual.class_embedding": (5,), "token_embedding.weight": (6, 2)}


@pytest.fixture
def models(tmp_path):
    """A base and two fine-tuned models, the second in float16 and without its text tower."""
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    near = {name: array + 0.01 * rng.normal(size=array.shape) for name, array in base.items()}
    near["visual.class_embedding"] = base["visual.class_embedding"]
    half = {name: (array * 1.02).astype(np.float16) for name, array in base.items() if "visual" in name}
    return {
        name: save(tmp_path / f"{name}.safetensors", arrays)
        for name, arrays in {"base": base, "near": near, "half": half}.items()
    }


def save(path, arrays):
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    kept = {name: t.float() if t.dtype == torch.float64 else t for name, t in tensors.items()}
    save_file(kept, path)
    return path, {name: tensor.double().numpy() for name, tensor in kept.items()}


def paths(models, *names):
    return {name: models[name][0] for name in names}


def test_norms_cosines_and_changes_are_those_of_numpy(models):
    found = inspect_models(paths(models, "near", "half"), models["base"][0])
    assert found.part == "visual.", "of CLIP the vision tower is merged"
    keys = [name for name in SHAPES if name.startswith("visual.")]
    base = np.concatenate([models["base"][1][key].ravel() for key in keys])
    rows = [np.concatenate([models[n][1][key].ravel() for key in keys]) - base for n in ("near", "half")]
    for model, row in zip(found.models, rows, strict=True):
        assert model.l1_ratio == pytest.approx(np.abs(row).sum() / np.abs(base).sum(), rel=1e-4)
        assert model.l2_ratio == pytest.approx(np.linalg.norm(row) / np.linalg.norm(base), rel=1e-4)
        assert model.n_compared == 2
        assert not model.problems
        assert not model.warning
    near, half = found.models
    assert near.changed == ("visual.conv1.weight",)
    assert set(half.changed) == set(keys)
    cosine = rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    np.testing.assert_allclose(found.cosines, [[1, cosine], [cosine, 1]], atol=1e-5)


def test_a_file_alone_is_described(models):
    path = models["half"][0]
    found = inspect_models(paths(models, "half"))
    (model,) = found.models
    assert found.pretrained is None
    assert found.cosines is None
    assert (model.n_tensors, model.n_parameters, model.dtypes) == (2, 17, {"float16": 2})
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.architecture == "CLIP vision tower (open_clip)"
    (path.parent / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    assert inspect_models(paths(models, "half")).models[0].architecture == "CLIPModel"


def test_what_does_not_fit_is_listed_by_name_and_shape(models, tmp_path):
    arrays = dict(models["base"][1]) | {"visual.extra": np.zeros(2), "visual.class_embedding": np.zeros(9)}
    del arrays["visual.conv1.weight"]
    other = save(tmp_path / "other.safetensors", arrays)[0]
    found = inspect_models(paths(models, "near") | {"other": other}, models["base"][0])
    near, report = found.models
    assert set(report.problems) == {
        "lacks 'visual.conv1.weight' of shape (4, 3)",
        "has 'visual.class_embedding' of shape (9,), not (5,)",
        "has 'visual.extra' of shape (2,) besides",
    }
    assert report.l2_ratio is None
    assert near.l2_ratio is not None, "the others are compared all the same"
    assert np.isnan(found.cosines[1]).all()
    assert found.cosines[0, 0] == pytest.approx(1)


def test_nan_and_infinity_are_named_by_tensor(models, tmp_path):
    arrays = {name: array.copy() for name, array in models["base"][1].items()}
    arrays["visual.conv1.weight"][0, 0] = np.nan
    arrays["token_embedding.weight"][0, 0] = np.inf
    broken = save(tmp_path / "broken.safetensors", arrays)[0]
    (model,) = inspect_models({"broken": broken}).models
    assert set(model.not_finite) == {"visual.conv1.weight", "token_embedding.weight"}


def test_a_model_of_another_origin_and_the_same_model_are_pointed_out(models, tmp_path):
    rng = np.random.default_rng(1)
    stranger = save(tmp_path / "stranger.safetensors", {n: rng.normal(size=s) for n, s in SHAPES.items()})[0]
    found = inspect_models(paths(models, "near") | {"stranger": stranger, "copy": models["base"][0]}, models["base"][0])
    near, other, copy = found.models
    assert not near.warning
    assert "probably not fine-tuned from this pre-trained model" in other.warning
    assert "is the pre-trained model itself" in copy.warning


def test_a_model_far_from_the_others_is_pointed_out():
    assert "may have another pre-trained model" in odd_one("d", {"a": 0.02, "b": 0.03, "c": 0.02, "d": 0.2})
    assert not odd_one("d", {"a": 0.1, "b": 0.15, "d": 0.2})
    assert not odd_one("d", {"a": 0.02, "d": 0.2}), "of two models neither is the usual one"


@pytest.fixture
def language_models(tmp_path):
    """GPT-2 in a folder, two adapters for it, the first of these merged by peft, and all as vectors."""
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    base = {key: t.double() for key, t in load_file(tmp_path / "base" / "model.safetensors").items()}
    rows = {}
    for name, target in (("one", ["c_attn", "c_proj"]), ("two", ["c_attn", "wte"])):
        model = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
        options = {"modules_to_save": ["ln_f"]} if name == "one" else {}
        adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=target, **options))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        adapted.save_pretrained(tmp_path / name, save_embedding_layers=False)
        merged = adapted.merge_and_unload()
        state = {key.removeprefix("transformer."): t for key, t in merged.state_dict().items()}
        rows[name] = {key: (state[key.removeprefix("transformer.")].double() - base[key]) for key in base}
        if name == "one":
            merged.save_pretrained(tmp_path / "whole")
    return tmp_path, base, rows | {"whole": rows["one"]}


@pytest.mark.filterwarnings("ignore")
def test_adapters_are_compared_with_whole_models(language_models):
    folder, base, rows = language_models
    found = inspect_models({name: folder / name for name in rows}, folder / "base")
    flat = {name: np.concatenate([t.numpy().ravel() for t in row.values()]) for name, row in rows.items()}
    theta = np.concatenate([t.numpy().ravel() for t in base.values()])
    for model in found.models:
        row = flat[model.name]
        assert not model.problems
        assert model.l1_ratio == pytest.approx(np.abs(row).sum() / np.abs(theta).sum(), rel=1e-4)
        assert model.l2_ratio == pytest.approx(np.linalg.norm(row) / np.linalg.norm(theta), rel=1e-4)
        assert set(model.changed) == {key for key, t in rows[model.name].items() if t.any()}
        assert model.n_compared == len(base)
    V = np.stack([row / np.linalg.norm(row) for row in flat.values()])
    np.testing.assert_allclose(found.cosines, V @ V.T, atol=1e-4)
    one, two, whole = found.models
    assert one.architecture == "LoRA adapter (rank 3)"
    assert whole.architecture == found.pretrained.architecture == "GPT2LMHeadModel"
    assert two.n_parameters == sum(t.numel() for t in load_file(folder / "two" / "adapter_model.safetensors").values())


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_model_says_what_does_not_fit(language_models, tmp_path):
    folder, *_ = language_models
    wide = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=24, n_layer=2, n_head=2, n_positions=16))
    wide.save_pretrained(tmp_path / "wide")
    save_file({"other.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    (one,) = inspect_models({"one": folder / "one"}, tmp_path / "wide").models
    assert "changes 'transformer.h.0.attn.c_attn.weight' by a matrix of shape (16, 48), not (24, 72)" in one.problems
    assert "has 'transformer.ln_f.weight' of shape (16,), not (24,)" in one.problems
    (one,) = inspect_models({"one": folder / "one"}, tmp_path / "other.safetensors").models
    assert "changes 'transformer.h.0.attn.c_attn.weight', which the pre-trained model lacks" in one.problems
    assert one.l2_ratio is None
    with pytest.raises(CheckpointError, match="is an adapter, not a whole model"):
        inspect_models({"one": folder / "one"}, folder / "two")


def test_shards_folders_and_modules_are_as_good_as_files(models, tmp_path):
    base, near = (load_file(models[name][0]) for name in ("base", "near"))
    (tmp_path / "shards").mkdir()
    save_torch_state_dict(near, tmp_path / "shards", max_shard_size=60)
    wrapper, visual = nn.Module(), nn.Module()
    for key, tensor in near.items():
        if key.startswith("visual."):
            target, name = visual, key.removeprefix("visual.")
            if name == "conv1.weight":
                target = visual.conv1 = nn.Module()
                name = "weight"
            target.register_parameter(name, nn.Parameter(tensor))
    wrapper.model = nn.Module()
    wrapper.model.visual = visual
    torch.save(wrapper, tmp_path / "finetuned.pt")
    torch.save({"state_dict": base}, tmp_path / "base.pt")
    found = inspect_models(
        {"file": models["near"][0], "shards": tmp_path / "shards", "module": tmp_path / "finetuned.pt"},
        tmp_path / "base.pt",
    )
    file, shards, module = found.models
    for model in (shards, module):
        assert (model.l1_ratio, model.l2_ratio) == (file.l1_ratio, file.l2_ratio)
        assert model.changed == file.changed
    assert shards.n_parameters == file.n_parameters
    assert len(shards.sha256) == 64
    np.testing.assert_allclose(found.cosines, np.ones((3, 3)), atol=1e-6)


def test_a_broken_tensor_in_a_shard_is_named(tmp_path):
    broken = {f"w{i}": torch.full((4,), torch.nan if i == 2 else 1.0) for i in range(4)}
    save_torch_state_dict(broken, tmp_path, max_shard_size=32)
    (model,) = inspect_models({"m": tmp_path}).models
    assert model.not_finite == ("w2",)


def test_large_tensors_are_compared_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("mapmerge_core.weights.io.norms._BLOCK", 64)
    rng = np.random.default_rng(0)
    shapes = {"w": (40, 7, 3), "v": (9,), "s": ()}
    arrays = [{key: rng.normal(size=shape) for key, shape in shapes.items()} for _ in range(3)]
    files = [save(tmp_path / f"{i}.safetensors", a) for i, a in enumerate(arrays)]
    base, *rows = [np.concatenate([a.ravel() for a in file[1].values()]) for file in files]
    found = inspect_models({"one": files[1][0], "two": files[2][0]}, files[0][0])
    for model, row in zip(found.models, rows, strict=True):
        assert model.l1_ratio == pytest.approx(np.abs(row - base).sum() / np.abs(base).sum(), rel=1e-5)
        assert model.l2_ratio == pytest.approx(np.linalg.norm(row - base) / np.linalg.norm(base), rel=1e-5)
    V = np.stack([(row - base) / np.linalg.norm(row - base) for row in rows])
    np.testing.assert_allclose(found.cosines, V @ V.T, atol=1e-5)


def test_models_are_never_in_memory_as_a_whole(tmp_path):
    for name, value in (("base", 1.0), ("one", 1.1), ("two", 1.2)):
        save_file({f"w{i}": torch.full((2 << 10, 1 << 10), value) for i in range(8)}, tmp_path / f"{name}.safetensors")
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from mapmerge_core.weights.io.inspection import inspect_models\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "folder = Path(sys.argv[1]); before = peak()\n"
        "files = {name: folder / f'{name}.safetensors' for name in ('one', 'two')}\n"
        "found = inspect_models(files, folder / 'base.safetensors')\n"
        "assert abs(found.models[1].l2_ratio - 0.2) < 1e-4; print(peak() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 110  # MiB, of 3 x 64 in all


def test_the_command_takes_folders_and_references(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "hub" / "models--org--near" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    save_file(load_file(models["near"][0]), snapshot / "model.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(load_file(models["near"][0]), tmp_path / "folder" / "model.safetensors")
    save_file(load_file(models["base"][0]), snapshot / "open_clip_model.safetensors")
    against = ["--against", "hf://org/near/open_clip_model.safetensors"]
    assert main(["inspect", "hf://org/near", str(tmp_path / "folder"), *against, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in found["models"]] == ["near", "folder"]
    assert [model["path"] for model in found["models"]] == ["hf://org/near", str(tmp_path / "folder")]
    assert found["pretrained"]["path"] == "hf://org/near/open_clip_model.safetensors"
    np.testing.assert_allclose(found["cosines"], np.ones((2, 2)), atol=1e-6)
    assert main(["inspect", "hf://org/near", *against]) == 0
    assert "Against hf://org/near/open_clip_model.safetensors" in capsys.readouterr().out
    assert main(["inspect", "hf://org/none"]) == 2
    assert "hf://org/none is not in the local cache" in capsys.readouterr().err


def test_heads_can_be_left_out(tmp_path):
    body = torch.randn(4, 4)
    save_file({"w": body, "fc.weight": torch.randn(10, 4)}, tmp_path / "base.safetensors")
    save_file({"w": 1.1 * body, "fc.weight": torch.randn(5, 4)}, tmp_path / "own.safetensors")
    files = {"own": tmp_path / "own.safetensors"}, tmp_path / "base.safetensors"
    assert inspect_models(*files).models[0].problems == ("has 'fc.weight' of shape (5, 4), not (10, 4)",)
    [model] = inspect_models(*files, without=["fc.weight"]).models
    assert (model.problems, model.changed, model.n_compared) == ((), ("w",), 1)
    assert model.l2_ratio == pytest.approx(0.1, rel=1e-5)
