"""The Compare page: what it says at each stage, and the ways on from its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.studies.runs.baselines import BASELINES, find_kind
from mapmerge_core.tasks.metric import Outcome

from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.studies.store.store import Store
from tests.pages.conftest import texts, wait_for_jobs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.store.rows import StudyRow

SLOW = ("adamerging", "adamerging_layers", "adamerging_ties")


@pytest.fixture
def compared_study(measured_study: StudyRow, home: Path) -> StudyRow:
    """The measured study, with the baselines that take long made up: 0.3 everywhere, and their metrics."""
    store = Store(home)
    for name in SLOW:
        c = np.full(2, 0.3) if name == "adamerging" else None
        layers = None if c is not None else np.full((4, 2), 0.3)
        settings = find_kind(name).settings
        baseline = store.add_baseline(measured_study.id, name, settings, c=c, layers=layers, seconds=1.5)
        for task in measured_study.spec.task_names:
            outcome = Outcome(0.5, 60, np.packbits([1] * 30 + [0] * 30).tobytes(), 0.1)
            store.add_baseline_evaluation(baseline.id, task, "test", outcome)
    store.close()
    return measured_study


def choose(app: AppTest, study_id: int, key: str) -> AppTest:
    """Chooses a row of the table, which AppTest can't click."""
    rows = compare(Store(), study_id).rows
    number = next(index for index, row in enumerate(rows) if row.key == key)
    app.session_state[f"compare_table_{study_id}_{len(rows)}"] = {
        "selection": {"rows": [number], "columns": [], "cells": []}
    }
    return app.run()


