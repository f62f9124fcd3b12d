"""Nested MAP on landscapes whose best models are known; no network is merged here."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError, SearchError
from mapmerge_core.methods._tree import Leaf, closest, loss_of, most_tasks, neighbours
from mapmerge_core.methods.base import Batch, ObjectiveInfo
from mapmerge_core.methods.nested import NestedMAP, _restricted
from mapmerge_core.search.rules import parse_rule
from mapmerge_core.search.spaces import Box, Product, Simplex
from tests.methods.making import NAMES, make_method

EVERYTHING = (-np.inf, np.inf)
SCORE = ObjectiveInfo("score", bounds=EVERYTHING, link="identity")
"""Without bounds: its surrogate's link is the identity, which fits the quadratics below exactly."""
DISTANCE = ObjectiveInfo("distance", maximize=False, bounds=EVERYTHING, link="identity")
ACCURACY = ObjectiveInfo("accuracy")
OPTIMUM = np.array([0.3, 0.8, 0.5, 0.6, 0.2, 0.9, 0.4, 0.7])
P, Q = np.array([0.8, 0.3]), np.array([0.2, 0.6])


def nested(n, points=None, *, metric=SCORE, **options):
    objectives = [replace(metric, name=NAMES[k], model=k) for k in range(n)]
    return make_method(NestedMAP, n, points, **{"objectives": objectives, **options})


def run(method, truth, most=10_000):
    """Tells a method what ``truth`` (m x N -> m x N) says; gives what was asked, one (c, task) each."""
    asked = []
    while (batch := method.ask()) is not None and most:
        asked += [(tuple(c), task) for c in batch.X for task in batch.objectives]
        method.tell(batch, truth(batch.X)[:, list(batch.objectives)])
        most -= 1
    return asked


def separable(C):
    """Task n's score is 1 − (c_n − optimum_n)², whatever the other coefficients."""
    return 1 - (C - OPTIMUM[: C.shape[1]]) ** 2


def hills(C):
    """Two tasks, 1 − |c − P|² and 1 − |c − Q|²: the best for weights w and 1 − w is w P + (1 − w) Q."""
    return np.column_stack([1 - ((C - top) ** 2).sum(axis=1) for top in (P, Q)])


def clashing(C):
    """Accuracies that every other task's coefficient lowers, at a pace of its own."""
    n = C.shape[1]
    pace = 0.4 + 0.1 * np.add.outer(np.arange(n), 2 * np.arange(n)) % 0.5
    np.fill_diagonal(pace, 0.0)
    return 1 / (1 + np.exp(-(2 - 6 * (C - 0.8) ** 2 - C**2 @ pace.T)))


@pytest.fixture(scope="module")
def eight():
    method = nested(8, seed=3)
    return method, run(method, separable)


@pytest.fixture(scope="module")
def three():
    method = nested(3, weights={"A": 1, "B": 1, "C": 3})
    return method, run(method, separable)


def test_pairs_the_two_closest_losses_first():
    # 0.12 − 0.10 is the least difference, then 0.50 − 0.45; 0.90 is left over.
    assert closest([0.10, 0.50, 0.12, 0.45, 0.90]) == [(0, 2), (1, 3)]
    # Greedy: 0.3 and 0.5 are taken first, so that 0.0 and 1.0 must go together.
    assert closest([0.0, 0.3, 0.5, 1.0]) == [(1, 2), (0, 3)]
    assert closest([0.4, 0.4, 0.4]) == [(0, 1)]
    assert neighbours(5) == [(0, 1), (2, 3)]


def test_a_loss_is_the_distance_from_the_best_possible_value():
    assert loss_of(0.8, ACCURACY) == pytest.approx(0.2)
    assert loss_of(3.0, replace(DISTANCE, bounds=(1.0, np.inf))) == 2.0
    assert loss_of(4.0, replace(DISTANCE, bounds=(0.0, 10.0))) == pytest.approx(0.4)
    assert loss_of(4.0, SCORE) == -4.0
    assert loss_of(4.0, DISTANCE) == 4.0


