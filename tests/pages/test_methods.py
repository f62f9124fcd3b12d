"""Runs of every merge and method are set up, started and shown on Evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mapmerge_core.merges.base import register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.registries import MERGES, METHODS
from mapmerge_core.settings import setting, settings
from mapmerge_core.studies.analysis.comparing import scalar_search
from mapmerge_core.studies.store import Store, Study
from tests.pages.conftest import execute, texts, wait_for_jobs

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest


def choose(app: AppTest, study_id: int, what: str, name: str) -> AppTest:
    """Chooses the merge or the method of a study's second run."""
    return app.selectbox(key=f"{what}_{study_id}_1").set_value(name).run()


@pytest.mark.parametrize("name", METHODS.names)
def test_each_method_has_a_form_and_says_what_it_measures(
    visit: Callable[..., AppTest], measured_study: Study, name: str
) -> None:
    app = choose(visit("evaluate", study=measured_study.id), measured_study.id, "method", name)
    assert METHODS[name].help() in texts(app).replace("\\", "")
    assert "evaluations** of one model on one objective" in texts(app)
    assert not app.error


@pytest.mark.parametrize(
    ("method", "points", "evaluations"),
    [("map", 30, 60), ("bayesian", 12, 24), ("nested", 20, 40), ("direct", 200, 400)],
)
def test_usual_budgets(
    visit: Callable[..., AppTest], home: Path, measured_study: Study, method: str, points: int, evaluations: int
) -> None:
    Store(home).studies.create("Fresh", measured_study.config)
    app = visit("evaluate", study=2)
    app.selectbox(key="method_2_0").set_value(method).run()
    assert app.number_input(key=f"{method}_points_2_0").placeholder == str(points)
    assert f"At most **{evaluations} evaluations**" in texts(app)


@pytest.mark.parametrize("name", MERGES.names)
def test_each_merge_has_a_form_and_can_be_run_or_says_why_not(
    visit: Callable[..., AppTest], measured_study: Study, name: str
) -> None:
    app = choose(visit("evaluate", study=measured_study.id), measured_study.id, "merge", name)
    assert MERGES[name].help().split(",")[0] in texts(app).replace("\\", "")
    assert not app.error
    can_start = not app.button(key="start").disabled
    assert can_start != bool(app.info), "what can't be run says why"


@pytest.fixture
def newcomer() -> Iterator[str]:
    @register
    class Halved(LinearMerge):
        """Merge a share of every task vector."""

        name = "halved"
        title = "Halved"

        @settings
        class Settings:
            share: float = setting(0.5, above=0, at_most=1, help="Share of every entry.")

        def transform(self, change):
            return change * self.settings.share

    yield Halved.name
    MERGES.unregister(Halved.name)


def test_a_merge_of_a_newcomer_is_chosen_set_run_and_shown(
    visit: Callable[..., AppTest], home: Path, measured_study: Study, newcomer: str
) -> None:
    number = measured_study.id
    app = choose(visit("evaluate", study=number), number, "merge", newcomer)
    assert "Merge a share of every task vector." in texts(app)
    app.number_input(key=f"halved_share_{number}_1").set_value(0.25).run()
    app.number_input(key=f"map_points_{number}_1").set_value(8).run()
    app.button(key="start").click().run()
    wait_for_jobs(app, number)
    run = Store(home).runs.all(number)[-1]
    assert (run.status, run.config.merge_settings) == ("done", {"share": 0.25})
    app = visit("evaluate", study=number)
    views = app.selectbox(key=f"merge_in_view_{number}_{run.merge_id}")
    assert views.options == ["Task arithmetic", "Halved (share 0.25)"]
    assert views.value == run.merge_id
    assert app.number_input(key=f"halved_share_{number}_2").value == 0.25, "the next form starts from this run"
    assert not app.error


def test_a_setting_out_of_bounds_is_one_sentence(visit: Callable[..., AppTest], measured_study: Study) -> None:
    number = measured_study.id
    app = choose(visit("evaluate", study=number), number, "merge", "dare")
    (key,) = {field.key for field in app.number_input if str(field.key).startswith("dare_drop")}
    app.number_input(key=key).set_value(1.0).run()
    assert ["below 1" in error.value for error in app.error] == [True]
    assert app.button(key="start").disabled


