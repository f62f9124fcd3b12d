"""Comparisons: whose models count, what they are compared by, and what they lack made and measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import isnan, nan, sqrt
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.studies.analysis.siblings import sibling
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.runs.baselines import BASELINES, baseline_values, estimate_baselines
from mapmerge_core.tasks.metric import ACCURACY, LOSS, Outcome

from mapmerge_core.errors import Cancelled, SearchError, StudyError
from mapmerge_core.studies.analysis.analysis import findings
from mapmerge_core.studies.analysis.comparing import compare, complete, to_table
from mapmerge_core.studies.config.demo import demo_runs, find_demo_study
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.studies.runs.completing import estimate_completion
from mapmerge_core.studies.runs.runner import execute_run

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store.rows import RunRow, Split, StudyRow
    from mapmerge_core.studies.store.store import Store

N_TEST = 50


def metrics_at(c: np.ndarray) -> np.ndarray:
    """Made-up accuracies of the two tasks: each grows with its own coefficient and falls with the other."""
    return np.array([0.4 + 0.5 * c[0] - 0.2 * c[1] ** 2, 0.3 + 0.6 * c[1] - 0.25 * c[0] ** 2])


def put(store: Store, study: StudyRow, c: np.ndarray, split: Split, values: np.ndarray | None = None) -> None:
    values = metrics_at(c) if values is None else values
    for task, value in zip(study.spec.task_names, values, strict=True):
        store.add_evaluation(study.id, c, task, split, Outcome(float(value), N_TEST, b"", 0.5))


def done_run(store: Store, study: StudyRow, method: str = "map", points: int = 12, **settings: object) -> RunRow:
    """A run whose evaluations are made up; those that the store knows stay as they are."""
    run = store.create_run(study.id, RunSettings(points=points, **settings), method)
    asking = run.settings.make_method(method, study.spec)
    while (batch := asking.ask()) is not None:
        names = [study.spec.task_names[task] for task in batch.tasks]
        for c in batch.C:
            for name, task in zip(names, batch.tasks, strict=True):
                outcome = Outcome(float(metrics_at(c)[task]), N_TEST, b"", 0.5)
                store.add_evaluation(study.id, c, name, "val", outcome)
        known = [store.measured(study.id, c, "val") for c in batch.C]
        asking.tell(batch, np.array([[row[name] for name in names] for row in known]))
    store.set_status(run.id, "done")
    return store.run(run.id)


def put_everything(store: Store, study: StudyRow) -> None:
    """Makes up the test metrics of all that is compared."""
    for row in compare(store, study.id).rows:
        for c in row.front_c if row.front_c is not None else [row.c]:
            put(store, study, c, "test")


def test_a_bare_study_has_references_and_task_arithmetic_by_preference(store: Store, study: StudyRow):
    comparison = compare(store, study.id)
    keys = ["preference", "single-Colours", "single-Stripes", "pretrained"]
    assert [row.key for row in comparison.rows] == keys
    np.testing.assert_array_equal(comparison.weights, [0.5, 0.5])
    np.testing.assert_array_equal(comparison.row("preference").c, comparison.weights)
    np.testing.assert_array_equal(comparison.row("single-Stripes").c, [0, 1])
    np.testing.assert_array_equal(comparison.row("pretrained").c, [0, 0])
    # The equal preference and twenty others, two single-task models, the pre-trained one; two tasks each.
    assert comparison.missing == 2 * (21 + 2 + 1)
    assert comparison.preferences.shape == (20, 2)
    np.testing.assert_allclose(comparison.preferences.sum(axis=1), 1)
    assert [kind.name for kind in comparison.offered] == [kind.name for kind in BASELINES]
    assert comparison.wins == {}
    assert np.isnan(comparison.single).all()
    assert np.isnan(comparison.n_test).all()
    assert all(np.isnan(comparison.sums[key]).all() for key in keys)


def test_direct_search_offers_the_best_of_what_it_measured_itself(store: Store, study: StudyRow):
    run = done_run(store, study, "direct", points=9)
    put(store, study, np.array([0.5, 0.5]), "val", np.array([1.0, 1.0]))  # somebody else's, and better
    weights = {"Colours": 3.0, "Stripes": 1.0}
    row = compare(store, study.id, weights=weights).row(f"run-{run.id}")
    C = run.settings.make_method("direct", study.spec).ask().C
    best = max(C, key=lambda c: metrics_at(c) @ [0.75, 0.25])
    np.testing.assert_array_equal(row.c, best)
    np.testing.assert_array_equal(row.front_c[0], best)
    assert {tuple(c) for c in row.front_c} <= {tuple(c) for c in C}
    assert (row.name, row.kind, row.method, row.problem) == ("Direct search", "run", "direct", "")


def test_map_offers_what_its_surrogates_say_is_best(store: Store, study: StudyRow):
    """The made-up metrics are quadratics, so an identity link fits them exactly."""
    run = done_run(store, study, link="identity")
    row = compare(store, study.id, weights={"Colours": 1.0, "Stripes": 1.0}).row(f"run-{run.id}")
    # d/dc0 of the sum is 0.5 - 0.5 c0, d/dc1 is 0.6 - 0.4 c1: the best model of the box is its corner.
    np.testing.assert_allclose(row.c, [1, 1], atol=0.02)


def test_evaluations_count_whoever_measured_them(store: Store, study: StudyRow):
    first = done_run(store, study, points=12)
    second = done_run(store, study, "direct", points=12)  # the same design
    assert store.run(second.id).n_evaluations == 0
    rows = [compare(store, study.id).row(f"run-{run.id}") for run in (first, second)]
    assert [row.evaluations for row in rows] == [24, 24]
    assert [row.seconds for row in rows] == [pytest.approx(12.0), pytest.approx(12.0)]


def test_sums_and_wins_are_those_of_the_measured_metrics(store: Store, study: StudyRow):
    run = done_run(store, study)
    put_everything(store, study)
    comparison = compare(store, study.id)
    key = f"run-{run.id}"
    assert comparison.missing == 0
    row = comparison.row(key)
    np.testing.assert_allclose(row.front, [metrics_at(c) for c in row.front_c])
    for sums, preference in zip(comparison.sums["preference"], comparison.preferences, strict=True):
        assert sums == pytest.approx(preference @ metrics_at(preference))
    np.testing.assert_allclose(comparison.sums["pretrained"], comparison.preferences @ [0.4, 0.3])
    ours, theirs = comparison.sums[key], comparison.sums["single-Colours"]
    rate = sum(a > b for a, b in zip(ours, theirs, strict=True)) / 20
    assert comparison.wins["single-Colours"] == pytest.approx((rate, sqrt(rate * (1 - rate) / 19)))
    assert set(comparison.wins) == {row.key for row in comparison.rows} - {key}


def test_a_model_that_was_not_measured_everywhere_wins_nothing(store: Store, study: StudyRow):
    run = done_run(store, study)
    put_everything(store, study)
    shown = {"Colours": 0.9, "Stripes": 0.1}
    comparison = compare(store, study.id, weights=shown)
    # Another shown preference needs other models, but no other sums and wins.
    assert comparison.missing > 0
    assert comparison.wins == compare(store, study.id).wins
    assert np.isnan(comparison.row("preference").metrics).all()
    other = compare(store, study.id, seed=5)
    assert np.isnan(other.sums[f"run-{run.id}"]).any()
    assert other.wins == {}


def test_the_latest_map_run_is_maps(store: Store, study: StudyRow):
    first, second = done_run(store, study), done_run(store, study, seed=3)
    put_everything(store, study)
    comparison = compare(store, study.id)
    assert f"run-{first.id}" in comparison.wins
    assert f"run-{second.id}" not in comparison.wins
    names = [row.name for row in comparison.rows if row.kind == "run"]
    assert names == ["MAP, seed 0", "MAP, seed 3"]


def test_the_weighted_sum_has_binomial_intervals(store: Store, study: StudyRow):
    done_run(store, study)
    put_everything(store, study)
    comparison = compare(store, study.id, weights={"Colours": 1, "Stripes": 3})
    np.testing.assert_array_equal(comparison.n_test, [N_TEST, N_TEST])
    np.testing.assert_allclose(comparison.single, [0.9, 0.9])
    pretrained = comparison.row("pretrained")
    value, lower, upper = comparison.weighted(pretrained)
    half = 1.6448536 * sqrt(0.25**2 * 0.4 * 0.6 / 50 + 0.75**2 * 0.3 * 0.7 / 50)
    assert (value, lower, upper) == pytest.approx((0.325, 0.325 - half, 0.325 + half))
    shares = comparison.weighted(pretrained, normalise=True)
    assert shares == pytest.approx(tuple(end / 0.9 for end in (value, lower, upper)))
    assert comparison.own_weighted() == pytest.approx(0.9)
    assert comparison.own_weighted(normalise=True) == pytest.approx(1.0)


def test_the_weighted_sum_of_losses_has_no_interval(store: Store, study: StudyRow):
    done_run(store, study)
    put_everything(store, study)
    mixed = replace(compare(store, study.id), metrics=(ACCURACY, LOSS), weights=np.array([0.25, 0.75]))
    row = replace(mixed.row("pretrained"), metrics=np.array([0.4, 3.0]))
    value, *ends = mixed.weighted(row)
    assert value == pytest.approx(0.25 * 0.4 - 0.75 * 3.0)
    assert np.isnan(ends).all()
    half = 1.6448536 * sqrt(0.4 * 0.6 / 50)
    alone = replace(mixed, weights=np.array([1.0, 0.0]))
    assert alone.weighted(row) == pytest.approx((0.4, 0.4 - half, 0.4 + half))
    assert (mixed.has_intervals, alone.has_intervals) == (False, True)
    # A person's own function gives one number for a whole split, of which nothing is known.
    single_number = replace(alone, n_test=np.array([1.0, 50.0]))
    assert np.isnan(single_number.weighted(row)[1:]).all()
    assert not single_number.has_intervals


def test_weighted_losses_are_read_as_they_are_where_nothing_else_is_weighed(store: Store, study: StudyRow):
    put_everything(store, study)
    comparison = compare(store, study.id)
    own = comparison.row("pretrained").metrics  # 0.4 and 0.3

    def preference(metrics: tuple, weights: list[float]) -> float:
        changed = replace(comparison, metrics=metrics, weights=np.array(weights))
        return to_table(changed).set_index("model").loc["Pre-trained", "preference"]

    assert preference((LOSS, LOSS), [0.25, 0.75]) == pytest.approx(0.25 * own[0] + 0.75 * own[1])
    assert preference((ACCURACY, LOSS), [0.25, 0.75]) == pytest.approx(0.25 * own[0] - 0.75 * own[1])
    assert preference((ACCURACY, LOSS), [0.0, 1.0]) == pytest.approx(own[1])
    only = replace(comparison, metrics=(ACCURACY, LOSS), weights=np.array([0.0, 1.0]))
    assert (only.weighed, only.falls) == ((LOSS,), True)


def test_hypervolumes_are_shares_of_the_single_task_models(store: Store, study: StudyRow):
    run = done_run(store, study, "direct", points=9)
    assert isnan(compare(store, study.id).row(f"run-{run.id}").hypervolume)
    put_everything(store, study)
    comparison = compare(store, study.id)
    assert comparison.row("pretrained").hypervolume == pytest.approx(0.4 / 0.9 * 0.3 / 0.9)
    row = comparison.row(f"run-{run.id}")
    # The area under the steps of a front in two dimensions.
    steps = sorted(row.front / 0.9, key=lambda values: -values[0])
    area, height = 0.0, 0.0
    for width, top in steps:
        area, height = area + width * max(0.0, top - height), max(height, top)
    assert row.hypervolume == pytest.approx(area)


def test_runs_without_a_front_say_why(store: Store, study: StudyRow):
    waiting = store.create_run(study.id, RunSettings(points=12))
    stopped = store.create_run(study.id, RunSettings(points=12, seed=1))
    store.set_status(stopped.id, "stopped")
    failed = store.create_run(study.id, RunSettings(points=12, seed=2))
    store.set_status(failed.id, "failed", "The disk is full.")
    few = done_run(store, study, points=4, seed=4)
    comparison = compare(store, study.id)
    problems = {run.id: comparison.row(f"run-{run.id}").problem for run in (waiting, stopped, failed, few)}
    assert "still going on" in problems[waiting.id]
    assert "resume it" in problems[stopped.id]
    assert "The disk is full." in problems[failed.id]
    assert "points" in problems[few.id]
    row = comparison.row(f"run-{few.id}")
    assert (row.c, row.front_c, row.evaluations) == (None, None, 8)
    assert isnan(row.metrics[0])


def test_siblings_runs_are_rows_and_references_come_from_the_plain_study(store: Store, study: StudyRow):
    done_run(store, study)
    dropped = sibling(store, study, Transform("dare", drop=0.5))
    other = done_run(store, dropped)
    store.create_run(dropped.id, RunSettings(points=12, seed=9))  # unfinished
    store.create_study("The same again", study.spec)
    comparison = compare(store, study.id)
    runs = [row for row in comparison.rows if row.kind == "run"]
    assert [row.name for row in runs] == ["MAP", "MAP on DARE 50 %"]
    assert (runs[1].study_id, runs[1].run_id) == (dropped.id, other.id)
    assert {row.study_id for row in comparison.rows if row.kind != "run"} == {study.id}
    from_there = compare(store, dropped.id)
    assert {row.study_id for row in from_there.rows if row.kind != "run"} == {study.id}
    assert len([row for row in from_there.rows if row.kind == "run"]) == 3
    # What is measured in one of them is not the other's.
    put(store, study, runs[1].c, "test")
    assert isnan(compare(store, study.id).row(runs[1].key).metrics[0])
    put(store, dropped, runs[1].c, "test")
    np.testing.assert_allclose(compare(store, study.id).row(runs[1].key).metrics, metrics_at(runs[1].c))


def test_a_sibling_is_made_once_and_named_for_its_transform(store: Store, study: StudyRow):
    transform = Transform("ties_trim", keep=0.2)
    made = sibling(store, study, transform)
    assert (made.name, made.spec.transform) == ("Tiny on TIES-trim 20 %", transform)
    assert sibling(store, study, transform).id == made.id
    assert sibling(store, made, None).id == study.id
    assert sibling(store, study, None).id == study.id
    assert sibling(store, made, Transform("dare", drop=0.25)).name == "Tiny on DARE 25 %"
    assert len(store.studies()) == 3
    unnamed = store.create_study(None, replace(study.spec, transform=transform))
    assert unnamed.name == "Colours + Stripes on TIES-trim 20 %"


def test_nested_map_offers_one_model(store: Store, study: StudyRow):
    run = done_run(store, study, "nested", points=10)
    row = compare(store, study.id, weights={"Colours": 1}).row(f"run-{run.id}")
    assert row.front_c.shape == (1, 2)
    np.testing.assert_array_equal(row.front_c[0], row.c)
    assert row.evaluations == 20


def test_a_finished_run_is_replayed_once(store: Store, study: StudyRow, monkeypatch: pytest.MonkeyPatch):
    run = done_run(store, study)
    calls = []
    real = findings.replay
    monkeypatch.setattr(findings, "replay", lambda *args: calls.append(args) or real(*args))
    for _ in range(3):
        compare(store, study.id)
    put(store, study, np.array([0.3, 0.3]), "val")
    first = compare(store, study.id).row(f"run-{run.id}").c
    assert len(calls) == 1
    np.testing.assert_array_equal(compare(store, study.id).row(f"run-{run.id}").c, first)
    compare(store, study.id, seed=1)
    assert len(calls) == 2


def test_the_table_has_what_a_row_has(store: Store, study: StudyRow):
    done_run(store, study)
    put_everything(store, study)
    comparison = compare(store, study.id)
    table = to_table(comparison, normalise=True).set_index("model")
    line = table.loc["Pre-trained"]
    assert list(table.columns[:5]) == ["kind", "Colours", "Stripes", "mean", "worst"]
    assert line["Colours"] == pytest.approx(0.4 / 0.9)
    assert line["mean"] == pytest.approx(0.35 / 0.9)
    assert line["worst"] == pytest.approx(0.3 / 0.9)
    assert line["preference"] == pytest.approx(0.35 / 0.9)
    assert line["MAP wins"] == comparison.wins["pretrained"][0]
    assert isnan(table.loc["MAP", "MAP wins"])
    assert table.loc["MAP", "evaluations"] == 24
    assert to_table(comparison).set_index("model").loc["Pre-trained", "Colours"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("weights", "error", "sentence"),
    [
        ({"Flags": 1.0}, StudyError, "There is no task 'Flags'"),
        ({"Colours": 0.0}, SearchError, "Every weight is zero"),
        ({"Colours": -1.0}, SearchError, "negative or not finite"),
        ({"Colours": nan}, SearchError, "negative or not finite"),
    ],
)
def test_preferences_that_can_not_be_used(
    store: Store, study: StudyRow, weights: dict[str, float], error: type[Exception], sentence: str
):
    with pytest.raises(error, match=sentence):
        compare(store, study.id, weights=weights)


def test_what_is_not_there(store: Store, study: StudyRow):
    with pytest.raises(StudyError, match="no study 99"):
        compare(store, 99)
    with pytest.raises(SearchError, match="seed -1"):
        compare(store, study.id, seed=-1)
    with pytest.raises(StudyError, match="has no row 'ties': it has Task arithmetic by preference; "):
        compare(store, study.id).row("ties")


def test_everything_is_made_and_measured_once(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    run = store.create_run(study.id, RunSettings(points=8))
    execute_run(store, run.id, evaluators.get)
    reports: list[tuple[int, int]] = []
    complete(
        store, study.id, evaluators.get, baselines=["soup", "ties"],
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    comparison = compare(store, study.id)
    assert comparison.missing == 0
    assert {"soup", "ties"} <= {row.key for row in comparison.rows}
    assert "slerp" in [kind.name for kind in comparison.offered]
    assert reports[0][0] == 0
    assert reports == sorted(reports)
    assert len({total for _, total in reports}) == 1
    assert reports[-1][0] == reports[-1][1]
    soup, ties = comparison.row("soup"), comparison.row("ties")
    np.testing.assert_array_equal(soup.c, [0.5, 0.5])
    assert ties.c is None
    np.testing.assert_array_equal(ties.metrics, baseline_values(store, store.baseline(ties.baseline_id)))
    # Evaluated independently: a test accuracy of the average of both models.
    measured = evaluators.get(study).evaluate(np.array([0.5, 0.5]), split="test")
    np.testing.assert_array_equal(soup.metrics, [measured[task].value for task in comparison.tasks])
    n_evaluations = store.study(study.id).n_evaluations
    complete(store, study.id, evaluators.get, baselines=False)
    complete(store, study.id, evaluators.get, baselines=["soup"])
    assert store.study(study.id).n_evaluations == n_evaluations
    assert len(store.baselines(study.id)) == 2


def test_a_completion_that_was_stopped_goes_on(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    cancel = Event()

    def stop_soon(done: int, _: int) -> None:
        if done >= 5:
            cancel.set()

    with pytest.raises(Cancelled):
        complete(store, study.id, evaluators.get, baselines=["soup"], cancel=cancel, progress=stop_soon)
    kept = [row.id for row in store.evaluations(study.id, "test")]
    assert len(kept) == 5
    complete(store, study.id, evaluators.get, baselines=["soup"])
    assert [row.id for row in store.evaluations(study.id, "test")][:5] == kept
    assert compare(store, study.id).missing == 0


def test_siblings_are_measured_with_their_own_models(store: Store, study: StudyRow, evaluators: EvaluatorCache):
    trimmed = sibling(store, study, Transform("ties_trim", keep=0.1))
    run = store.create_run(trimmed.id, RunSettings(points=8))
    execute_run(store, run.id, evaluators.get)
    complete(store, study.id, evaluators.get, baselines=False)
    comparison = compare(store, study.id)
    row = comparison.row(f"run-{run.id}")
    assert row.study_id == trimmed.id
    expected = evaluators.get(trimmed).evaluate(row.c, split="test")
    np.testing.assert_array_equal(row.metrics, [expected[task].value for task in comparison.tasks])
    assert compare(store, trimmed.id).missing == 0


def test_the_demos_study_is_found_again_until_its_files_change(store: Store, tiny_zoo: Path, tmp_path: Path):
    zoo = shutil.copytree(tiny_zoo, tmp_path / "zoo")
    study = find_demo_study(store, 2, zoo=zoo)
    assert study.name == "Demo: Colours + Stripes"
    assert find_demo_study(store, 2, zoo=zoo).id == study.id
    assert find_demo_study(store, 3, zoo=zoo).id != study.id
    model = zoo / "Stripes.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    new = find_demo_study(store, 2, zoo=zoo)
    assert new.name == "Demo: Colours + Stripes (2)"
    assert find_demo_study(store, 2, zoo=zoo).id == new.id


def test_the_demo_compares_every_method_in_its_box():
    runs = dict(demo_runs(5, seed=4))
    assert list(runs) == ["map", "bayesian", "nested", "direct"]
    # The paper's budgets (Table 2, Appendix C.1), Bayesian MAP's two points a parameter.
    assert [settings.points for settings in runs.values()] == [85, 42, 20, 500]
    assert [settings.high for settings in runs.values()] == [0.6, 0.6, 1.0, 0.6]
    assert {settings.seed for settings in runs.values()} == {4}


def test_the_estimate_counts_baselines_and_what_is_not_measured_yet(store: Store, study: StudyRow):
    assert estimate_completion(store, study.id) is None
    done_run(store, study)
    of_baselines = estimate_baselines(store, study)
    assert of_baselines is not None
    # Every made-up evaluation took half a second.
    expected = of_baselines + 0.5 * compare(store, study.id).missing
    assert estimate_completion(store, study.id) == pytest.approx(expected)
    put_everything(store, study)
    assert estimate_completion(store, study.id) == pytest.approx(estimate_baselines(store, study))


def test_baselines_that_a_study_can_not_have(store: Store, study: StudyRow, evaluators: EvaluatorCache, tiny_zoo: Path):
    three = store.create_study("Three", spec_from_manifest(tiny_zoo))
    assert "slerp" not in [kind.name for kind in compare(store, three.id).offered]
    with pytest.raises(StudyError, match="SLERP merges two models, not 3"):
        complete(store, three.id, evaluators.get, baselines=["slerp"])
    with pytest.raises(StudyError, match="'salad' is unknown"):
        complete(store, study.id, evaluators.get, baselines=["salad"])
    lone = replace(spec_from_manifest(tiny_zoo, ["Stripes", "Light"]), transform=Transform("dare"))
    lone_id = store.create_study("Lone", lone).id
    assert compare(store, lone_id).offered == ()
    with pytest.raises(StudyError, match="without DARE 50 %"):
        complete(store, lone_id, evaluators.get, baselines=["slerp"])
    assert store.evaluations(three.id, "test") == []
