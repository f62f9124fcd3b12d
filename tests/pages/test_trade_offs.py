"""Trade-offs and Export with several merges: one of coefficients, one that is trained, one path for both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mapmerge_core.registries import METRICS
from mapmerge_core.studies.config import Compute
from mapmerge_core.studies.config.demo import config_from_manifest
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.studies.store import Pick, Store, Study
from mapmerge_core.tasks.outcome import Outcome
from tests.pages.conftest import texts, wait_for_jobs

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.analysis.analysis import StudyAnalysis

TASKS = ("Colours", "Stripes")
TRAINING = {"steps": 4, "rank": 2, "batch_size": 8, "lr": 0.05}


def outcome(value: float) -> Outcome:
    return Outcome(value, 60, np.full(60, value, "<f4").tobytes(), 0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Path:
    """A data folder with a study of two tasks and a merge that was trained in it; its measurements are made up."""
    folder = tmp_path_factory.mktemp("trained")
    store = Store(folder)
    study = store.studies.create("Trained", config_from_manifest(tiny_zoo, TASKS))
    merge = store.merges.add(study.id, "pareto_merging", TRAINING)
    prepare_merge(store, merge.id, EvaluatorCache().get(study, Compute(device="cpu")))
    for a in np.linspace(0, 1, 5):
        add(store, merge.id, np.array([a, 1 - a]), 0.3 + 0.4 * a, 0.3 + 0.5 * (1 - a * a))
    store.close()
    return folder


def add(store: Store, merge_id: int, x: np.ndarray, *values: float) -> None:
    """Make up what was measured at a point on the validation split."""
    study = store.studies.get(store.merges.get(merge_id).study_id)
    for objective, value in zip(study.config.objectives, values, strict=True):
        store.evaluations.add(merge_id, x, objective.key, "val", outcome(float(value)))


@pytest.fixture
def merge_id(home: Path, trained: Path) -> int:
    """The trained merge of study 1, in a data folder of the test's own."""
    shutil.copytree(trained, home)
    return Store(home).merges.all(1)[1].id


@pytest.fixture
def both(home: Path, merge_id: int) -> int:
    """The same, with points of task arithmetic, better on Colours than any of the trained merge's."""
    add_points(home)
    return merge_id


def add_points(home: Path, study_id: int = 1) -> None:
    """Points of task arithmetic enough for surrogates."""
    store = Store(home)
    merge = store.merges.all(study_id)[0]
    for x in np.random.default_rng(0).uniform(size=(8, 2)):
        add(store, merge.id, x, 0.5 + 0.45 * x[0] - 0.1 * x[1], 0.2 + 0.1 * x[1] - 0.1 * x[0])
    store.close()


def add_references(home: Path) -> None:
    """What the pre-trained and the fine-tuned models of study 1 reach."""
    store = Store(home)
    merge = store.merges.all(1)[0]
    add(store, merge.id, np.zeros(2), 0.25, 0.125)
    add(store, merge.id, np.array([1.0, 0.0]), 0.75, 0.25)
    add(store, merge.id, np.array([0.0, 1.0]), 0.25, 0.5)
    store.close()


def analysis_of(study_id: int = 1) -> StudyAnalysis:
    from pages.parts.shared import state

    return state.analysis(study_id)


def percents(app: AppTest) -> list[str]:
    """The figures on the pick's tiles."""
    tiles = next(element.value for element in app.get("html") if 'class="tiles pick"' in element.value)
    return [part.split("</b>")[0] for part in tiles.split("<b>")[1:]]


def shown(values: np.ndarray) -> list[str]:
    return [f"{100 * value:.1f}%" for value in values]


def badges(app: AppTest) -> str:
    return " ".join(element.value for element in app.markdown)


def set_sliders(app: AppTest, *weights: int) -> AppTest:
    for task, weight in zip(TASKS, weights, strict=True):
        app.slider(key=f"pref_1_{task}").set_value(weight).run()
    assert not app.exception, app.exception
    return app


def errors(app: AppTest) -> list[str]:
    return [error.value.replace("\\", "") for error in app.error]


def picked(app: AppTest) -> Any:
    return app.session_state["choice_1"]


