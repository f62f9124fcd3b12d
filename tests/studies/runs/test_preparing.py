"""Learned sets are trained, kept, stopped, killed, resumed, measured and exported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import (
    Cancelled,
    CheckpointError,
    ExportError,
    MapMergeError,
    SearchError,
    StudyError,
)
from mapmerge_core.merges._pareto_training import ParetoMerging, pareto_merge
from mapmerge_core.merges._pareto_set import ParetoSet
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.search.preference_grid import preference_grid
from mapmerge_core.studies.runs import learning
from mapmerge_core.studies.analysis.comparing import compare, complete
from mapmerge_core.studies.runs.exporting import export_learned_pick, export_learned_set
from mapmerge_core.studies.jobs.jobs import Jobs
from mapmerge_core.studies.analysis.learned import learned_set
from mapmerge_core.studies.runs.learning import load_learned, measure_learned
from mapmerge_core.studies.runs.runner import estimate, execute_run
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.analysis.siblings import sibling
from mapmerge_core.studies.config.study import StudySpec, Transform
from mapmerge_core.studies.store.store import Store
from mapmerge_core.weights.export.writing import read_recipe
from tests.tiny import ARCHITECTURE, plain_head, plain_transform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store.rows import Run, Study
    from mapmerge_core.tasks.evaluator import Evaluator

ROOT = Path(__file__).parents[2]
TASKS = ("Colours", "Stripes")
# So fast that preferences differ after a few steps.
TRAINING = Training(steps=10, rank=4, batch_size=16, lr=0.03, beta_norm=0.01, balance=1.0)
SETTINGS = RunSettings(points=4, seed=5, device="cpu", precision="float32", training=TRAINING)


def run_anew(store: Store, study: Study, evaluators: EvaluatorCache, **changes: object) -> Run:
    run = store.create_run(study.id, replace(SETTINGS, **changes), "pareto_merging")
    return execute_run(store, run.id, evaluators.get)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path, evaluators: EvaluatorCache
) -> tuple[Path, list[tuple[int, int]]]:
    """A data folder with a study and its done run, and the progress that was reported."""
    from mapmerge_core.studies.config.manifest import spec_from_manifest

    folder = tmp_path_factory.mktemp("trained")
    store = Store(folder)
    study = store.studies.create("Tiny", spec_from_manifest(tiny_zoo, list(TASKS)))
    run = store.create_run(study.id, SETTINGS, "pareto_merging")
    seen: list[tuple[int, int]] = []
    execute_run(store, run.id, evaluators.get, progress=lambda *at: seen.append(at))
    store.close()
    return folder, seen


@pytest.fixture
def store(trained: tuple[Path, object], tmp_path: Path) -> Iterator[Store]:
    """A data folder of the test's own, with the trained run in it."""
    shutil.copytree(trained[0], tmp_path / "home")
    store = Store(tmp_path / "home")
    yield store
    store.close()


@pytest.fixture
def study(store: Store) -> Study:
    return store.studies.find("Tiny")


@pytest.fixture
def run(store: Store, study: Study) -> Run:
    return store.runs.all(study.id)[0]


@pytest.fixture
def evaluator(study: Study, evaluators: EvaluatorCache) -> Evaluator:
    return evaluators.get(study, "cpu", "float32")


def plain_accuracies(weights: Mapping[str, Tensor], zoo: Path, split: str) -> list[float]:
    """By open_clip, PIL and NumPy alone."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(weights)
    accuracies = []
    for task in TASKS:
        with np.load(zoo / f"{task}.npz") as data, torch.inference_mode():
            head = plain_head(model, data["class_names"].tolist(), data["templates"].tolist())
            images = plain_transform(data[f"{split}_images"], model)
            guesses = (model.encode_image(images, normalize=True) @ head).argmax(dim=1).numpy()
            accuracies.append(float((guesses == data[f"{split}_labels"]).mean()))
    return accuracies


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Bit for bit."""
    a, b = load_file(ours), load_file(theirs)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


# The run


