from __future__ import annotations

import numpy as np
import pytest
import torch

from mapmerge_core.errors import PointError, SettingError, StudyError
from mapmerge_core.merges import _sparse
from mapmerge_core.registries import MERGES
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.merges.helpers import merged, transformed
from tests.weights.vectors.test_task_vectors import Net, assert_same, by_hand, make_models

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
MERGEKIT_TIES_07 = [*(1.13, -0.475, 2.4199998, -0.1875, -1.38, 0.835, -1.51, 1.0, 0.56, -0.5, 2.4050002, -1.25)]
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


def assert_merged(found: dict[str, torch.Tensor], expected: list[float]) -> None:
    np.testing.assert_allclose(found["w"].flatten().numpy(), expected, rtol=0, atol=1e-6)


MODELS = {"pretrained": torch.tensor(PRETRAINED).reshape(3, 4)}
MODELS |= {name: MODELS["pretrained"] + torch.tensor(change).reshape(3, 4) for name, change in CHANGES.items()}
MODELS["near"] = 1.5 * MODELS["one"] + 0.001 * MODELS["two"]


def by_mergekit(method, models, base=None, each=None, **parameters):
    """What a merge method of mergekit makes of tensors by name; ``each`` are parameters of each model."""
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import PerInputValues, TensorGroup

    names = list(models)
    group = TensorGroup.from_tensors(list(models.values()), ids=names, base_index=base)
    inputs = names[1:] if base is not None else names
    for key, value in (each or {}).items():
        parameters[key] = PerInputValues([(name, value) for name in inputs])
    return {"w": registry.get(method)([group], parameters=parameters)[0]}


def test_mergekit_still_gives_the_recorded_figures():
    def run(method, names, base=None, each=None, **parameters):
        return by_mergekit(method, {name: MODELS[name] for name in names}, base, each, **parameters)

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
    assert_merged(merged("soup", vectors), MERGEKIT_LINEAR)
    assert_merged(merged("task_arithmetic", vectors), MERGEKIT_TASK_ARITHMETIC)


def test_ties_against_mergekit():
    vectors = fixed("one", "two", "three")
    assert_merged(merged("ties", vectors, keep=1 / 3), MERGEKIT_TIES)
    assert_merged(merged("ties", vectors, [0.7] * 3, keep=1 / 3), MERGEKIT_TIES_07)


def drop_these(monkeypatch, kept):
    """Let the next tensors lose the entries where ``kept`` is 0."""
    masks = iter(kept)
    monkeypatch.setattr(_sparse, "_uniform", lambda like, _: next(masks).float().view_as(like))


def test_dare_against_mergekit(monkeypatch):
    vectors = fixed("one", "two", "three")
    drop_these(monkeypatch, torch.tensor(MERGEKIT_KEPT))
    assert_merged(merged("dare", vectors, [1, 1, 1], drop=0.4), MERGEKIT_DARE_LINEAR)
    drop_these(monkeypatch, torch.tensor(MERGEKIT_KEPT))
    assert_merged(merged("dare_ties", vectors, drop=0.4), MERGEKIT_DARE_TIES)


@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.75, 0.1), (0.5, 0), (0.9, 0.3), (1, 0.1)])
def test_breadcrumbs_against_mergekit(density, gamma):
    settings, weight = {"density": density, "gamma": gamma}, {"weight": 0.3}
    expected = by_mergekit("breadcrumbs", tuned_models(), 0, weight | settings)
    found = merged("breadcrumbs", vectors_of(tuned_models()), **settings)
    torch.testing.assert_close(found["w"], expected["w"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.7, 0.25), (0.3, 0)])
def test_della_against_mergekit(monkeypatch, density, epsilon):
    """Mergekit restores each tensor's norm where the paper divides by the probability of keeping an entry."""
    models = tuned_models()
    base, bernoulli, drawn = models["pretrained"], torch.bernoulli, []

    def draw(probabilities):
        drawn.append((probabilities, bernoulli(probabilities)))
        return drawn[-1][1]

    monkeypatch.setattr(torch, "bernoulli", draw)
    torch.manual_seed(0)
    parameters = {"weight": 1.0, "density": density, "epsilon": epsilon}
    as_drawn = by_mergekit("della_linear", models, 0, parameters, rescale=False)["w"]
    drop_these(monkeypatch, [mask for _, mask in drawn])
    settings = {"density": density, "epsilon": epsilon}
    vectors = transformed("della", vectors_of(models), elect=False, **settings)
    rows = [vectors.merge(c)["w"] - base for c in np.eye(3)]
    probabilities = [p for p, _ in drawn]
    unscaled = sum(row * p for row, p in zip(rows, probabilities, strict=True))
    torch.testing.assert_close(base + unscaled, as_drawn, rtol=0, atol=2e-6)
    rescaled = {"pretrained": base} | {str(n): base + row for n, row in enumerate(rows)}
    elected = by_mergekit("ties", rescaled, 0, {"weight": 1.0, "density": 1.0})["w"]
    drop_these(monkeypatch, [mask for _, mask in drawn])
    found = merged("della", vectors_of(models), **settings)["w"]
    torch.testing.assert_close(found, elected, rtol=0, atol=2e-6)


