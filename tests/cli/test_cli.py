"""The command line in its own process: what it prints, where, and how it exits."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mapmerge_core.__main__ import main
from mapmerge_core.studies.inputs.checking import check_spec
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.config.run import QUICK_IMAGES, RunSettings
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.studies.store.store import Store

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class CommandLine:
    """Commands on a data folder of their own."""

    home: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mapmerge_core", *arguments],
            cwd=ROOT, env={**os.environ, "MAPMERGE_HOME": str(self.home)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Runs a command in this process, which needn't import everything again."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setenv("MAPMERGE_HOME", str(self.home))
            try:
                ended = main(arguments)
            except SystemExit as stop:  # argparse ends so
                ended = stop.code
        assert ended == code, err.getvalue()
        return out.getvalue(), err.getvalue()

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        out, _ = self(*arguments, "--json", code=code)
        assert out.count("\n") == 1
        return json.loads(out)


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("cli-home"))


@pytest.fixture(scope="module")
def demo(command_line: CommandLine, tiny_zoo: Path) -> dict[str, Any]:
    """The result of one demo on the tiny zoo; it leaves study 1 with one pick."""
    arguments = ["--tasks", "2", "--points", "14", "--seed", "1", "--zoo", str(tiny_zoo), "--json"]
    process = command_line.start("demo", *arguments, "--out", str(command_line.home / "out"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def test_the_demo_prints_the_documented_object(demo: dict[str, Any], command_line: CommandLine):
    assert list(demo) == ["tasks", "evaluations", "r2", "front", "pick", "export", "seconds"]
    assert demo["tasks"] == ["Colours", "Stripes"]
    assert demo["evaluations"] == 28
    assert set(demo["r2"]) == {"Colours", "Stripes"}
    front = demo["front"]
    assert set(front) == {"size", "c", "predicted"}
    assert np.shape(front["c"]) == np.shape(front["predicted"]) == (front["size"], 2)
    assert demo["pick"]["c"] in front["c"]
    for kind in ("predicted", "measured"):
        assert all(0 <= demo["pick"][kind][task] <= 1 for task in demo["tasks"])
    assert list(demo["seconds"]) == ["evaluate", "fit", "front", "total"]
    assert demo["seconds"]["total"] >= demo["seconds"]["evaluate"] > 0
    assert Path(demo["export"]).parent == command_line.home / "out"


def test_the_exported_demo_scores_what_was_measured(demo: dict[str, Any], tiny_zoo: Path):
    """Loaded by plain open_clip, with its own transform and heads."""
    import open_clip
    import torch
    from safetensors.torch import load_file

    from tests.tiny import plain_head, plain_transform

    model = open_clip.CLIP(**json.loads((tiny_zoo / "tiny-clip.json").read_text()))
    model.load_state_dict(load_file(demo["export"]))
    model.eval()
    for task, measured in demo["pick"]["measured"].items():
        with np.load(tiny_zoo / f"{task}.npz") as data, torch.inference_mode():
            head = plain_head(model, data["class_names"].tolist(), data["templates"].tolist())
            features = model.encode_image(plain_transform(data["test_images"], model), normalize=True)
            guesses = (features @ head).argmax(dim=1).numpy()
            assert float((guesses == data["test_labels"]).mean()) == measured


@pytest.mark.usefixtures("demo")
def test_the_dashboards_store_has_what_the_demo_did(command_line: CommandLine):
    [study] = command_line.json("studies")["studies"]
    assert (study["id"], study["name"]) == (1, "Demo: Colours + Stripes")
    assert (study["points"], study["evaluations"], study["picks"], study["status"]) == (14, 30, 1, "done")
    store = Store(command_line.home)
    assert store.picks(1)[0].how == {"kind": "preference", "weights": {"Colours": 1.0, "Stripes": 1.0}}


def test_front(demo: dict[str, Any], command_line: CommandLine):
    front = command_line.json("front", "1", "--seed", "1")["front"]
    assert front["c"] == demo["front"]["c"]
    assert np.shape(front["lower"]) == np.shape(front["upper"]) == (front["size"], 2)
    text, _ = command_line("front", "Demo: Colours + Stripes")
    assert "single-task" in text
    assert "%" in text


@pytest.mark.usefixtures("demo")
def test_pick_by_rule_measure_and_export(command_line: CommandLine, tmp_path: Path):
    result = command_line.json("pick", "1", "--rule", "Colours >= 50%, maximize Stripes", "--measure")
    assert result["feasible"]
    assert result["pick"]["predicted"]["Colours"] >= 0.5 - 1e-6
    assert set(result["pick"]["measured"]) == {"Colours", "Stripes"}
    exported = command_line.json("export", "1", "--out", str(tmp_path / "mine.safetensors"))
    assert exported["pick"] == result["pick"]["id"]
    assert Path(exported["export"]) == tmp_path / "mine.safetensors"
    assert Path(exported["export"]).stat().st_size == exported["bytes"]
    assert all(Path(exported[kind]).exists() for kind in ("export", "card", "mergekit"))


@pytest.mark.usefixtures("demo")
def test_pick_by_preference(command_line: CommandLine):
    text, _ = command_line("pick", "1", "--preference", "Stripes=2,Colours=1", "--name", "Striped")
    assert "90% interval" in text
    assert Store(command_line.home).picks(1)[-1].name == "Striped"


@pytest.mark.usefixtures("demo")
def test_an_infeasible_rule_exits_3_and_names_the_nearest(command_line: CommandLine):
    before = len(Store(command_line.home).picks(1))
    result = command_line.json("pick", "1", "--rule", "all >= 99.9%, maximize worst", code=3)
    assert not result["feasible"]
    assert {miss["task"] for miss in result["misses"]} <= {"Colours", "Stripes"}
    assert "nearest misses" in result["message"]
    assert len(Store(command_line.home).picks(1)) == before


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["front", "Nothing"], "There is no study 'Nothing'"),
        (["pick", "1", "--rule", "Colors >= 5%, maximize worst"], 'There is no task "Colors"'),
        (["pick", "1", "--preference", "Colours"], "'Colours' is no weight"),
        (["pick", "1", "--preference", "Flags=1"], "There is no task 'Flags'"),
        (["pick", "1", "--preference", "Colours=0"], "Every weight is zero"),
        (["export", "1", "--pick", "99"], "has no pick 99"),
        (["export", "1", "--pick", str(2**70)], "has no pick"),
        (["export", "1", "--out", "~nobody-has-this-name/x"], "home directory"),
        (["front", str(2**70)], "There is no study"),
        (["front", "1", "--seed", "-1"], "The seed -1 can't be used"),
        (["run", "--study", "1", "--points", "9", "--seed", "-1"], "The seed -1 can't be used"),
        (["run", "--study", "1", "--points", "100001"], "100001 points are too many"),
        (["run", "--study", "1", "--points", "9", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["run", "--study", "1", "--seed", "2"], "leave all but --device out, or give --points"),
        (["run", "--study", "1", "--no-anchors"], "leave all but --device out, or give --points"),
        (["run", "--study", "1", "--name", "Mine"], "--tasks and --name are for a new study"),
        (["run"], "Name either a folder"),
        (["run", "--study", "1"], "no run to resume: give --points"),
        (["run", "--study", "1", "--points", "2"], "2 points are too few"),
        (["run", "."], "doesn't say all that a study needs"),
        (["demo", "--points", "2"], "2 points are too few"),
        (
            ["demo", "--points", "5"],
            "too few to see the trade-offs of 2 tasks: choose 6 or",
        ),
        (["demo", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["demo", "--seed", "-1"], "The seed -1 can't be used"),
        (["demo", "--tasks", "9"], "merges 2 to 8 tasks, not 9"),
        (["run", "--study", "1", "--points", "9", "--rule", "maximize mean"], "MAP has no use for --rule"),
        (["run", "--study", "1", "--points", "9", "--batch", "3"], "choose --method bayesian"),
        (
            ["run", "--study", "1", "--method", "nested", "--no-anchors"],
            "Nested MAP has no use for --no-anchors",
        ),
        (["run", "--study", "1", "--method", "nested", "--points", "5"], "needs at least 6 points"),
        (["run", "--study", "1", "--method", "nested", "--preference", "Stripes=0"], "Every weight is zero"),
        (["run", "--study", "1", "--method", "nested", "--rule", "Colors > 5"], 'There is no task "Colors"'),
        (["run", "--study", "1", "--method", "nested", "--order", "Colours"], "leaves out Stripes"),
        (["run", "--study", "1", "--method", "bayesian", "--points", "5"], "too few for Bayesian MAP"),
        (
            ["run", "--study", "1", "--points", "5", "--link", "identity"],
            "the identity link needs 6 points or more, not 5",
        ),
        (["run", "--study", "1", "--keep", "0.5"], "--keep goes with --transform ties_trim or ties"),
        (["run", "--study", "1", "--transform", "dare", "--keep", "0.5"], "--keep goes with"),
        (["run", "--study", "1", "--transform", "dare", "--drop", "1"], "from 0 to below 1"),
        (["run", "--study", "1", "--points", "9", "--images", "5"], "a whole number from 10 on, not 5"),
        (["run", "--study", "1", "--points", "9", "--images", "20", "--quick"], "not allowed with argument"),
        (["run", "--study", "1", "--quick"], "leave all but --device out, or give --points"),
        (
            ["run", "--study", "1", "--method", "pareto_merging", "--images", "20"],
            "Pareto Merging has no use for --images",
        ),
        (
            ["run", "--study", "1", "--points", "9", "--transform", "dare", "--vectors", "bfloat16"],
            "DARE 50 % changes the task vectors, which takes float32: hold them in float32",
        ),
        (["front", "1", "--run", "99"], "has no run 99"),
        (["export", "1", "--row", "Salad"], "The comparison has no row 'Salad'"),
        (["export", "1", "--row", "TIES"], "has no TIES yet: make it with `compare 1 --baselines ties`"),
        (["compare"], "Name either a study"),
        (["compare", "1", "--demo"], "Name either a study"),
        (["compare", "1", "--points", "30"], "--points is for --demo"),
        (["compare", "1", "--direct-points", "30"], "--direct-points is for --demo"),
        (["compare", "Nothing"], "There is no study 'Nothing'"),
        (["compare", "1", "--preference", "Flags=1"], "There is no task 'Flags'"),
        (["compare", "1", "--preference", "Colours=0"], "Every weight is zero"),
        (["compare", "1", "--baselines", "salad"], "The baseline 'salad' is unknown"),
        (["compare", "1", "--seed", "-1"], "The seed -1 can't be used"),
        (["compare", "1", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["compare", "--demo", "--tasks", "1"], "merges 2 to 8 tasks, not 1"),
        (["compare", "--demo", "--tasks", "3", "--baselines", "slerp"], "SLERP merges two models, not 3"),
        (["compare", "--demo", "--preference", "MNIST=-1"], "negative or not finite"),
        (["compare", "--demo", "--points", "5"], "too few to see the trade-offs of 2 tasks"),
        (["compare", "--demo", "--direct-points", "2"], "2 points are too few"),
        (["compare", "--demo", "--seed", "-1"], "The seed -1 can't be used"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(command_line: CommandLine, arguments: list[str], sentence: str):
    studies = len(Store(command_line.home).studies())
    out, err = command_line(*arguments, code=2)
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err
    assert len(Store(command_line.home).studies()) == studies


@dataclass(frozen=True)
class Compared:
    """What comparing the tiny zoo's demo printed, twice."""

    command_line: CommandLine
    arguments: list[str]
    first: dict[str, Any]
    again: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Compared:
    command_line = CommandLine(tmp_path_factory.mktemp("compare-home"))
    arguments = ["compare", "--demo", "--zoo", str(tiny_zoo), "--points", "12", "--direct-points", "25"]
    arguments += ["--baselines", "soup,ties,slerp"]
    first = command_line.json(*arguments)
    store = Store(command_line.home)
    counted = store.study(1).n_evaluations
    again = command_line.json(*arguments)
    assert (len(store.studies()), store.study(1).n_evaluations) == (1, counted)
    return Compared(command_line, arguments, first, again)