def test_a_merge_on_the_simplex_is_searched_and_drawn(
    visit: Callable[..., AppTest], home: Path, measured_study: Study
) -> None:
    number = measured_study.id
    app = choose(visit("evaluate", study=number), number, "merge", "soup")
    assert f"low_{number}_1" not in {field.key for field in app.number_input}, "weights have no box"
    app.number_input(key=f"map_points_{number}_1").set_value(6).run()
    app.button(key="start").click().run()
    wait_for_jobs(app, number)
    assert Store(home).runs.all(number)[-1].status == "done"
    app = visit("evaluate", study=number)
    assert not app.error
    assert "The whole space: Stripes has the rest of the weight." in texts(app).replace("\\", "")


def test_bayesian_rounds_link_and_loss_are_kept_with_the_run(
    visit: Callable[..., AppTest], measured_study: Study, home: Path
) -> None:
    number = measured_study.id
    app = choose(visit("evaluate", study=number), number, "method", "bayesian")
    app.number_input(key=f"bayesian_points_{number}_1").set_value(12).run()
    app.number_input(key=f"bayesian_initial_{number}_1").set_value(7).run()
    app.number_input(key=f"bayesian_batch_{number}_1").set_value(4).run()
    app.selectbox(key=f"link_{number}_1").set_value("identity").run()
    app.selectbox(key=f"loss_{number}_1").set_value("huber").run()
    app.button(key="start").click().run()
    wait_for_jobs(app, number)
    run = Store(home).runs.all(number)[-1]
    assert (run.config.method, run.status) == ("bayesian", "done")
    kept = run.config.method_settings
    assert (kept["initial"], kept["batch"], run.config.link, run.config.loss) == (7, 4, "identity", "huber")


def test_a_nested_run_shows_its_tree_and_exports_its_model(
    visit: Callable[..., AppTest], measured_study: Study, home: Path
) -> None:
    number = measured_study.id
    app = choose(visit("evaluate", study=number), number, "method", "nested")
    app.slider(key=f"nested_weights_{number}_1_Colours").set_value(100).run()
    app.multiselect(key=f"nested_order_{number}_1").set_value(["Stripes"]).run()
    assert "leaves out Colours" in app.error[0].value
    assert app.button(key="start").disabled
    app.multiselect(key=f"nested_order_{number}_1").set_value(["Stripes", "Colours"]).run()
    app.button(key="start").click().run()
    wait_for_jobs(app, number)
    run = Store(home).runs.all(number)[-1]
    assert (run.status, run.config.method_settings["weights"]) == ("done", {"Colours": 100, "Stripes": 50})
    assert run.config.method_settings["order"] == ["Stripes", "Colours"]
    assert "The model that Nested MAP leads to" in texts(app)
    assert "66.7% Colours" in texts(app).replace("\\", "")
    app.button(key="chosen_export").click().run()
    wait_for_jobs(app, number)
    from pages.parts.shared import state

    pick = Store(home).picks.all(number)[-1]
    assert pick.exported is not None
    assert pick.x.tolist() == state.run_result(run.id).x[0].tolist()


def test_a_nested_rule_that_is_none_points_at_the_word(visit: Callable[..., AppTest], measured_study: Study) -> None:
    number = measured_study.id
    app = choose(visit("evaluate", study=number), number, "method", "nested")
    app.text_input(key=f"nested_rule_{number}_1").set_value("all >= 50%, maximize Colors").run()
    assert "Colors" in app.error[0].value
    assert "^" in app.code[0].value
    assert app.button(key="start").disabled


def test_a_budget_below_the_surrogates_parameters_says_the_minimum(
    visit: Callable[..., AppTest], measured_study: Study
) -> None:
    number = measured_study.id
    app = visit("evaluate", study=number)
    app.selectbox(key=f"link_{number}_1").set_value("identity").run()
    app.number_input(key=f"map_points_{number}_1").set_value(5).run()
    assert "6 points or more" in app.error[0].value
    assert app.button(key="start").disabled


def test_what_compare_searched_by_itself_stays_out_of_the_way(
    visit: Callable[..., AppTest], measured_study: Study, home: Path
) -> None:
    store = Store(home)
    execute(store, measured_study.id, scalar_search(MERGES["task_arithmetic"]({})))
    app = visit("evaluate", study=measured_study.id)
    assert "leads to" not in texts(app)
    assert app.selectbox(key=f"method_{measured_study.id}_2").value == "map"
