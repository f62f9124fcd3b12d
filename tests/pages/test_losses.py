"""Pages on a study whose metrics are losses: their own numbers, and less is better everywhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.studies.runs.baselines import find_kind
from mapmerge_core.tasks.metric import ACCURACY, LOSS, Metric, Outcome

from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.store.rows import StudyRow

TASKS = ("Colours", "Stripes")
BEST = np.array([[0.8, 0.2], [0.3, 0.9]])


def loss(c: np.ndarray, k: int) -> float:
    """From 2.713 up: a bowl around a place of the task's own."""
    return float(2.713 + k + ((c - BEST[k]) ** 2).sum())


def make_study(home: Path, tiny_zoo: Path, metrics: tuple[Metric, Metric]) -> StudyRow:
    """A study with a run whose measurements are made by hand."""
    store = Store(home)
    spec = spec_from_manifest(tiny_zoo, TASKS)
    tasks = tuple(replace(task, metric=metric) for task, metric in zip(spec.tasks, metrics, strict=True))
    study = store.create_study("Losses", replace(spec, tasks=tasks))
    run = store.create_run(study.id, RunSettings(points=15))
    with store.claim_run(run.id):
        corners = np.vstack([np.zeros(2), np.eye(2)])
        for c in np.vstack([corners, np.random.default_rng(0).uniform(size=(12, 2))]):
            for k, (task, metric) in enumerate(zip(TASKS, metrics, strict=True)):
                value = loss(c, k) if metric == LOSS else 1 / loss(c, k)
                for split in ("val", "test"):
                    outcome = Outcome(value, 10, np.full(10, value, "<f4").tobytes(), 0.1)
                    if metric != LOSS:
                        outcome = Outcome(value, 10, np.packbits([1] * 10).tobytes(), 0.1)
                    store.add_evaluation(study.id, c, task, split, outcome, run_id=run.id)
        store.set_status(run.id, "done")
    row = store.study(study.id)
    store.close()
    return row


@pytest.fixture
def study(home: Path, tiny_zoo: Path) -> StudyRow:
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


def test_no_page_shows_a_loss_in_percent(visit: Callable[..., AppTest], study: StudyRow) -> None:
    for page in ("evaluate", "trade_offs", "compare"):
        app = visit(page, study=study.id)
        assert not app.error, page
        assert figures(app), page
        titles = [title for title in axes(app) if "oss" in title]
        assert titles, page
        assert not [title for title in titles if "%" in title], page


def test_the_card_of_the_pick_shows_losses_as_they_are(
    visit: Callable[..., AppTest], study: StudyRow
) -> None:
    app = visit("trade_offs", study=study.id)
    app.slider(key=f"pref_{study.id}_Colours").set_value(100).run()
    app.slider(key=f"pref_{study.id}_Stripes").set_value(0).run()
    (tiles,) = [found.value for found in app.get("html") if 'class="tiles pick"' in found.value]
    assert "<h4>Colours</h4><b>2.7" in tiles, "the preference leads to the bottom of the bowl"
    assert "27" not in tiles
    (bars,) = [figure for figure in figures(app) if figure["data"][0]["type"] == "bar"]
    pick = next(trace for trace in bars["data"] if trace["name"] == "Pick, predicted")
    assert pick["customdata"][0].startswith("2.7")


def test_the_rule_editor_asks_for_at_most_and_minimizes(
    visit: Callable[..., AppTest], study: StudyRow
) -> None:
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
    assert rows == [{"task": "Stripes", "comparison": "at most", "value": 3.9, "unit": ""}]
    assert objective == "minimize Colours"


def test_a_rule_for_losses_is_edited_in_its_table(visit: Callable[..., AppTest], study: StudyRow) -> None:
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


def test_compare_shades_the_lowest_loss(visit: Callable[..., AppTest], home: Path, study: StudyRow) -> None:
    store = Store(home)
    for name, value in (("soup", 2.8), ("slerp", 3.1)):
        settings = find_kind(name).settings
        baseline = store.add_baseline(study.id, name, settings, layers=np.full((4, 2), 0.3), seconds=1.0)
        for task in TASKS:
            outcome = Outcome(value, 10, np.full(10, value, "<f4").tobytes(), 0.1)
            store.add_baseline_evaluation(baseline.id, task, "test", outcome)
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


def test_nested_map_starts_from_a_rule_for_losses(visit: Callable[..., AppTest], study: StudyRow) -> None:
    app = visit("evaluate", study=study.id)
    app.selectbox(key=f"method_{study.id}_1").set_value("nested").run()
    app.segmented_control(key=f"nested_by_{study.id}_1").set_value("Rule").run()
    assert app.text_input(key=f"nested_rule_{study.id}_1").value == "all <= 110% of single, minimize mean"
    assert not app.error