def test_compare_prints_the_documented_object(compared: Compared):
    first = compared.first
    assert list(first) == ["tasks", "rows", "preferences"]
    assert first["tasks"] == ["Colours", "Stripes"]
    rows = {row["name"]: row for row in first["rows"]}
    assert len(rows) == len(first["rows"])
    for row in first["rows"]:
        assert list(row) == ["name", "kind", "c", "metrics", "evaluations", "seconds"]
        assert all(0 <= row["metrics"][task] <= 1 for task in first["tasks"])
    kinds = {kind: [row["name"] for row in first["rows"] if row["kind"] == kind] for kind in
             ("run", "baseline", "reference")}  # fmt: skip
    assert kinds["run"] == ["MAP", "Bayesian MAP", "Nested MAP", "Direct search"]
    assert kinds["baseline"] == ["Task arithmetic by preference", "Model soup", "TIES", "SLERP"]
    assert kinds["reference"] == ["Colours's own model", "Stripes's own model", "Pre-trained"]
    # MAP's points times tasks; the paper's 12 for Bayesian MAP and 20 a pair for nested MAP, two tasks each.
    assert [rows[name]["evaluations"] for name in kinds["run"]] == [24, 24, 40, 50]
    assert rows["TIES"]["c"] is None
    assert rows["Model soup"]["c"] == [0.5, 0.5]
    assert rows["Pre-trained"]["c"] == [0.0, 0.0]
    wins = first["preferences"]["wins"]
    assert set(wins) == set(rows) - {"MAP"}
    assert all(0 <= 20 * rate <= 20 for rate in wins.values())
    assert wins["Pre-trained"] > 0.5


