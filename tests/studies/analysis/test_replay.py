"""A run's own front rests on its own points, whoever measured them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError, SearchError, SettingError, StudyError
from mapmerge_core.methods import nested
from mapmerge_core.studies.analysis import replay, run_result
from tests.studies.analysis.helpers import finish, four_objectives, put, run_config
from tests.studies.conftest import tiny_config

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store, Study


def true_values(x: np.ndarray) -> np.ndarray:
    """Objectives, each best at its own model, as accuracies are: a front runs between them."""
    return np.array([0.9 - 0.4 * ((x - top) ** 2).sum() for top in np.eye(len(x))])


def test_a_run_counts_points_that_another_run_measured(store: Store, study: Study):
    finish(store, study, true_values, method="direct", points=50)
    shared = finish(store, study, true_values, points=20)
    assert shared.n_evaluations == 0
    result = run_result(store, shared.id)
    assert (result.evaluations, result.seconds) == (40, 40 * 0.5)
    assert result.points.X.shape == (20, 2)
    np.testing.assert_allclose(result.points.Y, [true_values(x) for x in result.points.X])


def test_direct_search_keeps_what_nothing_measured_dominates(store: Store, study: Study):
    run = finish(store, study, true_values, method="direct", points=40)
    result = run_result(store, run.id)
    Y = result.points.Y
    best = [y for y in Y if not any((z >= y).all() and (z > y).any() for z in Y)]
    assert result.is_measured
    assert sorted(map(tuple, result.values)) == sorted(map(tuple, best))


@pytest.mark.parametrize("method", ["map", "bayesian", "latin_hypercube"])
def test_a_surrogates_front_runs_between_the_models(store: Store, study: Study, method: str):
    run = finish(store, study, true_values, method=method, points=12, link="identity")
    result = run_result(store, run.id)
    assert not result.is_measured
    # By hand: what is best for any weights lies on the line from (1, 0) to (0, 1).
    np.testing.assert_allclose(result.x.sum(axis=1), 1.0, atol=1e-3)
    np.testing.assert_allclose(result.values, [true_values(x) for x in result.x], atol=1e-6)
    np.testing.assert_allclose(result.choose([3, 1], [True, True]), [0.75, 0.25], atol=0.01)


def test_a_run_of_a_merge_on_a_simplex_is_replayed(store: Store, study: Study):
    run = finish(store, study, true_values, merge="soup", points=12, link="identity")
    result = run_result(store, run.id)
    assert (result.x >= 0).all()
    np.testing.assert_allclose(result.x.sum(axis=1), 1.0)
    np.testing.assert_allclose(result.choose([3, 1], [True, True]), [0.75, 0.25], atol=0.01)


def test_a_front_is_of_its_own_run_alone(store: Store, study: Study):
    finish(store, study, true_values, points=10, low=0.0, high=1.0)
    small = finish(store, study, true_values, points=12, low=0.0, high=0.4, anchors=False, seed=7, link="identity")
    assert run_result(store, small.id).x.max() <= 0.4


def test_methods_that_lead_to_one_model(store: Store, study: Study):
    weights = {"Colours": 3.0, "Stripes": 1.0}
    run = finish(store, study, true_values, method="nested", points=20, weights=weights, link="identity")
    result = run_result(store, run.id)
    assert result.x.shape == (1, 2)
    assert result.choice is not None
    np.testing.assert_allclose(result.x[0], [0.75, 0.25], atol=0.02)
    scalar = run_result(store, finish(store, study, true_values, method="scalar").id)
    # By hand: with both coefficients c the mean is 0.9 - 0.4 ((c - 1)² + c²), best at a half.
    np.testing.assert_allclose(scalar.x, [[0.5, 0.5]])
    np.testing.assert_allclose(scalar.values, [true_values(np.array([0.5, 0.5]))])


def test_an_unfinished_run_says_so(store: Store, study: Study):
    for status, sentence in [
        ("queued", "still going on"),
        ("running", "still going on"),
        ("stopped", "resume it first"),
        ("interrupted", "resume it first"),
    ]:
        run = store.runs.create(study.id, run_config(points=12))
        store.runs.set_status(run.id, status)
        with pytest.raises(StudyError, match=sentence):
            run_result(store, run.id)
    store.runs.set_status(run.id, "failed", "The disk is full.")
    with pytest.raises(StudyError, match=f"Run {run.id} failed: The disk is full"):
        run_result(store, run.id)
    with pytest.raises(StudyError, match="no run 99"):
        run_result(store, 99)
    with pytest.raises(SettingError, match="seed -1"):
        run_result(store, run.id, seed=-1)


def test_too_few_points_for_surrogates_say_so(store: Store, study: Study):
    run = finish(store, study, true_values, points=5)
    with pytest.raises(SearchError, match="needs at least 6 points"):
        run_result(store, run.id)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 5, "link": "identity"}, "identity link needs 6 points or more"),
        ({"points": 7, "link": "identity", "high": 0.6}, r"8 points or more \(2 anchors outside"),
        ({"method": "bayesian", "points": 5}, "6"),
        ({"method": "nested", "points": 5}, "6"),
        ({"method": "nested", "weights": {"Colours": 0.0}}, "weight"),
        ({"method": "nested", "weights": {"Nothing": 1.0}}, "Nothing"),
        ({"method": "nested", "order": ["Colours"]}, "Stripes"),
        ({"loss": "cubic"}, "loss"),
        ({"link": "softmax"}, "softmax"),
        ({"method": "annealing"}, "annealing"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_kept(
    store: Store, study: Study, settings: dict[str, object], message: str
):
    # A literal that pydantic refuses is told in a sentence by whoever reads a file or a flag.
    with pytest.raises((MapMergeError, ValueError), match=message):
        store.runs.create(study.id, run_config(**{"points": 20, **settings}))
    assert store.runs.all(study.id) == []


def test_a_done_run_of_another_version_says_so(store: Store, study: Study):
    run = store.runs.create(study.id, run_config(points=12))
    store.runs.set_status(run.id, "done")
    with pytest.raises(StudyError, match="another version of mapmerge, whose MAP chose other points"):
        run_result(store, run.id)


def test_a_run_whose_points_were_refined_by_which_it_would_choose_others_says_so(store: Store, study: Study):
    run = store.runs.create(study.id, run_config(points=12, images=20))
    store.runs.set_status(run.id, "done")
    with pytest.raises(StudyError, match="has been refined on more images since, by which its MAP"):
        run_result(store, run.id)


def test_a_nested_run_of_another_processor_is_followed(store: Store, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch):
    """Other kernels of a BLAS leave other last digits in a pair's model, and so in the next points."""
    study = store.studies.create("Three", tiny_config(tiny_zoo, ("Colours", "Stripes", "Light")))
    run = finish(store, study, true_values, method="nested", points=10, link="identity")
    here = run_result(store, run.id, seed=0)
    real = nested.best_sum

    def elsewhere(*arguments: object) -> np.ndarray:
        return real(*arguments) * (1 + digits)

    monkeypatch.setattr(nested, "best_sum", elsewhere)
    digits = 1e-8
    there = run_result(store, run.id, seed=1)
    assert not np.array_equal(there.x, here.x)
    np.testing.assert_array_equal(there.points.X, here.points.X)
    np.testing.assert_array_equal(there.points.Y, here.points.Y)
    digits = 1e-3
    with pytest.raises(StudyError, match="chose other points"):
        run_result(store, run.id, seed=2)


def test_a_finished_run_is_replayed_once(store: Store, study: Study, monkeypatch: pytest.MonkeyPatch):
    run = finish(store, study, true_values, points=12)
    calls = []
    real = replay.search_front
    monkeypatch.setattr(replay, "search_front", lambda *args: calls.append(args) or real(*args))
    first = run_result(store, run.id)
    put(store, run.merge_id, np.array([0.3, 0.3]), np.array([1.0, 1.0]))
    assert run_result(store, run.id) is first
    assert len(calls) == 1
    run_result(store, run.id, seed=1)
    assert len(calls) == 2


def test_a_run_on_four_objectives_of_two_models(store: Store, tiny_zoo: Path):
    study = store.studies.create("Four", four_objectives(tiny_zoo))

    def values(x: np.ndarray) -> np.ndarray:
        first, second = true_values(x)
        return np.array([first, 2 - first, second, 0.2 + 0.1 * x.mean()])

    result = run_result(store, finish(store, study, values, points=30).id)
    assert result.values.shape[1] == 4
    np.testing.assert_allclose(result.values, [values(x) for x in result.x], atol=0.07)
