"""Runs of Pareto Merging are set up, started, watched, stopped and resumed on Evaluate."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mapmerge_core.merges._training_settings import Training, TrainingPoint
from mapmerge_core.studies.runs.learning import LOOKS
from mapmerge_core.tasks.metric import Outcome

from mapmerge_core.studies.config.manifest import demo_training, spec_from_manifest
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import StudySpec
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.store.store import Store
from tests.pages.conftest import TIMEOUT, texts, wait_for_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.store.rows import RunRow, StudyRow

TASKS = ("Colours", "Stripes")


@pytest.fixture
def study(home: Path, tiny_zoo: Path) -> StudyRow:
    """A study of two tasks without runs."""
    return make_study(home, tiny_zoo, TASKS)


def make_study(home: Path, zoo: Path, tasks: Sequence[str]) -> StudyRow:
    store = Store(home)
    study = store.create_study("Learned", spec_from_manifest(zoo, list(tasks)))
    store.close()
    return study


def open_form(visit: Callable[..., AppTest]) -> AppTest:
    """Opens Evaluate and chooses Pareto Merging, without any estimate."""
    app = visit("evaluate", study=1)
    wait_for_jobs(app, 1)
    app.selectbox(key="method_1_0").set_value("pareto_merging").run()
    assert not app.exception, app.exception
    return wait_for_jobs(app, 1)


def fill(app: AppTest, **values: object) -> AppTest:
    """Fills number inputs of the study's first run."""
    for name, value in values.items():
        app.number_input(key=f"{name}_1_0").set_value(value)
    app.run()
    assert not app.exception, app.exception
    return app


def start(app: AppTest) -> AppTest:
    app.button(key="start").click().run()
    assert not app.exception, app.exception
    return app


def latest(home: Path) -> RunRow:
    store = Store(home)
    run = store.runs(1)[-1]
    store.close()
    return run


def traces(app: AppTest) -> list[list[dict[str, Any]]]:
    """The traces of each of the page's charts."""
    return [json.loads(chart.proto.spec)["data"] for chart in app.get("plotly_chart")]


def values(trace: dict[str, Any], name: str) -> np.ndarray:
    """A trace's numbers, which Plotly writes as plain ones or packed."""
    found = trace[name]
    if isinstance(found, dict):
        return np.frombuffer(base64.b64decode(found["bdata"]), np.dtype(found["dtype"])).astype(float)
    return np.array(found, dtype=float)


def errors(app: AppTest) -> list[str]:
    return [error.value.replace("\\", "") for error in app.error]


@pytest.mark.usefixtures("study")
def test_the_form_offers_what_suits_the_demo(visit: Callable[..., AppTest]) -> None:
    app = open_form(visit)
    usual = demo_training(2)
    assert app.number_input(key="points_pareto_merging_1_0").value == 11
    for name in ("steps", "rank", "batch_size", "lr", "mu", "beta_cos", "beta_norm", "balance", "start"):
        assert app.number_input(key=f"{name}_1_0").value == getattr(usual, name), name
    assert app.number_input(key="concentration_1_0").value == usual.concentration
    assert app.text_input(key="personalised_1_0").value == ""
    keys = {widget.key for kind in ("number_input", "toggle", "selectbox") for widget in app.get(kind)}
    assert not {f"{name}_1_0" for name in ("low", "high", "anchors", "design", "link", "loss")} & keys
    # Four looks at five preferences, the grid of eleven, the pre-trained and both single-task models.
    evaluations = (4 * 5 + 11 + 3) * 2
    assert f"**2,000 training steps** and at most **{evaluations} evaluations**" in texts(app)
    assert "About **" in texts(app)
    assert not app.button(key="start").disabled


