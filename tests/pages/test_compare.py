"""The Compare page: what it says at each stage, and the ways on from its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.registries import MERGES
from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.config import RunConfig
from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.store import Store, Study
from mapmerge_core.tasks.outcome import Outcome
from tests.pages.conftest import texts, wait_for_jobs

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest


SLOW = ("adamerging",)
"""Merges that take long to prepare."""


@pytest.fixture
def compared_study(measured_study: Study, home: Path) -> Study:
    """The measured study, with the merges that take long made up: prepared, and measured at 50%."""
    store = Store(home)
    for name in SLOW:
        for settings in MERGES[name].variants:
            merge = store.merges.add(measured_study.id, name, settings)
            store.merges.set_prepared(merge.id, 1.5, 0)
            for objective in measured_study.config.objectives:
                outcome = Outcome(0.5, 60, np.packbits([1] * 30 + [0] * 30).tobytes(), 0.1)
                store.evaluations.add(merge.id, merge.space.default, objective.key, "test", outcome)
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


def facts(app: AppTest) -> str:
    """Where the pick lies, as its card says it."""
    return next(element.value for element in app.get("html") if "<span>Merge</span>" in element.value)


def test_without_studies_and_without_points_the_page_says_where_to_go(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    assert "No studies yet" in texts(visit("compare"))
    study = Store(home).studies.create("Fresh", config_from_manifest(tiny_zoo))
    app = visit("compare", study=study.id)
    assert "Nothing measured yet" in texts(app)
    assert [link.proto.label for link in app.get("page_link")] == ["Go to Evaluate"]


def test_all_merges_are_made_and_measured_opened_and_exported(
    visit: Callable[..., AppTest], compared_study: Study, home: Path
) -> None:
    number = compared_study.id
    offered = compare(Store(home), number).offered
    app = visit("compare", study=number)
    assert f"{len(offered)} merges to make" in texts(app)
    assert "all of it about" in texts(app)
    app.button(key="run_baselines").click().run()
    wait_for_jobs(app, number)
    assert not app.error
    assert "Every row is measured on the test split." in texts(app)
    table = app.dataframe[0].value
    comparison = compare(Store(home), number)
    assert list(table["model"]) == [row.name for row in comparison.rows]
    merges = Store(home).merges.all(number)
    assert {merge.name for merge in offered} <= {merge.name for merge in merges}
    assert {f"merge-{merge.id}" for merge in merges} <= {row.key for row in comparison.rows}
    assert not table[["Colours", "Stripes", "mean", "worst", "hypervolume"]].isna().to_numpy().any()
    run = comparison.row("run-1")
    assert table["Colours"][0] == pytest.approx(100 * run.metrics[0])
    wins = app.dataframe[1].value
    assert set(wins["against"]) <= {row.name for row in comparison.rows} - {run.name}
    assert wins["wins"].between(0, 1).all()

    # A merge at its usual point is a model as any other.
    ties = next(merge for merge in merges if merge.name == "ties")
    choose(app, number, f"merge-{ties.id}")
    assert app.button(key="compare_open").disabled, "nothing of it was measured for validation"
    app.button(key="compare_export").click().run()
    assert app.title[0].value == "Export"
    wait_for_jobs(app, number)
    pick = Store(home).picks.all(number)[-1]
    assert pick.merge_id == ties.id
    np.testing.assert_array_equal(pick.x, ties.space.default)
    app = visit("export", study=number, pick=pick.id)
    assert app.selectbox(key="pick").options[0] == f"{pick.name} (from Compare: {pick.name})"
    assert "Exported, read back and compared." in texts(app)


def test_normalised_values_are_shares_of_the_single_models(
    visit: Callable[..., AppTest], measured_study: Study, home: Path
) -> None:
    app = visit("compare", study=measured_study.id)
    assert "Nothing is measured on the test split yet" in texts(app)
    app.button(key="measure_missing").click().run()
    wait_for_jobs(app, measured_study.id)
    absolute = app.dataframe[0].value
    app.toggle(key="compare_normalise").set_value(True).run()
    shares = app.dataframe[0].value
    store = Store(home)
    merge = store.merges.all(measured_study.id)[0]
    own = store.evaluations.measured(merge.id, np.array([1.0, 0.0]), "test")["Colours/accuracy"]
    np.testing.assert_allclose(shares["Colours"], absolute["Colours"] / own)
    assert shares.set_index("model")["Colours"]["Colours's own model"] == pytest.approx(100)


def test_the_preference_is_the_one_of_trade_offs_both_ways(
    visit: Callable[..., AppTest], measured_study: Study
) -> None:
    number = measured_study.id
    app = visit("trade_offs", study=number)
    app.slider(key=f"pref_{number}_Colours").set_value(75).run()
    app.slider(key=f"pref_{number}_Stripes").set_value(25).run()
    app.switch_page("pages/compare.py").run()
    assert [app.slider(key=f"compare_preference_{number}_{k}").value for k in (0, 1)] == [75, 25]
    app.slider(key=f"compare_preference_{number}_0").set_value(0).run()
    assert not app.error
    app.switch_page("pages/trade_offs.py").run()
    assert app.slider(key=f"pref_{number}_Colours").value == 0
    from pages.parts.shared import state

    analysis = state.analysis(number)
    best = analysis.front.x[analysis.by_preference({"Stripes": 1.0})]
    assert f"<span>Colours</span><b>{best[0]:.3f}</b>" in facts(app), "the pick follows the preference"


def test_no_weight_at_all_is_one_sentence(visit: Callable[..., AppTest], measured_study: Study) -> None:
    app = visit("compare", study=measured_study.id)
    for k in (0, 1):
        app.slider(key=f"compare_preference_{measured_study.id}_{k}").set_value(0).run()
    assert [error.value.replace("\\", "") for error in app.error] == [
        "Every weight is zero: give at least one objective a weight above zero."
    ]


def test_a_row_opens_on_trade_offs_and_is_the_pick(visit: Callable[..., AppTest], measured_study: Study) -> None:
    number = measured_study.id
    app = visit("compare", study=number)
    assert app.button(key="compare_open").disabled
    assert app.button(key="compare_export").disabled
    choose(app, number, "single-Stripes")
    app.button(key="compare_open").click().run()
    assert app.title[0].value == "Trade-offs"
    assert "From Compare" in " ".join(element.value for element in app.markdown)
    assert "<span>Colours</span><b>0.000</b>" in facts(app)
    assert "<span>Stripes</span><b>1.000</b>" in facts(app)


def test_a_run_is_exported_as_a_pick(visit: Callable[..., AppTest], measured_study: Study, home: Path) -> None:
    app = choose(visit("compare", study=measured_study.id), measured_study.id, "run-1")
    app.button(key="compare_export").click().run()
    assert app.title[0].value == "Export"
    wait_for_jobs(app, measured_study.id)
    pick = Store(home).picks.all(measured_study.id)[-1]
    assert pick.exported is not None
    assert pick.exported.is_file()
    app = visit("export", study=measured_study.id, pick=pick.id)
    assert app.selectbox(key="pick").value == str(pick.id)
    assert "from Compare: MAP" in app.selectbox(key="pick").options[0]


def test_an_unfinished_run_says_why_it_has_no_figures(
    visit: Callable[..., AppTest], measured_study: Study, home: Path
) -> None:
    store = Store(home)
    settings = {"points": 12, "seed": 1}
    run = store.runs.create(measured_study.id, RunConfig(method="bayesian", method_settings=settings))
    store.runs.set_status(run.id, "stopped")
    app = visit("compare", study=measured_study.id)
    assert f"Run {run.id} hasn't measured everything yet: resume it first." in texts(app).replace("\\", "")
    choose(app, measured_study.id, f"run-{run.id}")
    assert app.button(key="compare_open").disabled
    assert app.button(key="compare_export").disabled


def test_making_what_is_missing_can_be_stopped(visit: Callable[..., AppTest], measured_study: Study) -> None:
    from pages.parts.shared import state

    app = visit("compare", study=measured_study.id)
    app.button(key="measure_missing").click().run()
    if any(button.key == "compare_stop" for button in app.button):
        app.button(key="compare_stop").click().run()
    wait_for_jobs(app, measured_study.id)
    (job,) = [job for job in state.jobs().for_study(measured_study.id) if job.kind == "complete"]
    assert job.status in ("stopped", "done")
    assert not app.error
    assert "All models" in texts(app)
