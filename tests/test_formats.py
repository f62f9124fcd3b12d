"""Families of models by formats of checkpoints, from the files to the export and back.

Tiny models are fine-tuned and saved with their own library. A study of the files is measured and a pick is
exported; then that library alone loads the export, by the very lines of its model card, and measures the
same, example by example. The tensors are θ_pre + Σ c_n v_n in float64, to the precision of their dtype.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants, save_torch_state_dict
from open_clip.push_to_hf_hub import save_config_for_hf
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from mapmerge_core.errors import CheckpointError
from mapmerge_core.studies.config import Compute, StudyConfig, TaskConfig
from mapmerge_core.studies.inputs.evaluators import load_evaluator, load_family
from mapmerge_core.studies.runs.exporting import export_pick
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.store import Store
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.metrics import ACCURACY
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.weights.export.writing import read_recipe
from tests.tasks.families import test_classifier as timm_zoo
from tests.tasks.families import test_clip_transformers as clip_zoo
from tests.tasks.families import test_language as language_zoo
from tests.tiny import ARCHITECTURE, plain_head, plain_transform

C = (0.45, 0.7)
CLIP_TASKS = ("Colours", "Stripes")
COMPUTED_ANEW = re.compile("running_|num_batches_tracked")
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


@dataclass(frozen=True)
class Case:
    """A study of files, what these hold by the base's names, and how their own library measures an export.

    `pretrained` are the tensors that an export must have, `tuned` those that are merged, of each model.
    `examples` says which test examples of a task are right, or their losses, by the variables of the card's
    program. `model` is what that program leaves to the person, where it does.
    """

    study: StudyConfig
    pretrained: dict
    tuned: list
    examples: object
    model: nn.Module | None = None


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Measures and exports a case's study, and compares both with what its library says."""
    store = Store(tmp_path / "home")

    def run(case):
        study = store.studies.create("Formats", case.study)
        merge = store.merges.all(study.id)[0]
        evaluator = load_evaluator(study, Compute(device="cpu"))
        values = measure(store, study, evaluator, merge.id, np.array([C]), split="test")[0]
        pick = store.picks.add(merge.id, np.array(C), {"kind": "point"}, name=tmp_path.name)
        result = export_pick(store, pick.id, tmp_path / "exports")
        measured = {o.name: value for o, value in zip(study.config.objectives, values.tolist(), strict=True)}
        assert read_recipe(result.path).measured == measured
        assert_is_the_sum(load_file(result.path), case)
        program = follow_the_card(result, case, monkeypatch)
        rows = store.evaluations.rows(merge.id, "test")
        assert len(rows) == len(measured)
        for row in rows:
            ours, theirs = (
                unpack(row.per_example, row.n_examples),
                case.examples(program, result, row.objective.partition("/")[0]),
            )
            assert len(theirs) == row.n_examples
            if ours.dtype == bool:
                assert ours.tolist() == theirs.tolist()
                assert row.value == theirs.mean()
                assert 0 < row.value < 1
            else:
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        return result

    yield run
    store.close()


def assert_is_the_sum(found, case):
    assert found.keys() == case.pretrained.keys()
    merged = {name for tuned in case.tuned for name in tuned}
    assert merged <= found.keys()
    assert any(not torch.equal(found[name], case.pretrained[name]) for name in merged)
    for name, base in case.pretrained.items():
        assert found[name].dtype == base.dtype, name
        if case.study.family == "classifier" and COMPUTED_ANEW.search(name):
            continue
        if name not in merged or not base.is_floating_point():
            assert torch.equal(found[name], base), name
            continue
        parts = [c * (tuned[name].double() - base.double()) for c, tuned in zip(C, case.tuned, strict=True)]
        # Rounded once to the file's dtype, and a few times on the way in float32.
        limits, wide = torch.finfo(base.dtype), torch.finfo(torch.float32)
        size = base.double().abs() + sum(part.abs() for part in parts)
        allowed = size * (limits.eps / 2 + 4 * wide.eps) + limits.smallest_normal * limits.eps + wide.eps**2
        off = (found[name].double() - base.double() - sum(parts)).abs()
        assert (off <= allowed).all(), f"{name} is off by up to {off.max():g}"


def follow_the_card(result, case, monkeypatch):
    """Runs the program of an export's model card beside it; returns the program's variables."""
    (program,) = re.findall(r"```python\n(.*?)```", result.card.read_text(), re.DOTALL)
    folder = result.path.parent
    monkeypatch.chdir(folder.parent if result.card.name == "README.md" else folder)
    Path("program.py").write_text(program)
    given = {} if case.model is None else {"model": case.model}
    variables = given | runpy.run_path("program.py", init_globals=given)
    variables["model"].float().eval()
    return variables


