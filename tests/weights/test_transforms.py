from __future__ import annotations

import numpy as np
import pytest
import torch

from mapmerge_core.errors import MapMergeError
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from mapmerge_core.merges._sparse import apply_transform, dare_drop, elect_sign, ties_trim
from tests.weights.test_task_vectors import Net, assert_same, make_models

TRANSFORMS = [
    lambda vectors: ties_trim(vectors, 0.2),
    elect_sign,
    lambda vectors: dare_drop(vectors, 0.5, seed=1),
]


def vectors_of(*rows: list[float]) -> TaskVectors:
    """Task vectors of one tensor, from a pre-trained model of zeros."""
    models = {f"model {i}": {"w": torch.tensor(row)} for i, row in enumerate(rows)}
    return TaskVectors.from_state_dicts({"w": torch.zeros(len(rows[0]))}, models)


def rows_of(vectors: TaskVectors) -> list[list[float]]:
    """The task vectors of a pre-trained model of zeros, each by a merge."""
    return [vectors.merge(c)["w"].tolist() for c in np.eye(len(vectors))]


def flat(vectors: TaskVectors) -> np.ndarray:
    """All task vectors, tensor by tensor without the gaps in the buffers, in float64 (N x parameters)."""
    parts = [slot.columns(group.V).double() for group in vectors.groups for slot in group.slots]
    return torch.cat(parts, dim=1).numpy()


def gaps(vectors: TaskVectors) -> np.ndarray:
    """What lies between the tensors in the buffers."""
    kept = []
    for group in vectors.groups:
        V = group.V.clone()
        for slot in group.slots:
            slot.columns(V).fill_(0)
        kept.append(V.abs().sum().item())
    return np.array(kept)


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 0.9, 1])
def test_trimming_keeps_the_largest_share_of_the_whole_vector(keep):
    pretrained, finetuned = make_models()
    pretrained["tower.2.weight"] = pretrained["tower.2.weight"].double()  # a second buffer
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    before = flat(vectors)
    n_entries = 5 * 7 + 7 + 4 * 7 + 7 * 3 + 3 * 2 + 2 + 1
    assert before.shape == (3, n_entries)
    assert len(vectors.groups) == 2
    n_kept = {0.01: 1, 0.2: 20, 0.5: 50, 0.9: 90, 1: 100}[keep]
    after = flat(ties_trim(vectors, keep))
    for row, trimmed in zip(before, after, strict=True):
        largest = np.argsort(-abs(row))[:n_kept]
        expected = np.zeros(n_entries)
        expected[largest] = row[largest]
        np.testing.assert_array_equal(trimmed, expected)


def test_entries_as_large_as_the_smallest_kept_are_kept_too():
    vectors = vectors_of([3.0, -2.0, 2.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0, 4.0])
    assert rows_of(ties_trim(vectors, 0.4)) == [[3, -2, 2, 0, 0], [0, 0, 0, 0, 4]]
    assert rows_of(ties_trim(vectors, 0.2)) == [[3, 0, 0, 0, 0], [0, 0, 0, 0, 4]]


def test_a_tied_tensor_counts_once_in_the_share():
    models = []
    for values in ([0.0] * 4, [4.0, 3.0, 2.0, 1.0]):
        tensor = torch.tensor(values)
        models.append({"embed": tensor, "norm": torch.tensor([values[0] / 8, 0]), "out": tensor})
    vectors = TaskVectors.from_state_dicts(models[0], {"one": models[1]})
    merged = ties_trim(vectors, 0.5).merge([1])  # of 6 entries, not of 10
    assert merged["embed"].tolist() == merged["out"].tolist() == [4, 3, 2, 0]
    assert merged["norm"].tolist() == [0, 0]


def test_the_sign_of_the_sum_is_elected():
    vectors = vectors_of(
        [1.0, 2.0, -1.0, 0.0, 5.0], [2.0, -3.0, -2.0, -4.0, -5.0], [-1.0, 0.5, -3.0, 1.0, 0.0]
    )
    assert rows_of(elect_sign(vectors)) == [[1, 0, -1, 0, 0], [2, -3, -2, -4, 0], [0, 0, -3, 0, 0]]


