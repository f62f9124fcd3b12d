"""Comparisons: whose models count, what they are compared by, and what they lack."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from math import isnan, nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import SearchError, SettingError, StudyError
from mapmerge_core.merges.base import applicable
from mapmerge_core.studies.analysis import Comparison, Row, compare, to_table
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from tests.studies.analysis.helpers import N_EXAMPLES, finish, first_merge, four_objectives, put, run_config
from tests.studies.conftest import tiny_config

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Run, Store, Study

ERROR = 0.07


def metrics_at(x: np.ndarray) -> np.ndarray:
    """Made-up accuracies of the two tasks: each grows with its own coefficient and falls with the other."""
    return np.array([0.4 + 0.5 * x[0] - 0.2 * x[1] ** 2, 0.3 + 0.6 * x[1] - 0.25 * x[0] ** 2])


def done_run(store: Store, study: Study, **settings: object) -> Run:
    return finish(store, study, metrics_at, own=False, **{"points": 12, **settings})


def put_everything(store: Store, study: Study, **weights: float) -> None:
    """Make up the test values of all that is compared; merges without coordinates have the same everywhere."""
    for merge_id, X in compare(store, study.id, weights=weights or None).wanted.items():
        values = [metrics_at(x) if len(x) else np.array([0.6, 0.7]) for x in X]
        put(store, merge_id, X, np.array(values), "test", standard_error=ERROR)


def named(comparison: Comparison, name: str) -> Row:
    [row] = [row for row in comparison.rows if row.name == name]
    return row


def test_a_bare_study_has_references_and_task_arithmetic(store: Store, study: Study):
    merge_id = first_merge(store, study)
    comparison = compare(store, study.id)
    keys = ["preference", f"merge-{merge_id}", "single-Colours", "single-Stripes", "pretrained"]
    assert [row.key for row in comparison.rows] == keys
    assert [row.kind for row in comparison.rows] == ["baseline", "baseline", "single", "single", "pretrained"]
    assert {row.merge_id for row in comparison.rows} == {merge_id}
    np.testing.assert_array_equal(comparison.weights, [0.5, 0.5])
    np.testing.assert_allclose(comparison.row("preference").x, comparison.weights)
    np.testing.assert_array_equal(comparison.row(keys[1]).x, [0.3, 0.3])
    np.testing.assert_array_equal(comparison.row("single-Stripes").x, [0, 1])
    np.testing.assert_array_equal(comparison.row("pretrained").x, [0, 0])
    # The equal preference and twenty others, the usual coefficient, two models, the pre-trained one; two tasks each.
    assert comparison.missing == 2 * (21 + 1 + 2 + 1)
    assert comparison.wanted[merge_id].shape == (25, 2)
    assert comparison.preferences.shape == (20, 2)
    np.testing.assert_allclose(comparison.preferences.sum(axis=1), 1)
    # Everything that the study can have is offered, task arithmetic for its best scalar.
    names = {merge.name for merge in comparison.offered}
    assert names == {merge.name for merge in applicable(study.config.facts()) if merge.variants}
    assert (comparison.winner, comparison.wins) == (None, {})
    assert np.isnan(comparison.single).all()
    assert np.isnan(comparison.n_test).all()
    assert not comparison.has_intervals
    assert all(np.isnan(comparison.sums[key]).all() for key in keys)


def test_direct_search_offers_the_best_of_what_it_measured_itself(store: Store, study: Study):
    run = done_run(store, study, method="direct", points=9)
    put(store, run.merge_id, np.array([0.5, 0.5]), np.array([1.0, 1.0]))  # somebody else's, and better
    row = compare(store, study.id, weights={"Colours": 3.0, "Stripes": 1.0}).row(f"run-{run.id}")
    X = run.config.make_method(study.config).ask().X
    best = max(X, key=lambda x: metrics_at(x) @ [0.75, 0.25])
    np.testing.assert_array_equal(row.x, best)
    np.testing.assert_array_equal(row.models[0], best)
    assert {tuple(x) for x in row.models} <= {tuple(x) for x in X}
    assert (row.name, row.kind, row.method, row.problem) == (run.config.label, "run", "direct", "")
    assert (row.merge_id, row.run_id) == (run.merge_id, run.id)


def test_map_offers_what_its_surrogates_say_is_best(store: Store, study: Study):
    """The made-up metrics are quadratics, so an identity link fits them exactly."""
    run = done_run(store, study, link="identity")
    row = compare(store, study.id, weights={"Colours": 1.0, "Stripes": 1.0}).row(f"run-{run.id}")
    # d/dx0 of the sum is 0.5 - 0.5 x0, d/dx1 is 0.6 - 0.4 x1: the best model of the box is its corner.
    np.testing.assert_allclose(row.x, [1, 1], atol=0.02)


def test_evaluations_count_whoever_measured_them(store: Store, study: Study):
    first = done_run(store, study)
    second = done_run(store, study, method="direct")  # the same design
    rows = [compare(store, study.id).row(f"run-{run.id}") for run in (first, second)]
    assert [(row.evaluations, row.seconds) for row in rows] == [(24, 12.0)] * 2


def test_what_is_missing_is_measured_once_for_all_rows(store: Store, study: Study):
    run = done_run(store, study)
    put_everything(store, study)
    comparison = compare(store, study.id)
    assert (comparison.missing, comparison.wanted) == (0, {})
    assert all(np.isfinite(row.metrics).all() for row in comparison.rows)
    # Another preference has another model, which was not measured yet, unless a sampled one shares it.
    row = comparison.row(f"run-{run.id}")
    np.testing.assert_allclose(row.front, [metrics_at(x) for x in row.models])
    np.testing.assert_array_equal(row.metrics, row.front[0])
    # A value less on one of the objectives counts as one.
    merge = store.merges.add(study.id, "ties", {})
    put(store, merge.id, merge.space.default, np.array([0.5, nan]), "test")
    comparison = compare(store, study.id)
    assert comparison.missing == 1
    np.testing.assert_array_equal(comparison.wanted[merge.id], [merge.space.default])


def test_wins_are_counted_for_the_latest_run_with_a_front_of_surrogates(store: Store, study: Study):
    first = done_run(store, study, link="identity")
    direct = done_run(store, study, method="direct")
    put_everything(store, study)
    comparison = compare(store, study.id)
    assert comparison.winner is comparison.row(f"run-{first.id}")
    assert set(comparison.wins) == {row.key for row in comparison.rows} - {f"run-{first.id}"}
    for key, (rate, error) in comparison.wins.items():
        ours, theirs = comparison.sums[f"run-{first.id}"], comparison.sums[key]
        assert rate == pytest.approx(np.mean(np.where(ours == theirs, 0.5, ours > theirs)))
        assert 0 <= error < 0.2
    assert comparison.wins["pretrained"][0] == 1.0
    second = done_run(store, study, seed=3)
    assert compare(store, study.id).winner.run_id == first.id  # the other one isn't measured yet
    put_everything(store, study)
    comparison = compare(store, study.id)
    assert comparison.winner.run_id == second.id
    assert f"run-{first.id}" in comparison.wins
    assert f"run-{direct.id}" in comparison.wins


def test_runs_that_are_called_the_same_are_told_apart(store: Store, study: Study):
    runs = [done_run(store, study), done_run(store, study), done_run(store, study, seed=3)]
    names = [row.name for row in compare(store, study.id).rows if row.kind == "run"]
    label = runs[0].config.label
    assert names == [f"{label}, run {runs[0].id}", f"{label}, run {runs[1].id}", runs[2].config.label]


def test_the_weighted_sum_has_intervals_from_the_values_errors(store: Store, study: Study):
    done_run(store, study)
    put_everything(store, study)
    comparison = compare(store, study.id, weights={"Colours": 1, "Stripes": 3})
    np.testing.assert_array_equal(comparison.n_test, [N_EXAMPLES, N_EXAMPLES])
    np.testing.assert_allclose(comparison.single, [0.9, 0.9])
    assert comparison.has_intervals
    pretrained = comparison.row("pretrained")
    half = 1.6448536 * ERROR * sqrt(0.25**2 + 0.75**2)
    assert comparison.weighted(pretrained) == pytest.approx((0.325, 0.325 - half, 0.325 + half))
    shares = comparison.weighted(pretrained, normalise=True)
    assert shares == pytest.approx(tuple(end / 0.9 for end in (0.325, 0.325 - half, 0.325 + half)))
    assert comparison.single_weighted() == pytest.approx(0.9)
    assert comparison.single_weighted(normalise=True) == pytest.approx(1.0)
    # Losses count negatively, and an error that isn't known leaves no interval unless it has no weight.
    objectives = tuple(
        replace(objective, metric=metric)
        for objective, metric in zip(comparison.objectives, (ACCURACY, LOSS), strict=True)
    )
    row = replace(pretrained, metrics=np.array([0.4, 3.0]), errors=np.array([ERROR, nan]))
    mixed = replace(comparison, objectives=objectives, rows=(row,))
    value, *ends = mixed.weighted(row)
    assert value == pytest.approx(0.25 * 0.4 - 0.75 * 3.0)
    assert np.isnan(ends).all()
    alone = replace(mixed, weights=np.array([1.0, 0.0]))
    half = 1.6448536 * ERROR
    assert alone.weighted(row) == pytest.approx((0.4, 0.4 - half, 0.4 + half))
    assert (mixed.has_intervals, alone.has_intervals) == (False, True)


def test_weighted_losses_are_read_as_they_are_where_nothing_else_is_weighed(store: Store, study: Study):
    put_everything(store, study)
    comparison = compare(store, study.id)
    own = comparison.row("pretrained").metrics  # 0.4 and 0.3

    def changed(metrics: tuple, weights: list[float]) -> Comparison:
        pairs = zip(comparison.objectives, metrics, strict=True)
        objectives = tuple(replace(objective, metric=metric) for objective, metric in pairs)
        return replace(comparison, objectives=objectives, weights=np.array(weights))

    def preference(metrics: tuple, weights: list[float]) -> float:
        return to_table(changed(metrics, weights)).set_index("model").loc["Pre-trained", "preference"]

    assert preference((LOSS, LOSS), [0.25, 0.75]) == pytest.approx(0.25 * own[0] + 0.75 * own[1])
    assert preference((ACCURACY, LOSS), [0.25, 0.75]) == pytest.approx(0.25 * own[0] - 0.75 * own[1])
    assert preference((ACCURACY, LOSS), [0.0, 1.0]) == pytest.approx(own[1])
    only = changed((ACCURACY, LOSS), [0.0, 1.0])
    assert (only.weighed, only.falls) == ((LOSS,), True)


def test_hypervolumes_are_shares_of_the_single_models(store: Store, study: Study):
    run = done_run(store, study, method="direct", points=9)
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


def test_runs_without_a_front_say_why(store: Store, study: Study):
    waiting, stopped, failed = (store.runs.create(study.id, run_config(points=12, seed=seed)) for seed in range(3))
    store.runs.set_status(stopped.id, "stopped")
    store.runs.set_status(failed.id, "failed", "The disk is full.")
    few = finish(store, study, metrics_at, points=4, seed=4)
    comparison = compare(store, study.id)
    problems = {run.id: comparison.row(f"run-{run.id}").problem for run in (waiting, stopped, failed, few)}
    assert "still going on" in problems[waiting.id]
    assert "resume it" in problems[stopped.id]
    assert "The disk is full." in problems[failed.id]
    assert "points" in problems[few.id]
    row = comparison.row(f"run-{few.id}")
    assert (row.x, row.models, row.front, row.evaluations) == (None, None, None, 8)
    assert isnan(row.metrics[0])
    put_everything(store, study)
    assert isnan(compare(store, study.id).row(row.key).metrics[0])


def test_one_model_for_all_preferences(store: Store, study: Study):
    for settings in ({"method": "nested", "points": 10}, {"method": "scalar", "points": 11}):
        run = done_run(store, study, **settings)
        put_everything(store, study)
        row = compare(store, study.id, weights={"Colours": 1}).row(f"run-{run.id}")
        assert (row.models, row.front) == (None, None)
        np.testing.assert_allclose(row.metrics, metrics_at(row.x))
        assert row.evaluations in (20, 22)
        # The twenty preferences weigh the same model.
        comparison = compare(store, study.id)
        np.testing.assert_allclose(comparison.sums[row.key], comparison.preferences @ row.metrics)


def test_merges_are_rows_at_their_usual_points_once_they_are_prepared(store: Store, study: Study):
    soup, regmean = (store.merges.add(study.id, name, {}) for name in ("soup", "regmean"))
    ties = [store.merges.add(study.id, "ties", settings) for settings in ({}, {"keep": 0.5})]
    comparison = compare(store, study.id)
    rows = {row.merge_id: row for row in comparison.rows if row.key.startswith("merge-")}
    assert regmean.id not in rows  # statistics on data come first
    assert "regmean" in {merge.name for merge in comparison.offered}
    assert not {"soup", "ties"} & {merge.name for merge in comparison.offered}
    assert {row.kind for row in rows.values()} == {"baseline"}
    np.testing.assert_array_equal(rows[soup.id].x, [0.5, 0.5])
    assert [rows[merge.id].name for merge in ties] == [merge.title for merge in ties]
    store.merges.set_prepared(regmean.id, 12.0, 3)
    comparison = compare(store, study.id)
    assert "regmean" not in {merge.name for merge in comparison.offered}
    [row] = [row for row in comparison.rows if row.merge_id == regmean.id]
    assert (row.name, row.seconds, row.evaluations) == (regmean.title, 12.0, 3)
    assert regmean.id in comparison.wanted


def test_the_best_scalar_is_offered_until_it_was_searched(store: Store, study: Study):
    def offers() -> bool:
        return "task_arithmetic" in {merge.name for merge in compare(store, study.id).offered}

    assert offers()
    done_run(store, study, method="scalar", points=5)
    assert offers()  # another budget than the usual one
    finish(store, study, metrics_at, method="scalar")
    assert not offers()


def test_runs_of_other_merges_are_rows_of_their_own_models(store: Store, study: Study):
    plain, soup = done_run(store, study), done_run(store, study, merge="soup")
    trained = store.merges.add(study.id, "adamerging", {})
    store.merges.set_prepared(trained.id, 60.0, 0)
    put_everything(store, study)
    comparison = compare(store, study.id)
    rows = [comparison.row(f"run-{run.id}") for run in (plain, soup)]
    assert [row.merge_id for row in rows] == [plain.merge_id, soup.merge_id]
    np.testing.assert_allclose(rows[1].models.sum(axis=1), 1)
    # The same x of two merges are two models.
    put(store, plain.merge_id, rows[1].models, np.full((len(rows[1].models), 2), 0.01), "test")
    np.testing.assert_allclose(compare(store, study.id).row(rows[1].key).metrics, metrics_at(rows[1].x))
    row = named(comparison, trained.title)
    assert (row.x.shape, row.metrics.tolist(), row.seconds) == ((0,), [0.6, 0.7], 60.0)


def test_two_models_and_four_objectives(store: Store, tiny_zoo: Path):
    study = store.studies.create("Four", four_objectives(tiny_zoo))

    def values(x: np.ndarray) -> np.ndarray:
        first, second = metrics_at(x)
        return np.array([first, 2 - first, second, 0.2 + 0.2 * x.mean()])

    run = finish(store, study, values, points=30, link="identity")
    comparison = compare(store, study.id)
    # No model is Light's own, so that its share of a preference has no coefficient ...
    assert "preference" not in {row.key for row in comparison.rows}
    weights = {"Colours accuracy": 1.0, "Colours loss": 1.0, "Stripes": 2.0}
    weighed = compare(store, study.id, weights=weights)
    # ... unless nobody weighs it. Both of Colours' shares go to its model.
    np.testing.assert_allclose(weighed.row("preference").x, [0.5, 0.5])
    for merge_id, X in weighed.wanted.items():
        put(store, merge_id, X, np.array([values(x) for x in X]), "test")
    weighed = compare(store, study.id, weights=weights)
    np.testing.assert_allclose(weighed.single, [0.9, 1.1, 0.9, 0.3])
    assert weighed.row(f"run-{run.id}").front.shape[1] == 4
    assert list(to_table(weighed).columns[2:6]) == ["Colours accuracy", "Colours loss", "Stripes", "Light"]
    assert np.isfinite(weighed.row("pretrained").hypervolume)


def test_the_table_has_what_a_row_has(store: Store, study: Study):
    run = done_run(store, study)
    put_everything(store, study)
    comparison = compare(store, study.id)
    table = to_table(comparison, normalise=True).set_index("model")
    line = table.loc["Pre-trained"]
    assert list(table.columns[:5]) == ["kind", "Colours", "Stripes", "mean", "worst"]
    assert line["Colours"] == pytest.approx(0.4 / 0.9)
    assert line["mean"] == pytest.approx(0.35 / 0.9)
    assert line["worst"] == pytest.approx(0.3 / 0.9)
    assert line["preference"] == pytest.approx(0.35 / 0.9)
    assert line["wins"] == comparison.wins["pretrained"][0]
    assert isnan(table.loc[run.config.label, "wins"])
    assert table.loc[run.config.label, "evaluations"] == 24
    assert to_table(comparison).set_index("model").loc["Pre-trained", "Colours"] == pytest.approx(0.4)


def test_an_objective_that_is_called_as_a_column_keeps_a_column(store: Store, tiny_zoo: Path):
    values = tiny_config(tiny_zoo).to_dict()
    values["tasks"][0]["name"] = "seconds"
    study = store.studies.create("Odd", type(tiny_config(tiny_zoo)).from_dict(values))
    assert list(to_table(compare(store, study.id)).columns[2:5]) == ["seconds (objective)", "Stripes", "mean"]


@pytest.mark.parametrize(
    ("weights", "error", "sentence"),
    [
        ({"Flags": 1.0}, StudyError, "There is no objective 'Flags'"),
        ({"Colours": 0.0}, SearchError, "Every weight is zero"),
        ({"Colours": -1.0}, SearchError, "negative or not finite"),
        ({"Colours": nan}, SearchError, "negative or not finite"),
    ],
)
def test_preferences_that_can_not_be_used(
    store: Store, study: Study, weights: dict[str, float], error: type[Exception], sentence: str
):
    with pytest.raises(error, match=sentence):
        compare(store, study.id, weights=weights)


def test_what_is_not_there(store: Store, study: Study):
    with pytest.raises(StudyError, match="no study 99"):
        compare(store, 99)
    with pytest.raises(SettingError, match="seed -1"):
        compare(store, study.id, seed=-1)
    with pytest.raises(StudyError, match="has no row 'ties': it has Task arithmetic by preference; "):
        compare(store, study.id).row("ties")


def test_reading_needs_no_torch(store: Store, study: Study):
    done_run(store, study)
    put_everything(store, study)
    code = (
        "import sys\n"
        "from mapmerge_core.studies.analysis import analyse, compare, to_table\n"
        "from mapmerge_core.studies.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "analyse(store, 1, generations=0).by_rule('maximize worst')\n"
        "to_table(compare(store, 1))\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert result.stdout.strip() == "False"
