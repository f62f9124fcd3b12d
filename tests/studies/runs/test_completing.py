"""What a comparison lacks is made once, measured once, stopped, gone on with, and estimated."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import Cancelled, RegistryError, SearchError, StudyError
from mapmerge_core.merges.base import applicable
from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.config import Compute
from mapmerge_core.studies.runs.completing import complete, estimate_completion
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.tasks.outcome import Outcome
from tests.studies.conftest import tiny_config
from tests.studies.runs.helpers import CPU, execute, plain
from tests.studies.runs.test_preparing import add
from tests.studies.runs.test_runner import KEYS

if TYPE_CHECKING:
    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store import Store, Study
    from mapmerge_core.tasks.evaluator import Evaluator


def test_everything_is_made_and_measured_once(store: Store, study: Study, evaluators: EvaluatorCache):
    execute(store, study, evaluators, points=8)
    reports: list[tuple[int, int]] = []
    complete(
        store, study.id, evaluators.get, merges=["soup", "ties"], compute=CPU,
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    comparison = compare(store, study.id)
    assert comparison.missing == 0
    made = {merge.name: merge for merge in store.merges.all(study.id)}
    assert {"soup", "ties"} <= made.keys()
    assert reports[0][0] == 0
    assert reports == sorted(reports)
    assert len({total for _, total in reports}) == 1
    assert reports[-1][0] == reports[-1][1]
    for name in ("soup", "ties"):
        x = made[name].space.default
        row = next(row for row in comparison.rows if row.merge_id == made[name].id)
        np.testing.assert_array_equal(row.x, x)
        measured = store.evaluations.measured(made[name].id, x, "test")
        assert row.metrics.tolist() == [measured[key] for key in KEYS]
    # Evaluated independently: a test accuracy of the average of both models.
    average = evaluators.get(study, CPU).evaluate(np.array([0.5, 0.5]), split="test")
    soup = store.evaluations.measured(made["soup"].id, np.array([0.5, 0.5]), "test")
    assert list(soup.values()) == [outcome.value for outcome in average.values()]
    n_evaluations = store.studies.get(study.id).n_evaluations

    def refuse(*_: object) -> Evaluator:
        raise AssertionError("Everything is known")

    complete(store, study.id, refuse, merges=False)
    complete(store, study.id, refuse, merges=["soup"])
    assert store.studies.get(study.id).n_evaluations == n_evaluations


def test_the_scalar_with_the_best_mean_is_searched_for(store: Store, study: Study, evaluators: EvaluatorCache):
    complete(store, study.id, evaluators.get, merges=["task_arithmetic"], compute=CPU)
    [run] = store.runs.all(study.id)
    assert (run.status, run.merge_id) == ("done", plain(store, study))
    evaluator = evaluators.get(study, CPU)
    means = [
        np.mean([outcome.value for outcome in evaluator.evaluate([tenths / 10] * 2).values()]) for tenths in range(11)
    ]
    best = means.index(max(means)) / 10
    comparison = compare(store, study.id)
    row = next(row for row in comparison.rows if row.run_id == run.id)
    np.testing.assert_allclose(row.x, [best, best])
    assert np.isfinite(row.metrics).all()
    assert comparison.missing == 0
    complete(store, study.id, evaluators.get, merges=["task_arithmetic"], compute=CPU)
    assert len(store.runs.all(study.id)) == 1


def test_a_completion_that_was_stopped_goes_on(store: Store, study: Study, evaluators: EvaluatorCache):
    cancel = Event()

    def stop_soon(done: int, _: int) -> None:
        if done >= 5:
            cancel.set()

    def rows() -> list[int]:
        return [row.id for row in store.evaluations.rows(plain(store, study), "test")]

    given = {"merges": ["soup"], "compute": CPU}
    with pytest.raises(Cancelled):
        complete(store, study.id, evaluators.get, cancel=cancel, progress=stop_soon, **given)
    kept = rows()
    assert len(kept) == 5
    complete(store, study.id, evaluators.get, **given)
    assert rows()[:5] == kept
    assert compare(store, study.id).missing == 0


def test_runs_of_any_merge_are_measured_with_its_models(store: Store, study: Study, evaluators: EvaluatorCache):
    ties = execute(store, study, evaluators, merge="ties", merge_settings={"keep": 0.1}, points=8)
    learned = execute(store, study, evaluators, merge="regmean", points=8)
    weights = {"Colours": 1.0, "Stripes": 2.0}
    before = compare(store, study.id, weights=weights)
    seen: list[tuple[int, int]] = []
    for _ in range(2):  # the second time nothing is left to do
        complete(
            store, study.id, evaluators.get, merges=False, weights=weights, compute=CPU,
            progress=lambda *at: seen.append(at),
        )  # fmt: skip
    assert seen[-1] == (0, 0)
    assert max(seen)[0] == max(seen)[1] == before.missing
    comparison = compare(store, study.id, weights=weights)
    assert comparison.missing == 0
    evaluator = evaluators.get(study, CPU)
    for run in (ties, learned):
        row = next(row for row in comparison.rows if row.run_id == run.id)
        assert row.merge_id == run.merge_id
        expected = measure(store, study, evaluator, run.merge_id, row.x[None], split="test")
        np.testing.assert_array_equal(row.metrics, expected[0])
        assert np.isfinite(row.hypervolume)


def test_merges_that_a_study_can_not_have(store: Store, study: Study, evaluators: EvaluatorCache, three: Study):
    with pytest.raises(StudyError, match="SLERP merges 2 models, not 3"):
        complete(store, three.id, evaluators.get, merges=["slerp"])
    with pytest.raises(RegistryError, match="no merge 'salad'"):
        complete(store, study.id, evaluators.get, merges=["salad"])
    with pytest.raises(StudyError, match="no objective 'Flags'"):
        complete(store, study.id, evaluators.get, weights={"Flags": 1.0})
    with pytest.raises(SearchError, match="Every weight is zero"):
        complete(store, study.id, evaluators.get, weights={"Colours": 0.0})
    assert store.evaluations.rows(plain(store, three), "test") == []


def test_the_estimate_counts_what_is_missing(store: Store, study: Study):
    assert estimate_completion(store, study.id) is None
    merge_id, c = plain(store, study), np.array([0.9, 0.1])
    for key, seconds in zip(KEYS, (0.6, 0.2), strict=True):  # 60 examples in 0.6 and 0.2 seconds
        store.evaluations.add(merge_id, c, key, "val", Outcome(0.5, 60, b"\0" * 8, seconds))
    merges = [type(merge)(settings) for merge in applicable(study.config.facts()) for settings in merge.variants]
    passes = sum(merge.passes([60, 60]) for merge in merges)
    assert passes > 0
    new = [merge for merge in merges if merge.name != "task_arithmetic"]  # every study has that from its creation
    n_points = sum(len(merge.baselines(study.config.model_names)) for merge in new)
    n_searches = sum(merge.searches_scalar for merge in merges)
    before = estimate_completion(store, study.id, merges=False)
    images = passes + n_points * 120
    every = estimate_completion(store, study.id)
    # Where no test split was measured, an image takes 2.5 times as long; searches validate 11 points each.
    expected = 2.5 * images * 0.8 / 120 + n_searches * (11 * 0.8 + 2.5 * 0.8)
    assert every - before == pytest.approx(expected)
    # What has been prepared or measured isn't counted again.
    fisher = next(merge for merge in merges if merge.name == "fisher")
    stored = add(store, study, "fisher", examples=fisher.settings.examples)
    store.merges.state_file(stored.id).parent.mkdir(parents=True, exist_ok=True)
    store.merges.state_file(stored.id).touch()
    store.merges.set_prepared(stored.id, 1.0, 0)
    less = estimate_completion(store, study.id)
    assert every - less == pytest.approx(2.5 * fisher.passes([60, 60]) * 0.8 / 120)


@pytest.fixture
def three(store: Store, tiny_zoo: Path) -> Study:
    return store.studies.create("Three", tiny_config(tiny_zoo, ("Colours", "Stripes", "Light")))


def test_completing_computes_as_the_latest_run_did(store: Store, study: Study, evaluators: EvaluatorCache):
    execute(store, study, evaluators, points=8)
    asked: list[Compute] = []

    def get(of: Study, compute: Compute) -> Evaluator:
        asked.append(compute)
        return evaluators.get(of, compute)

    complete(store, study.id, get, merges=["soup"])
    assert set(asked) == {CPU}
