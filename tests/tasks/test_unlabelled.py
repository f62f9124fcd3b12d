"""How sure models are of images without labels; how one is chosen by it is tested with runs."""

from __future__ import annotations

from threading import Event

import numpy as np
import pytest

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.task import Task
from mapmerge_core.tasks.unlabelled import entropies
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.tasks.measuring import FixedModel
from tests.tiny import plain_entropy

TASKS = ("Colours", "Stripes")


def make_evaluator(zoo, precision="float32"):
    family = ClipZeroShot(zoo / "tiny-clip.json", zoo / "pretrained.safetensors")
    checkpoints = {task: zoo / f"{task}.safetensors" for task in TASKS}
    vectors = TaskVectors.from_files(zoo / "pretrained.safetensors", checkpoints, part=family.part)
    tasks = [Task.from_file(task, zoo / f"{task}.npz") for task in TASKS]
    return Evaluator(family, vectors, tasks, device="cpu", precision=precision)


@pytest.fixture(scope="module")
def evaluator(tiny_zoo):
    return make_evaluator(tiny_zoo)


@pytest.fixture
def source(tiny_zoo):
    """A task that neither model was fine-tuned on."""
    return DataSource(path=tiny_zoo / "Light.npz")


def test_entropies_are_those_of_a_plain_loop(evaluator, source):
    points = [[0.3, 0.5], [1.0, 0.0], [0.0, 0.0]]
    measured, n = entropies(evaluator, source, [evaluator.at(c) for c in points])
    expected = [plain_entropy(evaluator.vectors.merge(c), source.path) for c in points]
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
    assert np.ptp(expected) > 1e-3
    assert n == 60


def test_batches_and_measuring_in_between_change_nothing(evaluator, source):
    fixed = FixedModel(evaluator, evaluator.vectors.merge([0.3, 0.5]))
    points = [evaluator.at([0.3, 0.5]), (fixed, ()), evaluator.at([1.0, 0.0])]
    before = evaluator.evaluate([0.3, 0.5])
    measured, _ = entropies(evaluator, source, points)
    np.testing.assert_allclose(measured[0], measured[1], rtol=1e-6)
    assert [outcome.per_example for outcome in before.values()] == [
        outcome.per_example for outcome in evaluator.evaluate([0.3, 0.5]).values()
    ]
    size, calls = evaluator.batch_size, []
    try:
        evaluator.batch_size = 7  # 60 images are no multiple of it
        batched, n = entropies(evaluator, source, points, progress=lambda *at: calls.append(at))
    finally:
        evaluator.batch_size = size
    np.testing.assert_allclose(batched, measured, rtol=1e-5)
    assert n == 60
    assert calls == [(i, 27) for i in range(1, 28)]


def test_labels_are_never_read(evaluator, source, tmp_path):
    with np.load(source.path) as data:
        arrays = dict(data) | {f"{split}_labels": np.full(60, 77) for split in ("val", "test")}
    np.savez(tmp_path / "wrong.npz", **arrays)
    points = [evaluator.at([0.4, 0.4])]
    right, wrong = (entropies(evaluator, each, points) for each in (source, DataSource(path=tmp_path / "wrong.npz")))
    assert right == wrong


def test_bfloat16_is_close(tiny_zoo, evaluator, source):
    low = make_evaluator(tiny_zoo, "bfloat16")
    narrow, _ = entropies(low, source, [low.at([0.4, 0.4])])
    wide, _ = entropies(evaluator, source, [evaluator.at([0.4, 0.4])])
    assert narrow[0] != wide[0]
    np.testing.assert_allclose(narrow, wide, rtol=0.05)


def test_it_can_be_stopped_between_two_batches(evaluator, source):
    cancel, calls = Event(), []

    def stop(done, _):
        calls.append(done)
        cancel.set()

    with pytest.raises(Cancelled):
        entropies(
            evaluator, source, [evaluator.at(np.zeros(2)), evaluator.at(np.ones(2))], cancel=cancel, progress=stop
        )
    assert calls == [1]


def test_a_model_that_answers_nothing_is_refused(evaluator, source):
    with pytest.raises(MapMergeError, match="sample a smaller box"):
        entropies(evaluator, source, [evaluator.at(np.full(2, 1e30))])


def test_models_without_heads_of_names_are_refused(evaluator, source, monkeypatch):
    monkeypatch.setattr(ClipZeroShot, "gives_logits", False)
    with pytest.raises(MapMergeError, match="classify by the names of classes alone"):
        entropies(evaluator, source, [evaluator.at([0, 0])])
