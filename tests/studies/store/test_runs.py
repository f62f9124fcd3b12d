"""A run keeps what it was asked to do and how it stands, and belongs to one worker at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.studies.config import Compute, RunConfig
from mapmerge_core.studies.store import Run, Store, Study
from tests.studies.store.test_store import ROOT


def new_run(store: Store, study: Study) -> Run:
    return store.runs.create(study.id, RunConfig())


def test_a_run_comes_back_as_it_was_asked_for(store: Store, study: Study):
    config = RunConfig(
        merge="ties", merge_settings={"keep": 0.3}, method="nested",
        method_settings={"points": 20, "rule": "all >= 60%, maximize Colours"}, low=0.1, high=0.4, images=20,
        link="identity", loss="huber", compute=Compute(device="cpu", precision="float32"),
    )  # fmt: skip
    made = store.runs.create(study.id, config)
    run = Store(store.folder).runs.get(made.id)
    assert run.config == config
    assert (run.study_id, run.status, run.error, run.n_evaluations) == (study.id, "queued", None, 0)
    assert store.merges.get(run.merge_id).name == "ties"
    # Another run of the same merge, whatever its method, works on the same one.
    other = store.runs.create(study.id, replace(config, method="map", method_settings={}))
    assert other.merge_id == run.merge_id
    assert [row.id for row in store.runs.all(study.id)] == [run.id, other.id]


def test_a_run_that_asks_for_the_same_is_found_wherever_it_was_computed(store: Store, study: Study):
    first = store.runs.create(study.id, RunConfig(compute=Compute(device="cpu")))
    second = store.runs.create(study.id, RunConfig(method_settings={"seed": 1}))
    find = store.runs.find_same
    asked = RunConfig(compute=Compute(precision="float32"))
    assert (found := find(study.id, asked)) is not None
    assert found.id == first.id
    latest = store.runs.create(study.id, asked)
    assert (found := find(study.id, RunConfig())) is not None
    assert found.id == latest.id
    assert (found := find(study.id, second.config)) is not None
    assert found.id == second.id
    assert find(study.id, RunConfig(high=0.5)) is None


def test_a_run_goes_on_on_another_device(store: Store, study: Study):
    run = new_run(store, study)
    store.runs.set_compute(run.id, Compute(device="cpu"))
    assert store.runs.get(run.id).config == replace(run.config, compute=Compute(device="cpu"))


def test_what_can_not_be_run_is_not_kept(store: Store, study: Study):
    for config in (
        RunConfig(method_settings={"points": 5}, link="identity"),
        RunConfig(low=0.5, high=0.5),
        RunConfig(merge="adamerging"),
        RunConfig(method="nested", method_settings={"rule": "maximize Nothing"}),
    ):
        with pytest.raises(MapMergeError):
            store.runs.create(study.id, config)
    assert store.runs.all(study.id) == []
    assert len(store.merges.all(study.id)) == 1


def test_statuses_and_times_are_recorded(store: Store, study: Study):
    run = new_run(store, study)
    assert (run.status, run.started, run.finished) == ("queued", None, None)
    store.runs.set_status(run.id, "running")
    started = store.runs.get(run.id).started
    assert started is not None
    store.runs.set_status(run.id, "failed", "The disk is full.")
    failed = store.runs.get(run.id)
    assert (failed.status, failed.error) == ("failed", "The disk is full.")
    assert failed.finished is not None
    assert failed.finished >= started
    store.runs.set_status(run.id, "running")
    again = store.runs.get(run.id)
    assert (again.started, again.finished, again.error) == (started, None, None)
    assert store.studies.get(study.id).status == "running"


def test_a_claimed_run_belongs_to_one_worker(store: Store, study: Study):
    run = new_run(store, study)
    claim = store.runs.claim(run.id)
    assert store.runs.is_claimed(run.id)
    with pytest.raises(StudyError, match=f"Run {run.id} is already going on"):
        store.runs.claim(run.id)
    # Another process is refused too, and doesn't take the run for one that was left behind.
    code = (
        "import sys\n"
        "from mapmerge_core.studies.store import Store\n"
        "from mapmerge_core.errors import StudyError\n"
        "store = Store(sys.argv[1])\n"
        "print(len(store.runs.recover()))\n"
        "try: store.runs.claim(int(sys.argv[2]))\n"
        "except StudyError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(store.folder), str(run.id)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert result.stdout.split("\n")[0] == "0"
    assert "already going on" in result.stdout
    with pytest.raises(StudyError, match="stop it before deleting"):
        store.studies.delete(study.id)
    # Released in another thread than it was claimed in.
    thread = threading.Thread(target=claim.release)
    thread.start()
    thread.join()
    assert not store.runs.is_claimed(run.id)
    store.runs.claim(run.id).release()
    store.runs.set_status(run.id, "done")
    with pytest.raises(StudyError, match="is done: start a new run"):
        store.runs.claim(run.id)


def test_a_short_look_at_a_lock_does_not_refuse_the_run(store: Store, study: Study):
    run = new_run(store, study)
    thread = threading.Timer(0.05, store.runs.claim(run.id).release)
    thread.start()
    store.runs.claim(run.id).release()
    thread.join()


def test_runs_left_behind_are_recovered_as_interrupted(store: Store, study: Study):
    left, stopped, going_on = (new_run(store, study) for _ in range(3))
    store.runs.set_status(left.id, "running")
    store.runs.set_status(stopped.id, "stopped")
    claim = store.runs.claim(going_on.id)
    assert [row.id for row in Store(store.folder).runs.recover()] == [left.id]
    assert [row.status for row in store.runs.all(study.id)] == ["interrupted", "stopped", "queued"]
    claim.release()
