from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mapmerge_core.errors import CheckpointError, PointError
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

C = [0.3, -0.2, 0.9]
NAMES = ("one", "two", "three")


class Net(nn.Module):
    """Parameters of all kinds: matrices, BatchNorm with its buffers, a frozen head, a 0-dimensional scale."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3, bias=False))
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(self.tower(x))


def make_models(n: int = 3, dtype: torch.dtype = torch.float32, *, change_head: bool = True):
    torch.manual_seed(1)
    pretrained = Net().state_dict()
    finetuned = {}
    for i, name in enumerate(NAMES[:n]):
        finetuned[name] = {
            key: tensor + 0.1 * torch.randn(tensor.shape)
            if tensor.is_floating_point() and (change_head or not key.startswith("head"))
            else tensor + i
            if not tensor.is_floating_point()
            else tensor.clone()
            for key, tensor in pretrained.items()
        }
    cast = lambda sd: {k: t.to(dtype) if t.is_floating_point() else t for k, t in sd.items()}  # noqa: E731
    return cast(pretrained), {name: cast(sd) for name, sd in finetuned.items()}


def by_hand(pretrained, finetuned, c):
    """θ_pre + Σ c_n (θ_n − θ_pre), key by key in float64."""
    merged = {}
    for key, base in pretrained.items():
        if base.is_floating_point():
            total = base.double()
            for coefficient, model in zip(c, finetuned.values(), strict=True):
                total = total + coefficient * (model[key].double() - base.double())
            merged[key] = total.to(base.dtype)
        else:
            merged[key] = base
    return merged


def assert_same(found, expected, ulps=2):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        eps = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0
        torch.testing.assert_close(found[key], tensor, rtol=ulps * eps, atol=ulps * eps, msg=key)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_merges_equal_the_sum_by_hand(dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    assert vectors.names == NAMES
    assert len(vectors) == 3
    assert_same(vectors.merge(C), by_hand(pretrained, finetuned, C))
    rows = np.array([C, [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]])
    for row in rows:
        assert_same(vectors.merge(row), by_hand(pretrained, finetuned, row))


def test_zero_is_the_pretrained_model_and_a_unit_vector_a_finetuned_one():
    pretrained, finetuned = make_models(dtype=torch.float16)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    assert_same(vectors.merge([0, 0, 0]), pretrained, ulps=0)
    expected = {k: t if t.is_floating_point() else pretrained[k] for k, t in finetuned["two"].items()}
    assert_same(vectors.merge([0, 1, 0]), expected, ulps=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_task_vectors_in_bfloat16_take_half_the_memory_and_merge_to_their_sum(dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned, rounded=True)
    exact = TaskVectors.from_state_dicts(pretrained, finetuned)
    assert (vectors.is_rounded, exact.is_rounded) == (True, False)
    assert vectors.layers == exact.layers
    assert all(group.V.dtype == torch.bfloat16 for group in vectors.groups)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = {
        name: {
            key: t.to(wide) + (model[key].to(wide) - t.to(wide)).bfloat16() if t.is_floating_point() else t
            for key, t in pretrained.items()
        }
        for name, model in finetuned.items()
    }
    merged = vectors.merge(C)
    assert_same(merged, by_hand(pretrained, rounded, C), ulps=4)
    exactly = by_hand(pretrained, finetuned, C)
    assert any(not torch.equal(merged[key], exactly[key]) for key in merged) or dtype == torch.bfloat16
    assert_same(dict(vectors.tensors(C)), merged, ulps=0)
    assert_same(vectors.merge([0, 0, 0]), pretrained, ulps=0)
    np.testing.assert_allclose(vectors.l1_ratios(), exact.l1_ratios(), rtol=2**-8)
    np.testing.assert_allclose(vectors.l2_ratios(), exact.l2_ratios(), rtol=2**-8)
    np.testing.assert_allclose(vectors.cosines(), exact.cosines(), atol=0.01)


def test_task_vectors_in_bfloat16_share_no_memory_with_the_callers_models():
    pretrained, finetuned = make_models()
    pretrained["tied"] = pretrained["head.weight"]
    finetuned = {name: {**model, "tied": model["head.weight"]} for name, model in finetuned.items()}
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned, rounded=True)
    before = {key: tensor.clone() for key, tensor in vectors.merge(C).items()}
    assert "tied" not in vectors.layers
    for tensor in pretrained.values():
        tensor.zero_()
    assert_same(vectors.merge(C), before, ulps=0)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("module_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_merging_into_a_module_equals_loading_the_merged_state_dict(dtype, module_dtype, rounded):
    pretrained, finetuned = make_models(dtype=dtype)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned, rounded=rounded)
    module, reference = Net().to(module_dtype), Net().to(module_dtype)
    for c in (C, [0, 0, 0], [1, 0.25, 0]):
        vectors.merge_into(module, c)
        reference.load_state_dict(vectors.merge(c))
        assert_same(module.state_dict(), reference.state_dict(), ulps=0)


def test_a_second_merge_moves_no_parameter_and_allocates_no_model():
    torch.manual_seed(0)
    pretrained = {"0.weight": torch.randn(1000, 1000), "1.weight": torch.randn(1000, 1000)}
    module = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 1000, bias=False))
    finetuned = {name: {key: t + torch.randn(t.shape) for key, t in pretrained.items()} for name in NAMES}
    vectors = TaskVectors.from_state_dicts({k: t.half() for k, t in pretrained.items()}, finetuned)
    vectors.merge_into(module, C)
    places = [parameter.data_ptr() for parameter in module.parameters()]
    assert len({parameter.untyped_storage().data_ptr() for parameter in module.parameters()}) == 1
    with torch.profiler.profile(profile_memory=True) as profile:
        vectors.merge_into(module, [1, 0, 0.5])
    assert [parameter.data_ptr() for parameter in module.parameters()] == places
    largest = max((event.self_cpu_memory_usage for event in profile.events()), default=0)
    assert largest < 1_000_000  # bytes; the model has 8,000,000
    expected = by_hand({k: t.half() for k, t in pretrained.items()}, finetuned, [1, 0, 0.5])
    torch.testing.assert_close(module[1].weight.data, expected["1.weight"].float(), rtol=1e-3, atol=1e-3)


def test_a_module_is_found_again_after_it_was_cast_moved_or_given_new_parameters():
    pretrained, finetuned = make_models()
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    module = Net()
    vectors.merge_into(module, [0, 0, 0])
    for change in (
        module.half,
        module.float,
        lambda: setattr(module.tower[0], "weight", nn.Parameter(torch.zeros(7, 5))),
        lambda: module.load_state_dict(Net().state_dict(), assign=True),
    ):
        change()
        vectors.merge_into(module, C)
        reference = Net().to(module.tower[0].weight.dtype)
        reference.load_state_dict(vectors.merge(C))
        assert_same(module.state_dict(), reference.state_dict(), ulps=0)
    module.eval()
    assert torch.isfinite(module(torch.ones(2, 5))).all()


def test_two_modules_and_a_module_that_is_thrown_away():
    vectors = TaskVectors.from_state_dicts(*make_models())
    first, second = Net(), Net()
    vectors.merge_into(first, [0, 0, 0])
    before = {key: tensor.clone() for key, tensor in first.state_dict().items()}
    vectors.merge_into(second, C)
    assert_same(first.state_dict(), before, ulps=0)
    gone = weakref.ref(second)
    del second
    gc.collect()
    assert gone() is None, "task vectors keep models alive"


def test_the_callers_state_dicts_are_not_shared():
    module = Net()
    _, finetuned = make_models()
    pretrained = module.state_dict()
    kept = {key: tensor.clone() for key, tensor in pretrained.items()}
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned, part="tower.")
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    assert_same(vectors.merge([0, 0, 0]), kept, ulps=0)


def test_a_part_is_merged_and_the_rest_is_kept():
    pretrained, finetuned = make_models()
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned, part="tower.")
    towers = {n: {k: t for k, t in sd.items() if k.startswith("tower.")} for n, sd in finetuned.items()}
    from_towers = TaskVectors.from_state_dicts(pretrained, towers, part="tower.")
    expected = by_hand(pretrained, finetuned, C) | {k: t for k, t in pretrained.items() if not k.startswith("tower.")}
    expected = {key: expected[key] for key in pretrained}
    for either in (vectors, from_towers):
        assert_same(either.merge(C), expected)
        assert either.n_parameters == 5 * 7 + 7 + 4 * 7 + 7 * 3


def test_integer_buffers_keep_the_pretrained_values():
    pretrained, finetuned = make_models()
    key = "tower.1.num_batches_tracked"
    assert finetuned["three"][key] != pretrained[key]
    assert TaskVectors.from_state_dicts(pretrained, finetuned).merge(C)[key] == pretrained[key]


def test_non_contiguous_and_mixed_dtypes():
    pretrained, finetuned = make_models()
    expected = by_hand(pretrained, finetuned, C)
    key = "tower.0.weight"
    pretrained[key] = pretrained[key].t().contiguous().t()
    finetuned["one"][key] = finetuned["one"][key].t().contiguous().t()
    finetuned["two"] = {k: t.double() if t.is_floating_point() else t for k, t in finetuned["two"].items()}
    pretrained["scale"], expected["scale"] = pretrained["scale"].double(), expected["scale"].double()
    merged = TaskVectors.from_state_dicts(pretrained, finetuned).merge(C)
    assert_same({k: t.contiguous() for k, t in merged.items()} | {"scale": merged["scale"].float()},
                expected | {"scale": expected["scale"].float()})  # fmt: skip


def test_tied_tensors_stay_tied_and_count_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.out.weight = self.embed.weight

    torch.manual_seed(0)
    models = [Tied().state_dict() for _ in range(3)]
    vectors = TaskVectors.from_state_dicts(models[0], {"one": models[1], "two": models[2]})
    expected = by_hand(models[0], {"one": models[1], "two": models[2]}, [0.5, 0.2])
    merged = vectors.merge([0.5, 0.2])
    assert_same(merged, expected)
    assert merged["embed.weight"].data_ptr() == merged["out.weight"].data_ptr()
    assert vectors.n_parameters == 36
    module = Tied()
    for c in ([0, 0], [0.5, 0.2]):
        vectors.merge_into(module, c)
    assert module.embed.weight is module.out.weight
    assert_same(module.state_dict(), expected)
    # The same from safetensors files, where tied tensors are two copies.
    untied = [{key: tensor.clone() for key, tensor in model.items()} for model in models]
    TaskVectors.from_state_dicts(untied[0], {"one": untied[1], "two": untied[2]}).merge_into(module, [0.5, 0.2])
    assert_same(module.state_dict(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_layers_merge_with_coefficients_of_their_own(dtype):
    pretrained, finetuned = make_models(dtype=dtype, change_head=False)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    floats = [key for key, tensor in pretrained.items() if tensor.is_floating_point()]
    assert sorted(vectors.layers) == sorted(key for key in floats if not key.startswith("head"))
    coefficients = np.random.default_rng(0).uniform(-1, 1, (len(vectors.layers), 3))
    rows = dict(zip(vectors.layers, coefficients, strict=True))
    expected = {key: by_hand({key: pretrained[key]}, finetuned, rows.get(key, C))[key] for key in pretrained}
    assert_same(vectors.merge_layers(coefficients), expected)
    everywhere = vectors.merge_layers(np.tile(C, (len(vectors.layers), 1)))
    assert_same(everywhere, by_hand(pretrained, finetuned, C))


def test_tied_tensors_are_one_layer():
    torch.manual_seed(0)
    models = []
    for _ in range(2):
        tensor = torch.randn(3, 5)
        models.append({"embed": tensor, "norm": torch.randn(7), "out": tensor})
    vectors = TaskVectors.from_state_dicts(models[0], {"one": models[1]})
    assert vectors.layers == ("embed", "norm")
    merged = vectors.merge_layers([[0.25], [2]])
    expected = by_hand(models[0], {"one": models[1]}, [0.25]) | {"norm": 2 * models[1]["norm"] - models[0]["norm"]}
    assert_same(merged, expected, ulps=8)
    assert merged["out"].data_ptr() == merged["embed"].data_ptr()


@pytest.mark.parametrize(
    ("shape", "says"),
    [((9, 3), r"shape \(9, 3\).*need \(10, 3\)"), ((11, 2), r"need \(10, 3\)"), ((3,), r"need \(10, 3\)")],
)
def test_wrong_coefficients_of_layers(shape, says):
    vectors = TaskVectors.from_state_dicts(*make_models())
    with pytest.raises(PointError, match=says):
        vectors.merge_layers(np.zeros(shape))
    coefficients = np.zeros((10, 3))
    coefficients[4, 1] = np.nan
    with pytest.raises(PointError, match="NaN"):
        vectors.merge_layers(coefficients)


@pytest.mark.parametrize("module_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loading_any_model_and_merging_again(dtype, module_dtype):
    pretrained, finetuned = make_models(dtype=dtype, change_head=False)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    other = {key: tensor.double() for key, tensor in make_models(1)[1]["one"].items()}  # another head, too
    module, reference = Net().to(module_dtype), Net().to(module_dtype)
    for before in (None, C):
        if before:
            vectors.merge_into(module, before)
        vectors.load_into(module, other)
        reference.load_state_dict({key: tensor.to(pretrained[key].dtype) for key, tensor in other.items()})
        assert_same(module.state_dict(), reference.state_dict(), ulps=0)
        vectors.merge_into(module, C)
        reference.load_state_dict(vectors.merge(C))
        assert_same(module.state_dict(), reference.state_dict(), ulps=0)


def test_loading_a_part_leaves_the_rest_and_names_what_does_not_fit():
    pretrained, finetuned = make_models()
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned, part="tower.")
    module = Net()
    vectors.merge_into(module, C)
    vectors.load_into(module, finetuned["two"])
    expected = {key: (finetuned["two"] if key.startswith("tower.") else pretrained)[key] for key in pretrained}
    assert_same(module.state_dict(), expected, ulps=0)
    tower = {key: tensor for key, tensor in finetuned["one"].items() if key.startswith("tower.")}
    vectors.load_into(module, tower)
    assert_same(module.state_dict(), expected | tower, ulps=0)
    with pytest.raises(CheckpointError, match=r"The model has the tensor 'tower\.x'"):
        vectors.load_into(module, tower | {"tower.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'tower.0.bias' has shape \(1,\) in the model but \(7,\)"):
        vectors.load_into(module, tower | {"tower.0.bias": torch.zeros(1)})
    del tower["tower.0.bias"]
    with pytest.raises(CheckpointError, match=r"The model lacks the tensor 'tower\.0\.bias'"):
        vectors.load_into(module, tower)
    vectors.merge_into(module, C)
    assert_same(module.state_dict(), vectors.merge(C), ulps=0)
    with pytest.raises(CheckpointError, match="The module lacks the tensor 'scale'"):
        vectors.load_into(nn.Linear(2, 2), finetuned["one"])


def test_norms_cosines_and_counts_against_numpy():
    pretrained, finetuned = make_models(change_head=False)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    floats = [key for key, tensor in pretrained.items() if tensor.is_floating_point()]
    flat = {
        n: np.concatenate([(sd[k] - pretrained[k]).double().flatten() for k in floats]) for n, sd in finetuned.items()
    }
    base = np.concatenate([pretrained[k].double().flatten() for k in floats])
    rows = np.stack(list(flat.values()))
    np.testing.assert_allclose(vectors.l1_ratios(), abs(rows).sum(1) / abs(base).sum(), rtol=1e-5)
    np.testing.assert_allclose(vectors.l2_ratios(), np.linalg.norm(rows, axis=1) / np.linalg.norm(base), rtol=1e-5)
    normalised = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors.cosines(), normalised @ normalised.T, atol=1e-6)
    # Of 11 tensors the head's 2 are the same in all, and the integer counter differs in the second and third.
    assert vectors.differing() == {"one": 8, "two": 9, "three": 9}
    assert vectors.n_parameters == len(base)


def test_a_model_that_was_not_changed_has_a_zero_vector():
    pretrained, finetuned = make_models(1)
    vectors = TaskVectors.from_state_dicts(pretrained, {**finetuned, "same": pretrained})
    assert vectors.l1_ratios()[1] == 0
    assert vectors.cosines()[0, 1] == 0
    only_same = TaskVectors.from_state_dicts(pretrained, {"same": pretrained})
    assert_same(only_same.merge([0.7]), pretrained, ulps=0)


@pytest.mark.parametrize("rounded", [False, True])
def test_from_files_equals_from_state_dicts_and_moving_changes_nothing(tmp_path, rounded):
    pretrained, finetuned = make_models(dtype=torch.float16)
    save_file(pretrained, tmp_path / "pre.safetensors")
    paths = {}
    for name, state_dict in finetuned.items():
        paths[name] = tmp_path / f"{name}.pt"
        torch.save(state_dict, paths[name])
    vectors = TaskVectors.from_files(tmp_path / "pre.safetensors", paths, rounded=rounded)
    expected = TaskVectors.from_state_dicts(pretrained, finetuned, rounded=rounded).merge(C)
    merged = vectors.merge(C)
    assert_same({key: merged[key] for key in expected}, expected, ulps=0)
    assert vectors.to("cpu") is vectors


@pytest.mark.parametrize(
    ("c", "says"),
    [
        ([1, 2], r"shape \(2,\).*need \(3,\)"),
        ([[1, 2, 3]], r"shape \(1, 3\)"),
        ([1, 2, np.nan], "NaN"),
        ([1, 2, np.inf], "infinity"),
    ],
)
def test_wrong_coefficients(c, says):
    vectors = TaskVectors.from_state_dicts(*make_models())
    for merge in (vectors.merge, lambda c: vectors.merge_into(Net(), c)):
        with pytest.raises(PointError, match=says):
            merge(c)


def break_missing(_pre, fine):
    del fine["two"]["tower.0.weight"], fine["two"]["tower.0.bias"]


def break_extra(_pre, fine):
    fine["two"]["tower.9.weight"] = torch.zeros(2)


def break_shape(_pre, fine):
    fine["two"]["tower.0.weight"] = torch.zeros(7, 6)


def break_nan(_pre, fine):
    fine["two"]["tower.2.weight"][0, 0] = np.nan


def break_infinity(pre, _fine):
    pre["scale"].fill_(np.inf)


def break_quantized(_pre, fine):
    fine["two"]["tower.0.weight"] = fine["two"]["tower.0.weight"].to(torch.int8)


def break_empty(_pre, fine):
    fine.clear()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_missing, r"The model 'two' lacks the tensor 'tower.0.weight' and 1 more"),
        (break_extra, r"The model 'two' has the tensor 'tower.9.weight', which the pre-trained model lacks"),
        (break_shape, r"'tower.0.weight' has shape \(7, 6\) in the model 'two' but \(7, 5\)"),
        (break_nan, "'tower.2.weight' of the model 'two' holds NaN"),
        (break_infinity, "'scale' of the pre-trained model holds infinity"),
        (break_quantized, "'tower.0.weight' is int8 in the model 'two'"),
        (break_empty, "There is no fine-tuned model"),
    ],
)
def test_models_that_do_not_fit_are_named(damage, says):
    pretrained, finetuned = make_models()
    damage(pretrained, finetuned)
    with pytest.raises(CheckpointError, match=says) as error:
        TaskVectors.from_state_dicts(pretrained, finetuned)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_an_unknown_part_names_the_parts_there_are():
    with pytest.raises(CheckpointError, match=r"starts with 'visual.': its keys start with head., scale, tower."):
        TaskVectors.from_state_dicts(*make_models(), part="visual.")


def test_a_module_of_another_architecture():
    vectors = TaskVectors.from_state_dicts(*make_models())
    with pytest.raises(CheckpointError, match="The module lacks the tensor 'scale'"):
        vectors.merge_into(nn.Linear(2, 2), C)
    module = Net()
    module.head = nn.Linear(3, 5)
    with pytest.raises(CheckpointError, match=r"'head.weight' has shape \(5, 3\) in the module but \(2, 3\)"):
        vectors.merge_into(module, C)
