from __future__ import annotations

import numpy as np
import pytest
import torch

from mapmerge_core.errors import MapMergeError
from mapmerge_core.merges import _sparse as transforms
from mapmerge_core.merges._one_shot import dare, dare_ties, slerp, ties
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from mapmerge_core.merges._sparse import dare_drop
from tests.weights.test_task_vectors import assert_same, by_hand, make_models

# A pre-trained tensor (3 x 4), what three fine-tunings added, and what mergekit 0.1.5 (torch 2.15.0, CPU)
# made of them: recorded, so that tests don't need it with its transformers, accelerate, peft and datasets.
# `test_mergekit_still_gives_the_recorded_figures` makes them again.
PRETRAINED = [0.5, -1.0, 2.0, 0.25, -0.75, 1.5, -2.0, 1.0, 0.0, -0.5, 3.0, -1.25]
CHANGES = {
    "one": [0.9, -0.1, 0.4, -0.7, 0.05, 0.3, -0.6, 0.02, 0.8, -0.2, 0.15, -0.35],
    "two": [-0.4, -0.5, 0.6, 0.1, -0.9, 0.25, 0.7, -0.03, 0.45, 0.2, -0.85, 0.01],
    "three": [0.2, 0.75, -0.3, -0.55, 0.65, -0.95, 0.35, 0.08, -0.12, 0.5, -0.06, 0.42],
}
# "linear" of one, two and three, each weight 1.
MERGEKIT_LINEAR = [
    *(0.7333333, -0.95, 2.2333333, -0.1333333, -0.8166666, 1.3666667),
    *(-1.85, 1.0233334, 0.3766667, -0.3333333, 2.7466667, -1.2233334),
]
# "task_arithmetic", each weight 0.3.
MERGEKIT_TASK_ARITHMETIC = [
    *(0.71, -0.955, 2.21, -0.095, -0.81, 1.38, -1.865, 1.021, 0.339, -0.35, 2.7720001, -1.2260001)
]
# "ties", each weight 1 and density 1/3; then the same with lambda 0.7.
MERGEKIT_TIES = [1.4, -0.25, 2.5999999, -0.375, -1.65, 0.55, -1.3, 1.0, 0.8, -0.5, 2.1500001, -1.25]
MERGEKIT_TIES_07 = [
    *(1.13, -0.475, 2.4199998, -0.1875, -1.38, 0.835, -1.51, 1.0, 0.56, -0.5, 2.4050002, -1.25)
]
# What mergekit kept after torch.manual_seed(3) with density 0.6, in "dare_linear" and in "dare_ties" alike.
# Both with rescale off (it would restore each vector's norm, which isn't DARE) and lambda 1 / 0.6 in its
# place; "dare_ties" with normalize on (the mean of TIES).
MERGEKIT_KEPT = [
    [1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1, 0],
    [1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1],
    [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1],
]
MERGEKIT_DARE_LINEAR = [
    *(1.6666665, -0.7500001, 3.1666667, -1.6666667, -1.0833333, 0.4166666),
    *(-1.4166666, 1.0, 1.1333333, 0.6666666, 3.1500003, -0.5333334),
]
MERGEKIT_DARE_TIES = [
    *(1.4166665, 0.25, 2.8333333, -0.7916666, -2.25, -0.0833333),
    *(-1.4166666, 1.0, 1.3333334, 0.0833333, 3.2500002, -0.8916667),
]
# "slerp" from one to three at t = 0.3 and 0.5; and at 0.3 from one to 1.5 one + 0.001 two (nearly parallel).
MERGEKIT_SLERP = {
    0.3: [
        *(1.2074225, -0.8566195, 2.2233169, -0.4111176, -0.5269865, 1.4449856),
        *(-2.349771, 1.0546262, 0.5303681, -0.4962966, 3.1356182, -1.3891186),
    ],
    0.5: [
        *(1.0698779, -0.6877787, 2.088809, -0.3820992, -0.4075725, 1.1972443),
        *(-2.1652288, 1.0698779, 0.3464366, -0.3566259, 3.1026459, -1.238001),
    ],
}
MERGEKIT_SLERP_NEAR = [
    *(1.6100299, -1.26545, 2.7607801, -0.5173950, -0.8054950, 2.0705249),
    *(-2.9903898, 1.1732910, 0.9201350, -0.8050900, 3.6231451, -1.8403721),
]


