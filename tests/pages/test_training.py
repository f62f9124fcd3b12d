"""Merges that are trained are set up, started, watched, stopped and resumed on Evaluate."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mapmerge_core.merges import _pareto_training
from mapmerge_core.merges.base import TrainingPoint
from mapmerge_core.studies.config import RunConfig
from mapmerge_core.studies.config.demo import config_from_manifest, demo_merge_settings
from mapmerge_core.studies.store import Run, Store, Study
from tests.pages.conftest import TIMEOUT, execute, texts, wait_for_jobs

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest


TASKS = ("Colours", "Stripes")


@pytest.fixture
def study(home: Path, tiny_zoo: Path) -> Study:
    """A study of two tasks without runs."""
    store = Store(home)
    study = store.studies.create("Learned", config_from_manifest(tiny_zoo, TASKS))
    store.close()
    return study


def open_form(visit: Callable[..., AppTest], merge: str = "pareto_merging") -> AppTest:
    """Opens Evaluate and chooses a merge, without any estimate."""
    app = visit("evaluate", study=1)
    wait_for_jobs(app, 1)
    app.selectbox(key="merge_1_0").set_value(merge).run()
    assert not app.exception, app.exception
    return wait_for_jobs(app, 1)


def fill(app: AppTest, points: int | None = None, **values: object) -> AppTest:
    """Fills number inputs of the study's first run."""
    for name, value in values.items():
        app.number_input(key=f"pareto_merging_{name}_1_0").set_value(value)
    if points is not None:
        app.number_input(key="map_points_1_0").set_value(points)
    app.run()
    assert not app.exception, app.exception
    return app


def start(app: AppTest) -> AppTest:
    app.button(key="start").click().run()
    assert not app.exception, app.exception
    return app


def latest(home: Path) -> Run:
    store = Store(home)
    run = store.runs.all(1)[-1]
    store.close()
    return run


def traces(app: AppTest) -> list[list[dict[str, Any]]]:
    """The traces of each of the page's charts."""
    return [json.loads(chart.proto.spec)["data"] for chart in app.get("plotly_chart")]


def values(trace: dict[str, Any], name: str) -> np.ndarray:
    """A trace's numbers, which Plotly writes as plain ones or packed."""
    packed = trace[name]
    if isinstance(packed, dict):
        return np.frombuffer(base64.b64decode(packed["bdata"]), np.dtype(packed["dtype"])).astype(float)
    return np.array(packed, dtype=float)


def errors(app: AppTest) -> list[str]:
    return [error.value.replace("\\", "") for error in app.error]


@pytest.mark.usefixtures("study")
def test_the_form_offers_what_suits_the_demo(visit: Callable[..., AppTest]) -> None:
    app = open_form(visit)
    usual = demo_merge_settings("pareto_merging", 2)
    for name, value in usual.items():
        assert app.number_input(key=f"pareto_merging_{name}_1_0").value == value, name
    assert "low_1_0" not in {field.key for field in app.number_input}, "preferences have no box"
    assert "evaluations** of one model on one objective" in texts(app)
    assert not app.button(key="start").disabled


