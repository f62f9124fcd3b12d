"""Runs evaluate what is missing, survive kill -9, and resume where they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mapmerge_core.errors import MapMergeError, SearchError, StudyError
from mapmerge_core.studies.inputs.evaluators import load_evaluator, read_vectors
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.runner import estimate, execute_run, explain, last_settings
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import StudySpec, TaskSpec
from mapmerge_core.studies.store.store import Store
from mapmerge_core.tasks.metric import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.tasks.evaluator import Evaluator

ROOT = Path(__file__).parents[2]


def start(store: Store, study: StudyRow, evaluators: EvaluatorCache, **settings: object) -> RunRow:
    """Claims and executes a new run of few points in float32."""
    run = store.create_run(study.id, RunSettings(**{"points": 6, "precision": "float32", **settings}))
    claim = store.claim_run(run.id)
    try:
        return execute_run(store, run.id, evaluators.get)
    finally:
        claim.release()


def test_a_run_stores_what_a_plain_model_scores(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    run = start(store, study, evaluators, points=5)
    assert (run.status, run.n_evaluations) == ("done", 10)
    C, Y = store.table(study.id)
    np.testing.assert_array_equal(C[:3], [[0, 0], [1, 0], [0, 1]])
    # The reference: θ_pre + Σ c_n v_n written out, and open_clip's own transform, head and model.
    for c, values in zip(C[[0, 3]], Y[[0, 3]], strict=True):
        np.testing.assert_allclose(values, plain_accuracies(study.spec, c), atol=1e-9)


def plain_accuracies(spec: StudySpec, c: np.ndarray) -> list[float]:
    import json

    import open_clip
    import torch
    from safetensors.torch import load_file

    from tests.tiny import plain_head, plain_transform

    model = open_clip.CLIP(**json.loads(Path(spec.architecture).read_text()))
    pretrained = load_file(spec.pretrained)
    merged = {name: tensor.clone() for name, tensor in pretrained.items()}
    for name, tensor in pretrained.items():
        if name.startswith("visual."):
            total = tensor.double()
            for weight, task in zip(c, spec.tasks, strict=True):
                total += weight * (load_file(task.checkpoint)[name].double() - tensor.double())
            merged[name] = total.to(tensor.dtype)
    model.load_state_dict(merged)
    model.eval()
    accuracies = []
    for task in spec.tasks:
        with np.load(task.data.path) as data, torch.inference_mode():
            features = model.encode_image(plain_transform(data["val_images"], model), normalize=True)
            head = plain_head(model, data["class_names"].tolist(), data["templates"].tolist())
            guesses = (features @ head).argmax(dim=1).numpy()
            accuracies.append(float((guesses == data["val_labels"]).mean()))
    return accuracies


def test_what_another_run_measured_is_not_measured_again(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    start(store, study, evaluators, points=5)
    before = [row.id for row in store.evaluations(study.id)]
    longer = start(store, study, evaluators, points=7)  # the same seed: the first five points are the same
    assert longer.n_evaluations == 4
    assert [row.id for row in store.evaluations(study.id)][:10] == before
    other = start(store, study, evaluators, points=7, seed=1)  # only the three anchors are the same
    assert other.n_evaluations == 8


def test_progress_counts_up_to_the_total(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    run = store.create_run(study.id, RunSettings(points=4))
    seen: list[tuple[int, int]] = []
    execute_run(store, run.id, evaluators.get, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(9)]


def test_a_stopped_run_keeps_its_evaluations_and_goes_on(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    run = store.create_run(study.id, RunSettings(points=6))
    cancel = Event()

    def stop_at_five(done: int, _: int) -> None:
        if done == 5:
            cancel.set()

    stopped = execute_run(store, run.id, evaluators.get, cancel=cancel, progress=stop_at_five)
    assert (stopped.status, stopped.n_evaluations) == ("stopped", 5)
    kept = [row.id for row in store.evaluations(study.id)]
    done = execute_run(store, run.id, evaluators.get)
    assert (done.status, done.n_evaluations) == ("done", 12)
    assert [row.id for row in store.evaluations(study.id)][:5] == kept


def test_ctrl_c_stops_a_run(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    run = store.create_run(study.id, RunSettings(points=6))

    def press(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_run(store, run.id, evaluators.get, progress=press)
    assert (store.run(run.id).status, store.run(run.id).n_evaluations) == ("stopped", 3)


@pytest.mark.parametrize(
    ("settings", "method", "sentence"),
    [
        (RunSettings(points=2), "map", "2 points are too few"),
        (RunSettings(points=9, low=1.0, high=0.5), "map", "below the highest"),
        (RunSettings(points=9, design="spiral"), "map", "spiral"),
        (RunSettings(points=100_001), "map", "too many for one run: choose 100000 or fewer"),
        (RunSettings(points=9), "magic", "method 'magic' is unknown"),
        (RunSettings(points=9, vectors="int8"), "map", "held in float32 or bfloat16, not int8"),
        (RunSettings(points=9, vectors="bfloat16"), "pareto_merging", "trains on float32 task vectors"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_kept(
    store: Store, study: StudyRow, settings: RunSettings, method: str, sentence: str
):
    with pytest.raises(SearchError, match=sentence):
        store.create_run(study.id, settings, method)
    assert store.runs(study.id) == []


def test_a_changed_file_ends_the_study_and_not_its_evaluations(
    store: Store, spec: StudySpec, evaluators: EvaluatorCache, tmp_path: Path
):
    copy = tmp_path / "Colours.safetensors"
    copy.write_bytes(spec.tasks[0].checkpoint.read_bytes())
    own = replace(spec, tasks=(TaskSpec("Colours", copy, spec.tasks[0].data), spec.tasks[1]))
    study = store.create_study("Own", own)
    start(store, study, evaluators, points=4)
    copy.write_bytes(spec.tasks[1].checkpoint.read_bytes())
    with pytest.raises(StudyError, match=r"Colours\.safetensors has changed since this study was created"):
        start(store, study, evaluators, points=6)
    assert len(store.evaluations(study.id)) == 8
    assert [run.status for run in store.runs(study.id)] == ["done", "failed"]


def test_measuring_fills_the_gaps_and_returns_all(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    evaluator = evaluators.get(study)
    C = np.array([[0.2, 0.3], [0.4, 0.1]])
    store.add_evaluation(
        study.id, C[0], "Stripes", "test", evaluator.evaluate(C[0], ["Stripes"], "test")["Stripes"]
    )
    first = store.evaluations(study.id, "test")[0]
    values = measure(store, study, evaluator, C, split="test")
    assert values.shape == (2, 2)
    assert values[0, 1] == first.value
    rows = store.evaluations(study.id, "test")
    assert [(row.c.tolist(), row.task) for row in rows] == [
        ([0.2, 0.3], "Stripes"), ([0.2, 0.3], "Colours"), ([0.4, 0.1], "Colours"), ([0.4, 0.1], "Stripes"),
    ]  # fmt: skip
    assert store.evaluations(study.id, "val") == []


def test_values_that_another_process_stored_meanwhile_are_used(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    """Another process measures the second point while this one measures the first."""
    C = np.array([[0.2, 0.3], [0.4, 0.1]])
    theirs = Outcome(value=0.123, n_examples=10, per_example=b"", seconds=1.0)

    def interfere(done: int, _: int) -> None:
        if done == 1:
            store.add_evaluation(study.id, C[0], "Stripes", "val", theirs)
            store.add_evaluation(study.id, C[1], "Colours", "val", theirs)

    values = measure(store, study, evaluators.get(study), C, progress=interfere)
    assert (values[0, 1], values[1, 0]) == (0.123, 0.123)
    np.testing.assert_array_equal(values, store.table(study.id)[1])
    assert len(store.evaluations(study.id)) == 4


def test_the_estimate_comes_from_evaluations_that_count(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    evaluator = evaluators.get(study, "cpu", "float32")
    result = estimate(store, study, evaluator)
    C, Y = store.table(study.id)
    np.testing.assert_array_equal(C, [[0, 0], [1, 0]])
    assert np.isfinite(Y).all()
    assert 0 < result.seconds_per_point < 30
    assert (result.device, result.precision) == ("cpu", "float32")
    assert result.seconds_for(50) == 50 * result.seconds_per_point
    assert len(store.evaluations(study.id)) == 4


def test_an_estimate_is_of_this_device_even_where_another_measured(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    slow = Outcome(value=0.5, n_examples=10, per_example=b"", seconds=1e6)
    for c in np.eye(3, 2, k=-1)[:2]:
        for task in study.spec.task_names:
            store.add_evaluation(study.id, c, task, "val", slow)
    before = store.fingerprint(study.id)
    result = estimate(store, study, evaluators.get(study, "cpu", "float32"))
    assert 0 < result.seconds_per_point < 30
    assert store.fingerprint(study.id) == before


@pytest.fixture
def pair(study: StudyRow) -> Evaluator:
    """Evaluators of two devices, which this machine may not have: both are the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mapmerge_core.tasks.evaluator.choose_devices", lambda _: [torch.device("cpu")] * 2)
        return load_evaluator(study, "cpu,cpu", "float32")


