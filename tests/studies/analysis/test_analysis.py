"""From evaluations to surrogates, the front of all merges, and choices on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import PointError, RuleError, SettingError, StudyError
from mapmerge_core.search.fronts import non_dominated
from mapmerge_core.studies.analysis import MergeAnalysis, StudyAnalysis, analyse, references
from tests.studies.analysis.helpers import first_merge, four_objectives, put, run_config

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store, Study


def true_values(X: np.ndarray) -> np.ndarray:
    """Two accuracies that really are a sigmoid of a quadratic, each best at its own corner."""
    x, y = np.atleast_2d(X).T
    z = np.column_stack([2 * x - 1.5 * y - 0.4 * x * x + 0.3, 1.7 * y - 1.2 * x - 0.5 * x * y])
    return 1 / (1 + np.exp(-z))


def fill(store: Store, study: Study, X: np.ndarray, run_id: int | None = None) -> None:
    put(store, first_merge(store, study), X, true_values(X), run_id=run_id)


def points(n: int, high: float = 1.0) -> np.ndarray:
    anchors = [[0, 0], [1, 0], [0, 1]]
    return np.vstack([anchors, high * np.random.default_rng(0).random((n - 3, 2))])


def only(analysis: StudyAnalysis) -> MergeAnalysis:
    [merge] = analysis.merges
    return merge


def test_too_few_points_say_how_many_are_missing(store: Store, study: Study):
    merge_id = first_merge(store, study)
    analysis = analyse(store, study.id)
    assert (analysis.needed, only(analysis).surrogates, analysis.front) == (6, None, None)
    assert np.isnan(only(analysis).r2).all()
    assert np.isnan(analysis.pretrained).all()
    fill(store, study, points(4))
    analysis = analyse(store, study.id)
    assert analysis.needed == 2  # (2 + 1)(2 + 2) / 2 = 6 parameters
    assert "2 more points are needed" in str(analysis.problem)
    np.testing.assert_allclose(analysis.single, np.diag(true_values(np.eye(2))))
    for call in (
        lambda: analysis.predict(merge_id, np.zeros(2)),
        lambda: analysis.by_preference({"Colours": 1}),
        lambda: analysis.by_rule("maximize worst"),
    ):
        with pytest.raises(StudyError, match="2 more points"):
            call()


def test_one_missing_point_is_singular(store: Store, study: Study):
    fill(store, study, points(5))
    assert str(analyse(store, study.id).problem).startswith("1 more point is needed")


def test_an_objective_that_lags_behind_counts(store: Store, study: Study):
    fill(store, study, points(6))
    for i in range(3):
        put(store, first_merge(store, study), np.array([0.1 * i, 0.9]), np.array([0.5, np.nan]))
    analysis = analyse(store, study.id)
    assert analysis.needed == 0
    assert only(analysis).X.shape == (9, 2)
    assert np.isnan(only(analysis).Y[6:, 1]).all()
    assert only(analysis).surrogates is not None


def test_points_that_settle_no_quadratic_are_a_problem_and_no_crash(store: Store, study: Study):
    fill(store, study, np.column_stack([np.linspace(0, 1, 10), np.linspace(0, 1, 10)]))
    analysis = analyse(store, study.id)
    assert analysis.needed == 0
    assert only(analysis).surrogates is None
    assert "add points" in str(analysis.problem)


def test_the_truth_is_recovered(store: Store, study: Study):
    run = store.runs.create(study.id, run_config(points=40))
    fill(store, study, points(40), run.id)
    analysis = analyse(store, study.id)
    assert analysis.names == ("Colours", "Stripes")
    assert (only(analysis).r2 > 0.99).all()
    x = np.array([0.3, 0.7])
    values, lower, upper = analysis.predict(run.merge_id, x)
    np.testing.assert_allclose(values, true_values(x)[0], atol=0.01)
    several = points(5)
    np.testing.assert_allclose(only(analysis).predict(several)[0], true_values(several), atol=0.01)
    assert (lower <= values).all()
    assert (values <= upper).all()
    np.testing.assert_allclose(analysis.pretrained, true_values(np.zeros(2))[0])
    front = analysis.fitted_front
    X = np.array(front.x)
    assert set(front.keys) == {run.merge_id}
    assert X.min() >= 0
    assert X.max() <= 1
    np.testing.assert_allclose(front.predicted, true_values(X), atol=0.02)
    assert not front.is_single_point
    np.testing.assert_array_equal(np.array(analyse(store, study.id).fitted_front.x), X)
    with pytest.raises(PointError, match="2 coordinates"):
        analysis.predict(run.merge_id, np.zeros(3))
    with pytest.raises(StudyError, match="no merge 99"):
        analysis.predict(99, np.zeros(2))


def test_surrogates_alone_are_fitted_without_a_front(store: Store, study: Study):
    fill(store, study, points(20))
    analysis = analyse(store, study.id, with_front=False)
    assert only(analysis).surrogates is not None
    assert (only(analysis).front, analysis.front, analysis.problem) == (None, None, None)
    with pytest.raises(StudyError, match="no front yet"):
        analysis.by_preference({"Colours": 1})
    with pytest.raises(StudyError, match="no front yet"):
        analysis.by_rule("maximize worst")


def test_the_front_stays_in_the_runs_box_and_points_outside_are_not_fitted(store: Store, study: Study):
    small = store.runs.create(study.id, run_config(points=40, low=0.0, high=0.4))
    large = store.runs.create(study.id, run_config(points=10, low=0.1, high=0.6))
    fill(store, study, points(20, high=0.4), small.id)
    fill(store, study, points(40, high=0.6)[20:], large.id)
    # The models' own points lie outside the box and must not matter.
    analysis = analyse(store, study.id)
    np.testing.assert_array_equal(only(analysis).space.low, [0, 0])
    np.testing.assert_array_equal(only(analysis).space.high, [0.6, 0.6])
    assert only(analysis).inside.tolist() == [True, False, False] + [True] * 37
    assert np.max(analysis.fitted_front.x) <= 0.6
    assert np.max(analysis.fitted_front.x) > 0.55
    assert np.isfinite(analysis.single).all()


def test_link_and_loss_are_those_of_the_latest_run(store: Store, study: Study):
    fill(store, study, points(20))
    for settings in ({"link": "softplus"}, {"link": "identity", "loss": "huber"}):
        store.runs.create(study.id, run_config(points=20, **settings))
    surrogates = only(analyse(store, study.id, with_front=False)).surrogates
    assert surrogates is not None
    assert [(fit.link, fit.loss) for fit in surrogates.surrogates] == [("identity", "huber")] * 2


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_cannot_be_used_is_refused(store: Store, study: Study, seed: int):
    with pytest.raises(SettingError, match=f"seed {seed} can't be used"):
        analyse(store, study.id, seed=seed)


def test_a_study_that_is_not_there_is_said_to_be_missing(store: Store):
    with pytest.raises(StudyError, match="no study 99"):
        analyse(store, 99)


def test_choices_by_preference(store: Store, study: Study):
    fill(store, study, points(40))
    analysis = analyse(store, study.id)
    predicted = analysis.fitted_front.predicted
    colours = analysis.by_preference({"Colours": 1.0})
    assert predicted[colours, 0] == predicted[:, 0].max()
    both = analysis.by_preference({"Colours": 1.0, "Stripes": 1.0})
    assert predicted[both].sum() == predicted.sum(axis=1).max()
    shares = predicted / analysis.single
    normalised = analysis.by_preference({"Colours": 1.0, "Stripes": 3.0}, normalise=True)
    assert normalised == np.argmax(shares @ [1, 3])
    with pytest.raises(StudyError, match="no objective 'Flags'"):
        analysis.by_preference({"Flags": 1.0})


def test_choices_by_rule(store: Store, study: Study):
    fill(store, study, points(40))
    analysis = analyse(store, study.id)
    choice = analysis.by_rule("Colours >= 60%, maximize Stripes")
    assert choice.feasible
    values, _, _ = analysis.predict(choice.merge_id, choice.x)
    np.testing.assert_allclose(values, choice.predicted)
    assert values[0] >= 0.6 - 1e-6
    # The truth on a fine grid can't do much better.
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201)), axis=-1).reshape(-1, 2)
    truth = true_values(grid)
    assert abs(truth[truth[:, 0] >= 0.6, 1].max() - values[1]) < 0.02
    missed = analysis.by_rule("all >= 99%, maximize worst")
    assert not missed.feasible
    assert {miss.name for miss in missed.misses} == {"Colours", "Stripes"}
    with pytest.raises(RuleError) as error:
        analysis.by_rule("Colors >= 60%, maximize Stripes")
    assert error.value.position == 0


# Several merges


def soup_values(X: np.ndarray) -> np.ndarray:
    """Better than the box in the middle of the line between the models, and worse at its ends."""
    shares = np.atleast_2d(X)
    return 0.1 + 0.7 * shares + shares.prod(axis=1, keepdims=True)


def fill_soup(store: Store, study: Study) -> int:
    merge = store.merges.add(study.id, "soup", {})
    X = merge.space.points([[1, 0], [0, 1], [0.5, 0.5], [0.2, 0.8], [0.7, 0.3]])
    put(store, merge.id, X, soup_values(X))
    return merge.id


def test_the_front_is_that_of_all_merges_together(store: Store, study: Study):
    fill(store, study, points(40))
    box, soup = first_merge(store, study), fill_soup(store, study)
    analysis = analyse(store, study.id)
    front = analysis.fitted_front
    assert set(front.keys) == {box, soup}
    assert non_dominated(front.predicted, [True, True]).all()
    for key, x, predicted in zip(front.keys, front.x, front.predicted, strict=True):
        truth = true_values(x) if key == box else soup_values(x)
        np.testing.assert_allclose(predicted, truth[0], atol=0.05)
    # Every point of either merge is matched by one of the front: nobody was left out.
    own = [(merge.merge.id, x) for merge in analysis.merges if merge.front for x in merge.front.x]
    assert {(key, x.tobytes()) for key, x in zip(front.keys, front.x, strict=True)} <= {
        (key, x.tobytes()) for key, x in own
    }
    for merge in analysis.merges:
        assert merge.front is not None
        for values in merge.front.predicted:
            assert (front.predicted >= values - 1e-12).all(axis=1).any()
    alone = analyse(store, study.id, merges=[soup])
    assert [merge.merge.id for merge in alone.merges] == [soup]
    assert set(alone.fitted_front.keys) == {soup}
    np.testing.assert_array_equal(alone.pretrained, analysis.pretrained)


def test_a_front_on_a_simplex_stays_in_it(store: Store, study: Study):
    soup = fill_soup(store, study)
    analysis = analyse(store, study.id)
    assert analysis.problem is None  # the other merge has no points, but this one has enough
    assert analysis.needed == 0
    X = np.array(analysis.fitted_front.x)
    assert (X >= 0).all()
    np.testing.assert_allclose(X.sum(axis=1), 1)
    np.testing.assert_allclose(analysis.predict(soup, [0.4, 0.6])[0], [0.62, 0.76], atol=0.05)


def test_a_rule_takes_the_best_of_any_merge(store: Store, study: Study):
    fill(store, study, points(40))
    box, soup = first_merge(store, study), fill_soup(store, study)
    rule = "Colours >= 70%, maximize Stripes"
    analysis = analyse(store, study.id)
    choice = analysis.by_rule(rule)
    alone = {key: analyse(store, study.id, merges=[key]).by_rule(rule) for key in (box, soup)}
    assert all(each.feasible for each in alone.values())
    best = max(alone.values(), key=lambda each: each.predicted[1])
    assert (choice.merge_id, choice.feasible) == (best.merge_id, True)
    np.testing.assert_allclose(choice.predicted, best.predicted)
    # Nothing meets this one: the nearest of all is taken, and says by how much it misses.
    missed = analysis.by_rule("Colours >= 95%, Stripes >= 95%, maximize worst")
    assert not missed.feasible
    assert "misses" in missed.message


def test_a_merge_without_coordinates_is_a_point_of_the_front_as_it_was_measured(store: Store, study: Study):
    fill(store, study, points(40))
    merge_id = store.merges.add(study.id, "adamerging", {}).id
    put(store, merge_id, np.empty((1, 0)), np.array([[0.97, 0.95]]))
    analysis = analyse(store, study.id)
    front = analysis.fitted_front
    row = front.keys.index(merge_id)
    np.testing.assert_array_equal(front.predicted[row], [0.97, 0.95])
    values, lower, upper = analysis.predict(merge_id, np.empty(0))
    np.testing.assert_array_equal([values, lower, upper], [[0.97, 0.95]] * 3)
    choice = analysis.by_rule("all >= 90%, maximize worst")
    assert (choice.merge_id, choice.feasible, choice.x.shape) == (merge_id, True, (0,))
    assert "as measured" in choice.message
    alone = analyse(store, study.id, merges=[merge_id]).by_rule("Colours >= 99%, maximize worst")
    assert not alone.feasible
    assert "misses Colours by 2.0 points" in alone.message


def test_a_merge_that_was_only_half_measured_says_what_it_lacks(store: Store, study: Study):
    merge_id = store.merges.add(study.id, "adamerging", {}).id
    put(store, merge_id, np.empty((1, 0)), np.array([[0.97, np.nan]]))
    analysis = analyse(store, study.id)
    assert "1 more point is needed" in str(analysis.merge(merge_id).problem)
    assert analysis.front is None


# Two models and four objectives


def test_models_and_objectives_need_not_be_as_many(store: Store, tiny_zoo: Path):
    study = store.studies.create("Four", four_objectives(tiny_zoo))
    X = points(40)
    accuracy = true_values(X)
    values = np.column_stack([accuracy[:, 0], 2 - accuracy[:, 0], accuracy[:, 1], 0.2 + 0.4 * X.mean(axis=1)])
    put(store, first_merge(store, study), X, values)
    analysis = analyse(store, study.id)
    assert analysis.names == ("Colours accuracy", "Colours loss", "Stripes", "Light")
    assert analysis.maximize == (True, False, True, True)
    # Light has no model of its own: the best of the two counts. The pre-trained model is no model of it.
    np.testing.assert_allclose(analysis.single, [values[1, 0], values[1, 1], values[2, 2], 0.4])
    np.testing.assert_allclose(analysis.pretrained, values[0])
    rule = '"Colours loss" <= 1.3, Light >= 90% of single, Stripes >= 80% of pretrained, maximize Stripes'
    choice = analysis.by_rule(rule)
    assert choice.feasible
    assert choice.predicted[1] <= 1.3 + 1e-6
    assert choice.predicted[3] >= 0.9 * analysis.single[3] - 1e-6
    row = analysis.by_preference({"Colours loss": 1.0})
    assert analysis.fitted_front.predicted[row, 1] == analysis.fitted_front.predicted[:, 1].min()


def test_the_best_model_of_a_loss_without_a_model_of_its_own_is_the_lowest(store: Store, tiny_zoo: Path):
    values = four_objectives(tiny_zoo).to_dict()
    values["tasks"][2]["metrics"] = ["loss"]
    study = store.studies.create("Losses", type(four_objectives(tiny_zoo)).from_dict(values))
    found = references(store, study.id)
    assert np.isnan(found.Y).all()
    assert np.isnan(found.single).all()
    put(store, first_merge(store, study), np.eye(2), np.array([[0.9, 0.2, 0.5, 1.5], [0.4, 2.0, 0.8, 0.7]]))
    found = references(store, study.id)
    np.testing.assert_array_equal(found.single, [0.9, 0.2, 0.8, 0.7])
    assert found.names == ("Pre-trained", "Colours's own model", "Stripes's own model")
    assert np.isnan(found.pretrained).all()
    assert np.isnan(references(store, study.id, "test").single).all()


def test_analysing_reads_each_table_once_however_many_merges_there_are(store: Store, study: Study):
    from sqlalchemy import event

    fill(store, study, points(20))
    statements: list[str] = []
    engine = store._database._engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    counts = []
    for _ in range(2):
        statements.clear()
        analyse(store, study.id, with_front=False)
        counts.append(len(statements))
        fill_soup(store, study)
        store.merges.add(study.id, "ties", {})
    assert counts[0] == counts[1]