def test_dropping_leaves_a_rescaled_share_of_each_vector():
    pretrained = {"a": torch.zeros(101, 99), "b": torch.zeros(3)}
    ones = {name: torch.ones_like(tensor) for name, tensor in pretrained.items()}
    vectors = TaskVectors.from_state_dicts(pretrained, {"one": ones, "two": ones})
    rows = flat(dare_drop(vectors, 0.75, seed=3))
    assert set(np.unique(rows)) == {0, 4}  # 1 / (1 − 0.75)
    # A fair coin of this bias lands beyond 5 standard deviations once in 2 million times.
    deviation = (0.25 * 0.75 / rows.shape[1]) ** 0.5
    np.testing.assert_allclose((rows != 0).mean(axis=1), 0.25, atol=5 * deviation)
    both = (rows != 0).all(axis=0).mean()  # streams of their own: independent
    np.testing.assert_allclose(both, 1 / 16, atol=5 * (1 / 16 * 15 / 16 / rows.shape[1]) ** 0.5)


def test_the_same_seed_drops_the_same():
    vectors = TaskVectors.from_state_dicts(*make_models())
    first = flat(dare_drop(vectors, 0.5, seed=7))
    np.testing.assert_array_equal(flat(dare_drop(vectors, 0.5, seed=7)), first)
    assert ((flat(dare_drop(vectors, 0.5, seed=8)) != 0) != (first != 0)).sum() > 50
    np.testing.assert_array_equal(flat(dare_drop(vectors, 0)), flat(vectors))
    # What a vector loses doesn't depend on how many others there are.
    alone = TaskVectors.from_state_dicts(*make_models(1))
    np.testing.assert_array_equal(flat(dare_drop(alone, 0.5, seed=7))[0], first[0])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_input_stays_and_the_result_merges_as_any_other(transform):
    pretrained, finetuned = make_models(dtype=torch.float16, change_head=False)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    before = flat(vectors)
    transformed = transform(vectors)
    np.testing.assert_array_equal(flat(vectors), before)
    assert (flat(transformed) != before).any()
    assert (gaps(transformed) == 0).all()
    assert transformed.names == vectors.names
    assert_same(transformed.merge([0, 0, 0]), pretrained, ulps=0)
    module, reference = Net(), Net()
    vectors.merge_into(module, [1, 1, 1])
    transformed.merge_into(module, [0.5, 0.25, 1])
    reference.load_state_dict(transformed.merge([0.5, 0.25, 1]))
    assert_same(module.state_dict(), reference.state_dict(), ulps=0)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_models_that_do_not_differ_transform_to_themselves(transform):
    pretrained, _ = make_models()
    vectors = TaskVectors.from_state_dicts(pretrained, {"same": pretrained})
    assert_same(transform(vectors).merge([0.7]), pretrained, ulps=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_gpu_transforms_as_the_cpu_does(transform):
    vectors = TaskVectors.from_state_dicts(*make_models())
    on_gpu = transform(vectors.to("cuda"))
    assert on_gpu.device.type == "cuda"
    np.testing.assert_array_equal(flat(on_gpu.to("cpu")), flat(transform(vectors)))


def test_transforms_by_name():
    vectors = TaskVectors.from_state_dicts(*make_models())
    for kind, expected in (
        ("ties_trim", ties_trim(vectors, 0.3)),
        ("ties", elect_sign(ties_trim(vectors, 0.3))),
        ("dare", dare_drop(vectors, 0.6, seed=2)),
    ):
        found = apply_transform(vectors, kind, keep=0.3, drop=0.6, seed=2)
        np.testing.assert_array_equal(flat(found), flat(expected))
    with pytest.raises(MapMergeError, match="no transform 'prune': choose ties_trim, ties or dare"):
        apply_transform(vectors, "prune", keep=0.2, drop=0.5, seed=0)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (lambda vectors: ties_trim(vectors, 0), "above 0 and at most 1, not 0"),
        (lambda vectors: ties_trim(vectors, 1.5), r"not 1\.5"),
        (lambda vectors: ties_trim(vectors, float("nan")), "not nan"),
        (lambda vectors: dare_drop(vectors, 1), "from 0 to below 1, not 1"),
        (lambda vectors: dare_drop(vectors, -0.1), r"not -0\.1"),
        (lambda vectors: dare_drop(vectors, float("nan")), "not nan"),
        (lambda vectors: dare_drop(vectors, 0.5, seed=-1), "whole number from 0 up, not -1"),
    ],
)
def test_shares_that_are_none(transform, says):
    with pytest.raises(MapMergeError, match=says):
        transform(vectors_of([1.0, 2.0]))
