"""From a demo's card to an exported file, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from mapmerge_core.studies.store import Store
from tests.pages.conftest import texts, wait_for_jobs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.rows import StudyRow


def test_three_clicks_lead_from_home_to_a_file(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
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

    pick = Store(home).picks(study_id)[-1]
    assert pick.exported is not None
    merged = load_file(pick.exported)
    assert merged.keys() == load_file(tiny_zoo / "pretrained.safetensors").keys()
    assert "Exported, read back and compared." in texts(app)
    assert str(pick.exported) in texts(app)
    assert "add_model_config" in texts(app), "the card shows how to load the file"


def test_a_run_is_stopped_seen_by_another_session_and_resumed(
    visit: Callable[..., AppTest], home: Path
) -> None:
    app = visit("studies")
    app.button(key="demo_2").click().run()
    study_id = int(app.query_params["study"])
    other = visit("evaluate", study=study_id)
    other.button(key="stop").click().run()
    wait_for_jobs(app, study_id)
    assert Store(home).runs(study_id)[-1].status == "stopped"
    app.button(key="resume").click().run()
    wait_for_jobs(app, study_id)
    run = Store(home).runs(study_id)[-1]
    assert run.status == "done"
    assert Store(home).study(study_id).n_points == run.settings.points == 30


def test_the_estimate_stands_before_the_start(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    from mapmerge_core.studies.spec import spec_from_manifest

    study = Store(home).create_study("Mine", spec_from_manifest(tiny_zoo, ["Colours", "Light"]))
    app = visit("evaluate", study=study.id)
    assert "Nothing measured yet" in texts(app)
    wait_for_jobs(app, study.id)
    estimate = next(caption.value for caption in app.caption if "About" in caption.value)
    assert "cpu" in estimate or "cuda" in estimate or "mps" in estimate
    app.number_input(key=f"points_{study.id}_0").set_value(8).run()
    app.button(key="start").click().run()
    wait_for_jobs(app, study.id)
    assert Store(home).study(study.id).n_points == 8
    assert "Quality of the fit" in texts(app)


def test_an_impossible_budget_is_one_sentence(
    visit: Callable[..., AppTest], measured_study: StudyRow
) -> None:
    app = visit("evaluate", study=measured_study.id)
    app.number_input(key=f"low_{measured_study.id}_1").set_value(2.0).run()
    app.button(key="start").click().run()
    assert len(app.error) == 1
    assert "2" in app.error[0].value
    assert not app.exception


def test_sliders_move_the_pick(visit: Callable[..., AppTest], measured_study: StudyRow) -> None:
    app = visit("trade_offs", study=measured_study.id)
    even = texts(app)
    app.slider(key=f"pref_{measured_study.id}_Colours").set_value(100).run()
    app.slider(key=f"pref_{measured_study.id}_Stripes").set_value(0).run()
    assert texts(app) != even
    app.slider(key=f"pref_{measured_study.id}_Colours").set_value(0).run()
    assert [error.value.replace("\\", "") for error in app.error] == [
        "Every weight is zero: give at least one task a weight above zero."
    ]


def test_a_clicked_point_is_picked_measured_and_shortlisted(
    visit: Callable[..., AppTest], measured_study: StudyRow, home: Path
) -> None:
    from pages.parts import choice, state

    app = visit("trade_offs", study=measured_study.id)
    analysis = state.analysis(measured_study.id)
    choice_made = choice.Choice("point", analysis.front.c[0], {"kind": "point"})
    app.session_state[f"choice_{measured_study.id}"] = choice_made
    app.run()
    app.button(key="measure").click().run()
    wait_for_jobs(app, measured_study.id)
    measured = Store(home).measured(measured_study.id, analysis.front.c[0], "test")
    assert set(measured) == {"Colours", "Stripes"}
    assert f"{100 * measured['Colours']:.1f}% measured" in texts(app)
    assert app.button(key="measure").disabled
    app.text_input(key="shortlist_note").set_value("best *colours*").run()
    app.button(key="shortlist_save").click().run()
    pick = Store(home).picks(measured_study.id)[-1]
    assert pick.shortlisted
    assert pick.name == "best *colours*"
    np.testing.assert_array_equal(pick.c, analysis.front.c[0])
    app.button(key=f"shortlist_remove_{pick.id}").click().run()
    assert not Store(home).pick(pick.id).shortlisted


@pytest.mark.parametrize(
    ("rule", "sentence", "word"),
    [("all >= 70%, maximize Colors", "Colors", "Colors"), ("all >> 70%, maximize mean", ">>", ">>")],
)
def test_a_rule_typed_wrongly_points_at_the_word(
    visit: Callable[..., AppTest], measured_study: StudyRow, rule: str, sentence: str, word: str
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
    visit: Callable[..., AppTest], measured_study: StudyRow
) -> None:
    app = visit("trade_offs", study=measured_study.id)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    app.text_input(key=f"rule_text_{measured_study.id}").input("Colours >= 40%, maximize Stripes").run()
    assert len(app.success) == 1
    assert not app.error
    assert (
        list(app.get("arrow_data_frame"))
        or app.session_state[f"rule_rows_{measured_study.id}"][0][0]["task"] == "Colours"
    )
    app.text_input(key=f"rule_text_{measured_study.id}").input("all >= 99.9%, maximize mean").run()
    assert len(app.warning) == 1
    assert "99.9" in app.warning[0].value
