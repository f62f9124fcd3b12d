"""Trade-offs and Export of a learned set: every preference has a model, some of them are measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.tasks.metric import Outcome
from safetensors.numpy import load_file

from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.store.store import Store
from tests.pages.conftest import texts, wait_for_jobs
from tests.pages.test_compare import choose

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamlit.testing.v1 import AppTest

    from mapmerge_core.studies.store.rows import LearnedPickRow, RunRow

TASKS = ("Colours", "Stripes")
TRAINING = Training(steps=4, rank=2, batch_size=8, lr=0.05)


def learn(store: Store, study_id: int, training: Training, points: int = 5) -> RunRow:
    settings = RunSettings(points=points, training=training, device="cpu")
    run = store.create_run(study_id, settings, "pareto_merging")
    with store.claim_run(run.id):
        execute_run(store, run.id, EvaluatorCache().get)
    return store.run(run.id)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Path:
    """A data folder with a study of two tasks and a set that was learned in it."""
    folder = tmp_path_factory.mktemp("trained")
    store = Store(folder)
    study = store.create_study("Learned", spec_from_manifest(tiny_zoo, list(TASKS)))
    assert learn(store, study.id, TRAINING).status == "done"
    store.close()
    return folder


@pytest.fixture
def run(home: Path, trained: Path) -> RunRow:
    """The run that learned the set, in a data folder of the test's own."""
    shutil.copytree(trained, home)
    store = Store(home)
    (run,) = store.runs(1)
    store.close()
    return run


def add_surrogates(home: Path, study_id: int = 1) -> None:
    """Points enough for surrogates, made up."""
    store = Store(home)
    for c in np.random.default_rng(0).uniform(size=(8, 2)):
        for task, value in zip(TASKS, (0.3 + 0.4 * c[0] - 0.1 * c[1], 0.3 + 0.4 * c[1] - 0.2 * c[0]), strict=True):
            store.add_evaluation(study_id, c, task, "val", Outcome(value, 60, b"", 0.1))
    store.close()


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


def said(app: AppTest) -> list[str]:
    return [error.value.replace("\\", "") for error in app.error]


def test_without_surrogates_the_page_opens_with_the_learned_set(
    visit: Callable[..., AppTest], home: Path, run: RunRow
) -> None:
    app = visit("trade_offs", study=1)
    assert app.segmented_control(key="models_from").options == [f"Pareto Merging, run {run.id}"]
    assert app.query_params["learned"] == str(run.id)
    gammas, values = Store(home).learned_table(run.id)
    (equal,) = np.flatnonzero((gammas == 0.5).all(axis=1))
    assert percents(app) == shown(values[equal])
    assert "By preference" in badges(app)
    assert "Measured on validation" in badges(app)
    assert "preference 50%" in texts(app)
    assert app.button(key="measure_val").disabled
    assert not app.button(key="measure").disabled


def test_the_chart_shows_every_measured_preference_in_order(
    visit: Callable[..., AppTest], home: Path, run: RunRow
) -> None:
    import json

    app = visit("trade_offs", study=1)
    gammas, values = Store(home).learned_table(run.id)
    order = np.argsort(gammas[:, 0])
    traces = [trace for chart in app.get("plotly_chart") for trace in json.loads(chart.proto.spec)["data"]]
    (points,) = [trace for trace in traces if trace.get("name") == "Measured preferences"]
    for row, text in zip(order, points["text"], strict=True):
        assert f"(preference {100 * gammas[row, 0]:.3g}%)" in text
        assert f"<b>Colours</b>  {100 * values[row, 0]:.1f}%" in text


def test_with_surrogates_the_front_comes_first_and_the_address_chooses_the_set(
    visit: Callable[..., AppTest], home: Path, run: RunRow
) -> None:
    add_surrogates(home)
    app = visit("trade_offs", study=1)
    assert app.segmented_control(key="models_from").value == "front"
    assert "learned" not in app.query_params
    assert "coefficient" in texts(app)

    app = visit("trade_offs", study=1, learned=run.id)
    assert app.segmented_control(key="models_from").value == str(run.id)
    assert "preference 50%" in texts(app)
    app.segmented_control(key="models_from").set_value("front").run()
    assert "learned" not in app.query_params
    assert "coefficient" in texts(app)
    app.segmented_control(key="models_from").set_value(str(run.id)).run()
    app.switch_page("pages/evaluate.py").run()
    app.switch_page("pages/trade_offs.py").run()
    assert app.query_params["learned"] == str(run.id), "the session keeps what was in view"