def tuned_models():
    generator = torch.Generator().manual_seed(7)
    pretrained = torch.randn(17, 23, generator=generator)
    changes = {name: torch.randn(17, 23, generator=generator) for name in CHANGES}
    return {"pretrained": pretrained} | {name: pretrained + change for name, change in changes.items()}


def vectors_of(models):
    pretrained, *tuned = ({"w": tensor} for tensor in models.values())
    return TaskVectors.from_state_dicts(pretrained, dict(zip(list(models)[1:], tuned, strict=True)))


def slerp(vectors, t=0.5):
    return merged("slerp", vectors, [1 - t, t])


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
    model, start = dict(pretrained), 0
    for key in floats_of(pretrained):
        tensor = pretrained[key]
        part = torch.from_numpy(change[start : start + tensor.numel()]).reshape(tensor.shape)
        model[key] = (tensor.double() + part).to(tensor.dtype)
        start += tensor.numel()
    assert start == len(change)
    return model


def disjoint_mean(rows):
    """TIES, Algorithm 1, lines 8 to 17, one parameter after the other."""
    mean = np.zeros(rows.shape[1])
    for p, column in enumerate(rows.T):
        agree = [x for x in column if x * column.sum() > 0]
        mean[p] = sum(agree) / len(agree) if agree else 0
    return mean


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ties_of_models_with_many_tensors_by_hand(dtype):
    pretrained, finetuned = make_models(dtype=dtype)
    rows = flat_changes(pretrained, finetuned)
    for row in rows:
        row[abs(row) < np.sort(abs(row))[-40]] = 0  # 40 of 100 are kept
    expected = with_change(pretrained, 0.8 * disjoint_mean(rows))
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    assert_same(merged("ties", vectors, [0.8] * 3, keep=0.4), expected, ulps=4)


def test_dare_merges_what_is_left_after_dropping():
    pretrained, finetuned = make_models(dtype=torch.float16)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    left = [merged("dare", vectors, c, drop=0.3, seed=5) for c in np.eye(3)]
    dropped = [
        {key: torch.eq(model[key], pretrained[key]) for key in pretrained} for model in left
    ]  # an entry that survives is far larger than float16's steps
    rows = flat_changes(pretrained, finetuned)
    kept = np.stack([np.concatenate([~d[key].flatten().numpy() for key in floats_of(pretrained)]) for d in dropped])
    assert 0.5 < kept.mean() < 0.9
    rows = rows * kept / 0.7
    for kind, total in (("dare", rows.sum(axis=0)), ("dare_ties", disjoint_mean(rows))):
        found = merged(kind, vectors, [0.6] * 3, drop=0.3, seed=5)
        assert_same(found, with_change(pretrained, 0.6 * total))


