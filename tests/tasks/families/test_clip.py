from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import CheckpointError
from mapmerge_core.tasks.families._models import clip
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.tiny import ARCHITECTURE, CLASS_NAMES, TEMPLATES, plain_head


@pytest.fixture(scope="module")
def family(tiny_zoo):
    return ClipZeroShot(str(tiny_zoo / "tiny-clip.json"), tiny_zoo / "pretrained.safetensors")


@pytest.fixture(scope="module")
def plain(tiny_zoo):
    """The same model, built and loaded by open_clip alone, and its own eval transform."""
    open_clip.add_model_config(tiny_zoo / "tiny-clip.json")
    model, _, transform = open_clip.create_model_and_transforms(
        "tiny-clip", pretrained=str(tiny_zoo / "pretrained.safetensors")
    )
    return model.eval(), transform


def prepare(family, images, folder):
    """A dataset's images as the family prepares them."""
    labels = np.zeros(len(images), np.int64)
    splits = {"val_images": images, "val_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(folder / "images.npz", class_names=["a"], templates=["{}"], **splits)
    return family.images(Task.from_file("Images", folder / "images.npz"), "val")


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16), (40, 28, 3), (9, 12, 3), (20, 33)])
def test_images_are_prepared_exactly_as_open_clip_does(family, plain, shape, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    expected = torch.stack([plain[1](Image.fromarray(image)) for image in images])
    prepared = prepare(family, images, tmp_path)
    assert prepared.dtype == torch.uint8
    assert torch.equal(family.normalise(prepared), expected)


def test_heads_and_logits_are_open_clips_own(family, plain, tiny_zoo, tmp_path):
    task = Task.from_file("Stripes", tiny_zoo / "Stripes.npz")
    head = plain_head(plain[0], CLASS_NAMES["Stripes"], TEMPLATES)
    assert torch.equal(family.head(task), head)
    assert family.head(task) is family.head(task), "heads are computed once"
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    with torch.inference_mode():
        pixels = torch.stack([plain[1](Image.fromarray(image)) for image in images])
        scale = plain[0].logit_scale.exp()
        expected = plain[0].encode_image(pixels, normalize=True) @ head * scale
        prepared = prepare(family, images, tmp_path)
        assert torch.equal(family.logits(prepared, task, torch.float32), expected)
        low = family.logits(prepared, task, torch.bfloat16)
    torch.testing.assert_close(low, expected, atol=0.02 * float(scale), rtol=0)
    assert low.dtype == torch.float32
    assert not torch.equal(low, expected)


def test_class_logits_are_scaled_and_let_gradients_through(family, plain, tiny_zoo, tmp_path):
    head = family.head(Task.from_file("Stripes", tiny_zoo / "Stripes.npz"))
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    pixels = torch.stack([plain[1](Image.fromarray(image)) for image in images])
    with torch.no_grad():
        own = plain[0].encode_image(pixels, normalize=True) @ head * plain[0].logit_scale.exp()
        prepared = prepare(family, images, tmp_path)
        torch.testing.assert_close(family.class_logits(prepared, head, {}), own)
    proj = torch.zeros_like(family.model.visual.proj).requires_grad_()
    logits = family.class_logits(prepared, head, {"visual.proj": proj})
    assert torch.equal(logits, torch.zeros(7, 4))
    assert torch.autograd.grad(logits.sum(), proj)[0].abs().max() > 0
    assert family.model.visual.proj.abs().max() > 0


def test_quick_gelu_and_preprocessing_come_from_the_configuration(tmp_path, tiny_zoo, family):
    config = {
        "model_cfg": {**ARCHITECTURE, "quick_gelu": True},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    other = ClipZeroShot(str(tmp_path / "open_clip_config.json"), tiny_zoo / "pretrained.safetensors")
    black = np.zeros((1, 16, 16, 3), np.uint8)
    assert torch.equal(other.normalise(prepare(other, black, tmp_path)), -torch.ones(1, 3, 16, 16))
    same_pixels = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        assert not torch.allclose(other.model.visual(same_pixels), family.model.visual(same_pixels))


def test_two_folders_may_use_one_name_for_different_models(tmp_path, family):
    config = {**ARCHITECTURE, "embed_dim": 8}
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    torch.save(open_clip.CLIP(**config).state_dict(), tmp_path / "pretrained.pt")
    other = ClipZeroShot(str(tmp_path / "tiny-clip.json"), tmp_path / "pretrained.pt")
    assert (other.model.visual.output_dim, family.model.visual.output_dim) == (8, 32)


def test_a_custom_text_tower(tmp_path, tiny_zoo):
    config = {**ARCHITECTURE, "custom_text": True}
    (tmp_path / "custom.json").write_text(json.dumps(config))
    state_dict = open_clip.CustomTextCLIP(**ARCHITECTURE).state_dict()
    save_file(state_dict, tmp_path / "custom.safetensors")
    family = ClipZeroShot(str(tmp_path / "custom.json"), tmp_path / "custom.safetensors")
    head = family.head(Task.from_file("Light", tiny_zoo / "Light.npz"))
    assert head.shape == (32, 3)
    images = prepare(family, np.zeros((2, 16, 16, 3), np.uint8), tmp_path)
    assert family.class_logits(images, head, {}).shape == (2, 3)
    torch.testing.assert_close(head.norm(dim=0), torch.ones(3))


def test_open_clips_own_weights_bring_their_preprocessing(tiny_zoo, tmp_path):
    files = str(tiny_zoo / "tiny-clip.json"), tiny_zoo / "pretrained.safetensors"
    siglip = ClipZeroShot(*files, ClipZeroShot.Settings(tag="ViT-B-16-SigLIP/webli"))
    wide = np.zeros((1, 16, 32, 3), np.uint8)
    wide[:, :, :8] = wide[:, :, 24:] = 255
    found = siglip.normalise(prepare(siglip, wide, tmp_path))[0, :, 8]
    # Squashed to a square rather than cropped, and from -1 to 1.
    assert found[:, [0, -1]].tolist() == [[1.0, 1.0]] * 3
    assert found[:, 7:9].tolist() == [[-1.0, -1.0]] * 3
    with pytest.raises(CheckpointError, match=r"trained with QuickGELU, .*: choose .*-quickgelu\."):
        ClipZeroShot(*files, ClipZeroShot.Settings(tag="ViT-B-32/openai"))
    assert clip.preprocessing_of("ViT-B-32-quickgelu/openai") == {}


def test_a_tower_alone_is_no_pretrained_model(tiny_zoo):
    with pytest.raises(CheckpointError, match=r"lacks the text tower, .*: choose the whole pre-trained"):
        ClipZeroShot(str(tiny_zoo / "tiny-clip.json"), tiny_zoo / "Light.safetensors")


def changed(part, **values):
    """The tiny architecture with other values in one of its parts, as JSON."""
    return json.dumps({**ARCHITECTURE, part: {**ARCHITECTURE[part], **values}})


def preprocessed(**values):
    """The tiny architecture with preprocessing of its own, as JSON."""
    return json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": values})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "can't be read: No such file"),
        ("not json", "is not an open_clip configuration"),
        ("[" * 100_000, "is not an open_clip configuration"),
        ("[1]", "is not an open_clip configuration"),
        ('{"embed_dim": 8}', "can't build a CLIP model"),
        (json.dumps({**ARCHITECTURE, "unknown": 1}), "can't build a CLIP model"),
        (changed("vision_cfg", width=-1), "can't build a CLIP model"),
        (changed("vision_cfg", width="wide"), "can't build a CLIP model"),
        (changed("vision_cfg", width=10**30), "can't build a CLIP model"),
        (changed("vision_cfg", timm_model_name="no_such_net"), "can't build a CLIP model .*no_such_net"),
        (changed("text_cfg", hf_model_name="no/such/model"), "can't build a CLIP model"),
        (changed("text_cfg", hf_tokenizer_name="no/such/tokenizer"), "can't build a tokenizer"),
        (changed("text_cfg", tokenizer_kwargs={"unknown": 1}), "can't build a tokenizer .*unknown"),
        (changed("text_cfg", tokenizer_kwargs={"clean": "soap"}), "can't build a tokenizer"),
        (preprocessed(mean=[0.5]), "can't build the preprocessing"),
        (preprocessed(std="wide"), "can't build the preprocessing"),
        (preprocessed(interpolation="guess"), "the preprocessing .*: it holds a value that is not allowed"),
        (preprocessed(resize_mode="guess"), "can't build the preprocessing"),
    ],
)
def test_configurations_that_are_none(tmp_path, tiny_zoo, text, says):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=says) as error:
        ClipZeroShot(str(tmp_path / "a.json"), tiny_zoo / "pretrained.safetensors")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_a_configuration_never_has_code_run(tmp_path, tiny_zoo):
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')\n\n\nclass Tokenizer:\n    pass\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}})
    )
    text = changed("text_cfg", hf_tokenizer_name=str(tmp_path), tokenizer_kwargs={"trust_remote_code": True})
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match="can't build a tokenizer"):
        ClipZeroShot(str(tmp_path / "a.json"), tiny_zoo / "pretrained.safetensors")
    assert not ran.exists()


