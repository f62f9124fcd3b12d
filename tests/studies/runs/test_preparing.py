"""Merges are prepared once, kept, stopped, killed, resumed, and then measured and searched like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import Cancelled, CheckpointError, MapMergeError, StudyError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.runs import preparing
from mapmerge_core.studies.runs.estimating import estimate
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.tasks.outcome import Outcome
from tests.studies.runs.helpers import CPU, execute, plain, plain_scores, run_config, table
from tests.studies.runs.test_runner import KEYS, ROOT, RUN

if TYPE_CHECKING:
    from mapmerge_core.merges.base import PreparedMerge
    from mapmerge_core.studies.config import RunConfig
    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store import Store, StoredMerge, Study
    from mapmerge_core.tasks.evaluator import Evaluator

TASKS = ("Colours", "Stripes")
# So fast that preferences differ after a few steps.
TRAINING = {"steps": 10, "rank": 4, "batch_size": 16, "lr": 0.03, "beta_norm": 0.01, "balance": 1.0, "seed": 5}
FAST = {
    "ties": {"keep": 0.3},
    "fisher": {"examples": 8},
    "regmean": {"examples": 8},
    "adamerging": {"level": "layer", "steps": 3, "lr": 0.05, "keep": 0.3},
    "pareto_merging": TRAINING,
}


@pytest.fixture
def evaluator(study: Study, evaluators: EvaluatorCache) -> Evaluator:
    return evaluators.get(study, CPU)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that another test prepared is at hand."""
    monkeypatch.setattr(preparing, "_prepared", type(preparing._prepared)())


def add(store: Store, study: Study, name: str, **settings: object) -> StoredMerge:
    return store.merges.add(study.id, name, FAST.get(name, {}) | settings)