@pytest.mark.parametrize("asked", ["99", "x", "-1", "9" * 5000])
def test_a_set_that_is_not_there_is_said_and_another_shown(
    visit: Callable[..., AppTest], run: RunRow, asked: str
) -> None:
    app = visit("trade_offs", study=1, learned=asked)
    (warning,) = app.warning
    assert warning.value.replace("\\", "").startswith(f"This study has no learned set {asked}: ")
    assert app.query_params["learned"] == str(run.id)


def test_the_set_of_another_study_is_no_warning(
    visit: Callable[..., AppTest], home: Path, run: RunRow, tiny_zoo: Path
) -> None:
    store = Store(home)
    other = store.create_study("Other", spec_from_manifest(tiny_zoo, list(TASKS)))
    add_surrogates(home, other.id)
    app = visit("trade_offs", study=1, learned=run.id)
    app.selectbox(key="study").set_value(other.id).run()
    assert not app.warning
    assert "learned" not in app.query_params
    assert "coefficient" in texts(app)


def test_titles_say_what_tells_sets_apart(run: RunRow, tiny_zoo: Path) -> None:
    from pages.parts.trade_offs.learned_choice import titled

    runs = [
        replace(run, id=7),
        replace(run, id=8, settings=RunSettings(points=5, training=replace(TRAINING, data_free=True))),
        replace(run, id=9, settings=RunSettings(points=5, training=replace(TRAINING, steps=2500))),
        replace(run, id=10, settings=RunSettings(points=5)),
    ]
    spec = spec_from_manifest(tiny_zoo, list(TASKS))
    assert [title for _, title in titled(spec, runs[:2])] == [
        "Pareto Merging, run 7",
        "Pareto Merging, data-free, run 8",
    ]
    assert [title for _, title in titled(spec, runs[2:])] == [
        "Pareto Merging, run 9 · 2,500 steps · rank 2",
        "Pareto Merging, run 10 · 2,000 steps · rank 16",
    ]


def test_between_measured_preferences_metrics_are_interpolated(
    visit: Callable[..., AppTest], home: Path, run: RunRow
) -> None:
    app = set_sliders(visit("trade_offs", study=1), 65, 35)
    gammas, values = Store(home).learned_table(run.id)
    order = np.argsort(gammas[:, 0])
    # With a linear kernel radial basis functions of one number join the points by straight lines.
    between = [np.interp(0.65, gammas[order, 0], column) for column in values[order].T]
    assert percents(app) == shown(np.array(between))
    assert "Interpolated between measured preferences" in badges(app)
    assert "preference 65%" in texts(app)
    assert not app.button(key="measure_val").disabled


def test_measuring_makes_an_interpolated_preference_a_measured_one(
    visit: Callable[..., AppTest], home: Path, run: RunRow
) -> None:
    app = set_sliders(visit("trade_offs", study=1), 65, 35)
    app.button(key="measure_val").click().run()
    wait_for_jobs(app, 1)
    gammas, values = Store(home).learned_table(run.id)
    assert len(gammas) == 6
    np.testing.assert_allclose(gammas[-1], [0.65, 0.35])
    assert percents(app) == shown(values[-1])
    assert "Measured on validation" in badges(app)
    assert app.button(key="measure_val").disabled


def test_the_very_model_is_measured_on_test(visit: Callable[..., AppTest], home: Path, run: RunRow) -> None:
    app = set_sliders(visit("trade_offs", study=1), 65, 35)
    app.button(key="measure").click().run()
    wait_for_jobs(app, 1)
    measured = Store(home).learned_measured(run.id, np.array([0.65, 0.35]), "test")
    assert set(measured) == set(TASKS)
    for value in measured.values():
        assert f"{100 * value:.1f}% on test" in texts(app)
    assert app.button(key="measure").disabled
    assert not app.button(key="measure_val").disabled, "validation is another measurement"


