"""Each page by itself: what it says when there is nothing, and when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.registries import METRICS
from mapmerge_core.studies.config import Compute, RunConfig
from mapmerge_core.studies.config.demo import config_from_manifest, demo_study, demo_tasks, kept_skills
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.store import Store, Study
from pages.parts.shared import state
from pages.parts.studies.demos import CARDS
from tests.pages.conftest import ROOT, TIMEOUT, texts, wait_for_jobs

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest


@pytest.mark.parametrize("page", ["evaluate", "trade_offs", "export"])
def test_without_studies_a_page_says_where_to_go(visit: Callable[..., AppTest], page: str) -> None:
    app = visit(page)
    assert "No studies yet" in texts(app)
    assert [link.proto.label for link in app.get("page_link")] == ["Go to Studies"]


def test_home_without_studies_invites(visit: Callable[..., AppTest]) -> None:
    app = visit("studies")
    assert "Nothing here yet" in texts(app)
    assert "Colours · Stripes" in texts(app), "a demo's card names its tasks"


def test_home_without_demos_says_why(
    visit: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MAPMERGE_ZOO", str(tmp_path))
    assert "manifest.json" in visit("studies").info[0].value


@pytest.mark.parametrize(
    ("page", "title", "link"),
    [("trade_offs", "Nothing measured yet", "Go to Evaluate"), ("export", "No pick yet", "Go to Trade-offs")],
)
def test_a_fresh_study_says_what_comes_first(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path, page: str, title: str, link: str
) -> None:
    study = Store(home).studies.create("Fresh", config_from_manifest(tiny_zoo))
    app = visit(page, study=study.id)
    assert title in texts(app)
    assert [found.proto.label for found in app.get("page_link")] == [link]


def test_an_unknown_study_in_the_address_is_said_and_another_shown(
    visit: Callable[..., AppTest], measured_study: Study
) -> None:
    app = visit("evaluate", study=99)
    assert "There is no study 99" in app.warning[0].value
    assert app.selectbox(key="study").value == measured_study.id


def test_a_study_is_deleted_only_after_asking(visit: Callable[..., AppTest], measured_study: Study, home: Path) -> None:
    app = visit("studies")
    app.button(key=f"delete_{measured_study.id}").click().run()
    assert len(Store(home).studies.all()) == 1
    app.button(key="delete_confirm").click().run()
    assert Store(home).studies.all() == []


def test_markdown_in_a_study_name_is_shown_as_typed(visit: Callable[..., AppTest], home: Path, tiny_zoo: Path) -> None:
    Store(home).studies.create("**bold** <b>", config_from_manifest(tiny_zoo))
    assert r"\*\*bold\*\* \<b\>" in texts(visit("studies"))


def check(app: AppTest) -> AppTest:
    """Presses Check and waits for its answer."""
    import time

    app.button(key="check").click().run()
    deadline = time.monotonic() + TIMEOUT
    while "Reading and comparing" in texts(app):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        app.run()
    assert not app.exception, app.exception
    return app


def test_models_that_fit_become_a_study(visit: Callable[..., AppTest], home: Path) -> None:
    app = check(visit("models"))
    assert "All 3 models fit" in app.success[0].value
    models, tasks = (found.value for found in app.dataframe[:2])
    assert list(models["Model"]) == ["Colours", "Stripes", "Light"]
    assert (models["L1"] > 0).all()
    assert list(tasks["Fine-tuned model"]) == ["Colours", "Stripes", "Light"]
    app.text_input(key="study_name").set_value("Mine").run()
    app.button(key="create_study").click().run()
    assert app.title[0].value == "Evaluate"
    assert Store(home).studies.all()[0].name == "Mine"


def test_a_model_of_another_origin_is_pointed_out(
    visit: Callable[..., AppTest], tiny_zoo: Path, tmp_path: Path
) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_zoo, tmp_path / "mixed")
    tensors, rng = load_file(folder / "Light.safetensors"), np.random.default_rng(0)
    for name, tensor in tensors.items():
        tensors[name] = rng.permuted(tensor.ravel()).reshape(tensor.shape)
    save_file(tensors, folder / "Light.safetensors")
    app = visit("models")
    app.text_input(key="folder").set_value(str(folder)).run()
    check(app)
    (warning,) = app.warning
    assert "'Light' was probably not" in warning.value


def test_a_checkpoint_that_does_not_fit_is_one_sentence(
    visit: Callable[..., AppTest], tiny_zoo: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(tiny_zoo, tmp_path / "broken")
    tensors = load_file(folder / "Light.safetensors")
    tensors.pop("visual.conv1.weight")
    save_file(tensors, folder / "Light.safetensors")
    app = visit("models")
    app.text_input(key="folder").set_value(str(folder)).run()
    check(app)
    assert len(app.error) == 1
    message = app.error[0].value.replace("\\", "")
    assert "Light" in message
    assert "visual.conv1.weight" in message


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _: None, "There is no folder"),
        (lambda folder: folder.mkdir(), "holds 0 checkpoints"),
        (lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text("{")), "can't be read as JSON"),
        (
            lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text(json.dumps({"name": "x"}))),
            "has no 'pretrained'",
        ),
    ],
)
def test_a_folder_that_is_no_zoo_is_one_sentence(
    visit: Callable[..., AppTest], tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    folder = tmp_path / "folder"
    make(folder)
    app = visit("models")
    app.text_input(key="folder").set_value(str(folder)).run()
    assert len(app.error) == 1
    assert sentence in app.error[0].value.replace("\\", "")


@pytest.mark.parametrize("path", ["~nosuchuser/x", "/" + "x" * 300, "models\0", "/\0"])
def test_a_path_that_no_folder_can_have_is_one_sentence(visit: Callable[..., AppTest], path: str) -> None:
    app = visit("models")
    app.text_input(key="folder").set_value(path).run()
    assert not app.exception
    assert len(app.error) == 1
    assert "There is no folder" in app.error[0].value


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_home_with_a_damaged_demo_still_lists_studies(
    visit: Callable[..., AppTest],
    measured_study: Study,
    tiny_zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    zoo = shutil.copytree(tiny_zoo, tmp_path / "damaged")
    data = next(zoo.rglob("Colours*.npz"))
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:100])
    monkeypatch.setenv("MAPMERGE_ZOO", str(zoo))
    app = visit("studies")
    assert "The demos are not available" in app.info[0].value
    assert app.button(key=f"open_{measured_study.id}")


def test_the_largest_settings_leave_the_form_whole(
    visit: Callable[..., AppTest], home: Path, measured_study: Study
) -> None:
    run = Store(home).runs.create(measured_study.id, RunConfig(method_settings={"points": 100_000, "seed": 2**31 - 1}))
    Store(home).runs.set_status(run.id, "stopped")
    app = visit("evaluate", study=measured_study.id)
    assert app.number_input(key=f"map_points_{measured_study.id}_2").value == 100_000
    assert app.number_input(key=f"seed_{measured_study.id}_2").value == 2**31 - 1


def test_a_quick_run_is_chosen_and_later_refined_with_its_seed(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    study = Store(home).studies.create("Fresh", config_from_manifest(tiny_zoo, ["Colours", "Stripes"]))
    app = visit("evaluate", study=study.id)
    images = app.segmented_control(key=f"images_{study.id}_0")
    assert images.options == ["All", "Quick: 500 a task"]
    assert images.value == "All"
    images.set_value("Quick: 500 a task").run()
    app.button(key="start").click().run()
    [run] = Store(home).runs.all(study.id)
    assert run.config.images == 500
    wait_for_jobs(app, study.id)

    app = visit("evaluate", study=study.id)
    assert app.number_input(key=f"seed_{study.id}_1").value == 1, "other points, unless told otherwise"
    app.segmented_control(key=f"images_{study.id}_1").set_value("All").run()
    assert app.number_input(key=f"seed_refined_{study.id}_1").value == 0, "the same points, on all images"


def test_half_the_memory_is_chosen_and_what_is_measured_later_keeps_to_it(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Store(home).studies.create("Fresh", config_from_manifest(tiny_zoo, ["Colours", "Stripes"]))
    asked = []
    get = EvaluatorCache.get
    monkeypatch.setattr(EvaluatorCache, "get", lambda cache, *args: asked.append(args[1:]) or get(cache, *args))
    app = visit("evaluate", study=study.id)
    held = app.selectbox(key=f"vectors_{study.id}_0")
    assert held.value == "float32"
    held.set_value("bfloat16").run()
    app.button(key="start").click().run()
    wait_for_jobs(app, study.id)
    [run] = Store(home).runs.all(study.id)
    half = Compute(vectors="bfloat16")
    assert (run.status, run.config.compute) == ("done", half)
    job = state.jobs().measure(run.merge_id, np.array([[0.4, 0.6]]), "test", "Measure the pick")
    assert state.jobs().wait(job, 600).status == "done"
    assert asked[-2:] == [(half,)] * 2

    app = visit("evaluate", study=study.id)
    app.selectbox(key=f"merge_{study.id}_1").set_value("ties").run()
    assert ["takes float32" in info.value for info in app.info] == [True]
    assert app.button(key="start").disabled
    app.selectbox(key=f"vectors_{study.id}_1").set_value("float32").run()
    assert not app.button(key="start").disabled


def test_metrics_that_parts_cannot_tell_leave_no_choice_of_images(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    config = config_from_manifest(tiny_zoo, ["Colours", "Stripes"])
    tasks = tuple(replace(task, metrics=(METRICS["F1"],)) for task in config.tasks)
    study = Store(home).studies.create("F1", replace(config, tasks=tasks))
    app = visit("evaluate", study=study.id)
    assert not [control for control in app.segmented_control if str(control.key).startswith("images")]
    assert app.button(key="start")


def test_a_run_whose_process_died_can_be_resumed(
    visit: Callable[..., AppTest], home: Path, measured_study: Study
) -> None:
    visit("studies")
    # What a killed process leaves: a running run that nobody holds.
    run = Store(home).runs.create(measured_study.id, RunConfig(method_settings={"points": 20}))
    Store(home).runs.set_status(run.id, "running")
    app = visit("evaluate", study=measured_study.id)
    assert app.button(key="resume")
    assert Store(home).runs.get(run.id).status == "interrupted"


def test_a_run_of_another_process_is_watched_and_not_doubled(
    visit: Callable[..., AppTest], home: Path, measured_study: Study
) -> None:
    store = Store(home)
    run = store.runs.create(measured_study.id, RunConfig(method_settings={"points": 20}))
    claim = store.runs.claim(run.id)
    try:
        store.runs.set_status(run.id, "running")
        app = visit("evaluate", study=measured_study.id)
        assert "Running in another process: MAP on Task arithmetic (points 20); 0 evaluations so far" in texts(app)
        assert {button.key for button in app.button}.isdisjoint({"start", "resume", "stop"})
        store.runs.set_status(run.id, "done")
    finally:
        claim.release()
    app.run()
    assert app.button(key="start")


def test_a_forgotten_job_is_no_error(visit: Callable[..., AppTest], measured_study: Study) -> None:
    from pages.parts.shared import state

    merge = state.store().merges.all(measured_study.id)[0]
    pick = state.store().picks.add(merge.id, np.array([0.5, 0.5]), {"kind": "point"})
    state._export_jobs()[pick.id] = 999
    app = visit("export", study=measured_study.id)
    assert not app.error
    assert app.button(key="export")


def test_a_forgotten_estimate_is_asked_for_again(visit: Callable[..., AppTest], measured_study: Study) -> None:
    app = visit("evaluate", study=measured_study.id)
    app.session_state[f"estimate_{measured_study.id}_{RunConfig().to_dict()}"] = 999
    app.run()
    assert not app.error
    assert app.button(key="estimate")


def test_a_data_folder_that_cannot_be_written_stops_the_server_with_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    ended = subprocess.run(
        [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless=true", "--server.port=0"],
        cwd=ROOT,
        env={**os.environ, "MAPMERGE_HOME": str(file / "home")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 1
    assert "MAPMERGE_HOME" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_demo_that_keeps_a_skill_measures_a_task_without_a_model(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = shutil.copytree(tiny_zoo, tmp_path / "keeps")
    manifest = json.loads((zoo / "manifest.json").read_text())
    manifest["tasks"][2].pop("checkpoint")
    (zoo / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("MAPMERGE_ZOO", str(zoo))
    app = visit("studies")
    assert "Colours · Stripes · Light" in texts(app)
    app.button(key="demo_kept").click().run()
    [study] = Store(home).studies.all()
    assert study.config.model_names == ("Colours", "Stripes")
    assert [objective.model for objective in study.config.objectives] == ["Colours", "Stripes", None]
    wait_for_jobs(app, study.id)
    app = visit("evaluate", study=study.id)
    assert not app.error
    assert "Quality of the fit" in texts(app)


def test_cards_say_how_many_points_a_demo_evaluates() -> None:
    for card in CARDS:
        names = demo_tasks(card.n_models) + (kept_skills() if card.keeps_skills else ())
        assert demo_study(names).run.points == card.points, card.title
