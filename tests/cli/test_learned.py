"""Pareto Merging on the command line: a learned set is trained, measured, chosen from and exported."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mapmerge_core.merges._pareto_set import read_header
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.analysis.learned import learned_set
from mapmerge_core.studies.config.manifest import DEMO_ZOO, demo_training, spec_from_manifest
from mapmerge_core.studies.store.rows import RunRow
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.studies.store.store import Store
from mapmerge_core.studies.config.study_file import StudyFile, write_study_file
from tests.test_cli import CommandLine
from tests.tiny import ARCHITECTURE, plain_head, plain_transform

TASKS = ["Colours", "Stripes"]
FAST = ("--steps", "30", "--rank", "4", "--points", "5", "--lr", "0.03", "--beta-norm", "0")


@dataclass(frozen=True)
class Learned:
    """What learning from the tiny zoo printed; run 1 of study 1 is its run."""

    command_line: CommandLine
    arguments: list[str]
    said: dict[str, Any]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Learned:
    command_line = CommandLine(tmp_path_factory.mktemp("pareto-home"))
    arguments = ["pareto-merge", "--demo", "--zoo", str(tiny_zoo), "--tasks", "2", *FAST]
    return Learned(command_line, arguments, command_line.json(*arguments))


def accuracy(weights: dict[str, torch.Tensor], path: Path) -> float:
    """Of a model on a test split, by open_clip alone."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(weights)
    with np.load(path) as data, torch.inference_mode():
        head = plain_head(model, data["class_names"].tolist(), data["templates"].tolist())
        features = model.encode_image(plain_transform(data["test_images"], model), normalize=True)
        guesses = (features @ head).argmax(dim=1).numpy()
        return float((guesses == data["test_labels"]).mean())


def test_it_prints_the_documented_object(learned: Learned):
    said = learned.said
    assert list(said) == [
        "study", "run", "tasks", "steps", "data_free", "preferences", "measured", "equal", "mean", "seconds",
        "extra_parameters", "parameters", "share", "export",
    ]  # fmt: skip
    assert said["study"] == {"id": 1, "name": "Demo: Colours + Stripes"}
    assert said["run"] == {"id": 1, "method": "pareto_merging"}
    assert (said["tasks"], said["steps"], said["data_free"]) == (TASKS, 30, False)
    assert said["preferences"] == [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]]
    assert np.shape(said["measured"]) == (5, 2)
    assert [said["equal"][task] for task in TASKS] == said["measured"][2]
    assert said["mean"] == pytest.approx(sum(said["equal"].values()) / 2)
    assert list(said["seconds"]) == ["train", "measure", "fold", "total"]
    assert said["seconds"]["total"] > said["seconds"]["train"] > said["seconds"]["fold"] > 0
    # In each of two layers q, k, v and the projection are 32 x 32: r(c + d) + r²K parameters, r = 4, K = 2.
    assert said["extra_parameters"] == 2 * 4 * (4 * (32 + 32) + 4**2 * 2)
    assert said["share"] == pytest.approx(said["extra_parameters"] / said["parameters"])


def test_the_parameters_are_those_of_the_merged_tower(learned: Learned, tiny_zoo: Path):
    tower = load_file(tiny_zoo / "Colours.safetensors")
    assert learned.said["parameters"] == sum(tensor.numel() for tensor in tower.values())


def test_the_demos_way_of_learning_is_the_default(learned: Learned):
    run = Store(learned.command_line.home).run(1)
    assert run.settings == RunSettings(
        points=5, training=demo_training(2, steps=30, rank=4, lr=0.03, beta_norm=0.0)
    )
    assert run.settings.training.balance == 1


def test_the_same_command_shows_the_same_set_again(learned: Learned):
    arguments = [*learned.arguments, "--no-export"]
    again = learned.command_line.json(*arguments)
    store = Store(learned.command_line.home)
    assert ([study.id for study in store.studies()], [run.id for run in store.runs(1)]) == ([1], [1])
    same = ("study", "run", "preferences", "measured", "equal", "extra_parameters")
    assert {name: again[name] for name in same} == {name: learned.said[name] for name in same}
    assert again["seconds"]["train"] == learned.said["seconds"]["train"]
    assert again["export"] is None
    text, err = learned.command_line(*arguments)
    assert "'Demo: Colours + Stripes' has learned this set already: it is run 1." in err
    assert "γ Colours  γ Stripes  Colours  Stripes" in text
    assert len([line for line in text.splitlines() if line.startswith(("0.", "1."))]) == 5
    assert f"{learned.said['extra_parameters']:,} extra parameters" in text
    assert "30 steps of training took" in text
    assert "the same model" not in text


