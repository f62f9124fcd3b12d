"""What a learned set's measurements say: between them, by rule, and beside all else that is compared."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mapmerge_core.merges._training_settings import Training, TrainingPoint
from mapmerge_core.search.preference_grid import preference_grid
from mapmerge_core.studies.analysis.findings import finding_of
from mapmerge_core.studies.analysis.learned import (
    LearnedRule,
    LearnedSet,
    learned_runs,
    learned_set,
    measured_at,
    run_title,
)
from mapmerge_core.studies.analysis.replay import replay, run_front
from mapmerge_core.studies.analysis.siblings import sibling
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.runs.learning import refine_by_rule
from mapmerge_core.tasks.metric import ACCURACY, LOSS, Outcome

from mapmerge_core.errors import Cancelled, RuleError, SearchError, StudyError
from mapmerge_core.search.indicators import hypervolume
from mapmerge_core.search.rules import judge, parse_rule
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.analysis.comparing import compare, to_table
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.studies.runs import learning
from mapmerge_core.studies.runs.completing import estimate_completion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mapmerge_core.studies.store.rows import RunRow, Split, StudyRow
    from mapmerge_core.studies.store.store import Store

N_TEST = 40


def metrics_at(gamma: np.ndarray) -> np.ndarray:
    """Made-up accuracies: each grows with its own share, ever more slowly, and all less for later tasks."""
    return (0.2 + 0.7 * np.sqrt(gamma)) / (1 + 0.1 * np.arange(len(gamma)))


def write_set(path: Path, n_extra: int = 12, n_parameters: int = 3456) -> None:
    """A learned set's file with a header alone, as the safetensors format has it."""
    recipe = {"n_extra": n_extra, "n_parameters": n_parameters}
    header = json.dumps({"__metadata__": {"mapmerge-pareto-set": json.dumps({"recipe": recipe})}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def put(store: Store, run: RunRow, gamma: np.ndarray, split: Split = "val") -> None:
    step = run.settings.training.steps
    tasks = store.study(run.study_id).spec.task_names
    for task, value in zip(tasks, metrics_at(gamma), strict=True):
        store.add_learned_evaluation(run.id, gamma, task, split, Outcome(value, N_TEST, b"", 0.5), step)


def done_run(store: Store, study: StudyRow, points: int = 5, *, seed: int = 0, **how: object) -> RunRow:
    """A run whose training, set and measurements are made up."""
    settings = RunSettings(points=points, seed=seed, training=Training(**{"steps": 20, **how}))
    run = store.create_run(study.id, settings, "pareto_merging")
    n = len(study.spec.tasks)
    trained = [TrainingPoint(10, 0.5, np.ones(n), 1.5), TrainingPoint(20, 0.4, np.ones(n), 2.0)]
    store.add_training_points(run.id, trained)
    write_set(store.learned_file(run.id))
    for gamma in preference_grid(n, points, seed):
        put(store, run, gamma)
    store.set_status(run.id, "done")
    return store.run(run.id)


def put_anchors(store: Store, study: StudyRow, split: Split = "val") -> None:
    """Metrics of the single-task models, 0.9 and 0.3 elsewhere, and of the pre-trained one, 0.1."""
    n = len(study.spec.tasks)
    for c in np.eye(n + 1, n, k=-1):
        for task, own in zip(study.spec.task_names, c, strict=True):
            value = 0.1 if not c.any() else 0.9 if own else 0.3
            store.add_evaluation(study.id, c, task, split, Outcome(value, N_TEST, b"", 0.5))


@pytest.fixture
def three(store: Store, tiny_zoo: Path) -> StudyRow:
    return store.create_study("Three", spec_from_manifest(tiny_zoo))


@pytest.fixture
def learned(store: Store, three: StudyRow) -> LearnedSet:
    """Three tasks, sixteen preferences, and the corners."""
    put_anchors(store, three)
    return learned_set(store, done_run(store, three, 16).id)


# What there is


def test_a_set_is_what_was_measured_of_it(store: Store, study: StudyRow):
    run = done_run(store, study)
    found = learned_set(store, run.id)
    assert (found.run.id, found.tasks, found.maximize) == (run.id, ("Colours", "Stripes"), (True, True))
    np.testing.assert_array_equal(found.gammas, preference_grid(2, 5))
    np.testing.assert_array_equal(found.values, [metrics_at(gamma) for gamma in found.gammas])
    assert (found.n_extra, found.n_parameters, found.train_seconds) == (12, 3456, 3.5)
    assert np.isnan(found.single).all()
    assert np.isnan(found.pretrained).all()
    put_anchors(store, study)
    again = learned_set(store, run.id)
    np.testing.assert_array_equal(again.single, [0.9, 0.9])
    np.testing.assert_array_equal(again.pretrained, [0.1, 0.1])


def test_a_preference_that_lacks_a_task_does_not_count_yet(store: Store, study: StudyRow):
    run = done_run(store, study)
    store.add_learned_evaluation(run.id, np.array([0.3, 0.7]), "Stripes", "val", Outcome(0.99, N_TEST, b"", 0.5), 20)
    assert len(learned_set(store, run.id).gammas) == 5


def test_runs_that_have_learned_a_set_come_latest_first(store: Store, study: StudyRow):
    first, second = done_run(store, study), done_run(store, study, seed=1)
    store.create_run(study.id, RunSettings(points=1, training=Training()), "pareto_merging")
    store.set_status(store.create_run(study.id, RunSettings(points=9)).id, "done")
    assert [run.id for run in learned_runs(store, study.id)] == [second.id, first.id]


def test_without_a_set_one_sentence_says_why(store: Store, study: StudyRow):
    run = done_run(store, study)
    waiting = store.create_run(study.id, RunSettings(points=1, training=Training()), "pareto_merging")
    other = store.create_run(study.id, RunSettings(points=9))
    with pytest.raises(StudyError, match=f"Run {waiting.id} has learned no set yet: run it to its end"):
        learned_set(store, waiting.id)
    with pytest.raises(StudyError, match=f"Run {other.id} learns no set of models"):
        learned_set(store, other.id)
    for content in (b"", b"\xff" * 40, b"\x02" + bytes(7) + b"{}", b"\x04" + bytes(7) + b"null"):
        store.learned_file(run.id).write_bytes(content)
        with pytest.raises(StudyError, match="can't be read: run Pareto Merging again"):
            learned_set(store, run.id)
    store.learned_file(run.id).unlink()
    with pytest.raises(StudyError, match="is gone from"):
        learned_set(store, run.id)


def test_reading_needs_no_torch(store: Store, study: StudyRow):
    run = done_run(store, study)
    program = (
        "import sys\n"
        "from mapmerge_core.studies.analysis.comparing import compare\n"
        "from mapmerge_core.studies.analysis.learned import learned_set\n"
        "from mapmerge_core.studies.store.store import Store\n"
        f"store = Store({str(store.folder)!r})\n"
        f"learned = learned_set(store, {run.id})\n"
        "learned.by_rule('all >= 30%, maximize Colours')\n"
        f"print(len(compare(store, {study.id}).rows), 'torch' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["5", "False"]


def test_what_a_run_does_in_a_few_words(store: Store, study: StudyRow):
    run = done_run(store, study, 30, steps=2000)
    assert run_title(run) == "Train 2,000 steps, then measure 30 preferences"
    assert run_title(done_run(store, study, 1)) == "Train 20 steps, then measure 1 preference"
    assert run_title(store.create_run(study.id, RunSettings(points=50))) == "Evaluate 50 points"
    nested = store.create_run(study.id, RunSettings(points=20), "nested")
    assert run_title(nested) == "Evaluate 20 points a pair"


# Between what was measured


def test_between_two_tasks_preferences_metrics_lie_on_straight_lines(store: Store, study: StudyRow):
    found = learned_set(store, done_run(store, study, 5).id)
    for share in (0.1, 0.3, 0.6, 0.93):
        values, lower, upper, is_measured = found.predict(np.array([share, 1 - share]))
        shares = found.gammas[::-1, 0]
        expected = [np.interp(share, shares, found.values[::-1, task]) for task in range(2)]
        np.testing.assert_allclose(values, expected, atol=1e-9)
        assert not is_measured
        assert (lower < values).all()
        assert (values < upper).all()


def test_what_was_measured_is_said_to_be(learned: LearnedSet):
    for gamma, measured in zip(learned.gammas, learned.values, strict=True):
        values, lower, upper, is_measured = learned.predict(3 * gamma)  # only the shares matter
        assert is_measured
        for row in (values, lower, upper):
            np.testing.assert_array_equal(row, measured)
    assert not learned.predict(np.array([0.5, 0.3, 0.2]))[3]
    with pytest.raises(SearchError, match="negative or not finite"):
        learned.predict(np.array([0.5, -0.3, 0.8]))


def test_a_preference_is_found_whatever_its_last_bits_are():
    gammas = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    values = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan], [np.nan, 5.0, np.nan]])
    wanted = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7001]]) * (1 + 1e-15)
    expected = [[4, 5, np.nan], [1, 2, 3], [np.nan] * 3]
    np.testing.assert_array_equal(measured_at(gammas, values, wanted), expected)
    assert measured_at(np.empty((0, 3)), np.empty((0, 3)), wanted).shape == (3, 3)