def study_of(pretrained, checkpoints, data, metrics=(), **values):
    """Each task has the model that was fine-tuned for it; `data` gives a task's dataset, or None."""
    tasks = [
        TaskConfig(name=name, data=data(name) and DataSource(path=data(name)), model=name, metrics=metrics)
        for name in checkpoints
    ]
    return StudyConfig(pretrained=pretrained, models=checkpoints, tasks=tuple(tasks), **values)


# Ways to write a state dict to a path that has no suffix yet; each returns the checkpoint's path.


def safetensors(state, stem):
    save_file(state, f"{stem}.safetensors")
    return Path(f"{stem}.safetensors")


def state_dict(state, stem, suffix=".pt"):
    torch.save(state, f"{stem}{suffix}")
    return Path(f"{stem}{suffix}")


def training_checkpoint(state, stem):
    """As open_clip's training saves; data parallel training puts a prefix before all names."""
    prefix = "" if stem.name == "pretrained" else "module."
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    wrapped = {"epoch": 3, "name": "run", "state_dict": {prefix + name: t for name, t in state.items()}}
    return state_dict(wrapped | {"optimizer": optimizer}, stem, ".pth")


def shards(state, stem):
    stem.mkdir()
    save_torch_state_dict(state, stem, max_shard_size="40KB")
    assert len(list(stem.glob("*.safetensors"))) > 2
    return stem


def index_of_shards(state, stem):
    return shards(state, stem) / "model.safetensors.index.json"


def image_encoder(state):
    """A module of the kind that "Editing Models with Task Arithmetic" publishes, whose class is gone then."""

    class ImageEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = open_clip.CLIP(**ARCHITECTURE).to(next(iter(state.values())).dtype)
            self.train_preprocess = open_clip.image_transform(16, is_train=True)
            self.val_preprocess = open_clip.image_transform(16, is_train=False)
            self.cache_dir = None
            self.model.load_state_dict(state)
            del self.model.transformer  # the text tower's

    ImageEncoder.__module__, ImageEncoder.__qualname__ = "gone_modeling", "ImageEncoder"
    return ImageEncoder()


def whole_module(state, stem):
    module = image_encoder(state)
    sys.modules["gone_modeling"] = ModuleType("gone_modeling")
    sys.modules["gone_modeling"].ImageEncoder = type(module)
    path = state_dict(module, stem)
    del sys.modules["gone_modeling"]
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    return path


def tower(state, stem):
    return safetensors({name: t for name, t in state.items() if name.startswith("visual.")}, stem)


