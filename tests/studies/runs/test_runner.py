"""Runs evaluate what is missing, survive kill -9, and resume where they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mapmerge_core.errors import MapMergeError, PointError, SearchError, StudyError
from mapmerge_core.studies.config import Compute, StudyConfig
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache, load_evaluator
from mapmerge_core.studies.runs.estimating import estimate
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.runner import execute_run, explain, last_compute
from mapmerge_core.studies.store import Store, Study
from mapmerge_core.tasks.outcome import Outcome
from tests.studies.runs.helpers import CPU, execute, plain, plain_scores, run_config, table

if TYPE_CHECKING:
    from mapmerge_core.tasks.evaluator import Evaluator

ROOT = Path(__file__).parents[3]
KEYS = ("Colours/accuracy", "Stripes/accuracy")


def outcome(value: float, seconds: float = 1.0) -> Outcome:
    return Outcome(value=value, n_examples=10, per_example=b"\0\0", seconds=seconds)


def test_a_run_stores_what_a_plain_model_scores(store: Store, study: Study, evaluators: EvaluatorCache, tiny_zoo: Path):
    run = execute(store, study, evaluators, points=5)
    assert (run.status, run.n_evaluations) == ("done", 10)
    C, Y = table(store, plain(store, study))
    np.testing.assert_array_equal(C[:3], [[0, 0], [1, 0], [0, 1]])
    # The reference: θ_pre + Σ c_n v_n written out, and open_clip's own transform, head and model.
    tasks = study.config.model_names
    base = load_file(tiny_zoo / "pretrained.safetensors")
    tuned = [load_file(tiny_zoo / f"{task}.safetensors") for task in tasks]
    for c, values in zip(C[[0, 3]], Y[[0, 3]], strict=True):
        merged = dict(base)
        for name in tuned[0]:
            changes = [
                weight * (its[name].double() - base[name].double()) for weight, its in zip(c, tuned, strict=True)
            ]
            merged[name] = (base[name].double() + sum(changes)).to(base[name].dtype)
        np.testing.assert_allclose(values, plain_scores(merged, tiny_zoo, tasks, "val"), atol=1e-9)


def test_what_another_run_measured_is_not_measured_again(store: Store, study: Study, evaluators: EvaluatorCache):
    execute(store, study, evaluators, points=5)
    merge_id = plain(store, study)
    before = [row.id for row in store.evaluations.rows(merge_id, "val")]
    longer = execute(store, study, evaluators, points=7)  # the same seed: the first five points are the same
    assert longer.n_evaluations == 4
    assert [row.id for row in store.evaluations.rows(merge_id, "val")][:10] == before
    other = execute(store, study, evaluators, points=7, seed=1)  # only the three anchors are the same
    assert other.n_evaluations == 8


def test_every_run_measures_the_models_that_comparisons_need(store: Store, study: Study, evaluators: EvaluatorCache):
    run = store.runs.create(study.id, run_config(merge="ties", points=4))
    seen: list[tuple[int, int]] = []
    done = execute_run(store, run.id, evaluators.get, progress=lambda *at: seen.append(at))
    assert (done.status, done.n_evaluations) == ("done", (3 + 4) * 2)
    assert seen[-1] == (14, 14)
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)
    X, Y = table(store, plain(store, study))
    np.testing.assert_array_equal(X, [[0, 0], [1, 0], [0, 1]])
    assert np.isfinite(Y).all()
    assert len(table(store, run.merge_id)[0]) == 4
    # A method that doesn't ask for them: searching one scalar.
    other = store.studies.create("Other", study.config)
    scalar = execute(store, other, evaluators, method="scalar", points=3)
    assert scalar.n_evaluations == (2 + 3) * 2
    np.testing.assert_array_equal(table(store, plain(store, other))[0][:2], [[1, 0], [0, 1]])


def test_progress_counts_up_to_the_total(store: Store, study: Study, evaluators: EvaluatorCache):
    run = store.runs.create(study.id, run_config(points=4))
    seen: list[tuple[int, int]] = []
    execute_run(store, run.id, evaluators.get, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(9)]


def test_a_stopped_run_keeps_its_evaluations_and_goes_on(store: Store, study: Study, evaluators: EvaluatorCache):
    run = store.runs.create(study.id, run_config(points=6))
    cancel = Event()

    def stop_at_five(done: int, _: int) -> None:
        if done == 5:
            cancel.set()

    stopped = execute_run(store, run.id, evaluators.get, cancel=cancel, progress=stop_at_five)
    assert (stopped.status, stopped.n_evaluations) == ("stopped", 5)
    kept = [row.id for row in store.evaluations.rows(run.merge_id, "val")]
    done = execute_run(store, run.id, evaluators.get)
    assert (done.status, done.n_evaluations) == ("done", 12)
    assert [row.id for row in store.evaluations.rows(run.merge_id, "val")][:5] == kept


def test_ctrl_c_stops_a_run(store: Store, study: Study, evaluators: EvaluatorCache):
    run = store.runs.create(study.id, run_config(points=6))

    def press(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_run(store, run.id, evaluators.get, progress=press)
    assert (store.runs.get(run.id).status, store.runs.get(run.id).n_evaluations) == ("stopped", 3)


def test_what_cannot_be_run_is_refused_before_it_is_kept(store: Store, study: Study):
    for settings, sentence in [
        ({"points": 2}, "2 points are too few"),
        ({"low": 1.0, "high": 0.5}, "below"),
        ({"points": 100_001}, "100000"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"merge": "magic"}, "no merge 'magic'"),
        ({"merge": "ties", "merge_settings": {"keep": 0.0}}, "keep"),
        ({"merge": "pareto_merging", "compute": replace(CPU, vectors="bfloat16")}, "float32"),
    ]:
        with pytest.raises(MapMergeError, match=sentence):
            store.runs.create(study.id, run_config(**settings))
    assert store.runs.all(study.id) == []


def test_a_changed_file_ends_the_study_and_not_its_evaluations(
    store: Store, config: StudyConfig, evaluators: EvaluatorCache, tmp_path: Path
):
    copy, original = tmp_path / "Colours.safetensors", config.models["Colours"]
    copy.write_bytes(original.read_bytes())
    own = replace(config, models={**config.models, "Colours": copy})
    study = store.studies.create("Own", own)
    execute(store, study, evaluators, points=4)
    copy.write_bytes(config.models["Stripes"].read_bytes())
    with pytest.raises(StudyError, match=r"Colours\.safetensors has changed since this study was created"):
        execute(store, study, evaluators, points=6)
    assert len(store.evaluations.rows(plain(store, study), "val")) == 8
    assert [run.status for run in store.runs.all(study.id)] == ["done", "failed"]


def test_measuring_fills_the_gaps_and_returns_all(store: Store, study: Study, evaluators: EvaluatorCache):
    evaluator, merge_id = evaluators.get(study, CPU), plain(store, study)
    C = np.array([[0.2, 0.3], [0.4, 0.1]])
    store.evaluations.add(merge_id, C[0], KEYS[1], "test", outcome(0.375))
    values = measure(store, study, evaluator, merge_id, C, split="test")
    assert values.shape == (2, 2)
    assert values[0, 1] == 0.375
    rows = store.evaluations.rows(merge_id, "test")
    assert [(row.x.tolist(), row.objective) for row in rows] == [
        ([0.2, 0.3], KEYS[1]), ([0.2, 0.3], KEYS[0]), ([0.4, 0.1], KEYS[0]), ([0.4, 0.1], KEYS[1]),
    ]  # fmt: skip
    assert store.evaluations.rows(merge_id, "val") == []
    # Columns in the order asked for.
    swapped = measure(store, study, evaluator, merge_id, C, objectives=KEYS[::-1], split="test")
    np.testing.assert_array_equal(swapped, values[:, ::-1])
    with pytest.raises(PointError):
        measure(store, study, evaluator, merge_id, np.zeros((1, 3)))


def test_values_that_another_process_stored_meanwhile_are_used(store: Store, study: Study, evaluators: EvaluatorCache):
    """Another process measures the second point while this one measures the first."""
    merge_id, C = plain(store, study), np.array([[0.2, 0.3], [0.4, 0.1]])

    def interfere(done: int, _: int) -> None:
        if done == 1:
            store.evaluations.add(merge_id, C[0], KEYS[1], "val", outcome(0.123))
            store.evaluations.add(merge_id, C[1], KEYS[0], "val", outcome(0.123))

    values = measure(store, study, evaluators.get(study, CPU), merge_id, C, progress=interfere)
    assert (values[0, 1], values[1, 0]) == (0.123, 0.123)
    np.testing.assert_array_equal(values, table(store, merge_id)[1])
    assert len(store.evaluations.rows(merge_id, "val")) == 4


def test_the_estimate_comes_from_evaluations_that_count(store: Store, study: Study, evaluators: EvaluatorCache):
    result = estimate(store, study, evaluators.get(study, CPU), run_config())
    C, Y = table(store, plain(store, study))
    np.testing.assert_array_equal(C, [[0, 0], [1, 0]])
    assert np.isfinite(Y).all()
    assert 0 < result.seconds_per_point < 30
    assert (result.device, result.precision) == ("cpu", "float32")
    assert (result.seconds_to_prepare, result.n_references) == (0, 3)
    assert result.seconds_for(50) == 50 * result.seconds_per_point
    assert len(store.evaluations.rows(plain(store, study), "val")) == 4


def test_an_estimate_is_of_this_device_even_where_another_measured(
    store: Store, study: Study, evaluators: EvaluatorCache
):
    for c in np.eye(3, 2, k=-1)[:2]:
        for key in KEYS:
            store.evaluations.add(plain(store, study), c, key, "val", outcome(0.5, 1e6))
    before = store.evaluations.fingerprint(study.id)
    result = estimate(store, study, evaluators.get(study, CPU), run_config())
    assert 0 < result.seconds_per_point < 30
    assert store.evaluations.fingerprint(study.id) == before


# Several devices


@pytest.fixture
def pair(study: Study) -> Evaluator:
    """Evaluators of two devices, which this machine may not have: both are the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mapmerge_core.tasks.devices.choose_devices", lambda _: [torch.device("cpu")] * 2)
        return load_evaluator(study, Compute(device="cpu,cpu", precision="float32"))


