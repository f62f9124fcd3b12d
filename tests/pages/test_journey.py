"""From a demo's card to an exported file, page by page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from mapmerge_core.studies.config import RunConfig
from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.store import Store, Study
from mapmerge_core.tasks.outcome import Outcome
from tests.pages.conftest import make_demo, texts, wait_for_jobs

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest


def test_three_clicks_lead_from_home_to_a_file(visit: Callable[..., AppTest], home: Path, tiny_zoo: Path) -> None:
    app = visit("studies")
    app.button(key="demo_2").click().run()
    assert app.title[0].value == "Evaluate"
    study_id = int(app.query_params["study"])
    wait_for_jobs(app, study_id)
    app.button(key="see_tradeoffs").click().run()
    assert app.title[0].value == "Trade-offs"
    app.button(key="export").click().run()
    assert app.title[0].value == "Export"
    wait_for_jobs(app, study_id)

    pick = Store(home).picks.all(study_id)[-1]
    assert pick.exported is not None
    merged = load_file(pick.exported)
    assert merged.keys() == load_file(tiny_zoo / "pretrained.safetensors").keys()
    assert "Exported, read back and compared." in texts(app)
    assert str(pick.exported) in texts(app)
    assert "add_model_config" in texts(app), "the card shows how to load the file"


def test_a_run_is_stopped_seen_by_another_session_and_resumed(visit: Callable[..., AppTest], home: Path) -> None:
    app = visit("studies")
    app.button(key="demo_2").click().run()
    study_id = int(app.query_params["study"])
    other = visit("evaluate", study=study_id)
    other.button(key="stop").click().run()
    wait_for_jobs(app, study_id)
    assert Store(home).runs.all(study_id)[-1].status == "stopped"
    app.button(key="resume").click().run()
    wait_for_jobs(app, study_id)
    run = Store(home).runs.all(study_id)[-1]
    assert run.status == "done"
    assert Store(home).studies.get(study_id).n_points == run.config.points == 30


def test_the_estimate_stands_before_the_start(visit: Callable[..., AppTest], home: Path, tiny_zoo: Path) -> None:
    study = Store(home).studies.create("Mine", config_from_manifest(tiny_zoo, ["Colours", "Light"]))
    app = visit("evaluate", study=study.id)
    assert "Nothing measured yet" in texts(app)
    wait_for_jobs(app, study.id)
    estimate = next(caption.value for caption in app.caption if "About" in caption.value)
    assert "cpu" in estimate or "cuda" in estimate or "mps" in estimate
    app.number_input(key=f"map_points_{study.id}_0").set_value(8).run()
    app.button(key="start").click().run()
    wait_for_jobs(app, study.id)
    assert Store(home).studies.get(study.id).n_points == 8
    assert "Quality of the fit" in texts(app)


def test_an_impossible_budget_is_one_sentence(visit: Callable[..., AppTest], measured_study: Study) -> None:
    app = visit("evaluate", study=measured_study.id)
    app.number_input(key=f"low_{measured_study.id}_1").set_value(2.0).run()
    assert app.button(key="start").disabled
    assert len(app.error) == 1
    assert "2" in app.error[0].value
    assert not app.exception


def test_sliders_move_the_pick(visit: Callable[..., AppTest], measured_study: Study) -> None:
    app = visit("trade_offs", study=measured_study.id)
    even = texts(app)
    app.slider(key=f"pref_{measured_study.id}_Colours").set_value(100).run()
    app.slider(key=f"pref_{measured_study.id}_Stripes").set_value(0).run()
    assert texts(app) != even
    app.slider(key=f"pref_{measured_study.id}_Colours").set_value(95).run()
    assert "the same one still suits these weights best" in texts(app)
    app.slider(key=f"pref_{measured_study.id}_Colours").set_value(0).run()
    assert [error.value.replace("\\", "") for error in app.error] == [
        "Every weight is zero: give at least one objective a weight above zero."
    ]


def test_a_clicked_point_is_picked_measured_and_shortlisted(
    visit: Callable[..., AppTest], measured_study: Study, home: Path
) -> None:
    from pages.parts.shared import choice, state

    app = visit("trade_offs", study=measured_study.id)
    analysis = state.analysis(measured_study.id)
    x, merge_id = analysis.front.x[0], analysis.front.keys[0]
    app.session_state[f"choice_{measured_study.id}"] = choice.Choice("point", merge_id, x, {"kind": "point"})
    app.run()
    app.button(key="measure").click().run()
    wait_for_jobs(app, measured_study.id)
    measured = Store(home).evaluations.measured(merge_id, x, "test")
    assert set(measured) == {"Colours/accuracy", "Stripes/accuracy"}
    assert f"{100 * measured['Colours/accuracy']:.1f}% on test" in texts(app)
    assert app.button(key="measure").disabled
    assert "single models: validation split. Measured: test split." in texts(app)
    app.text_input(key="shortlist_note").set_value("best *colours*").run()
    app.button(key="shortlist_save").click().run()
    pick = Store(home).picks.all(measured_study.id)[-1]
    assert pick.shortlisted
    assert pick.name == "best *colours*"
    np.testing.assert_array_equal(pick.x, x)
    app.button(key=f"shortlist_remove_{pick.id}").click().run()
    assert not Store(home).picks.get(pick.id).shortlisted


@pytest.mark.parametrize(
    ("rule", "sentence", "word"),
    [("all >= 70%, maximize Colors", "Colors", "Colors"), ("all >> 70%, maximize mean", ">>", ">>")],
)
def test_a_rule_typed_wrongly_points_at_the_word(
    visit: Callable[..., AppTest], measured_study: Study, rule: str, sentence: str, word: str
) -> None:
    app = visit("trade_offs", study=measured_study.id)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    app.text_input(key=f"rule_text_{measured_study.id}").input(rule).run()
    assert len(app.error) == 1
    assert sentence in app.error[0].value.replace("\\", "")
    line, caret = app.code[0].value.split("\n")
    assert line == rule
    assert caret.index("^") == rule.index(word)


def test_a_rule_picks_and_an_impossible_one_names_what_it_misses(
    visit: Callable[..., AppTest], measured_study: Study
) -> None:
    app = visit("trade_offs", study=measured_study.id)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    app.text_input(key=f"rule_text_{measured_study.id}").input("Colours >= 40%, maximize Stripes").run()
    assert len(app.success) == 1
    assert not app.error
    assert app.session_state[f"rule_rows_{measured_study.id}"][0][0]["objective"] == "Colours"
    assert "By rule" in badges(app)
    app.text_input(key=f"rule_text_{measured_study.id}").input("all >= 99.9%, maximize mean").run()
    assert len(app.warning) == 1
    assert "99.9" in app.warning[0].value
    assert "Nearest to the rule" in badges(app)
    app.button(key="export").click().run()
    assert "nearest to the rule" in app.selectbox(key="pick").options[0]
    wait_for_jobs(app, measured_study.id)


def badges(app: AppTest) -> str:
    """What the page's badges and plain texts say."""
    return " ".join(element.value for element in app.markdown)