def pareto_run(**settings: object) -> RunConfig:
    return run_config(merge="pareto_merging", merge_settings=TRAINING, points=4, **settings)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("Something was measured or made twice")


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Bit for bit."""
    a, b = load_file(ours), load_file(theirs)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.mark.parametrize("name", list(FAST))
def test_a_merge_is_prepared_once_and_measured_once(
    store: Store, study: Study, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, name: str
):
    stored = add(store, study, name)
    assert not stored.is_prepared
    x = stored.space.default
    values = measure(store, study, evaluator, stored.id, x[None], split="test")
    kept = store.merges.get(stored.id)
    assert kept.is_prepared
    assert kept.seconds > 0
    merge = kept.make()
    state = store.merges.state_file(stored.id)
    assert state.exists() == merge.has_state
    if merge.has_state:
        assert [path.name for path in state.parent.glob("*safetensors*")] == [state.name], "nothing temporary"
    # Everything is known from now on.
    monkeypatch.setattr(evaluator, "outcomes", refuse)
    np.testing.assert_array_equal(measure(store, study, evaluator, stored.id, x[None], split="test"), values)
    if merge.has_state:
        monkeypatch.setattr(type(merge), "prepare", refuse)
    ours, theirs = (prepare_merge(store, stored.id, evaluator) for _ in range(2))
    assert ours is theirs
    monkeypatch.setattr(preparing, "_prepared", type(preparing._prepared)())
    again = prepare_merge(store, stored.id, evaluator)
    assert again is not ours
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours.tensors(x), again.tensors(x), strict=True))


def test_the_equal_weights_of_regmeans_front_are_regmean(
    store: Store, study: Study, evaluators: EvaluatorCache, evaluator: Evaluator, tiny_zoo: Path
):
    run = execute(store, study, evaluators, merge="regmean", merge_settings=FAST["regmean"], points=8)
    assert run.status == "done"
    X, _ = table(store, run.merge_id)
    np.testing.assert_allclose(X.sum(axis=1), 1, atol=1e-12)
    assert [0.5, 0.5] in X.tolist(), "the centroid is an anchor"
    analysis = analyse(store, study.id, generations=20).merge(run.merge_id)
    front = analysis.front.x
    np.testing.assert_allclose(front.sum(axis=1), 1, atol=1e-9)
    assert (front >= 0).all()
    # The baseline is its default point, and of two models the average by hand.
    baseline = measure(store, study, evaluator, run.merge_id, np.full((1, 2), 0.5), split="test")
    other = store.studies.create("Other", study.config)
    stored = add(store, other, "regmean")
    np.testing.assert_array_equal(
        measure(store, other, evaluators.get(other, CPU), stored.id, stored.space.default[None], split="test"), baseline
    )
    theirs = store.evaluations.table(stored.id, "test").X
    ours, alone = (
        {row.objective: row.per_example for row in store.evaluations.rows(each, "test")}
        for each in (run.merge_id, stored.id)
    )
    assert ours == alone, "to the last example"
    np.testing.assert_array_equal(theirs, [[0.5, 0.5]])
    # At a vertex each linear layer is that model's own.
    weights = dict(prepare_merge(store, run.merge_id, evaluator).tensors([1.0, 0.0]))
    own = load_file(tiny_zoo / "Colours.safetensors")
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    torch.testing.assert_close(weights[name].float(), own[name].float(), rtol=5e-2, atol=5e-3)


def test_breadcrumbs_end_to_end(store: Store, study: Study, evaluators: EvaluatorCache):
    run = execute(store, study, evaluators, merge="breadcrumbs", points=8)
    assert run.status == "done"
    analysis = analyse(store, study.id, generations=20)
    assert {merge.merge.id for merge in analysis.merges if merge.front is not None} == {run.merge_id}
    choice = analysis.by_rule("maximize Colours")
    assert choice.merge_id == run.merge_id


# Pareto Merging


def test_pareto_merging_is_trained_searched_and_measured_by_one_run(
    store: Store, study: Study, evaluators: EvaluatorCache, evaluator: Evaluator, tiny_zoo: Path
):
    run = store.runs.create(study.id, pareto_run())
    seen: list[tuple[int, int]] = []
    done = execute_run(store, run.id, evaluators.get, progress=lambda *at: seen.append(at))
    assert done.status == "done"
    assert done.n_evaluations == (3 + 4) * 2
    # Ten steps, three references and four preferences on two tasks.
    assert seen[-1] == (24, 24)
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)
    points = store.training.all(run.merge_id)
    assert [point.step for point in points] == list(range(1, 11))
    assert all(point.seconds > 0 for point in points)
    assert store.merges.get(run.merge_id).seconds >= sum(point.seconds for point in points)
    assert not store.merges.checkpoint_file(run.merge_id).exists()
    X, Y = table(store, run.merge_id)
    np.testing.assert_allclose(X.sum(axis=1), 1)
    prepared = prepare_merge(store, run.merge_id, evaluator)
    expected = [plain_scores(dict(prepared.tensors(x)), tiny_zoo, TASKS, "val") for x in X]
    np.testing.assert_allclose(Y, expected, atol=1e-9)
    assert len(np.unique(Y, axis=0)) > 1
    # A longer search of the same training trains nothing.
    longer = execute(store, study, evaluators, merge="pareto_merging", merge_settings=TRAINING, points=6)
    assert longer.merge_id == run.merge_id
    assert longer.n_evaluations == 4


@pytest.mark.parametrize("where", [1, 5, 12, 20], ids=["at the start", "in training", "references", "search"])
def test_stopped_and_resumed_it_ends_as_if_never_stopped(
    store: Store, study: Study, evaluators: EvaluatorCache, where: int
):
    run = store.runs.create(study.id, pareto_run())
    cancel, before, after = Event(), [], []

    def stop(done: int, _: int) -> None:
        before.append(done)
        if done >= where:
            cancel.set()

    stopped = execute_run(store, run.id, evaluators.get, cancel=cancel, progress=stop)
    assert stopped.status == "stopped"
    is_trained = where > 10
    assert store.merges.state_file(run.merge_id).exists() == is_trained
    assert store.merges.checkpoint_file(run.merge_id).exists() != is_trained
    done = execute_run(store, run.id, evaluators.get, progress=lambda *at: after.append(at))
    assert done.status == "done"
    other = store.studies.create("Calm", study.config)
    calm = store.runs.create(other.id, pareto_run())
    execute_run(store, calm.id, evaluators.get)
    assert_same_tensors(store.merges.state_file(run.merge_id), store.merges.state_file(calm.merge_id))
    assert not store.merges.checkpoint_file(run.merge_id).exists()
    for ours, theirs in zip(table(store, run.merge_id), table(store, calm.merge_id), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [point.step for point in store.training.all(run.merge_id)] == list(range(1, 11))
    assert done.n_evaluations == (3 + 4) * 2
    assert after[-1][0] == after[-1][1]


def test_a_killed_training_loses_no_more_than_its_last_steps(
    request: pytest.FixtureRequest, store: Store, study: Study, evaluators: EvaluatorCache
):
    """A real process is killed in the middle of training; another goes on from its checkpoint."""
    config = run_config(merge="pareto_merging", merge_settings=TRAINING | {"steps": 50}, points=3)
    run = store.runs.create(study.id, config)
    program = "import mapmerge_core.merges._pareto_training as t\nt.SAVED_EVERY = 0.0\n" + RUN
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(store.folder), str(run.id)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 600
    while max((point.step for point in store.training.all(run.merge_id)), default=0) < 14:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not store.merges.state_file(run.merge_id).exists()
    assert store.merges.checkpoint_file(run.merge_id).exists()
    assert [row.status for row in store.runs.recover()] == ["interrupted"]
    assert store.training.all(run.merge_id)[-1].step < 50

    claim = store.runs.claim(run.id)
    counts: list[int] = []
    done = execute_run(store, run.id, evaluators.get, progress=lambda count, _: counts.append(count))
    claim.release()
    assert done.status == "done"
    assert counts[0] >= 10, "it goes on from a checkpoint"
    other = store.studies.create("Calm", study.config)
    calm = store.runs.create(other.id, config)
    execute_run(store, calm.id, evaluators.get)
    assert_same_tensors(store.merges.state_file(run.merge_id), store.merges.state_file(calm.merge_id))


def test_of_two_that_prepare_a_merge_at_once_one_does(
    store: Store, study: Study, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
):
    stored = add(store, study, "pareto_merging")
    kind = type(stored.make())
    prepare, begun, calls = kind.prepare, Event(), []

    def watched(self: object, *args: object, **more: object) -> PreparedMerge:
        calls.append(1)
        begun.set()
        return prepare(self, *args, **more)

    monkeypatch.setattr(kind, "prepare", watched)
    first = Thread(target=prepare_merge, args=(store, stored.id, evaluator))
    first.start()
    assert begun.wait(60)
    prepare_merge(store, stored.id, evaluator)
    first.join(60)
    assert len(calls) == 1
    # Who waits for another can be stopped.
    cancel = Event()
    cancel.set()
    state = store.merges.state_file(stored.id)
    lock = preparing._alone(store.path.parent / "locks" / f"{store.path.name}-merge-{stored.id}.lock", Event())
    monkeypatch.setattr(preparing, "_prepared", type(preparing._prepared)())
    with lock, pytest.raises(Cancelled):
        prepare_merge(store, stored.id, evaluator, cancel=cancel)
    assert state.exists()


def test_a_state_that_is_gone_is_said_to_be_missing(store: Store, study: Study, evaluator: Evaluator):
    stored = add(store, study, "regmean")
    prepare_merge(store, stored.id, evaluator)
    state = store.merges.state_file(stored.id)
    state.unlink()
    measure(store, study, evaluator, stored.id, stored.space.default[None], split="test")
    assert state.exists(), "nothing was measured, so it is prepared again"
    state.unlink()
    with pytest.raises(StudyError, match=r"RegMean .*is gone from"):
        measure(store, study, evaluator, stored.id, stored.space.default[None])
    save_file({"x": torch.zeros(1)}, state)
    with pytest.raises(CheckpointError):
        measure(store, study, evaluator, stored.id, stored.space.default[None])


def test_stopping_keeps_what_was_measured(store: Store, study: Study, evaluator: Evaluator):
    cancel = Event()
    ties = add(store, study, "ties")
    x = np.array([[1.0, 1.0], [0.5, 0.5]])
    with pytest.raises(Cancelled):
        measure(
            store, study, evaluator, ties.id, x, split="test", cancel=cancel,
            progress=lambda done, _: cancel.set() if done == 3 else None,
        )  # fmt: skip
    assert len(store.evaluations.rows(ties.id, "test")) == 3
    with pytest.raises(Cancelled):
        measure(store, study, evaluator, ties.id, x, split="test", cancel=cancel)
    for name in ("fisher", "adamerging", "pareto_merging"):
        stored = add(store, study, name)
        with pytest.raises(Cancelled):
            prepare_merge(store, stored.id, evaluator, cancel=cancel)
        assert not store.merges.get(stored.id).is_prepared
    seen: list[tuple[int, int]] = []
    measure(store, study, evaluator, ties.id, x, split="test", progress=lambda *at: seen.append(at))
    assert seen == [(3, 4), (4, 4)]


@pytest.mark.parametrize("name", ["fisher", "regmean", "adamerging", "pareto_merging"])
def test_preparing_reports_how_far_it_is(store: Store, study: Study, evaluator: Evaluator, name: str):
    seen: list[tuple[int, int]] = []
    prepare_merge(store, add(store, study, name).id, evaluator, progress=lambda *now: seen.append(now))
    assert seen[-1][0] == seen[-1][1] > 0
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_estimate_times_the_training(store: Store, study: Study, evaluator: Evaluator):
    trained = estimate(store, study, evaluator, pareto_run())
    assert 0 < trained.seconds_to_prepare < 300
    assert trained.seconds_for(3) == trained.seconds_to_prepare + 3 * trained.seconds_per_point
    assert estimate(store, study, evaluator, run_config()).seconds_to_prepare == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 33}, r"The rank must be from 1 to 32 for these models, not 33\."),
        ({"personalised": ("visual.*.nothing",)}, r"'visual\.\*\.nothing' names no weight matrix"),
    ],
)
def test_what_does_not_suit_the_models_fails_before_training(
    store: Store, study: Study, evaluators: EvaluatorCache, settings: dict, sentence: str
):
    config = run_config(merge="pareto_merging", merge_settings=TRAINING | settings, points=4)
    run = store.runs.create(study.id, config)
    with pytest.raises(MapMergeError, match=sentence):
        execute_run(store, run.id, evaluators.get)
    failed = store.runs.get(run.id)
    assert (failed.status, failed.n_evaluations) == ("failed", 0)
    assert "\n" not in failed.error
    assert store.training.all(run.merge_id) == []


def test_a_deleted_study_leaves_no_states_behind(store: Store, study: Study, evaluator: Evaluator):
    stored = add(store, study, "regmean")
    prepare_merge(store, stored.id, evaluator)
    unfinished = add(store, study, "pareto_merging")
    store.merges.checkpoint_file(unfinished.id).write_bytes(b"half")
    folder = store.merges.state_file(stored.id).parent
    store.studies.delete(study.id)
    assert list(folder.glob("*.safetensors")) == []


def test_models_and_tasks_need_not_match(
    store: Store, study: Study, evaluators: EvaluatorCache, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two models, four objectives: one task without a model, two metrics on one task by one pass."""
    config = four_objectives(study, tiny_zoo)
    four = store.studies.create("Four", config)
    evaluator = evaluators.get(four, CPU)
    counts: list[int] = []
    logits = evaluator.family.logits

    def watched(batch, task, dtype):
        counts.append(len(batch))
        return logits(batch, task, dtype)

    monkeypatch.setattr(evaluator.family, "logits", watched)
    run = execute(store, four, evaluators, points=8)
    assert (run.status, run.n_evaluations) == ("done", 8 * 4)
    assert sum(counts) == 8 * 3 * 60, "three tasks, one pass each"
    X, Y = table(store, run.merge_id)
    assert Y.shape == (8, 4)
    keys = [objective.key for objective in config.objectives]
    assert keys == [*KEYS[:1], "Colours/loss", KEYS[1], "Light/accuracy"]
    # The same numbers as of studies that measure one thing each.
    np.testing.assert_array_equal(
        Y[:, [0, 2]], measure(store, study, evaluators.get(study, CPU), plain(store, study), X)
    )
    analysis = analyse(store, four.id, generations=20)
    assert analysis.front is not None
    assert np.isfinite(analysis.single).all()
    # The held-out task's reference is the best single model's.
    np.testing.assert_allclose(analysis.single[3], Y[1:3, 3].max())
    choice = analysis.by_rule(
        '"Colours accuracy" >= 10%, "Colours loss" <= 5, Stripes >= 10% of single, maximize Light'
    )
    assert choice.x.shape == (2,)


def four_objectives(study: Study, tiny_zoo: Path) -> object:
    from dataclasses import replace

    from mapmerge_core.registries import METRICS
    from mapmerge_core.studies.config import TaskConfig
    from mapmerge_core.tasks.data_source import DataSource

    colours, stripes = study.config.tasks
    light = TaskConfig(name="Light", data=DataSource(path=tiny_zoo / "Light.npz"), model=None)
    two = replace(colours, metrics=(METRICS["accuracy"], METRICS["loss"]))
    return replace(study.config, tasks=(two, stripes, light))


def test_what_a_study_measured_itself_is_shared_by_all_its_merges(store: Store, study: Study):
    merge_id = plain(store, study)
    x = np.array([0.5, 0.5])
    store.evaluations.add(merge_id, x, KEYS[0], "test", Outcome(0.125, 8, b"\1", 0.1))
    assert store.evaluations.measured(merge_id, x, "test") == {KEYS[0]: 0.125}