@pytest.mark.parametrize("merge", ["task_arithmetic", "ties"])
def test_several_devices_share_a_run_and_measure_nothing_twice(
    store: Store, study: Study, pair: Evaluator, evaluators: EvaluatorCache, merge: str
):
    both = (pair, *pair.siblings)
    busy = [Event(), Event()]

    def at_once(evaluator: Evaluator, mine: Event, others: Event) -> Callable:
        measured = evaluator.outcomes

        def outcomes(*args: object, **more: object) -> Iterator:
            mine.set()
            assert others.wait(60), "both measure at the same time"
            yield from measured(*args, **more)

        return outcomes

    with pytest.MonkeyPatch.context() as patch:
        for evaluator, mine, others in zip(both, busy, busy[::-1], strict=True):
            patch.setattr(evaluator, "outcomes", at_once(evaluator, mine, others))
        run = store.runs.create(study.id, run_config(points=8, merge=merge))
        seen: list[tuple[int, int]] = []
        done = execute_run(store, run.id, lambda *_: pair, progress=lambda *at: seen.append(at))
    n = 16 if merge == "task_arithmetic" else 22
    assert (done.status, done.n_evaluations) == ("done", n)
    assert sorted(set(seen)) == [(count, n) for count in range(n + 1)]
    alone = store.studies.create("Alone", study.config)
    calm = execute(store, alone, evaluators, points=8, merge=merge)
    X, Y = table(store, run.merge_id)
    for x, values in zip(X, Y, strict=True):
        measured = store.evaluations.measured(calm.merge_id, x, "val")
        assert values.tolist() == [measured[key] for key in KEYS]
    on_test = [
        measure(store, member, evaluator, its.merge_id, X[3:6], split="test")
        for member, evaluator, its in ((study, pair, run), (alone, evaluators.get(alone, CPU), calm))
    ]
    np.testing.assert_array_equal(*on_test)