@pytest.mark.usefixtures("run")
def test_no_weight_at_all_is_one_sentence_and_the_pick_stays(visit: Callable[..., AppTest]) -> None:
    app = set_sliders(visit("trade_offs", study=1), 0, 35)
    before = percents(app)
    set_sliders(app, 0, 0)
    assert said(app) == ["Every weight is zero: give at least one task a weight above zero."]
    assert percents(app) == before
    assert "preference 100%" in texts(app)


def test_both_views_follow_the_same_sliders(visit: Callable[..., AppTest], home: Path, run: RunRow) -> None:
    add_surrogates(home)
    app = set_sliders(visit("trade_offs", study=1, learned=run.id), 100, 0)
    app.segmented_control(key="models_from").set_value("front").run()
    assert [app.slider(key=f"pref_1_{task}").value for task in TASKS] == [100, 0]
    set_sliders(app, 100, 100)
    app.segmented_control(key="models_from").set_value(str(run.id)).run()
    assert "preference 50%" in texts(app)


def test_a_clicked_point_is_picked_and_moves_the_sliders(visit: Callable[..., AppTest], run: RunRow) -> None:
    from streamlit.testing.v1 import AppTest as Script

    def click() -> None:
        import streamlit as st

        from pages.parts.shared import choice, state
        from pages.parts.trade_offs import learned_choice

        learned = state.learned_set(int(st.session_state["run"]))
        learned_choice.by_point(1, learned, learned.gammas[learned.gammas[:, 0] == 0.75][0])
        st.session_state["kept"] = choice.preference(1)["weights"]

    script = Script.from_function(click)
    script.session_state["run"] = run.id
    script.run()
    assert not script.exception
    app = visit("trade_offs", study=1)
    for key in ("preference_1", f"learned_choice_{run.id}"):
        app.session_state[key] = script.session_state[key]
    app.run()
    assert "Point of the front" in badges(app)
    assert "preference 75%" in texts(app)
    assert [app.slider(key=f"pref_1_{task}").value for task in TASKS] == [75, 25]


def write_rule(app: AppTest, run: RunRow, rule: str) -> AppTest:
    app.segmented_control(key="choose_by").set_value("Rule").run()
    app.text_input(key=f"rule_text_1_{run.id}").input(rule).run()
    assert not app.exception, app.exception
    return app


def test_a_rule_picks_among_measured_preferences(visit: Callable[..., AppTest], home: Path, run: RunRow) -> None:
    _, values = Store(home).learned_table(run.id)
    app = write_rule(visit("trade_offs", study=1), run, "maximize Stripes")
    assert percents(app)[1] == shown(values[:, 1:].max(axis=0))[0]
    assert len(app.success) == 1
    assert "By rule" in badges(app)
    write_rule(app, run, "all >= 99.9%, maximize mean")
    assert len(app.warning) == 1
    assert "Nearest to the rule" in badges(app)


def test_a_wrong_rule_points_at_the_word_and_nothing_is_measured_near_it(
    visit: Callable[..., AppTest], run: RunRow
) -> None:
    app = write_rule(visit("trade_offs", study=1), run, "maximize Colors")
    assert len(app.error) == 1
    line, caret = app.code[0].value.split("\n")
    assert caret.index("^") == line.index("Colors")
    assert app.button(key="refine").disabled


def test_measuring_near_a_rule_takes_up_what_it_finds(visit: Callable[..., AppTest], home: Path, run: RunRow) -> None:
    rule = "Colours >= 30%, maximize mean"
    app = write_rule(visit("trade_offs", study=1), run, rule)
    app.button(key="refine").click().run()
    wait_for_jobs(app, 1)
    assert not app.error
    gammas, values = Store(home).learned_table(run.id)
    assert 5 < len(gammas) <= 17
    meets = values[:, 0] >= 0.3
    best = values[meets].mean(axis=1).max()
    picked = app.session_state[f"learned_choice_{run.id}"]
    (row,) = np.flatnonzero(np.isclose(gammas, picked.gamma, atol=1e-9).all(axis=1))
    assert values[row].mean() == pytest.approx(best)
    assert percents(app) == shown(values[row])
    assert "Measured on validation" in badges(app)
    app.segmented_control(key="choose_by").set_value("Preference").run()
    set_sliders(app, 100, 0)
    app.segmented_control(key="choose_by").set_value("Rule").run()
    assert "By preference" in badges(app), "what was found is taken up once"