def fixed(*names: str) -> TaskVectors:
    pretrained = torch.tensor(PRETRAINED).reshape(3, 4)
    finetuned = {name: {"w": pretrained + torch.tensor(CHANGES[name]).reshape(3, 4)} for name in names}
    return TaskVectors.from_state_dicts({"w": pretrained}, finetuned)


def assert_merged(merged: dict[str, torch.Tensor], expected: list[float]) -> None:
    np.testing.assert_allclose(merged["w"].flatten().numpy(), expected, rtol=0, atol=1e-6)


def test_mergekit_still_gives_the_recorded_figures():
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import PerInputValues, TensorGroup

    models = {"pretrained": torch.tensor(PRETRAINED).reshape(3, 4)}
    for name, change in CHANGES.items():
        models[name] = models["pretrained"] + torch.tensor(change).reshape(3, 4)
    models["near"] = 1.5 * models["one"] + 0.001 * models["two"]

    def run(method, names, base=None, each=None, **parameters):
        group = TensorGroup.from_tensors([models[n] for n in names], ids=names, base_index=base)
        inputs = names[1:] if base is not None else names
        for key, value in (each or {}).items():
            parameters[key] = PerInputValues([(name, value) for name in inputs])
        return {"w": registry.get(method)([group], parameters=parameters)[0]}

    weight, names, tuned = {"weight": 1.0}, ["pretrained", *CHANGES], list(CHANGES)
    assert_merged(run("linear", tuned, each=weight), MERGEKIT_LINEAR)
    assert_merged(run("task_arithmetic", names, 0, {"weight": 0.3}), MERGEKIT_TASK_ARITHMETIC)
    trimmed, kept = weight | {"density": 1 / 3}, weight | {"density": 0.6}
    assert_merged(run("ties", names, 0, trimmed), MERGEKIT_TIES)
    assert_merged(run("ties", names, 0, trimmed, **{"lambda": 0.7}), MERGEKIT_TIES_07)
    for method, expected in (("dare_linear", MERGEKIT_DARE_LINEAR), ("dare_ties", MERGEKIT_DARE_TIES)):
        options = {"rescale": False, "lambda": 1 / 0.6, "normalize": method == "dare_ties"}
        torch.manual_seed(3)
        assert_merged(run(method, names, 0, kept, **options), expected)
    for t, expected in MERGEKIT_SLERP.items():
        assert_merged(run("slerp", ["one", "three"], 0, t=t), expected)
    assert_merged(run("slerp", ["one", "near"], 0, t=0.3), MERGEKIT_SLERP_NEAR)


def test_sums_against_mergekit():
    vectors = fixed("one", "two", "three")
    assert_merged(vectors.merge([1 / 3] * 3), MERGEKIT_LINEAR)
    assert_merged(vectors.merge([0.3] * 3), MERGEKIT_TASK_ARITHMETIC)


def test_ties_against_mergekit():
    vectors = fixed("one", "two", "three")
    assert_merged(ties(vectors, keep=1 / 3), MERGEKIT_TIES)
    assert_merged(ties(vectors, keep=1 / 3, scale=0.7), MERGEKIT_TIES_07)


def test_dare_against_mergekit(monkeypatch):
    vectors = fixed("one", "two", "three")
    masks = iter([])
    monkeypatch.setattr(transforms, "_mask", lambda *_: ~torch.tensor(next(masks)).bool())
    masks = iter(MERGEKIT_KEPT)
    assert_merged(dare(vectors, drop=0.4), MERGEKIT_DARE_LINEAR)
    masks = iter(MERGEKIT_KEPT * 2)  # once to elect signs, once to merge
    assert_merged(dare_ties(vectors, drop=0.4), MERGEKIT_DARE_TIES)


def test_slerp_against_mergekit():
    for t, expected in MERGEKIT_SLERP.items():
        assert_merged(slerp(fixed("one", "three"), t), expected)
    one, two = (np.add(PRETRAINED, CHANGES[name]) for name in ("one", "two"))
    near = {"one": {"w": torch.tensor(one)}, "near": {"w": torch.tensor(1.5 * one + 0.001 * two)}}
    vectors = TaskVectors.from_state_dicts({"w": torch.tensor(PRETRAINED)}, near)
    assert_merged(slerp(vectors, 0.3), MERGEKIT_SLERP_NEAR)


def floats_of(pretrained):
    return [key for key, tensor in pretrained.items() if tensor.is_floating_point()]


