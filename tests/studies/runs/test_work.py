"""What an evaluation and a study cost, counted in work instead of seconds, so that no slow path creeps in."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from mapmerge_core.search.surrogates import quadratic as surrogate
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.tasks.datasets import npz
from mapmerge_core.tasks.evaluator import PRECISIONS
from mapmerge_core.weights.vectors import sums
from mapmerge_core.weights.vectors import task_vectors
from tests.tiny import CLASS_NAMES, SPLIT_SIZE, TEMPLATES

if TYPE_CHECKING:
    from mapmerge_core.studies.store.rows import Study
    from mapmerge_core.studies.config.run import VectorsDtype
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

POINTS, BATCH = 8, 25
TASKS = ("Colours", "Stripes")


class Counting(EvaluatorCache):
    """Counts what passes through the models of its one evaluator."""

    def __init__(self, counts: Counter) -> None:
        super().__init__()
        self.counts = counts
        self.known: Evaluator | None = None

    def get(
        self,
        study: Study,
        device: str = "cpu",
        precision: str = "float32",
        vectors: VectorsDtype = "float32",
    ) -> Evaluator:
        evaluator = super().get(study, device, precision, vectors)
        if evaluator is not self.known:
            assert self.known is None, "the models are read once"
            self.known = evaluator
            evaluator.batch_size = BATCH
            models = [evaluator.family.model_in(dtype) for dtype in PRECISIONS.values()]
            for model in models:
                model.visual.register_forward_hook(self._image)
                model.token_embedding.register_forward_hook(self._text)
        return evaluator

    def _image(self, _: object, inputs: tuple, __: object) -> None:
        self.counts["images"] += len(inputs[0])
        self.counts["forward passes"] += 1

    def _text(self, _: object, inputs: tuple, __: object) -> None:
        self.counts["texts"] += len(inputs[0])


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts merges and the numbers that they read, splits whose images are decoded, and fits."""
    counts: Counter = Counter()
    make, pair, fit = sums.make_sums, npz._pair, surrogate.fit

    def merge(wanted, C):
        counts["merges"] += len(C)
        counts["numbers read"] += sum(base.numel() + rows.numel() for base, rows, *_ in wanted)
        make(wanted, C)

    def decoded(*args):
        counts["splits decoded"] += 1
        return pair(*args)

    def fitted(*args, **options):
        counts["fits"] += 1
        return fit(*args, **options)

    for module in (sums, task_vectors):
        monkeypatch.setattr(module, "make_sums", merge)
    monkeypatch.setattr(npz, "_pair", decoded)
    monkeypatch.setattr(surrogate, "fit", fitted)
    return counts


def run(store: Store, study: Study, cache: EvaluatorCache, points: int = POINTS) -> None:
    settings = RunSettings(points=points, device="cpu", precision="float32")
    execute_run(store, store.create_run(study.id, settings).id, cache.get)


def bytes_read() -> int:
    """What this process has read from files so far; 0 where the system doesn't tell."""
    counters = getattr(psutil.Process(), "io_counters", None)
    return counters().read_chars if counters else 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_c_is_merged_once_and_passes_every_image_once(study: Study, counts: Counter, precision: str):
    evaluator = Counting(counts).get(study, precision=precision)
    evaluator.evaluate(np.full(2, 0.2))
    counts.clear()
    before = bytes_read()
    evaluator.evaluate(np.full(2, 0.3))
    read = bytes_read() - before
    [group] = evaluator.vectors.groups
    assert counts["images"] == len(TASKS) * SPLIT_SIZE
    assert counts["forward passes"] == len(TASKS) * math.ceil(SPLIT_SIZE / BATCH)
    assert counts["merges"] == 1, "all tensors at once"
    assert counts["numbers read"] <= 3 * len(group.base), "θ_pre and two task vectors, once"
    assert counts["texts"] == counts["splits decoded"] == 0
    assert read < 1000, "bytes of files; nothing but what the system tells of this process"


def test_a_study_reads_everything_once_and_measures_nothing_twice(
    store: Store, study: Study, counts: Counter
):
    cache = Counting(counts)
    run(store, study, cache)
    assert counts["merges"] == POINTS
    assert counts["images"] == POINTS * len(TASKS) * SPLIT_SIZE
    assert counts["texts"] == len(TEMPLATES) * sum(len(CLASS_NAMES[task]) for task in TASKS)
    assert counts["splits decoded"] == 2 * len(TASKS), "both are checked when a dataset is opened"
    counts.clear()
    run(store, study, cache)
    assert not counts, "a second run of the same points does nothing"
    run(store, study, cache, points=POINTS + 3)
    assert counts["merges"] == 3, "a longer one measures the new points alone"


def test_an_analysis_fits_each_surrogate_once(
    store: Store, study: Study, counts: Counter, evaluators: EvaluatorCache
):
    run(store, study, evaluators)
    counts.clear()
    assert analyse(store, study.id, generations=2).front is not None
    assert counts["fits"] == len(TASKS)
    assert counts["merges"] == 0