def slerp_by_hand(a, b, t):
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_slerp_goes_tensor_by_tensor_over_full_weights(dtype):
    torch.manual_seed(0)
    pretrained = {"a": torch.randn(5, 7), "b": torch.randn(3), "same": torch.randn(9), "frozen": torch.ones(2)}
    first = {key: tensor + torch.randn(tensor.shape) for key, tensor in pretrained.items()}
    second = {key: tensor + torch.randn(tensor.shape) for key, tensor in pretrained.items()}
    second["same"], first["frozen"], second["frozen"] = (first["same"], pretrained["frozen"], pretrained["frozen"])
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
    zeros = {"zero": torch.zeros(3), "opposite": torch.zeros(2), "scalar": torch.tensor(0.0), "near": torch.zeros(2)}
    first = {"zero": torch.zeros(3), "opposite": torch.tensor([3.0, 4.0]), "scalar": torch.tensor(2.0)}
    second = {"zero": torch.tensor([1.0, 2, 3]), "opposite": torch.tensor([-3.0, -4]), "scalar": torch.tensor(6.0)}
    first["near"], second["near"] = torch.tensor([1.0, 0]), torch.tensor([3.0, 0.09])  # cosine 0.99955
    vectors = TaskVectors.from_state_dicts(zeros, {"first": first, "second": second})
    found = slerp(vectors, 0.25)
    assert found["zero"].tolist() == [0.25, 0.5, 0.75]
    assert found["opposite"].tolist() == [1.5, 2]
    assert found["scalar"] == 3
    np.testing.assert_allclose(found["near"], [1.5, 0.0225], rtol=1e-6)
    second["near"] = torch.tensor([3.0, 0.1])  # cosine 0.99944: an arc
    found = slerp(TaskVectors.from_state_dicts(zeros, {"first": first, "second": second}), 0.25)
    expected = slerp_by_hand(np.array([1.0, 0]), np.array([3.0, 0.1]), 0.25)
    assert abs(expected[0] - 1.5) > 1e-4
    np.testing.assert_allclose(found["near"], expected, rtol=1e-6)


NAMES = ("ties", "ties_trim", "dare", "dare_ties", "breadcrumbs", "della", "slerp", "soup", "task_arithmetic")


@pytest.mark.parametrize("name", NAMES)
def test_every_merge_keeps_the_rest_the_ties_and_the_task_vectors(name):
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
    found = merged(name, vectors)
    assert list(found) == list(models[0])
    assert found["embed"].dtype == torch.float16
    assert torch.equal(found["embed"], found["out"])
    assert not torch.equal(found["embed"], models[0]["embed"])
    assert found["n"] == 0
    assert torch.equal(found["text.w"], models[0]["text.w"])
    assert_same(vectors.merge([0.3, 0.4]), before, ulps=0)


def test_one_model_and_models_that_do_not_differ():
    pretrained, finetuned = make_models(1)
    one = TaskVectors.from_state_dicts(pretrained, finetuned)
    same = TaskVectors.from_state_dicts(pretrained, {"a": pretrained, "b": pretrained})
    for name, settings in (("ties", {"keep": 1}), ("dare", {"drop": 0}), ("dare_ties", {"drop": 0})):
        assert_same(merged(name, one, [1], **settings), by_hand(pretrained, finetuned, [1]))
    for name in NAMES:
        assert_same(merged(name, same), pretrained, ulps=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_merges_as_the_cpu_does(name):
    vectors = TaskVectors.from_state_dicts(*make_models(2, dtype=torch.float16))
    prepared = MERGES[name]().load(None, vectors.to("cuda"), vectors)
    module, exact = Net().half().to("cuda"), Net().half()
    prepared.write(module, prepared.space.default)
    prepared.write_exact(exact, prepared.space.default)
    assert_same({key: tensor.cpu() for key, tensor in module.state_dict().items()}, exact.state_dict(), ulps=1)


def test_slerp_of_other_than_two_models_and_outside_of_the_arc():
    with pytest.raises(StudyError, match=r"SLERP merges 2 models, not 1 \(one\): choose another merge or"):
        slerp(fixed("one"))
    with pytest.raises(StudyError, match=r"SLERP merges 2 models, not 3 \(one, two, three\)"):
        merged("slerp", fixed("one", "two", "three"), [0.2, 0.3, 0.5])
    for t in (-0.1, 1.1, np.nan):
        with pytest.raises(PointError):
            slerp(fixed("one", "two"), t)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("ties", {"keep": 0}, "TIES can't have keep = 0: give a number above 0 and at most 1"),
        ("ties_trim", {"keep": 1.5}, r"can't have keep = 1\.5"),
        ("ties", {"keep": np.nan}, "can't have keep = nan"),
        ("dare", {"drop": 1}, "DARE can't have drop = 1: give a number of at least 0 and below 1"),
        ("dare", {"drop": -0.1}, r"can't have drop = -0\.1"),
        ("dare_ties", {"seed": -1}, "can't have seed = -1: give a whole number of at least 0"),
        ("della", {"density": 0.1}, r"DELLA can't have epsilon = 0\.15 with density = 0\.1"),
        ("della", {"density": 0.9}, r"DELLA can't have epsilon = 0\.15 with density = 0\.9"),
        ("breadcrumbs", {"gamma": 1}, "Model Breadcrumbs can't have gamma = 1"),
        ("soup", {"keep": 1}, "Model soup has no setting 'keep': there is nothing to set"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        MERGES[name](settings)