@pytest.mark.parametrize("n", range(2, 8))
def test_most_tasks_is_the_most_over_every_way_of_pairing(n):
    def ways(free):
        if len(free) < 2:
            yield [], free
            return
        head, rest = free[0], free[1:]
        for i, other in enumerate(rest):
            for pairs, over in ways(rest[:i] + rest[i + 1 :]):
                yield [head + other, *pairs], over
        if len(free) % 2:
            for pairs, over in ways(rest):
                yield pairs, [head, *over]

    def most(sizes):
        return max(sum(p) + most(p + o) for p, o in ways(sizes)) if len(sizes) > 1 else 0

    assert most_tasks([1] * n) == most([1] * n)


def test_eight_tasks_take_480_evaluations(eight):
    # Appendix C.1: 4 x 20 x 2 + 2 x 20 x 4 + 1 x 20 x 8.
    method, asked = eight
    assert nested(8).n_evaluations == method.n_evaluations == 480
    assert len(asked) == len(set(asked)) == 480
    assert [pair.round for pair in method.pairs] == [1, 1, 1, 1, 2, 2, 3]
    for pair in method.pairs:
        assert pair.measured.shape == (20, 2**pair.round)


def test_single_task_models_are_measured_first_each_on_its_own_task(eight):
    _, asked = eight
    assert asked[:8] == [(tuple(np.eye(8)[n]), n) for n in range(8)]


def test_leaves_are_paired_by_the_losses_of_the_single_task_models(eight):
    # Scores at c_n = 1 are 1 − (1 − optimum)²: .51 .96 .75 .84 .36 .99 .64 .91; B and F differ by .03, then
    # D and H by .07, C and G by .11, and A and E by .15.
    method, _ = eight
    assert [pair.tasks for pair in method.pairs[:4]] == [(1, 5), (3, 7), (2, 6), (0, 4)]
    # All have reached 1, so that later pairs are as close as each other: the first wins.
    assert {pair.tasks for pair in method.pairs[4:6]} == {(0, 1, 4, 5), (2, 3, 6, 7)}


def test_separable_tasks_reach_each_tasks_optimum(eight):
    method, _ = eight
    np.testing.assert_allclose(method.chosen.x, OPTIMUM, atol=1e-3)
    np.testing.assert_allclose(method.chosen.values, np.ones(8), atol=1e-5)
    np.testing.assert_allclose(method.tree.r2, np.ones(8), atol=1e-9)
    assert method.chosen.feasible


def test_every_model_of_the_tree_is_a_c_of_its_own_tasks(eight):
    method, _ = eight
    for pair in method.pairs:
        assert not np.delete(pair.c, pair.tasks).any()
        np.testing.assert_allclose(pair.c, pair.point[0] * pair.left.c + pair.point[1] * pair.right.c)
        np.testing.assert_allclose(separable(pair.c[None])[0, list(pair.tasks)], pair.predicted, atol=1e-6)
        np.testing.assert_allclose(separable(pair.front_c)[:, list(pair.tasks)], pair.front.predicted, atol=1e-6)
        assert set(pair.tasks) == {*pair.left.tasks, *pair.right.tasks}


def test_the_first_round_starts_from_anchors_and_each_pair_has_points_of_its_own(eight):
    method, _ = eight
    first, second, *_, last = method.pairs
    for pair in (first, second):
        np.testing.assert_array_equal(pair.design[:3], [[0, 0], [1, 0], [0, 1]])
    assert not np.isclose(first.design[3:], second.design[3:]).any()
    assert 0 < last.design.min() < last.design.max() < 1


@pytest.mark.parametrize(("weight", "other"), [(1, 1), (3, 1), (0.2, 0.8), (5, 0)])
def test_two_tasks_are_one_pair_whose_model_suits_the_preference(weight, other):
    method = nested(2, weights={"A": weight, "B": other})
    batch = method.ask()
    assert batch.X.shape == (20, 2)
    assert batch.objectives == (0, 1)
    assert len(run(method, hills)) == method.n_evaluations == 40
    share = weight / (weight + other)
    np.testing.assert_allclose(method.chosen.x, share * P + (1 - share) * Q, atol=0.005)
    assert "75% A" in method.chosen.message or weight != 3


