from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mapmerge_core.errors import ExportError
from mapmerge_core.weights.export.writing import Recipe, save_merged, save_model
from mapmerge_core.weights.vectors.streamed import StreamedVectors
from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@pytest.fixture
def vectors():
    return TaskVectors.from_state_dicts({"w": torch.zeros(2)}, {"one": {"w": torch.ones(2)}})


def run_in(folder: Path, card: Path, program: str) -> str:
    """What a program prints that starts with the card's own lines."""
    lines = card.read_text().split("```python\n")[1].split("```")[0]
    ran = subprocess.run(
        [sys.executable, "-c", lines + program], cwd=folder, capture_output=True, text=True, check=True
    )
    return ran.stdout


def two_models(make, folder: Path):
    """Two models of one architecture, the first one saved to ``folder``, with tied tensors once."""
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = make()
        model.save_pretrained(folder / str(seed))
        states.append(load_file(folder / str(seed) / "model.safetensors"))
    return folder / "0", *states


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=True,
        )
    )  # fmt: skip


def test_a_language_models_folder_loads_in_transformers_by_the_cards_own_lines(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    like, pretrained, finetuned = two_models(tiny_llama, tmp_path / "models")
    vocabulary = {chr(97 + i): i for i in range(11)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))  # noqa: S106
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(like)
    (like / "modeling_evil.py").write_text("raise SystemExit")
    (like / "tokenizer_training.bin").write_text("")
    vectors = StreamedVectors.from_state_dicts(pretrained, {"one": finetuned})
    folder = tmp_path / "out" / "my-merge"
    result = save_merged(folder, vectors, [0.5], recipe=Recipe(), like=like, extra={"head": {"w": torch.ones(1)}})
    assert result.path == folder / "model.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "head.safetensors", "mergekit.yaml",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert set(result.copied) <= set(folder.iterdir())
    assert (folder / "config.json").read_bytes() == (like / "config.json").read_bytes()
    out = run_in(folder.parent, result.card, """
import torch
total = model.state_dict()["lm_head.weight"].double().sum().item()
print(total, tokenizer("b").input_ids, type(model).__name__)
""")  # fmt: skip
    total, ids, kind = out.split()
    expected = vectors.merge([0.5])["model.embed_tokens.weight"].double().sum().item()
    assert float(total) == pytest.approx(expected, abs=1e-9)
    assert (ids, kind) == ("[1]", "LlamaForCausalLM")
    assert yaml.safe_load(result.card.read_text().split("---")[1])["pipeline_tag"] == "text-generation"
    # The same by the file's name, over the earlier export.
    again = save_merged(folder / "model.safetensors", vectors, [0.5], recipe=Recipe(), like=like)
    assert again.path == result.path


def test_a_timm_models_folder_loads_in_timm_by_the_cards_own_lines(tmp_path):
    import timm
    from timm.models import save_for_hf

    like, models = tmp_path / "like", []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(timm.create_model("resnet10t", num_classes=3))
    save_for_hf(models[0], like, safe_serialization=True)
    pretrained, finetuned = (model.state_dict() for model in models)
    vectors = StreamedVectors.from_state_dicts(pretrained, {"one": finetuned})
    result = save_model(
        tmp_path / "merged", vectors.described, vectors.tensors([0.25]), recipe=Recipe(method="TIES"), like=like
    )
    out = run_in(tmp_path, result.card, "print(model.fc.weight.double().sum().item(), tuple(model.fc.weight.shape)[0])")
    total, n_classes = out.split()
    assert float(total) == pytest.approx(vectors.merge([0.25])["fc.weight"].double().sum().item(), abs=1e-9)
    assert n_classes == "3"
    assert yaml.safe_load(result.card.read_text().split("---")[1])["library_name"] == "timm"


def test_a_clip_models_folder_loads_in_transformers_by_the_cards_own_lines(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": 9, "max_position_embeddings": 5},
        vision_config=tower | {"image_size": 8, "patch_size": 4},
        projection_dim=6,
    )
    like, pretrained, finetuned = two_models(lambda: CLIPModel(config), tmp_path / "models")
    vectors = TaskVectors.from_state_dicts(pretrained, {"one": finetuned}, part="vision_model.")
    result = save_merged(tmp_path / "clip", vectors, [0.5], like=like)
    out = run_in(
        tmp_path, result.card, "print(model.vision_model.post_layernorm.weight.shape[0], type(model).__name__)"
    )
    assert out.split() == ["8", "CLIPModel"]
    assert all(torch.equal(load_file(result.path)[k], t) for k, t in vectors.merge([0.5]).items())


def test_folders_that_can_not_be_exported_to(tmp_path, vectors):
    like = tmp_path / "like"
    like.mkdir()
    with pytest.raises(ExportError, match=r"holds no config\.json"):
        save_merged(tmp_path / "out", vectors, [1], like=like)
    for text in ("{", "[" * 100_000):
        (like / "config.json").write_text(text)
        with pytest.raises(ExportError, match="is no JSON"):
            save_merged(tmp_path / "out", vectors, [1], like=like)
    (like / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for path, says in (
        (like, "holds the pre-trained model"),
        (like / "model.safetensors", "holds the pre-trained model"),
        (tmp_path / "file", "is no folder"),
        (tmp_path / "merged.safetensors", "is no folder"),
    ):
        with pytest.raises(ExportError, match=says):
            save_merged(path, vectors, [1], like=like)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "like"]
