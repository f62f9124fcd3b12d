"""Studies that a folder suggests, for folders as people have them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config import RunConfig
from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.config.study_file import StudyFile, write_study_file
from mapmerge_core.studies.discovery.pairing import pair, short_names
from mapmerge_core.studies.discovery.proposing import propose
from mapmerge_core.weights.io.hub import HubRef


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def model(folder: Path, config: dict, *, config_name: str = "config.json") -> None:
    folder.mkdir(parents=True)
    (folder / config_name).write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")


def adapter(folder: Path, base: str, **config: object) -> None:
    folder.mkdir(parents=True)
    said = {"peft_type": "LORA", "base_model_name_or_path": base} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def pictures(folder: Path, *classes: str) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(folder / name / "1.png")


def of_meta(network: torch.nn.Module, path: Path) -> None:
    """A checkpoint with a network's names and shapes, but a byte for each number."""
    save_file({name: torch.zeros(t.shape, dtype=torch.bool) for name, t in network.state_dict().items()}, path)


def what(proposal) -> dict[str, tuple[str, str | None]]:
    """Checkpoints and data by task."""
    return {
        task.name: (Path(str(proposal.models[task.model])).name, task.data and Path(task.data.path).name)
        for task in proposal.tasks
    }


def test_a_manifest_is_followed(tiny_zoo):
    proposal = propose(tiny_zoo)
    study = proposal.study_file()
    assert study.config == config_from_manifest(tiny_zoo)
    assert study.run == RunConfig()
    assert proposal.missing == ()


def test_a_study_file_is_followed(tiny_zoo, tmp_path):
    config = config_from_manifest(tiny_zoo, ["Light", "Stripes"])
    study = StudyFile(
        name="Mine", config=config, run=RunConfig(method="direct", method_settings={"points": 9, "seed": 2})
    )
    write_study_file(tmp_path / "study.yaml", study)
    assert propose(tmp_path).study_file() == study


def test_loose_checkpoints_and_npz_files(tiny_zoo, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(tiny_zoo, folder)
    (folder / "manifest.json").unlink()
    proposal = propose(folder)
    assert proposal.missing == ()
    shutil.copy(tiny_zoo / "manifest.json", folder)
    config = proposal.study_file().config
    assert config == config_from_manifest(folder, config.model_names)
    assert what(proposal) == {name: (f"{name}.safetensors", f"{name}.npz") for name in ("Colours", "Light", "Stripes")}
    assert "pretrained is taken for the pre-trained model, by its name." in proposal.notes


def test_a_model_without_data_is_the_pretrained_one(tiny_zoo, tmp_path):
    shutil.copytree(tiny_zoo, tmp_path, dirs_exist_ok=True)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "pretrained.safetensors").rename(tmp_path / "tower.safetensors")
    proposal = propose(tmp_path)
    assert proposal.pretrained == tmp_path / "tower.safetensors"
    assert "tower is taken for the pre-trained model, for no data has its name." in proposal.notes


def test_data_beside_the_models_own_is_a_skill_to_keep(tiny_zoo, tmp_path):
    shutil.copytree(tiny_zoo, tmp_path, dirs_exist_ok=True)
    for name in ("manifest.json", "Light.safetensors"):
        (tmp_path / name).unlink()
    touch(tmp_path, "results.csv")
    proposal = propose(tmp_path)
    assert [(task.name, task.model) for task in proposal.study_file().config.tasks] == [
        ("Colours", "Colours"),
        ("Stripes", "Stripes"),
        ("Light", None),
    ]
    assert "No model is called like Light: a merged model is measured on it as a skill to keep." in proposal.notes
    assert "No model's name fits the data results.csv." in proposal.notes


def test_data_that_may_be_a_models_own_is_no_skill_to_keep(tiny_zoo, tmp_path):
    shutil.copytree(tiny_zoo, tmp_path, dirs_exist_ok=True)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "Light.npz").rename(tmp_path / "dark.npz")
    proposal = propose(tmp_path)
    assert [task.name for task in proposal.tasks] == ["Colours", "Light", "Stripes"]
    assert proposal.missing == ("Choose the data that 'Light' is measured on.",)