def tower_of_transformers(state, stem):
    """A tower under transformers' names, by hand; that of "Colours" is saved without its projection."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=16,
        patch_size=8, projection_dim=32, hidden_act="gelu",
    )  # fmt: skip
    model = (CLIPVisionModel if stem.name == "Colours" else CLIPVisionModelWithProjection)(config)
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    own = {name.removeprefix("visual."): tensor for name, tensor in state.items()}
    theirs = {}
    for kind in ("weight", "bias"):
        names |= {f"ln_pre.{kind}": f"pre_layrnorm.{kind}", f"ln_post.{kind}": f"post_layernorm.{kind}"}
        for layer in range(2):
            here, there = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            names |= {
                f"{here}.ln_1.{kind}": f"{there}.layer_norm1.{kind}",
                f"{here}.ln_2.{kind}": f"{there}.layer_norm2.{kind}",
                f"{here}.mlp.c_fc.{kind}": f"{there}.mlp.fc1.{kind}",
                f"{here}.mlp.c_proj.{kind}": f"{there}.mlp.fc2.{kind}",
                f"{here}.attn.out_proj.{kind}": f"{there}.self_attn.out_proj.{kind}",
            }
            for which, piece in zip("qkv", own[f"{here}.attn.in_proj_{kind}"].chunk(3), strict=True):
                theirs[f"{there}.self_attn.{which}_proj.{kind}"] = piece
    theirs |= {name: own[of_open_clip] for of_open_clip, name in names.items()}
    inner = model.base_model if stem.name == "Colours" else model.vision_model
    inner.load_state_dict({name.removeprefix("vision_model."): tensor for name, tensor in theirs.items()})
    if stem.name != "Colours":
        model.visual_projection.load_state_dict({"weight": own["proj"].T})
    model.save_pretrained(stem)
    return stem


def folder_of_open_clip(state, stem):
    """As on the hub, with a preprocessing of its own."""
    model = open_clip.CLIP(**ARCHITECTURE)
    preprocess = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.25), "interpolation": "bilinear"}
    open_clip.model.set_model_preprocess_cfg(model, preprocess)
    stem.mkdir()
    save_config_for_hf(model, stem / "open_clip_config.json", ARCHITECTURE)
    save_file(state, stem / "open_clip_model.safetensors")
    return stem


def mixed(state, stem):
    return (whole_module if stem.name == "Colours" else shards)(state, stem)


@pytest.mark.parametrize(
    ("write", "write_tuned"),
    [
        (safetensors, tower),
        (state_dict, state_dict),
        (training_checkpoint, training_checkpoint),
        (state_dict, whole_module),
        (shards, index_of_shards),
        (safetensors, tower_of_transformers),
        (safetensors, mixed),
        (folder_of_open_clip, tower),
    ],
)
def test_open_clip(tiny_zoo, tmp_path, check, write, write_tuned):
    pretrained = load_file(tiny_zoo / "pretrained.safetensors")
    tuned = [load_file(tiny_zoo / f"{task}.safetensors") for task in CLIP_TASKS]
    base = write(pretrained, tmp_path / "pretrained")
    is_folder = write is folder_of_open_clip
    architecture = base / "open_clip_config.json" if is_folder else tiny_zoo / "tiny-clip.json"
    checkpoints = {
        task: write_tuned(pretrained | one, tmp_path / task) for task, one in zip(CLIP_TASKS, tuned, strict=True)
    }
    study = study_of(base, checkpoints, lambda task: tiny_zoo / f"{task}.npz", architecture=str(architecture))
    if write_tuned is tower_of_transformers:
        tuned[0] |= {"visual.proj": pretrained["visual.proj"]}

    def right(program, _, task):
        arrays, model = np.load(tiny_zoo / f"{task}.npz"), program["model"]
        texts = arrays["class_names"].tolist(), arrays["templates"].tolist()
        head = open_clip.build_zero_shot_classifier(model, program["tokenizer"], *texts)
        images = torch.stack([program["preprocess"](Image.fromarray(each)) for each in arrays["test_images"]])
        with torch.inference_mode():
            logits = model.encode_image(images, normalize=True) @ head
        return logits.argmax(1).numpy() == arrays["test_labels"]

    check(Case(study, pretrained, tuned, right))


def right_answers(model, task, split):
    folder = Path(os.environ["FORMATS_DATA"])
    arrays, head = np.load(folder / f"{task}.npz"), torch.load(folder / f"head_{task}.pt")
    with torch.inference_mode():
        logits = model.encode_image(plain_transform(arrays[f"{split}_images"], model), normalize=True) @ head
    return logits.argmax(1).numpy() == arrays[f"{split}_labels"]


def share_of_right_answers(state_dict, split):
    """A person's own measurement: a vision tower, whatever it lies in, before heads that were saved."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    visual = {name.partition("visual.")[2]: t for name, t in state_dict.items() if "visual." in name}
    model.visual.load_state_dict(visual)
    return {task: right_answers(model, task, split).mean() for task in CLIP_TASKS}


@pytest.mark.parametrize("write", [safetensors, whole_module])
def test_own_function(tiny_zoo, tmp_path, check, monkeypatch, write):
    monkeypatch.setenv("FORMATS_DATA", str(tmp_path))
    pretrained = load_file(tiny_zoo / "pretrained.safetensors")
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(pretrained)
    for task in CLIP_TASKS:
        shutil.copy(tiny_zoo / f"{task}.npz", tmp_path)
        arrays = np.load(tiny_zoo / f"{task}.npz")
        head = plain_head(model, arrays["class_names"].tolist(), arrays["templates"].tolist())
        torch.save(head, tmp_path / f"head_{task}.pt")
    states = [pretrained, *(pretrained | load_file(tiny_zoo / f"{task}.safetensors") for task in CLIP_TASKS)]
    names = ("zeroshot", *(f"finetuned_{task}" for task in CLIP_TASKS))
    base, *tuned = (write(state, tmp_path / name) for state, name in zip(states, names, strict=True))
    checkpoints = dict(zip(CLIP_TASKS, tuned, strict=True))
    family = f"{__name__}:share_of_right_answers"
    study = study_of(base, checkpoints, lambda _: None, metrics=(ACCURACY,), family=family)
    if write is whole_module:
        model = image_encoder(pretrained)
        states = [
            {f"model.{name}": t for name, t in state.items() if not name.startswith("transformer.")} for state in states
        ]

    def share(program, _, task):
        return right_answers(getattr(program["model"], "model", program["model"]), task, "test").mean()[None]

    result = check(Case(study, states[0], states[1:], share, model))
    assert read_recipe(result.path).measured == share_of_right_answers(load_file(result.path), "test")


