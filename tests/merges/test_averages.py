from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import CheckpointError, MapMergeError
from mapmerge_core.merges._statistics import Gram
from mapmerge_core.registries import MERGES
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.weights.vectors.test_task_vectors import by_hand, make_models

SHAPE = (4, 6)  # out x in


def prepared_fisher(vectors, fishers, **settings):
    merge = MERGES["fisher"](settings)
    return merge.implementation()(merge, vectors, vectors, fishers)


def fisher_merge(vectors, fishers, x=None, **settings):
    prepared = prepared_fisher(vectors, fishers, **settings)
    return dict(prepared.tensors(prepared.space.default if x is None else x))


def prepared_regmean(vectors, grams, off_diagonal=0.9):
    merge = MERGES["regmean"]({"off_diagonal": off_diagonal})
    return merge.implementation()(merge, vectors, vectors, grams)


def regmean_merge(vectors, grams, off_diagonal=0.9, x=None):
    prepared = prepared_regmean(vectors, grams, off_diagonal)
    return dict(prepared.tensors(prepared.space.default if x is None else x))


def linear_models(n=3, dtype=torch.float32):
    """One weight and one bias of n models, their task vectors and the models' inputs (rows x in)."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    models = {f"m{i}": {"weight": draw(*SHAPE), "bias": draw(4)} for i in range(n)}
    vectors = TaskVectors.from_state_dicts({"weight": draw(*SHAPE), "bias": draw(4)}, models)
    inputs = [(draw(50, 6) @ draw(6, 6)).double().numpy() for _ in range(n)]
    return vectors, models, inputs


def gram_of(X, axis=1):
    return {"weight": Gram(torch.from_numpy(X.T @ X / len(X)).float(), axis)}


def weights_of(models):
    return [model["weight"].double().numpy() for model in models.values()]


def test_fisher_weighs_every_entry():
    pretrained, finetuned = make_models()
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    generator = torch.Generator().manual_seed(0)
    buffers = {"tower.1.running_mean", "tower.1.running_var"}
    fishers = [{key: torch.rand(t.shape, generator=generator) ** 8 for key, t in pretrained.items()} for _ in finetuned]
    for fisher in fishers:
        for name in buffers:
            del fisher[name]
    merged = fisher_merge(vectors, fishers, floor=1e-3)
    average = by_hand(pretrained, finetuned, [1 / 3] * 3)
    for key, tensor in merged.items():
        if key in buffers or not tensor.is_floating_point():
            expected = average[key].numpy()
        else:
            F = [np.maximum(fisher[key].double().numpy(), 1e-3) for fisher in fishers]
            models = [model[key].double().numpy() for model in finetuned.values()]
            expected = sum(f * m for f, m in zip(F, models, strict=True)) / sum(F)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_parameters_that_no_data_depends_on_are_averaged_and_dtypes_kept():
    pretrained, finetuned = make_models(dtype=torch.float16)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    zeros = {key: torch.zeros(tensor.shape) for key, tensor in pretrained.items()}
    merged = fisher_merge(vectors, [zeros, zeros, zeros])
    average = by_hand(pretrained, finetuned, [1 / 3] * 3)
    for key, tensor in merged.items():
        assert tensor.dtype == pretrained[key].dtype
        torch.testing.assert_close(tensor, average[key], rtol=1e-3, atol=1e-6)
    certain = {key: torch.full(tensor.shape, 1e9) for key, tensor in pretrained.items()}
    for key, tensor in fisher_merge(vectors, [zeros, certain, zeros]).items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, finetuned["two"][key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regmean_with_all_of_the_gram_matrix_is_least_squares(dtype):
    vectors, models, inputs = linear_models(dtype=dtype)
    merged = regmean_merge(vectors, [gram_of(X) for X in inputs], off_diagonal=1)
    outputs = [X @ W.T for X, W in zip(inputs, weights_of(models), strict=True)]
    best = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)[0].T
    # The float32 Gram matrices and the ridge stand between the two.
    np.testing.assert_allclose(merged["weight"], best, rtol=0, atol=2e-3)
    assert merged["weight"].dtype == dtype
    error = lambda W: sum(((X @ W.T - Y) ** 2).sum() for X, Y in zip(inputs, outputs, strict=True))  # noqa: E731
    merged_error = error(merged["weight"].double().numpy())
    assert merged_error <= error(best) * (1 + 1e-6)
    assert merged_error < 0.9 * error(sum(weights_of(models)) / 3)
    biases = [model["bias"].double() for model in models.values()]
    torch.testing.assert_close(merged["bias"].double(), sum(biases) / 3, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_regmean_scales_off_diagonals(axis):
    vectors, models, inputs = linear_models()
    if axis == 0:  # X W: the weight's 4 rows meet the inputs
        inputs = [X[:, :4] for X in inputs]
    grams = [gram_of(X, axis) for X in inputs]
    merged = regmean_merge(vectors, grams)["weight"].numpy()
    G = [X.T @ X / len(X) for X in inputs]
    G = [0.9 * g + 0.1 * np.diag(np.diag(g)) for g in G]
    W = [w.T if axis == 1 else w for w in weights_of(models)]
    expected = np.linalg.inv(sum(G)) @ sum(g @ w for g, w in zip(G, W, strict=True))
    np.testing.assert_allclose(merged, expected.T if axis == 1 else expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("off_diagonal", [0.9, 1])
def test_weights_that_no_input_reaches_are_averaged(off_diagonal):
    vectors, models, inputs = linear_models()
    average = sum(weights_of(models)) / 3
    for X in inputs:
        X[:, 2] = 0
    merged = regmean_merge(vectors, [gram_of(X) for X in inputs], off_diagonal)["weight"].numpy()
    np.testing.assert_allclose(merged[:, 2], average[:, 2], atol=1e-5)
    assert np.abs(merged - average).max() > 0.1
    alone = regmean_merge(vectors, [gram_of(X * (i == 1)) for i, X in enumerate(inputs)], off_diagonal)
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(alone["weight"][:, others], models["m1"]["weight"][:, others], atol=1e-3)
    nothing = regmean_merge(vectors, [gram_of(0 * X) for X in inputs], off_diagonal)["weight"]
    np.testing.assert_allclose(nothing, average, atol=1e-6)


def test_few_inputs_do_not_blow_weights_up():
    vectors, models, inputs = linear_models()
    few = [gram_of(X[:1]) for X in inputs]  # three rows for six inputs: three directions are free
    merged = regmean_merge(vectors, few, off_diagonal=1)["weight"].numpy()
    for X, W in zip(inputs, weights_of(models), strict=True):
        np.testing.assert_allclose(merged @ X[0], W @ X[0], atol=2e-3)
    unseen = np.linalg.svd(np.stack([X[0] for X in inputs]))[2][3:]
    # Loose, as the rounding of float32 Gram matrices is a tenth of the ridge.
    np.testing.assert_allclose(merged @ unseen.T, sum(weights_of(models)) / 3 @ unseen.T, atol=0.15)


def test_rounding_that_makes_a_sum_of_gram_matrices_indefinite_is_outweighed():
    """50 rows for 768 inputs of very different size, as deep in a network: float32 can't tell it is >= 0."""
    generator = torch.Generator().manual_seed(0)
    models = {f"m{i}": {"weight": torch.randn(16, 768, generator=generator)} for i in range(2)}
    vectors = TaskVectors.from_state_dicts({"weight": torch.zeros(16, 768)}, models)
    inputs = [torch.randn(50, 768, generator=generator) * torch.logspace(-3, 0, 768) + 1 for _ in models]
    grams = [{"weight": Gram(X.T @ X / 50, 1)} for X in inputs]
    assert torch.linalg.eigvalsh(sum(gram["weight"].matrix.double() for gram in grams))[0] < 0
    merged = regmean_merge(vectors, grams, off_diagonal=1)["weight"]
    for X, model in zip(inputs, models.values(), strict=True):  # 100 rows leave 768 inputs free to fit both
        error, size = (X @ (merged - model["weight"]).T).norm(), (X @ model["weight"].T).norm()
        assert error < 0.01 * size