def test_the_front_is_what_nothing_measured_beats(learned: LearnedSet):
    values = [*map(tuple, learned.values)]
    best = [
        row
        for row, ours in enumerate(values)
        if not any(all(a >= b for a, b in zip(theirs, ours, strict=True)) and theirs != ours for theirs in values)
    ]
    assert learned.front().tolist() == best
    worse = replace(learned, values=np.vstack([learned.values[:-1], learned.values[0] - 0.01]))
    assert len(worse.values) - 1 not in worse.front()


# By rule


def by_brute_force(values: np.ndarray, least: list[float], aim: Callable[[np.ndarray], float]) -> int:
    """The row that meets all thresholds and is best, or else that misses its worst one by the least."""
    best, most = -1, (-1, -np.inf)
    for row, metrics in enumerate(values):
        slack = min((m - t for m, t in zip(metrics, least, strict=True)), default=np.inf)
        score = (1, aim(metrics)) if slack >= 0 else (0, slack)
        if score > most:
            best, most = row, score
    return best


@pytest.mark.parametrize(
    ("text", "least", "aim", "feasible"),
    [
        ("maximize worst", [0, 0, 0], min, True),
        ("maximize mean", [0, 0, 0], np.mean, True),
        ("all >= 50%, maximize Stripes", [0.5, 0.5, 0.5], lambda m: m[1], True),
        ("Light >= 65%, maximize Colours", [0, 0, 0.65], lambda m: m[0], True),
        ("Colours >= 60%, maximize 2 Stripes + Light", [0.6, 0, 0], lambda m: 2 * m[1] + m[2], True),
        ("all >= 50% of single, maximize Light", [0.45] * 3, lambda m: m[2], True),
        ("all >= 80%, maximize mean", [0.8] * 3, np.mean, False),
        ("Colours >= 85%, Stripes >= 40%, maximize mean", [0.85, 0.4, 0], np.mean, False),
    ],
)
def test_a_rule_leads_to_the_best_of_what_was_measured(learned: LearnedSet, text, least, aim, feasible):
    found = learned.by_rule(text)
    row = by_brute_force(learned.values, least, aim)
    np.testing.assert_array_equal(found.gamma, learned.gammas[row])
    np.testing.assert_array_equal(found.values, learned.values[row])
    assert found.feasible == feasible
    if feasible:
        assert found.message == "This model meets the rule, as measured on the validation split."


