"""Pages on a study whose metrics are losses: their own numbers, and less is better everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.studies.config import RunConfig
from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.store import Store, Study
from mapmerge_core.tasks.metrics import ACCURACY, LOSS, Metric
from mapmerge_core.tasks.outcome import Outcome

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest


TASKS = ("Colours", "Stripes")
BEST = np.array([[0.8, 0.2], [0.3, 0.9]])


def loss(c: np.ndarray, k: int) -> float:
    """From 2.713 up: a bowl around a place of the task's own."""
    return float(2.713 + k + ((c - BEST[k]) ** 2).sum())


def outcome_of(value: float) -> Outcome:
    return Outcome(value, 10, np.full(10, value, "<f4").tobytes(), 0.1)


def make_study(home: Path, tiny_zoo: Path, metrics: tuple[Metric, Metric]) -> Study:
    """A study with a run whose measurements are made by hand."""
    store = Store(home)
    config = config_from_manifest(tiny_zoo, TASKS)
    tasks = tuple(replace(task, metrics=(metric,)) for task, metric in zip(config.tasks, metrics, strict=True))
    study = store.studies.create("Losses", replace(config, tasks=tasks))
    run = store.runs.create(study.id, RunConfig(method_settings={"points": 15}))
    corners = np.vstack([np.zeros(2), np.eye(2)])
    for x in np.vstack([corners, np.random.default_rng(0).uniform(size=(12, 2))]):
        for k, objective in enumerate(study.config.objectives):
            value = loss(x, k) if objective.metric == LOSS else 1 / loss(x, k)
            for split in ("val", "test"):
                store.evaluations.add(run.merge_id, x, objective.key, split, outcome_of(value), run_id=run.id)
    store.runs.set_status(run.id, "done")
    row = store.studies.get(study.id)
    store.close()
    return row


@pytest.fixture
def study(home: Path, tiny_zoo: Path) -> Study:
    return make_study(home, tiny_zoo, (LOSS, LOSS))


def figures(app: AppTest) -> list[dict]:
    """The page's plotly figures."""
    return [json.loads(found.proto.spec) for found in app.get("plotly_chart")]


def axes(app: AppTest) -> list[str]:
    """The titles of all axes."""
    return [
        axis.get("title", {}).get("text", "")
        for figure in figures(app)
        for name, axis in figure["layout"].items()
        if name.startswith(("xaxis", "yaxis")) and isinstance(axis, dict)
    ]


def rule(app: AppTest, study_id: int, text: str) -> AppTest:
    return app.text_input(key=f"rule_text_{study_id}").input(text).run()


def test_no_page_shows_a_loss_in_percent(visit: Callable[..., AppTest], study: Study) -> None:
    for page in ("evaluate", "trade_offs", "compare"):
        app = visit(page, study=study.id)
        assert not app.error, page
        assert figures(app), page
        titles = [title for title in axes(app) if "oss" in title]
        assert titles, page
        assert not [title for title in titles if "%" in title], page


def test_the_card_of_the_pick_shows_losses_as_they_are(visit: Callable[..., AppTest], study: Study) -> None:
    app = visit("trade_offs", study=study.id)
    app.slider(key=f"pref_{study.id}_Colours").set_value(100).run()
    app.slider(key=f"pref_{study.id}_Stripes").set_value(0).run()
    (tiles,) = [found.value for found in app.get("html") if 'class="tiles pick"' in found.value]
    assert "<h4>Colours</h4><b>2.7" in tiles, "the preference leads to the bottom of the bowl"
    assert "27" not in tiles
    (bars,) = [figure for figure in figures(app) if figure["data"][0]["type"] == "bar"]
    pick = next(trace for trace in bars["data"] if trace["name"] == "Pick, predicted")
    assert pick["customdata"][0].startswith("2.7")


def test_the_rule_editor_asks_for_at_most_and_minimizes(visit: Callable[..., AppTest], study: Study) -> None:
    app = visit("trade_offs", study=study.id)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    assert app.text_input(key=f"rule_text_{study.id}").placeholder.startswith("all <= ")
    objectives = app.selectbox(key=f"rule_objective_{study.id}").options
    assert objectives == ["minimize Colours", "minimize Stripes", "minimize mean", "minimize worst"]
    assert app.selectbox(key=f"rule_objective_{study.id}").value == "minimize worst"
    for number in range(3):
        app.button(key=f"rule_example_{number}").click().run()
        assert not app.error, number
        assert app.success or app.warning, number
    rule(app, study.id, "Stripes <= 3.9, minimize Colours")
    assert len(app.success) == 1
    rows, objective = app.session_state[f"rule_rows_{study.id}"]
    assert rows == [{"objective": "Stripes", "comparison": "at most", "value": 3.9, "unit": ""}]
    assert objective == "minimize Colours"


def test_a_rule_for_losses_is_edited_in_its_table(visit: Callable[..., AppTest], study: Study) -> None:
    app = visit("trade_offs", study=study.id)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    rule(app, study.id, "Stripes <= 3.9, minimize Colours")
    app.selectbox(key=f"rule_objective_{study.id}").set_value("minimize mean").run()
    assert app.text_input(key=f"rule_text_{study.id}").value == "Stripes <= 3.9, minimize mean"
    assert not app.error


def test_of_an_accuracy_and_a_loss_the_rules_say_which_way(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    study = make_study(home, tiny_zoo, (ACCURACY, LOSS))
    app = visit("trade_offs", study=study.id)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    objectives = app.selectbox(key=f"rule_objective_{study.id}").options
    assert objectives == ["maximize Colours", "minimize Stripes"]
    for number in range(2):
        app.button(key=f"rule_example_{number}").click().run()
        assert not app.error, number
    for page in ("evaluate", "trade_offs", "compare"):
        assert not visit(page, study=study.id).error, page


def test_compare_shades_the_lowest_loss(visit: Callable[..., AppTest], home: Path, study: Study) -> None:
    store = Store(home)
    for name, value in (("soup", 2.8), ("ties", 3.1)):
        merge = store.merges.add(study.id, name, {})
        for objective in study.config.objectives:
            store.evaluations.add(merge.id, merge.space.default, objective.key, "test", outcome_of(value))
    app = visit("compare", study=study.id)
    table = next(found for found in app.dataframe if "hypervolume" in found.value)
    frame = table.value
    soup = next(row for row, model in enumerate(frame["model"]) if "soup" in model)
    assert frame["mean"][soup] == pytest.approx(2.8)
    assert frame["preference"][soup] == pytest.approx(2.8)
    styles = table.proto.arrow_data.styler.styles
    shaded = set(re.findall(r"row(\d+)_col(\d+)", styles.split("background-color")[0]))
    columns = [list(frame.columns).index(name) for name in (*TASKS, "mean", "worst", "preference")]
    assert {(str(soup), str(column)) for column in columns} <= shaded
    assert {row for row, _ in shaded} == {str(soup)}
    weighed = json.loads(table.proto.columns)["preference"]["help"]
    assert "less is better" in weighed
    captions = " ".join(found.value for found in app.caption)
    assert "90% intervals are known for accuracies only. Less is better." in captions
    (bars,) = [figure for figure in figures(app) if figure["data"][0]["type"] == "bar"]
    assert bars["layout"]["xaxis"]["title"]["text"] == "Weighted loss, lower = better"
    assert "2.800" in bars["data"][0]["text"]