def test_several_devices_share_a_run_and_measure_nothing_twice(
    store: Store, study: StudyRow, pair: Evaluator, evaluators: EvaluatorCache
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
        run = store.create_run(study.id, RunSettings(points=8, precision="float32"))
        seen: list[tuple[int, int]] = []
        done = execute_run(store, run.id, lambda *_: pair, progress=lambda *at: seen.append(at))
    assert (done.status, done.n_evaluations) == ("done", 16)
    assert seen == [(count, 16) for count in range(17)]
    alone = store.create_study("Alone", study.spec)
    start(store, alone, evaluators, points=8)
    for c, values in zip(*store.table(study.id), strict=True):
        assert values.tolist() == list(store.measured(alone.id, c, "val").values())
    assert len(store.evaluations(study.id)) == len(store.evaluations(alone.id)) == 16
    C = store.table(study.id)[0][3:]
    on_test = [
        measure(store, member, evaluator, C, split="test")
        for member, evaluator in ((study, pair), (alone, evaluators.get(alone, "cpu", "float32")))
    ]
    np.testing.assert_array_equal(*on_test)


def test_devices_that_share_a_run_compute_in_one_precision(study: StudyRow, monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("mapmerge_core.tasks.evaluator.choose_devices", lambda _: [cpu] * 3)
    chosen = iter(["bfloat16", "float32", "float32"])
    monkeypatch.setattr("mapmerge_core.tasks.evaluator.choose_precision", lambda _: next(chosen))
    first = load_evaluator(study)
    assert [each.precision for each in (first, *first.siblings)] == ["bfloat16"] * 3
    assert all(each.vectors is first.vectors for each in first.siblings), "task vectors are read once"


def test_what_an_interrupted_measurement_leaves_behind_stores_nothing_and_spoils_nothing(
    store: Store, study: StudyRow, pair: Evaluator, evaluators: EvaluatorCache
):
    let_go = Event()
    C = np.array([[0.1, 0.9], [0.9, 0.1], [0.6, 0.7], [0.8, 0.3]])

    def late(measured: Callable) -> Callable:
        def outcomes(c: np.ndarray, *args: object, **more: object) -> Iterator:
            for task, outcome in measured(c, *args, **more):
                if c[0] in C[:2, 0]:
                    signal.raise_signal(signal.SIGINT)
                    let_go.wait(60)
                yield task, outcome

        return outcomes

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for evaluator in (pair, *pair.siblings):
            patch.setattr(evaluator, "outcomes", late(evaluator.outcomes))
        try:
            with pytest.raises(KeyboardInterrupt):
                measure(store, study, pair, C[:2])
        finally:
            signal.signal(signal.SIGINT, before)
        # The next call waits for the model that is in use.
        Timer(0.5, let_go.set).start()
        values = measure(store, study, pair, C[2:])
    alone = store.create_study("Alone", study.spec)
    expected = measure(store, alone, evaluators.get(alone, "cpu", "float32"), C[2:])
    np.testing.assert_array_equal(values, expected)
    assert len(store.evaluations(study.id)) == 4, "nothing of the interrupted ones"


SLOW_DEVICES = """
import os, sys, time
from pathlib import Path
import numpy as np, torch
from mapmerge_core.cli.session import ctrl_c_stops
from mapmerge_core.studies.inputs.evaluators import load_evaluator
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.store.store import Store
from mapmerge_core.tasks import evaluator as module
home, zoo = sys.argv[1:]
module.choose_devices = lambda _: [torch.device("cpu")] * 2
store = Store(home)
study = store.create_study("Slow", spec_from_manifest(Path(zoo), ["Colours", "Stripes"]))
evaluator = load_evaluator(study)
def slowly(*args, **more):
    os.write(1, b"measuring\\n")
    time.sleep(60)
for each in (evaluator, *evaluator.siblings):
    each.outcomes = slowly
with ctrl_c_stops() as cancel:
    measure(store, study, evaluator, np.eye(2), cancel=cancel)
"""


def test_a_second_ctrl_c_does_not_wait_for_any_device(tmp_path: Path, tiny_zoo: Path):
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW_DEVICES, str(tmp_path), str(tiny_zoo)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "measuring\n"
    began = time.monotonic()
    for _ in range(2):
        started.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert started.wait(30) != 0
    assert time.monotonic() - began < 20, "evaluations in flight take a minute"


def test_an_error_on_one_device_ends_the_run_and_a_stop_reaches_all(
    store: Store, study: StudyRow, pair: Evaluator, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise MapMergeError("The device fell off.")

    run = store.create_run(study.id, RunSettings(points=40, precision="float32"))
    with monkeypatch.context() as patch:
        patch.setattr(pair.siblings[0], "outcomes", fail)
        with pytest.raises(MapMergeError, match="fell off"):
            execute_run(store, run.id, lambda *_: pair)
    failed = store.run(run.id)
    assert (failed.status, failed.error) == ("failed", "The device fell off.")
    assert failed.n_evaluations < 10, "the other device stops, too"
    cancel = Event()
    stopped = execute_run(
        store, run.id, lambda *_: pair, cancel=cancel, progress=lambda done, _: done < 20 or cancel.set()
    )
    assert stopped.status == "stopped"
    assert 20 <= stopped.n_evaluations <= 24
    assert execute_run(store, run.id, lambda *_: pair).n_evaluations == 80


def test_an_estimate_counts_the_devices(store: Store, study: StudyRow, pair: Evaluator):
    found = estimate(store, study, pair)
    assert (found.device, found.n_devices) == ("cpu, cpu", 2)
    assert found.seconds_for(50) == pytest.approx(25 * found.seconds_per_point)


def test_task_vectors_in_bfloat16_measure_nearly_the_same_and_export_exactly(
    store: Store, study: StudyRow, evaluators: EvaluatorCache
):
    run = start(store, study, evaluators, points=8, vectors="bfloat16")
    assert (run.status, last_settings(store, study.id).vectors) == ("done", "bfloat16")
    exact = store.create_study("Exact", study.spec)
    start(store, exact, evaluators, points=8)
    difference = store.table(study.id)[1] - store.table(exact.id)[1]
    assert abs(difference).mean() < 0.01, "an image or so"
    rounded = load_evaluator(study, "cpu", "float32", "bfloat16")
    assert rounded.vectors.is_rounded
    c = store.table(study.id)[0][5]
    merged, plain = dict(rounded.exported_vectors.tensors(c)), read_vectors(study).merge(c)
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.items())
    on_test = [
        measure(store, member, evaluator, c[None], split="test")
        for member, evaluator in ((study, rounded), (exact, evaluators.get(exact, "cpu", "float32")))
    ]
    np.testing.assert_array_equal(*on_test)


def test_what_nobody_expected_is_one_sentence_too():
    assert explain(ValueError("first\nsecond")) == "Unexpected error: ValueError: first second"
    assert explain(StudyError("As it is.")) == "As it is."


def test_kill_9_loses_nothing_and_repeats_nothing(
    request: pytest.FixtureRequest, tiny_zoo: Path, tmp_path: Path, evaluators: EvaluatorCache
):
    """A real process is killed in the middle of a run; another finishes it."""
    settings = RunSettings(points=250, seed=3, precision="float32", device="cpu")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mapmerge_core", "run", str(tiny_zoo), "--tasks", "Colours,Stripes",
            "--name", "Killed", "--points", str(settings.points), "--seed", "3", "--precision", "float32",
            "--device", "cpu",
        ],
        cwd=ROOT, env={**os.environ, "MAPMERGE_HOME": str(tmp_path / "killed")},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    request.addfinalizer(process.kill)
    store = Store(tmp_path / "killed")
    deadline = time.monotonic() + 600
    while not (store.studies() and store.studies()[0].n_evaluations >= 15):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    study = store.find_study("Killed")
    [run] = store.runs(study.id)
    # While it lives, nobody else gets the run, and nobody takes it for dead.
    with pytest.raises(StudyError, match="already going on"):
        store.claim_run(run.id)
    assert store.recover() == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()

    store = Store(tmp_path / "killed")
    before = [(row.id, row.c.tobytes(), row.task, row.value) for row in store.evaluations(study.id)]
    assert 15 <= len(before) < 500
    assert store.run(run.id).status == "running"
    assert [row.status for row in store.recover()] == ["interrupted"]

    claim = store.claim_run(run.id)
    again: list[int] = []
    done = execute_run(store, run.id, evaluators.get, progress=lambda count, _: again.append(count))
    claim.release()
    assert again == list(range(len(before), 501))
    after = [(row.id, row.c.tobytes(), row.task, row.value) for row in store.evaluations(study.id)]
    assert (done.status, done.n_evaluations, len(after)) == ("done", 500, 500)
    assert after[: len(before)] == before
    assert len({(c, task) for _, c, task, _ in after}) == 500

    # The same as if nobody had killed it.
    calm = Store(tmp_path / "calm")
    study_again = calm.create_study("Calm", spec_from_manifest(tiny_zoo, ["Colours", "Stripes"]))
    execute_run(calm, calm.create_run(study_again.id, settings).id, evaluators.get)
    for killed_array, calm_array in zip(store.table(study.id), calm.table(study_again.id), strict=True):
        np.testing.assert_array_equal(killed_array, calm_array)
