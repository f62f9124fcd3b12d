"""Background work: progress, stop, resume, failure, and everything that runs beside runs."""

from __future__ import annotations

import time
from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.runs.baselines import BASELINES
from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.jobs.jobs import Jobs
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import StudySpec, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mapmerge_core.studies.store.rows import Run, Study
    from mapmerge_core.studies.store.store import Store

MANY = 400  # points: more than any test waits for


@pytest.fixture
def jobs(store: Store) -> Iterator[Jobs]:
    jobs = Jobs(store)
    yield jobs
    jobs.close()


def new_run(store: Store, study: Study, points: int = 5, **settings: object) -> Run:
    return store.create_run(study.id, RunSettings(points=points, **settings))


def wait_until(holds: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_run_ends_with_everything_stored(store: Store, study: Study, jobs: Jobs):
    job_id = jobs.start_run(new_run(store, study).id)
    ended = jobs.wait(job_id, 600)
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
    assert jobs.wait(first, 600).status == "stopped"
    kept = [row.id for row in store.evaluations(study.id)]
    assert store.runs.get(run.id).status == "stopped"
    second = jobs.start_run(run.id)
    wait_until(lambda: jobs.snapshot(second).done > len(kept))
    jobs.stop(second)
    jobs.wait(second, 600)
    assert [row.id for row in store.evaluations(study.id)][: len(kept)] == kept
    assert [job.id for job in jobs.for_study(study.id)] == [second, first]


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
    assert jobs.wait(third, 600).status == "done"


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
    assert jobs.wait(second, 600).status == "done"


def test_a_failed_run_says_why_and_can_be_started_again(
    store: Store, config: StudyConfig, jobs: Jobs, tmp_path: Path
):
    copy = tmp_path / "Colours.safetensors"
    good = spec.tasks[0].checkpoint.read_bytes()
    copy.write_bytes(good)
    own = replace(spec, tasks=(TaskSpec("Colours", copy, spec.tasks[0].data), spec.tasks[1]))
    study = store.studies.create("Own", own)
    copy.write_bytes(good[:-1] + b"x")
    run = new_run(store, study)
    failed = jobs.wait(jobs.start_run(run.id), 600)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "Colours.safetensors has changed since this study was created" in failed.error
    assert store.runs.get(run.id).error == failed.error
    copy.write_bytes(good)
    assert jobs.wait(jobs.start_run(run.id), 600).status == "done"
    assert store.runs.get(run.id).error is None


def test_a_device_that_is_not_there_fails_in_one_sentence(store: Store, study: Study, jobs: Jobs):
    run = new_run(store, study, device="cuda:77")
    failed = jobs.wait(jobs.start_run(run.id), 600)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "no device 'cuda:77'" in failed.error
    assert (store.runs.get(run.id).status, store.runs.get(run.id).error) == ("failed", failed.error)


def test_measuring_on_the_test_split(store: Store, study: Study, jobs: Jobs):
    C = np.array([[0.4, 0.6]])
    job = jobs.wait(jobs.measure(study.id, C, "test", "Measure the pick"), 600)
    assert (job.status, job.title, job.total) == ("done", "Measure the pick", 2)
    np.testing.assert_array_equal(job.result, [list(store.measured(study.id, C[0], "test").values())])


def test_the_estimate(store: Store, study: Study, jobs: Jobs):
    job = jobs.wait(jobs.estimate(study.id), 600)
    assert job.status == "done"
    assert job.result.seconds_per_point > 0
    assert store.studies.get(study.id).n_points == 2


def test_a_comparison_is_completed_in_the_background(store: Store, study: Study, jobs: Jobs):
    jobs.wait(jobs.start_run(new_run(store, study, points=8).id), 600)
    job = jobs.wait(jobs.compare(study.id, baselines=False, weights={"Colours": 1.0}), 600)
    assert (job.kind, job.title, job.status, job.error) == ("compare", "Measure", "done", None)
    assert job.done == job.total > 0
    assert compare(store, study.id, weights={"Colours": 1.0}).missing == 0
    assert store.baselines(study.id) == []


def test_making_baselines_stops_and_goes_on(store: Store, study: Study, jobs: Jobs):
    first = jobs.compare(study.id)
    assert jobs.snapshot(first).title == "Make baselines and measure"
    # The searched scalar comes after the soup; AdaMerging, which takes longest, is last.
    wait_until(lambda: any(row.name == "scalar" for row in store.baselines(study.id)))
    jobs.stop(first)
    assert jobs.wait(first, 600).status == "stopped"
    made = [row.id for row in store.baselines(study.id)]
    assert len(made) < len(BASELINES)
    second = jobs.compare(study.id)
    wait_until(lambda: len(store.baselines(study.id)) > len(made))
    jobs.stop(second)
    jobs.wait(second, 600)
    assert [row.id for row in store.baselines(study.id)][: len(made)] == made


def test_exporting_does_not_wait_for_a_run(store: Store, study: Study, jobs: Jobs):
    run_job = jobs.start_run(new_run(store, study, points=MANY).id)
    pick = store.add_pick(study.id, np.array([0.5, 0.5]), {"kind": "point"})
    export = jobs.wait(jobs.export(pick.id), 600)
    assert export.status == "done"
    assert export.result.path.exists()
    assert store.pick(pick.id).exported == export.result.path
    assert jobs.snapshot(run_job).is_live
    jobs.stop(run_job)


def test_what_is_not_there_is_refused_at_once(study: Study, jobs: Jobs):
    for call, sentence in [
        (lambda: jobs.start_run(99), "no run 99"),
        (lambda: jobs.measure(99, np.zeros((1, 2)), "test", "x"), "no study 99"),
        (lambda: jobs.export(99), "no pick 99"),
        (lambda: jobs.export_baseline(99), "no baseline 99"),
        (lambda: jobs.compare(99), "no study 99"),
        (lambda: jobs.compare(study.id, weights={"Flags": 1.0}), "no task 'Flags'"),
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
    assert len(store.evaluations(study.id)) >= 3
    with pytest.raises(StudyError, match="shutting down"):
        jobs.start_run(runs[0].id)
    again = Jobs(store)
    assert again.wait(again.start_run(runs[1].id), 600).status == "done"
    again.close()
