"""Runs that measure points on some images of each task: kept, resumed, refined, and said how far off."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError, SearchError, StudyError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.runs.completing import complete, estimate_completion
from mapmerge_core.studies.analysis.findings import finding_of
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.analysis.replay import replay, run_front
from mapmerge_core.studies.runs.runner import Estimate, estimate, execute_run
from mapmerge_core.studies.config.run import MIN_IMAGES, QUICK_IMAGES, RunSettings
from mapmerge_core.studies.store.store import Store
from mapmerge_core.studies.store.tables import SCHEMA_VERSION
from mapmerge_core.tasks.metric import F1, PERPLEXITY, Metric, Outcome, unpack
from mapmerge_core.tasks.subsets import nested_order, standard_error

if TYPE_CHECKING:
    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.tasks.evaluator import Evaluator

ROOT = Path(__file__).parents[2]
INNER = np.array([0.2, 0.3])


def part(right: list[int], n_total: int = 60, seconds: float = 0.25) -> Outcome:
    """What was right among the first examples of a split of 60."""
    return Outcome(np.mean(right), len(right), np.packbits(right).tobytes(), seconds, n_total)


def whole(value: float) -> Outcome:
    return Outcome(value, 60, np.packbits([1] * 60).tobytes(), 1.0)


def start(
    store: Store, study: StudyRow, evaluators: EvaluatorCache, method: str = "map", **settings
) -> RunRow:
    settings = {"points": 8, "precision": "float32", "device": "cpu", "images": 20, **settings}
    run = store.create_run(study.id, RunSettings(**settings), method)
    return execute_run(store, run.id, evaluators.get)


def points_of(store: Store, study: StudyRow) -> list[tuple]:
    rows = store.subset_evaluations(study.id)
    return [(row.c.tobytes(), row.task, row.value, row.n_examples, row.per_example) for row in rows]


class Watched:
    """An evaluator that counts the images of each evaluation that it makes anew."""

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


# The store


def test_a_larger_part_takes_the_place_of_a_smaller_one_and_the_whole_split_of_any(
    store: Store, study: StudyRow
):
    def add(outcome: Outcome, run_id: int | None = None) -> bool:
        return store.add_evaluation(study.id, INNER, "Colours", "val", outcome, run_id=run_id)

    first, second = (store.create_run(study.id, RunSettings(points=6, images=20)).id for _ in range(2))
    assert add(part([1, 0] * 10), first)
    assert not add(part([1] * 20))
    assert not add(part([1] * 10))
    [row] = store.subset_evaluations(study.id)
    assert (row.value, row.n_examples, row.n_total, row.run_id) == (0.5, 20, 60, first)
    assert store.measured(study.id, INNER, "val") == {}
    assert add(part([1, 0, 1, 1] * 10), second)
    [row] = store.subset_evaluations(study.id)
    assert (row.value, row.n_examples, row.run_id) == (0.75, 40, second)
    np.testing.assert_array_equal(unpack(row.per_example, 40), [True, False, True, True] * 10)
    assert add(whole(0.7))
    assert store.subset_evaluations(study.id) == []
    assert not add(part([1] * 50))
    assert store.measured(study.id, INNER, "val") == {"Colours": 0.7}
    with pytest.raises(StudyError, match="The test split is measured whole"):
        store.add_evaluation(study.id, INNER, "Colours", "test", part([1] * 20))


def test_measuring_on_the_test_split_leaves_parts_of_the_validation_split(store: Store, study: StudyRow):
    store.add_evaluation(study.id, INNER, "Colours", "val", part([1] * 20))
    store.add_evaluation(study.id, INNER, "Colours", "test", whole(0.7))
    assert len(store.subset_evaluations(study.id, INNER)) == 1
    assert store.subset_evaluations(study.id, INNER + 0.1) == []


def test_tables_hold_the_best_that_is_known_and_how_far_off_it_may_be(store: Store, study: StudyRow):
    a, b, c = INNER, INNER + 0.1, INNER + 0.2
    right = [1, 1, 1, 0] * 5
    losses = np.arange(20, dtype="<f4")
    store.add_evaluation(study.id, b, "Colours", "val", part(right))
    store.add_evaluation(study.id, c, "Stripes", "val", Outcome(9.5, 20, losses.tobytes(), 0.1, 80))
    store.add_evaluation(study.id, a, "Colours", "val", whole(0.5))
    store.add_evaluation(study.id, a, "Stripes", "val", part(right))
    found = store.measurements(study.id)
    nan = np.nan
    np.testing.assert_array_equal(found.C, [a, b, c])
    np.testing.assert_array_equal(found.Y, [[0.5, 0.75], [0.75, nan], [nan, 9.5]])
    np.testing.assert_array_equal(found.n_examples, [[60, 20], [20, 0], [0, 20]])
    np.testing.assert_array_equal(found.whole, [[True, False], [False, False], [False, False]])
    of_right = standard_error(np.array(right, dtype=bool), 60)
    of_losses = np.sqrt(losses.var(ddof=1) / 20 * (1 - 20 / 80))
    np.testing.assert_allclose(found.S, [[0, of_right], [of_right, nan], [nan, of_losses]], rtol=1e-6)
    np.testing.assert_array_equal(found.on(20), found.Y)
    np.testing.assert_array_equal(found.on(21), [[0.5, nan], [nan, nan], [nan, nan]])
    np.testing.assert_array_equal(found.on(None), found.on(21))
    C, Y = store.table(study.id)
    np.testing.assert_array_equal(C, found.C)
    np.testing.assert_array_equal(Y, found.Y)
    assert store.table(study.id, "test")[0].shape == (0, 2)


def test_counts_follow_what_was_measured_in_part(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=6, images=20, low=0.1, high=0.4))
    prints = [store.fingerprint(study.id)]

    def add(c: np.ndarray, outcome: Outcome) -> None:
        store.add_evaluation(study.id, c, "Colours", "val", outcome, run_id=run.id)
        prints.append(store.fingerprint(study.id))

    add(INNER, part([1] * 20))
    add(INNER + 0.1, part([1] * 20))
    now = store.study(study.id)
    assert (now.n_points, now.n_evaluations) == (2, 2)
    assert now.changed > study.changed
    assert store.sampled_box(study.id) == (0.1, 0.4)
    row = store.run(run.id)
    assert (row.n_evaluations, row.seconds) == (2, 0.5)
    add(INNER, part([1] * 30))
    add(INNER + 0.1, whole(0.5))
    add(INNER, part([1] * 40))
    add(INNER, whole(0.5))
    assert len(set(prints)) == len(prints)
    now = store.study(study.id)
    assert (now.n_points, now.n_evaluations, store.run(run.id).n_evaluations) == (2, 2, 2)
    # Of a task that was measured whole and one that was not, the point is one.
    store.add_evaluation(study.id, INNER, "Stripes", "val", part([1] * 20), run_id=run.id)
    assert (store.study(study.id).n_points, store.study(study.id).n_evaluations) == (2, 3)


def test_deleting_a_study_deletes_what_was_measured_in_part(store: Store, study: StudyRow, spec: StudySpec):
    other = store.create_study("Other", spec)
    for each in (study, other):
        store.add_evaluation(each.id, INNER, "Colours", "val", part([1] * 20))
    store.delete_study(study.id)
    assert store.subset_evaluations(study.id) == []
    assert len(store.subset_evaluations(other.id)) == 1


def test_a_database_of_the_version_before_gains_the_table(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=9))
    store.add_evaluation(study.id, INNER, "Colours", "val", whole(0.5), run_id=run.id)
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TABLE subset_evaluations")
        connection.execute("UPDATE runs SET settings = json_remove(settings, '$.images')")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
    connection.close()
    again = Store(store.folder)
    assert [row.settings for row in again.runs(study.id)] == [RunSettings(points=9)]
    assert again.measured(study.id, INNER, "val") == {"Colours": 0.5}
    assert again.add_evaluation(study.id, INNER, "Stripes", "val", part([1] * 20))
    assert again.measurements(study.id).n_examples.tolist() == [[60, 20]]
    again.close()


# Runs


def test_points_are_measured_in_part_and_anchors_whole(
    store: Store, study: StudyRow, evaluators: EvaluatorCache, monkeypatch: pytest.MonkeyPatch
):
    evaluator = evaluators.get(study, "cpu", "float32")
    watched = Watched(evaluator, monkeypatch)
    run = start(store, study, evaluators)
    assert (run.status, run.n_evaluations) == ("done", 16)
    assert watched.taken() == 2 * (3 * 60 + 5 * 20)
    found = store.measurements(study.id)
    np.testing.assert_array_equal(found.C[:3], [[0, 0], [1, 0], [0, 1]])
    assert found.whole[:3].all()
    assert not found.whole[3:].any()
    # Each value is what the whole split says of the split's first examples.
    for c, values, errors in zip(found.C[3:], found.Y[3:], found.S[3:], strict=True):
        for k, (task, outcome) in enumerate(evaluator.evaluate(c).items()):
            order = nested_order(evaluator.family.labels(evaluator.tasks[task], "val").numpy(), 60)
            first = unpack(outcome.per_example, 60)[order[:20]]
            assert values[k] == first.mean()
            assert errors[k] == standard_error(first, 60) > 0


def test_a_later_run_with_more_images_measures_only_the_missing_ones(
    store: Store, study: StudyRow, evaluators: EvaluatorCache, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(evaluators.get(study, "cpu", "float32"), monkeypatch)
    coarse = start(store, study, evaluators)
    before = store.run(coarse.id).seconds
    watched.taken()
    assert start(store, study, evaluators).n_evaluations == 0
    assert watched.taken() == 0
    fine = start(store, study, evaluators, images=50)
    assert watched.taken() == 2 * 5 * 30
    assert fine.n_evaluations == 10
    assert store.run(coarse.id).n_evaluations == 6  # of the anchors
    # No time is lost: what measuring the first images took counts on.
    assert fine.seconds + store.run(coarse.id).seconds > before
    # Fewer images are enough where more are known.
    values = store.table(study.id)
    again = start(store, study, evaluators, images=30)
    assert (again.n_evaluations, watched.taken()) == (0, 0)
    np.testing.assert_array_equal(store.table(study.id)[1], values[1])
    # All images: the very bits of a study that was never measured in part.
    start(store, study, evaluators, images=None)
    assert watched.taken() == 2 * 5 * 10
    assert store.subset_evaluations(study.id) == []
    calm = store.create_study("Calm", study.spec)
    start(store, calm, evaluators, images=None)
    for ours, theirs in zip(
        sorted(store.evaluations(study.id), key=lambda row: (row.c.tobytes(), row.task)),
        sorted(store.evaluations(calm.id), key=lambda row: (row.c.tobytes(), row.task)),
        strict=True,
    ):
        assert ours.c.tolist() == theirs.c.tolist()
        assert (ours.task, ours.value, ours.n_examples, ours.per_example) == (
            theirs.task, theirs.value, theirs.n_examples, theirs.per_example,
        )  # fmt: skip


def test_refining_is_the_same_as_measuring_more_at_once(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    start(store, study, evaluators, images=12)
    start(store, study, evaluators, images=45)
    at_once = store.create_study("At once", study.spec)
    start(store, at_once, evaluators, images=45)
    assert points_of(store, study) == points_of(store, at_once)


@pytest.mark.parametrize("images", [60, 61, 10_000])
def test_as_many_images_as_there_are_are_the_whole_split(
    store: Store, study: StudyRow, evaluators: EvaluatorCache, images: int
):
    start(store, study, evaluators, points=5, images=images)
    assert store.subset_evaluations(study.id) == []
    assert store.measurements(study.id).whole.all()
    assert start(store, study, evaluators, points=5, images=None).n_evaluations == 0


def test_progress_counts_what_is_known_and_what_is_refined(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    start(store, study, evaluators, points=5)
    for images, known in ((20, 10), (30, 6), (20, 10)):
        run = store.create_run(study.id, RunSettings(points=5, images=images))
        seen: list[tuple[int, int]] = []
        execute_run(store, run.id, evaluators.get, progress=lambda *counts, seen=seen: seen.append(counts))
        assert seen == [(done, 10) for done in range(known, 11)]


def test_what_another_process_measured_meanwhile_is_used(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    C = np.array([INNER, INNER + 0.1, INNER + 0.2])

    def interfere(done: int, _: int) -> None:
        if done == 1:  # the first task of the first point is measured, the second one on its way
            store.add_evaluation(study.id, C[0], "Stripes", "val", part([1, 0] * 15))
            store.add_evaluation(study.id, C[1], "Colours", "val", part([1, 0, 0] * 10))
            store.add_evaluation(study.id, C[2], "Colours", "val", whole(0.125))

    values = measure(store, study, evaluators.get(study, "cpu", "float32"), C, images=20, progress=interfere)
    assert (values[0, 1], values[1, 0], values[2, 0]) == (0.5, 1 / 3, 0.125)
    np.testing.assert_array_equal(values[[2, 0, 1]], store.table(study.id)[1])


@pytest.mark.parametrize(("method", "points"), [("map", 9), ("bayesian", 12), ("nested", 8), ("direct", 9)])
def test_a_stopped_run_goes_on_to_the_points_of_one_that_never_stopped(
    store: Store, study: StudyRow, evaluators: EvaluatorCache, method: str, points: int
):
    calm = store.create_study("Calm", study.spec)
    start(store, calm, evaluators, method, points=points, high=0.7)
    settings = RunSettings(points=points, high=0.7, precision="float32", device="cpu", images=20)
    run = store.create_run(study.id, settings, method)
    n_stops = 0
    for stop_at in (3, 9, 14):
        cancel = Event()

        def stop(done: int, _: int, cancel: Event = cancel, stop_at: int = stop_at) -> None:
            if done == stop_at:
                cancel.set()

        n_stops += (
            execute_run(store, run.id, evaluators.get, cancel=cancel, progress=stop).status == "stopped"
        )
    assert n_stops == 3
    kept = points_of(store, study)
    assert execute_run(store, run.id, evaluators.get).status == "done"
    assert points_of(store, study)[: len(kept)] == kept
    assert points_of(store, study) == points_of(store, calm)
    for ours, theirs in zip(store.table(study.id), store.table(calm.id), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_kill_9_loses_nothing_of_a_run_that_refines(
    request: pytest.FixtureRequest, tiny_zoo: Path, tmp_path: Path, evaluators: EvaluatorCache
):
    home = tmp_path / "killed"
    store = Store(home)
    study = store.create_study("Killed", spec_from_manifest(tiny_zoo, ["Colours", "Stripes"]))
    start(store, study, evaluators, points=120, images=10)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mapmerge_core", "run", "--study", "Killed", "--points", "120", "--images",
            "25", "--precision", "float32", "--device", "cpu",
        ],
        cwd=ROOT, env={**os.environ, "MAPMERGE_HOME": str(home)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 600
    while sum(row.n_examples == 25 for row in store.subset_evaluations(study.id)) < 15:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()

    store = Store(home)
    rows = store.subset_evaluations(study.id)
    assert len(rows) == 117 * 2  # every point on each task still, with 10 images or with 25
    refined = [row for row in rows if row.n_examples == 25]
    assert 15 <= len(refined) < len(rows)
    [run] = store.recover()
    claim = store.claim_run(run.id)
    execute_run(store, run.id, evaluators.get)
    claim.release()
    after = store.subset_evaluations(study.id)
    assert [row.id for row in after[: len(refined)]] == [row.id for row in refined]
    calm = store.create_study("Calm", study.spec)
    start(store, calm, evaluators, points=120, images=25)
    assert points_of(store, study) == points_of(store, calm)


# What comes of them


def test_surrogates_fronts_and_comparisons_of_a_run_on_some_images(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    run = start(store, study, evaluators, points=10)
    analysis = analyse(store, study.id, generations=20)
    assert len(analysis.fitted_front) > 0
    assert len(analysis.anchors()) == 3
    np.testing.assert_array_equal(analysis.S, store.measurements(study.id).S)
    assert ((analysis.S > 0).sum(), (analysis.S == 0).sum()) == (14, 6)
    finding = finding_of(store, run)
    assert (finding.problem, finding.evaluations) == ("", 20)
    assert finding.seconds == pytest.approx(run.seconds)
    assert estimate_completion(store, study.id) > 0
    complete(store, study.id, lambda each: evaluators.get(each, "cpu", "float32"), baselines=["soup"])
    [entry] = [row for row in compare(store, study.id).rows if row.name == "MAP"]
    assert np.isfinite(entry.metrics).all()
    # A front is found anew once its points are refined.
    start(store, study, evaluators, points=10, images=50)
    again = finding_of(store, run)
    assert not np.array_equal(again.replay.Y, finding.replay.Y)
    np.testing.assert_array_equal(again.replay.Y, store.table(study.id)[1])


def test_a_study_measured_in_part_alone_breaks_nothing(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    run = start(store, study, evaluators, points=8, anchors=False)
    assert store.evaluations(study.id) == []
    assert (store.study(study.id).n_points, store.study(study.id).n_evaluations) == (8, 16)
    analysis = analyse(store, study.id, generations=20)
    assert analysis.problem is None
    assert analysis.anchors() == []
    assert np.isnan(analysis.single).all()
    assert estimate_completion(store, study.id) is None
    complete(store, study.id, lambda each: evaluators.get(each, "cpu", "float32"), baselines=False)
    assert np.isfinite(run_front(store, run.id).values).all()
    [entry] = [row for row in compare(store, study.id).rows if row.name == "MAP"]
    assert np.isfinite(entry.metrics).all()


def test_an_adaptive_run_whose_points_were_refined_says_so(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    run = start(store, study, evaluators, "bayesian", points=30, initial=8, batch=2)
    assert len(replay(store, run.id).C) == 30
    start(store, study, evaluators, points=8, images=50)  # the same eight points that it starts with
    with pytest.raises(StudyError, match=f"What run {run.id} measured has been refined on more images since"):
        replay(store, run.id)
    # The same run on more images has all that it would choose now.
    later = start(store, study, evaluators, "bayesian", points=30, initial=8, batch=2, images=50)
    for ours, theirs in zip(replay(store, run.id).Y, replay(store, later.id).Y, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Settings


@pytest.mark.parametrize("images", [9, 0, -5, 2.5, True, "20"])
def test_too_few_images_are_refused(store: Store, study: StudyRow, images: object):
    sentence = f"The images of each task must be a whole number from 10 on, not {images}."
    with pytest.raises(SearchError, match=f"^{sentence}$"):
        store.create_run(study.id, RunSettings(points=8, images=images))
    assert store.runs(study.id) == []


@pytest.mark.parametrize(
    ("family", "metric", "sentence"),
    [
        ("clip", F1, "'Stripes' is measured by F1, which is no mean over images, so that some of them don't"),
        ("language", PERPLEXITY, "'Stripes' is measured by perplexity, which is no mean over images"),
        (
            "own:measure",
            Metric("loss", maximize=False),
            "'own:measure' brings its own data and measures all of it: leave the number of images out.",
        ),
    ],
)
def test_what_cannot_be_measured_in_part_is_refused_at_once(
    spec: StudySpec, family: str, metric: Metric, sentence: str
):
    tasks = (spec.tasks[0], replace(spec.tasks[1], metric=metric))
    if family == "own:measure":
        tasks = (replace(spec.tasks[0], metric=metric), tasks[1])
    architecture = spec.architecture if family == "clip" else ""
    other = replace(spec, family=family, architecture=architecture, tasks=tasks)
    RunSettings(points=8).check("map", other)
    for method in ("map", "bayesian", "nested", "direct"):
        with pytest.raises(MapMergeError) as error:
            RunSettings(points=12, images=20).check(method, other)
        assert str(error.value).startswith(sentence)


def test_the_estimate_of_a_run_on_some_images():
    found = Estimate(10.0, "cpu", "float32", 0.0, 2.0, (1010, 1010))
    assert found.seconds_for(20) == 200
    assert found.seconds_for(20, images=10) == 3 * 10 + 17 * 2
    assert found.seconds_for(20, images=510) == pytest.approx(3 * 10 + 17 * 6)
    assert found.seconds_for(20, images=5000) == 200
    assert found.seconds_for(2, images=10) == 20
    # Of splits of other sizes each counts with the images that it has.
    uneven = Estimate(10.0, "cpu", "float32", 0.0, 2.0, (110, 310))
    assert uneven.seconds_for(4, images=210) == pytest.approx(3 * 10 + 2 + 8 * 0.75)
    # Where nothing can be measured in part, and of splits that are too small for that, all is as ever.
    assert Estimate(10.0, "cpu", "float32").seconds_for(5, images=20) == 50
    assert Estimate(10.0, "cpu", "float32", 0.0, 2.0, (10, 8)).seconds_for(5, images=20) == 50
    assert Estimate(2.0, "cpu", "float32", 0.0, 5.0, (90, 90)).seconds_for(5, images=20) == 10


def test_the_estimate_times_few_images_for_real(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    found = estimate(store, study, evaluators.get(study, "cpu", "float32"))
    assert found.sizes == (60, 60)
    assert found.seconds_per_few > 0
    assert found.seconds_for(20, images=MIN_IMAGES) <= found.seconds_for(20)
    assert store.subset_evaluations(study.id) == []


def test_the_quick_preset_can_be_run(spec: StudySpec):
    RunSettings(points=8, images=QUICK_IMAGES).check("map", spec)