def test_the_artifact_is_what_the_method_learns(
    store: Store, study: Study, run: Run, evaluator: Evaluator, tiny_zoo: Path, tmp_path: Path
):
    file = store.learned_file(run.id)
    assert list(file.parent.iterdir()) == [file], "the checkpoint is gone, and nothing temporary is left"
    pareto_merge(evaluator, TRAINING, seed=5).save(tmp_path / "plain.safetensors", {})
    assert_same_tensors(file, tmp_path / "plain.safetensors")
    # Two layers with q, k, v and the output's projection, each 32 x 32.
    tensors = load_file(file)
    vision = [name for name in load_file(tiny_zoo / "pretrained.safetensors") if name.startswith("visual.")]
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "lambda": (len(vision), 2),
        **{f"{kind}.{i}": (32, 4) for kind in "AB" for i in range(8)},
        **{f"G.{i}": (4, 4, 2) for i in range(8)},
    }
    assert not any(torch.equal(tensors[f"G.{i}"], torch.zeros(4, 4, 2)) for i in range(8))
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["mapmerge-pareto-set"])
    recipe = header["recipe"]
    assert header["tasks"] == list(TASKS)
    assert (recipe["method"], recipe["seed"]) == ("Pareto Merging", 5)
    assert Training(**recipe["training"]) == TRAINING
    assert (
        recipe["sources"]["Colours"]["sha256"]
        == {s.role: s.sha256 for s in study.sources}["Colours checkpoint"]
    )
    # r (c + d) + r² K for each matrix; and all of the vision tower.
    sizes = [tensor.numel() for name, tensor in load_file(tiny_zoo / "Colours.safetensors").items()]
    assert (recipe["n_extra"], recipe["n_parameters"]) == (8 * (4 * (32 + 32) + 4**2 * 2), sum(sizes))
    found = learned_set(store, run.id)
    assert (found.n_extra, found.n_parameters) == (recipe["n_extra"], recipe["n_parameters"])


def test_the_grid_is_measured_as_a_plain_model_scores(
    store: Store, run: Run, evaluator: Evaluator, tiny_zoo: Path
):
    gammas, values = store.learned_table(run.id)
    np.testing.assert_array_equal(gammas, preference_grid(2, 4, seed=5))
    learned = load_learned(store, run.id, evaluator.exported_vectors)
    expected = [plain_accuracies(learned.merge(gamma), tiny_zoo, "val") for gamma in gammas]
    np.testing.assert_allclose(values, expected, atol=1e-9)
    assert len(np.unique(values, axis=0)) > 1
    # So are the models that every comparison needs.
    C, Y = store.table(run.study_id)
    np.testing.assert_array_equal(C, [[0, 0], [1, 0], [0, 1]])
    assert np.isfinite(Y).all()


def test_a_few_preferences_are_measured_on_the_way(store: Store, run: Run, evaluator: Evaluator):
    assert learning.look_steps(10) == [2, 4, 6, 8]
    assert store.learned_steps(run.id) == [2, 4, 6, 8, 10]
    # What a step draws doesn't depend on how many there are, so a shorter training is the same so far.
    so_far = pareto_merge(evaluator, replace(TRAINING, steps=6), seed=5)
    gammas, values = store.learned_table(run.id, step=6)
    np.testing.assert_array_equal(gammas, preference_grid(2, 5))
    for gamma, row in zip(gammas, values, strict=True):
        outcomes = dict(evaluator.outcomes_of(so_far.merge(gamma), TASKS, "val"))
        assert row.tolist() == [outcomes[task].value for task in TASKS]


@pytest.mark.parametrize(
    ("steps", "looks"), [(1, []), (2, [1]), (5, [1, 2, 3, 4]), (2000, [400, 800, 1200, 1600])]
)
def test_looks_are_spread_over_the_training(steps: int, looks: list[int]):
    assert learning.look_steps(steps) == looks


