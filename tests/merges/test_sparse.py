from __future__ import annotations

import numpy as np
import pytest
import torch

from mapmerge_core.registries import MERGES
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.merges.helpers import transformed
from tests.weights.vectors.test_task_vectors import Net, assert_same, make_models

TRANSFORMS = ("ties_trim", "ties", "dare", "dare_ties", "breadcrumbs", "della")


def ties_trim(vectors: TaskVectors, keep: float) -> TaskVectors:
    return transformed("ties_trim", vectors, keep=keep)


def dare_drop(vectors: TaskVectors, drop: float, seed: int = 0) -> TaskVectors:
    return transformed("dare", vectors, drop=drop, seed=seed)


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


def test_the_sign_of_the_sum_is_elected_and_what_agrees_is_averaged():
    vectors = vectors_of([1.0, 2.0, -1.0, 0.0, 5.0], [2.0, -3.0, -2.0, -4.0, -5.0], [-1.0, 0.5, -3.0, 1.0, 0.0])
    elected = transformed("ties", vectors, keep=1)
    assert rows_of(elected) == [
        [0.5, 0, pytest.approx(-1 / 3), 0, 0],
        [1, -3, pytest.approx(-2 / 3), -4, 0],
        [0, 0, -1, 0, 0],
    ]
    assert elected.merge([1, 1, 1])["w"].tolist() == [1.5, -3, pytest.approx(-2), -4, 0]


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


def test_dare_adds_what_is_left_with_one_coefficient():
    """As it was before each model had a coefficient of its own."""
    vectors = TaskVectors.from_state_dicts(*make_models())
    flats = [group.base.clone() for group in vectors.groups]
    for n in range(3):
        rng = np.random.default_rng([2, n])
        for group, total in zip(vectors.groups, flats, strict=True):
            row = group.V[n] / (1 - 0.6)
            for slot in group.slots:
                dropped = rng.random(slot.shape.numel(), dtype=np.float32) < 0.6
                slot.columns(row).masked_fill_(torch.from_numpy(dropped), 0)
            total.add_(row, alpha=0.3)
    prepared = MERGES["dare"]({"drop": 0.6, "seed": 2}).load(None, vectors, vectors)
    # One rounding fewer: add_ multiplies and adds at once.
    assert_same(dict(prepared.tensors([0.3] * 3)), vectors.state_dict_of(flats), ulps=1)


def test_della_drops_small_entries_of_a_row_more_often_and_keeps_the_mean():
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(400, 50, generator=generator)
    vectors = TaskVectors.from_state_dicts({"w": torch.zeros(400, 50)}, {"one": {"w": change}})
    left = transformed("della", vectors, density=0.4, epsilon=0.3, elect=False).merge([1])["w"]
    ranks = change.abs().argsort(dim=1).argsort(dim=1)
    chance = 0.1 + 0.6 * ranks / 49
    kept = left != 0
    torch.testing.assert_close(left[kept], (change / chance)[kept])
    for low, high in ((0, 10), (20, 30), (40, 50)):
        among = (ranks >= low) & (ranks < high)
        p = chance[among].mean()
        assert abs(kept[among].float().mean() - p) < 5 * (p * (1 - p) / among.sum()) ** 0.5


def test_breadcrumbs_drop_both_ends_of_each_tensor():
    pretrained = {"a": torch.zeros(10), "b": torch.zeros(2, 5)}
    tuned = {"a": torch.arange(1.0, 11), "b": -100 * torch.arange(1.0, 11).view(2, 5)}
    vectors = TaskVectors.from_state_dicts(pretrained, {"one": tuned})
    left = transformed("breadcrumbs", vectors, density=0.5, gamma=0.2).merge([1])
    assert left["a"].tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]
    assert left["b"].flatten().tolist() == [0, 0, 0, -400, -500, -600, -700, -800, 0, 0]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_input_stays_and_the_result_merges_as_any_other(name):
    pretrained, finetuned = make_models(dtype=torch.float16, change_head=False)
    vectors = TaskVectors.from_state_dicts(pretrained, finetuned)
    before = flat(vectors)
    others = transformed(name, vectors)
    np.testing.assert_array_equal(flat(vectors), before)
    assert (flat(others) != before).any()
    assert (gaps(others) == 0).all()
    assert others.names == vectors.names
    assert_same(others.merge([0, 0, 0]), pretrained, ulps=0)
    module, reference = Net(), Net()
    vectors.merge_into(module, [1, 1, 1])
    others.merge_into(module, [0.5, 0.25, 1])
    reference.load_state_dict(others.merge([0.5, 0.25, 1]))
    assert_same(module.state_dict(), reference.state_dict(), ulps=0)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_models_that_do_not_differ_transform_to_themselves(name):
    pretrained, _ = make_models()
    vectors = TaskVectors.from_state_dicts(pretrained, {"same": pretrained})
    assert_same(transformed(name, vectors).merge([0.7]), pretrained, ulps=0)