def choose_for(app: AppTest, path: object, names: str = "") -> AppTest:
    app.segmented_control(key="choose_by").set_value("Unlabelled data").run()
    app.text_input(key="unlabelled_path_1").set_value(str(path)).run()
    app.text_area(key="unlabelled_names_1").set_value(names).run()
    app.button(key="unlabelled_choose").click().run()
    assert not app.exception, app.exception
    return wait_for_jobs(app, 1)


@pytest.mark.parametrize("learned", [True, False])
def test_the_surest_model_of_unlabelled_images_becomes_the_pick(
    visit: Callable[..., AppTest], home: Path, run: RunRow, tiny_zoo: Path, learned: bool
) -> None:
    from pages.parts.shared import state

    add_surrogates(home)
    app = visit("trade_offs", study=1, **({"learned": run.id} if learned else {}))
    choose_for(app, tiny_zoo / "Light.npz")
    assert not app.error
    assert "For unlabelled data" in badges(app)
    (job,) = [job for job in state.jobs().for_study(1) if job.kind == "choose"]
    found = job.result
    least = int(np.argmin(found.entropies))
    point = app.session_state[f"learned_choice_{run.id}"].gamma if learned else app.session_state["choice_1"].c
    np.testing.assert_array_equal(point, found.points[least])
    assert f"{len(found.entropies)} models' predictions on 60 images" in texts(app)
    assert f"{found.entropies[least]:.3f} nats" in texts(app)
    set_sliders(app.segmented_control(key="choose_by").set_value("Preference").run(), 100, 0)
    app.segmented_control(key="choose_by").set_value("Unlabelled data").run()
    assert "By preference" in badges(app), "what was found is taken up once"


@pytest.mark.usefixtures("run")
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
    (message,) = said(app)
    assert sentence in message
    assert message.count(". ") == 0
    assert "For unlabelled data" not in badges(app)


def test_class_names_are_separated_by_commas_or_lines() -> None:
    from pages.parts.trade_offs.unlabelled_form import parse_names

    assert parse_names("cat, dog\n\n big bird ,") == ("cat", "dog", "big bird")
    assert parse_names(" \n,") is None


@pytest.mark.usefixtures("run")
def test_models_with_heads_are_not_offered_unlabelled_data(
    visit: Callable[..., AppTest], home: Path, tiny_zoo: Path
) -> None:
    spec = spec_from_manifest(tiny_zoo, list(TASKS))
    heads = replace(spec, family="classifier", architecture="resnet18")
    other = Store(home).create_study("With heads", heads)
    add_surrogates(home, other.id)
    app = visit("trade_offs", study=1)
    app.segmented_control(key="choose_by").set_value("Unlabelled data").run()
    app.selectbox(key="study").set_value(other.id).run()
    assert not app.exception, app.exception
    assert app.segmented_control(key="choose_by").options == ["Preference", "Rule"]
    assert app.slider(key=f"pref_{other.id}_Colours")


def only_pick(home: Path) -> LearnedPickRow:
    (pick,) = Store(home).learned_picks(1)
    return pick


@pytest.mark.usefixtures("run")
def test_a_preference_is_shortlisted_and_chosen_again(visit: Callable[..., AppTest], home: Path) -> None:
    app = set_sliders(visit("trade_offs", study=1), 65, 35)
    app.text_input(key="shortlist_note").set_value("more *colours*").run()
    app.button(key="shortlist_save").click().run()
    pick = only_pick(home)
    assert (pick.name, pick.shortlisted, pick.how) == ("more *colours*", True, {"kind": "preference"})
    np.testing.assert_allclose(pick.gamma, [0.65, 0.35])
    set_sliders(app, 0, 35)
    app.button(key=f"shortlist_choose_learned_{pick.id}").click().run()
    assert "From the shortlist" in badges(app)
    assert "preference 65%" in texts(app)
    app.button(key=f"shortlist_remove_learned_{pick.id}").click().run()
    assert not only_pick(home).shortlisted