def test_training_points_are_means_since_the_one_before(
    store: Store, study: Study, run: Run, evaluator: Evaluator, evaluators: EvaluatorCache,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    merging = ParetoMerging(evaluator, TRAINING, seed=5)
    steps = [merging.step() for _ in range(10)]
    f = np.array([each.double().numpy() for each, _ in steps])
    objectives = np.array([float(each) for _, each in steps])
    points = store.training_points(run.id)
    assert [point.step for point in points] == list(range(1, 11))
    np.testing.assert_allclose([point.f for point in points], f, rtol=1e-6)
    np.testing.assert_allclose([point.objective for point in points], objectives, rtol=1e-6)
    assert all(point.seconds > 0 for point in points)
    assert run.seconds > sum(point.seconds for point in points)
    # Of longer trainings several steps make a point.
    monkeypatch.setattr(learning, "POINTS", 5)
    points = store.training_points(run_anew(store, study, evaluators).id)
    assert [point.step for point in points] == [2, 4, 6, 8, 10]
    np.testing.assert_allclose([point.f for point in points], (f[::2] + f[1::2]) / 2, rtol=1e-6)


def test_progress_reaches_its_total_and_never_goes_back(trained: tuple[Path, list[tuple[int, int]]]):
    _, seen = trained
    counts = [done for done, _ in seen]
    # Ten steps, four looks at five preferences, four at the end, three anchors, each on two tasks.
    assert {total for _, total in seen} == {10 + (4 * 5 + 4 + 3) * 2} == {learning.n_units(4, TRAINING, 2)}
    assert counts == sorted(counts)
    assert sorted(set(counts)) == list(range(1, 65))


def test_the_same_run_on_trimmed_vectors_is_another_set(
    store: Store, study: Study, run: Run, evaluators: EvaluatorCache
):
    trimmed = sibling(store, study, Transform("ties_trim"))
    other = run_anew(store, trimmed, evaluators)
    assert other.status == "done"
    ours, theirs = (load_file(store.learned_file(each.id)) for each in (run, other))
    assert not torch.equal(ours["lambda"], theirs["lambda"])


def test_data_free_training_needs_no_data(store: Store, study: Study, evaluators: EvaluatorCache):
    training = replace(TRAINING, steps=3, data_free=True)
    done = run_anew(store, study, evaluators, training=training, points=1)
    assert (done.status, len(store.learned_table(done.id)[0])) == ("done", 1)


# Stopped, killed, resumed


@pytest.mark.parametrize(
    ("where", "is_trained"),
    [(1, False), (9, False), (25, False), (53, True)],
    ids=["at the start", "in a look", "in training", "in the grid"],
)
def test_stopped_and_resumed_it_ends_as_if_never_stopped(
    store: Store, study: Study, run: Run, evaluators: EvaluatorCache, where: int, is_trained: bool
):
    cancel, before, after = Event(), [], []

    def stop(done: int, _: int) -> None:
        before.append(done)
        if done >= where:
            cancel.set()

    again = store.create_run(study.id, SETTINGS, "pareto_merging")
    stopped = execute_run(store, again.id, evaluators.get, cancel=cancel, progress=stop)
    assert stopped.status == "stopped"
    assert store.learned_file(again.id).exists() == is_trained
    assert store.training_file(again.id).exists() != is_trained
    kept = store.runs.get(again.id).n_evaluations
    done = execute_run(store, again.id, evaluators.get, progress=lambda *at: after.append(at))
    assert done.status == "done"
    assert_same_tensors(store.learned_file(again.id), store.learned_file(run.id))
    assert not store.training_file(again.id).exists()
    for step in (None, 2, 4, 6, 8):
        for ours, theirs in zip(
            store.learned_table(again.id, step=step), store.learned_table(run.id, step=step), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    assert store.learned_steps(again.id) == [2, 4, 6, 8, 10]
    assert [point.step for point in store.training_points(again.id)] == list(range(1, 11))
    assert done.n_evaluations == (4 * 5 + 4) * 2
    assert kept <= done.n_evaluations
    assert after == sorted(after)
    assert after[0][0] >= before[-1], "what was done isn't done again"
    assert after[-1] == (64, 64)


def test_a_killed_process_loses_no_more_than_its_last_steps(
    request: pytest.FixtureRequest, store: Store, study: Study, evaluators: EvaluatorCache
):
    """A real process is killed in the middle of training; another goes on from its checkpoint."""
    settings = replace(SETTINGS, training=replace(TRAINING, steps=50), points=2)
    run = store.create_run(study.id, settings, "pareto_merging")
    program = (
        "from mapmerge_core.studies import learning\n"
        "from mapmerge_core.studies.inputs.evaluators import EvaluatorCache\n"
        "from mapmerge_core.studies.runs.runner import execute_run\n"
        "from mapmerge_core.studies.store.store import Store\n"
        "learning.SAVED_EVERY = 0.0\n"
        f"store = Store({str(store.folder)!r})\n"
        f"claim = store.runs.claim({run.id})\n"
        f"execute_run(store, {run.id}, EvaluatorCache().get)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 600
    # Some way after the first look, which is after 10 steps.
    while max((point.step for point in store.training_points(run.id)), default=0) < 14:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not store.learned_file(run.id).exists()
    assert store.training_file(run.id).exists()
    assert [row.status for row in store.runs.recover()] == ["interrupted"]
    assert store.training_points(run.id)[-1].step < 50
    assert np.isfinite(store.learned_table(run.id, step=10)[1]).all()

    claim = store.runs.claim(run.id)
    counts: list[int] = []
    done = execute_run(store, run.id, evaluators.get, progress=lambda count, _: counts.append(count))
    claim.release()
    assert done.status == "done"
    # It goes on from a checkpoint after the look, whose ten evaluations aren't made again.
    assert counts[0] >= 14 + 10
    assert done.n_evaluations == (4 * 5 + 2) * 2
    calm = store.create_run(study.id, settings, "pareto_merging")
    execute_run(store, calm.id, evaluators.get)
    assert_same_tensors(store.learned_file(run.id), store.learned_file(calm.id))
    np.testing.assert_array_equal(store.learned_table(run.id)[1], store.learned_table(calm.id)[1])


def test_jobs_start_stop_and_resume_it(store: Store, study: Study):
    settings = replace(SETTINGS, training=replace(TRAINING, steps=5000), points=2)
    run = store.create_run(study.id, settings, "pareto_merging")
    jobs = Jobs(store)
    try:
        first = jobs.start_run(run.id)
        assert jobs.snapshot(first).title == "Train 5,000 steps, then measure 2 preferences"
        deadline = time.monotonic() + 600
        while jobs.snapshot(first).done < 20:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running = jobs.snapshot(first)
        assert running.seconds_left is not None
        assert running.total == learning.n_units(2, settings.training, 2)
        jobs.stop(first)
        assert jobs.wait(first, 600).status == "stopped"
        stopped_at = max(point.step for point in store.training_points(run.id))
        assert stopped_at >= 20
        second = jobs.start_run(run.id)
        while jobs.snapshot(second).done <= stopped_at + 5:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        jobs.stop(second)
        assert jobs.wait(second, 600).status == "stopped"
        assert max(point.step for point in store.training_points(run.id)) > stopped_at
    finally:
        jobs.close()


def test_jobs_measure_refine_and_export(store: Store, run: Run):
    jobs = Jobs(store)
    try:
        gamma = np.array([0.3, 0.7])
        pick = store.add_learned_pick(run.id, gamma, {"kind": "preference"})
        with pytest.raises(StudyError, match="no pick 99"):
            jobs.export_learned(99)
        measured = jobs.wait(jobs.measure_learned(run.id, gamma[None], "test", "Measure"), 600)
        assert (measured.status, measured.done, measured.total) == ("done", 2, 2)
        known = store.learned_measured(run.id, gamma, "test")
        assert measured.result.tolist() == [[known[task] for task in TASKS]]
        refined = jobs.wait(jobs.refine(run.id, "maximize worst"), 600)
        assert (refined.kind, refined.status, refined.error) == ("refine", "done", None)
        gammas, values = store.learned_table(run.id)
        assert len(gammas) == 4 + 12
        assert refined.result.values.min() == values.min(axis=1).max()
        exported = jobs.wait(jobs.export_learned(pick.id), 600)
        assert store.learned_pick(pick.id).exported == exported.result.path
    finally:
        jobs.close()


# Measured


def test_what_the_store_knows_is_not_measured_again(
    store: Store, run: Run, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
):
    gammas = np.array([[2.0, 1.0], [0.5, 0.5]])
    seen: list[tuple[int, int]] = []
    first = measure_learned(
        store, run.id, evaluator, gammas, split="test", progress=lambda *at: seen.append(at)
    )
    assert seen == [(done, 4) for done in range(5)]

    def refuse(*_: object) -> None:
        raise AssertionError("Something was measured twice")

    monkeypatch.setattr(evaluator, "outcomes_of", refuse)
    again = measure_learned(store, run.id, evaluator, gammas / 7, split="test")
    np.testing.assert_array_equal(again, first)
    grid, values = store.learned_table(run.id)
    np.testing.assert_array_equal(measure_learned(store, run.id, evaluator, grid), values)


def test_stopped_measuring_keeps_what_was_measured(store: Store, run: Run, evaluator: Evaluator):
    cancel = Event()
    gammas = np.array([[0.9, 0.1], [0.2, 0.8]])
    with pytest.raises(Cancelled):
        measure_learned(
            store, run.id, evaluator, gammas, split="test", cancel=cancel,
            progress=lambda done, _: cancel.set() if done == 3 else None,
        )  # fmt: skip
    _, values = store.learned_table(run.id, "test")
    assert int(np.isfinite(values).sum()) == 3
    assert np.isfinite(measure_learned(store, run.id, evaluator, gammas, split="test")).all()


def test_a_set_that_is_not_there_is_said_to_be_missing(
    store: Store, study: Study, run: Run, evaluator: Evaluator
):
    waiting = store.create_run(study.id, SETTINGS, "pareto_merging")
    with pytest.raises(StudyError, match="has learned no set yet: run it to its end first"):
        measure_learned(store, waiting.id, evaluator, np.array([[0.5, 0.5]]))
    with pytest.raises(SearchError, match="negative or not finite"):
        measure_learned(store, run.id, evaluator, np.array([[1.5, -0.5]]))
    store.learned_file(run.id).unlink()
    with pytest.raises(StudyError, match="is gone from"):
        load_learned(store, run.id, evaluator.exported_vectors)
    save_file({"x": torch.zeros(1)}, store.learned_file(run.id))
    with pytest.raises(CheckpointError, match="holds no learned Pareto set"):
        load_learned(store, run.id, evaluator.exported_vectors)


def test_completing_a_comparison_measures_its_models(
    store: Store, study: Study, run: Run, evaluators: EvaluatorCache, evaluator: Evaluator
):
    weights = {"Colours": 1.0, "Stripes": 2.0}
    before = compare(store, study.id, weights=weights)
    seen: list[tuple[int, int]] = []

    def get(member: Study) -> Evaluator:
        return evaluators.get(member, "cpu", "float32")

    for _ in range(2):  # the second time nothing is left to do
        complete(store, study.id, get, baselines=False, weights=weights, progress=lambda *at: seen.append(at))
    assert seen[-1] == (0, 0)
    assert max(seen)[0] == max(seen)[1] == before.missing
    comparison = compare(store, study.id, weights=weights)
    assert comparison.missing == 0
    row = comparison.row(f"run-{run.id}")
    learned = load_learned(store, run.id, evaluator.exported_vectors)
    for gamma, values in zip(row.front_c[[0, 7]], row.front[[0, 7]], strict=True):
        outcomes = dict(evaluator.outcomes_of(learned.merge(gamma), TASKS, "test"))
        np.testing.assert_array_equal(values, [outcomes[task].value for task in TASKS])
    assert np.isfinite(row.hypervolume)
    assert len(row.front) == 21


# Exported


def test_an_exported_model_scores_what_was_measured(
    store: Store, run: Run, evaluator: Evaluator, tiny_zoo: Path
):
    gamma = np.array([0.3, 0.7])
    pick = store.add_learned_pick(run.id, gamma, {"kind": "preference"}, name="Mostly stripes")
    measured = measure_learned(store, run.id, evaluator, gamma[None], split="test")[0]
    result = export_learned_pick(store, pick.id)
    assert result.path == store.folder / "exports" / "tiny" / f"mostly-stripes-learned-{pick.id}.safetensors"
    assert store.learned_pick(pick.id).exported == result.path
    weights = load_file(result.path)
    original = load_file(tiny_zoo / "pretrained.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in weights.items()} == {
        name: (t.shape, t.dtype) for name, t in original.items()
    }
    assert plain_accuracies(weights, tiny_zoo, "test") == pytest.approx(measured.tolist(), abs=1e-9)
    # The weights are those of the formula, written out.
    learned = load_file(store.learned_file(run.id))
    layers = evaluator.vectors.layers
    tuned = [load_file(tiny_zoo / f"{task}.safetensors") for task in TASKS]
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    expected = original[name].double()
    for k in range(2):
        vector = tuned[k][name].double() - original[name].double()
        expected = expected + learned["lambda"][layers.index(name), k].double() * vector
    blocks = [
        sum(
            gamma[k] * learned[f"A.{i}"].double() @ learned[f"G.{i}"][..., k].double()
            @ learned[f"B.{i}"].double().T
            for k in range(2)
        )
        for i in self_attention_blocks(store.learned_file(run.id), name)
    ]  # fmt: skip
    expected = expected + torch.cat(blocks)
    torch.testing.assert_close(weights[name].double(), expected, rtol=1e-3, atol=1e-5)

    recipe = read_recipe(result.path)
    assert (recipe.method, recipe.coefficients) == ("Pareto Merging", {})
    assert recipe.settings["preference"] == {"Colours": 0.3, "Stripes": 0.7}
    assert (recipe.settings["rank"], recipe.settings["steps"]) == (4, 10)
    assert (recipe.settings["seed"], recipe.settings["run"]) == (5, run.id)
    assert recipe.measured == dict(zip(TASKS, measured.tolist(), strict=True))
    predicted = learned_set(store, run.id).predict(gamma)[0]
    assert list(recipe.predicted.values()) == pytest.approx(predicted.tolist())
    assert recipe.tasks["Stripes"]["test_examples"] == 60
    card = result.card.read_text()
    assert "A merge of 2 fine-tuned models into one by Pareto Merging" in card
    assert "W(γ) = W_pre + Σ λ V + Σ γ A G Bᵀ" in card
    assert "| Stripes | 0.7000 |" in card
    assert "Predicted by interpolation between preferences measured on validation splits" in card
    assert "surrogates" not in card
    assert "No training was involved" not in card


def self_attention_blocks(file: Path, tensor: str) -> list[int]:
    """Which blocks are the q, k and v of a tensor."""
    with safe_open(file, framework="pt") as opened:
        blocks = json.loads(opened.metadata()["mapmerge-pareto-set"])["blocks"]
    found = [i for i, block in enumerate(blocks) if block["tensor"] == tensor]
    assert [blocks[i]["row"] for i in found] == [0, 32, 64]
    return found


def test_an_export_before_measuring_and_to_a_place(store: Store, run: Run, tmp_path: Path, tiny_zoo: Path):
    pick = store.add_learned_pick(run.id, np.array([1.0, 0.0]), {"kind": "point"})
    result = export_learned_pick(store, pick.id, tmp_path / "out")
    assert result.path == tmp_path / "out" / f"merged-learned-{pick.id}.safetensors"
    assert read_recipe(result.path).measured == {}
    with pytest.raises(ExportError, match="was not exported by mapmerge"):
        export_learned_pick(store, pick.id, tiny_zoo / "Light.safetensors")
    with pytest.raises(StudyError, match="no pick 99"):
        export_learned_pick(store, 99)


def test_a_set_can_be_taken_along(store: Store, run: Run, evaluator: Evaluator, tmp_path: Path):
    target = export_learned_set(store, run.id, tmp_path / "new" / "mine.safetensors")
    assert target.read_bytes() == store.learned_file(run.id).read_bytes()
    assert export_learned_set(store, run.id, target) == target
    to_folder = export_learned_set(store, run.id, tmp_path / "new")
    assert to_folder.name == store.learned_file(run.id).name
    assert {path.name for path in (tmp_path / "new").iterdir()} == {target.name, to_folder.name}
    ours, theirs = (
        learned.merge([0.2, 0.8])
        for learned in (
            ParetoSet.read(target, evaluator.exported_vectors),
            load_learned(store, run.id, evaluator.exported_vectors),
        )
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    model = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, model)
    before = model.read_bytes()
    with pytest.raises(ExportError, match="is no learned set, and stays"):
        export_learned_set(store, run.id, model)
    assert model.read_bytes() == before
    with pytest.raises(ExportError, match="can't be written"):
        export_learned_set(store, run.id, model / "inside")
    waiting = store.create_run(run.study_id, SETTINGS, "pareto_merging")
    with pytest.raises(StudyError, match="has learned no set yet"):
        export_learned_set(store, waiting.id, tmp_path / "x.safetensors")


def test_a_deleted_study_leaves_no_set_behind(store: Store, study: Study, run: Run):
    unfinished = store.create_run(study.id, SETTINGS, "pareto_merging")
    store.training_file(unfinished.id).write_bytes(b"half")
    store.studies.delete(study.id)
    assert list(store.learned_file(run.id).parent.iterdir()) == []


# Estimated, and refused


def test_the_estimate_times_steps_too(store: Store, study: Study, evaluator: Evaluator):
    result = estimate(store, study, evaluator, training=TRAINING)
    assert 0 < result.seconds_per_step < 30
    assert result.seconds_for(3, 100) == 3 * result.seconds_per_point + 100 * result.seconds_per_step
    assert estimate(store, study, evaluator).seconds_per_step == 0
    jobs = Jobs(store)
    try:
        timed = jobs.wait(jobs.estimate(study.id, "cpu", "float32", training=TRAINING), 600)
        assert timed.result.seconds_per_step > 0
    finally:
        jobs.close()


def with_checkpoint(config: StudyConfig, checkpoint: Path) -> StudySpec:
    return replace(spec, tasks=(replace(spec.tasks[0], checkpoint=checkpoint), *spec.tasks[1:]))


def test_what_cannot_be_learned_is_refused_before_it_is_kept(config: StudyConfig, tmp_path: Path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1, 1)}, adapter / "adapter_model.safetensors")
    language = StudySpec(
        family="language",
        pretrained=tmp_path / "model",
        tasks=tuple(replace(task, metric=None) for task in spec.tasks),
    )
    dataless = replace(spec)
    object.__setattr__(dataless, "tasks", (spec.tasks[0], replace(spec.tasks[1], data=None)))
    free = replace(SETTINGS, training=replace(TRAINING, data_free=True))
    SETTINGS.check("pareto_merging", spec)
    free.check("pareto_merging", dataless)
    free.check("pareto_merging", language)
    for settings, wrong, error, sentence in [
        (SETTINGS, with_checkpoint(spec, adapter), StudyError, "needs whole models, and adapters stay"),
        (free, with_checkpoint(spec, adapter), StudyError, "needs whole models, and adapters stay"),
        (SETTINGS, language, StudyError, "learns from the logits of image classifiers: train data-free"),
        (SETTINGS, dataless, StudyError, "needs unlabelled images of 'Stripes': add its dataset"),
        (replace(SETTINGS, points=0), spec, SearchError, "Measure one preference or more"),
        (replace(SETTINGS, points=100_001), spec, SearchError, "too many for one run"),
        (replace(SETTINGS, seed=-1), spec, SearchError, "seed -1 can't be used"),
    ]:
        with pytest.raises(error, match=sentence) as raised:
            settings.check("pareto_merging", wrong)
        assert str(raised.value).count(". ") == 0


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (replace(TRAINING, rank=33), r"The rank must be from 1 to 32 for these models, not 33\."),
        (
            replace(TRAINING, personalised=("visual.*.nothing",)),
            r"'visual\.\*\.nothing' names no weight matrix",
        ),
    ],
)
def test_what_does_not_suit_the_models_fails_before_training(
    store: Store, study: Study, evaluators: EvaluatorCache, training: Training, sentence: str
):
    run = store.create_run(study.id, replace(SETTINGS, training=training), "pareto_merging")
    with pytest.raises(MapMergeError, match=sentence):
        execute_run(store, run.id, evaluators.get)
    failed = store.runs.get(run.id)
    assert (failed.status, failed.n_evaluations) == ("failed", 0)
    assert "\n" not in failed.error
    assert store.training_points(run.id) == []


def test_models_without_attention_fail_before_training(
    store: Store, study: Study, evaluators: EvaluatorCache, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mapmerge_core.merges._pareto_set._ATTENTION", ("none are called so",))
    run = store.create_run(study.id, SETTINGS, "pareto_merging")
    with pytest.raises(CheckpointError, match="no attention projections to personalise: name the weight"):
        execute_run(store, run.id, evaluators.get)
    assert store.runs.get(run.id).status == "failed"
    assert store.training_points(run.id) == []