def test_metrics_that_go_down_are_brought_down():
    method = nested(2, metric=DISTANCE, weights={"A": 3, "B": 1})
    run(method, lambda C: 1 - hills(C))
    np.testing.assert_allclose(method.chosen.x, 0.75 * P + 0.25 * Q, atol=0.005)


def test_three_tasks_leave_one_for_the_second_round(three):
    # Scores of the single-task models .51 .96 .75: B and C are closer than A and C.
    method, asked = three
    assert len(asked) == len(set(asked)) == method.n_evaluations == 20 * 2 + 20 * 3
    assert [pair.tasks for pair in method.pairs] == [(1, 2), (0, 1, 2)]
    assert isinstance(method.tree.left, Leaf)
    assert method.tree.left.task == 0
    # A's own model begins the design: its measurement was needed for the pairing and is shared.
    np.testing.assert_array_equal(method.tree.design[0], [1, 0])
    np.testing.assert_allclose(method.chosen.x, OPTIMUM[:3], atol=1e-3)


def test_an_odd_node_settles_the_count_when_it_is_paired():
    # The losses that are told: A, B alike and C, D alike; then E is as good as A and B merged.
    single = np.array([0.1, 0.1, 0.5, 0.5, 0.9])
    merged = np.array([0.9, 0.9, 0.2, 0.2, 0.9])

    def truth(C):
        alone = (C == 1).any(axis=1)
        return np.where(alone[:, None], single, merged - 0.01 * ((C - 0.5) ** 2))

    method = nested(5)
    assert method.n_evaluations == 20 * (4 + 4 + 5)
    asked = run(method, truth)
    assert [pair.tasks for pair in method.pairs[2:]] == [(0, 1, 4), (0, 1, 2, 3, 4)]
    assert len(asked) == len(set(asked)) == method.n_evaluations == 20 * (4 + 3 + 5)


def test_the_order_of_the_leaves_decides_who_is_paired():
    method = nested(3, points=8, order=["C", "A", "B"])
    asked = run(method, separable)
    assert [(pair.left.tasks, pair.right.tasks) for pair in method.pairs] == [((2,), (0,)), ((0, 2), (1,))]
    assert len(asked) == len(set(asked)) == method.n_evaluations == 8 * 2 + 8 * 3
    np.testing.assert_allclose(method.chosen.x, OPTIMUM[:3], atol=1e-3)


def test_a_merged_nodes_loss_is_its_tasks_weighted_average():
    # Alone .1 .1 .5 .5 .3 .3, so the first round pairs AB, CD, EF. Merged, the tasks that count reach 1 (A),
    # 0 (D) and 0.2 (E): averages of 1, 0 and 0.2, of which CD and EF are the closest. Without dividing by
    # the shares of 1, 1 and 8 tenths they would be .1, 0 and .16, and AB and EF the closest.
    single = np.array([0.1, 0.1, 0.5, 0.5, 0.3, 0.3])
    merged = np.array([1.0, 0.0, 0.9, 0.0, 0.2, 0.2])
    method = nested(6, weights={"A": 1, "D": 1, "E": 8})
    while len(method.pairs) < 4:
        run(method, lambda C: np.where((C == 1).any(axis=1)[:, None], single, merged - 0.001 * C), most=1)
    assert [pair.tasks for pair in method.pairs] == [(0, 1), (2, 3), (4, 5), (2, 3, 4, 5)]


def test_a_preference_without_weight_in_a_pair_counts_its_tasks_alike():
    method = nested(4, weights={"A": 1, "B": 2}, order=list("ABCD"))
    run(method, clashing, most=2)
    first, second = method.pairs
    np.testing.assert_allclose(first.weights, [1 / 3, 2 / 3])
    np.testing.assert_allclose(second.weights, [0.5, 0.5])
    assert second.message == "The preference gives C and D no weight, so they count alike here."
    best = second.front.predicted.sum(axis=1).max()
    assert best <= second.predicted.sum() < best + 0.01


