from __future__ import annotations

import json
import shutil
import weakref

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionModel,
)

from mapmerge_core.errors import MapMergeError
from mapmerge_core.registries import MERGES
from mapmerge_core.settings import make
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.export.writing import save_merged
from mapmerge_core.weights.vectors.streamed import open_vectors
from tests.tiny import CLASS_NAMES, SIZE, TEMPLATES, draw_images

TASKS = ("Colours", "Light")
POINTS = [(0, 0), (1, 0), (0.4, 0.7)]
N = 40


def tokenizer():
    """CLIP's own kind, with bytes instead of merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: row for row, word in enumerate(words)}, merges=[])


def config(words):
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    special = {"pad_token_id": words["<|endoftext|>"], "eos_token_id": words["<|endoftext|>"]}
    special["bos_token_id"] = words["<|startoftext|>"]
    return CLIPConfig(
        text_config={
            **width,
            **special,
            "num_hidden_layers": 1,
            "vocab_size": len(words),
            "max_position_embeddings": 40,
        },
        vision_config={**width, "num_hidden_layers": 2, "image_size": SIZE, "patch_size": 8},
        projection_dim=24,
    )


def plain_head(model, processor, class_names):
    columns = []
    for name in class_names:
        prompts = [template.format(name) for template in TEMPLATES]
        inputs = processor(text=prompts, padding="max_length", max_length=40, return_tensors="pt")
        features = functional.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
        columns.append(functional.normalize(features.mean(0), dim=0))
    return torch.stack(columns).T.detach()


def plain_pixels(folder, images):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]


def fine_tune(folder, name, pixels, labels, head):
    """Trains the tower alone, before the frozen projection, as people do who save a CLIPVisionModel."""
    tower = CLIPVisionModel.from_pretrained(folder / "pretrained")
    projection = load_file(folder / "pretrained" / "model.safetensors")["visual_projection.weight"]
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3)
    for _ in range(60):
        rows = torch.randint(len(pixels), (64,))
        features = functional.normalize(tower(pixels[rows]).pooler_output @ projection.T, dim=-1)
        optimizer.zero_grad()
        functional.cross_entropy(15 * features @ head, labels[rows]).backward()
        optimizer.step()
    tower.save_pretrained(folder / name)


def build_zoo(folder):
    """A tiny CLIPModel, two fine-tuned CLIPVisionModels, and their datasets of larger images."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    words = tokenizer()
    model = CLIPModel(config(words.get_vocab())).eval()
    model.save_pretrained(folder / "pretrained")
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor = CLIPProcessor(image_processor=images, tokenizer=words)
    processor.save_pretrained(folder / "pretrained")
    for task in TASKS:
        arrays = {}
        for split in ("val", "test"):
            small, labels = draw_images(task, N, rng)
            # Twice as large and wider than high, so that they are resized and cropped.
            arrays[f"{split}_images"] = np.pad(small.repeat(2, 1).repeat(2, 2), [(0, 0), (0, 0), (3, 4), (0, 0)])
            arrays[f"{split}_labels"] = labels
        np.savez(folder / f"{task}.npz", class_names=CLASS_NAMES[task], templates=TEMPLATES, **arrays)
        small, labels = draw_images(task, 300, rng)
        pixels = plain_pixels(folder / "pretrained", small)
        head = plain_head(model, processor, CLASS_NAMES[task])
        fine_tune(folder, task, pixels, torch.from_numpy(labels), head)
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_zoo(tmp_path_factory.mktemp("clip"))


def make_evaluator(zoo, pretrained="pretrained", metric=None, precision="float32", **finetuned):
    tasks = [Task.from_file(task, zoo / f"{task}.npz", metric or ACCURACY, model=task) for task in TASKS]
    family = find_family("clip_transformers").make("", zoo / pretrained, {}, tasks)
    models = {task: zoo / task for task in TASKS} | finetuned
    left_out = family.left_out("", zoo / pretrained)
    vectors = open_vectors(zoo / pretrained, models, part=family.part, without=left_out)
    return Evaluator(family, vectors, tasks, device="cpu", precision=precision, batch_size=25)