def test_pickles_as_task_arithmetic_lays_them_out(tmp_path):
    touch(tmp_path, "ViT-B-32/zeroshot.pt", "ViT-B-32/SUN397/finetuned.pt", "ViT-B-32/DTD/finetuned.pt")
    pictures(tmp_path / "data" / "sun397" / "train", "abbey", "zoo")
    pictures(tmp_path / "data" / "dtd" / "train", "banded", "woven")
    proposal = propose(tmp_path)
    assert what(proposal) == {"dtd": ("finetuned.pt", "dtd"), "sun397": ("finetuned.pt", "sun397")}
    assert (proposal.family, proposal.architecture) == ("clip", "ViT-B-32")
    assert proposal.pretrained == tmp_path / "ViT-B-32" / "zeroshot.pt"
    assert any("ViT-B-32-quickgelu" in note for note in proposal.notes)
    assert proposal.missing == ()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
def test_an_open_clip_checkpoint_shows_its_architecture(tmp_path, name):
    with torch.device("meta"):
        tower = open_clip.CLIP(**open_clip.get_model_config(name)).visual
    shapes = {f"visual.{key}": list(tensor.shape) for key, tensor in tower.state_dict().items()}
    end, entries = 0, {}
    for key, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    touch(tmp_path, "a.pt", "b.pt", "a.npz", "b.npz")
    with (tmp_path / "base.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + end)  # zeros that take no room
    proposal = propose(tmp_path)
    assert (proposal.family, proposal.architecture) == ("clip", name)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_resnet_shows_its_architecture(tmp_path, name):
    with torch.device("meta"):
        network = timm.create_model(name)
    of_meta(network, tmp_path / "pretrained.safetensors")
    touch(tmp_path, "cifar10.pt", "flowers.pt")
    proposal = propose(tmp_path)
    assert (proposal.family, proposal.architecture) == ("classifier", name)
    assert proposal.missing == (
        "Choose the data that 'cifar10' is measured on.",
        "Choose the data that 'flowers' is measured on.",
    )


def test_folders_of_timm(tmp_path):
    for name in ("resnet18_base", "resnet18_pets", "resnet18_food"):
        model(tmp_path / name, {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}})
    pictures(tmp_path / "pets", "cat", "dog")
    pictures(tmp_path / "food" / "val", "pie", "rice")
    proposal = propose(tmp_path)
    assert (proposal.family, proposal.architecture) == ("classifier", "resnet18")
    assert proposal.pretrained == tmp_path / "resnet18_base"
    assert what(proposal) == {"food": ("resnet18_food", "food"), "pets": ("resnet18_pets", "pets")}


def test_folders_of_transformers_clip_that_say_where_they_started(tmp_path):
    config = {"model_type": "clip_vision_model", "_name_or_path": "openai/clip-vit-base-patch32"}
    model(tmp_path / "clip-vit-base-patch32_mnist", config)
    model(tmp_path / "clip-vit-base-patch32_svhn", config)
    touch(tmp_path, "svhn.parquet")
    proposal = propose(tmp_path)
    assert proposal.family == "clip_transformers"
    assert proposal.pretrained == HubRef("hf://openai/clip-vit-base-patch32")
    assert what(proposal) == {
        "mnist": ("clip-vit-base-patch32_mnist", None),
        "svhn": ("clip-vit-base-patch32_svhn", "svhn.parquet"),
    }
    assert proposal.missing == ("Choose the data that 'mnist' is measured on.",)
    with pytest.raises(StudyError, match="Choose the data that 'mnist'"):
        proposal.study_file()


def test_folders_of_language_models_and_texts(tmp_path):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    for name in ("Llama-base", "Llama-French", "Llama-Arabic"):
        model(tmp_path / name, config)
    touch(tmp_path, "texts/french.txt", "texts/arabic.jsonl", "texts/README.txt", "LICENSE.txt")
    proposal = propose(tmp_path)
    assert (proposal.family, proposal.architecture, proposal.missing) == ("language", "", ())
    assert what(proposal) == {"arabic": ("Llama-Arabic", "arabic.jsonl"), "french": ("Llama-French", "french.txt")}