def test_what_no_measured_model_meets_says_by_how_much_the_nearest_misses(learned: LearnedSet):
    one = replace(learned, gammas=learned.gammas[:1], values=np.array([[0.55, 0.5, 0.95]]))
    assert one.by_rule("Colours >= 60%, Stripes >= 52%, Light >= 90%, maximize mean").message == (
        "No measured model meets this rule; the nearest misses Colours by 5.0 points (55.0% of 60.0%) and "
        "Stripes by 2.0 points (50.0% of 52.0%)."
    )


def test_rules_that_cannot_be_applied(store: Store, study: StudyRow):
    found = learned_set(store, done_run(store, study).id)
    with pytest.raises(RuleError, match="Flags"):
        found.by_rule("Flags >= 60%, maximize worst")
    with pytest.raises(SearchError, match="single-task"):
        found.by_rule("all >= 90% of single, maximize worst")


def test_metrics_that_go_down_are_judged_the_other_way_round():
    rule = parse_rule(
        "Loss <= 0.4, maximize Accuracy",
        ("Accuracy", "Loss"),
        maximize=(True, False),
        bounds=[ACCURACY.bounds, LOSS.bounds],
    )
    judged = judge(rule, [[0.9, 0.5], [0.7, 0.3], [0.8, 0.4]], maximize=(True, False))
    np.testing.assert_allclose(judged.slack, [-0.1, 0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(judged.objective, [0.9, 0.7, 0.8])
    assert (judged.best, judged.feasible, judged.misses) == (2, True, ())
    missed = judge(rule, [[0.9, 0.5], [0.7, 0.6]], maximize=(True, False))
    assert (missed.best, missed.feasible) == (0, False)
    assert [(miss.task, miss.wanted, miss.got) for miss in missed.misses] == [("Loss", 0.4, 0.5)]
    for wrong in ([0.9, 0.5], [[0.9, 0.5, 0.1]], np.empty((0, 2))):
        with pytest.raises(SearchError, match="The rule is about 2 tasks"):
            judge(rule, wrong, maximize=(True, False))


# Refined by measuring


class Measuring:
    """Stands in for the evaluator and the learned set: a model is its preference, its metrics are made up."""

    exported_vectors = None

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.measured: list[np.ndarray] = []

    def merge(self, gamma: np.ndarray) -> np.ndarray:
        self.measured.append(gamma)
        return gamma

    def outcomes_of(self, gamma: np.ndarray, tasks: list[str], split: str) -> Iterator[tuple[str, Outcome]]:
        assert split == "val"
        for task in tasks:
            yield task, Outcome(metrics_at(gamma)[self.names.index(task)], N_TEST, b"", 0.5)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    stub = Measuring(("Colours", "Stripes", "Light"))
    monkeypatch.setattr(learning, "load_learned", lambda *_: stub)
    monkeypatch.setattr("mapmerge_core.weights.vectors.streamed.in_memory", lambda vectors: vectors)
    return stub


FINE = np.array([(a, b, 200 - a - b) for a in range(201) for b in range(201 - a)]) / 200


@pytest.mark.parametrize(
    ("text", "least", "aim"),
    [
        ("maximize worst", [0, 0, 0], min),
        ("Stripes >= 58%, Light >= 50%, maximize Colours", [0, 0.58, 0.5], lambda m: m[0]),
        ("Light >= 60%, maximize Colours + Stripes", [0, 0, 0.6], lambda m: m[0] + m[1]),
    ],
)
def test_measuring_near_a_rule_comes_close_to_the_best_there_is(
    store: Store, learned: LearnedSet, measuring: Measuring, text, least, aim
):
    before = learned.by_rule(text)
    seen: list[tuple[int, int]] = []
    found = refine_by_rule(store, learned.run.id, measuring, text, budget=10, progress=lambda *at: seen.append(at))
    every = np.array([metrics_at(gamma) for gamma in FINE])
    best = every[by_brute_force(every, least, aim)]
    assert found.feasible
    assert aim(best) - aim(found.values) < 0.02
    assert aim(found.values) > aim(before.values) or not before.feasible
    np.testing.assert_allclose(found.values, metrics_at(found.gamma))
    # All of the budget is measured, each preference apart from the others, and kept.
    assert len(measuring.measured) == 10
    gammas, values = store.learned_table(learned.run.id)
    assert len(gammas) == 16 + 10
    assert np.isfinite(values).all()
    gaps = [np.abs(a - b).sum() for i, a in enumerate(gammas) for b in gammas[:i]]
    assert min(gaps) >= 0.005 - 1e-9
    assert (seen[0], seen[-1]) == ((0, 30), (30, 30))
    assert seen == sorted(seen)


def test_it_looks_nearer_and_nearer_to_the_best(
    store: Store, learned: LearnedSet, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
):
    rounds: list[list[np.ndarray]] = [[] for _ in range(10)]
    predict = LearnedSet.predict

    def look(self: LearnedSet, gamma: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        rounds[len(measuring.measured)].append(gamma)
        return predict(self, gamma)

    monkeypatch.setattr(LearnedSet, "predict", look)
    refine_by_rule(store, learned.run.id, measuring, "maximize worst", budget=10)
    gammas, values = store.learned_table(learned.run.id)
    typical = []
    for number, looked_at in enumerate(rounds):
        best = gammas[by_brute_force(values[: 16 + number], [0, 0, 0], min)]
        typical.append(np.median(np.abs(np.array(looked_at) - best).sum(axis=1)))
    assert typical[0] > 0.2
    assert typical[-1] < 0.1


def test_a_rule_that_nothing_measured_meets_is_met_by_measuring(
    store: Store, learned: LearnedSet, measuring: Measuring
):
    rule = "all >= 53.5%, maximize worst"
    before = learned.by_rule(rule)
    assert not before.feasible
    found = refine_by_rule(store, learned.run.id, measuring, rule)
    assert found.feasible
    assert (metrics_at(found.gamma) >= 0.535).all()
    assert len(measuring.measured) == 12


def test_refining_measures_the_same_preferences_again(store: Store, three: StudyRow, measuring: Measuring):
    """Two runs alike in two stores, since a run's id decides what is drawn."""
    put_anchors(store, three)
    rule = "Light >= 60%, maximize Colours"
    first = done_run(store, three, 10)
    refine_by_rule(store, first.id, measuring, rule, budget=4)
    again = type(store)(store.folder / "again")
    copy = again.create_study("Three", three.spec)
    second = done_run(again, copy, 10)
    assert second.id == first.id
    refine_by_rule(again, second.id, measuring, rule, budget=4)
    np.testing.assert_array_equal(measuring.measured[:4], measuring.measured[4:])
    again.close()


def test_a_stopped_refinement_keeps_what_it_measured(store: Store, learned: LearnedSet, measuring: Measuring):
    cancel = Event()

    def stop(done: int, _: int) -> None:
        if done == 7:  # two preferences, and a third's first task
            cancel.set()

    with pytest.raises(Cancelled):
        refine_by_rule(store, learned.run.id, measuring, "maximize worst", cancel=cancel, progress=stop)
    _, values = store.learned_table(learned.run.id)
    assert int(np.isfinite(values[16:]).sum()) == 7
    assert len(learned_set(store, learned.run.id).gammas) == 18


def test_a_wrong_rule_is_refused_before_anything_is_measured(store: Store, learned: LearnedSet, measuring: Measuring):
    with pytest.raises(RuleError):
        refine_by_rule(store, learned.run.id, measuring, "Flags >= 60%, maximize worst")
    assert measuring.measured == []
    unchanged = refine_by_rule(store, learned.run.id, measuring, "maximize worst", budget=0)
    assert isinstance(unchanged, LearnedRule)
    assert measuring.measured == []


# Beside runs, baselines and references


def test_a_learned_set_has_a_model_for_every_preference_compared(store: Store, study: StudyRow):
    run = done_run(store, study)
    weights = {"Colours": 3.0, "Stripes": 1.0}
    bare = compare(store, study.id, weights=weights)
    row = bare.row(f"run-{run.id}")
    assert (row.name, row.kind, row.method, row.problem) == ("Pareto Merging", "run", "pareto_merging", "")
    assert (row.c, row.run_id, row.study_id) == (None, run.id, study.id)
    np.testing.assert_array_equal(row.gamma, [0.75, 0.25])
    assert np.isnan(row.metrics).all()
    assert np.isnan(row.hypervolume)
    assert (row.evaluations, row.seconds) == (10, pytest.approx(3.5 + 10 * 0.5))
    assert np.isnan(bare.n_test).all()
    # 21 preferences for two tasks, beside those of the rows that are there without a run.
    assert bare.missing == 2 * 21 + 2 * (21 + 2 + 1)

    put(store, run, np.array([0.75, 0.25]), "test")
    for preference in bare.preferences:
        put(store, run, preference, "test")
    put_anchors(store, study, "test")
    full = compare(store, study.id, weights=weights)
    row = full.row(f"run-{run.id}")
    np.testing.assert_allclose(row.metrics, metrics_at(np.array([0.75, 0.25])))
    np.testing.assert_allclose(row.front_c, [[0.75, 0.25], *bare.preferences])
    np.testing.assert_allclose(row.front, [metrics_at(gamma) for gamma in row.front_c])
    for sums, preference in zip(full.sums[row.key], full.preferences, strict=True):
        assert sums == pytest.approx(preference @ metrics_at(preference))
    shares = np.array([metrics_at(gamma) for gamma in bare.preferences]) / 0.9
    assert row.hypervolume == pytest.approx(hypervolume(shares, np.zeros(2), [True, True]))
    assert full.missing == 2 * 21
    np.testing.assert_array_equal(full.n_test, [N_TEST, N_TEST])
    value, lower, upper = full.weighted(row)
    assert lower < value < upper
    table = to_table(full).set_index("model")
    assert table.loc["Pareto Merging", "Colours"] == pytest.approx(metrics_at(np.array([0.75]))[0])


def test_examples_are_known_where_nothing_but_a_learned_set_was_measured(store: Store, study: StudyRow):
    run = done_run(store, study)
    put(store, run, np.array([0.5, 0.5]), "test")
    np.testing.assert_array_equal(compare(store, study.id).n_test, [N_TEST, N_TEST])


def test_maps_wins_are_counted_against_it(store: Store, study: StudyRow):
    learned = done_run(store, study)
    run = store.create_run(study.id, RunSettings(points=12))
    asking = run.settings.make_method("map", study.spec)
    while (batch := asking.ask()) is not None:
        values = np.array([[0.4 + 0.5 * a - 0.2 * b**2, 0.3 + 0.6 * b - 0.25 * a**2] for a, b in batch.C])
        for c, row in zip(batch.C, values, strict=True):
            for task, value in zip(study.spec.task_names, row, strict=True):
                store.add_evaluation(study.id, c, task, "val", Outcome(value, N_TEST, b"", 0.5))
        asking.tell(batch, values)
    store.set_status(run.id, "done")
    comparison = compare(store, study.id)
    ours = comparison.row(f"run-{run.id}")
    for c in ours.front_c:
        for task in study.spec.task_names:
            store.add_evaluation(study.id, c, task, "test", Outcome(0.68, N_TEST, b"", 0.5))
    for gamma in comparison.preferences:
        put(store, learned, gamma, "test")
    comparison = compare(store, study.id)
    theirs = [gamma @ metrics_at(gamma) for gamma in comparison.preferences]
    rate = np.mean([value < 0.68 for value in theirs])
    assert 0 < rate < 1
    assert comparison.wins[f"run-{learned.id}"][0] == pytest.approx(rate)


def test_a_set_that_is_not_there_yet_says_why(store: Store, study: StudyRow):
    run = store.create_run(study.id, RunSettings(points=1, training=Training()), "pareto_merging")
    row = compare(store, study.id).row(f"run-{run.id}")
    assert row.problem == f"Run {run.id} is still going on: it can be compared once it is done."
    assert (row.gamma, row.front) == (None, None)
    store.set_status(run.id, "failed", "No space.")
    assert compare(store, study.id).row(f"run-{run.id}").problem == f"Run {run.id} failed: No space."


def test_names_tell_sets_apart(store: Store, study: StudyRow):
    trimmed = sibling(store, study, Transform("ties_trim"))
    dropped = sibling(store, study, Transform("dare"))
    made = [
        (done_run(store, trimmed), "Pareto Merging++"),
        (done_run(store, dropped), "Pareto Merging on DARE 50 %"),
        (done_run(store, study, data_free=True), "Pareto Merging, data-free"),
        (done_run(store, study), "Pareto Merging, seed 0"),
        (done_run(store, study, seed=3), "Pareto Merging, seed 3"),
    ]
    comparison = compare(store, study.id)
    assert [comparison.row(f"run-{run.id}").name for run, _ in made] == [name for _, name in made]
    assert comparison.row(f"run-{made[0][0].id}").study_id == trimmed.id
    more = done_run(store, trimmed, 7)
    names = [row.name for row in compare(store, study.id).rows]
    assert "Pareto Merging++, 5 preferences" in names
    assert "Pareto Merging++, 7 preferences" in names
    assert compare(store, trimmed.id).row(f"run-{more.id}").study_id == trimmed.id


def test_what_completing_takes_counts_its_models(store: Store, study: StudyRow):
    put_anchors(store, study)
    without = estimate_completion(store, study.id)
    run = done_run(store, study)
    assert estimate_completion(store, study.id) == pytest.approx(without + 42 * 0.5)
    put(store, run, np.array([0.5, 0.5]), "test")
    assert estimate_completion(store, study.id) == pytest.approx(without + 40 * 0.5)


def test_it_has_no_coefficients_and_disturbs_nobody_who_has(store: Store, study: StudyRow):
    put_anchors(store, study)
    before = analyse(store, study.id)
    run = done_run(store, study)
    after = analyse(store, study.id)
    assert (after.low, after.high, after.needed, after.problem) == (
        before.low, before.high, before.needed, before.problem
    )  # fmt: skip
    for call in (replay, run_front):
        with pytest.raises(StudyError, match=f"run {run.id} learned have no coefficients"):
            call(store, run.id)
    found = finding_of(store, run)
    assert (found.front, found.evaluations) == (None, 10)
    assert f"`pick --learned {run.id}`" in found.problem