@pytest.fixture(scope="module")
def evaluator(zoo):
    return make_evaluator(zoo)


def plain_logits(zoo, model, task, split, folder="pretrained"):
    """By transformers alone: its processor, its towers, one image at a time."""
    arrays = np.load(zoo / f"{task}.npz")
    processor = CLIPProcessor.from_pretrained(zoo / folder)
    with torch.no_grad():
        head = plain_head(model, processor, CLASS_NAMES[task])
        pixels = plain_pixels(zoo / folder, arrays[f"{split}_images"])
        features = [model.get_image_features(pixel_values=one[None]).pooler_output for one in pixels]
    logits = model.logit_scale.exp() * functional.normalize(torch.cat(features), dim=-1) @ head
    return logits.detach(), torch.from_numpy(arrays[f"{split}_labels"])


def export(zoo, folder, evaluator, c):
    """The merged model's folder, loaded by transformers."""
    save_merged(folder, evaluator.exported_vectors, c, like=zoo / "pretrained")
    return CLIPModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_example_is_what_transformers_says_of_the_exported_model(zoo, evaluator, tmp_path, split):
    for i, c in enumerate(POINTS):
        model = export(zoo, tmp_path / str(i), evaluator, c)
        for task, outcome in evaluator.evaluate(c, split=split).items():
            logits, labels = plain_logits(zoo, model, task, split, tmp_path / str(i))
            right = logits.argmax(1) == labels
            assert unpack(outcome.per_example, N).tolist() == right.tolist()
            assert outcome.value == pytest.approx(right.double().mean())


def test_losses_are_those_of_transformers(zoo, tmp_path):
    evaluator = make_evaluator(zoo, metric=LOSS)
    model = export(zoo, tmp_path / "merged", evaluator, POINTS[2])
    for task, outcome in evaluator.evaluate(POINTS[2]).items():
        losses = functional.cross_entropy(*plain_logits(zoo, model, task, "val"), reduction="none")
        assert unpack(outcome.per_example, N) == pytest.approx(losses.numpy(), abs=1e-4)


def test_every_fine_tuned_model_is_good_at_its_own_task(evaluator):
    values = np.array([[o.value for o in evaluator.evaluate(c).values()] for c in np.eye(2)])
    assert (np.diag(values) > 0.8).all()
    assert (values.argmax(axis=0) == [0, 1]).all()


def test_images_are_prepared_as_the_processor_prepares_them(zoo, evaluator):
    family = evaluator.family
    task = evaluator.tasks["Colours"]
    pixels = family.normalise(family.images(task, "val"))
    images = np.load(zoo / "Colours.npz")["val_images"]
    assert torch.allclose(pixels, plain_pixels(zoo / "pretrained", images), atol=1e-6)
    # With torchvision, which transformers prefers, a resized pixel may differ by a 255th.
    fast = CLIPProcessor.from_pretrained(zoo / "pretrained")(images=list(images), return_tensors="pt")
    assert (pixels - fast["pixel_values"]).abs().max() < 1.01 / 255 / 0.26


@pytest.mark.parametrize("edge", [SIZE, SIZE + 4])
def test_images_of_the_models_size_are_cut_where_the_processor_cuts(zoo, tmp_path, edge):
    folder = tmp_path / "pretrained"
    shutil.copytree(zoo / "pretrained", folder, ignore=shutil.ignore_patterns("processor_config.json"))
    crop = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": edge}, crop_size=crop).save_pretrained(folder)
    images, labels = draw_images("Colours", 10, np.random.default_rng(0))
    arrays = {f"{s}_{kind}": a for s in ("val", "test") for kind, a in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "x.npz", class_names=CLASS_NAMES["Colours"], templates=TEMPLATES, **arrays)
    family = find_family("clip_transformers").make("", folder, {}, [])
    pixels = family.normalise(family.images(Task.from_file("x", tmp_path / "x.npz"), "val"))
    assert torch.allclose(pixels, plain_pixels(folder, images), atol=1e-6)