def test_a_layer_without_gram_matrices_of_every_model_is_averaged():
    vectors, models, inputs = linear_models()
    merged = regmean_merge(vectors, [gram_of(inputs[0]), {}, gram_of(inputs[2])])["weight"]
    np.testing.assert_allclose(merged, sum(weights_of(models)) / 3, atol=1e-6)


@pytest.mark.parametrize("off_diagonal", [0.9, 0.5])
def test_regmean_with_weights_by_hand(off_diagonal):
    vectors, models, inputs = linear_models()
    x = np.array([0.6, 0.1, 0.3])
    found = regmean_merge(vectors, [gram_of(X) for X in inputs], off_diagonal, x=x)
    G = [X.T @ X / len(X) for X in inputs]
    G = [w * (off_diagonal * g + (1 - off_diagonal) * np.diag(np.diag(g))) for w, g in zip(x, G, strict=True)]
    expected = np.linalg.inv(sum(G)) @ sum(g @ w.T for g, w in zip(G, weights_of(models), strict=True))
    np.testing.assert_allclose(found["weight"], expected.T, rtol=0, atol=1e-4)
    biases = [model["bias"].double().numpy() for model in models.values()]
    np.testing.assert_allclose(found["bias"], x @ np.array(biases), atol=1e-6)


def test_fisher_with_weights_by_hand():
    vectors, models, _ = linear_models()
    generator = torch.Generator().manual_seed(1)
    fishers = [{"weight": torch.rand(SHAPE, generator=generator)} for _ in models]
    x = np.array([0.6, 0.1, 0.3])
    found = fisher_merge(vectors, fishers, x=x)
    F = [w * fisher["weight"].double().numpy() for w, fisher in zip(x, fishers, strict=True)]
    expected = sum(f * m for f, m in zip(F, weights_of(models), strict=True)) / sum(F)
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-5, atol=1e-6)
    biases = [model["bias"].double().numpy() for model in models.values()]
    np.testing.assert_allclose(found["bias"], x @ np.array(biases), atol=1e-6)