def test_the_set_is_exported(learned: Learned, tmp_path: Path):
    exported = Path(learned.said["export"])
    assert (
        exported == learned.command_line.home / "exports" / "demo-colours-stripes" / "learned-1.safetensors"
    )
    assert read_header(exported)["tasks"] == TASKS
    out = tmp_path / "mine.safetensors"
    said = learned.command_line.json("export", "1", "--learned", "1", "--out", str(out))
    assert said == {"learned": 1, "export": str(out), "bytes": out.stat().st_size}
    assert out.read_bytes() == exported.read_bytes()
    text, _ = learned.command_line("export", "1", "--learned", "1")
    assert f"exported to {exported}" in text


def test_front_and_run_print_what_was_measured(learned: Learned):
    found = learned_set(Store(learned.command_line.home), 1)
    front = learned.command_line.json("front", "1", "--run", "1")
    assert list(front) == ["tasks", "run", "front"]
    assert front["run"] == {"id": 1, "method": "pareto_merging"}
    assert front["front"]["size"] == len(front["front"]["preferences"]) > 0
    kept = {tuple(gamma) for gamma in front["front"]["preferences"]}
    for gamma, row in zip(found.gammas.tolist(), found.values, strict=True):
        beaten = any((row <= other).all() and (row < other).any() for other in found.values)
        assert (tuple(gamma) in kept) == (not beaten)
    text, _ = learned.command_line("front", "1", "--run", "1")
    assert f"The front of run 1 has {len(kept)} models" in text


def test_pick_by_preference_measures_and_exports(learned: Learned, tiny_zoo: Path, tmp_path: Path):
    pick = ["pick", "1", "--learned", "1", "--preference", "Stripes=3,Colours=1", "--name", "Mine"]
    said = learned.command_line.json(*pick, "--measure")
    assert said["run"] == {"id": 1, "method": "pareto_merging"}
    assert said["pick"]["preference"] == {"Colours": 0.25, "Stripes": 0.75}
    assert not said["pick"]["interpolated"]
    assert [said["pick"]["measured"][task] for task in TASKS] == learned.said["measured"][3]
    for name in ("predicted", "lower", "upper"):
        assert set(said["pick"][name]) == set(TASKS)
    row = Store(learned.command_line.home).learned_pick(said["pick"]["id"])
    assert (row.name, row.how, row.gamma.tolist()) == ("Mine", {"kind": "preference"}, [0.25, 0.75])
    out = tmp_path / "mine.safetensors"
    exported = learned.command_line.json("export", "1", "--learned-pick", str(row.id), "--out", str(out))
    assert (exported["learned_pick"], exported["export"]) == (row.id, str(out))
    for task in TASKS:
        assert accuracy(load_file(out), tiny_zoo / f"{task}.npz") == said["pick"]["measured"][task]


def test_a_preference_between_measured_ones_is_said_to_be_interpolated(learned: Learned):
    text, _ = learned.command_line("pick", "1", "--learned", "1", "--preference", "Stripes=2,Colours=1")
    assert "It is predicted between measured preferences." in text
    said = learned.command_line.json("pick", "1", "--learned", "1", "--preference", "Stripes=2,Colours=1")
    assert (said["pick"]["interpolated"], said["pick"]["measured"]) == (True, {})
    text, _ = learned.command_line("pick", "1", "--learned", "1", "--preference", "equal")
    assert "predicted between" not in text


def test_pick_by_rule(learned: Learned):
    found = learned_set(Store(learned.command_line.home), 1)
    said = learned.command_line.json("pick", "1", "--learned", "1", "--rule", "maximize Stripes")
    assert said["feasible"]
    assert said["pick"]["predicted"]["Stripes"] == found.values[:, 1].max()
    row = Store(learned.command_line.home).learned_pick(said["pick"]["id"])
    assert row.how == {"kind": "rule", "text": "maximize Stripes"}
    before = len(Store(learned.command_line.home).learned_picks(1))
    rule = ["pick", "1", "--learned", "1", "--rule", "all >= 99.9%, maximize mean"]
    said = learned.command_line.json(*rule, code=3)
    assert (said["feasible"], said["pick"]["id"]) == (False, None)
    assert "misses" in said["message"]
    text, _ = learned.command_line(*rule, code=3)
    assert "The nearest model, which is not kept as a pick:" in text
    assert len(Store(learned.command_line.home).learned_picks(1)) == before