def test_bounded_metrics_are_fitted_and_merged_through_the_tree():
    method = nested(4, metric=ACCURACY, order=list("ABCD"))
    run(method, clashing)
    assert (method.tree.r2 > 0.95).all()
    true = clashing(method.chosen.x[None])[0]
    np.testing.assert_allclose(method.chosen.values, true, atol=0.02)
    grid = np.linspace(0, 1, 21)
    everywhere = np.stack(np.meshgrid(*[grid] * 4), axis=-1).reshape(-1, 4)
    assert true.mean() > clashing(everywhere).mean(axis=1).max() - 0.01


def test_sides_average_each_nodes_metrics(three):
    method, _ = three
    assert method.tree.tasks == (0, 1, 2)
    # Left is A, right are B and C with weights 1 and 3.
    np.testing.assert_allclose(method.tree.sides(np.array([[0.2, 0.4, 0.8]])), [[0.2, 0.7]])


def test_a_rule_takes_the_best_model_within_its_thresholds():
    # |c − P|² <= 0.1, as close to Q as that allows.
    method = nested(2, rule="A >= 0.9, maximize B")
    run(method, hills)
    towards = (Q - P) / np.linalg.norm(Q - P)
    np.testing.assert_allclose(method.chosen.x, P + np.sqrt(0.1) * towards, atol=1e-3)
    assert method.chosen.feasible
    assert method.chosen.values[0] >= 0.9


def test_a_share_of_single_is_of_what_the_single_task_model_measured():
    # A's own model (1, 0) reaches 1 − 0.2² − 0.3² = 0.87, of which 110% are 0.957: |c − P|² <= 0.043.
    method = nested(2, rule="A >= 110% of single, maximize B")
    run(method, hills)
    towards = (Q - P) / np.linalg.norm(Q - P)
    np.testing.assert_allclose(method.chosen.x, P + np.sqrt(0.043) * towards, atol=1e-3)


def test_a_share_of_pretrained_is_of_what_the_pretrained_model_measured():
    # At the origin A reaches 1 − 0.8² − 0.3² = 0.27, of which three and a half times are 0.945: |c − P|² <= 0.055.
    method = nested(2, rule="A >= 350% of pretrained, maximize B")
    assert len(run(method, hills)) == method.n_evaluations == 40
    towards = (Q - P) / np.linalg.norm(Q - P)
    np.testing.assert_allclose(method.chosen.x, P + np.sqrt(0.055) * towards, atol=1e-3)


@pytest.mark.parametrize("order", [None, ["C", "A", "B"]])
def test_the_pretrained_model_is_measured_for_a_leaf_that_is_left_over_too(order):
    rule = "all >= 105% of pretrained, maximize A"
    method = nested(3, points=8, rule=rule, **({} if order is None else {"order": order}))
    most = method.n_evaluations
    asked = run(method, separable)
    assert {task for c, task in asked if not any(c)} == {0, 1, 2}
    assert len(asked) == len(set(asked)) == most == method.n_evaluations == 8 * 2 + 8 * 3 + 1
    assert (method.chosen.values >= 1.05 * separable(np.zeros((1, 3)))[0] - 1e-9).all()
    assert method.chosen.feasible


def test_a_rule_that_no_model_meets_names_the_nearest_and_its_misses():
    # P and Q are √0.45 apart: halfway both reach 1 − 0.45/4 = 0.8875.
    method = nested(2, rule="all >= 0.95, maximize mean")
    run(method, hills)
    np.testing.assert_allclose(method.chosen.x, (P + Q) / 2, atol=1e-3)
    assert not method.chosen.feasible
    # In the middle between two roundings, so that processors may round to either.
    misses = re.findall(r"[AB] by ([\d.]+) points \(([\d.]+)% of 95.0%\)", method.chosen.message)
    np.testing.assert_allclose(np.array(misses, dtype=float), [[6.25, 88.75]] * 2, atol=0.06)


def test_every_pair_keeps_its_share_of_the_rule():
    method = nested(4, metric=ACCURACY, order=list("ABCD"), rule="all >= 75% of single, maximize A + C")
    run(method, clashing)
    single = np.diag(clashing(np.eye(4)))
    first, second, last = method.pairs
    for pair in (first, second):  # the first task of each is maximised, as in Appendix C.3
        wanted = 0.75 * single[list(pair.tasks)]
        assert pair.feasible
        assert (pair.predicted >= wanted).all()
        meets = (pair.front.predicted >= wanted).all(axis=1)
        assert pair.predicted[0] >= pair.front.predicted[meets, 0].max() - 1e-9
        assert pair.predicted[0] > pair.front.predicted[pair.front.predicted.sum(axis=1).argmax(), 0]
    # They gave B and D no more than the thresholds, which the other pair's tasks now pull them below.
    assert not last.feasible
    # The least largest miss is one that both share: rounding decides which of them is named first.
    assert re.search(r"misses (B by .* and D by|D by .* and B by)", method.chosen.message)


