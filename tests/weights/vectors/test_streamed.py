from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mapmerge_core.errors import CheckpointError, MapMergeError, PointError
from mapmerge_core.weights.export.writing import save_merged
from mapmerge_core.weights.io.adapters import Adapter, LowRank
from mapmerge_core.weights.io.keys import adapt_lazily
from mapmerge_core.weights.vectors.streamed import StreamedVectors, in_memory, open_vectors
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.weights.vectors.test_task_vectors import NAMES, C, Net, assert_same, by_hand, make_models

ROOT = Path(__file__).parents[3]


class OnDisk(Mapping):
    """A safetensors file that is opened for each tensor; counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.reads = path, []
        with safe_open(path, "pt") as file:
            self.names = list(file.keys())

    def __getitem__(self, name):
        self.reads.append(name)
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)

    def describe(self, name):
        tensor = load_file(self.path)[name]
        return tensor.shape, tensor.dtype


@pytest.fixture(params=["in memory", "on disk"])
def store(request, tmp_path):
    """Turns state dicts into what `StreamedVectors` reads, from memory or from a file."""
    count = iter(range(100))

    def put(state_dict):
        if request.param == "in memory":
            return state_dict
        path = tmp_path / f"{next(count)}.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in state_dict.items()}, path)
        return OnDisk(path)

    return put


def streamed(store, pretrained, finetuned, part=""):
    models = {name: store(model) for name, model in finetuned.items()}
    return StreamedVectors.from_state_dicts(store(pretrained), models, part=part)


def adapter(deltas=None, full=None):
    """An adapter by hand: factors (A, B, scale, transposed) for each tensor."""
    return Adapter({name: LowRank(*factors) for name, factors in (deltas or {}).items()}, full or {})


def lora(seed=0, rank=2, dtype=torch.float32):
    """An adapter of `Net`'s two linear layers, and the same change as matrices."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"tower.0.weight": (7, 5), "tower.2.weight": (3, 7)}
    deltas, dense = {}, {}
    for name, (n_out, n_in) in shapes.items():
        A = torch.randn(rank, n_in, generator=draw).to(dtype)
        B = torch.randn(n_out, rank, generator=draw).to(dtype)
        deltas[name] = (A, B, 0.5, False)
        dense[name] = 0.5 * (B.double() @ A.double())
    return adapter(deltas), dense


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_merges_equal_the_sum_by_hand(store, dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    vectors = streamed(store, pretrained, finetuned)
    assert (vectors.names, len(vectors), vectors.part) == (NAMES, 3, "")
    merged = vectors.merge(C)
    expected = by_hand(pretrained, finetuned, C)
    assert_same({key: merged[key] for key in expected}, expected)
    one_by_one = dict(vectors.tensors(C))
    assert list(one_by_one) == list(merged) == list(vectors.described)
    assert_same(one_by_one, merged, ulps=0)
    assert {k: (t.shape, t.dtype) for k, t in merged.items()} == dict(vectors.described)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_merges_have_the_bits_of_task_vectors_in_memory(dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    for state in (pretrained, *finetuned.values()):  # larger than what is computed at a time
        state["large"] = torch.randn(700, 1001).to(dtype)
    in_memory = TaskVectors.from_state_dicts(pretrained, finetuned)
    streamed = StreamedVectors.from_state_dicts(pretrained, finetuned)
    for c in np.random.default_rng(0).uniform(-0.3, 1.2, (5, 3)):
        expected = in_memory.merge(c)
        for name, tensor in streamed.tensors(c):
            assert torch.equal(tensor, expected[name]), name


def test_zero_is_the_pretrained_model_and_a_unit_vector_a_finetuned_one():
    pretrained, finetuned = make_models(dtype=torch.float16)
    vectors = StreamedVectors.from_state_dicts(pretrained, finetuned)
    assert_same(vectors.merge([0, 0, 0]), pretrained, ulps=0)
    expected = {k: t if t.is_floating_point() else pretrained[k] for k, t in finetuned["two"].items()}
    assert_same(vectors.merge([0, 1, 0]), expected, ulps=0)


def test_only_the_models_with_a_coefficient_are_read(tmp_path):
    pretrained, finetuned = make_models()
    models = {}
    for name, model in finetuned.items():
        save_file(model, tmp_path / f"{name}.safetensors")
        models[name] = OnDisk(tmp_path / f"{name}.safetensors")
    vectors = StreamedVectors.from_state_dicts(pretrained, models)
    assert not any(model.reads for model in models.values()), "opening reads no tensor"
    vectors.merge([0, 0.5, 0])
    n_floats = sum(tensor.is_floating_point() for tensor in pretrained.values())
    assert [len(model.reads) for model in models.values()] == [0, n_floats, 0]


@pytest.mark.parametrize("module_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merging_into_a_module_equals_loading_the_merged_state_dict(store, dtype, module_dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    vectors = streamed(store, pretrained, finetuned)
    module, reference = Net().to(module_dtype), Net().to(module_dtype)
    for c in (C, [0, 0, 0], [1, 0.25, 0]):
        vectors.merge_into(module, c)
        reference.load_state_dict(vectors.merge(c))
        assert_same(module.state_dict(), reference.state_dict(), ulps=0)


def test_a_second_merge_writes_what_may_differ_and_everything_after_the_module_was_cast_or_loaded():
    pretrained, finetuned = make_models(change_head=False)
    adapters = {name: lora(seed)[0] for seed, name in enumerate(NAMES)}
    for models, unmerged in ((finetuned, "head.bias"), (adapters, "tower.1.bias")):
        vectors = StreamedVectors.from_state_dicts(pretrained, models)
        vectors.differing()  # from now on it knows which tensors no model changed
        module = Net()
        vectors.merge_into(module, [0, 0, 0])
        wrong = torch.full_like(module.state_dict()[unmerged], 7)
        module.state_dict()[unmerged].copy_(wrong)
        vectors.merge_into(module, C)
        assert torch.equal(module.state_dict()[unmerged], wrong), "written though it never changes"
        expected = vectors.merge(C)
        for change in (
            lambda: vectors.release(module),  # noqa: B023
            lambda: module.half().float(),  # noqa: B023
            lambda: setattr(module.tower[1], "bias", nn.Parameter(torch.zeros(7))),  # noqa: B023
            lambda: vectors.load_into(module, finetuned["two"]),  # noqa: B023
        ):
            change()
            vectors.merge_into(module, C)
            assert_same(module.state_dict(), expected, ulps=0)


def test_loading_any_model_rounds_as_merges_do():
    pretrained, finetuned = make_models(dtype=torch.float16)
    vectors = StreamedVectors.from_state_dicts(pretrained, finetuned, part="tower.")
    dense = TaskVectors.from_state_dicts(pretrained, finetuned, part="tower.")
    other = {key: tensor.double() * 1.01 for key, tensor in finetuned["one"].items()}
    one, two = Net(), Net()
    for either, module in ((vectors, one), (dense, two)):
        either.merge_into(module, C)
        either.load_into(module, other)
    assert_same(one.state_dict(), two.state_dict(), ulps=0)


def test_a_part_is_merged_and_integer_tensors_are_kept(store):
    pretrained, finetuned = make_models()
    vectors = streamed(store, pretrained, finetuned, part="tower.")
    expected = by_hand(pretrained, finetuned, C) | {k: t for k, t in pretrained.items() if not k.startswith("tower.")}
    merged = vectors.merge(C)
    assert_same({key: merged[key] for key in expected}, expected)
    assert vectors.n_parameters == 5 * 7 + 7 + 4 * 7 + 7 * 3
    assert merged["tower.1.num_batches_tracked"] == pretrained["tower.1.num_batches_tracked"]


@pytest.mark.parametrize("part", ["", "tower."])
def test_what_task_vectors_in_memory_say_of_themselves(store, part):
    pretrained, finetuned = make_models(change_head=False)
    finetuned["same"] = pretrained
    vectors = streamed(store, pretrained, finetuned, part)
    dense = TaskVectors.from_state_dicts(pretrained, finetuned, part=part)
    np.testing.assert_allclose(vectors.l1_ratios(), dense.l1_ratios(), rtol=1e-5)
    np.testing.assert_allclose(vectors.l2_ratios(), dense.l2_ratios(), rtol=1e-5)
    np.testing.assert_allclose(vectors.cosines(), dense.cosines(), atol=1e-6)
    assert vectors.differing() == dense.differing()
    assert vectors.n_parameters == dense.n_parameters
    assert sorted(vectors.layers) == sorted(dense.layers)
    assert vectors.to("cpu") is vectors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_adapters_beside_whole_models(dtype):
    pretrained, finetuned = make_models(2, dtype=dtype)
    low_rank, dense = lora(dtype=torch.float32 if dtype == torch.float64 else dtype)
    vectors = StreamedVectors.from_state_dicts(pretrained, {**finetuned, "lora": low_rank})
    whole = {k: t.double() + dense[k] if k in dense else t for k, t in pretrained.items()}
    expected = by_hand(pretrained, {**finetuned, "lora": whole}, C)
    assert_same(vectors.merge(C), expected, ulps=4)
    rows = np.stack(
        [
            np.concatenate([(model[k].double() - t.double()).flatten() for k, t in pretrained.items()])
            for model in (*finetuned.values(), whole)
        ]
    )[:, [t.is_floating_point() for t in pretrained.values() for _ in range(t.numel())]]
    base = np.concatenate([t.double().flatten() for t in pretrained.values() if t.is_floating_point()])
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(vectors.l1_ratios(), abs(rows).sum(1) / abs(base).sum(), rtol=1e-4)
    np.testing.assert_allclose(vectors.l2_ratios(), norms / np.linalg.norm(base), rtol=1e-4)
    np.testing.assert_allclose(vectors.cosines(), rows @ rows.T / np.outer(norms, norms), atol=1e-5)
    assert vectors.differing()["lora"] == 2


def test_an_adapters_transposed_and_convolutional_factors_and_whole_tensors():
    torch.manual_seed(0)
    base = {"conv1d": torch.randn(5, 7), "conv2d": torch.randn(4, 3, 2, 2), "head": torch.randn(3)}
    A1, B1, A2, B2 = torch.randn(2, 5), torch.randn(7, 2), torch.randn(2, 12), torch.randn(4, 2)
    deltas = {"conv1d": (A1, B1, 3.0, True), "conv2d": (A2, B2, 0.5, False)}
    vectors = StreamedVectors.from_state_dicts(base, {"one": adapter(deltas, {"head": torch.ones(3)})})
    expected = {
        "conv1d": base["conv1d"] + 0.4 * 3.0 * (B1 @ A1).T,
        "conv2d": base["conv2d"] + 0.4 * 0.5 * (B2 @ A2).reshape(4, 3, 2, 2),
        "head": base["head"] + 0.4 * (1 - base["head"]),
    }
    assert_same(vectors.merge([0.4]), expected, ulps=16)
    assert vectors.layers == ("conv1d", "conv2d", "head")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (adapter(), r"The adapter 'one' changes no tensor"),
        (adapter(full={"x": torch.ones(1)}), r"The adapter 'one' has the tensor 'x', which the pre-trained"),
        (
            adapter({"w": (torch.ones(2, 3), torch.ones(5, 2), 1.0, False)}),
            r"'w' has shape \(5, 3\) in the adapter 'one' but \(4, 3\)",
        ),
        (
            adapter({"w": (torch.ones(2, 3), torch.full((4, 2), torch.nan), 1.0, False)}),
            "'w' of the model 'one' holds NaN",
        ),
        (adapter({"i": (torch.ones(2, 3), torch.ones(4, 2), 1.0, False)}), "quantized models can't be merged"),
    ],
)
def test_adapters_that_do_not_fit(made, says):
    base = {"w": torch.zeros(4, 3), "i": torch.zeros(4, 3, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=says):
        StreamedVectors.from_state_dicts(base, {"one": made})


def test_models_that_do_not_fit_are_refused_before_a_tensor_is_read():
    pretrained, finetuned = make_models()
    for damage, says in (
        (lambda m: m.pop("scale"), "The model 'two' lacks the tensor 'scale'"),
        (lambda m: m.update(scale=torch.zeros(2)), r"'scale' has shape \(2,\) in the model 'two' but \(\)"),
        (lambda m: m.update(scale=torch.tensor(1)), "'scale' is int64 in the model 'two'"),
    ):
        broken = dict(finetuned["two"])
        damage(broken)
        with pytest.raises(CheckpointError, match=says):
            StreamedVectors.from_state_dicts(pretrained, finetuned | {"two": broken})
    with pytest.raises(CheckpointError, match="no fine-tuned model"):
        StreamedVectors.from_state_dicts(pretrained, {})
    with pytest.raises(CheckpointError, match=r"starts with 'visual\.'"):
        StreamedVectors.from_state_dicts(pretrained, finetuned, part="visual.")
    vectors = StreamedVectors.from_state_dicts(pretrained, finetuned)
    with pytest.raises(CheckpointError, match="The module lacks the tensor 'scale'"):
        vectors.merge_into(nn.Linear(2, 2), C)
    with pytest.raises(PointError, match=r"need \(3,\)"):
        vectors.tensors([1])
    with pytest.raises(MapMergeError, match="on disk"):
        in_memory(vectors)
    dense = TaskVectors.from_state_dicts(pretrained, finetuned)
    assert in_memory(dense) is dense


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("broken", ["the pre-trained model", "the model 'two'"])
def test_numbers_that_are_not_finite_never_reach_an_evaluation_or_a_file(tmp_path, value, broken):
    pretrained, finetuned = make_models(dtype=torch.float16)
    model = pretrained if broken == "the pre-trained model" else finetuned["two"]
    model["tower.2.weight"][1, 2] = value
    vectors = StreamedVectors.from_state_dicts(pretrained, finetuned)
    says = f"'tower.2.weight' of {broken} holds {'NaN' if value != value else 'infinity'}"
    module = Net()
    for use in (
        lambda: vectors.merge(C),
        lambda: vectors.merge_into(module, C),
        lambda: list(vectors.tensors(C)),
        lambda: save_merged(tmp_path / "new" / "m.safetensors", vectors, C),
        vectors.l2_ratios,
        vectors.differing,
    ):
        with pytest.raises(CheckpointError, match=says):
            use()
    assert not list(tmp_path.iterdir())


def test_results_too_large_for_their_dtype():
    pretrained, finetuned = make_models(dtype=torch.float16)
    vectors = StreamedVectors.from_state_dicts(pretrained, finetuned)
    for merge in (vectors.merge, lambda c: vectors.merge_into(Net(), c)):
        with pytest.raises(PointError, match=r"too large for its dtype, float16: choose smaller"):
            merge([1e9, 0, 0])


def test_other_names_for_the_same_tensors_are_read_when_asked_for(tmp_path):
    pretrained, finetuned = make_models()
    renamed = {f"module.{name}": tensor for name, tensor in finetuned["one"].items()}
    save_file(renamed, tmp_path / "one.safetensors")
    lazy = OnDisk(tmp_path / "one.safetensors")
    adapted = adapt_lazily(lazy, pretrained, "tower.")
    assert not lazy.reads
    vectors = StreamedVectors.from_state_dicts(pretrained, {"one": adapted}, part="tower.")
    assert lazy.reads == []
    expected = StreamedVectors.from_state_dicts(pretrained, {"one": finetuned["one"]}, part="tower.")
    assert_same(vectors.merge([0.3]), expected.merge([0.3]), ulps=0)
    assert adapt_lazily(pretrained, pretrained, "") is pretrained


@pytest.mark.parametrize("kind", [TaskVectors, StreamedVectors])
def test_a_language_model_whose_output_layer_is_tied_to_its_embeddings(tmp_path, kind):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    states = {}
    for seed, name in enumerate(("pre", "one")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        states[name] = load_file(tmp_path / name / "model.safetensors")
    assert "lm_head.weight" not in states["pre"]
    vectors = kind.from_state_dicts(states["pre"], {"one": states["one"]})
    model = LlamaForCausalLM.from_pretrained(tmp_path / "pre")
    for c in ([0.0], [0.25]):
        vectors.merge_into(model, c)
    expected = by_hand(states["pre"], {"one": states["one"]}, [0.25])
    state = model.state_dict()
    assert_same({key: state[key] for key in expected}, expected)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    vectors.load_into(model, states["one"])
    tokens = torch.arange(5)[None]
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "one")
    torch.testing.assert_close(model(tokens).logits, reference(tokens).logits)
    untied = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"The module has the tensor 'lm_head\.weight'"):
        vectors.merge_into(untied, [0.5])


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """A language model, a fine-tuned one and a LoRA adapter of it by PEFT, and their weights as dicts."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llamas")
    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    for seed, name in enumerate(("pre", "whole")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(folder / "pre"),
        LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder / "lora")
    merged = {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}
    states = {name: load_file(folder / name / "model.safetensors") for name in ("pre", "whole")}
    return folder, states | {"lora": merged}


def test_adapters_are_opened_beside_whole_models_and_merge_as_peft_merges_them(llamas):
    folder, states = llamas
    vectors = open_vectors(folder / "pre", {name: folder / name for name in ("whole", "lora")})
    assert isinstance(vectors, StreamedVectors)
    finetuned = {name: states[name] for name in ("whole", "lora")}
    expected = by_hand(states["pre"], finetuned, [0.3, 0.7])
    merged = vectors.merge([0.3, 0.7])
    assert_same({key: merged[key] for key in expected}, expected, ulps=4)
    alone = open_vectors(folder / "pre", {"lora": folder / "lora"}).merge([1])
    assert_same({key: alone[key] for key in expected}, {key: states["lora"][key] for key in expected}, ulps=4)
    assert vectors.differing()["lora"] == 4


def test_models_are_opened_in_memory_unless_they_fill_half_of_it(llamas, monkeypatch):
    folder, states = llamas
    paths = {"whole": folder / "whole"}
    kinds = {}
    for on_disk in (None, True, False):
        kinds[on_disk] = open_vectors(folder / "pre", paths, on_disk=on_disk)
    assert [type(vectors) for vectors in kinds.values()] == [TaskVectors, StreamedVectors, TaskVectors]
    n_bytes = 4 * 2 * sum(tensor.numel() for tensor in states["pre"].values())
    for available, kind in ((2 * n_bytes, TaskVectors), (2 * n_bytes - 2, StreamedVectors)):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))  # noqa: B023
        vectors = open_vectors(folder / "pre", paths)
        assert type(vectors) is kind
        assert_same(dict(vectors.tensors([0.4])), kinds[False].merge([0.4]))
    # Task vectors in bfloat16 need two bytes a number, θ_pre four.
    for available, kind in ((3 * n_bytes // 2, TaskVectors), (3 * n_bytes // 2 - 2, StreamedVectors)):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))  # noqa: B023
        assert type(open_vectors(folder / "pre", paths, rounded=True)) is kind
    # A machine with room for them, and an accelerator without.
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10 * n_bytes))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (n_bytes, n_bytes))
    assert isinstance(open_vectors(folder / "pre", paths), TaskVectors)
    assert isinstance(open_vectors(folder / "pre", paths, device="cuda"), StreamedVectors)


@pytest.mark.parametrize("kind", [TaskVectors, StreamedVectors])
def test_complex_numbers_are_merged_by_nobody_and_left_alone_by_all(kind):
    pretrained = {"w": torch.zeros(2), "turns": torch.ones(2, dtype=torch.complex64)}
    same = {"w": torch.ones(2), "turns": pretrained["turns"].clone()}
    merged = kind.from_state_dicts(pretrained, {"A": same}).merge([0.5])
    assert torch.equal(merged["turns"], pretrained["turns"])
    other = {"w": torch.ones(2), "turns": 2 * pretrained["turns"]}
    with pytest.raises(CheckpointError, match="'turns' of the model 'A' holds complex numbers that differ"):
        kind.from_state_dicts(pretrained, {"A": other})


PEAK = """
import re, sys
from pathlib import Path
from mapmerge_core.weights.io.checkpoints import open_state_dict
from mapmerge_core.weights.export.writing import save_merged
from mapmerge_core.weights.vectors.streamed import StreamedVectors
folder = Path(sys.argv[1])
# That of getrusage would begin with the peak of the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
models = {f"m{n}": open_state_dict(folder / f"m{n}.safetensors") for n in range(4)}
vectors = StreamedVectors.from_state_dicts(open_state_dict(folder / "pre.safetensors"), models)
vectors.l2_ratios()
save_merged(folder / "merged.safetensors", vectors, [0.1, 0.2, 0.3, 0.4])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_exporting_a_merge_of_large_models_needs_memory_for_a_few_tensors(tmp_path):
    for seed, name in enumerate(("pre", "m0", "m1", "m2", "m3")):  # 96 MiB each
        noise = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(seed)).bfloat16()
        model = {f"layers.{i}.weight": noise.roll(i, 1) for i in range(48)}
        save_file(model, tmp_path / f"{name}.safetensors")
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert 2 < int(ran.stdout) < 64, "MiB above what importing takes"
    merged, base = load_file(tmp_path / "merged.safetensors"), load_file(tmp_path / "pre.safetensors")
    models = [load_file(tmp_path / f"m{n}.safetensors") for n in range(4)]
    for key in ("layers.0.weight", "layers.47.weight"):
        total = base[key].double()
        for c, model in zip([0.1, 0.2, 0.3, 0.4], models, strict=True):
            total += c * (model[key].double() - base[key].double())
        torch.testing.assert_close(merged[key], total.bfloat16(), rtol=2**-7, atol=1e-6)
    del merged, base, models
    for path in tmp_path.iterdir():  # pytest would keep them for a while
        path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_into_a_module_leaves_no_file_mapped_and_sees_a_new_one(tmp_path, dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("pre", *finetuned)}
    for name, path in paths.items():
        save_file({"pre": pretrained, **finetuned}[name], path)
    vectors = open_vectors(paths["pre"], {name: paths[name] for name in finetuned}, on_disk=True)
    module, reference = Net(), Net()
    vectors.merge_into(module, C)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    reference.load_state_dict(vectors.merge(C))
    assert_same(module.state_dict(), reference.state_dict(), ulps=0)
    paths["two"].unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors can't be read any more"):
        vectors.merge_into(module, C)
    vectors.merge_into(module, [0.5, 0, 0.5])  # it isn't needed
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_numbers_that_only_the_module_cannot_hold_become_infinity():
    least = torch.finfo(torch.float32).min
    pretrained = {"weight": torch.tensor([[least, 1.0]])}
    vectors = StreamedVectors.from_state_dicts(pretrained, {"one": {"weight": torch.tensor([[least, 2.0]])}})
    module = nn.Linear(2, 1, bias=False).bfloat16()
    vectors.merge_into(module, [0.5])
    assert module.weight.tolist() == [[-np.inf, 1.5]]
    with pytest.raises(PointError, match="'weight' holds numbers too large for its dtype, float32"):
        vectors.merge_into(module, [3e39])


def test_only_sums_are_computed_of_task_vectors_in_bfloat16(llamas):
    folder, _ = llamas
    vectors = open_vectors(folder / "pre", {"whole": folder / "whole"}, rounded=True)
    with pytest.raises(MapMergeError, match=r"held in bfloat16.*hold them in float32"):
        in_memory(vectors)
