"""The command ``demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import ARCHITECTURE, plain_head, plain_transform

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Made


def accuracy(weights: Path, data: Path) -> float:
    """Return a model's accuracy on a test split, by open_clip alone."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(load_file(weights))
    with np.load(data) as arrays, torch.inference_mode():
        head = plain_head(model, arrays["class_names"].tolist(), arrays["templates"].tolist())
        features = model.encode_image(plain_transform(arrays["test_images"], model), normalize=True)
        return float(((features @ head).argmax(dim=1).numpy() == arrays["test_labels"]).mean())


def test_it_prints_the_documented_object(demo: Made):
    printed = demo.printed
    assert list(printed) == ["tasks", "evaluations", "r2", "front", "pick", "export", "seconds"]
    assert printed["tasks"] == ["Colours", "Stripes"]
    assert printed["evaluations"] == 28
    assert set(printed["r2"]) == {"Colours", "Stripes"}
    front = printed["front"]
    assert set(front) == {"size", "x", "predicted"}
    assert np.shape(front["x"]) == np.shape(front["predicted"]) == (front["size"], 2)
    assert printed["pick"]["x"] in front["x"]
    for kind in ("predicted", "measured"):
        assert all(0 <= printed["pick"][kind][task] <= 1 for task in printed["tasks"])
    assert list(printed["seconds"]) == ["evaluate", "fit", "front", "total"]
    assert printed["seconds"]["total"] >= printed["seconds"]["evaluate"] > 0


def test_the_exported_model_scores_what_was_measured(demo: Made, tiny_zoo: Path):
    for task, measured in demo.printed["pick"]["measured"].items():
        assert accuracy(Path(demo.printed["export"]), tiny_zoo / f"{task}.npz") == measured


def test_the_dashboards_store_has_what_the_demo_did(demo: Made):
    [study] = demo.command.json("studies")["studies"]
    assert (study["id"], study["name"]) == (1, "Demo: Colours + Stripes")
    assert (study["points"], study["evaluations"], study["picks"], study["status"]) == (14, 30, 1, "done")
    [pick] = demo.command.store.picks.all(1)
    assert pick.how == {"kind": "preference", "weights": {"Colours": 1.0, "Stripes": 1.0}}


def test_it_works_in_a_process_of_its_own(command: Command, tiny_zoo: Path):
    process = command.start("demo", "--points", 7, "--zoo", tiny_zoo, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["evaluations"] == 14


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--points", "2"], "2 points are too few"),
        (["--points", "5"], "too few to see the trade-offs of 2 tasks: choose 6 or"),
        (["--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["--seed", "-1"], "can't have seed = -1"),
        (["--tasks", "9"], "merges 2 to 8 tasks, not 9"),
        (["--zoo", "nowhere"], "nowhere"),
        (["--points", "many"], "Invalid value for '--points'"),
        (["--nothing"], "No such option: --nothing"),
    ],
)
def test_bad_input_is_one_sentence(command: Command, words: list[str], sentence: str):
    out, err = command("demo", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err
    assert command.store.studies.all() == []