@pytest.mark.parametrize(
    ("text", "tasks", "expected"),
    [
        ("A >= 90%, others >= 60%, maximize D", (0, 1), "A >= 90%, others >= 60%, maximize A + B"),
        ("A >= 90%, others >= 60%, maximize D", (2, 3), "others >= 60%, maximize D"),
        ("A and B >= 90%, others >= 60%, maximize A + 2 D", (0, 1), "A >= 90%, B >= 90%, maximize A"),
        ("all >= 70%, A >= 90%, maximize worst", (1, 2), "all >= 70%, maximize worst"),
        ("all >= 70% of single, maximize mean", (0, 3), "all >= 70% of single, maximize mean"),
        ("maximize A", (2, 3), "maximize C + D"),
    ],
)
def test_a_pairs_rule_is_about_its_tasks_alone(text, tasks, expected):
    found = _restricted(parse_rule(text, list("ABCD")), tasks, [True] * 4)
    names = [NAMES[task] for task in tasks]
    assert found == parse_rule(expected, names)


def test_a_pairs_own_objective_keeps_to_the_first_tasks_direction():
    rule = parse_rule("maximize A", list("ABC"), maximize=[True, False, True])
    assert str(_restricted(rule, (1, 2), [True, False, True])) == "minimize B"


def test_the_front_stays_in_the_box_and_forgets_the_anchors_outside():
    def spoiled(C):
        return np.where((C <= 0.1).any(axis=1)[:, None], 50.0, hills(C))

    method = nested(2, low=0.25, high=0.7, weights={"A": 1})
    asked = run(method, spoiled)
    assert ((0.0, 0.0), 0) in asked
    # The point of the box nearest to P.
    np.testing.assert_allclose(method.chosen.x, [0.7, 0.3], atol=1e-3)
    np.testing.assert_allclose(method.chosen.values[0], 1 - 0.1**2, atol=1e-6)


def test_told_the_same_it_asks_the_same():
    first, second = nested(3, points=8, seed=5), nested(3, points=8, seed=5)
    while (batch := first.ask()) is not None:
        again = second.ask()
        np.testing.assert_array_equal(batch.X, again.X)
        assert batch.objectives == again.objectives
        np.testing.assert_array_equal(batch.X, first.ask().X)
        for method in (first, second):
            method.tell(batch, clashing(batch.X)[:, list(batch.objectives)])
    assert second.ask() is None
    np.testing.assert_array_equal(first.chosen.x, second.chosen.x)
    other = nested(2, seed=6)
    assert not np.isclose(other.ask().X[3:], nested(2, seed=5).ask().X[3:]).any()


def test_what_is_known_is_not_asked_again(three):
    _, asked = three
    # After the three single-task models: B and C at the origin and 17 points, and each one's model on the
    # other's task; then 20 models on all three, without A's own on A.
    assert [task for _, task in asked[:3]] == [0, 1, 2]
    first, second = asked[3:41], asked[41:]
    assert sorted(task for _, task in first) == [1] * 19 + [2] * 19
    assert sorted(task for _, task in second) == [0] * 19 + [1] * 20 + [2] * 20


