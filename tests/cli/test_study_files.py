"""The command ``run`` on study files and on folders of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from mapmerge_core.studies.config import Compute, RunConfig
from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.config.study_file import StudyFile, write_study_file
from mapmerge_core.tasks.data_source import DataSource
from tests.studies.config.test_study_file import STUDY

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store
    from tests.cli.conftest import Command


def map_run(points: int, **settings: object) -> RunConfig:
    return RunConfig(method_settings={"points": points, **settings}, compute=Compute(device="cpu"))


def test_run_makes_a_study_of_a_file_once(tiny_zoo: Path, tmp_path: Path, command: Command, store: Store):
    config, run = config_from_manifest(tiny_zoo, ["Colours", "Stripes"]), map_run(7, seed=5)
    file = tmp_path / "mine" / "study.yaml"
    write_study_file(file, StudyFile(name="Mine", config=config, run=run))
    command("run", file)
    [study] = store.studies.all()
    [row] = store.runs.all(study.id)
    assert (study.name, study.config, row.config) == ("Mine", config, run)
    assert (row.status, row.n_evaluations) == ("done", 14)
    out, err = command("run", file.parent)  # a folder with a study.yaml
    assert "'Mine' has done this run already" in err
    assert "14 evaluations" in out
    # The precision and the device make no other run.
    command("run", file, "--precision", "float32")
    assert len(store.runs.all(study.id)) == 1
    # What is typed comes before what the file says; settings that it leaves out stay.
    command("run", file, "--points", "8")
    command("run", file, "--method", "direct", "--points", "7")
    assert len(store.studies.all()) == 1
    _, more, direct = sorted(store.runs.all(study.id), key=lambda row: row.id)
    assert more.config == map_run(8, seed=5)
    assert (direct.config.method, direct.config.points) == ("direct", 7)
    # Another name or other tasks are another study.
    command("run", file, "--name", "Other")
    command("run", file, "--tasks", "Stripes,Colours")
    studies = sorted(store.studies.all(), key=lambda row: row.id)
    assert [(row.name, [task.name for task in row.config.tasks]) for row in studies] == [
        ("Mine", ["Colours", "Stripes"]),
        ("Other", ["Colours", "Stripes"]),
        ("Mine (2)", ["Stripes", "Colours"]),
    ]
    _, err = command("run", file, "--tasks", "Stripes,Stars", code=2)
    assert "has no task 'Stars': choose among Colours, Stripes." in err


def test_run_says_what_was_guessed_of_models_and_datasets(tiny_zoo: Path, tmp_path: Path, command: Command):
    config = config_from_manifest(tiny_zoo, ["Colours", "Stripes"])
    arrays = np.load(tiny_zoo / "Colours.npz")
    for name in (0, 1):
        (tmp_path / "images" / f"kind {name}").mkdir(parents=True)
        for row in np.flatnonzero(arrays["val_labels"] == name)[:10]:
            Image.fromarray(arrays["val_images"][row]).save(tmp_path / "images" / f"kind {name}" / f"{row}.png")
    rows = [
        f"images/kind {path.parent.name[-1]}/{path.name},{path.parent.name}" for path in sorted(tmp_path.rglob("*.png"))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["file_name,kind", *rows]))
    colours, stripes = config.tasks
    config = replace(
        config,
        models=dict(config.models) | {"Colours": config.pretrained},
        tasks=(colours, replace(stripes, data=DataSource(path=tmp_path / "table.csv"))),
    )
    write_study_file(tmp_path / "a.yaml", StudyFile(config=config, run=map_run(6)))
    _, err = command("run", tmp_path / "a.yaml")
    assert "'Colours' is the pre-trained model itself: fine-tuning changed nothing that is merged.\n" in err
    assert "Stripes: The columns are 'file_name' as the image, 'kind' as the label.\n" in err
    assert "Stripes: There is no validation split: 2 of the 20 examples" in err


def test_run_goes_on_with_an_unfinished_run_of_a_file(tiny_zoo: Path, tmp_path: Path, command: Command, store: Store):
    config, run = config_from_manifest(tiny_zoo, ["Colours", "Stripes"]), map_run(6, seed=5)
    row = store.runs.create(store.studies.create("Mine", config).id, run)
    store.runs.set_status(row.id, "stopped")
    write_study_file(tmp_path / "a.yaml", StudyFile(name="Mine", config=config, run=run))
    command("run", tmp_path / "a.yaml")
    assert [(run.id, run.status) for run in store.runs.all(row.study_id)] == [(row.id, "done")]


def test_run_says_what_it_would_download_first(
    tmp_path: Path, command: Command, store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    file = tmp_path / "study.yml"
    file.write_text(STUDY.replace("openclip://ViT-B-32/openai", "a.pt").replace("[accuracy, {name", "[loss, {name"))
    _, err = command("run", file, code=2)
    assert err.startswith(f"{tmp_path / 'a.pt'} (pretrained) isn't there: put it there, or change the study's path.")
    (tmp_path / "cars").mkdir()
    for name in ("a.pt", "cars/model.pt", "cars.npz"):
        (tmp_path / name).touch()
    _, err = command("run", file, code=2)
    first, second, error = err.splitlines()
    assert first == "To download: hf://someone/clip_sun397, of unknown size"
    assert second == "To download: hf://datasets/someone/sun397, of unknown size"
    assert error.endswith(".")
    assert store.studies.all() == []


def test_two_models_and_four_objectives(tiny_zoo: Path, tmp_path: Path, command: Command, store: Store):
    """Two metrics on one task, and a task without a model: a front, a rule over all four, an export."""
    text = f"""\
architecture: {tiny_zoo / "tiny-clip.json"}
pretrained: {tiny_zoo / "pretrained.safetensors"}
models:
  colours: {tiny_zoo / "Colours.safetensors"}
  stripes: {tiny_zoo / "Stripes.safetensors"}
tasks:
  - {{name: Colours, data: {tiny_zoo / "Colours.npz"}, model: colours, metrics: [accuracy, loss]}}
  - {{name: Stripes, data: {tiny_zoo / "Stripes.npz"}, model: stripes}}
  - {{name: Light, data: {tiny_zoo / "Light.npz"}}}
run:
  method: {{name: map, points: 12}}
  device: cpu
"""
    (tmp_path / "study.yaml").write_text(text)
    command("run", tmp_path / "study.yaml")
    [study] = store.studies.all()
    assert [objective.name for objective in study.config.objectives] == [
        "Colours accuracy",
        "Colours loss",
        "Stripes",
        "Light",
    ]
    rule = '"Colours accuracy" >= 20%, "Colours loss" <= 5, Stripes >= 20%, maximize Light'
    target = tmp_path / "merged.safetensors"
    command("pick", study.id, "--rule", rule)
    command("export", study.id, "--out", target)
    assert target.is_file()


def test_a_folder_with_neither_is_one_sentence(tmp_path: Path, command: Command):
    _, err = command("run", tmp_path, code=2)
    assert "doesn't say all that a study needs" in err
    _, err = command("run", tmp_path / "no.yaml", code=2)
    assert err.endswith("no.yaml can't be read: No such file or directory.\n")