def test_bfloat16_agrees_but_for_a_few_examples_and_the_test_split_is_float32(zoo, evaluator):
    low = make_evaluator(zoo, precision="bfloat16")
    for split, differ in (("val", 3), ("test", 0)):
        expected = evaluator.evaluate(POINTS[2], split=split)
        for task, outcome in low.evaluate(POINTS[2], split=split).items():
            found, wanted = (unpack(o.per_example, N) for o in (outcome, expected[task]))
            assert (found != wanted).sum() <= differ


def as_open_clip(tower):
    """A tower of transformers under open_clip's names, by hand."""
    model = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2},
        text_cfg={"context_length": 8, "vocab_size": 10, "width": 32, "heads": 2, "layers": 1},
    )
    visual = model.visual.state_dict()
    own = {key.removeprefix("vision_model."): tensor for key, tensor in tower.items()}
    visual["class_embedding"] = own["embeddings.class_embedding"]
    visual["conv1.weight"] = own["embeddings.patch_embedding.weight"]
    visual["positional_embedding"] = own["embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        visual[f"ln_pre.{kind}"] = own[f"pre_layrnorm.{kind}"]
        visual[f"ln_post.{kind}"] = own[f"post_layernorm.{kind}"]
        for layer in range(2):
            here, there = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            visual[f"{here}.ln_1.{kind}"] = own[f"{there}.layer_norm1.{kind}"]
            visual[f"{here}.ln_2.{kind}"] = own[f"{there}.layer_norm2.{kind}"]
            visual[f"{here}.mlp.c_fc.{kind}"] = own[f"{there}.mlp.fc1.{kind}"]
            visual[f"{here}.mlp.c_proj.{kind}"] = own[f"{there}.mlp.fc2.{kind}"]
            visual[f"{here}.attn.out_proj.{kind}"] = own[f"{there}.self_attn.out_proj.{kind}"]
            visual[f"{here}.attn.in_proj_{kind}"] = torch.cat(
                [own[f"{there}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            )
    return {f"visual.{name}": tensor for name, tensor in visual.items()}


def test_a_tower_in_open_clips_format_and_a_whole_model_merge_as_well(zoo, evaluator, tmp_path):
    tower = load_file(zoo / "Colours" / "model.safetensors")
    save_file(as_open_clip(tower), tmp_path / "tower.safetensors")
    whole = load_file(zoo / "pretrained" / "model.safetensors") | load_file(zoo / "Light" / "model.safetensors")
    save_file(whole, tmp_path / "whole.safetensors")
    other = make_evaluator(zoo, Colours=tmp_path / "tower.safetensors", Light=tmp_path / "whole.safetensors")
    for c in POINTS:
        expected = evaluator.vectors.merge(c)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in other.vectors.merge(c).items())


@pytest.mark.parametrize("tuned", [True, False])
def test_a_checkpoint_with_old_constants(zoo, evaluator, tmp_path, tuned):
    """As the original ones on the hub have, and fine-tuned versions of that time, but not newer ones."""
    for name in ("pretrained", *TASKS):
        shutil.copytree(zoo / name, tmp_path / name)
        state = load_file(tmp_path / name / "model.safetensors")
        if name == "pretrained" or tuned:
            state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        if name == "pretrained":
            state["text_model.embeddings.position_ids"] = torch.arange(40)[None]
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    for task in TASKS:
        shutil.copy(zoo / f"{task}.npz", tmp_path)
    other = make_evaluator(tmp_path)
    for split in ("val", "test"):
        assert {t: o.per_example for t, o in other.evaluate(POINTS[2], split=split).items()} == {
            t: o.per_example for t, o in evaluator.evaluate(POINTS[2], split=split).items()
        }


@pytest.mark.parametrize(
    ("name", "settings"), [("fisher", {}), ("regmean", {}), ("adamerging", {"level": "task", "steps": 3, "lr": 0.1})]
)
def test_merges_that_look_at_data(zoo, name, settings):
    evaluator = make_evaluator(zoo)
    before = {task: outcome.per_example for task, outcome in evaluator.evaluate([0.5, 0.5]).items()}
    merge = MERGES[name](make(MERGES[name].Settings, settings, what=name))
    prepared = merge.prepare(evaluator)
    merged = dict(prepared.tensors(prepared.space.default))
    pretrained, averaged = (evaluator.exported_vectors.merge(c) for c in ([0, 0], [0.5, 0.5]))
    assert merged.keys() == pretrained.keys()
    changed = [key for key in merged if not torch.equal(merged[key], pretrained[key])]
    assert changed
    assert set(changed) <= set(evaluator.vectors.layers)
    assert any(not torch.equal(merged[key], averaged[key]) for key in changed)
    again = {task: outcome.per_example for task, outcome in evaluator.evaluate([0.5, 0.5]).items()}
    assert again == before


def refused(folder, architecture=""):
    with pytest.raises(MapMergeError) as caught:
        find_family("clip_transformers").make(architecture, folder, {}, [])
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_folders_that_are_no_whole_clip_are_refused(zoo, tmp_path):
    assert "A 'clip_vision_model' is not a whole CLIP model with both its towers" in refused(zoo / "Colours")
    assert "leave the architecture 'ViT-B-32' out" in refused(zoo / "pretrained", "ViT-B-32")
    folder = tmp_path / "changed"
    shutil.copytree(zoo / "pretrained", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"projection_dim": 16}))
    assert "projection.weight' with shape (24, 32) where the model has (16, 32)" in refused(folder)
    shutil.copy(zoo / "pretrained" / "config.json", folder)
    CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18}).save_pretrained(folder)
    (folder / "processor_config.json").unlink(missing_ok=True)
    assert "makes images of 18 x 18 pixels, but the model wants 16 x 16" in refused(folder)
    for wrong in ({"image_mean": [0.5]}, {"image_std": [0, 0, 0]}, {"rescale_factor": 0}):
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **wrong).save_pretrained(
            folder
        )
        assert "can't read an image processor" in refused(folder)
    (folder / "preprocessor_config.json").unlink()
    assert "can't read an image processor" in refused(folder)
    for path in [*folder.glob("token*"), *folder.glob("vocab*"), *folder.glob("merges*")]:
        path.unlink()
    assert "tokens where the model knows 514: add the model's own tokenizer files" in refused(folder)