def test_adapters_and_their_model_beside_them(tmp_path):
    model(tmp_path / "tiny-llama", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    adapter(tmp_path / "lora-poems", "/where/it/was/trained/tiny-llama", task_type="CAUSAL_LM")
    adapter(tmp_path / "lora-code", "/where/it/was/trained/tiny-llama", task_type="CAUSAL_LM")
    touch(tmp_path, "poems/train.txt", "poems/test.txt", "code/data/train-00000-of-00001.parquet", "code/README.md")
    proposal = propose(tmp_path)
    assert proposal.pretrained == tmp_path / "tiny-llama"
    assert (proposal.family, proposal.missing) == ("language", ())
    assert what(proposal) == {"code": ("lora-code", "code"), "poems": ("lora-poems", "poems")}


def test_adapters_of_a_model_on_the_hub(tmp_path):
    adapter(tmp_path / "a", "meta-llama/Meta-Llama-3-8B", task_type="CAUSAL_LM")
    adapter(tmp_path / "b", "meta-llama/Meta-Llama-3-8B", task_type="CAUSAL_LM")
    proposal = propose(tmp_path)
    assert proposal.pretrained == HubRef("hf://meta-llama/Meta-Llama-3-8B")
    assert proposal.family == "language"
    assert list(what(proposal)) == ["a", "b"]


def test_a_folder_of_open_clip(tmp_path):
    vision = {"model_cfg": {"vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": {}}
    model(tmp_path / "base", vision, config_name="open_clip_config.json")
    touch(tmp_path, "birds.pt", "birds.npz", "fish.pt", "fish.npz")
    proposal = propose(tmp_path)
    assert proposal.family == "clip"
    assert proposal.architecture == str(tmp_path / "base" / "open_clip_config.json")
    assert proposal.study_file().config.model_names == ("birds", "fish")


def test_what_cannot_be_told_is_asked_for(tmp_path):
    touch(tmp_path, "one.pt", "notes.txt", ".hidden.pt", "optimizer.pt")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "two.safetensors").write_bytes(b"\xff" * 20)
    proposal = propose(tmp_path)
    assert [task.name for task in proposal.tasks] == ["one", "two"]
    assert proposal.missing == (
        "Say which model the others were fine-tuned from.",
        "Say which family of models these are.",
        "Choose the data that 'one' is measured on.",
        "Choose the data that 'two' is measured on.",
    )
    assert "No model's name fits the data notes.txt." in proposal.notes


def test_an_empty_folder_and_none(tmp_path):
    (tmp_path / "empty").mkdir()
    proposal = propose(tmp_path / "empty")
    assert (proposal.tasks, dict(proposal.models)) == ((), {})
    assert any("a study merges one or more" in sentence for sentence in proposal.missing)
    with pytest.raises(StudyError, match="There is no folder"):
        propose(tmp_path / "none")


@pytest.mark.parametrize(
    ("models", "data", "expected"),
    [
        (["MNIST", "ZMNIST"], ["z-mnist", "mnist"], {"MNIST": "mnist", "ZMNIST": "z-mnist"}),
        (["clip_fashionmnist", "clip_mnist"], ["mnist"], {"clip_mnist": "mnist"}),
        (["vit-big-cars", "vit-dtd"], ["cars", "DTD"], {"vit-big-cars": "cars", "vit-dtd": "DTD"}),
        (["model_a", "model_b"], ["a", "b"], {"model_a": "a", "model_b": "b"}),
        (["cars-1", "cars-2"], ["cars"], {}),  # one for two: a person decides
        (["cats"], ["dogs"], {}),
    ],
)  # fmt: skip
def test_names_that_belong_together(models, data, expected):
    assert pair(models, {name: name for name in data}) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["vit_a_ft", "vit_b_c_ft"], ["a", "b_c"]),
        (["mnist", "svhn"], ["mnist", "svhn"]),
        (["one", "one two"], ["one", "one two"]),
        (["alone"], ["alone"]),
    ],
)
def test_short_names(names, expected):
    assert list(short_names(names).values()) == expected