def front_traces(app: AppTest) -> list[dict[str, Any]]:
    """The traces of the front's chart."""
    (spec,) = [
        spec
        for spec in (json.loads(chart.proto.spec) for chart in app.get("plotly_chart"))
        if any(trace.get("legendgroup") == "pick" for trace in spec["data"])
    ]
    return spec["data"]


def only_pick(home: Path) -> Pick:
    (pick,) = Store(home).picks.all(1)
    return pick


# The front of all merges, or of one.


def test_one_trained_merge_has_a_front_and_names_its_weights(visit: Callable[..., AppTest], merge_id: int) -> None:
    app = visit("trade_offs", study=1)
    assert not [box for box in app.selectbox if box.key == "merge_in_view"], "there is nothing to choose from"
    analysis = analysis_of()
    row = analysis.by_preference(dict.fromkeys(TASKS, 1.0))
    assert set(analysis.front.keys) == {merge_id}
    assert percents(app) == shown(analysis.front.predicted[row])
    assert "By preference" in badges(app)
    facts = [f"<span>{name}</span><b>{x:.3f}</b>" for name, x in zip(TASKS, analysis.front.x[row], strict=True)]
    assert all(fact in texts(app) for fact in facts)
    assert "<span>Merge</span><b>Pareto Merging" in texts(app)


def test_merges_share_one_front_in_colours_and_a_select_narrows_it(visit: Callable[..., AppTest], both: int) -> None:
    app = visit("trade_offs", study=1)
    analysis = analysis_of()
    assert set(analysis.front.keys) == {merge.merge.id for merge in analysis.merges}
    fronts = [trace for trace in front_traces(app) if trace["name"] in {merge.title for merge in analysis.merges}]
    assert len({trace["name"] for trace in fronts}) == len(fronts) == 2
    assert fronts[0]["marker"]["color"] != fronts[1]["marker"]["color"]

    app.selectbox(key="merge_in_view").set_value(str(both)).run()
    assert not app.exception, app.exception
    assert app.query_params["merge"] == str(both)
    assert "Front" in [trace["name"] for trace in front_traces(app)]
    own = analysis.merge(both).front
    assert len(own) >= analysis.front.keys.count(both)
    row = analysis.merge(both).front.predicted.mean(axis=1).argmax()
    assert percents(app) == shown(own.predicted[row])

    app.switch_page("pages/evaluate.py").run()
    app.switch_page("pages/trade_offs.py").run()
    assert app.selectbox(key="merge_in_view").value == str(both), "the session keeps what was in view"
    assert visit("trade_offs", study=1, merge=both).selectbox(key="merge_in_view").value == str(both)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("asked", ["99", "x", "-1", "9" * 5000])
def test_a_merge_that_is_not_there_is_said_and_all_are_shown(visit: Callable[..., AppTest], asked: str) -> None:
    app = visit("trade_offs", study=1, merge=asked)
    (warning,) = app.warning
    assert warning.value.replace("\\", "").startswith(f"This study has no front of merge {asked}: ")
    assert app.selectbox(key="merge_in_view").value == ""
    assert "merge" not in app.query_params


def test_the_merge_of_another_study_is_no_warning(
    visit: Callable[..., AppTest], home: Path, both: int, tiny_zoo: Path
) -> None:
    other = Store(home).studies.create("Other", config_from_manifest(tiny_zoo, TASKS))
    add_points(home, other.id)
    app = visit("trade_offs", study=1, merge=both)
    app.selectbox(key="study").set_value(other.id).run()
    assert not app.warning
    assert "merge" not in app.query_params
    assert "<span>Merge</span><b>Task arithmetic</b>" in texts(app)


def test_a_preference_chooses_among_the_merges_in_view(visit: Callable[..., AppTest], both: int) -> None:
    app = set_sliders(visit("trade_offs", study=1), 100, 0)
    assert "<b>Task arithmetic</b>" in texts(app), "its made-up points are the best on Colours"
    app.selectbox(key="merge_in_view").set_value(str(both)).run()
    assert "<b>Pareto Merging" in texts(app)
    assert [app.slider(key=f"pref_1_{task}").value for task in TASKS] == [100, 0]


