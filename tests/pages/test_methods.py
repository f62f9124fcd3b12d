"""Runs of every method are set up, started and shown on Evaluate; new studies take transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mapmerge_core.studies.config.study import Transform
from mapmerge_core.studies.store.store import Store
from tests.pages.conftest import texts, wait_for_jobs
from tests.pages.test_pages import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.store.rows import StudyRow


def choose_method(app: AppTest, study_id: int, method: str) -> AppTest:
    """Chooses the method of a study's second run."""
    return app.selectbox(key=f"method_{study_id}_1").set_value(method).run()


@pytest.mark.parametrize(
    ("method", "points", "evaluations"),
    [("map", 12, 24), ("bayesian", 12, 24), ("nested", 20, 40), ("direct", 200, 400)],
)
def test_each_method_offers_its_usual_budget_and_says_what_it_measures(
    visit: Callable[..., AppTest], measured_study: StudyRow, method: str, points: int, evaluations: int
) -> None:
    app = choose_method(visit("evaluate", study=measured_study.id), measured_study.id, method)
    assert app.number_input(key=f"points_{method}_{measured_study.id}_1").value == points
    assert f"At most **{evaluations} evaluations**" in texts(app)


def test_bayesian_rounds_link_and_loss_are_kept_with_the_run(
    visit: Callable[..., AppTest], measured_study: StudyRow, home: Path
) -> None:
    number = measured_study.id
    app = choose_method(visit("evaluate", study=number), number, "bayesian")
    app.number_input(key=f"initial_{number}_1").set_value(7).run()
    app.number_input(key=f"batch_{number}_1").set_value(4).run()
    app.selectbox(key=f"link_{number}_1").set_value("identity").run()
    app.selectbox(key=f"loss_{number}_1").set_value("huber").run()
    app.button(key="start").click().run()
    wait_for_jobs(app, number)
    run = Store(home).runs(number)[-1]
    assert (run.method, run.status) == ("bayesian", "done")
    settings = run.settings
    assert (settings.initial, settings.batch, settings.link, settings.loss) == (7, 4, "identity", "huber")


def test_a_nested_run_shows_its_tree_and_exports_its_model(
    visit: Callable[..., AppTest], measured_study: StudyRow, home: Path
) -> None:
    number = measured_study.id
    app = choose_method(visit("evaluate", study=number), number, "nested")
    app.slider(key=f"nested_preference_{number}_0").set_value(100).run()
    app.selectbox(key=f"nested_pairs_{number}_1").set_value("order").run()
    app.multiselect(key=f"nested_order_{number}_1").set_value(["Stripes"]).run()
    assert "leaves out Colours" in app.error[0].value
    assert app.button(key="start").disabled
    app.multiselect(key=f"nested_order_{number}_1").set_value(["Stripes", "Colours"]).run()
    assert "Stripes" in next(caption.value for caption in app.caption if caption.value.startswith(r"\(Str"))
    app.button(key="start").click().run()
    wait_for_jobs(app, number)
    run = Store(home).runs(number)[-1]
    assert (run.status, run.settings.weights) == ("done", {"Colours": 100, "Stripes": 50})
    assert run.settings.order == ["Stripes", "Colours"]
    assert "The model that nested MAP leads to" in texts(app)
    assert "66.7% Colours" in texts(app).replace("\\", "")
    app.button(key="nested_export").click().run()
    wait_for_jobs(app, number)
    from pages.parts.shared import state

    pick = Store(home).picks(number)[-1]
    assert pick.exported is not None
    assert pick.c.tolist() == state.nested_tree(run.id).c.tolist()


def test_a_nested_rule_that_is_none_points_at_the_word(
    visit: Callable[..., AppTest], measured_study: StudyRow
) -> None:
    number = measured_study.id
    app = choose_method(visit("evaluate", study=number), number, "nested")
    app.segmented_control(key=f"nested_by_{number}_1").set_value("Rule").run()
    app.text_input(key=f"nested_rule_{number}_1").set_value("all >= 50%, maximize Colors").run()
    assert "Colors" in app.error[0].value
    assert "^" in app.code[0].value
    assert app.button(key="start").disabled


def test_a_budget_below_the_surrogates_parameters_says_the_minimum(
    visit: Callable[..., AppTest], measured_study: StudyRow
) -> None:
    number = measured_study.id
    app = visit("evaluate", study=number)
    app.selectbox(key=f"link_{number}_1").set_value("identity").run()
    app.number_input(key=f"points_map_{number}_1").set_value(5).run()
    assert "6 points or more" in app.error[0].value
    assert app.button(key="start").disabled


def test_a_new_study_takes_a_transform(visit: Callable[..., AppTest], home: Path) -> None:
    app = check(visit("models"))
    app.selectbox(key="transform_kind").set_value("ties_trim").run()
    app.number_input(key="transform_keep").set_value(30.0).run()
    app.button(key="create_study").click().run()
    study = Store(home).studies()[0]
    assert study.spec.transform == Transform("ties_trim", keep=0.3)
    assert study.name == "Colours + Stripes + Light on TIES-trim 30 %"