@pytest.mark.parametrize("average", [fisher_merge, regmean_merge])
def test_a_model_of_weight_one_comes_out_as_it_is(average):
    vectors, models, inputs = linear_models(dtype=torch.float16)
    statistics = [gram_of(X) for X in inputs]
    if average is fisher_merge:
        statistics = [{"weight": torch.rand(SHAPE)} for _ in models]
    for x, model in zip(np.eye(3), models.values(), strict=True):
        found = average(vectors, statistics, x=x)
        assert all(torch.equal(found[name], tensor) for name, tensor in model.items())


def test_regmean_at_equal_weights_is_the_closed_form_without_weights_to_the_last_bit():
    """As it was before weights came: sums of G_n and G_n W_n in float64, one solve."""
    vectors, models, inputs = linear_models()
    grams = [gram_of(X)["weight"].matrix for X in inputs]
    found = regmean_merge(vectors, [{"weight": Gram(G, 1)} for G in grams])["weight"]
    base = vectors.merge(np.zeros(3))["weight"]
    total = weighted = plain = torch.zeros((), dtype=torch.float64)
    for G, model in zip(grams, models.values(), strict=True):
        G = G.double()  # noqa: PLW2901
        G = 0.9 * G + (1 - 0.9) * torch.diag(G.diagonal())  # noqa: PLW2901
        change = (model["weight"] - base).double().movedim(1, 0)
        total, weighted, plain = total + G, weighted + G @ change, plain + change
    ridge = 1e-6 * float(total.diagonal().mean()) / 3 + 1e-30
    factor = torch.linalg.cholesky(total + 3 * ridge * torch.eye(6, dtype=torch.float64))
    change = torch.cholesky_solve(weighted + ridge * plain, factor).movedim(0, 1).float()
    assert torch.equal(found, base + change)


