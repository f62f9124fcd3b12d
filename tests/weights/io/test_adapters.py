"""Adapters are made, trained at random and merged by peft itself."""

from __future__ import annotations

import json
import re

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.adapters import LowRank, find_misfits, is_adapter, read_adapter
from mapmerge_core.weights.vectors.streamed import open_vectors
from tests.weights.io.refusing import refused

pytestmark = pytest.mark.filterwarnings("ignore")


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, **options,
        )
    )  # fmt: skip


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3)


def adapt(folder, model, **options):
    """Saves an adapter with random factors; returns the base model's tensors and peft's merged ones."""
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(**options))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return base, adapted.merge_and_unload().state_dict()


def apply(base, adapter):
    assert not adapter.deltas.keys() & adapter.full.keys()
    merged = dict(base) | dict(adapter.full)
    for name, low_rank in adapter.deltas.items():
        merged[name] = merged[name] + low_rank.dense().view(merged[name].shape)
    return merged


def assert_merges(folder, base, expected):
    adapter = read_adapter(folder, base)
    merged = apply(base, adapter)
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    changed = {name for name in base if not torch.equal(base[name], expected[name])}
    assert changed <= adapter.deltas.keys() | adapter.full.keys()
    assert changed
    return adapter


ATTENTION = ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ATTENTION},
        {"target_modules": "all-linear", "lora_alpha": 5},
        {"target_modules": ATTENTION, "use_rslora": True},
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.q_proj": 7}},
        {
            "target_modules": ATTENTION,
            "rank_pattern": {r".*\.1\.self_attn\.v_proj": 3, "v_proj": 5},
            "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 3, "v_proj": 9},
            "use_rslora": True,
        },
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
        {"target_modules": [*ATTENTION, "embed_tokens"]},
        {"target_modules": [*ATTENTION, "lm_head"]},
        {"target_modules": ATTENTION, "init_lora_weights": "gaussian"},
        {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"},
    ],
)
def test_differences_are_those_that_peft_merges(tmp_path, options):
    base, expected = adapt(tmp_path, llama(), r=4, **options)
    assert_merges(tmp_path, base, expected)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_whole_tensors(tmp_path, bias):
    base, expected = adapt(tmp_path, llama(attention_bias=True), r=2, target_modules=ATTENTION, bias=bias)
    adapter = assert_merges(tmp_path, base, expected)
    assert "model.layers.0.self_attn.q_proj.bias" in adapter.full


@pytest.mark.parametrize("said", [True, False])
def test_gpt2_stores_its_matrices_transposed(tmp_path, said):
    """Also where they are square, and where peft itself had to notice."""
    base, expected = adapt(tmp_path, gpt2(), r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=said)
    adapter = assert_merges(tmp_path, base, expected)
    assert adapter.deltas["transformer.h.0.attn.c_proj.weight"].transposed


def test_convolutions_are_flattened(tmp_path):
    base, expected = adapt(tmp_path, Convolutions(), r=2, target_modules=["small", "wide"])
    adapter = assert_merges(tmp_path, base, expected)
    assert adapter.deltas["wide.weight"].shape == (5, 36)


def test_tied_embeddings_change_where_the_base_has_them(tmp_path):
    model = llama(tie_word_embeddings=True)
    base = {name: t.clone() for name, t in model.state_dict().items() if name != "lm_head.weight"}
    _, expected = adapt(tmp_path, model, r=2, target_modules=["embed_tokens", "q_proj"])
    adapter = read_adapter(tmp_path, base)
    merged = apply(base, adapter)
    torch.testing.assert_close(
        merged["model.embed_tokens.weight"], expected["model.embed_tokens.weight"], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("options", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}])