def test_what_an_interrupted_measurement_leaves_behind_stores_nothing_and_spoils_nothing(
    store: Store, study: Study, pair: Evaluator, evaluators: EvaluatorCache
):
    let_go, merge_id = Event(), plain(store, study)
    C = np.array([[0.1, 0.9], [0.9, 0.1], [0.6, 0.7], [0.8, 0.3]])

    def late(measured: Callable) -> Callable:
        def outcomes(point: object, *args: object, **more: object) -> Iterator:
            for key, each in measured(point, *args, **more):
                if point[1][0] in C[:2, 0]:
                    signal.raise_signal(signal.SIGINT)
                    let_go.wait(60)
                yield key, each

        return outcomes

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for evaluator in (pair, *pair.siblings):
            patch.setattr(evaluator, "outcomes", late(evaluator.outcomes))
        try:
            with pytest.raises(KeyboardInterrupt):
                measure(store, study, pair, merge_id, C[:2])
        finally:
            signal.signal(signal.SIGINT, before)
        # The next call waits for the model that is in use.
        Timer(0.5, let_go.set).start()
        values = measure(store, study, pair, merge_id, C[2:])
    alone = store.studies.create("Alone", study.config)
    expected = measure(store, alone, evaluators.get(alone, CPU), plain(store, alone), C[2:])
    np.testing.assert_array_equal(values, expected)
    assert len(store.evaluations.rows(merge_id, "val")) == 4, "nothing of the interrupted ones"