@pytest.mark.usefixtures("run")
def test_a_learned_pick_is_exported(visit: Callable[..., AppTest], home: Path, tiny_zoo: Path) -> None:
    app = set_sliders(visit("trade_offs", study=1), 65, 35)
    app.button(key="export").click().run()
    assert app.title[0].value == "Export"
    pick = only_pick(home)
    assert app.query_params["learned_pick"] == str(pick.id)
    assert app.selectbox(key="pick").options[0].startswith(f"Pick {pick.id} (by preference)")
    wait_for_jobs(app, 1)
    app = visit("export", study=1, learned_pick=pick.id)
    file = only_pick(home).exported
    assert file is not None
    assert load_file(file).keys() == load_file(tiny_zoo / "pretrained.safetensors").keys()
    assert "Exported, read back and compared." in texts(app)
    assert str(file) in texts(app)
    assert "<span>Colours</span><b>65%</b>" in texts(app)
    (link,) = [link for link in app.get("link_button") if link.proto.label == "Download"]
    assert link.proto.url == f"/download/learned/{pick.id}"
    app.text_input(key=f"export_name_learned-{pick.id}").set_value("Mine").run()
    app.button(key="export").click().run()
    wait_for_jobs(app, 1)
    assert only_pick(home).name == "Mine"


def test_export_lists_picks_of_all_kinds_and_the_address_tells_them_apart(
    visit: Callable[..., AppTest], home: Path, run: RunRow
) -> None:
    store = Store(home)
    store.add_learned_pick(run.id, np.array([0.25, 0.75]), {"kind": "unlabelled", "data": "light.npz"})
    store.add_pick(1, np.array([0.5, 0.5]), {"kind": "point"})
    app = visit("export", study=1, learned_pick=1)
    assert app.selectbox(key="pick").value == "learned-1"
    assert "for unlabelled data: light.npz" in app.selectbox(key="pick").options[1]
    app.selectbox(key="pick").set_value("pick-1").run()
    assert app.query_params["pick"] == "1"
    assert "learned_pick" not in app.query_params
    assert "0.5000" in texts(app)


def test_the_set_itself_can_be_taken_along(visit: Callable[..., AppTest], home: Path, run: RunRow) -> None:
    app = visit("trade_offs", study=1)
    file = Store(home).learned_file(run.id)
    (link,) = [link for link in app.get("link_button") if link.proto.label.startswith("Download the set")]
    assert link.proto.url == f"/download/set/{run.id}"
    assert f"{file.stat().st_size / 1000:.1f} kB" in link.proto.label
    assert "Extra parameters" in texts(app)


def test_a_sets_row_of_compare_opens_and_is_exported(visit: Callable[..., AppTest], home: Path, run: RunRow) -> None:
    add_surrogates(home)
    app = visit("trade_offs", study=1)
    assert app.segmented_control(key="models_from").value == "front"
    app.switch_page("pages/compare.py").run()
    choose(app, 1, f"run-{run.id}")
    app.button(key="compare_open").click().run()
    assert app.title[0].value == "Trade-offs"
    assert app.query_params["learned"] == str(run.id)
    assert "From Compare" in badges(app)
    assert "preference 50%" in texts(app)
    app.switch_page("pages/compare.py").run()
    choose(app, 1, "single-Stripes")
    app.button(key="compare_open").click().run()
    assert "coefficient 1.000" in texts(app), "a row of coefficients opens the surrogates' front"
    app.switch_page("pages/compare.py").run()
    choose(app, 1, f"run-{run.id}")
    app.button(key="compare_export").click().run()
    assert app.title[0].value == "Export"
    pick = only_pick(home)
    assert pick.how["kind"] == "compared"
    np.testing.assert_array_equal(pick.gamma, [0.5, 0.5])
    wait_for_jobs(app, 1)
    assert only_pick(home).exported.is_file()


def test_a_set_whose_file_is_gone_is_one_sentence_and_the_front_can_still_be_seen(
    visit: Callable[..., AppTest], home: Path, run: RunRow
) -> None:
    add_surrogates(home)
    Store(home).learned_file(run.id).unlink()
    app = visit("trade_offs", study=1, learned=run.id)
    (message,) = said(app)
    assert message.startswith("The learned set is gone from ")
    app.segmented_control(key="models_from").set_value("front").run()
    assert not app.error
    assert "coefficient" in texts(app)