def test_comparing_again_measures_nothing_and_says_the_same(compared: Compared):
    assert compared.again == compared.first


def test_compare_as_a_table_and_a_file(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = ["compare", "1", "--no-baselines", "--normalise", "--preference", "Colours=1"]
    text, _ = compared.command_line(*arguments, "--csv", str(tmp_path / "table.csv"))
    assert "the preference is Colours 100%" in text
    assert "Task arithmetic, searched scalar (scalar); " in text.partition("Not made yet")[2]
    for name in ("Nested MAP", "SLERP", "Pre-trained"):
        assert name in text
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0].startswith("model,kind,Colours,Stripes,mean,worst,hypervolume,preference,MAP wins")
    assert len(lines) == 1 + len(compared.first["rows"])
    own = next(line for line in lines if line.startswith("Colours's own model"))
    assert float(own.split(",")[2]) == 1.0
    for nowhere in (tmp_path / "nowhere" / "table.csv", tmp_path):
        with monkeypatch.context() as patched:  # refused before anything is made
            patched.setattr("mapmerge_core.cli.compare._prepare", None)
            _, err = compared.command_line(*arguments, "--csv", str(nowhere), code=2)
        assert f"{nowhere} can't be written" in err


def test_every_compared_model_can_be_exported(compared: Compared, tmp_path: Path):
    for name in ("TIES", "Nested MAP", "Pre-trained"):
        out = str(tmp_path / f"{name}.safetensors")
        exported = compared.command_line.json("export", "1", "--row", name, "--out", out)
        assert exported["row"] == name
        assert Path(exported["export"]).stat().st_size == exported["bytes"]
    pick = Store(compared.command_line.home).picks(1)[-1]
    assert (pick.name, pick.how) == ("Pre-trained", {"kind": "compared", "name": "Pre-trained"})