def test_heads_of_many_prompts_are_kept_on_disk_and_keep_no_model_alive(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))
    arrays = dict(np.load(zoo / f"{TASKS[0]}.npz"))
    arrays["templates"] = np.array([f"photo {i} of {{}}" for i in range(20)])
    np.savez(tmp_path / "many.npz", **arrays)
    task = Task.from_file("Many", tmp_path / "many.npz")
    heads, counts = [], []
    for _ in range(2):
        family, texts = find_family("clip_transformers").make("", zoo / "pretrained", {}, [task]), []
        family.model.text_model.register_forward_hook(lambda *_, seen=texts: seen.append(1))
        heads.append(family.head(task))
        counts.append(len(texts))
        model = weakref.ref(family.model)
        del family
        assert model() is None
    assert torch.equal(*heads)
    assert counts[0] > 0
    assert counts[1] == 0
    # Prompts come to other tokens.
    other = shutil.copytree(zoo / "pretrained", tmp_path / "other")
    said = json.loads((other / "tokenizer.json").read_text())
    vocabulary = said["model"]["vocab"]
    vocabulary["p"], vocabulary["h"] = vocabulary["h"], vocabulary["p"]
    (other / "tokenizer.json").write_text(json.dumps(said))
    family = find_family("clip_transformers").make("", other, {}, [task])
    assert not torch.equal(family.head(task), heads[0])