@pytest.mark.parametrize("saved", [True, False])
def test_adapters_that_keep_weights_tied_fit_a_base_that_holds_them_once(tmp_path, options, saved):
    """peft merges into tied weights twice, so what the unmerged model computes is the reference."""
    model = llama(tie_word_embeddings=True)
    base = {name: t.clone() for name, t in model.state_dict().items() if name != "lm_head.weight"}
    options = {"target_modules": ["q_proj"]} | options
    adapted = get_peft_model(model, LoraConfig(r=2, ensure_weight_tying=True, **options))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path, save_embedding_layers=saved)
    assert any("lm_head" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    merged = llama(tie_word_embeddings=True)
    merged.load_state_dict(apply(base, read_adapter(tmp_path, base)), strict=False)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(merged(tokens).logits, adapted.eval()(tokens).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_unties_weights_does_not_fit_a_base_that_holds_them_once(tmp_path):
    model = llama(tie_word_embeddings=True)
    base = [name for name in model.state_dict() if name != "lm_head.weight"]
    adapt(tmp_path, model, r=2, target_modules=["lm_head"])
    refused("changes 'lm_head.weight', which the pre-trained model lacks.*tied", read_adapter, tmp_path, base)


def test_a_pickled_adapter_and_its_file_alone(tmp_path):
    base, expected = adapt(tmp_path, llama(), r=2, target_modules=ATTENTION)
    file = tmp_path / "adapter_model.safetensors"
    assert is_adapter(tmp_path)
    assert is_adapter(file)
    assert_merges(file, base, expected)
    torch.save(load_file(file), tmp_path / "adapter_model.bin")
    file.unlink()
    assert is_adapter(tmp_path)
    assert_merges(tmp_path, base, expected)


def test_what_is_no_adapter(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert not is_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "model.safetensors")
    assert not is_adapter(tmp_path / "none")


@pytest.mark.parametrize("rename", [lambda n: n.removeprefix("model."), lambda n: f"base.{n}"])
def test_a_base_with_a_prefix_more_or_less(tmp_path, rename):
    base, expected = adapt(tmp_path, llama(), r=2, target_modules=ATTENTION)
    base, expected = ({rename(n): t for n, t in state.items()} for state in (base, expected))
    assert_merges(tmp_path, base, expected)


def test_heads_that_are_left_out_of_all_models(tmp_path):
    class Classifier(nn.Module):
        def __init__(self, n_classes):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, n_classes)

    base, _ = adapt(tmp_path, Classifier(5), target_modules=["body"], modules_to_save=["head"], r=2)
    body = [name for name in base if not name.startswith("head")]
    with pytest.raises(CheckpointError, match=r"changes 'head\.bias', which the pre-trained model lacks"):
        read_adapter(tmp_path, body)
    adapter = read_adapter(tmp_path, body, without=("head.weight", "head.bias"))
    assert set(adapter.deltas) == {"body.weight"}
    assert not adapter.full
    save_file(Classifier(3).state_dict(), tmp_path / "pretrained.safetensors")
    vectors = open_vectors(tmp_path / "pretrained.safetensors", {"a": tmp_path}, without=("head.weight", "head.bias"))
    assert vectors.layers == ("body.weight",)


def test_names_that_fit_nothing_or_two_things(tmp_path):
    base, _ = adapt(tmp_path, llama(), r=2, target_modules=["q_proj"])
    name = "model.layers.1.self_attn.q_proj.weight"
    less = [key for key in base if key != name]
    refused(f"changes '{re.escape(name)}', which the pre-trained model lacks", read_adapter, tmp_path, less)
    assert find_misfits(tmp_path, less) == (f"changes '{name}', which the pre-trained model lacks",)
    twice = [*less, f"encoder.{name}", f"decoder.{name}"]
    refused(f"which could be 'encoder.{re.escape(name)}' or 'decoder.", read_adapter, tmp_path, twice)
    assert find_misfits(tmp_path, base) == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"lora_bias": True}, "biases in its factors"),
        ({"trainable_token_indices": [1, 2]}, "single tokens"),
        ({"layer_replication": [(0, 2), (0, 2)]}, "replicated layers"),
    ],
)
def test_more_than_low_rank_is_refused(tmp_path, options, says):
    model = llama(attention_bias=bool(options.get("lora_bias")))
    base, _ = adapt(tmp_path, model, r=2, target_modules=ATTENTION, **options)
    refused(f"{says}.*merge_and_unload", read_adapter, tmp_path, base)
    refused(f"{says}.*merge_and_unload", find_misfits, tmp_path, base)


def test_unknown_factors_are_refused_even_if_the_configuration_is_silent(tmp_path):
    base, _ = adapt(tmp_path, llama(), r=2, target_modules=ATTENTION, use_dora=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": False}))
    refused("lora_magnitude_vector.*merge_and_unload", read_adapter, tmp_path, base)


@pytest.mark.parametrize("kind", ["LoHaConfig", "IA3Config", "LoKrConfig"])
def test_other_kinds_of_adapters_are_refused(tmp_path, kind):
    options = {"feedforward_modules": []} if kind == "IA3Config" else {}
    model = llama()
    base = model.state_dict()
    get_peft_model(model, getattr(peft, kind)(target_modules=ATTENTION, **options)).save_pretrained(tmp_path)
    refused("only LoRA can be merged", read_adapter, tmp_path, base)


def test_damaged_adapters(tmp_path):
    base, _ = adapt(tmp_path, llama(), r=2, target_modules=["q_proj"])
    config, file = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    kept, tensors = config.read_text(), load_file(file)
    for text, says in (
        ("{", "damaged or not an adapter's configuration"),
        ("[]", "damaged or not an adapter's configuration"),
        ("{}", "damaged or not an adapter's configuration"),
        (json.dumps(json.loads(kept) | {"lora_alpha": None}), "no usable lora_alpha"),
        (json.dumps(json.loads(kept) | {"alpha_pattern": {"(": 1}}), "no usable lora_alpha"),
    ):
        config.write_text(text)
        refused(says, read_adapter, tmp_path, base)
    config.write_text(kept)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({key: t for key, t in tensors.items() if key != name}, file)
    refused("lacks the factor lora_A of 'model.layers", read_adapter, tmp_path, base)
    save_file(tensors | {name: torch.ones(3, 16)}, file)
    refused(r"shapes \(3, 16\) and \(16, 2\)", read_adapter, tmp_path, base)
    file.write_bytes(b"")
    refused("damaged", read_adapter, tmp_path, base)


@pytest.mark.parametrize("transposed", [False, True])
def test_norms_and_inner_products_come_from_small_matrices(transposed):
    torch.manual_seed(0)
    one = LowRank(torch.randn(3, 7), torch.randn(5, 3), 0.5, transposed)
    other = LowRank(torch.randn(2, 7).half(), torch.randn(5, 2).half(), 3.0, transposed)
    expected = [0.5 * one.B @ one.A, 3.0 * other.B.float() @ other.A.float()]
    expected = [(delta.T if transposed else delta).double() for delta in expected]
    for low_rank, delta in zip((one, other), expected, strict=True):
        assert low_rank.shape == delta.shape
        torch.testing.assert_close(low_rank.dense(torch.float64), delta, rtol=1e-5, atol=1e-5)
        assert low_rank.inner(low_rank) == pytest.approx(float(delta.square().sum()), rel=1e-6)
    assert one.inner(other) == pytest.approx(float((expected[0] * expected[1]).sum()), rel=1e-6)