def test_the_front_of_one_run(compared: Compared):
    runs = {run.method: run for run in Store(compared.command_line.home).runs(1)}
    direct = compared.command_line.json("front", "1", "--run", str(runs["direct"].id))
    assert list(direct) == ["tasks", "run", "front"]
    assert direct["run"] == {"id": runs["direct"].id, "method": "direct"}
    values = np.array(direct["front"]["measured"])
    assert len(values) == direct["front"]["size"]
    for row in values:  # nothing beats a row of a front everywhere
        assert not ((values >= row).all(axis=1) & (values > row).any(axis=1)).any()
    text, _ = compared.command_line("front", "1", "--run", str(runs["nested"].id))
    assert "offers 1 models" in text
    assert "predicted" in text


def test_every_method_runs_and_nested_map_evaluates_no_more_than_its_points(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    arguments = [
        "run",
        str(tiny_zoo),
        "--method",
        "nested",
        "--points",
        "8",
        "--order",
        "Light,Colours,Stripes",
    ]
    nested = command_line.json(*arguments, "--preference", "Light=2,Colours=1,Stripes=1")
    # A pair of two tasks, then all three: 8 points each.
    assert (nested["run"]["method"], nested["evaluations"]) == ("nested", 8 * 2 + 8 * 3)
    assert Store(tmp_path).study(1).n_evaluations == 40
    assert list(nested["nested"]) == ["c", "predicted", "feasible", "message"]
    assert len(nested["nested"]["c"]) == 3
    bayesian = command_line.json(
        "run", "--study", "1", "--method", "bayesian", "--points", "12", "--initial", "10", "--batch", "1"
    )
    assert bayesian["run"]["points"] == 12
    assert 0 < bayesian["evaluations"] <= 36  # what nested MAP measured is not measured again
    huber = command_line.json("run", "--study", "1", "--points", "12", "--loss", "huber", "--link", "sigmoid")
    assert huber["run"]["method"] == "map"
    store = Store(tmp_path)
    assert [run.method for run in store.runs(1)] == ["nested", "bayesian", "map"]
    assert (store.runs(1)[0].settings.weights, store.runs(1)[0].settings.order) == (
        {"Light": 2.0, "Colours": 1.0, "Stripes": 1.0}, ["Light", "Colours", "Stripes"],
    )  # fmt: skip
    assert (store.runs(1)[2].settings.loss, store.runs(1)[2].settings.link) == ("huber", "sigmoid")


def test_a_quick_run_is_refined_by_a_later_one(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    folder = ["run", str(tiny_zoo), "--tasks", "Colours,Stripes", "--points", "8"]
    coarse = command_line.json(*folder, "--images", "20")
    assert coarse["run"] == {
        "id": 1, "method": "map", "status": "done", "points": 8, "images": 20,
    }  # fmt: skip
    assert coarse["evaluations"] == 16
    store = Store(tmp_path)
    assert [row.n_examples for row in store.subset_evaluations(1)] == [20] * 10
    quick = command_line.json("run", "--study", "1", "--points", "8", "--quick")
    # A split of 60 images has fewer than a quick look takes, so that this is all of it.
    assert (quick["run"]["images"], quick["evaluations"]) == (QUICK_IMAGES, 10)
    assert store.subset_evaluations(1) == []
    whole = command_line.json("run", "--study", "1", "--points", "8")
    assert (whole["run"]["images"], whole["evaluations"]) == (None, 0)


def test_nested_map_under_a_rule_that_nothing_meets_exits_3(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    arguments = ["run", str(tiny_zoo), "--tasks", "Colours,Stripes", "--method", "nested", "--points", "8"]
    result = command_line.json(*arguments, "--rule", "all >= 99.9%, maximize mean", code=3)
    assert not result["nested"]["feasible"]
    assert "99.9%" in result["nested"]["message"]
    text, _ = command_line(
        "run", "--study", "1", "--method", "nested", "--points", "8", "--rule", "maximize Colours"
    )
    assert "coefficient" in text


def test_a_transform_makes_a_sibling_study(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    folder = ["run", str(tiny_zoo), "--tasks", "Colours,Stripes", "--name", "Plain", "--points", "8"]
    command_line(*folder)
    for _ in range(2):
        result = command_line.json(
            "run", "--study", "Plain", "--transform", "dare", "--drop", "0.25", "--points", "8"
        )
        assert result["study"] == {"id": 2, "name": "Plain on DARE 25 %"}
    store = Store(tmp_path)
    assert store.study(2).spec.transform == Transform("dare", drop=0.25)
    assert store.study(2).n_evaluations == 16
    command_line("run", str(tiny_zoo), "--transform", "ties", "--points", "10", "--name", "TIES at once")
    assert store.find_study("TIES at once").spec.transform == Transform("ties")
    rows = command_line.json("compare", "Plain", "--no-baselines")["rows"]
    names = [row["name"] for row in rows if row["kind"] == "run"]
    assert names == ["MAP", "MAP on DARE 25 %, run 2", "MAP on DARE 25 %, run 3"]
    # Baselines are the plain study's, also where the other one is compared.
    rows = command_line.json("compare", "Plain on DARE 25 %", "--baselines", "soup")["rows"]
    assert "Model soup" in [row["name"] for row in rows]
    _, err = command_line("compare", "TIES at once", "--baselines", "soup", code=2)
    assert "make it in the study of the same models without TIES 20 %" in err


def test_an_interrupted_comparison_goes_on(request: pytest.FixtureRequest, tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    arguments = ["compare", "--demo", "--zoo", str(tiny_zoo), "--points", "12", "--direct-points", "60"]
    arguments.append("--no-baselines")
    process = command_line.start(*arguments)
    request.addfinalizer(process.kill)
    store = Store(tmp_path)
    deadline = time.monotonic() + 600
    while not (store.studies() and len(store.runs(store.studies()[0].id)) == 4):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "everything measured is kept, and the same command goes on" in err
    kept = [row.id for row in store.evaluations(1)]
    rows = command_line.json(*arguments)["rows"]
    assert [row["evaluations"] for row in rows if row["kind"] == "run"] == [24, 24, 40, 120]
    assert [row.id for row in store.evaluations(1)][: len(kept)] == kept
    assert [run.status for run in store.runs(1)] == ["done"] * 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["--seed", str(2**31)], "can't be used"),
        (["--points", "100001"], "too many for one run"),
        ([], "is damaged or not a safetensors file"),
    ],
)
def test_no_study_is_kept_of_bad_input(
    command_line: CommandLine, tiny_zoo: Path, tmp_path: Path, options: list[str], sentence: str
):
    zoo = shutil.copytree(tiny_zoo, tmp_path / "zoo")
    if not options:
        (zoo / "Stripes.safetensors").write_bytes(b"no model")
    before = len(Store(command_line.home).studies())
    out, err = command_line("run", str(zoo), "--tasks", "Colours,Stripes", *options, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err
    assert len(Store(command_line.home).studies()) == before


def test_a_run_goes_on_on_another_device(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    store = Store(tmp_path)
    study = store.create_study("Moved", spec_from_manifest(tiny_zoo, ["Colours", "Stripes"]))
    run = store.create_run(study.id, RunSettings(points=5, seed=7, device="cuda:99"))
    _, err = command_line("run", "--study", "Moved", code=2)
    assert "There is no device 'cuda:99'" in err
    result = command_line.json("run", "--study", "Moved", "--device", "cpu")
    assert (result["run"]["id"], result["run"]["status"]) == (run.id, "done")
    assert store.run(run.id).settings == RunSettings(points=5, seed=7, device="cpu")


def test_what_nobody_expected_exits_1_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path))
    closed, err = io.StringIO(), io.StringIO()
    closed.close()
    with redirect_stdout(closed), redirect_stderr(err):
        assert main(["studies"]) == 1
    assert err.getvalue() == "Unexpected error: ValueError: I/O operation on closed file\n"


def test_help_documents_the_exit_codes(command_line: CommandLine):
    text, _ = command_line("--help")
    for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert f"\n  {code}" in text
    command_line("front", code=2)


def test_ctrl_c_exits_130_and_the_run_resumes(request: pytest.FixtureRequest, tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    arguments = ["run", str(tiny_zoo), "--tasks", "Colours,Stripes", "--points", "100"]
    process = command_line.start(*arguments)
    request.addfinalizer(process.kill)
    store = Store(tmp_path)
    deadline = time.monotonic() + 600
    while not (store.studies() and store.studies()[0].n_evaluations >= 5):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "everything measured is kept, and `run --study 1` goes on" in err
    assert "Traceback" not in err
    kept = store.evaluations(1)
    assert [run.status for run in store.runs(1)] == ["stopped"]
    result = command_line.json("run", "--study", "1")
    assert (result["run"]["status"], result["evaluations"]) == ("done", 200)
    assert [row.id for row in store.evaluations(1)][: len(kept)] == [row.id for row in kept]
    command_line("studies", "--delete", "1")
    assert store.studies() == []


def test_inspect_compares_models_with_the_one_they_started_from(
    command_line: CommandLine, tiny_zoo: Path
) -> None:
    names = ("Colours", "Stripes")
    manifest = json.loads((tiny_zoo / "manifest.json").read_text(encoding="utf-8"))
    files = {task["name"]: str(tiny_zoo / task["checkpoint"]) for task in manifest["tasks"]}
    paths = [files[name] for name in names]
    against = ("--against", str(tiny_zoo / manifest["pretrained"]))
    found = command_line.json("inspect", *paths, *against)
    check = check_spec(spec_from_manifest(tiny_zoo, names))
    assert [model["l1_ratio"] for model in found["models"]] == pytest.approx(
        [model.l1_ratio for model in check.models], rel=1e-5
    )
    np.testing.assert_allclose(found["cosines"], check.cosines, atol=1e-5)
    out, _ = command_line("inspect", *paths, *against)
    assert "tensors in 'visual.'" in out
    assert "cosine" in out
    out, _ = command_line("inspect", paths[0])
    assert "CLIP vision tower (open_clip)" in out
    assert "cosine" not in out


def test_inspect_lists_what_does_not_fit_and_says_what_cannot_be_read(
    command_line: CommandLine, tiny_zoo: Path, tmp_path: Path
) -> None:
    save_file({"visual.proj": torch.full((2, 2), torch.nan)}, tmp_path / "other.safetensors")
    out, _ = command_line(
        "inspect", str(tmp_path / "other.safetensors"), "--against", str(tiny_zoo / "pretrained.safetensors")
    )
    assert "'other' doesn't fit: it\n  lacks 'visual." in out
    assert "more (--json lists all)" in out
    assert "'other' holds NaN or infinity in\n  'visual.proj'" in out
    _, err = command_line("inspect", str(tmp_path / "none.safetensors"), code=2)
    assert err == f"There is no checkpoint {tmp_path / 'none.safetensors'}.\n"
    twice = str(tmp_path / "other.safetensors")
    _, err = command_line("inspect", twice, twice, code=2)
    assert "Two of the checkpoints are called" in err
