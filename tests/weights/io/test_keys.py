"""Independent references: what transformers and open_clip themselves make of the same weights."""

from __future__ import annotations

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.keys import adapt
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

PART = "visual."


def open_clip_model(seed, *, layers=2, width=32, quick_gelu=False):
    torch.manual_seed(seed)
    vision = {"layers": layers, "width": width, "head_width": 8, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 4, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu).eval()
    return _shaken(model)


def transformers_config(*, layers=2, width=32, quick_gelu=False):
    activation = "quick_gelu" if quick_gelu else "gelu"
    common = {"num_attention_heads": width // 8, "intermediate_size": 4 * width, "hidden_size": width}
    vision = common | {
        "num_hidden_layers": layers,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 24,
        "hidden_act": activation,
    }
    text = common | {"num_hidden_layers": 1, "vocab_size": 100, "max_position_embeddings": 8}
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)


def transformers_model(kind, seed, **shape):
    torch.manual_seed(seed)
    config = transformers_config(**shape)
    return _shaken(kind(config if kind is CLIPModel else config.vision_config).eval())


def _shaken(model):
    """Random numbers everywhere: fresh models have zeros and ones where mistakes would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def embedded_by_transformers(model):
    with torch.inference_mode():
        if isinstance(model, CLIPModel):
            outputs = model.get_image_features(images())
            return outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output
        return model(images()).image_embeds


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("kind", [CLIPModel, CLIPVisionModelWithProjection])
def test_a_tower_of_transformers_computes_the_same_in_open_clip(kind, quick_gelu, tmp_path):
    theirs = transformers_model(kind, 1, quick_gelu=quick_gelu)
    theirs.save_pretrained(tmp_path)
    base = open_clip_model(2, quick_gelu=quick_gelu)
    found = adapt(load_file(tmp_path / "model.safetensors"), base.state_dict(), PART)
    assert found.keys() == {name for name in base.state_dict() if name.startswith(PART)}
    base.load_state_dict(found, strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(base.encode_image(images()), embedded_by_transformers(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_tower_of_open_clip_computes_the_same_in_transformers(quick_gelu):
    ours = open_clip_model(1, quick_gelu=quick_gelu)
    theirs = transformers_model(CLIPVisionModelWithProjection, 2, quick_gelu=quick_gelu)
    theirs.load_state_dict(adapt(ours.state_dict(), theirs.state_dict()))
    with torch.inference_mode():
        torch.testing.assert_close(embedded_by_transformers(theirs), ours.encode_image(images()), atol=1e-5, rtol=1e-5)


def test_the_way_there_and_back_changes_nothing():
    ours = open_clip_model(1).state_dict()
    theirs = transformers_model(CLIPVisionModelWithProjection, 2).state_dict()
    back = adapt(adapt(ours, theirs), ours, PART)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in back.items())


@pytest.mark.parametrize("old_names", [False, True])
def test_a_tower_without_projection_gets_the_bases(old_names):
    tower = transformers_model(CLIPVisionModel, 1).state_dict()
    if old_names:  # before transformers 5, and with the buffer of still older ones
        tower = {f"vision_model.{name}": tensor for name, tensor in tower.items()}
        tower["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    base = open_clip_model(2).state_dict()
    found = adapt(tower, base, PART)
    assert torch.equal(found["visual.proj"], base["visual.proj"])
    assert not torch.equal(found["visual.conv1.weight"], base["visual.conv1.weight"])


def test_a_tower_of_open_clip_without_projection_is_incomplete():
    base = open_clip_model(2).state_dict()
    cut = {name: tensor for name, tensor in base.items() if name != "visual.proj"}
    assert adapt(cut, base, PART) is cut


class ImageEncoder(nn.Module):
    """As fine-tuned CLIP models are often saved: the model inside a module, with what training needed."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.unused = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: ImageEncoder(model).state_dict(),
        lambda model: nn.DataParallel(ImageEncoder(model)).state_dict(),
        lambda model: model.visual.state_dict(),
        lambda model: {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
    ],
    ids=["inside a module", "data parallel", "tower alone", "compiled"],
)
def test_prefixes_are_taken_off_or_put_on(wrap):
    model, base = open_clip_model(1), open_clip_model(2).state_dict()
    found = adapt(wrap(model), base, PART)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PART)}
    assert found.keys() == wanted.keys()
    assert all(found[name].data_ptr() == tensor.data_ptr() for name, tensor in wanted.items()), "copied"


def test_a_model_that_fits_is_returned_as_it_is():
    model, base = open_clip_model(1).state_dict(), open_clip_model(2).state_dict()
    assert adapt(model, base, PART) is model
    assert adapt(model, base) is model


def test_a_merge_of_transformers_files_is_that_of_the_same_models_in_open_clip(tmp_path):
    base = open_clip_model(0)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    ours, theirs = {}, {}
    for seed, name in ((1, "a"), (2, "b")):
        model = open_clip_model(seed)
        twin = transformers_model(CLIPVisionModelWithProjection, 9)
        twin.load_state_dict(adapt(model.state_dict(), twin.state_dict()))
        twin.save_pretrained(tmp_path / name)
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        ours[name], theirs[name] = tmp_path / f"{name}.safetensors", tmp_path / name / "model.safetensors"
    merged = [
        TaskVectors.from_files(tmp_path / "base.safetensors", files, part=PART).merge([0.3, 0.6])
        for files in (ours, theirs)
    ]
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(tensor, merged[1][name]) for name, tensor in merged[0].items())


@pytest.mark.parametrize("shape", [{"layers": 3}, {"layers": 1}, {"width": 40}])
def test_a_tower_of_another_size_gets_the_usual_sentence(shape, tmp_path):
    save_file(open_clip_model(0).state_dict(), tmp_path / "base.safetensors")
    transformers_model(CLIPVisionModelWithProjection, 1, **shape).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="The model 'a' lacks the tensor 'visual"):
        TaskVectors.from_files(tmp_path / "base.safetensors", {"a": tmp_path / "a/model.safetensors"}, part=PART)


def test_queries_and_keys_of_different_shapes_are_not_packed():
    base = open_clip_model(0).state_dict()
    tower = transformers_model(CLIPVisionModelWithProjection, 1).state_dict()
    tower["vision_model.encoder.layers.0.self_attn.k_proj.bias"] = torch.zeros(3)
    assert adapt(tower, base, PART) is tower