def test_a_study_of_other_models_is_learned_as_in_the_paper(
    study: StudyRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.parts.evaluate import learning_form

    assert learning_form.usual(study) == demo_training(2)
    monkeypatch.setenv("MAPMERGE_ZOO", str(tmp_path))
    assert learning_form.usual(study) == Training()


@pytest.mark.usefixtures("study")
def test_a_run_is_trained_and_measured_and_shown(visit: Callable[..., AppTest], home: Path) -> None:
    app = fill(
        open_form(visit), points_pareto_merging=4, steps=10, rank=2, batch_size=8, lr=0.05, beta_norm=0.0
    )
    app.selectbox(key="scalarisation_1_0").set_value("linear").run()
    assert "mu_1_0" not in {widget.key for widget in app.number_input}
    app.text_input(key="personalised_1_0").set_value("*in_proj_weight, *.out_proj.weight").run()
    app = wait_for_jobs(start(app), 1)
    run = latest(home)
    assert (run.method, run.status, run.settings.points) == ("pareto_merging", "done", 4)
    assert run.settings.training == demo_training(
        2,
        steps=10,
        rank=2,
        batch_size=8,
        lr=0.05,
        beta_norm=0.0,
        scalarisation="linear",
        personalised=("*in_proj_weight", "*.out_proj.weight"),
    )
    training, forming = traces(app)
    store = Store(home)
    points = store.training_points(run.id)
    assert [trace["name"] for trace in training] == [*TASKS, "Objective"]
    np.testing.assert_allclose(values(training[0], "y"), [point.f[0] for point in points])
    assert [trace["name"] for trace in forming] == [
        "2 steps",
        "4 steps",
        "6 steps",
        "8 steps",
        "10 steps, finished",
    ]
    gammas, measured = store.learned_table(run.id)
    order = np.argsort(gammas[:, 0])
    np.testing.assert_allclose(values(forming[-1], "x"), 100 * measured[order, 0])
    said = texts(app)
    assert "4 preferences" in said
    assert "Extra parameters" in said
    assert "Points measured" not in said, "no search has measured any"

    app.button(key="see_tradeoffs").click().run()
    assert not app.exception, app.exception
    assert app.title[0].value == "Trade-offs"
    assert app.query_params["learned"] == str(run.id)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("lr", 0.0, "lr must be above 0"),
        ("rank", 0, "at least 1 rank"),
        ("beta_norm", -1.0, "beta_norm must be 0 or more"),
        ("balance", -0.5, "balance must be 0 or more"),
        ("mu", -1.0, "mu must be above 0"),
    ],
)
@pytest.mark.usefixtures("study")
def test_bad_settings_are_one_sentence_and_nothing_starts(
    visit: Callable[..., AppTest], name: str, value: float, sentence: str
) -> None:
    app = fill(open_form(visit), **{name: value})
    (error,) = errors(app)
    assert sentence in error
    assert app.button(key="start").disabled
    usual = getattr(demo_training(2), name)
    app = fill(app, **{name: usual})
    assert not errors(app)
    assert not app.button(key="start").disabled


@pytest.mark.usefixtures("study")
def test_tensors_that_are_not_there_and_empty_names_are_said(
    visit: Callable[..., AppTest], home: Path
) -> None:
    app = open_form(visit)
    app.text_input(key="personalised_1_0").set_value("a,,b").run()
    assert "Name the tensors to personalise" in errors(app)[0]
    assert app.button(key="start").disabled
    app.text_input(key="personalised_1_0").set_value("nothing.like.it").run()
    app = wait_for_jobs(start(fill(app, steps=3)), 1)
    assert latest(home).status == "failed"
    assert any("'nothing.like.it' names no weight matrix" in error for error in errors(app))
    assert app.button(key="see_tradeoffs").disabled