@pytest.mark.usefixtures("merge_id")
def test_no_weight_at_all_is_one_sentence_and_the_pick_stays(visit: Callable[..., AppTest]) -> None:
    app = set_sliders(visit("trade_offs", study=1), 0, 35)
    before = percents(app)
    set_sliders(app, 0, 0)
    assert errors(app) == ["Every weight is zero: give at least one objective a weight above zero."]
    assert percents(app) == before


def test_a_clicked_point_is_picked_with_its_merge(both: int) -> None:
    from streamlit.testing.v1 import AppTest as Script

    def click() -> None:
        import streamlit as st

        from pages.parts.trade_offs.front_chart import _point_clicked

        st.session_state["front_chart_k"] = {"selection": {"points": st.session_state["points"]}}
        _point_clicked("k", 5, lambda row: st.session_state.update(row=row))

    script = Script.from_function(click)
    script.session_state["points"] = [{"customdata": 3}]
    assert script.run().session_state["row"] == 3
    script.session_state["points"] = []
    script.session_state["row"] = None
    assert script.run().session_state["row"] == 3, "a click on the same point unselects it, and means it"
    script.session_state["points"] = [{"customdata": 99}]
    script.session_state["row"] = None
    assert script.run().session_state["row"] is None
    assert not script.exception

    from pages.parts.shared import choice

    analysis = analysis_of()
    row = analysis.front.keys.index(both)
    made = choice.at_row(analysis, row, {"kind": "point"})
    assert (made.kind, made.merge_id) == ("point", both)
    np.testing.assert_array_equal(made.x, analysis.front.x[row])


def test_the_state_of_a_trained_merge_can_be_taken_along(visit: Callable[..., AppTest], home: Path, both: int) -> None:
    app = visit("trade_offs", study=1, merge=both)
    file = Store(home).merges.state_file(both)
    (link,) = [link for link in app.get("link_button") if link.proto.label.startswith("Download what was prepared")]
    assert link.proto.url == f"/download/merge/{both}"
    assert f"{file.stat().st_size / 1000:.1f} kB" in link.proto.label
    assert "Prepared in" in texts(app)
    file.unlink()
    app = visit("trade_offs", study=1, merge=both)
    (message,) = errors(app)
    assert "prepare it first" in message
    assert percents(app), "the front can still be seen"


# The pick: measured, shortlisted, exported.


def test_the_very_model_is_measured_on_test(visit: Callable[..., AppTest], home: Path, merge_id: int) -> None:
    app = set_sliders(visit("trade_offs", study=1), 65, 35)
    x = picked(app).x
    app.button(key="measure").click().run()
    wait_for_jobs(app, 1)
    measured = Store(home).evaluations.measured(merge_id, x, "test")
    assert set(measured) == {"Colours/accuracy", "Stripes/accuracy"}
    for value in measured.values():
        assert f"{100 * value:.1f}% on test" in texts(app)
    assert app.button(key="measure").disabled


@pytest.mark.usefixtures("both")
def test_tiles_hold_the_pick_against_single_and_pretrained(visit: Callable[..., AppTest], home: Path) -> None:
    add_references(home)
    app = visit("trade_offs", study=1)
    analysis = analysis_of()
    choice_row = analysis.by_preference(dict.fromkeys(TASKS, 1.0))
    predicted = analysis.front.predicted[choice_row]
    np.testing.assert_allclose(analysis.single, [0.75, 0.5])
    (tiles,) = [found.value for found in app.get("html") if 'class="tiles pick"' in found.value]
    assert f"<p>{predicted[0] / 0.75:.0%} of the single model</p>" in tiles
    assert f"<p>{predicted[1] / 0.125:.0%} of pre-trained</p>" in tiles


