"""A run's own front rests on its own points, whoever measured them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.studies.analysis.replay import replay, run_front
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.tasks.metric import Outcome

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.methods import nested
from mapmerge_core.studies.config.run import RunSettings

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.store.store import Store


def true_metrics(c: np.ndarray) -> np.ndarray:
    """Tasks, each best at its own model, as accuracies are: a front runs between them."""
    return np.array([0.9 - 0.5 * ((c - top) ** 2).sum() for top in np.eye(len(c))])


def finish(store: Store, study: StudyRow, method: str, **settings: object) -> RunRow:
    """A run whose evaluations are the formula's, without any model."""
    run = store.create_run(study.id, RunSettings(**{"points": 20, **settings}), method)
    asked = run.settings.make_method(run.method, study.spec)
    while (batch := asked.ask()) is not None:
        values = np.array([true_metrics(c)[list(batch.tasks)] for c in batch.C])
        for c, row in zip(batch.C, values, strict=True):
            for task, value in zip(batch.tasks, row, strict=True):
                outcome = Outcome(value=float(value), n_examples=10, per_example=b"", seconds=0.1)
                store.add_evaluation(study.id, c, study.spec.task_names[task], "val", outcome, run_id=run.id)
        asked.tell(batch, values)
    return store.run(run.id)


def test_a_run_counts_points_that_another_run_measured(store: Store, study: StudyRow):
    finish(store, study, "direct", points=50)
    shared = finish(store, study, "map", points=20)
    assert shared.n_evaluations == 0
    found = replay(store, shared.id)
    assert found.n_evaluations == 40
    assert found.C.shape == (20, 2)
    np.testing.assert_allclose(found.Y, [true_metrics(c) for c in found.C])


def test_direct_search_keeps_what_nothing_measured_dominates(store: Store, study: StudyRow):
    run = finish(store, study, "direct", points=40)
    front = run_front(store, run.id)
    Y = replay(store, run.id).Y
    best = [y for y in Y if not any((z >= y).all() and (z > y).any() for z in Y)]
    assert front.measured
    assert sorted(map(tuple, front.values)) == sorted(map(tuple, best))


@pytest.mark.parametrize("method", ["map", "bayesian"])
def test_a_surrogates_front_runs_between_the_single_task_models(store: Store, study: StudyRow, method: str):
    run = finish(store, study, method, points=12, link="identity")
    front = run_front(store, run.id)
    assert not front.measured
    # By hand: what is best for any weights lies on the line from (1, 0) to (0, 1).
    np.testing.assert_allclose(front.c.sum(axis=1), 1.0, atol=1e-3)
    np.testing.assert_allclose(front.values, [true_metrics(c) for c in front.c], atol=1e-6)
    c = front.choose([3, 1], [True, True])
    np.testing.assert_allclose(c, [0.75, 0.25], atol=0.01)


def test_a_front_is_of_its_own_run_alone(store: Store, study: StudyRow):
    finish(store, study, "map", points=10, low=0.0, high=1.0)
    small = finish(store, study, "map", points=12, low=0.0, high=0.4, anchors=False, seed=7, link="identity")
    assert run_front(store, small.id).c.max() <= 0.4


def test_nested_map_leads_to_one_model(store: Store, study: StudyRow):
    run = finish(store, study, "nested", points=20, weights={"Colours": 3.0, "Stripes": 1.0}, link="identity")
    front = run_front(store, run.id)
    assert front.c.shape == (1, 2)
    np.testing.assert_allclose(front.c[0], [0.75, 0.25], atol=0.02)


def test_an_unfinished_run_says_so(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=12))
    with pytest.raises(StudyError, match="resume it first"):
        replay(store, run.id)


def test_too_few_points_for_surrogates_say_so(store: Store, study: StudyRow):
    run = finish(store, study, "map", points=5)
    with pytest.raises(SearchError, match="needs at least 6 points"):
        run_front(store, run.id)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("map", {"points": 5, "link": "identity"}, "identity link needs 6 points or more, not 5"),
        (
            "map",
            {"points": 7, "link": "identity", "high": 0.6},
            r"8 points or more \(2 anchors outside the box aren't fitted\), not 7",
        ),
        ("bayesian", {"points": 5}, "6"),
        ("nested", {"points": 5}, "6"),
        ("nested", {"weights": {"Colours": 0.0}}, "weight"),
        ("nested", {"weights": {"Nothing": 1.0}}, "Nothing"),
        ("nested", {"order": ["Colours"]}, "Stripes"),
        ("map", {"loss": "cubic"}, "cubic"),
        ("map", {"link": "softmax"}, "softmax"),
        ("annealing", {}, "unknown: use map, bayesian, nested or direct"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_kept(
    store: Store, study: StudyRow, method: str, settings: dict[str, object], message: str
):
    with pytest.raises(SearchError, match=message):
        store.create_run(study.id, RunSettings(**{"points": 20, **settings}), method)
    assert store.runs(study.id) == []


def test_a_done_run_of_another_version_says_so(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=12))
    store.set_status(run.id, "done")
    with pytest.raises(StudyError, match="another version of mapmerge, whose MAP chose other points"):
        replay(store, run.id)


def test_a_nested_run_of_another_processor_is_followed(store: Store, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch):
    """Other kernels of a BLAS leave other last digits in a pair's model, and so in the next points."""
    study = store.create_study("Three", spec_from_manifest(tiny_zoo))
    run = finish(store, study, "nested", points=10, link="identity")
    store.set_status(run.id, "done")
    here = replay(store, run.id)
    real = nested.best_sum

    def elsewhere(*arguments: object) -> np.ndarray:
        return real(*arguments) * (1 + digits)

    monkeypatch.setattr(nested, "best_sum", elsewhere)
    digits = 1e-8
    there = replay(store, run.id)
    assert not np.array_equal(there.method.pairs[0].c, here.method.pairs[0].c)
    np.testing.assert_array_equal(there.C, here.C)
    np.testing.assert_array_equal(there.Y, here.Y)
    digits = 1e-3
    with pytest.raises(StudyError, match="chose other points"):
        replay(store, run.id)