def flat_changes(pretrained, finetuned):
    """All task vectors in float64, tensor by tensor (N x parameters)."""
    keys = floats_of(pretrained)
    rows = [[(sd[k].double() - pretrained[k].double()).flatten() for k in keys] for sd in finetuned.values()]
    return np.stack([np.concatenate(row) for row in rows])


def with_change(pretrained, change):
    """The pre-trained model plus one flat change (parameters), rounded to its dtypes."""
    merged, start = dict(pretrained), 0
    for key in floats_of(pretrained):
        tensor = pretrained[key]
        part = torch.from_numpy(change[start : start + tensor.numel()]).reshape(tensor.shape)
        merged[key] = (tensor.double() + part).to(tensor.dtype)
        start += tensor.numel()
    assert start == len(change)
    return merged


def disjoint_mean(rows):
    """TIES, Algorithm 1, lines 8 to 17, one parameter after the other."""
    merged = np.zeros(rows.shape[1])
    for p, column in enumerate(rows.T):
        agree = [x for x in column if x * column.sum() > 0]
        merged[p] = sum(agree) / len(agree) if agree else 0
    return merged


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ties_of_models_with_many_tensors_by_hand(dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    rows = flat_changes(pretrained, finetuned)
    for row in rows:
        row[abs(row) < np.sort(abs(row))[-40]] = 0  # 40 of 100 are kept
    expected = with_change(pretrained, 0.8 * disjoint_mean(rows))
    assert_same(ties(TaskVectors.from_state_dicts(pretrained, finetuned), keep=0.4, scale=0.8), expected)


def test_dare_merges_what_is_left_after_dropping():
    pretrained, finetuned = make_models(dtype=torch.float16)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    left = [dare_drop(vectors, 0.3, seed=5).merge(c) for c in np.eye(3)]
    dropped = [
        {key: torch.eq(model[key], pretrained[key]) for key in pretrained} for model in left
    ]  # an entry that survives is far larger than float16's steps
    rows = flat_changes(pretrained, finetuned)
    kept = np.stack(
        [np.concatenate([~d[key].flatten().numpy() for key in floats_of(pretrained)]) for d in dropped]
    )
    assert 0.5 < kept.mean() < 0.9
    rows = rows * kept / 0.7
    assert_same(dare(vectors, 0.3, seed=5, scale=0.6), with_change(pretrained, 0.6 * rows.sum(axis=0)))
    assert_same(
        dare_ties(vectors, 0.3, seed=5, scale=0.6), with_change(pretrained, 0.6 * disjoint_mean(rows))
    )


def slerp_by_hand(a, b, t):
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_slerp_goes_tensor_by_tensor_over_full_weights(dtype):
    torch.manual_seed(0)
    pretrained = {
        "a": torch.randn(5, 7),
        "b": torch.randn(3),
        "same": torch.randn(9),
        "frozen": torch.ones(2),
    }
    first = {key: tensor + torch.randn(tensor.shape) for key, tensor in pretrained.items()}
    second = {key: tensor + torch.randn(tensor.shape) for key, tensor in pretrained.items()}
    second["same"], first["frozen"], second["frozen"] = (
        first["same"],
        pretrained["frozen"],
        pretrained["frozen"],
    )
    pretrained, first, second = (
        {key: tensor.to(dtype) for key, tensor in model.items()} for model in (pretrained, first, second)
    )
    vectors = TaskVectors.from_state_dicts(pretrained, {"first": first, "second": second})
    expected = dict(first)
    for key in ("a", "b"):
        a, b = (model[key].double().flatten().numpy() for model in (first, second))
        expected[key] = torch.from_numpy(slerp_by_hand(a, b, 0.3)).reshape(first[key].shape).to(dtype)
    assert_same(slerp(vectors, 0.3), expected, ulps=4)
    assert_same(slerp(vectors, 0), first)
    assert_same(slerp(vectors, 1), second)


def test_slerp_is_linear_where_there_is_no_arc():
    zeros = {
        "zero": torch.zeros(3),
        "opposite": torch.zeros(2),
        "scalar": torch.tensor(0.0),
        "near": torch.zeros(2),
    }
    first = {"zero": torch.zeros(3), "opposite": torch.tensor([3.0, 4.0]), "scalar": torch.tensor(2.0)}
    second = {
        "zero": torch.tensor([1.0, 2, 3]),
        "opposite": torch.tensor([-3.0, -4]),
        "scalar": torch.tensor(6.0),
    }
    first["near"], second["near"] = torch.tensor([1.0, 0]), torch.tensor([3.0, 0.09])  # cosine 0.99955
    vectors = TaskVectors.from_state_dicts(zeros, {"first": first, "second": second})
    merged = slerp(vectors, 0.25)
    assert merged["zero"].tolist() == [0.25, 0.5, 0.75]
    assert merged["opposite"].tolist() == [1.5, 2]
    assert merged["scalar"] == 3
    np.testing.assert_allclose(merged["near"], [1.5, 0.0225], rtol=1e-6)
    second["near"] = torch.tensor([3.0, 0.1])  # cosine 0.99944: an arc
    merged = slerp(TaskVectors.from_state_dicts(zeros, {"first": first, "second": second}), 0.25)
    expected = slerp_by_hand(np.array([1.0, 0]), np.array([3.0, 0.1]), 0.25)
    assert abs(expected[0] - 1.5) > 1e-4
    np.testing.assert_allclose(merged["near"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "merge", [lambda v: ties(v, 0.5), lambda v: dare(v, 0.5), lambda v: dare_ties(v, 0.5), slerp]
)
def test_every_merge_keeps_the_rest_the_ties_and_the_task_vectors(merge):
    torch.manual_seed(0)
    models = []
    for i in range(3):
        tensor = torch.randn(3, 5).half()
        models.append({"embed": tensor, "n": torch.tensor(i), "out": tensor, "text.w": torch.randn(4)})
    part = {"one": models[1], "two": models[2]}
    for model in part.values():
        model["text.w"] = models[0]["text.w"]
    vectors = TaskVectors.from_state_dicts(models[0], part)
    before = vectors.merge([0.3, 0.4])
    merged = merge(vectors)
    assert list(merged) == list(models[0])
    assert merged["embed"].dtype == torch.float16
    assert merged["embed"].data_ptr() == merged["out"].data_ptr()
    assert not torch.equal(merged["embed"], models[0]["embed"])
    assert merged["n"] == 0
    assert torch.equal(merged["text.w"], models[0]["text.w"])
    assert_same(vectors.merge([0.3, 0.4]), before, ulps=0)


def test_one_model_and_models_that_do_not_differ():
    pretrained, finetuned = make_models(1)
    one = TaskVectors.from_state_dicts(pretrained, finetuned)
    same = TaskVectors.from_state_dicts(pretrained, {"a": pretrained, "b": pretrained})
    for merge in (lambda v: ties(v, 1), lambda v: dare(v, 0), lambda v: dare_ties(v, 0)):
        assert_same(merge(one), by_hand(pretrained, finetuned, [1]))
        assert_same(merge(same), pretrained, ulps=0)
    assert_same(slerp(same), pretrained, ulps=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_merges_as_the_cpu_does():
    vectors = TaskVectors.from_state_dicts(*make_models(2, dtype=torch.float16))
    for merge in (ties, dare, dare_ties, slerp):
        found = merge(vectors.to("cuda"))
        assert all(tensor.device.type == "cuda" for tensor in found.values())
        assert_same({key: tensor.cpu() for key, tensor in found.items()}, merge(vectors), ulps=1)


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        (slerp, r"SLERP merges two models, not 3 \(one, two, three\): choose exactly two"),
        (lambda v: ties(v, 0), "TIES keeps a share of each task vector above 0"),
        (lambda v: ties(v, scale=np.nan), "can't be scaled by nan: give a finite number"),
        (lambda v: dare(v, 1), "DARE drops a share of each task vector from 0 to below 1"),
        (lambda v: dare(v, scale=np.inf), "can't be scaled by inf"),
        (lambda v: dare_ties(v, seed=-1), "whole number from 0 up, not -1"),
        (lambda v: dare_ties(v, scale=np.inf), "can't be scaled by inf"),
    ],
)
def test_what_can_not_be_merged(merge, says):
    with pytest.raises(MapMergeError, match=says):
        merge(fixed("one", "two", "three"))


def test_slerp_of_one_model_and_outside_of_the_arc():
    with pytest.raises(MapMergeError, match=r"SLERP merges two models, not 1 \(one\)"):
        slerp(fixed("one"))
    for t in (-0.1, 1.1, np.nan):
        with pytest.raises(MapMergeError, match="t lies between 0"):
            slerp(fixed("one", "two"), t)
