from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mapmerge_core import __version__
from mapmerge_core.errors import CheckpointError, ExportError, PointError
from mapmerge_core.tasks.families._models.clip import preprocessing_of
from mapmerge_core.weights.export.writing import Recipe, read_recipe, save_merged, save_model
from mapmerge_core.weights.io.checkpoints import read_state_dict, sha256
from mapmerge_core.weights.io.checks import describe
from mapmerge_core.weights.vectors.streamed import StreamedVectors
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

TASKS = ("Colours", "Stripes", "Light")
C = [0.31234567891, 1e-7, 0.4]


@pytest.fixture(scope="module")
def sources(tiny_zoo):
    return {name: tiny_zoo / f"{name}.safetensors" for name in ("pretrained", *TASKS)}


@pytest.fixture(scope="module")
def vectors(sources):
    return TaskVectors.from_files(sources["pretrained"], {task: sources[task] for task in TASKS}, part="visual.")


@pytest.fixture
def recipe(sources, tiny_zoo):
    return Recipe(
        sources={name: {"path": str(path), "sha256": sha256(path)} for name, path in sources.items()},
        predicted=dict.fromkeys(TASKS, 0.8125),
        measured=dict.fromkeys(TASKS, 0.79),
        tasks={task: {"metric": "accuracy", "examples": 60} for task in TASKS},
        architecture=str(tiny_zoo / "tiny-clip.json"),
    )


def test_an_export_holds_the_merged_model_and_its_recipe(tmp_path, vectors, sources, recipe):
    result = save_merged(tmp_path / "out" / "merged.safetensors", vectors, C, recipe=recipe)
    written, merged = load_file(result.path), vectors.merge(C)
    original = load_file(sources["pretrained"])
    assert {k: (t.dtype, t.shape) for k, t in written.items()} == {k: (t.dtype, t.shape) for k, t in original.items()}
    assert all(torch.equal(written[key], merged[key]) for key in original)
    assert result.sha256 == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert result.n_bytes == result.path.stat().st_size
    with safe_open(result.path, "pt") as file:
        header = json.loads(file.metadata()["mapmerge"])
    assert header["coefficients"] == dict(zip(TASKS, C, strict=True))
    assert header["version"] == __version__
    found = read_recipe(result.path)
    assert found.coefficients == dict(zip(TASKS, C, strict=True))
    assert (found.sources, found.predicted, found.measured) == (recipe.sources, recipe.predicted, recipe.measured)
    assert sorted(path.name for path in result.path.parent.iterdir()) == [
        "merged.README.md",
        "merged.json",
        "merged.mergekit.yaml",
        "merged.safetensors",
    ]
    permissions = {path.stat().st_mode & 0o777 for path in result.path.parent.iterdir()}
    assert len(permissions) == 1, "others can read the card but not the model"


def test_mergekits_task_arithmetic_makes_the_same_tensors(tmp_path, vectors, recipe):
    result = save_merged(tmp_path / "merged.safetensors", vectors, C, recipe=recipe)
    config = yaml.safe_load(result.mergekit.read_text())
    assert config["merge_method"] == "task_arithmetic"
    assert config["parameters"]["normalize"] is False
    assert [model["parameters"]["weight"] for model in config["models"]] == C
    compute, out = getattr(torch, config["dtype"]), getattr(torch, config["out_dtype"])
    base = read_state_dict(Path(config["base_model"]))
    models = [(read_state_dict(Path(m["model"])), m["parameters"]["weight"]) for m in config["models"]]
    for key, tensor in load_file(result.path).items():
        expected = base[key].to(compute)
        deltas = [w * (m[key].to(compute) - base[key].to(compute)) for m, w in models if key in m]
        expected = (expected + torch.stack(deltas).sum(0) if deltas else expected).to(out)
        # Sums in another order may round to the neighbouring float16.
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-6)
        assert (tensor == expected).float().mean() > 0.999


def test_the_model_card_says_what_a_reader_needs(tmp_path, vectors, sources, recipe):
    result = save_merged(tmp_path / "my-merge.safetensors", vectors, C, recipe=recipe)
    card = result.card.read_text()
    front_matter = yaml.safe_load(card.split("---")[1])
    assert front_matter["library_name"] == "open_clip"
    assert "| Colours | 0.3123 |" in card
    assert "| Light | 81.2 | 79.0 |" in card
    assert __version__ in card
    assert result.sha256 in card
    for path in sources.values():
        assert path.name in card
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert str(tmp_path) not in card


def test_the_cards_own_lines_load_the_model_into_open_clip(tmp_path, vectors, recipe):
    result = save_merged(tmp_path / "my-merge.safetensors", vectors, C, recipe=recipe)
    lines = result.card.read_text().split("```python\n")[1].split("```")[0]
    program = lines + "\nprint(model.visual.proj.double().sum().item(), tokenizer(['x']).shape[1])"
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    total, context = ran.stdout.split()
    assert float(total) == pytest.approx(vectors.merge(C)["visual.proj"].double().sum().item(), abs=1e-9)
    assert context == "12"


