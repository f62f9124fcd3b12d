"""Background work: progress, stop, resume, failure, and everything that runs beside runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import Cancelled, StudyError
from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.config import Compute, StudyConfig
from mapmerge_core.studies.jobs.jobs import Jobs
from mapmerge_core.tasks.data_source import DataSource
from tests.studies.runs.helpers import plain, run_config
from tests.studies.runs.test_preparing import TRAINING, add

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Run, Store, Study

MANY = 400  # points: more than any test waits for


@pytest.fixture
def jobs(store: Store) -> Iterator[Jobs]:
    jobs = Jobs(store)
    yield jobs
    jobs.close()


def new_run(store: Store, study: Study, points: int = 5, device: str = "auto", **settings: object) -> Run:
    return store.runs.create(study.id, run_config(points=points, compute=Compute(device=device), **settings))


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rows(store: Store, study: Study) -> list[int]:
    return [row.id for row in store.evaluations.rows(plain(store, study), "val")]


def test_a_run_ends_with_everything_stored(store: Store, study: Study, jobs: Jobs):
    job_id = jobs.start_run(new_run(store, study).id)
    ended = jobs.wait(job_id, 120)
    assert (ended.kind, ended.status, ended.done, ended.total, ended.error) == ("run", "done", 10, 10, None)
    assert ended.result.n_evaluations == 10
    assert ended.seconds > 0
    assert ended.seconds_left is None
    assert not ended.is_live
    assert [job.id for job in jobs.for_study(study.id)] == [job_id]
    with pytest.raises(FrozenInstanceError):
        ended.status = "queued"


def test_stop_and_resume(store: Store, study: Study, jobs: Jobs):
    run = new_run(store, study, points=MANY)
    first = jobs.start_run(run.id)
    with pytest.raises(StudyError, match="already going on"):
        jobs.start_run(run.id)
    wait_until(lambda: jobs.snapshot(first).done >= 6)
    running = jobs.snapshot(first)
    assert running.status == "running"
    assert running.seconds_left is not None
    assert 0 < running.seconds_left < 3600
    jobs.stop(first)
    assert jobs.wait(first, 120).status == "stopped"
    kept = rows(store, study)
    assert store.runs.get(run.id).status == "stopped"
    second = jobs.start_run(run.id)
    wait_until(lambda: jobs.snapshot(second).done > len(kept))
    jobs.stop(second)
    jobs.wait(second, 120)
    assert rows(store, study)[: len(kept)] == kept
    assert [job.id for job in jobs.for_study(study.id)] == [second, first]


def test_a_training_stops_and_goes_on(store: Store, study: Study, jobs: Jobs):
    settings = TRAINING | {"steps": 5000}
    run = new_run(store, study, merge="pareto_merging", merge_settings=settings)
    first = jobs.start_run(run.id)
    wait_until(lambda: jobs.snapshot(first).done >= 60)
    running = jobs.snapshot(first)
    assert running.seconds_left is not None
    assert running.total == 5000 + (3 + 5) * 2
    jobs.stop(first)
    assert jobs.wait(first, 120).status == "stopped"
    stopped_at = max(point.step for point in store.training.all(run.merge_id))
    assert stopped_at >= 50
    second = jobs.prepare(run.merge_id)  # the merge's training is the same whoever goes on with it
    assert jobs.snapshot(second).title == "Prepare Pareto Merging"
    wait_until(lambda: jobs.snapshot(second).done > stopped_at + 5)
    jobs.stop(second)
    assert jobs.wait(second, 120).status == "stopped"
    assert max(point.step for point in store.training.all(run.merge_id)) > stopped_at


def test_a_waiting_run_can_be_stopped_before_it_starts(store: Store, study: Study, jobs: Jobs):
    first = jobs.start_run(new_run(store, study, points=MANY).id)
    waiting = new_run(store, study, seed=1)
    second = jobs.start_run(waiting.id)
    assert jobs.snapshot(second).status == "queued"
    jobs.stop(second)
    assert jobs.snapshot(second).status == "stopped"
    assert store.runs.get(waiting.id).status == "stopped"
    third = jobs.start_run(waiting.id)
    jobs.stop(first)
    assert jobs.wait(third, 120).status == "done"


def test_another_name_of_the_same_device_waits_its_turn(store: Store, study: Study, jobs: Jobs):
    # On a machine without an accelerator "auto" is the CPU; the two threads must not run at once.
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("auto is not the CPU here")
    first = jobs.start_run(new_run(store, study, points=MANY).id)
    wait_until(lambda: jobs.snapshot(first).done >= 1)
    second = jobs.start_run(new_run(store, study, seed=1, device="cpu").id)
    time.sleep(0.1)
    assert jobs.snapshot(second).status == "queued"
    jobs.stop(first)
    assert jobs.wait(second, 120).status == "done"


def test_a_failed_run_says_why_and_can_be_started_again(store: Store, config: StudyConfig, jobs: Jobs, tmp_path: Path):
    copy = tmp_path / "Colours.safetensors"
    good = config.models["Colours"].read_bytes()
    copy.write_bytes(good)
    study = store.studies.create("Own", replace(config, models={**config.models, "Colours": copy}))
    copy.write_bytes(good[:-1] + b"x")
    run = new_run(store, study)
    failed = jobs.wait(jobs.start_run(run.id), 120)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "Colours.safetensors has changed since this study was created" in failed.error
    assert store.runs.get(run.id).error == failed.error
    copy.write_bytes(good)
    assert jobs.wait(jobs.start_run(run.id), 120).status == "done"
    assert store.runs.get(run.id).error is None


def test_a_device_that_is_not_there_fails_in_one_sentence(store: Store, study: Study, jobs: Jobs):
    run = new_run(store, study, device="cuda:77")
    failed = jobs.wait(jobs.start_run(run.id), 120)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "no device 'cuda:77'" in failed.error
    assert (store.runs.get(run.id).status, store.runs.get(run.id).error) == ("failed", failed.error)


def test_measuring_on_the_test_split(store: Store, study: Study, jobs: Jobs):
    X, ties = np.array([[0.4, 0.6]]), add(store, study, "ties").id
    job = jobs.wait(jobs.measure(ties, X, "test", "Measure the pick"), 120)
    assert (job.status, job.title, job.total) == ("done", "Measure the pick", 2)
    np.testing.assert_array_equal(job.result, [list(store.evaluations.measured(ties, X[0], "test").values())])


def test_the_estimate(store: Store, study: Study, jobs: Jobs):
    job = jobs.wait(jobs.estimate(study.id, run_config()), 120)
    assert job.status == "done"
    assert job.result.seconds_per_point > 0
    assert store.studies.get(study.id).n_points == 2


def test_a_comparison_is_completed_in_the_background(store: Store, study: Study, jobs: Jobs):
    jobs.wait(jobs.start_run(new_run(store, study, points=8).id), 120)
    job = jobs.wait(jobs.complete(study.id, merges=False, weights={"Colours": 1.0}), 120)
    assert (job.kind, job.title, job.status, job.error) == ("complete", "Measure", "done", None)
    assert job.done == job.total > 0
    assert compare(store, study.id, weights={"Colours": 1.0}).missing == 0
    assert len(store.merges.all(study.id)) == 1


def test_making_baselines_stops_and_goes_on(store: Store, study: Study, jobs: Jobs):
    def prepared() -> set[int]:
        return {merge.id for merge in store.merges.all(study.id) if merge.is_prepared}

    names = ["fisher", "regmean", "adamerging"]  # the last one's hundreds of steps outlast this test
    first = jobs.complete(study.id, merges=names)
    assert jobs.snapshot(first).title == "Make baselines and measure"
    wait_until(lambda: len(prepared()) > 1)
    jobs.stop(first)
    assert jobs.wait(first, 120).status == "stopped"
    made = prepared()
    second = jobs.complete(study.id, merges=names)
    wait_until(lambda: len(prepared()) > len(made))
    jobs.stop(second)
    jobs.wait(second, 120)
    assert prepared() > made


def test_exporting_does_not_wait_for_a_run(store: Store, study: Study, jobs: Jobs):
    run_job = jobs.start_run(new_run(store, study, points=MANY).id)
    pick = store.picks.add(plain(store, study), np.array([0.5, 0.5]), {"kind": "point"})
    export = jobs.wait(jobs.export(pick.id), 120)
    assert export.status == "done"
    assert export.result.path.exists()
    assert store.picks.get(pick.id).exported == export.result.path
    soup = jobs.wait(jobs.export(merge_id=add(store, study, "soup").id), 120)
    assert soup.result.path.exists()
    assert jobs.snapshot(run_job).is_live
    jobs.stop(run_job)


def test_rules_are_refined_and_unlabelled_data_chosen_for(store: Store, study: Study, jobs: Jobs, tiny_zoo: Path):
    run = new_run(store, study, points=8)
    jobs.wait(jobs.start_run(run.id), 120)
    refined = jobs.wait(jobs.refine(run.merge_id, "maximize worst"), 120)
    assert (refined.kind, refined.status, refined.error) == ("refine", "done", None)
    assert refined.result.merge_id == run.merge_id
    assert len(rows(store, study)) > 16
    wrong = jobs.wait(jobs.refine(run.merge_id, "maximize Flags"), 120)
    assert (wrong.status, "Flags" in wrong.error) == ("failed", True)
    chosen = jobs.wait(jobs.choose_unlabelled(study.id, DataSource(path=tiny_zoo / "Light.npz")), 120)
    assert (chosen.kind, chosen.status, chosen.error) == ("choose", "done", None)
    assert len(chosen.result.points) <= 30


def test_any_work_can_be_submitted(study: Study, jobs: Jobs):
    begun, go_on = Event(), Event()

    def work(job: object) -> str:
        begun.set()
        assert go_on.wait(60)
        job.count(1, 2)
        if job.cancel.is_set():
            raise Cancelled
        return "result"

    job_id = jobs.submit("measure", study.id, "Own work", work)
    assert begun.wait(60)
    go_on.set()
    ended = jobs.wait(job_id, 60)
    assert (ended.status, ended.result, ended.done, ended.total) == ("done", "result", 1, 2)

    def broken(_: object) -> None:
        raise ValueError("first\nsecond")

    failed = jobs.wait(jobs.submit("measure", study.id, "Broken", broken), 60)
    assert (failed.status, failed.error) == ("failed", "Unexpected error: ValueError: first second")


def test_what_is_not_there_is_refused_at_once(study: Study, jobs: Jobs):
    for call, sentence in [
        (lambda: jobs.start_run(99), "no run 99"),
        (lambda: jobs.measure(99, np.zeros((1, 2)), "test", "x"), "no merge 99"),
        (lambda: jobs.prepare(99), "no merge 99"),
        (lambda: jobs.refine(99, "maximize Colours"), "no merge 99"),
        (lambda: jobs.export(99), "no pick 99"),
        (lambda: jobs.export(merge_id=99), "no merge 99"),
        (lambda: jobs.estimate(99, run_config()), "no study 99"),
        (lambda: jobs.complete(99), "no study 99"),
        (lambda: jobs.complete(study.id, weights={"Flags": 1.0}), "no objective 'Flags'"),
        (lambda: jobs.choose_unlabelled(99, DataSource(path="x.npz")), "no study 99"),
        (lambda: jobs.snapshot(99), "no job 99"),
        (lambda: jobs.stop(99), "no job 99"),
    ]:
        with pytest.raises(StudyError, match=sentence):
            call()
    assert jobs.for_study(study.id) == []


def test_closing_stops_everything_and_loses_nothing(store: Store, study: Study):
    jobs = Jobs(store)
    runs = [new_run(store, study, points=MANY), new_run(store, study, seed=1)]
    ids = [jobs.start_run(run.id) for run in runs]
    wait_until(lambda: jobs.snapshot(ids[0]).done >= 3)
    jobs.close()
    assert [store.runs.get(run.id).status for run in runs] == ["stopped", "stopped"]
    assert len(rows(store, study)) >= 3
    with pytest.raises(StudyError, match="shutting down"):
        jobs.start_run(runs[0].id)
    again = Jobs(store)
    assert again.wait(again.start_run(runs[1].id), 120).status == "done"
    again.close()