def test_weights_come_from_the_checkpoint_alone(tmp_path, tiny_zoo, monkeypatch):
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda *_, pretrained=False, **__: asked.append(pretrained))
    text = changed("vision_cfg", timm_model_name="resnet18", timm_model_pretrained=True)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match="can't build a CLIP model"):
        ClipZeroShot(str(tmp_path / "a.json"), tiny_zoo / "pretrained.safetensors")
    assert asked == [False]


@pytest.mark.parametrize("name", ["hf-hub:org/model", "local-dir:/none", "other:x"])
def test_names_that_open_clip_would_look_up_elsewhere(tiny_zoo, name):
    with pytest.raises(CheckpointError, match=f"open_clip has no architecture '{name}'"):
        ClipZeroShot(name, tiny_zoo / "pretrained.safetensors")


def test_a_checkpoint_of_another_architecture(tmp_path, tiny_zoo):
    with pytest.raises(CheckpointError, match="open_clip has no architecture 'ViT-XXL'"):
        ClipZeroShot("ViT-XXL", tiny_zoo / "pretrained.safetensors")
    weights = load_file(tiny_zoo / "pretrained.safetensors")
    for says, changed in (
        ("lacks the tensor 'visual.proj'", {k: t for k, t in weights.items() if k != "visual.proj"}),
        ("holds the tensor 'extra', which the architecture lacks", {**weights, "extra": torch.zeros(1)}),
        (r"holds 'visual.proj' with shape \(2,\) where the architecture has \(32, 32\)",
         {**weights, "visual.proj": torch.zeros(2)}),
    ):  # fmt: skip
        save_file(changed, tmp_path / "m.safetensors")
        with pytest.raises(CheckpointError, match=says):
            ClipZeroShot(str(tiny_zoo / "tiny-clip.json"), tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float32_checkpoint_stays_in_its_file_until_merged_and_is_never_written_to(tiny_zoo, tmp_path, dtype):
    path = tmp_path / "pretrained.safetensors"
    save_file({name: t.float() for name, t in load_file(tiny_zoo / path.name).items()}, path)
    before = path.read_bytes()
    family = ClipZeroShot(str(tiny_zoo / "tiny-clip.json"), path)
    model = family.model_in(dtype)
    mapped = [p.data_ptr() for name, p in family.model.named_parameters() if not name.startswith("visual.")]
    vectors = TaskVectors.from_files(path, {"A": tiny_zoo / "Stripes.safetensors"}, part="visual.")
    for c in (0.5, 1.0):
        vectors.merge_into(model, [c])
    text = [p for name, p in model.named_parameters() if not name.startswith("visual.")]
    assert [p.data_ptr() for p in text] == mapped, "the text tower is neither copied nor cast"
    assert all(p.dtype == dtype for p in model.visual.parameters())
    expected = load_file(tiny_zoo / "Stripes.safetensors")["visual.proj"].to(dtype)
    torch.testing.assert_close(model.visual.proj.data, expected)
    with torch.no_grad():
        family.model_in(torch.float32).visual.proj.zero_()
    assert path.read_bytes() == before


def test_tensors_that_a_file_ties_are_the_models_own_each(tiny_zoo, tmp_path):
    weights = {name: t.float() for name, t in load_file(tiny_zoo / "pretrained.safetensors").items()}
    one, other = "visual.transformer.resblocks.0.ln_1.weight", "visual.transformer.resblocks.1.ln_1.weight"
    weights[other] = weights[one]
    torch.save(weights, tmp_path / "pretrained.pt")
    model = ClipZeroShot(str(tiny_zoo / "tiny-clip.json"), tmp_path / "pretrained.pt").model
    with torch.no_grad():
        model.get_parameter(other).zero_()
    assert torch.equal(model.get_parameter(one), weights[one])


@pytest.fixture
def many(tiny_zoo, tmp_path):
    """A task with 200 prompts."""
    arrays = dict(np.load(tiny_zoo / "Stripes.npz"))
    names = arrays["class_names"]
    arrays["templates"] = np.array([f"photo {i} of {{}}" for i in range(-(-200 // len(names)))])
    np.savez(tmp_path / "many.npz", **arrays)
    return Task.from_file("Many", tmp_path / "many.npz")


def test_heads_of_many_prompts_are_computed_once_for_all_processes(many, tiny_zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))

    def head(architecture=tiny_zoo / "tiny-clip.json", weights=tiny_zoo / "pretrained.safetensors"):
        texts = []
        family = ClipZeroShot(str(architecture), weights)
        family.model.token_embedding.register_forward_hook(lambda _, inputs, __: texts.append(len(inputs[0])))
        return family.head(many), sum(texts)

    first, n_texts = head()
    assert n_texts >= 200
    [kept] = (tmp_path / "home" / "cache" / "heads").iterdir()
    again, n_texts = head()
    assert torch.equal(again, first)
    assert n_texts == 0
    # Another text tower, and a damaged file.
    changed = load_file(tiny_zoo / "pretrained.safetensors")
    changed["token_embedding.weight"] = changed["token_embedding.weight"].roll(1, 0)
    save_file(changed, tmp_path / "other.safetensors")
    other, n_texts = head(weights=tmp_path / "other.safetensors")
    assert n_texts >= 200
    assert not torch.equal(other, first)
    # What changes no tensor: the activation.
    quick = json.loads((tiny_zoo / "tiny-clip.json").read_text())
    (tmp_path / "quick.json").write_text(json.dumps({**quick, "quick_gelu": True}))
    other, n_texts = head(architecture=tmp_path / "quick.json")
    assert n_texts >= 200
    assert not torch.equal(other, first)
    kept.write_bytes(kept.read_bytes()[:-8])
    mended, n_texts = head()
    assert n_texts >= 200
    assert torch.equal(mended, first)
    assert head()[1] == 0
    # A folder that can't be written.
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "file"))
    assert torch.equal(head()[0], first)
    assert not list((tmp_path / "home" / "cache" / "heads").glob("*.part"))
