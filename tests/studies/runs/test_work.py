"""What an evaluation and a study cost, counted in work instead of seconds, so that no slow path creeps in."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from mapmerge_core.search.surrogates import quadratic
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.config import Compute
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.tasks.datasets import npz
from mapmerge_core.weights.vectors import sums, task_vectors
from tests.studies.runs.helpers import CPU, execute
from tests.tiny import CLASS_NAMES, SPLIT_SIZE, TEMPLATES

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store, Study
    from mapmerge_core.tasks.evaluator import Evaluator

POINTS, BATCH = 8, 25
TASKS = ("Colours", "Stripes")
PRECISIONS = ("float32", "bfloat16")


class Counting(EvaluatorCache):
    """Counts what passes through the models of its one evaluator."""

    def __init__(self, counts: Counter) -> None:
        super().__init__()
        self.counts = counts
        self.known: Evaluator | None = None

    def get(self, study: Study, compute: Compute = CPU) -> Evaluator:
        from mapmerge_core.tasks.devices import dtype_of

        evaluator = super().get(study, compute)
        if evaluator is not self.known:
            assert self.known is None, "the models are read once"
            self.known = evaluator
            evaluator.batch_size = BATCH
            models = [evaluator.family.model_in(dtype_of(precision)) for precision in PRECISIONS]
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
    make, images, fit = sums.make_sums, npz._images, quadratic.fit

    def merge(wanted, C):
        counts["merges"] += len(C)
        counts["numbers read"] += sum(base.numel() + rows.numel() for base, rows, *_ in wanted)
        make(wanted, C)

    def decoded(*args):
        counts["splits decoded"] += 1
        return images(*args)

    def fitted(*args, **options):
        counts["fits"] += 1
        return fit(*args, **options)

    for module in (sums, task_vectors):
        monkeypatch.setattr(module, "make_sums", merge)
    monkeypatch.setattr(npz, "_images", decoded)
    monkeypatch.setattr(quadratic, "fit", fitted)
    return counts


def bytes_read() -> int:
    """What this process has read from files so far; 0 where the system doesn't tell."""
    counters = getattr(psutil.Process(), "io_counters", None)
    return counters().read_chars if counters else 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_c_is_merged_once_and_passes_every_image_once(study: Study, counts: Counter, precision: str):
    evaluator = Counting(counts).get(study, Compute(device="cpu", precision=precision))
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


def test_a_study_reads_everything_once_and_measures_nothing_twice(store: Store, study: Study, counts: Counter):
    cache = Counting(counts)
    execute(store, study, cache, points=POINTS)
    assert counts["merges"] == POINTS
    assert counts["images"] == POINTS * len(TASKS) * SPLIT_SIZE
    assert counts["texts"] == len(TEMPLATES) * sum(len(CLASS_NAMES[task]) for task in TASKS)
    assert counts["splits decoded"] == 2 * len(TASKS), "both are checked when a dataset is opened"
    counts.clear()
    execute(store, study, cache, points=POINTS)
    assert not counts, "a second run of the same points does nothing"
    execute(store, study, cache, points=POINTS + 3)
    assert counts["merges"] == 3, "a longer one measures the new points alone"


def test_a_transform_is_made_once_for_all_of_a_runs_points(
    store: Store, study: Study, counts: Counter, monkeypatch: pytest.MonkeyPatch
):
    from mapmerge_core.registries import MERGES

    ties, cache = MERGES["ties"], Counting(counts)
    transform = ties.transform_vectors

    def counted(*args):
        counts["transforms"] += 1
        return transform(*args)

    monkeypatch.setattr(ties, "transform_vectors", counted)
    for points in (POINTS, POINTS + 3):
        execute(store, study, cache, merge="ties", points=points)
    assert counts["transforms"] == 1
    # Its own points, and the three references that every comparison needs.
    assert counts["merges"] == POINTS + 3 + 3
    assert counts["images"] == (POINTS + 3 + 3) * len(TASKS) * SPLIT_SIZE


def test_an_analysis_fits_each_surrogate_once(store: Store, study: Study, counts: Counter, evaluators: EvaluatorCache):
    execute(store, study, evaluators, points=POINTS)
    counts.clear()
    assert analyse(store, study.id, generations=2).front is not None
    assert counts["fits"] == len(TASKS)
    assert counts["merges"] == 0
