"""Parts of splits: which examples come first, what their mean is worth, and measuring no more than them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from mapmerge_core.tasks.metrics.f1 import F1_SCORE as F1
from mapmerge_core.tasks.metrics.top5 import TOP5_ACCURACY
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.tasks.subsets import nested_order, standard_error
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.streamed import open_vectors
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.tasks.measuring import outcomes
from tests.tiny import CLASS_NAMES

C = (0.3, 0.4, 0.2)


def labels_of(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize("sizes", [[50, 50], [1, 9, 90], [300, 30, 3, 1, 1], [20] * 47, [1] * 30, [8]])
def test_each_beginning_holds_every_class_by_its_share_within_one_example(sizes):
    labels = labels_of(sizes)
    order = nested_order(labels, len(labels))
    np.testing.assert_array_equal(np.sort(order), np.arange(len(labels)))
    sizes = np.array(sizes)
    for n in range(1, len(labels) + 1):
        held = np.bincount(labels[order[:n]], minlength=len(sizes))
        # There is one share of all classes that each of them holds within one example.
        assert ((held - 1) / sizes).max() < ((held + 1) / sizes).min()
        if len(set(sizes)) == 1:
            assert np.abs(held - n / len(sizes)).max() <= 1


def test_a_split_has_one_order_everywhere():
    labels = labels_of([30, 20, 10])
    order = nested_order(labels, 60)
    np.testing.assert_array_equal(order, nested_order(labels, 60))
    assert not np.array_equal(order, nested_order(labels, 60, seed=1))
    # Names of classes don't matter, other types of integers neither.
    np.testing.assert_array_equal(order, nested_order((labels * 7 + 3).astype(np.int32), 60))
    code = (
        "import numpy as np; from mapmerge_core.tasks.subsets import nested_order;"
        "labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [30, 20, 10]));"
        "print(nested_order(labels, 60).tolist(), nested_order(None, 5).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"{order.tolist()} {nested_order(None, 5).tolist()}\n"
    assert sorted(nested_order(None, 5)) == [0, 1, 2, 3, 4]


def test_every_example_is_as_likely_as_any_other_to_come_first():
    labels = labels_of([36, 18, 6])
    chosen = np.zeros(60)
    for seed in range(4000):
        chosen[nested_order(labels, 60, seed=seed)[:20]] += 1
    expected = 4000 / 3
    assert np.abs(chosen - expected).max() < 5 * np.sqrt(expected * 2 / 3)


@pytest.mark.parametrize("n", [20, 100, 400])
def test_the_standard_error_is_how_much_means_of_random_subsets_differ(n):
    rng = np.random.default_rng(0)
    right = rng.permutation(np.arange(500) < 350)
    losses = rng.gamma(0.5, 2.0, 500).astype(np.float32)
    for split in (right, losses):
        subsets = [rng.choice(split, n, replace=False) for _ in range(4000)]
        spread = np.std([subset.mean(dtype=np.float64) for subset in subsets])
        mean_square = np.mean([standard_error(subset, 500) ** 2 for subset in subsets])
        assert np.sqrt(mean_square) == pytest.approx(spread, rel=0.05)


def test_stratified_subsets_are_at_least_as_good_as_the_standard_error_says():
    rng = np.random.default_rng(1)
    labels = labels_of([100, 100, 100, 100])
    right = rng.random(400) < np.array([0.95, 0.9, 0.5, 0.1])[labels]  # classes differ
    orders = [nested_order(labels, 400, seed=seed)[:80] for seed in range(2000)]
    means = np.array([right[order].mean() for order in orders])
    said = np.mean([standard_error(right[order], 400) for order in orders])
    assert means.mean() == pytest.approx(right.mean(), abs=0.002)
    assert 0.4 * said < means.std() < said


def test_the_standard_error_of_a_whole_split_is_0_and_of_a_part_never_of_right_and_wrong():
    right = np.ones(20, dtype=bool)
    assert standard_error(right, 20) == standard_error(np.arange(20.0), 20) == 0
    # By hand: p = 21 / 22.
    assert standard_error(right, 40) == pytest.approx(np.sqrt(21 / 22 / 22 / 20 / 2))
    assert standard_error(~right, 40) == pytest.approx(standard_error(right, 40))


class Counted(ClipZeroShot):
    """Counts the images that the model sees."""

    n_seen = 0

    def logits(self, batch, task, dtype):
        self.n_seen += len(batch)
        return super().logits(batch, task, dtype)


def make_evaluator(zoo, metric=ACCURACY, batch_size=25):
    family = Counted(str(zoo / "tiny-clip.json"), zoo / "pretrained.safetensors")
    checkpoints = {task: zoo / f"{task}.safetensors" for task in CLASS_NAMES}
    vectors = TaskVectors.from_files(zoo / "pretrained.safetensors", checkpoints, part=family.part)
    tasks = [Task.from_file(task, zoo / f"{task}.npz", metric) for task in CLASS_NAMES]
    return Evaluator(family, vectors, tasks, device="cpu", precision="float32", batch_size=batch_size)


def numbers(outcome):
    return unpack(outcome.per_example, outcome.n_examples)


def bits(outcome):
    return outcome.value, outcome.n_examples, outcome.per_example, outcome.n_total


@pytest.mark.parametrize("metric", [ACCURACY, TOP5_ACCURACY, LOSS])
def test_a_part_is_what_the_whole_split_says_of_its_examples(tiny_zoo, metric):
    evaluator = make_evaluator(tiny_zoo, metric)
    whole = evaluator.evaluate(C)
    before = evaluator.family.n_seen
    parts = dict(outcomes(evaluator, C, images=20))
    assert evaluator.family.n_seen - before == 3 * 20
    for task, part in parts.items():
        labels = np.load(tiny_zoo / f"{task}.npz")["val_labels"]
        first = nested_order(labels, 60)[:20]
        assert (part.n_examples, part.n_total, part.is_whole) == (20, 60, False)
        assert np.ptp(np.bincount(labels[first])) <= 1
        np.testing.assert_allclose(numbers(part), numbers(whole[task])[first], rtol=1e-5)
        assert part.value == pytest.approx(numbers(whole[task])[first].mean(), rel=1e-6)


@pytest.mark.parametrize("metric", [ACCURACY, LOSS])
def test_more_images_measure_only_the_missing_ones_and_say_what_a_direct_evaluation_says(tiny_zoo, metric):
    evaluator = make_evaluator(tiny_zoo, metric)
    known = {task: numbers(outcome) for task, outcome in outcomes(evaluator, C, images=13)}
    before = evaluator.family.n_seen
    refined = dict(outcomes(evaluator, C, images=40, known=known))
    assert evaluator.family.n_seen - before == 3 * 27
    for task, direct in outcomes(evaluator, C, images=40):
        np.testing.assert_allclose(numbers(refined[task]), numbers(direct), rtol=1e-5)
        assert refined[task].value == pytest.approx(direct.value, rel=1e-6)
        np.testing.assert_array_equal(numbers(refined[task])[:13], known[task])
        if metric == ACCURACY:
            assert bits(refined[task]) == bits(direct)


@pytest.mark.parametrize("images", [None, 60, 1000])
def test_as_many_images_as_there_are_make_the_whole_split_s_outcome(tiny_zoo, images):
    evaluator = make_evaluator(tiny_zoo)
    whole = {task: bits(outcome) for task, outcome in evaluator.evaluate(C).items()}
    assert all(n_total is None for *_, n_total in whole.values())
    assert {task: bits(outcome) for task, outcome in outcomes(evaluator, C, images=images)} == whole
    known = {task: numbers(outcome) for task, outcome in outcomes(evaluator, C, images=31)}
    before = evaluator.family.n_seen
    refined = outcomes(evaluator, C, images=images, known=known)
    assert {task: bits(outcome) for task, outcome in refined} == whole
    assert evaluator.family.n_seen - before == 3 * 29


@pytest.mark.parametrize("images", [60, 1000])
def test_losses_of_as_many_images_as_there_are_have_the_whole_splits_bits(tiny_zoo, images):
    evaluator = make_evaluator(tiny_zoo, LOSS)
    whole = {task: bits(outcome) for task, outcome in evaluator.evaluate(C).items()}
    assert {task: bits(outcome) for task, outcome in outcomes(evaluator, C, images=images)} == whole


def test_nothing_is_measured_where_all_that_is_wanted_is_known(tiny_zoo):
    evaluator = make_evaluator(tiny_zoo)
    parts = dict(outcomes(evaluator, C, images=30))
    known = {task: numbers(outcome) for task, outcome in parts.items()}
    before = evaluator.family.n_seen
    assert [bits(o) for _, o in outcomes(evaluator, C, images=30, known=known)] == [
        bits(outcome) for outcome in parts.values()
    ]
    assert evaluator.family.n_seen == before


def test_the_test_split_is_always_measured_whole(tiny_zoo):
    evaluator = make_evaluator(tiny_zoo)
    known = {task: numbers(outcome) for task, outcome in outcomes(evaluator, C, images=30)}
    whole = [bits(outcome) for outcome in evaluator.evaluate(C, split="test").values()]
    found = outcomes(evaluator, C, split="test", images=20, known=known)
    assert [bits(outcome) for _, outcome in found] == whole


def test_metrics_that_are_no_means_are_not_measured_in_part(tiny_zoo):
    evaluator = make_evaluator(tiny_zoo, F1)
    with pytest.raises(MapMergeError, match="The F1 on 'Colours' is no mean over examples, so that some"):
        next(outcomes(evaluator, C, images=20))


def norms(state_dict):
    return {"Near": float(sum(tensor.double().square().sum() for tensor in state_dict.values()))}


def test_a_persons_own_function_is_not_measured_in_part(tiny_zoo):
    tasks = [Task("Near", None, (LOSS,))]
    pretrained = tiny_zoo / "pretrained.safetensors"
    family = find_family("tests.tasks.test_subsets:norms").make("", pretrained, {}, tasks)
    evaluator = Evaluator(family, open_vectors(pretrained, {"Near": pretrained}, part=""), tasks, device="cpu")
    with pytest.raises(MapMergeError, match="measures whole validation splits only: leave the number of im"):
        next(outcomes(evaluator, [0.5], images=20))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_the_same_examples(tiny_zoo):
    evaluator = make_evaluator(tiny_zoo)
    on_gpu = Evaluator(
        evaluator.family, evaluator.vectors, list(evaluator.tasks.values()), device="cuda", precision="float32"
    )
    for task, part in outcomes(on_gpu, C, images=20):
        whole = on_gpu.evaluate(C, [task])[task]
        first = nested_order(np.load(tiny_zoo / f"{task}.npz")["val_labels"], 60)[:20]
        np.testing.assert_array_equal(numbers(part), numbers(whole)[first])