def test_there_is_no_model_before_the_last_tell():
    method = nested(2)
    with pytest.raises(SearchError, match="isn't complete yet"):
        _ = method.chosen.x
    with pytest.raises(SearchError, match="tell the batch that `ask` returned"):
        method.tell(Batch(np.zeros((20, 2)), (0, 1)), np.zeros((20, 2)))
    with pytest.raises(SearchError, match="finite values"):
        method.tell(method.ask(), np.full((20, 2), np.nan))
    assert method.pairs == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 5}, "at least 6 points for every pair of models, not 5"),
        ({"points": 8, "low": 0.1}, "at least 9 points .* 3 of them lie outside the box"),
        ({"points": 7, "high": 0.9}, "at least 8 points .* 2 of them lie outside the box"),
        ({"points": 0}, "at least 1"),
        ({"low": 0.7, "high": 0.2}, "lowest coefficient must be below"),
        ({"seed": -1}, "seed"),
        ({"weights": {"A": 0, "B": 0}}, "Every weight is zero"),
        ({"weights": {}}, "Every weight is zero"),
        ({"weights": {"A": -1, "B": 2}}, "weights are numbers from zero up"),
        ({"weights": {"A": float("nan")}}, "weights = {'A': nan}: give numbers"),
        ({"weights": {"A": 1, "Z": 2}}, "no objective 'Z': choose from A, B, C, D"),
        ({"weights": {"A": 1}, "rule": "maximize A"}, "by a preference or by a rule"),
        ({"rule": "maximize Z"}, 'no objective "Z"'),
        ({"rule": "all <= 3, maximize A"}, "better higher"),
        ({"order": ["A", "B", "C"]}, "leaves out D"),
        ({"order": ["A", "B", "C", "C"]}, "names 'C' twice"),
        ({"order": ["A", "B", "C", "Z"]}, "names 'Z', but the objectives are"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(options, message):
    with pytest.raises(MapMergeError, match=message):
        nested(4, **options)


def test_a_single_model_and_models_without_an_objective_of_their_own_are_refused():
    with pytest.raises(SearchError, match="two models or more"):
        nested(1)
    objectives = [replace(SCORE, name="first", model=0), replace(SCORE, name="kept")]
    with pytest.raises(SearchError, match="an objective of its own for each model, and 'B' has none"):
        nested(2, objectives=objectives)


@pytest.mark.parametrize("space", [Simplex("AB"), Product([Simplex("AB"), Box(["scale"])])])
def test_weights_that_sum_to_1_are_refused(space):
    with pytest.raises(SearchError, match="each with a coefficient: choose another method"):
        NestedMAP(space, [replace(SCORE, name=name, model=k) for k, name in enumerate("AB")])


def test_a_box_with_ends_of_its_own_for_each_coefficient_is_refused():
    with pytest.raises(SearchError, match="the same lowest and highest coefficient for all models"):
        NestedMAP(Box("AB", 0, [1, 0.5]), [replace(SCORE, name=name, model=k) for k, name in enumerate("AB")])


def test_other_objectives_are_not_looked_at():
    own = [replace(SCORE, name=name, model=k) for k, name in ((1, "B"), (0, "A"))]
    method = nested(2, objectives=[replace(SCORE, name="kept"), *own, replace(SCORE, name="A again", model=0)])
    while (batch := method.ask()) is not None:
        assert batch.objectives == (2, 1)
        method.tell(batch, hills(batch.X))
    np.testing.assert_allclose(method.chosen.x, (P + Q) / 2, atol=0.005)
    np.testing.assert_array_equal(np.isnan(method.chosen.values), [True, False, False, True])
    np.testing.assert_allclose(method.chosen.values[[2, 1]], hills(method.chosen.x[None])[0], atol=1e-6)


def test_values_that_no_surrogate_fits_leave_it_as_it_was():
    method, other = nested(2, 8, metric=ACCURACY), nested(2, 8, metric=ACCURACY)
    batch = method.ask()
    with pytest.raises(SearchError, match="outside its bounds"):
        method.tell(batch, np.full((8, 2), 2.0))
    assert method.ask() is batch
    for one in (method, other):
        run(one, clashing)
    np.testing.assert_array_equal(method.chosen.x, other.chosen.x)


def test_the_surrogates_take_another_link_and_loss():
    objectives = [replace(ACCURACY, name="A", model=0), replace(ACCURACY, name="B", model=1, link="identity")]
    method = nested(2, objectives=objectives, loss="huber")
    run(method, clashing)
    assert [surrogate.link for surrogate in method.tree.surrogates.surrogates] == ["sigmoid", "identity"]
    assert {surrogate.loss for surrogate in method.tree.surrogates.surrogates} == {"huber"}