def test_each_study_keeps_its_own_preference_and_rule(
    visit: Callable[..., AppTest], measured_study: Study, home: Path, tiny_zoo: Path
) -> None:
    first, second = measured_study.id, make_demo(home, tiny_zoo).id

    app = visit("trade_offs", study=first)
    app.slider(key=f"pref_{first}_Colours").set_value(100).run()
    app.slider(key=f"pref_{first}_Stripes").set_value(0).run()
    chosen = tiles(app)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    app.text_input(key=f"rule_text_{first}").input("Colors").run()
    app.segmented_control(key="choose_by").set_value("Preference").run()

    app.selectbox(key="study").set_value(second).run()
    assert [app.slider(key=f"pref_{second}_{task}").value for task in ("Colours", "Stripes")] == [50, 50]
    assert tiles(app) != chosen
    app.segmented_control(key="choose_by").set_value("Rule").run()
    assert app.text_input(key=f"rule_text_{second}").value == ""
    assert not app.error
    app.switch_page("pages/evaluate.py").run()
    app.switch_page("pages/trade_offs.py").run()

    app.selectbox(key="study").set_value(first).run()
    assert app.text_input(key=f"rule_text_{first}").value == "Colors"
    assert len(app.error) == 1
    app.segmented_control(key="choose_by").set_value("Preference").run()
    assert [app.slider(key=f"pref_{first}_{task}").value for task in ("Colours", "Stripes")] == [100, 0]
    assert tiles(app) == chosen


def tiles(app: AppTest) -> str:
    """The figures on the pick's card."""
    return next(element.value for element in app.get("html") if 'class="tiles pick"' in element.value)


def test_new_points_of_a_live_run_leave_the_front_in_view_alone(
    visit: Callable[..., AppTest], measured_study: Study, home: Path
) -> None:
    store = Store(home)
    run = store.runs.create(measured_study.id, RunConfig(method_settings={"points": 20, "seed": 5}))
    claim = store.runs.claim(run.id)
    try:
        app = visit("trade_offs", study=measured_study.id)
        shown = tiles(app)
        for c in np.random.default_rng(99).uniform(size=(5, 2)):
            for objective in measured_study.config.objectives:
                outcome = Outcome(0.1, 10, np.full(10, 0.1, "<f4").tobytes(), 0.1)
                store.evaluations.add(run.merge_id, c, objective.key, "val", outcome)
        app.run()
        assert tiles(app) == shown
        assert "when the page was opened" in app.info[0].value
        app.switch_page("pages/evaluate.py").run()
        app.switch_page("pages/trade_offs.py").run()
        assert tiles(app) != shown
    finally:
        claim.release()
