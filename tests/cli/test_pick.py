"""The command ``pick``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mapmerge_core.studies.analysis import analyse
from tests.cli.test_demo import accuracy

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Made

TASKS = ["Colours", "Stripes"]


def test_by_rule_measured(demo: Made):
    result = demo.command.json("pick", 1, "--rule", "Colours >= 50%, maximize Stripes", "--measure")
    assert result["feasible"]
    assert result["study"] == {"id": 1, "name": "Demo: Colours + Stripes"}
    assert result["pick"]["merge"] == "task_arithmetic"
    assert list(result["pick"]["x"]) == TASKS
    assert result["pick"]["predicted"]["Colours"] >= 0.5 - 1e-6
    assert set(result["pick"]["measured"]) == set(TASKS)
    pick = demo.command.store.picks.get(result["pick"]["id"])
    assert pick.how == {"kind": "rule", "text": "Colours >= 50%, maximize Stripes"}


def test_by_preference(demo: Made):
    text, _ = demo.command("pick", 1, "--preference", "Stripes=2,Colours=1", "--name", "Striped")
    assert "90% interval" in text
    pick = demo.command.store.picks.all(1)[-1]
    assert (pick.name, pick.how["weights"]) == ("Striped", {"Stripes": 2.0, "Colours": 1.0})


def test_at_a_point(demo: Made):
    result = demo.command.json("pick", 1, "--merge", "task_arithmetic", "--at", "0.25,0.5")
    assert result["pick"]["x"] == {"Colours": 0.25, "Stripes": 0.5}
    assert demo.command.store.picks.get(result["pick"]["id"]).x.tolist() == [0.25, 0.5]


def test_a_point_before_anything_is_measured(command: Command, tiny_zoo: Path):
    from tests.studies.conftest import tiny_config

    command.store.studies.create("Bare", tiny_config(tiny_zoo))
    words = ("pick", "Bare", "--merge", "task_arithmetic", "--at", "0.25,0.5")
    assert command.json(*words)["pick"]["predicted"] is None
    text, _ = command(*words)
    assert "measured" in text


def test_an_infeasible_rule_exits_3_and_names_the_nearest(demo: Made):
    rule = ("pick", 1, "--rule", "all >= 99.9%, maximize worst")
    result = demo.command.json(*rule, code=3)
    assert (result["feasible"], result["pick"]["id"]) == (False, None)
    assert {miss["objective"] for miss in result["misses"]} <= set(TASKS)
    assert "nearest misses" in result["message"]
    text, _ = demo.command(*rule, code=3)
    assert "The nearest model, which is not kept as a pick:" in text
    assert len(demo.command.store.picks.all(1)) == 1


def test_of_a_learned_set_measured_and_exported(learned: Made, tiny_zoo: Path, tmp_path: Path):
    pick = ("pick", 1, "--merge", "pareto_merging", "--preference", "Stripes=3,Colours=1", "--name", "Mine")
    result = learned.command.json(*pick, "--measure")
    row = learned.command.store.picks.get(result["pick"]["id"])
    assert (row.name, row.how["kind"]) == ("Mine", "preference")
    assert sum(result["pick"]["x"].values()) == pytest.approx(1)
    for name in ("predicted", "lower", "upper", "measured"):
        assert set(result["pick"][name]) == set(TASKS)
    out = tmp_path / "mine.safetensors"
    exported = learned.command.json("export", 1, "--pick", row.id, "--out", out)
    assert (exported["pick"], exported["export"]) == (row.id, str(out))
    for task in TASKS:
        assert accuracy(out, tiny_zoo / f"{task}.npz") == result["pick"]["measured"][task]


def test_refining_a_rule_measures_more(learned: Made):
    merge = learned.command.store.merges.all(1)[-1]
    before = len(learned.command.store.evaluations.table(merge.id).X)
    rule = ("pick", 1, "--merge", "pareto_merging", "--rule", "maximize worst")
    assert learned.command.json(*rule, "--refine")["feasible"]
    assert len(learned.command.store.evaluations.table(merge.id).X) > before


def test_for_unlabelled_images(learned: Made, tiny_zoo: Path, tmp_path: Path):
    """A folder of loose images, with class names, of a task that nothing was fine-tuned for."""
    folder = tmp_path / "images"
    folder.mkdir()
    with np.load(tiny_zoo / "Light.npz") as data:
        for i, image in enumerate(data["val_images"][:20]):
            Image.fromarray(image).save(folder / f"{i}.png")
    pick = ("pick", 1, "--merge", "pareto_merging", "--unlabelled", folder)
    result = learned.command.json(*pick, "--classes", "dark, dim, bright")
    tried = result["unlabelled"]
    assert tried["images"] == 20
    assert len(tried["points"]) == len(tried["entropies"]) > 1
    assert tried["best"] == int(np.argmin(tried["entropies"]))
    assert list(result["pick"]["x"].values()) == tried["points"][tried["best"]]
    row = learned.command.store.picks.get(result["pick"]["id"])
    assert row.how == {"kind": "unlabelled", "data": str(folder)}
    (folder / "names.txt").write_text("dark\ndim\nbright\n")
    assert learned.command.json(*pick, "--classes", folder / "names.txt")["unlabelled"] == tried
    text, _ = learned.command(*pick, "--classes", "dark,dim,bright")
    assert "this one is the surest of the 20 images" in text
    _, err = learned.command(*pick, code=2)
    assert "doesn't name its classes" in err


def test_a_fronts_model_is_picked_for_unlabelled_images_too(
    demo: Made, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mapmerge_core.studies.runs.unlabelled.analyse", partial(analyse, generations=10))
    result = demo.command.json("pick", 1, "--unlabelled", tiny_zoo / "Light.npz", "--measure")
    tried = result["unlabelled"]
    assert (tried["images"], result["feasible"]) == (60, True)
    assert list(result["pick"]["x"].values()) == tried["points"][tried["best"]]
    assert all(result["pick"]["measured"][task] <= 1 for task in TASKS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Choose by one of --rule, --preference, --at and --unlabelled"),
        (["--preference", "equal", "--rule", "maximize mean"], "Choose by one of"),
        (["--rule", "Colors >= 5%, maximize worst"], '"Colors"'),
        (["--preference", "Colours"], "'Colours' is no weight"),
        (["--preference", "Flags=1"], "There is no objective 'Flags'"),
        (["--preference", "Colours=0"], "zero"),
        (["--preference", "Colours=-1"], "negative or not finite"),
        (["--preference", "equal", "--refine"], "--refine goes with"),
        (["--rule", "maximize mean", "--refine"], "--refine goes with --merge and --rule"),
        (["--rule", "maximize mean", "--normalise"], "--normalise goes with --preference"),
        (["--preference", "equal", "--classes", "a"], "--classes goes with --unlabelled"),
        (["--preference", "equal", "--merge", "ties"], "has no merge 'ties'"),
        (["--preference", "equal", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["--at", "0.1,0.2"], "--at goes with --merge"),
        (["--merge", "1", "--at", "0.1"], "2"),
        (["--merge", "1", "--at", "a,b"], "'a,b' is no point"),
        (["--merge", "1", "--at", "0.1,nan"], "finite"),
        (["--unlabelled", "nowhere"], "There is no dataset"),
    ],
)
def test_bad_input_is_one_sentence(demo: Made, words: list[str], sentence: str):
    out, err = demo.command("pick", 1, *words, code=2)
    assert (out, err.count("\n")) == ("", 1 + ("^" in err) * (err.count("\n") - 1))
    assert sentence in err
    assert len(demo.command.store.picks.all(1)) == 1