SLOW_DEVICES = """
import os, sys, time
from threading import Event
import numpy as np, torch
from mapmerge_core.studies.config import Compute
from mapmerge_core.studies.inputs.evaluators import load_evaluator
from mapmerge_core.studies.runs.measuring import measure, reference_points
from mapmerge_core.studies.store import Store
from mapmerge_core.tasks import devices as module
module.choose_devices = lambda _: [torch.device("cpu")] * 2
store = Store(sys.argv[1])
[study] = store.studies.all()
evaluator = load_evaluator(study, Compute())
def slowly(*args, **more):
    os.write(1, b"measuring\\n")
    time.sleep(600)
for each in (evaluator, *evaluator.siblings):
    each.outcomes = slowly
measure(store, study, evaluator, reference_points(store, study)[0], np.eye(2))
"""


def test_ctrl_c_does_not_wait_for_any_device(store: Store, study: Study):  # noqa: ARG001
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW_DEVICES, str(store.folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "measuring\n"
    started.send_signal(signal.SIGINT)
    assert started.wait(300) != 0, "evaluations in flight take ten minutes"
    started.stdout.close()


def test_an_error_on_one_device_ends_the_run_and_a_stop_reaches_all(
    store: Store, study: Study, pair: Evaluator, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise MapMergeError("The device fell off.")

    run = store.runs.create(study.id, run_config(points=40))
    with monkeypatch.context() as patch:
        patch.setattr(pair.siblings[0], "outcomes", fail)
        with pytest.raises(MapMergeError, match="fell off"):
            execute_run(store, run.id, lambda *_: pair)
    failed = store.runs.get(run.id)
    assert (failed.status, failed.error) == ("failed", "The device fell off.")
    assert failed.n_evaluations < 10, "the other device stops, too"
    cancel = Event()
    stopped = execute_run(
        store, run.id, lambda *_: pair, cancel=cancel, progress=lambda done, _: done < 20 or cancel.set()
    )
    assert stopped.status == "stopped"
    assert 20 <= stopped.n_evaluations <= 24
    assert execute_run(store, run.id, lambda *_: pair).n_evaluations == 80


def test_an_estimate_counts_the_devices(store: Store, study: Study, pair: Evaluator):
    result = estimate(store, study, pair, run_config())
    assert (result.device, result.n_devices) == ("cpu, cpu", 2)
    assert result.seconds_for(50) == pytest.approx(25 * result.seconds_per_point)


def test_task_vectors_in_bfloat16_measure_nearly_the_same_and_export_exactly(
    store: Store, study: Study, evaluators: EvaluatorCache
):
    compute = replace(CPU, vectors="bfloat16")
    run = execute(store, study, evaluators, points=8, compute=compute)
    assert (run.status, last_compute(store, study.id)) == ("done", compute)
    exact = store.studies.create("Exact", study.config)
    execute(store, exact, evaluators, points=8)
    X, Y = table(store, run.merge_id)
    difference = Y - table(store, plain(store, exact))[1]
    assert abs(difference).mean() < 0.01, "an image or so"
    rounded = load_evaluator(study, compute)
    assert rounded.vectors.is_rounded
    merged = dict(rounded.exported_vectors.tensors(X[5]))
    unrounded = dict(evaluators.get(exact, CPU).exported_vectors.tensors(X[5]))
    assert all(torch.equal(merged[name], tensor) for name, tensor in unrounded.items())
    on_test = [
        measure(store, member, evaluator, plain(store, member), X[5:6], split="test")
        for member, evaluator in ((study, rounded), (exact, evaluators.get(exact, CPU)))
    ]
    np.testing.assert_array_equal(*on_test)


def test_what_nobody_expected_is_one_sentence_too():
    assert explain(ValueError("first\nsecond")) == "Unexpected error: ValueError: first second"
    assert explain(SearchError("As it is.")) == "As it is."


RUN = """
import sys
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.store import Store
store, run_id = Store(sys.argv[1]), int(sys.argv[2])
claim = store.runs.claim(run_id)
execute_run(store, run_id, EvaluatorCache().get)
"""


def test_kill_9_loses_nothing_and_repeats_nothing(
    request: pytest.FixtureRequest, store: Store, study: Study, tmp_path: Path, evaluators: EvaluatorCache
):
    """A real process is killed in the middle of a run; another finishes it."""
    config = run_config(points=120, seed=3)
    run = store.runs.create(study.id, config)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(store.folder), str(run.id)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 600
    while store.runs.get(run.id).n_evaluations < 15:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # While it lives, nobody else gets the run, and nobody takes it for dead.
    with pytest.raises(StudyError, match="already going on"):
        store.runs.claim(run.id)
    assert store.runs.recover() == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()

    def rows() -> list[tuple]:
        measured = store.evaluations.rows(run.merge_id, "val")
        return [(row.id, row.x.tobytes(), row.objective, row.value) for row in measured]

    before = rows()
    assert 15 <= len(before) < 240
    assert store.runs.get(run.id).status == "running"
    assert [row.status for row in store.runs.recover()] == ["interrupted"]

    claim = store.runs.claim(run.id)
    again: list[int] = []
    done = execute_run(store, run.id, evaluators.get, progress=lambda count, _: again.append(count))
    claim.release()
    assert again == list(range(len(before), 241))
    after = rows()
    assert (done.status, done.n_evaluations, len(after)) == ("done", 240, 240)
    assert after[: len(before)] == before
    assert len({(x, key) for _, x, key, _ in after}) == 240

    # The same as if nobody had killed it.
    calm = Store(tmp_path / "calm")
    study_again = calm.studies.create("Calm", study.config)
    its_run = calm.runs.create(study_again.id, config)
    execute_run(calm, its_run.id, evaluators.get)
    for killed, undisturbed in zip(table(store, run.merge_id), table(calm, its_run.merge_id), strict=True):
        np.testing.assert_array_equal(killed, undisturbed)
    calm.close()