def test_without_studies_and_without_points_the_page_says_where_to_go(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    assert "No studies yet" in texts(visit("compare"))
    study = Store(home).create_study("Fresh", spec_from_manifest(tiny_zoo))
    app = visit("compare", study=study.id)
    assert "Nothing measured yet" in texts(app)
    assert [link.proto.label for link in app.get("page_link")] == ["Go to Evaluate"]


def test_all_baselines_are_made_and_measured_and_a_csv_has_them(
    visit: Callable[..., AppTest], compared_study: StudyRow, home: Path
) -> None:
    app = visit("compare", study=compared_study.id)
    assert "9 baselines to make" in texts(app)
    assert "all of it about" in texts(app)
    app.button(key="run_baselines").click().run()
    wait_for_jobs(app, compared_study.id)
    assert "Every row is measured on the test split." in texts(app)
    frame = app.dataframe[0].value
    assert frame["model"][0] == "MAP"
    assert {kind.title for kind in BASELINES} - {"DARE + task arithmetic"} < set(frame["model"])
    assert not frame[["Colours", "Stripes", "mean", "worst", "hypervolume"]].isna().to_numpy().any()
    run = compare(Store(home), compared_study.id).row("run-1")
    assert frame["Colours"][0] == pytest.approx(100 * run.metrics[0])
    wins = app.dataframe[1].value
    assert "TIES" in set(wins["against"])
    assert wins["wins"].between(0, 1).all()
    assert not app.error


def test_normalised_metrics_are_shares_of_the_single_task_models(
    visit: Callable[..., AppTest], measured_study: StudyRow, home: Path
) -> None:
    app = visit("compare", study=measured_study.id)
    assert "Nothing is measured on the test split yet" in texts(app)
    app.button(key="measure_missing").click().run()
    wait_for_jobs(app, measured_study.id)
    absolute = app.dataframe[0].value
    app.toggle(key="compare_normalise").set_value(True).run()
    shares = app.dataframe[0].value
    own = Store(home).measured(measured_study.id, np.array([1.0, 0.0]), "test")["Colours"]
    np.testing.assert_allclose(shares["Colours"], absolute["Colours"] / own)
    assert shares.set_index("model")["Colours"]["Colours's own model"] == pytest.approx(100)


def test_the_preference_is_the_one_of_trade_offs_both_ways(
    visit: Callable[..., AppTest], measured_study: StudyRow
) -> None:
    number = measured_study.id
    app = visit("trade_offs", study=number)
    app.slider(key=f"pref_{number}_Colours").set_value(75).run()
    app.slider(key=f"pref_{number}_Stripes").set_value(25).run()
    app.switch_page("pages/compare.py").run()
    assert [app.slider(key=f"compare_preference_{number}_{k}").value for k in (0, 1)] == [75, 25]
    app.slider(key=f"compare_preference_{number}_0").set_value(0).run()
    before = texts(app)
    assert not app.error, before
    app.switch_page("pages/trade_offs.py").run()
    assert app.slider(key=f"pref_{number}_Colours").value == 0
    from pages.parts.shared import state

    analysis = state.analysis(number)
    best = analysis.front.c[analysis.by_preference({"Stripes": 1.0})]
    assert f"coefficient {best[0]:.3f}" in texts(app), "the pick follows the preference"


def test_no_weight_at_all_is_one_sentence(visit: Callable[..., AppTest], measured_study: StudyRow) -> None:
    app = visit("compare", study=measured_study.id)
    for k in (0, 1):
        app.slider(key=f"compare_preference_{measured_study.id}_{k}").set_value(0).run()
    assert [error.value.replace("\\", "") for error in app.error] == [
        "Every weight is zero: give at least one task a weight above zero."
    ]


def test_a_c_opens_on_trade_offs_and_is_the_pick(visit: Callable[..., AppTest], measured_study: StudyRow) -> None:
    number = measured_study.id
    app = visit("compare", study=number)
    assert app.button(key="compare_open").disabled
    assert app.button(key="compare_export").disabled
    choose(app, number, "single-Stripes")
    app.button(key="compare_open").click().run()
    assert app.title[0].value == "Trade-offs"
    assert "From Compare" in " ".join(element.value for element in app.markdown)
    assert "coefficient 0.000" in texts(app)
    assert "coefficient 1.000" in texts(app)


def test_a_run_is_exported_as_a_pick(visit: Callable[..., AppTest], measured_study: StudyRow, home: Path) -> None:
    app = choose(visit("compare", study=measured_study.id), measured_study.id, "run-1")
    app.button(key="compare_export").click().run()
    assert app.title[0].value == "Export"
    wait_for_jobs(app, measured_study.id)
    pick = Store(home).picks(measured_study.id)[-1]
    assert pick.exported is not None
    assert pick.exported.is_file()
    app = visit("export", study=measured_study.id, pick=pick.id)
    assert app.selectbox(key="pick").value == f"pick-{pick.id}"
    assert app.selectbox(key="pick").options[0] == "MAP (from Compare: MAP)"


def test_a_baseline_that_is_no_c_is_exported_but_not_opened(
    visit: Callable[..., AppTest], compared_study: StudyRow, home: Path
) -> None:
    app = visit("compare", study=compared_study.id)
    app.button(key="run_baselines").click().run()
    wait_for_jobs(app, compared_study.id)
    choose(app, compared_study.id, "ties")
    assert app.button(key="compare_open").disabled
    app.button(key="compare_export").click().run()
    assert app.title[0].value == "Export"
    wait_for_jobs(app, compared_study.id)
    store = Store(home)
    ties = next(row for row in store.baselines(compared_study.id) if row.name == "ties")
    app = visit("export", study=compared_study.id, baseline=ties.id)
    assert app.selectbox(key="pick").value == f"baseline-{ties.id}"
    assert "Exported, read back and compared." in texts(app)
    from pages.parts.shared import state

    assert state.exported_file("baseline", ties.id).suffix == ".safetensors"
    soup = next(row for row in store.baselines(compared_study.id) if row.name == "soup")
    from mapmerge_core.errors import ExportError

    with pytest.raises(ExportError, match="export it first"):
        state.exported_file("baseline", soup.id)


def test_a_run_on_other_task_vectors_is_a_study_of_its_own(
    visit: Callable[..., AppTest], measured_study: StudyRow, home: Path
) -> None:
    app = visit("compare", study=measured_study.id)
    app.selectbox(key="sibling_kind").set_value("dare").run()
    app.number_input(key="sibling_drop").set_value(30.0).run()
    app.button(key="make_sibling").click().run()
    assert app.title[0].value == "Evaluate"
    made = Store(home).study(int(app.query_params["study"]))
    assert made.id != measured_study.id
    assert made.spec.transform == Transform("dare", drop=0.3)


def test_an_unfinished_run_says_why_it_has_no_figures(
    visit: Callable[..., AppTest], measured_study: StudyRow, home: Path
) -> None:
    store = Store(home)
    run = store.create_run(measured_study.id, RunSettings(points=12, seed=1), "bayesian")
    store.set_status(run.id, "stopped")
    app = visit("compare", study=measured_study.id)
    assert f"Run {run.id} was stopped before its end" in texts(app)
    choose(app, measured_study.id, f"run-{run.id}")
    assert app.button(key="compare_open").disabled
    assert app.button(key="compare_export").disabled
