"""Runs that measure points on some images of each task: kept, resumed, refined, and said how far off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.analysis.replay import run_result
from mapmerge_core.studies.config import MIN_IMAGES
from mapmerge_core.studies.runs.completing import complete, estimate_completion
from mapmerge_core.studies.runs.estimating import Estimate, estimate
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.tasks.outcome import Outcome, unpack
from mapmerge_core.tasks.subsets import nested_order, standard_error
from tests.studies.runs.helpers import CPU, plain, run_config, table
from tests.studies.runs.helpers import execute as execute_whole
from tests.studies.runs.test_runner import KEYS, ROOT, RUN

if TYPE_CHECKING:
    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store import Run, Store, Study
    from mapmerge_core.tasks.evaluator import Evaluator

INNER = np.array([0.2, 0.3])


def part(right: list[int], n_total: int = 60) -> Outcome:
    """What was right among the first examples of a split of 60."""
    return Outcome(np.mean(right), len(right), np.packbits(right).tobytes(), 0.25, n_total, 0.01)


def whole(value: float) -> Outcome:
    return Outcome(value, 60, np.packbits([1] * 60).tobytes(), 1.0, None, 0.01)


def execute(store: Store, study: Study, evaluators: EvaluatorCache, **settings: object) -> Run:
    return execute_whole(store, study, evaluators, **({"points": 8, "images": 20} | settings))


def parts_of(store: Store, study: Study) -> list[tuple]:
    """Everything known of parts, by point."""
    merge_id = plain(store, study)
    rows = []
    for x in table(store, merge_id)[0]:
        for key, each in store.evaluations.partial(merge_id, x).items():
            rows.append((x.tobytes(), key, each.value, each.n_examples, each.per_example))
    return rows


class Watched:
    """Counts the images of each evaluation that an evaluator makes anew."""

    def __init__(self, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        logits = evaluator.family.logits

        def watched(batch, task, dtype):
            self.counts.append(len(batch))
            return logits(batch, task, dtype)

        monkeypatch.setattr(evaluator.family, "logits", watched)

    def taken(self) -> int:
        n = sum(self.counts)
        self.counts.clear()
        return n


def test_points_are_measured_in_part_and_references_whole(
    store: Store, study: Study, evaluators: EvaluatorCache, monkeypatch: pytest.MonkeyPatch
):
    evaluator = evaluators.get(study, CPU)
    watched = Watched(evaluator, monkeypatch)
    run = execute(store, study, evaluators)
    assert (run.status, run.n_evaluations) == ("done", 16)
    assert watched.taken() == 2 * (3 * 60 + 5 * 20)
    measured = store.evaluations.table(run.merge_id)
    np.testing.assert_array_equal(measured.X[:3], [[0, 0], [1, 0], [0, 1]])
    assert measured.is_whole[:3].all()
    assert not measured.is_whole[3:].any()
    # Each value is what the whole split says of the split's first examples.
    for c, values, errors in zip(measured.X[3:], measured.Y[3:], measured.S[3:], strict=True):
        for k, (task, outcome) in enumerate(evaluator.evaluate(c).items()):
            order = nested_order(evaluator.family.labels(evaluator.tasks[task], "val").numpy(), 60)
            first = unpack(outcome.per_example, 60)[order[:20]]
            assert values[k] == first.mean()
            assert errors[k] == pytest.approx(standard_error(first, 60), rel=1e-12)
            assert errors[k] > 0


def test_other_merges_are_measured_in_part_at_every_point(store: Store, study: Study, evaluators: EvaluatorCache):
    run = execute(store, study, evaluators, merge="ties", points=5)
    assert not store.evaluations.table(run.merge_id).is_whole.any()
    assert store.evaluations.table(plain(store, study)).is_whole.all()
    # More images of the same points: only the others are measured, and the values are those of all at once.
    execute(store, study, evaluators, merge="ties", points=5, images=50)
    other = store.studies.create("At once", study.config)
    at_once = execute(store, other, evaluators, merge="ties", points=5, images=50)
    np.testing.assert_array_equal(table(store, run.merge_id)[1], table(store, at_once.merge_id)[1])


def test_a_later_run_with_more_images_measures_only_the_missing_ones(
    store: Store, study: Study, evaluators: EvaluatorCache, monkeypatch: pytest.MonkeyPatch
):
    merge_id = plain(store, study)
    watched = Watched(evaluators.get(study, CPU), monkeypatch)
    coarse = execute(store, study, evaluators)
    before = store.runs.get(coarse.id).seconds
    watched.taken()
    assert execute(store, study, evaluators, points=8, seed=0).n_evaluations == 0
    assert watched.taken() == 0
    fine = execute(store, study, evaluators, images=50)
    assert watched.taken() == 2 * 5 * 30
    assert fine.n_evaluations == 10
    assert store.runs.get(coarse.id).n_evaluations == 6  # of the references
    # No time is lost: what measuring the first images took counts on.
    assert fine.seconds + store.runs.get(coarse.id).seconds > before
    # Fewer images are enough where more are known.
    _, values = table(store, merge_id)
    again = execute(store, study, evaluators, images=30)
    assert (again.n_evaluations, watched.taken()) == (0, 0)
    np.testing.assert_array_equal(table(store, merge_id)[1], values)
    # All images: the very bits of a study that was never measured in part.
    execute(store, study, evaluators, images=None)
    assert watched.taken() == 2 * 5 * 10
    assert parts_of(store, study) == []
    calm = store.studies.create("Calm", study.config)
    execute(store, calm, evaluators, images=None)

    def rows(of: Study) -> list[tuple]:
        every = store.evaluations.rows(plain(store, of), "val")
        return sorted((row.x.tobytes(), row.objective, row.value, row.n_examples, row.per_example) for row in every)

    assert rows(study) == rows(calm)


def test_refining_is_the_same_as_measuring_more_at_once(store: Store, study: Study, evaluators: EvaluatorCache):
    execute(store, study, evaluators, images=12)
    execute(store, study, evaluators, images=45)
    at_once = store.studies.create("At once", study.config)
    execute(store, at_once, evaluators, images=45)
    assert parts_of(store, study) == parts_of(store, at_once)


@pytest.mark.parametrize("images", [60, 10_000])
def test_as_many_images_as_there_are_are_the_whole_split(
    store: Store, study: Study, evaluators: EvaluatorCache, images: int
):
    execute(store, study, evaluators, points=5, images=images)
    assert parts_of(store, study) == []
    assert store.evaluations.table(plain(store, study)).is_whole.all()
    assert execute(store, study, evaluators, points=5, images=None).n_evaluations == 0


def test_progress_counts_what_is_known_and_what_is_refined(store: Store, study: Study, evaluators: EvaluatorCache):
    execute(store, study, evaluators, points=5)
    for images, known in ((20, 10), (30, 6), (20, 10)):
        run = store.runs.create(study.id, run_config(points=5, images=images))
        seen: list[tuple[int, int]] = []
        execute_run(store, run.id, evaluators.get, progress=lambda *counts, seen=seen: seen.append(counts))
        assert seen == [(done, 10) for done in range(known, 11)]


def test_what_another_process_measured_meanwhile_is_used(store: Store, study: Study, evaluators: EvaluatorCache):
    merge_id, C = plain(store, study), np.array([INNER, INNER + 0.1, INNER + 0.2])

    def interfere(done: int, _: int) -> None:
        if done == 1:  # the first task of the first point is measured, the second one on its way
            store.evaluations.add(merge_id, C[0], KEYS[1], "val", part([1, 0] * 15))
            store.evaluations.add(merge_id, C[1], KEYS[0], "val", part([1, 0, 0] * 10))
            store.evaluations.add(merge_id, C[2], KEYS[0], "val", whole(0.125))

    evaluator = evaluators.get(study, CPU)
    values = measure(store, study, evaluator, merge_id, C, images=20, progress=interfere)
    assert (values[0, 1], values[1, 0], values[2, 0]) == (0.5, 1 / 3, 0.125)
    X, Y = table(store, merge_id)
    for x, row in zip(C, values, strict=True):
        np.testing.assert_array_equal(Y[(x == X).all(axis=1)], [row])


@pytest.mark.parametrize(("method", "points"), [("map", 9), ("bayesian", 12), ("nested", 8), ("direct", 9)])
def test_a_stopped_run_goes_on_to_the_points_of_one_that_never_stopped(
    store: Store, study: Study, evaluators: EvaluatorCache, method: str, points: int
):
    calm = store.studies.create("Calm", study.config)
    settings = {"method": method, "points": points} | ({} if method == "nested" else {"high": 0.7})
    execute(store, calm, evaluators, **settings)
    run = store.runs.create(study.id, run_config(**settings, images=20))
    n_stops = 0
    for stop_at in (3, 9, 14):
        cancel = Event()

        def stop(done: int, _: int, cancel: Event = cancel, stop_at: int = stop_at) -> None:
            if done == stop_at:
                cancel.set()

        ended = execute_run(store, run.id, evaluators.get, cancel=cancel, progress=stop)
        n_stops += ended.status == "stopped"
    assert n_stops == 3
    kept = parts_of(store, study)
    assert execute_run(store, run.id, evaluators.get).status == "done"
    assert set(kept) <= set(parts_of(store, study))
    assert parts_of(store, study) == parts_of(store, calm)
    for ours, theirs in zip(table(store, run.merge_id), table(store, plain(store, calm)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_kill_9_loses_nothing_of_a_run_that_refines(
    request: pytest.FixtureRequest, store: Store, study: Study, evaluators: EvaluatorCache
):
    execute(store, study, evaluators, points=60, images=10)
    run = store.runs.create(study.id, run_config(points=60, images=25))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(store.folder), str(run.id)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    request.addfinalizer(process.kill)

    def n_refined() -> int:
        return int((store.evaluations.table(run.merge_id).n_examples == 25).sum())

    deadline = time.monotonic() + 600
    while n_refined() < 15:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    # Every point on each task still, with 10 images or with 25.
    assert len(parts_of(store, study)) == 57 * 2
    assert 15 <= n_refined() < 57 * 2
    [interrupted] = store.runs.recover()
    claim = store.runs.claim(interrupted.id)
    execute_run(store, run.id, evaluators.get)
    claim.release()
    calm = store.studies.create("Calm", study.config)
    execute(store, calm, evaluators, points=60, images=25)
    assert sorted(parts_of(store, study)) == sorted(parts_of(store, calm))


# What comes of them


def test_surrogates_fronts_and_comparisons_of_a_run_on_some_images(
    store: Store, study: Study, evaluators: EvaluatorCache
):
    run = execute(store, study, evaluators, points=10)
    analysis = analyse(store, study.id, generations=20).merge(run.merge_id)
    assert len(analysis.front.x) > 0
    assert ((analysis.S > 0).sum(), (analysis.S == 0).sum()) == (14, 6)
    before = run_result(store, run.id)
    assert estimate_completion(store, study.id) > 0
    complete(store, study.id, evaluators.get, merges=["soup"], compute=CPU)
    row = next(row for row in compare(store, study.id).rows if row.run_id == run.id)
    assert np.isfinite(row.metrics).all()
    # A front is found anew once its points are refined.
    execute(store, study, evaluators, points=10, images=50)
    after = run_result(store, run.id)
    assert before is not after


def test_an_adaptive_run_whose_points_were_refined_is_compared_by_what_is_known_now(
    store: Store, study: Study, evaluators: EvaluatorCache
):
    settings = {"method": "bayesian", "points": 20, "initial": 8, "batch": 2}
    execute(store, study, evaluators, **settings)
    execute(store, study, evaluators, points=8, images=50)  # the same eight points that it starts with
    # The same run on more images chooses anew from what it learns.
    later = execute(store, study, evaluators, **settings, images=50)
    assert later.status == "done"


def test_the_estimate_of_a_run_on_some_images():
    def timed(sizes: tuple[int, ...] = (), few: float = 2.0, each: float = 10.0) -> Estimate:
        return Estimate(
            seconds_per_point=each, device="cpu", precision="float32", seconds_per_few=few, sizes=sizes, n_references=3
        )

    same = timed((1010, 1010))
    assert same.seconds_for(20) == 200
    assert same.seconds_for(20, images=10) == 3 * 10 + 17 * 2
    assert same.seconds_for(20, images=510) == pytest.approx(3 * 10 + 17 * 6)
    assert same.seconds_for(20, images=5000) == 200
    assert same.seconds_for(2, images=10) == 20
    # Of splits of other sizes each counts with the images that it has.
    assert timed((110, 310)).seconds_for(4, images=210) == pytest.approx(3 * 10 + 2 + 8 * 0.75)
    # Where nothing can be measured in part, and of splits that are too small for that, all is as ever.
    assert timed().seconds_for(5, images=20) == 50
    assert timed((10, 8)).seconds_for(5, images=20) == 50
    assert timed((90, 90), few=5.0, each=2.0).seconds_for(5, images=20) == 10
    assert replace(same, seconds_to_prepare=7.0).seconds_for(20) == 207


def test_the_estimate_times_few_images_for_real(store: Store, study: Study, evaluators: EvaluatorCache):
    result = estimate(store, study, evaluators.get(study, CPU), run_config())
    assert result.sizes == (60, 60)
    assert result.seconds_per_few > 0
    assert result.seconds_for(20, images=MIN_IMAGES) <= result.seconds_for(20)
    assert parts_of(store, study) == []


@pytest.mark.parametrize("images", [9, 0, -5])
def test_too_few_images_are_refused(store: Store, study: Study, images: int):
    with pytest.raises(MapMergeError, match="images"):
        store.runs.create(study.id, run_config(images=images))
    assert store.runs.all(study.id) == []