def test_a_pick_is_shortlisted_and_chosen_again(visit: Callable[..., AppTest], home: Path, both: int) -> None:
    app = set_sliders(visit("trade_offs", study=1, merge=both), 65, 35)
    point = picked(app)
    app.text_input(key="shortlist_note").set_value("more *colours*").run()
    app.button(key="shortlist_save").click().run()
    pick = only_pick(home)
    assert (pick.name, pick.shortlisted, pick.how["kind"]) == ("more *colours*", True, "preference")
    assert pick.key == point.key
    Store(home).picks.update(pick.id, notes="for the *show*")
    app.selectbox(key="merge_in_view").set_value("").run()
    set_sliders(app, 100, 0)
    assert r"for the \*show\*" in texts(app)
    assert "<b>Task arithmetic</b>" in texts(app)
    app.button(key=f"shortlist_choose_{pick.id}").click().run()
    assert "From the shortlist" in badges(app)
    assert picked(app).key == point.key
    app.button(key=f"shortlist_remove_{pick.id}").click().run()
    assert not only_pick(home).shortlisted


@pytest.mark.usefixtures("merge_id")
def test_a_trained_merges_pick_is_exported_named_and_noted(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    app = set_sliders(visit("trade_offs", study=1), 65, 35)
    app.button(key="export").click().run()
    assert app.title[0].value == "Export"
    pick = only_pick(home)
    assert app.query_params["pick"] == str(pick.id)
    assert app.selectbox(key="pick").options[0].startswith(f"Pick {pick.id} (by preference)")
    wait_for_jobs(app, 1)
    app = visit("export", study=1, pick=pick.id)
    file = only_pick(home).exported
    assert file is not None
    assert load_file(file).keys() == load_file(tiny_zoo / "pretrained.safetensors").keys()
    assert "Exported, read back and compared." in texts(app)
    assert str(file) in texts(app)
    assert f"<span>Colours</span><b>{pick.x[0]:.4f}</b>" in texts(app)
    (link,) = [link for link in app.get("link_button") if link.proto.label == "Download"]
    assert link.proto.url == f"/download/{pick.id}"
    app.text_input(key=f"export_name_{pick.id}").set_value("Mine").run()
    app.text_area(key=f"export_notes_{pick.id}").set_value("The first").run()
    app.button(key="export").click().run()
    wait_for_jobs(app, 1)
    pick = only_pick(home)
    assert (pick.name, pick.notes) == ("Mine", "The first")
    assert pick.exported.name.startswith("mine-")


def test_export_lists_picks_of_all_merges_and_the_address_tells_them_apart(
    visit: Callable[..., AppTest], home: Path, both: int
) -> None:
    store = Store(home)
    first = store.picks.add(both, np.array([0.25, 0.75]), {"kind": "unlabelled", "data": "light.npz"})
    second = store.picks.add(store.merges.all(1)[0].id, np.array([0.5, 0.5]), {"kind": "point"})
    app = visit("export", study=1, pick=first.id)
    assert app.selectbox(key="pick").value == str(first.id)
    assert app.selectbox(key="pick").options == [
        f"Pick {second.id} (point of the front)",
        f"Pick {first.id} (for unlabelled data: light.npz)",
    ]
    app.selectbox(key="pick").set_value(str(second.id)).run()
    assert app.query_params["pick"] == str(second.id)
    assert "0.5000" in texts(app)
    assert "Task arithmetic" in texts(app)


# Rules.


def write_rule(app: AppTest, rule: str) -> AppTest:
    app.segmented_control(key="choose_by").set_value("Rule").run()
    app.text_input(key="rule_text_1").input(rule).run()
    assert not app.exception, app.exception
    return app


def test_a_rule_chooses_among_all_merges_or_the_one_in_view(visit: Callable[..., AppTest], both: int) -> None:
    app = write_rule(visit("trade_offs", study=1), "maximize Colours")
    assert "<b>Task arithmetic</b>" in texts(app)
    assert len(app.success) == 1
    assert "By rule" in badges(app)
    app.selectbox(key="merge_in_view").set_value(str(both)).run()
    write_rule(app, "maximize Colours, all >= 1%")
    assert "<b>Pareto Merging" in texts(app)
    write_rule(app, "all >= 99.9%, maximize mean")
    assert len(app.warning) == 1
    assert "Nearest to the rule" in badges(app)


@pytest.mark.usefixtures("both")
def test_a_rule_may_be_a_share_of_single_and_of_pretrained(visit: Callable[..., AppTest], home: Path) -> None:
    app = write_rule(visit("trade_offs", study=1), "Colours >= 90% of single, maximize Stripes")
    assert len(app.error) == 1, "no fine-tuned model was measured"
    add_references(home)
    app = visit("trade_offs", study=1)
    for of in ("single", "pretrained"):
        write_rule(app, f"Colours >= 90% of {of}, maximize Stripes")
        assert not app.error
        assert app.success or app.warning
        rows, target = app.session_state["rule_rows_1"]
        assert rows == [{"objective": "Colours", "comparison": "at least", "value": 90.0, "unit": f"% of {of}"}]
        assert target == "maximize Stripes"


@pytest.mark.usefixtures("merge_id")
def test_a_wrong_rule_points_at_the_word_and_nothing_is_measured_near_it(visit: Callable[..., AppTest]) -> None:
    app = write_rule(visit("trade_offs", study=1), "maximize Colors")
    assert len(app.error) == 1
    line, caret = app.code[0].value.split("\n")
    assert caret.index("^") == line.index("Colors")
    assert app.button(key="refine").disabled


def test_measuring_near_a_rule_takes_up_what_it_finds(visit: Callable[..., AppTest], home: Path, merge_id: int) -> None:
    rule = "Colours >= 30%, maximize mean"
    app = write_rule(visit("trade_offs", study=1), rule)
    before = len(Store(home).evaluations.table(merge_id).X)
    app.button(key="refine").click().run()
    wait_for_jobs(app, 1)
    assert not app.error
    from pages.parts.shared import state

    (job,) = [job for job in state.jobs().for_study(1) if job.kind == "refine"]
    assert before <= len(Store(home).evaluations.table(merge_id).X) <= before + 12
    np.testing.assert_array_equal(picked(app).x, job.result.x)
    app.segmented_control(key="choose_by").set_value("Preference").run()
    set_sliders(app, 100, 0)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    assert "By preference" in badges(app), "what was found is taken up once"


# Unlabelled data.


def choose_for(app: AppTest, path: object, names: str = "") -> AppTest:
    app.segmented_control(key="choose_by").set_value("Unlabelled data").run()
    app.text_input(key="unlabelled_path_1").set_value(str(path)).run()
    app.text_area(key="unlabelled_names_1").set_value(names).run()
    app.button(key="unlabelled_choose").click().run()
    assert not app.exception, app.exception
    return wait_for_jobs(app, 1)


@pytest.mark.parametrize("narrowed", [True, False])
def test_the_surest_model_of_unlabelled_images_becomes_the_pick(
    visit: Callable[..., AppTest], both: int, tiny_zoo: Path, narrowed: bool
) -> None:
    from pages.parts.shared import state

    app = visit("trade_offs", study=1, **({"merge": both} if narrowed else {}))
    choose_for(app, tiny_zoo / "Light.npz")
    assert not app.error
    assert "For unlabelled data" in badges(app)
    (job,) = [job for job in state.jobs().for_study(1) if job.kind == "choose"]
    result = job.result
    least = int(np.argmin(result.entropies))
    assert picked(app).merge_id == result.merge_ids[least]
    assert set(result.merge_ids) == {both} if narrowed else len(set(result.merge_ids)) == 2
    np.testing.assert_array_equal(picked(app).x, result.points[least])
    assert f"{len(result.entropies)} models' predictions on 60 images" in texts(app)
    assert f"{result.entropies[least]:.3f} nats" in texts(app)
    set_sliders(app.segmented_control(key="choose_by").set_value("Preference").run(), 100, 0)
    app.segmented_control(key="choose_by").set_value("Unlabelled data").run()
    assert "By preference" in badges(app), "what was found is taken up once"


@pytest.mark.usefixtures("merge_id")
@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "A dataset's path must be a file"),
        ("hf://nowhere", "is no dataset's address"),
        ("/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_one_sentence(visit: Callable[..., AppTest], path: str, sentence: str) -> None:
    app = choose_for(visit("trade_offs", study=1), path)
    (message,) = errors(app)
    assert sentence in message
    assert message.count(". ") == 0
    assert "For unlabelled data" not in badges(app)


def test_class_names_are_separated_by_commas_or_lines() -> None:
    from pages.parts.trade_offs.unlabelled_form import parse_names

    assert parse_names("cat, dog\n\n big bird ,") == ("cat", "dog", "big bird")
    assert parse_names(" \n,") is None


@pytest.mark.usefixtures("merge_id")
def test_models_with_heads_are_not_offered_unlabelled_data(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    heads = replace(config_from_manifest(tiny_zoo, TASKS), family="classifier", architecture="resnet18")
    other = Store(home).studies.create("With heads", heads)
    add_points(home, other.id)
    app = visit("trade_offs", study=1)
    app.segmented_control(key="choose_by").set_value("Unlabelled data").run()
    app.selectbox(key="study").set_value(other.id).run()
    assert not app.exception, app.exception
    assert app.segmented_control(key="choose_by").options == ["Preference", "Rule"]
    assert app.slider(key=f"pref_{other.id}_Colours")


# N models and K objectives.


@pytest.fixture
def wide(home: Path, tiny_zoo: Path) -> Study:
    """Two models and four objectives: two metrics on one task, and a task without a model."""
    store = Store(home)
    three = config_from_manifest(tiny_zoo, ["Colours", "Stripes", "Light"])
    colours, stripes, light = three.tasks
    both = (METRICS["accuracy"], METRICS["loss"])
    config = replace(
        three,
        models={name: three.models[name] for name in TASKS},
        tasks=(replace(colours, metrics=both), stripes, replace(light, model=None)),
    )
    study = store.studies.create("Wide", config)
    merge = store.merges.all(study.id)[0]
    grid = np.random.default_rng(1).uniform(size=(9, 2))
    for x in np.vstack([np.zeros(2), np.eye(2), grid]):
        values = (0.3 + 0.5 * x[0] - 0.1 * x[1], 2 - x[0] + 0.3 * x[1], 0.3 + 0.5 * x[1], 0.9 - 0.3 * x.sum())
        for objective, value in zip(config.objectives, values, strict=True):
            for split in ("val", "test"):
                store.evaluations.add(merge.id, x, objective.key, split, outcome(float(value)))
    study = store.studies.get(study.id)
    store.close()
    return study


def test_two_models_of_four_objectives_have_a_slider_and_a_tile_each(
    visit: Callable[..., AppTest], wide: Study
) -> None:
    app = visit("trade_offs", study=wide.id)
    names = ["Colours accuracy", "Colours loss", "Stripes", "Light"]
    assert [objective.name for objective in wide.config.objectives] == names
    for name in names:
        assert app.slider(key=f"pref_{wide.id}_{name}").value == 50
    (tiles,) = [found.value for found in app.get("html") if 'class="tiles pick"' in found.value]
    assert [f"<h4>{name}</h4>" in tiles for name in names] == [True] * 4
    facts = next(found.value for found in app.get("html") if "<span>Merge</span>" in found.value)
    assert facts.count("<span>") == 3, "the merge and a coefficient of each model"
    assert [options.value for options in app.selectbox if "front_colour" in str(options.key)]

    app.segmented_control(key="choose_by").set_value("Rule").run()
    for number in range(2):
        app.button(key=f"rule_example_{number}").click().run()
        assert not app.error, number
        assert app.success or app.warning, number
    rule = '"Colours loss" <= 110% of single, Light >= 80% of pretrained, maximize Stripes'
    app.text_input(key=f"rule_text_{wide.id}").input(rule).run()
    assert not app.error
    assert app.success or app.warning
    app.segmented_control(key=f"front_view_{wide.id}").set_value("Scatter").run()
    assert not app.exception, app.exception


def test_a_study_of_one_objective_has_a_front_of_one_point(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    store = Store(home)
    config = config_from_manifest(tiny_zoo, TASKS)
    study = store.studies.create("One", replace(config, tasks=config.tasks[:1]))
    merge = store.merges.all(study.id)[0]
    for x in np.random.default_rng(1).uniform(size=(9, 2)):
        store.evaluations.add(merge.id, x, "Colours/accuracy", "val", outcome(float(0.3 + 0.2 * x[0] - 0.1 * x[1])))
    store.close()
    app = visit("trade_offs", study=study.id)
    assert "The front is a single point" in app.info[0].value
    assert "<h4>Colours</h4>" in texts(app)
    assert not app.error