@pytest.mark.usefixtures("study")
def test_a_study_of_other_models_is_learned_as_in_the_paper(
    visit: Callable[..., AppTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("MAPMERGE_ZOO", str(tmp_path / "empty"))
    app = open_form(visit)
    usual = RunConfig(merge="pareto_merging").merge_settings
    for name in demo_merge_settings("pareto_merging", 2):
        assert app.number_input(key=f"pareto_merging_{name}_1_0").value == usual[name], name


@pytest.mark.usefixtures("study")
def test_a_run_is_trained_and_measured_and_shown(visit: Callable[..., AppTest], home: Path) -> None:
    app = fill(open_form(visit), points=5, steps=10, rank=2, batch_size=8, lr=0.05, beta_norm=0.0)
    app.selectbox(key="pareto_merging_scalarisation_1_0").set_value("linear").run()
    app = wait_for_jobs(start(app), 1)
    run = latest(home)
    assert (run.config.merge, run.status, run.config.points) == ("pareto_merging", "done", 5)
    wanted = {"steps": 10, "rank": 2, "batch_size": 8, "lr": 0.05, "beta_norm": 0.0, "scalarisation": "linear"}
    assert wanted.items() <= run.config.merge_settings.items()
    training = traces(app)[0]
    points = Store(home).training.all(run.merge_id)
    assert [trace["name"] for trace in training] == [*TASKS, "Minimised"]
    np.testing.assert_allclose(values(training[0], "y"), [point.f[0] for point in points])
    shown = texts(app)
    assert "Training took" in shown
    assert "Quality of the fit" in shown
    assert not app.error
    app.button(key="see_tradeoffs").click().run()
    assert app.title[0].value == "Trade-offs"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [("lr", 0.0, "lr = 0.0: give a number above 0"), ("mu", -1.0, "mu = -1.0: give a number above 0")],
)
@pytest.mark.usefixtures("study")
def test_bad_settings_are_one_sentence_and_nothing_starts(
    visit: Callable[..., AppTest], name: str, value: float, sentence: str
) -> None:
    app = fill(open_form(visit), **{name: value})
    (error,) = errors(app)
    assert sentence in error
    assert app.button(key="start").disabled
    usual = RunConfig(merge="pareto_merging").merge_settings[name]
    app = fill(app, **{name: usual})
    assert not errors(app)
    assert not app.button(key="start").disabled


@pytest.mark.usefixtures("study")
def test_tensors_that_are_not_there_are_said(visit: Callable[..., AppTest], home: Path) -> None:
    app = open_form(visit)
    key = "pareto_merging_personalised_1_0"
    # AppTest knows no values besides the options.
    app.session_state[key] = ["nothing.like.it"]
    app = wait_for_jobs(start(fill(app, steps=3)), 1)
    assert latest(home).status == "failed"
    assert any("'nothing.like.it' names no weight matrix" in error for error in errors(app))
    assert app.button(key="see_tradeoffs").disabled


def test_models_without_logits_can_only_be_learned_data_free(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    config = config_from_manifest(tiny_zoo, TASKS)
    tasks = tuple(replace(task, metrics=()) for task in config.tasks)
    store = Store(home)
    store.studies.create("Language", replace(config, family="language", architecture="", tasks=tasks))
    store.close()
    app = open_form(visit)
    assert ["logits" in info.value for info in app.info] == [True]
    assert app.button(key="start").disabled
    app.toggle(key="pareto_merging_data_free_1_0").set_value(True).run()
    assert not app.info
    assert not app.button(key="start").disabled


@pytest.mark.usefixtures("study")
def test_a_data_free_run_needs_no_images(visit: Callable[..., AppTest], home: Path) -> None:
    app = open_form(visit)
    app.toggle(key="pareto_merging_data_free_1_0").set_value(True).run()
    wait_for_jobs(start(fill(app, points=3, steps=4, rank=2)), 1)
    run = latest(home)
    assert run.status == "done"
    assert run.config.merge_settings["data_free"]


@pytest.mark.usefixtures("study")
def test_a_run_is_stopped_and_goes_on_from_where_it_was(
    visit: Callable[..., AppTest], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pareto_training, "SAVED_EVERY", 0.5)
    app = start(fill(open_form(visit), points=3, steps=100_000, rank=2, batch_size=4))
    from pages.parts.shared import state

    deadline = time.monotonic() + TIMEOUT
    merge = latest(home).merge_id
    store = Store(home)
    while not store.training.all(merge):
        assert time.monotonic() < deadline, state.jobs().for_study(1)
        time.sleep(0.05)
    app.run()
    bar = app.get("progress")[0]
    assert "Pareto Merging" in bar.text.replace("\\", "")
    assert "steps and evaluations" in bar.text
    assert all(widget.disabled for widget in app.number_input)
    app.button(key="stop").click().run()
    app = wait_for_jobs(app, 1)
    assert latest(home).status == "stopped"
    taken = store.training.all(merge)[-1].step
    (chart,) = traces(app)[:1]
    assert values(chart[0], "x")[-1] == taken
    assert "Stopped run: MAP on Pareto Merging" in texts(app).replace("\\", "")
    assert app.button(key="see_tradeoffs").disabled

    app.button(key="resume").click().run()
    while store.training.all(merge)[-1].step <= taken:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    app.run()
    app.button(key="stop").click().run()
    wait_for_jobs(app, 1)
    assert len(store.runs.all(1)) == 1
    store.close()


@pytest.mark.usefixtures("study")
def test_the_next_form_has_the_last_settings(visit: Callable[..., AppTest], home: Path) -> None:
    store = Store(home)
    how = {"steps": 5, "rank": 2, "batch_size": 8, "beta_norm": 0.25}
    settings = {"points": 4, "seed": 3}
    execute(store, 1, RunConfig(merge="pareto_merging", merge_settings=how, method_settings=settings))
    store.close()
    app = visit("evaluate", study=1)
    assert app.selectbox(key="merge_1_1").value == "pareto_merging"
    assert app.number_input(key="pareto_merging_steps_1_1").value == 5
    assert app.number_input(key="pareto_merging_beta_norm_1_1").value == 0.25
    assert app.number_input(key="map_points_1_1").value == 4
    assert app.number_input(key="seed_1_1").value == 4


@pytest.mark.usefixtures("study")
def test_a_run_in_another_process_says_its_steps(visit: Callable[..., AppTest], home: Path) -> None:
    store = Store(home)
    how = {"steps": 50, "rank": 2}
    run = store.runs.create(1, RunConfig(merge="pareto_merging", merge_settings=how))
    claim = store.runs.claim(run.id)
    store.runs.set_status(run.id, "running")
    app = visit("evaluate", study=1)
    assert "the first point will be here soon" in texts(app)
    store.training.add(run.merge_id, [TrainingPoint(20, 0.4, np.array([0.7, 0.3]), 1.0)])
    app.run()
    assert not app.exception, app.exception
    assert "20 steps and 0 evaluations so far" in texts(app)
    assert values(traces(app)[0][1], "y") == [0.3]
    assert "stop" not in {button.key for button in app.button}
    claim.release()
    store.close()


@pytest.mark.usefixtures("study")
def test_a_merge_that_is_a_single_model_is_made_and_measured(visit: Callable[..., AppTest], home: Path) -> None:
    app = open_form(visit, "adamerging")
    assert "One model: nothing to search." in texts(app)
    assert "method_1_0" not in {choice.key for choice in app.selectbox}
    steps = next(field for field in app.number_input if field.key == "adamerging_steps_1_0")
    steps.set_value(3).run()
    start(app)
    wait_for_jobs(app, 1)
    app = visit("evaluate", study=1)
    store = Store(home)
    [_, merge] = store.merges.all(1)
    assert merge.name == "adamerging"
    assert np.isfinite(store.evaluations.table(merge.id).Y).all()
    assert "Points measured" in texts(app)
    assert not app.error
    store.close()