@pytest.mark.parametrize("kind", ["fisher", "regmean"])
def test_statistics_are_read_as_they_were_saved(kind, tmp_path):
    vectors, models, inputs = linear_models()
    merge = MERGES[kind]()
    grams = [gram_of(X) for X in inputs]
    statistics = grams if kind == "regmean" else [{"weight": torch.rand(SHAPE)} for _ in models]
    prepared, file = (
        merge.implementation()(merge, vectors, vectors, statistics),
        tmp_path / "new" / "state.safetensors",
    )
    prepared.save(file)
    again = merge.load(file, vectors, vectors)
    for x in ([0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [1, 1, 1]):
        expected = dict(prepared.tensors(x))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.tensors(x))
    assert [each.name for each in file.parent.iterdir()] == ["state.safetensors"]
    others = TaskVectors.from_state_dicts(
        {"weight": torch.zeros(SHAPE), "bias": torch.zeros(4)}, {"other": models["m0"]}
    )
    with pytest.raises(CheckpointError, match="was prepared from other models: prepare"):
        merge.load(file, others, others)
    with pytest.raises(CheckpointError, match="was prepared by another merge"):
        MERGES["regmean" if kind == "fisher" else "fisher"]().load(file, vectors, vectors)
    with pytest.raises(CheckpointError, match="was prepared with other settings"):
        MERGES[kind]({"seed": 1}).load(file, vectors, vectors)
    with pytest.raises(CheckpointError, match="is gone from"):
        merge.load(tmp_path / "no file", vectors, vectors)


@pytest.mark.parametrize("kind", ["fisher", "regmean"])
@pytest.mark.parametrize("damage", ["shape", "number", "axis", "layer"])
def test_damaged_statistics_are_refused(kind, damage, tmp_path):
    vectors, _, inputs = linear_models()
    merge, file = MERGES[kind](), tmp_path / "state.safetensors"
    statistics = [gram_of(X) if kind == "regmean" else {"weight": torch.rand(SHAPE)} for X in inputs]
    merge.implementation()(merge, vectors, vectors, statistics).save(file)
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    own = "1.weight" if kind == "regmean" else "weight"
    if damage == "shape":
        tensors[f"1.{own}"] = tensors[f"1.{own}"][1:].clone()
    else:
        tensors[{"number": f"3.{own}", "axis": "0.2.weight", "layer": "0.1.text"}[damage]] = tensors.pop(f"0.{own}")
    save_file(tensors, file, header)
    with pytest.raises(CheckpointError, match="is damaged: prepare"):
        merge.load(file, vectors, vectors)


def test_files_of_others_are_refused(tmp_path):
    vectors, _, _ = linear_models()
    file = tmp_path / "state.safetensors"
    for text in (None, "[]", "null", "{}", '{"merge": "fisher"}'):
        save_file({"0.weight": torch.rand(SHAPE)}, file, None if text is None else {"mapmerge": text})
        with pytest.raises(CheckpointError, match="is no file that a merge prepared"):
            MERGES["fisher"]().load(file, vectors, vectors)
    save_file({"0.weight": torch.rand(SHAPE)}, file, {"mapmerge": "no JSON"})
    for content in (file.read_bytes(), file.read_bytes()[:-10], b"\x00" * 20, b""):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be read"):
            MERGES["fisher"]().load(file, vectors, vectors)


def test_what_can_not_be_averaged():
    vectors, _, inputs = linear_models()
    with pytest.raises(MapMergeError, match=r"3 models \(m0, m1, m2\) need statistics each, but those of 2 came"):
        fisher_merge(vectors, [{}, {}])
    with pytest.raises(MapMergeError, match="need statistics each, but those of 1 came"):
        regmean_merge(vectors, [{}])
    grams = [gram_of(X) for X in inputs]
    with pytest.raises(MapMergeError, match=r"Fisher merging can't have floor = 0: give a number above 0"):
        fisher_merge(vectors, [{}, {}, {}], floor=0)
    with pytest.raises(MapMergeError, match=r"off_diagonal = 1\.2: give a number of at least 0 and at most 1"):
        regmean_merge(vectors, grams, off_diagonal=1.2)
    grams[1]["weight"].matrix[0, 0] = torch.nan
    with pytest.raises(MapMergeError, match="hold NaN or infinity"):
        regmean_merge(vectors, grams)