def test_refining_a_rule_measures_more(learned: Learned):
    before = learned_set(Store(learned.command_line.home), 1)
    rule = ["pick", "1", "--learned", "1", "--rule", "maximize worst"]
    said = learned.command_line.json(*rule, "--refine")
    after = learned_set(Store(learned.command_line.home), 1)
    assert len(after.gammas) > len(before.gammas)
    assert min(said["pick"]["predicted"].values()) == after.values.min(axis=1).max()
    assert not said["pick"]["interpolated"]


def test_pick_for_unlabelled_images(learned: Learned, tiny_zoo: Path, tmp_path: Path):
    """A folder of loose images, with class names, of a task that nothing was fine-tuned for."""
    with np.load(tiny_zoo / "Light.npz") as data:
        for i, image in enumerate(data["val_images"][:20]):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
    pick = ["pick", "1", "--learned", "1", "--unlabelled", str(tmp_path)]
    said = learned.command_line.json(*pick, "--classes", "dark, dim, bright")
    found = said["unlabelled"]
    assert (found["images"], np.shape(found["points"]), len(found["entropies"])) == (20, (30, 2), 30)
    assert found["best"] == int(np.argmin(found["entropies"]))
    assert list(said["pick"]["preference"].values()) == found["points"][found["best"]]
    row = Store(learned.command_line.home).learned_pick(said["pick"]["id"])
    assert row.how == {"kind": "unlabelled", "data": str(tmp_path)}
    (tmp_path / "names.txt").write_text("dark\ndim\nbright\n")
    again = learned.command_line.json(*pick, "--classes", str(tmp_path / "names.txt"))
    assert again["unlabelled"] == found
    text, _ = learned.command_line(*pick, "--classes", "dark,dim,bright")
    assert "Of 30 models this one is the surest of the 20 images" in text
    _, err = learned.command_line(*pick, code=2)
    assert "doesn't name its classes" in err