def test_a_bare_recipe_is_enough(tmp_path):
    pretrained = {"w": torch.zeros(2), "tied": torch.ones(3)}
    pretrained["tied_too"] = pretrained["tied"]
    changed = {"w": torch.ones(2), "tied": 2 * pretrained["tied"]}
    changed["tied_too"] = changed["tied"]
    vectors = TaskVectors.from_state_dicts(pretrained, {"one": changed})
    result = save_merged(tmp_path / "m.safetensors", vectors, [0.5], recipe=Recipe())
    assert {key: tensor.tolist() for key, tensor in load_file(result.path).items()} == {
        "w": [0.5, 0.5],
        "tied": [1.5, 1.5, 1.5],
        "tied_too": [1.5, 1.5, 1.5],
    }
    assert result.architecture is None
    assert yaml.safe_load(result.mergekit.read_text())["models"][0]["model"] == "one"


FULL_DISK = """
import resource, sys
from mapmerge_core.errors import ExportError
from mapmerge_core.weights.export.writing import Recipe, save_merged
from mapmerge_core.weights.vectors.streamed import StreamedVectors
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
import torch
vectors = TaskVectors.from_state_dicts({"w": torch.zeros(500_000)}, {"one": {"w": torch.ones(500_000)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    save_merged(sys.argv[1], vectors, [0.5], recipe=Recipe())
except ExportError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "merged.safetensors"
    path.write_bytes(b"what was there before")
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert ran.stdout.startswith(f"The merged model could not be written to {path}")
    assert len(ran.stdout.splitlines()) == 1
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(path.name, b"what was there before")]


def test_what_can_not_be_exported(tmp_path, vectors, recipe):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    for name, says in (
        ("merged.pt", "ends in .safetensors"),
        ("folder.safetensors", "is a folder"),
        ("file/merged.safetensors", "can't be written to"),
    ):
        with pytest.raises(ExportError, match=says):
            save_merged(tmp_path / name, vectors, C, recipe=recipe)
    with pytest.raises(ExportError, match=r"too large for its dtype, float16.*smaller coefficients"):
        save_merged(tmp_path / "m.safetensors", vectors, [1e9, 0, 0], recipe=recipe)
    with pytest.raises(PointError):
        save_merged(tmp_path / "m.safetensors", vectors, [np.nan, 0, 0], recipe=recipe)
    gone = Recipe(architecture=str(tmp_path / "gone.json"))
    with pytest.raises(ExportError, match="could not be written"):
        save_merged(tmp_path / "m.safetensors", vectors, C, recipe=gone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


def test_a_model_that_is_no_sum_of_task_vectors(tmp_path, vectors, recipe):
    merged = {
        name: 2 * tensor if tensor.is_floating_point() else tensor for name, tensor in vectors.merge([0] * 3).items()
    }
    recipe = dataclasses.replace(recipe, method="TIES", settings={"keep": 0.2, "examples": None})
    result = save_model(tmp_path / "ties.safetensors", describe(merged), merged.items(), recipe=recipe)
    written = load_file(result.path)
    assert all(torch.equal(written[key], tensor) for key, tensor in merged.items())
    assert read_recipe(result.path).settings == {"keep": 0.2, "examples": None}
    assert result.mergekit is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ties.README.md", "ties.json", "ties.safetensors"]
    card = result.card.read_text()
    assert "A merge of 3 fine-tuned models by TIES." in card
    assert "Settings: keep 0.2, examples all." in card
    assert "| Light | `Light.safetensors`" in card
    assert "coefficient" not in card
    assert "task-arithmetic" not in card


def test_a_file_without_a_recipe(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="not exported by mapmerge"):
        read_recipe(tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="can't be read"):
        read_recipe(tmp_path / "none.safetensors")


def test_a_streamed_merge_is_written_as_one_in_memory(tmp_path, sources, recipe):
    base = load_file(sources["pretrained"])
    models = {task: load_file(sources[task]) for task in TASKS}
    streamed = StreamedVectors.from_state_dicts(base, models | {"Light": base}, part="visual.")
    dense = TaskVectors.from_state_dicts(base, models | {"Light": base}, part="visual.")
    one = save_merged(tmp_path / "one.safetensors", streamed, C, recipe=recipe)
    other = save_merged(tmp_path / "other.safetensors", dense, C, recipe=recipe)
    written, expected = load_file(one.path), load_file(other.path)
    assert written.keys() == expected.keys()
    for name, tensor in streamed.merge(C).items():
        assert torch.equal(written[name], tensor)
        torch.testing.assert_close(tensor, expected[name], rtol=2e-3, atol=1e-6)  # a last bit of float16
    assert read_recipe(one.path).coefficients == dict(zip(TASKS, C, strict=True))
    assert yaml.safe_load(one.mergekit.read_text()) == yaml.safe_load(other.mergekit.read_text())
    with pytest.raises(ExportError, match=r"too large for its dtype, float16.*smaller coefficients"):
        save_merged(tmp_path / "one.safetensors", streamed, [1e9, 0, 0], recipe=recipe)
    assert sha256(one.path) == one.sha256


def test_tensors_that_are_not_the_merges_and_files_of_others(tmp_path, vectors, recipe):
    name = "visual.ln_post.bias"
    result = save_merged(
        tmp_path / "m.safetensors",
        vectors,
        C,
        recipe=recipe,
        replaced={name: torch.full(vectors.described[name].shape, 0.25)},
        extra={"head-cifar10": {"weight": torch.ones(2, 3)}},
    )
    written, merged = load_file(result.path), vectors.merge(C)
    assert written[name].dtype == merged[name].dtype
    assert (written[name] == 0.25).all()
    assert all(torch.equal(written[key], tensor) for key, tensor in merged.items() if key != name)
    head = tmp_path / "m.head-cifar10.safetensors"
    assert result.extra == {"head-cifar10": head}
    assert load_file(head)["weight"].tolist() == [[1] * 3] * 2
    assert result.mergekit is None, "mergekit would make another model"
    assert f"SHA-256 of `{head.name}`: `{sha256(head)}`" in result.card.read_text()
    for given, error, says in (
        ({"replaced": {"x": torch.ones(1)}}, CheckpointError, "'x' can't replace"),
        ({"replaced": {name: torch.ones(1)}}, CheckpointError, r"has shape \(1,\) in its replacement"),
        ({"extra": {"a/b": {}}}, ExportError, "'a/b' can't be the name of a file"),
        ({"extra": {"h": {"w": torch.ones(1) / 0}}}, ExportError, "'w' holds numbers too large"),
    ):
        with pytest.raises(error, match=says):
            save_merged(tmp_path / "new" / "m.safetensors", vectors, C, recipe=recipe, **given)
    assert not (tmp_path / "new").exists()


def test_losses_and_perplexities_are_no_percentages(tmp_path):
    vectors = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, {"one": {"w": torch.ones(2)}})
    recipe = Recipe(
        predicted={"news": 0.512, "code": 12.345678, "photos": 0.9},
        measured={"news": 0.5, "photos": 0.875},
        tasks={
            "news": {"metric": "loss", "is_share": False},
            "code": {"metric": "perplexity", "is_share": False},
            "photos": {"metric": "accuracy", "is_share": True},
        },
    )
    card = save_merged(tmp_path / "m.safetensors", vectors, [1], recipe=recipe).card.read_text()
    for row in (
        "| news | loss | 0.512 | 0.5 |",
        "| code | perplexity | 12.35 |  |",
        "| photos | accuracy | 90.0 % | 87.5 % |",
    ):
        assert row in card


def test_mergekit_finds_adapters_and_repositories(tmp_path):
    from mergekit.common import ModelReference

    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_text("")
    vectors = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, {"one": {"w": torch.ones(2)}})
    sources = {"pretrained": {"path": "hf://org/base", "sha256": ""}, "one": {"path": str(adapter), "sha256": ""}}
    result = save_merged(tmp_path / "m.safetensors", vectors, [1], recipe=Recipe(sources=sources))
    config = yaml.safe_load(result.mergekit.read_text())
    assert config["base_model"] == "org/base"
    reference = ModelReference.parse(config["models"][0]["model"])
    assert (reference.model.path, reference.lora.path) == ("org/base", str(adapter))


def test_a_card_says_how_images_are_prepared_where_not_as_usual(tmp_path):
    found = preprocessing_of("ViT-B-16-SigLIP/webli")
    recipe = Recipe(architecture="ViT-B-16-SigLIP", preprocessing=found)
    tensors = {"w": torch.ones(1)}
    result = save_model(tmp_path / "m.safetensors", describe(tensors), tensors.items(), recipe=recipe)
    card = result.card.read_text()
    assert read_recipe(tmp_path / "m.safetensors").preprocessing == found
    [call] = re.findall(r"create_model_and_transforms\((.*)\)", card)
    assert call == (
        '"ViT-B-16-SigLIP", pretrained="m.safetensors", image_mean=[0.5, 0.5, 0.5], '
        "image_std=[0.5, 0.5, 0.5], image_resize_mode='squash'"
    )
    assert {"image_mean", "image_std", "image_resize_mode"} <= signature(
        open_clip.create_model_and_transforms
    ).parameters.keys()
