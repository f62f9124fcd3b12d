"""The command ``run``: any merge and method on a folder, on the demo and on a study that there is."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.studies.config import QUICK_IMAGES, Compute, RunConfig
from mapmerge_core.studies.config.demo import DEMO_ZOO, demo_merge_settings
from tests.cli.conftest import LEARN, Command, Made
from tests.studies.conftest import tiny_config

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Run, Store

TWO = ("--tasks", "Colours,Stripes")


def runs_of(store: Store, study: int = 1) -> list[Run]:
    return sorted(store.runs.all(study), key=lambda run: run.id)


def test_every_method_runs_and_nested_map_evaluates_no_more_than_its_points(
    tiny_zoo: Path, command: Command, store: Store
):
    words = ("run", tiny_zoo, "--method", "nested", "--points", 8, "--order", "Light,Colours,Stripes")
    nested = command.json(*words, "--weights", "Light=2,Colours=1,Stripes=1")
    # A pair of two tasks, then all three: 8 points each.
    assert (nested["run"]["method"], nested["evaluations"]) == ("nested", 8 * 2 + 8 * 3)
    assert store.studies.get(1).n_evaluations == 40
    assert list(nested["choice"]) == ["x", "predicted", "feasible", "message"]
    assert len(nested["choice"]["x"]) == 3
    bayesian = command.json("run", "--study", 1, "--method", "bayesian", "--points", 12, "--initial", 10, "--batch", 1)
    assert bayesian["run"]["points"] == 12
    assert 0 < bayesian["evaluations"] <= 36  # what nested MAP measured is not measured again
    huber = command.json("run", "--study", 1, "--points", 12, "--loss", "huber", "--link", "sigmoid")
    assert huber["run"]["method"] == "map"
    first, second, third = (run.config for run in runs_of(store))
    assert [run.method for run in (first, second, third)] == ["nested", "bayesian", "map"]
    assert first.method_settings["weights"] == {"Light": 2.0, "Colours": 1.0, "Stripes": 1.0}
    assert list(first.method_settings["order"]) == ["Light", "Colours", "Stripes"]
    assert (third.loss, third.link) == ("huber", "sigmoid")


def test_a_quick_run_is_refined_by_a_later_one(tiny_zoo: Path, command: Command, store: Store):
    coarse = command.json("run", tiny_zoo, *TWO, "--points", 8, "--images", 20)
    assert coarse["run"] == {
        "id": 1,
        "merge": "task_arithmetic",
        "method": "map",
        "status": "done",
        "points": 8,
        "images": 20,
    }
    assert coarse["evaluations"] == 16
    assert {row.n_examples for row in store.evaluations.rows(1) if not row.is_whole} == {20}
    quick = command.json("run", "--study", 1, "--points", 8, "--quick")
    # A split of 60 images has fewer than a quick look takes, so that this is all of it.
    assert (quick["run"]["images"], quick["evaluations"]) == (QUICK_IMAGES, 10)
    assert all(row.is_whole for row in store.evaluations.rows(1))
    whole = command.json("run", "--study", 1, "--points", 8)
    assert (whole["run"]["images"], whole["evaluations"]) == (None, 0)


def test_nested_map_under_a_rule_that_nothing_meets_exits_3(tiny_zoo: Path, command: Command):
    words = ("run", tiny_zoo, *TWO, "--method", "nested", "--points", 8)
    result = command.json(*words, "--rule", "all >= 99.9%, maximize mean", code=3)
    assert not result["choice"]["feasible"]
    assert "99.9%" in result["choice"]["message"]
    text, _ = command("run", "--study", 1, "--method", "nested", "--points", 8, "--rule", "maximize Colours")
    assert "Colours 0." in text or "Colours 1." in text


def test_merges_of_any_space_share_a_study(tiny_zoo: Path, command: Command, store: Store):
    command("run", tiny_zoo, *TWO, "--name", "Mine", "--points", 8)
    for _ in range(2):
        result = command.json("run", "--study", "Mine", "--merge", "dare", "--drop", 0.25, "--points", 8)
        assert (result["study"], result["run"]["merge"]) == ({"id": 1, "name": "Mine"}, "dare")
    for merge in ("regmean", "soup", "ties"):
        result = command.json("run", "--study", "Mine", "--merge", merge, "--points", 6)
        assert result["front"]["size"] > 0
    text, _ = command("run", "--study", "Mine", "--merge", "slerp", "--method", "direct", "--points", 5)
    assert "SLERP" in text
    assert {merge.name for merge in store.merges.all(1)} >= {"task_arithmetic", "dare", "regmean", "soup", "ties"}
    merges = command.json("front", "Mine")["merges"]
    assert len(merges) >= 5


def test_a_learned_set(learned: Made):
    printed, store = learned.printed, learned.command.store
    assert printed["study"] == {"id": 1, "name": "Demo: Colours + Stripes"}
    assert printed["run"]["merge"] == "pareto_merging"
    assert set(printed["r2"]) == {"Colours", "Stripes"}
    [run] = runs_of(store)
    suited = demo_merge_settings("pareto_merging", 2) | {"steps": 30, "rank": 4, "lr": 0.03, "beta_norm": 0.0}
    assert run.config.merge_settings.items() >= suited.items()
    merge = store.merges.get(run.merge_id)
    assert np.sum(store.evaluations.table(merge.id).X, axis=1) == pytest.approx(np.ones(run.config.points))
    # The same command shows the same set again.
    text, err = learned.command(*learned.words)
    assert "'Demo: Colours + Stripes' has done this run already" in err
    assert "The front has" in text or "One model is best" in text
    # Another device makes no other run, other settings do.
    other = ("--merge", "pareto_merging", "--steps", 3, "--rank", 2, "--data-free", "--seed", 3, "--points", 4)
    again = learned.command.json("run", "--study", 1, *other, "--personalised", "*.attn.out_proj.weight")
    assert again["run"]["id"] == 2
    assert runs_of(store)[1].config.merge_settings["data_free"]


def test_the_demos_way_of_learning_is_the_demos_alone(
    tiny_zoo: Path, command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mapmerge_core.cli.session.execute_run", stopped)
    words = ("--merge", "pareto_merging", "--points", 4)
    _, err = command("run", tiny_zoo, *TWO, *words, code=130)
    assert "`run --study 1` goes on" in err
    command("run", "--demo", "--tasks", 2, "--zoo", DEMO_ZOO, *words, code=130)
    assert [dict(runs_of(store, study)[0].config.merge_settings) for study in (1, 2)] == [
        dict(RunConfig(merge="pareto_merging", merge_settings=values).merge_settings)
        for values in ({}, demo_merge_settings("pareto_merging", 2))
    ]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--personalised", "attention.*"], "'attention.*' names no weight matrix that is merged"),
        (["--rank", "33"], "The rank must be from 1 to 32 for these models, not 33"),
    ],
)
def test_what_the_models_lack_is_one_sentence(tiny_zoo: Path, command: Command, option: list[str], sentence: str):
    _, err = command("run", tiny_zoo, *TWO, *LEARN, "--points", 4, *option, code=2)
    assert sentence in err
    [run] = runs_of(command.store)
    assert run.status == "failed"


def test_ctrl_c_while_learning_exits_130_and_the_run_goes_on(
    tiny_zoo: Path, command: Command, store: Store, request: pytest.FixtureRequest
):
    words = ("run", "--demo", "--zoo", tiny_zoo, "--merge", "pareto_merging", "--data-free", "--rank", 2)
    words += ("--steps", 200, "--points", 4)
    process = command.start_until(
        lambda store: store.studies.all() and any(store.training.all(m.id) for m in store.merges.all(1)), *words
    )
    request.addfinalizer(process.kill)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "everything measured is kept" in err
    assert "Traceback" not in err
    [run] = runs_of(store)
    assert run.status == "stopped"
    before = store.training.all(run.merge_id)
    assert 0 < before[-1].step < 200
    assert command.json(*words)["run"]["id"] == run.id
    after = store.training.all(run.merge_id)
    assert after[-1].step == 200
    assert [point.seconds for point in after[: len(before)]] == [point.seconds for point in before]


def test_ctrl_c_exits_130_and_the_run_resumes(
    tiny_zoo: Path, command: Command, store: Store, request: pytest.FixtureRequest
):
    process = command.start_until(
        lambda store: store.studies.all() and store.studies.all()[0].n_evaluations >= 5,
        *("run", tiny_zoo, *TWO, "--points", 100),
    )
    request.addfinalizer(process.kill)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "everything measured is kept, and `run --study 1` goes on" in err
    assert "Traceback" not in err
    kept = [row.id for row in store.evaluations.rows(1)]
    assert [run.status for run in runs_of(store)] == ["stopped"]
    result = command.json("run", "--study", 1)
    assert (result["run"]["status"], result["evaluations"]) == ("done", 200)
    assert [row.id for row in store.evaluations.rows(1)][: len(kept)] == kept


def test_a_run_goes_on_on_another_device(tiny_zoo: Path, command: Command, store: Store):
    study = store.studies.create("Moved", tiny_config(tiny_zoo))
    config = RunConfig(method_settings={"points": 5, "seed": 7}, compute=Compute(device="cuda:99"))
    run = store.runs.create(study.id, config)
    _, err = command("run", "--study", "Moved", code=2)
    assert "There is no device 'cuda:99'" in err
    result = command.json("run", "--study", "Moved", "--device", "cpu")
    assert (result["run"]["id"], result["run"]["status"]) == (run.id, "done")
    assert store.runs.get(run.id).config.compute == Compute(device="cpu")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["--seed", str(2**31)], "seed"),
        (["--points", "100001"], "100001"),
        (["--merge", "salad"], "'salad'"),
        (["--method", "salad"], "'salad'"),
        (["--merge", "adamerging"], "mapmerge compare STUDY --merges adamerging"),
        ([], "is damaged or not a safetensors file"),
    ],
)
def test_no_study_is_kept_of_bad_input(
    command: Command, tiny_zoo: Path, tmp_path: Path, options: list[str], sentence: str
):
    zoo = shutil.copytree(tiny_zoo, tmp_path / "zoo")
    if not options:
        (zoo / "Stripes.safetensors").write_bytes(b"no model")
    out, err = command("run", zoo, *TWO, *options, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err
    assert command.store.studies.all() == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Name either a folder"),
        (["--demo", "--study", "1"], "Name either a folder"),
        (["--demo", "--tasks", "1"], "merges 2 to 8 tasks, not 1"),
        (["--study", "None"], "There is no study 'None'"),
        (["--study", "1"], "no run to resume: give --points"),
        (["--study", "1", "--name", "Mine"], "--tasks and --name are for a new study"),
        (["--study", "1", "--tasks", "Colours"], "--tasks and --name are for a new study"),
        (["--study", "1", "--zoo", "x"], "--zoo goes with --demo"),
        (["--study", "1", "--seed", "2"], "leave all but --device out, or give --points"),
        (["--study", "1", "--no-anchors"], "leave all but --device out, or give --points"),
        (["--study", "1", "--quick"], "leave all but --device out, or give --points"),
        (["--study", "1", "--points", "9", "--seed", "-1"], "seed = -1"),
        (["--study", "1", "--points", "100001"], "100001"),
        (["--study", "1", "--points", "9", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["--study", "1", "--points", "2"], "2 points are too few"),
        (["--study", "1", "--points", "9", "--rule", "maximize mean"], "MAP have no use for --rule"),
        (["--study", "1", "--points", "9", "--batch", "3"], "choose --method bayesian"),
        (["--study", "1", "--method", "nested", "--no-anchors"], "Nested MAP have no use for --anchors"),
        (["--study", "1", "--method", "nested", "--points", "5"], "6 points"),
        (["--study", "1", "--method", "nested", "--weights", "Stripes=0"], "zero"),
        (["--study", "1", "--method", "nested", "--rule", "Colors > 5"], '"Colors"'),
        (["--study", "1", "--method", "nested", "--order", "Colours"], "leaves out Stripes"),
        (["--study", "1", "--method", "bayesian", "--points", "5"], "too few"),
        (["--study", "1", "--points", "5", "--link", "identity"], "6 points or more"),
        (["--study", "1", "--points", "5", "--link", "salad"], "'salad'"),
        (["--study", "1", "--points", "9", "--keep", "0.5"], "have no use for --keep"),
        (["--study", "1", "--merge", "dare", "--keep", "0.5"], "have no use for --keep"),
        (["--study", "1", "--merge", "dare", "--drop", "1"], "drop = 1"),
        (["--study", "1", "--points", "9", "--images", "5"], "10"),
        (["--study", "1", "--points", "9", "--images", "20", "--quick"], "--quick is --images 500"),
        (["--study", "1", "--points", "many"], "Invalid value for '--points': give a whole number."),
        (["--study", "1", "--points", "9", "--low", "2"], "low"),
        (["--study", "1", "--merge", "soup", "--low", "0.1"], "simplex"),
        (["--study", "1", "--merge", "dare", "--points", "9", "--vectors", "bfloat16"], "float32"),
        (["--study", "1", "--merge", "pareto_merging", "--steps", "0"], "steps = 0"),
        (["--study", "1", "--merge", "pareto_merging", "--balance", "-1"], "balance = -1"),
        (["--study", "1", "--merge", "pareto_merging", "--mu", "0"], "mu = 0"),
        (["--study", "1", "--merge", "pareto_merging", "--personalised", ","], "ersonalise"),
        (["--study", "1", "--merge", "pareto_merging", "--points", "0"], "0"),
    ],
)
def test_bad_input_is_one_sentence(demo: Made, words: list[str], sentence: str):
    store = demo.command.store
    out, err = demo.command("run", *words, code=2)
    assert (out, err.count("\n")) == ("", 1 + ("^" in err) * (err.count("\n") - 1))
    assert sentence in err
    assert (len(store.studies.all()), len(store.runs.all(1))) == (1, 1)