def test_a_fronts_model_is_picked_for_unlabelled_images_too(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mapmerge_core.studies.runs.unlabelled.analyse", partial(analyse, generations=10))
    command_line = CommandLine(tmp_path)
    command_line("run", str(tiny_zoo), "--tasks", "Colours,Stripes", "--points", "8")
    pick = ["pick", "1", "--unlabelled", str(tiny_zoo / "Light.npz")]
    said = command_line.json(*pick, "--measure")
    found = said["unlabelled"]
    assert (found["images"], said["feasible"]) == (60, True)
    assert said["pick"]["c"] == found["points"][found["best"]]
    assert all(said["pick"]["measured"][task] <= 1 for task in TASKS)
    row = Store(tmp_path).picks(1)[0]
    assert row.how == {"kind": "unlabelled", "data": str(tiny_zoo / "Light.npz")}
    text, _ = command_line(*pick)
    assert "is the surest of the 60 images" in text


def test_the_comparison_has_it_as_a_row(learned: Learned):
    rows = learned.command_line.json("compare", "1", "--no-baselines")["rows"]
    assert [row["name"] for row in rows if row["kind"] == "run"] == ["Pareto Merging"]


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pareto-merge"], "Name either a folder or a STUDY.yaml"),
        (["pareto-merge", "--demo", "--study", "1"], "Name either a folder or a STUDY.yaml"),
        (["pareto-merge", "--demo", "--tasks", "MNIST,Emoji"], "Say with --tasks how many"),
        (["pareto-merge", "--demo", "--tasks", "1"], "merges 2 to 8 tasks, not 1"),
        (["pareto-merge", "--demo", "--name", "Mine"], "--tasks and --name are for a new study"),
        (["pareto-merge", "--study", "1", "--tasks", "Colours"], "--tasks and --name are for a new study"),
        (["pareto-merge", "--study", "1", "--zoo", "x"], "--zoo is for --demo"),
        (["pareto-merge", "--study", "None"], "There is no study 'None'"),
        (["pareto-merge", "--study", "1", "--steps", "0"], "needs at least 1 step, not 0"),
        (["pareto-merge", "--study", "1", "--balance", "-1"], "balance must be 0 or more, not -1"),
        (["pareto-merge", "--study", "1", "--mu", "0"], "mu must be above 0, not 0"),
        (["pareto-merge", "--study", "1", "--points", "0"], "Measure one preference or more"),
        (["pareto-merge", "--study", "1", "--seed", "-1"], "The seed -1 can't be used"),
        (["pareto-merge", "--study", "1", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["pareto-merge", "--study", "1", "--personalise", ","], "Name the tensors to personalise"),
        (["pareto-merge", "--study", "1", "--keep", "0.1"], "--keep goes with --transform"),
        (["pick", "1", "--learned", "9", "--preference", "equal"], "has no run 9"),
        (["pick", "1", "--learned", "1", "--preference", "Flags=1"], "There is no task 'Flags'"),
        (["pick", "1", "--learned", "1", "--preference", "Colours=-1"], "negative or not finite"),
        (["pick", "1", "--learned", "1", "--preference", "Colours=0"], "Every weight is zero"),
        (["pick", "1", "--learned", "1", "--preference", "equal", "--normalise"], "leave --normalise out"),
        (["pick", "1", "--learned", "1", "--preference", "equal", "--refine"], "--refine goes with"),
        (["pick", "1", "--rule", "maximize mean", "--refine"], "--refine goes with --learned and --rule"),
        (["pick", "1", "--preference", "equal", "--classes", "a"], "--classes goes with --unlabelled"),
        (["pick", "1", "--learned", "1", "--rule", "Colors > 5%"], 'There is no task "Colors"'),
        (["pick", "1", "--learned", "1", "--unlabelled", "nowhere"], "There is no dataset"),
        (["pick", "1", "--unlabelled", "nowhere"], "more points are needed"),
        (["pick", "1", "--preference", "equal", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["export", "1", "--learned-pick", "99"], "has no learned pick 99: make one"),
        (["export", "1", "--learned", "99"], "has no run 99"),
        (["front", "1", "--run", "99"], "has no run 99"),
        (["run", "--study", "1", "--method", "pareto_merging", "--low", "0.1"], "no use for --low"),
        (["run", "--study", "1", "--method", "pareto_merging", "--points", "0"], "one preference or more"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(learned: Learned, arguments: list[str], sentence: str):
    store = Store(learned.command_line.home)
    before = (len(store.studies()), len(store.runs(1)), len(store.learned_picks(1)))
    out, err = learned.command_line(*arguments, code=2)
    assert (out, err.count("\n")) == ("", 1 + ("^" in err) * (err.count("\n") - 1))
    assert sentence in err
    assert (len(store.studies()), len(store.runs(1)), len(store.learned_picks(1))) == before


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--personalise", "attention.*"], "'attention.*' names no weight matrix that is merged"),
        (["--rank", "33"], "The rank must be from 1 to 32 for these models, not 33"),
    ],
)
def test_what_the_models_lack_is_said_in_one_sentence(
    tiny_zoo: Path, tmp_path: Path, option: list[str], sentence: str
):
    command_line = CommandLine(tmp_path)
    arguments = ["pareto-merge", str(tiny_zoo), "--tasks", "Colours,Stripes", *FAST, *option]
    _, err = command_line(*arguments, code=2)
    assert sentence in err
    [run] = Store(tmp_path).runs(1)
    assert run.status == "failed"


def test_a_folder_a_study_and_other_settings(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    folder = ["pareto-merge", str(tiny_zoo), "--tasks", "Colours,Stripes", "--name", "Mine", *FAST]
    folder += ["--data-free", "--personalise", "*.attn.out_proj.weight", "--seed", "3"]
    first = command_line.json(*folder)
    assert (first["data_free"], first["extra_parameters"]) == (True, 2 * (4 * (32 + 32) + 4**2 * 2))
    said = ["--data-free", "--personalise", "*.attn.out_proj.weight", "--seed", "3"]
    again = command_line.json("pareto-merge", "--study", "Mine", *FAST, *said)
    assert command_line.json(*folder)["run"] == again["run"] == first["run"]
    store = Store(tmp_path)
    assert [study.name for study in store.studies()] == ["Mine"]
    training = Training(
        steps=30, rank=4, lr=0.03, beta_norm=0.0, data_free=True, personalised=("*.attn.out_proj.weight",)
    )
    assert store.run(1).settings == RunSettings(points=5, seed=3, training=training)
    text, _ = command_line("pareto-merge", "--study", "Mine", "--steps", "1", "--rank", "2", "--points", "2")
    assert "All preferences gave the same model: lower the weight of the norm (--beta-norm)." in text
    other = command_line.json("pareto-merge", "--study", "Mine", *FAST, "--points", "1", "--data-free")
    assert (other["run"]["id"], other["preferences"]) == (3, [[0.5, 0.5]])


def test_on_trimmed_task_vectors_it_is_a_run_of_the_sibling_study(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path)
    arguments = ["pareto-merge", "--demo", "--zoo", str(tiny_zoo), *FAST, "--points", "1", "--data-free"]
    text, _ = command_line(*arguments, "--transform", "ties_trim", "--keep", "0.3")
    assert "Pareto Merging++" in text
    store = Store(tmp_path)
    plain, trimmed = sorted(store.studies(), key=lambda study: study.id)
    assert (plain.spec.transform, trimmed.spec.transform) == (None, Transform("ties_trim", keep=0.3))
    assert [run.method for run in store.runs(trimmed.id)] == ["pareto_merging"]
    assert store.runs(plain.id) == []


def test_a_study_file_says_how_to_learn(tiny_zoo: Path, tmp_path: Path):
    command_line = CommandLine(tmp_path / "home")
    training = Training(steps=3, rank=4, data_free=True)
    settings = RunSettings(points=3, seed=1, precision="float32", training=training)
    spec = spec_from_manifest(tiny_zoo, TASKS)
    file = tmp_path / "study.yaml"
    write_study_file(file, StudyFile(name="Mine", spec=spec, method="pareto_merging", settings=settings))
    ran = command_line.json("run", str(file))
    assert ran["run"] == {"id": 1, "method": "pareto_merging", "status": "done", "points": 3}
    assert ran["evaluations"] == Store(tmp_path / "home").run(1).n_evaluations
    assert np.shape(ran["preferences"]) == np.shape(ran["measured"])
    found = learned_set(Store(tmp_path / "home"), 1)
    assert found.run.settings == settings
    assert ran["measured"] == found.values.tolist()
    learned = command_line.json("pareto-merge", str(file))
    assert learned["run"]["id"] == 1
    assert len(learned["preferences"]) == 3
    more = command_line.json("pareto-merge", str(file), "--rank", "2")
    assert more["run"]["id"] == 2
    run = Store(tmp_path / "home").run(2)
    assert run.settings == replace(settings, training=replace(training, rank=2))
    text, err = command_line("run", str(file))
    assert "has done this run already" in err
    assert "Pareto Merging, data-free has a model for every preference" in text


def test_run_learns_as_usual(tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Training] = []

    def learn(_: Store, run: RunRow, *__: Any, **___: Any) -> None:
        asked.append(run.settings.training)
        raise KeyboardInterrupt

    monkeypatch.setattr("mapmerge_core.studies.runs.runner.learn", learn)
    command_line = CommandLine(tmp_path)
    method = ["--method", "pareto_merging", "--points", "4"]
    _, err = command_line("run", str(tiny_zoo), "--tasks", "Colours,Stripes", *method, code=130)
    assert "`run --study 1` goes on" in err
    _, err = command_line("run", str(DEMO_ZOO), "--tasks", "MNIST,Emoji", *method, code=130)
    assert asked == [Training(), demo_training(2)]


def test_ctrl_c_exits_130_and_the_same_command_goes_on(
    request: pytest.FixtureRequest, tiny_zoo: Path, tmp_path: Path
):
    command_line = CommandLine(tmp_path)
    arguments = ["pareto-merge", "--demo", "--zoo", str(tiny_zoo), "--data-free", "--rank", "2"]
    arguments += ["--steps", "200", "--points", "3", "--json"]
    process = command_line.start(*arguments)
    request.addfinalizer(process.kill)
    store = Store(tmp_path)
    deadline = time.monotonic() + 600
    while not (store.studies() and store.runs(1) and store.training_points(1)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "everything learned and measured is kept, and the same command goes on" in err
    assert "Traceback" not in err
    assert [run.status for run in store.runs(1)] == ["stopped"]
    before = store.training_points(1)
    assert 0 < before[-1].step < 200
    said = command_line.json(*arguments[:-1])
    assert said["run"]["id"] == 1
    after = store.training_points(1)
    assert after[-1].step == 200
    assert [point.seconds for point in after[: len(before)]] == [point.seconds for point in before]
    assert said["seconds"]["train"] == pytest.approx(sum(point.seconds for point in after))


def test_help_lists_it(learned: Learned):
    text, _ = learned.command_line("--help")
    assert "pareto-merge" in text
    text, _ = learned.command_line("pareto-merge", "--help")
    for option in ("--data-free", "--personalise", "--balance", "--concentration"):
        assert option in text
