"""From evaluations to surrogates, a front and choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.tasks.metric import Outcome

from mapmerge_core.errors import RuleError, SearchError, StudyError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.config.run import RunSettings

if TYPE_CHECKING:
    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.studies.store.store import Store


def true_values(C: np.ndarray) -> np.ndarray:
    """Two accuracies that really are a sigmoid of a quadratic, each best at its own corner."""
    x, y = C.T
    z = np.column_stack([2 * x - 1.5 * y - 0.4 * x * x + 0.3, 1.7 * y - 1.2 * x - 0.5 * x * y])
    return 1 / (1 + np.exp(-z))


def fill(store: Store, study: StudyRow, C: np.ndarray, run_id: int | None = None) -> None:
    for c, values in zip(C, true_values(C), strict=True):
        for task, value in zip(study.spec.task_names, values, strict=True):
            outcome = Outcome(float(value), 100, b"", 0.01)
            store.add_evaluation(study.id, c, task, "val", outcome, run_id=run_id)


def points(n: int, high: float = 1.0) -> np.ndarray:
    anchors = [[0, 0], [1, 0], [0, 1]]
    return np.vstack([anchors, high * np.random.default_rng(0).random((n - 3, 2))])


def test_too_few_points_say_how_many_are_missing(store: Store, study: StudyRow):
    analysis = analyse(store, study.id)
    assert (analysis.needed, analysis.surrogates, analysis.front) == (6, None, None)
    assert np.isnan(analysis.r2).all()
    assert np.isnan(analysis.pretrained).all()
    fill(store, study, points(4))
    analysis = analyse(store, study.id)
    assert analysis.needed == 2  # (2 + 1)(2 + 2) / 2 = 6 parameters
    assert analysis.problem is not None
    assert "2 more points are needed" in analysis.problem
    np.testing.assert_allclose(analysis.single, np.diag(true_values(np.eye(2))))
    with pytest.raises(StudyError, match="2 more points"):
        analysis.predict(np.zeros(2))
    with pytest.raises(StudyError, match="2 more points"):
        analysis.by_preference({"Colours": 1})
    with pytest.raises(StudyError, match="2 more points"):
        analysis.by_rule("maximize worst")


def test_one_missing_point_is_singular(store: Store, study: StudyRow):
    fill(store, study, points(5))
    assert str(analyse(store, study.id).problem).startswith("1 more point is needed")


def test_a_task_that_lags_behind_counts(store: Store, study: StudyRow):
    fill(store, study, points(6))
    for i in range(3):
        store.add_evaluation(study.id, np.array([0.1 * i, 0.9]), "Colours", "val", Outcome(0.5, 100, b"", 0.01))
    assert analyse(store, study.id).needed == 0
    C, Y = store.table(study.id)
    assert C.shape == (9, 2)
    assert np.isnan(Y[6:, 1]).all()


def test_points_that_settle_no_quadratic_are_a_problem_and_no_crash(store: Store, study: StudyRow):
    fill(store, study, np.column_stack([np.linspace(0, 1, 10), np.linspace(0, 1, 10)]))
    analysis = analyse(store, study.id)
    assert analysis.needed == 0
    assert analysis.surrogates is None
    assert analysis.problem is not None
    assert "add points" in analysis.problem


def test_the_truth_is_recovered(store: Store, study: StudyRow):
    store.create_run(study.id, RunSettings(points=40))
    fill(store, study, points(40))
    analysis = analyse(store, study.id)
    assert analysis.tasks == ("Colours", "Stripes")
    assert (analysis.r2 > 0.99).all()
    c = np.array([0.3, 0.7])
    values, lower, upper = analysis.predict(c)
    np.testing.assert_allclose(values, true_values(c[None])[0], atol=0.01)
    several = points(5)
    np.testing.assert_allclose(analysis.values(several), true_values(several), atol=0.01)
    assert (lower <= values).all()
    assert (values <= upper).all()
    np.testing.assert_allclose(analysis.pretrained, true_values(np.zeros((1, 2)))[0])
    front = analysis.fitted_front
    assert front.c.min() >= 0
    assert front.c.max() <= 1
    np.testing.assert_allclose(front.predicted, true_values(front.c), atol=0.02)
    assert not front.is_single_point
    again = analyse(store, study.id)
    np.testing.assert_array_equal(again.fitted_front.c, front.c)
    assert [anchor.name for anchor in analysis.anchors()] == ["Pre-trained", "Colours", "Stripes"]
    np.testing.assert_allclose(analysis.anchors()[1].values, true_values(np.array([[1.0, 0]]))[0])


def test_the_front_stays_in_the_runs_box_and_points_outside_are_not_fitted(store: Store, study: StudyRow):
    small = store.create_run(study.id, RunSettings(points=40, low=0.0, high=0.4))
    large = store.create_run(study.id, RunSettings(points=10, low=0.1, high=0.6))
    fill(store, study, points(20, high=0.4), small.id)
    fill(store, study, points(40, high=0.6)[20:], large.id)
    # Single-task models far off any quadratic: they lie outside the box and must not matter.
    analysis = analyse(store, study.id)
    assert (analysis.low, analysis.high) == (0.0, 0.6)
    assert analysis.inside.tolist() == [True, False, False] + [True] * 37
    assert analysis.fitted_front.c.max() <= 0.6
    assert analysis.fitted_front.c.max() > 0.55
    assert np.isfinite(analysis.single).all()


def test_runs_that_sampled_nothing_do_not_widen_the_box(store: Store, study: StudyRow):
    good = store.create_run(study.id, RunSettings(points=40, high=0.5))
    fill(store, study, points(40, high=0.5), good.id)
    before = store.fingerprint(study.id)
    failed = store.create_run(study.id, RunSettings(points=40, high=8.0))
    store.set_status(failed.id, "failed", "The disk is full.")
    only_anchors = store.create_run(study.id, RunSettings(points=40, low=-3.0, high=3.0))
    store.add_evaluation(
        study.id, np.eye(2)[0], "Colours", "test", Outcome(0.5, 100, b"", 0.01), run_id=only_anchors.id
    )
    assert store.fingerprint(study.id) == before
    analysis = analyse(store, study.id)
    assert (analysis.low, analysis.high) == (0.0, 0.5)
    assert analysis.fitted_front.c.max() <= 0.5


def test_a_run_that_measured_only_anchors_has_no_box_yet(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=40, low=-3.0, high=8.0))
    fill(store, study, points(3), run.id)
    assert store.sampled_box(study.id) == (0.0, 1.0)
    fill(store, study, np.array([[0.5, 0.25]]), run.id)
    assert store.sampled_box(study.id) == (-3.0, 8.0)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_cannot_be_used_is_refused(store: Store, study: StudyRow, seed: int):
    with pytest.raises(SearchError, match=f"seed {seed} can't be used"):
        analyse(store, study.id, seed=seed)
    with pytest.raises(SearchError, match=f"seed {seed} can't be used"):
        store.create_run(study.id, RunSettings(points=10, seed=seed))


def test_choices_by_preference(store: Store, study: StudyRow):
    fill(store, study, points(40))
    analysis = analyse(store, study.id)
    front = analysis.fitted_front
    colours = analysis.by_preference({"Colours": 1.0})
    assert front.predicted[colours, 0] == front.predicted[:, 0].max()
    both = analysis.by_preference({"Colours": 1.0, "Stripes": 1.0})
    assert front.predicted[both].sum() == front.predicted.sum(axis=1).max()
    shares = front.predicted / analysis.single
    normalised = analysis.by_preference({"Colours": 1.0, "Stripes": 3.0}, normalise=True)
    assert normalised == np.argmax(shares @ [1, 3])
    with pytest.raises(StudyError, match="no task 'Flags'"):
        analysis.by_preference({"Flags": 1.0})


def test_choices_by_rule(store: Store, study: StudyRow):
    fill(store, study, points(40))
    analysis = analyse(store, study.id)
    result = analysis.by_rule("Colours >= 60%, maximize Stripes")
    assert result.feasible
    values, _, _ = analysis.predict(result.c)
    np.testing.assert_allclose(values, result.predicted)
    assert values[0] >= 0.6 - 1e-6
    # The truth on a fine grid can't do much better.
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201)), axis=-1).reshape(-1, 2)
    truth = true_values(grid)
    assert abs(truth[truth[:, 0] >= 0.6, 1].max() - values[1]) < 0.02
    assert not analysis.by_rule("all >= 99%, maximize worst").feasible
    with pytest.raises(RuleError) as error:
        analysis.by_rule("Colors >= 60%, maximize Stripes")
    assert error.value.position == 0