def test_models_without_logits_can_only_be_learned_data_free(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    spec = spec_from_manifest(tiny_zoo, list(TASKS))
    tasks = tuple(replace(task, metric=None) for task in spec.tasks)
    store = Store(home)
    store.create_study("Language", StudySpec(family="language", pretrained=spec.pretrained, tasks=tasks))
    store.close()
    app = open_form(visit)
    assert any("learns from the logits of image classifiers" in error for error in errors(app))
    assert app.button(key="start").disabled
    app.selectbox(key="data_free_1_0").set_value(True).run()
    assert not any("logits" in error for error in errors(app))
    assert not app.button(key="start").disabled


@pytest.mark.usefixtures("study")
def test_a_data_free_run_needs_no_images(visit: Callable[..., AppTest], home: Path) -> None:
    app = open_form(visit)
    app.selectbox(key="data_free_1_0").set_value(True).run()
    assert not {"batch_size_1_0", "balance_1_0"} & {widget.key for widget in app.number_input}
    app = wait_for_jobs(start(fill(app, points_pareto_merging=2, steps=4, rank=2)), 1)
    run = latest(home)
    assert run.status == "done"
    assert run.settings.training.data_free
    (chart, _) = app.get("plotly_chart")
    layout = json.loads(chart.proto.spec)["layout"]
    assert layout["yaxis"]["title"]["text"] == "Distance, share of that at the start"


@pytest.mark.usefixtures("study")
def test_a_run_is_stopped_and_goes_on_from_where_it_was(visit: Callable[..., AppTest], home: Path) -> None:
    app = fill(open_form(visit), points_pareto_merging=3, steps=100_000, rank=2, batch_size=4)
    app = start(app)
    from pages.parts.shared import state

    deadline = time.monotonic() + TIMEOUT
    while state.live_job(1, "run").done < 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    app.run()
    bar = app.get("progress")[0]
    assert "Train 100,000 steps, then measure 3 preferences: " in bar.text.replace("\\", "")
    assert f" of {100_000 + (4 * 5 + 3 + 3) * 2:,} steps and evaluations" in bar.text.replace("\\", "")
    assert all(widget.disabled for widget in app.number_input)
    app.button(key="stop").click().run()
    app = wait_for_jobs(app, 1)
    run = latest(home)
    assert run.status == "stopped"
    store = Store(home)
    taken = store.training_points(run.id)[-1].step
    assert taken >= 20
    (chart,) = traces(app)
    assert values(chart[0], "x")[-1] == taken
    assert "Stopped run: Pareto Merging, seed 0. Train 100,000 steps" in texts(app)
    assert app.button(key="see_tradeoffs").disabled

    app.button(key="resume").click().run()
    while state.live_job(1, "run").done < taken + 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    app.run()
    app.button(key="stop").click().run()
    wait_for_jobs(app, 1)
    assert latest(home).id == run.id
    assert store.training_points(run.id)[-1].step > taken
    store.close()


def finished(home: Path, training: Training, points: int = 3) -> RunRow:
    """The study's run of these settings, done."""
    store = Store(home)
    run = store.create_run(1, RunSettings(points=points, training=training, device="cpu"), "pareto_merging")
    with store.claim_run(run.id):
        execute_run(store, run.id, EvaluatorCache().get)
    run = store.run(run.id)
    store.close()
    return run


def test_three_tasks_have_panels_and_the_next_form_has_the_last_settings(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    make_study(home, tiny_zoo, (*TASKS, "Light"))
    run = finished(home, Training(steps=LOOKS, rank=2, batch_size=8, lr=0.02, beta_norm=0.25), points=6)
    app = visit("evaluate", study=1)
    assert app.number_input(key="steps_1_1").value == LOOKS
    assert app.number_input(key="beta_norm_1_1").value == 0.25
    assert app.number_input(key="points_pareto_merging_1_1").value == 6
    assert app.number_input(key="seed_1_1").value == 1
    _, forming, grid = traces(app)
    assert [trace["name"] for trace in forming] == 3 * ["Equal preference", "Preference for this task"]
    assert [int(step) for step in values(forming[0], "x")] == [1, 2, 3, 4, 5]
    _, measured = Store(home).learned_table(run.id)
    assert len(measured) == 6
    np.testing.assert_allclose(sorted(values(grid[0], "x")), sorted(100 * measured[:, 0]))


@pytest.mark.usefixtures("study")
def test_a_run_in_another_process_says_its_steps(visit: Callable[..., AppTest], home: Path) -> None:
    store = Store(home)
    settings = RunSettings(points=3, training=Training(steps=50, rank=2))
    run = store.create_run(1, settings, "pareto_merging")
    with store.claim_run(run.id):
        store.set_status(run.id, "running")
        app = visit("evaluate", study=1)
        assert "the first steps will be here soon" in texts(app)
        store.add_training_points(run.id, [TrainingPoint(20, 0.4, np.array([0.7, 0.3]), 1.0)])
        app.run()
        assert not app.exception, app.exception
        said = "train 50 steps, then measure 3 preferences; 20 steps and 0 evaluations so far"
        assert said in texts(app)
        assert values(traces(app)[0][1], "y") == [0.3]
        half = Outcome(0.5, 60, b"", 0.1)
        store.add_learned_evaluation(run.id, np.array([0.5, 0.5]), "Colours", "val", half, 20)
        app.run()
        assert len(traces(app)) == 1, "a preference is shown once it is measured on all tasks"
        store.add_learned_evaluation(run.id, np.array([0.5, 0.5]), "Stripes", "val", half, 20)
        app.run()
        (_, forming) = traces(app)
        assert [trace["name"] for trace in forming] == ["20 steps"]
        assert "stop" not in {button.key for button in app.button}
    store.close()


@pytest.mark.usefixtures("study")
def test_a_norm_that_weighs_too_much_is_said(visit: Callable[..., AppTest], home: Path) -> None:
    finished(home, Training(steps=2, rank=2, batch_size=8, lr=1e-9))
    app = visit("evaluate", study=1)
    (warning,) = app.warning
    assert warning.value == "All preferences gave the same model: lower the weight of the norm."
    assert not app.button(key="see_tradeoffs").disabled


def test_searches_beside_it_are_still_shown(
    visit: Callable[..., AppTest], home: Path, measured_study: StudyRow
) -> None:
    finished(home, Training(steps=2, rank=2, batch_size=8))
    app = visit("evaluate", study=measured_study.id)
    assert "Points measured" in texts(app)
    assert "What training lowers" in texts(app)