def test_a_base_without_its_text_tower_has_no_zero_shot_heads(tiny_zoo, tmp_path):
    base = whole_module(load_file(tiny_zoo / "pretrained.safetensors"), tmp_path / "zeroshot")
    checkpoints = {task: tiny_zoo / f"{task}.safetensors" for task in CLIP_TASKS}
    architecture = str(tiny_zoo / "tiny-clip.json")
    study = study_of(base, checkpoints, lambda task: tiny_zoo / f"{task}.npz", architecture=architecture)
    with pytest.raises(CheckpointError, match=r"zeroshot\.pt does not fit the architecture .* it lacks"):
        load_family(study, base)


# Ways to write a model of transformers to a folder; each returns the folder.


def sharded_folder(model, folder):
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def pickled_folder(model, folder):
    """As older versions of transformers saved."""
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def bfloat16_folder(model, folder):
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def copy_beside(source, folder):
    """Copies what a folder holds besides a model: its tokenizer, its processor."""
    for path in source.iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists():
            shutil.copy(path, folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return clip_zoo.build_zoo(tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize("write", [None, sharded_folder, pickled_folder, safetensors])
def test_clip_of_transformers(clips, tmp_path, check, write):
    base, paths = clips / "pretrained", {task: clips / task for task in clip_zoo.TASKS}
    pretrained, *tuned = (load_file(path / "model.safetensors") for path in (base, *paths.values()))
    if write is safetensors:  # of towers under open_clip's names
        for (task, path), one in zip(paths.items(), tuned, strict=True):
            paths[task] = write(clip_zoo.as_open_clip(one), tmp_path / path.name)
    elif write:
        base = write(CLIPModel.from_pretrained(base), tmp_path / "pretrained")
        copy_beside(clips / "pretrained", base)
        towers = {task: CLIPVisionModel.from_pretrained(path) for task, path in paths.items()}
        paths = {task: write(model, tmp_path / task) for task, model in towers.items()}
    study = study_of(base, paths, lambda task: clips / f"{task}.npz", family="clip_transformers")
    prefix = "vision_model."  # which a tower that was saved alone may do without
    tuned = [{prefix + name.removeprefix(prefix): t for name, t in one.items()} for one in tuned]

    def right(program, result, task):
        folder = result.path.parent
        logits, labels = clip_zoo.plain_logits(clips, program["model"], task, "test", folder)
        return (logits.argmax(1) == labels).numpy()

    check(Case(study, pretrained, tuned, right))


# Ways to write a model of timm.


def model_of_timm(state):
    model = timm.create_model(timm_zoo.ARCHITECTURE, num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    return model


def checkpoint_of_timm(state, stem):
    """As timm's training script saves."""
    model = model_of_timm(state)
    args = argparse.Namespace(model=timm_zoo.ARCHITECTURE, lr=0.1)
    stem.mkdir()
    saver = CheckpointSaver(model, torch.optim.SGD(model.parameters()), args, checkpoint_dir=str(stem))
    saver.save_checkpoint(epoch=0, metric=0.5)
    return stem / "model_best.pth.tar"


def folder_of_timm(state, stem):
    save_for_hf(model_of_timm(state), str(stem), safe_serialization=True)
    return stem


def halves(state):
    return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}


def float16_file(state, stem):
    return safetensors(halves(state), stem)


@pytest.fixture(scope="module")
def resnets(tmp_path_factory):
    return timm_zoo.build_zoo(tmp_path_factory.mktemp("resnets"))


@pytest.mark.parametrize("write", [safetensors, checkpoint_of_timm, folder_of_timm, float16_file])
def test_timm(resnets, tmp_path, check, write):
    states = {name: load_file(resnets / f"{name}.safetensors") for name in ("pretrained", *timm_zoo.CLASSES)}
    paths = {name: write(state, tmp_path / name) for name, state in states.items()}
    base = paths.pop("pretrained")
    study = study_of(
        base,
        paths,
        lambda task: resnets / f"{task}.npz",
        family="classifier",
        architecture=str(base) if base.is_dir() else timm_zoo.ARCHITECTURE,
        options={"image_size": timm_zoo.SIZE},
    )
    pretrained, *tuned = (
        {name: t for name, t in (halves(state) if write is float16_file else state).items() if name[:3] != "fc."}
        for state in states.values()
    )

    def right(program, result, task):
        head = load_file(result.extra[f"head-{task.lower()}"])
        images, labels = timm_zoo.pixels(resnets, task, "test")
        with torch.inference_mode():
            logits = functional.linear(program["model"](images), head["weight"], head["bias"])
        return logits.argmax(dim=1).numpy() == labels

    model = timm.create_model(timm_zoo.ARCHITECTURE, num_classes=0)
    result = check(Case(study, pretrained, tuned, right, None if base.is_dir() else model))
    assert (result.path.parent / "config.json").exists() == base.is_dir()


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    return language_zoo.build_zoo(tmp_path_factory.mktemp("llamas"))


def language_case(llamas, paths, states):
    """Of checkpoints and their tensors, those of the base first."""
    base, *tuned = paths
    names = dict(zip(language_zoo.WORDS, tuned, strict=True))
    options = {"block": language_zoo.BLOCK}
    study = study_of(base, names, lambda task: llamas / f"{task} text", family="language", options=options)

    def losses(program, result, task):
        return language_zoo.plain_losses(program["model"], llamas, task, "test", folder=result.path.parent)[0]

    return Case(study, states[0], states[1:], losses)


@pytest.mark.parametrize("write", [None, sharded_folder, pickled_folder, bfloat16_folder])
def test_language_models(llamas, tmp_path, check, write):
    paths = [llamas / name for name in ("pretrained", *language_zoo.WORDS)]
    states = [load_file(path / "model.safetensors") for path in paths]
    if write:
        paths = [write(AutoModelForCausalLM.from_pretrained(path), tmp_path / path.name) for path in paths]
        copy_beside(llamas / "pretrained", paths[0])
    if write is pickled_folder:  # which holds tied tensors under each of their names
        states = [state | {"lm_head.weight": state["model.embed_tokens.weight"]} for state in states]
    if write is bfloat16_folder:
        states = [{name: t.bfloat16() for name, t in state.items()} for state in states]
    check(language_case(llamas, paths, states))


def train_adapter(llamas, task, folder):
    """Trains low-rank factors with peft; returns the model's tensors as peft merges them, in float64."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llamas / "pretrained"), config)
    texts = language_zoo.sentences(task, 100, np.random.default_rng(0))
    language_zoo.train(model, texts, AutoTokenizer.from_pretrained(llamas / "pretrained"), 20)
    model.save_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(llamas / "pretrained")
    return PeftModel.from_pretrained(base, folder).double().merge_and_unload().state_dict()


def test_adapters_whose_export_needs_no_peft(llamas, tmp_path, check, monkeypatch):
    paths, states = [llamas / "pretrained"], [load_file(llamas / "pretrained" / "model.safetensors")]
    for task in language_zoo.WORDS:
        tuned = train_adapter(llamas, task, tmp_path / task)
        states.append({name: tuned[name] for name in states[0]})
        paths.append(tmp_path / task)
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails from here on
    result = check(language_case(llamas, paths, states))
    assert not list(result.path.parent.glob("adapter*"))


def put_on_hub(hub, repository, source, inside="", revision="main"):
    """Lays a folder's files into the hub's cache as a download does."""
    folder, sha = hub / f"models--{repository.replace('/', '--')}", "a" * 40
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / sha / inside).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text(sha)
    for path in source.iterdir():
        blob = folder / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (folder / "snapshots" / sha / inside / path.name).symlink_to(blob)


def test_models_in_the_hubs_cache(llamas, tmp_path, check, monkeypatch):
    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put_on_hub(hub, "org/base", llamas / "pretrained")
    put_on_hub(hub, "org/animals", llamas / "Animals", revision="v1")
    put_on_hub(hub, "org/all", llamas / "Numbers", inside="numbers")
    states = [load_file(llamas / name / "model.safetensors") for name in ("pretrained", *language_zoo.WORDS)]
    case = language_case(llamas, ["hf://org/base", "hf://org/animals@v1", "hf://org/all/numbers"], states)
    result = check(case)
    assert read_recipe(result.path).sources["Animals"]["path"] == "hf://org/animals@v1"
    assert not [path for path in result.path.parent.iterdir() if path.is_symlink()]
