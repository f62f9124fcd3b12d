"""From a rule to a model, against hills whose answers are known by hand and against fine grids."""

import numpy as np
import pytest
from scipy.special import expit

from mapmerge_core.errors import RuleError, SearchError
from mapmerge_core.search.fronts import find_front
from mapmerge_core.search.rules import Miss, apply_rule, judge, parse_rule
from mapmerge_core.search.spaces import Simplex
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.search.surrogates.spaces import SpaceSurrogates, fit_surrogates

TASKS = ("left", "right")
GRID = np.array([(x, y) for x in np.linspace(0, 1, 201) for y in np.linspace(0, 1, 201)])


def predict_all(surrogates, C):
    return SpaceSurrogates.in_box(surrogates, 0, 1).predict(C)


@pytest.fixture
def hills(peak):
    """1 − |c − (0, ½)|² and 1 − |c − (1, ½)|²: on the front, the line between, 1 − x² and 1 − (1 − x)²."""
    surrogates = [peak([0.0, 0.5]), peak([1.0, 0.5])]
    return surrogates, find_front(surrogates, 0, 1, generations=5)


@pytest.fixture
def accurate():
    """Two accuracies with a trade-off, fitted to noisy measurements."""
    rng = np.random.default_rng(3)
    C = rng.uniform(0, 1, (40, 2))
    z = np.column_stack(
        [1 + 4 * C[:, 0] - 2 * C[:, 1] - 2 * C[:, 0] ** 2, 0.5 - 2 * C[:, 0] + 5 * C[:, 1] - 2 * C[:, 1] ** 2]
    )
    Y = np.clip(expit(z) + 0.01 * rng.normal(size=(40, 2)), 0, 1)
    surrogates = [QuadraticSurrogate(link="sigmoid").fit(C, y) for y in Y.T]
    return surrogates, find_front(surrogates, 0, 1, generations=5)


def answer(text, case, **options):
    surrogates, front = case
    rule = parse_rule(text, TASKS, maximize=options.get("maximize"), bounds=options.pop("bounds", None))
    return apply_rule(rule, front, surrogates, low=0, high=1, **options)


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("maximize worst", 0.5),
        ("maximize mean", 0.5),
        ("maximize left", 0.0),
        ("maximize 3 left + right", 0.25),
        ("right >= 75%, maximize left", 0.5),
        ("right >= 64%, maximize left", 0.4),
        ("all >= 51%, maximize right", 0.7),
        ("left >= 91%, maximize worst", 0.3),
        ("left >= 91%, others >= 51%, maximize mean", 0.3),
        ("right >= 80% of single, maximize left", 0.4),
    ],
)
def test_the_answer_on_two_hills_is_the_one_by_hand(hills, text, x):
    result = answer(text, hills, single=[0.9, 0.8])
    assert result.feasible
    assert result.misses == ()
    np.testing.assert_allclose(result.x, [x, 0.5], atol=2e-3)
    np.testing.assert_allclose(result.predicted, [1 - x**2, 1 - (1 - x) ** 2], atol=3e-3)


@pytest.mark.parametrize(
    "text", ["all >= 70%, maximize left", "right >= 90%, maximize worst", "maximize 2 right + left"]
)
def test_no_point_of_a_fine_grid_that_meets_the_rule_is_better(accurate, text):
    surrogates, _ = accurate
    result = answer(text, accurate)
    left, right = predict_all(surrogates, GRID).T
    meets, value, own = {
        "all >= 70%, maximize left": ((left >= 0.7) & (right >= 0.7), left, result.predicted[0]),
        "right >= 90%, maximize worst": (right >= 0.9, np.minimum(left, right), result.predicted.min()),
        "maximize 2 right + left": (left > 0, 2 * right + left, result.predicted @ [1, 2]),
    }[text]
    assert own >= value[meets].max() - 1e-5
    np.testing.assert_allclose(result.predicted, predict_all(surrogates, result.x[None])[0])


def test_what_is_feasible_really_meets_its_thresholds_and_beats_the_front(accurate):
    _, front = accurate
    result = answer("all >= 70%, maximize left", accurate)
    assert (result.predicted >= 0.7).all()
    rows = front.predicted[(front.predicted >= 0.7).all(axis=1)]
    assert result.predicted[0] >= rows[:, 0].max()
    assert (result.x >= 0).all()
    assert (result.x <= 1).all()


def test_intervals_come_with_the_answer(accurate):
    surrogates, _ = accurate
    result = answer("maximize worst", accurate)
    for k, surrogate in enumerate(surrogates):
        lower, upper = surrogate.predict_interval(result.x[None])
        assert (result.lower[k], result.upper[k]) == (lower[0], upper[0])
    assert (result.lower < result.predicted).all()


def test_a_rule_that_only_models_between_the_fronts_rows_meet_is_met(hills):
    surrogates, front = hills
    ends = type(front)(front.x[[0, -1]], front.predicted[[0, -1]], front.lower[[0, -1]], front.upper[[0, -1]])
    result = answer("all >= 74.9%, maximize worst", (surrogates, ends))
    assert result.feasible
    np.testing.assert_allclose(result.x, [0.5, 0.5], atol=2e-3)


def test_an_impossible_rule_names_the_nearest_and_what_it_misses(hills):
    result = answer("left >= 90%, right >= 80%, maximize worst", hills)
    # Both short alike: 0.9 − (1 − x²) = 0.8 − (1 − (1 − x)²), so x = 0.45 and each misses 0.1025.
    assert not result.feasible
    np.testing.assert_allclose(result.x, [0.45, 0.5], atol=2e-3)
    assert {miss.name for miss in result.misses} == {"left", "right"}
    for miss, wanted in zip(sorted(result.misses, key=lambda m: m.name), (0.9, 0.8), strict=True):
        assert miss.wanted == pytest.approx(wanted)
        assert miss.got == pytest.approx(wanted - 0.1025, abs=1e-3)


def test_the_message_is_one_sentence_with_figures(hills):
    result = answer("left >= 50%, right >= 120% of single, maximize worst", hills, single=[0.5, 0.82])
    # Right reaches 0.984 where left is down to 0.237.
    assert not result.feasible
    missed = " and ".join(
        f"{m.name} by {100 * (m.wanted - m.got):.1f} points ({100 * m.got:.1f}% of {100 * m.wanted:.1f}%)"
        for m in result.misses
    )
    assert result.message == f"No model meets this rule; the nearest misses {missed}."
    assert {m.name for m in result.misses} == {"left", "right"}


def test_a_single_miss_is_told_alone(hills):
    result = answer("right >= 110% of single, maximize worst", hills, single=[1, 1])
    assert result.misses == (Miss("right", pytest.approx(1.1), pytest.approx(1.0, abs=1e-5)),)
    assert result.message == "No model meets this rule; the nearest misses right by 0.1 (1 instead of 1.1)."


def test_metrics_that_go_down(peak):
    C = np.random.default_rng(0).uniform(size=(20, 2))
    loss = QuadraticSurrogate().fit(C, 2 + ((C - [1.0, 0.5]) ** 2).sum(axis=1))
    case = [peak([0.0, 0.5]), loss]
    front = find_front(case, 0, 1, maximize=[True, False], generations=5)
    options = {"maximize": [True, False], "bounds": [(0, 1), (0, np.inf)]}
    held = answer("right <= 2.36, maximize left", (case, front), **dict(options))
    np.testing.assert_allclose(held.x, [0.4, 0.5], atol=2e-3)
    assert held.predicted[1] <= 2.36
    least = answer("left >= 91%, minimize right", (case, front), **dict(options))
    np.testing.assert_allclose(least.x, [0.3, 0.5], atol=2e-3)
    relative = answer("right <= 118% of single, maximize left", (case, front), single=[1.0, 2.0], **dict(options))
    np.testing.assert_allclose(relative.x, [0.4, 0.5], atol=2e-3)
    missed = answer("right <= 1.5, maximize left", (case, front), **dict(options))
    assert not missed.feasible
    assert "right by 0.5 (2 instead of 1.5)" in missed.message


def test_what_cannot_be_applied(hills):
    surrogates, front = hills
    with pytest.raises(SearchError, match=r"needs the own model measured on right: measure it"):
        answer("right >= 80% of single, maximize left", hills)
    with pytest.raises(SearchError, match="needs the own model measured on right"):
        answer("right >= 80% of single, maximize left", hills, single=[0.9, np.nan])
    with pytest.raises(SearchError, match="3 objectives"):
        apply_rule(parse_rule("maximize mean", ["a", "b", "c"]), front, surrogates, low=0, high=1)
    with pytest.raises(RuleError, match="left is better lower"):
        apply_rule(parse_rule("maximize left", TASKS), front, surrogates, low=0, high=1, maximize=[False, True])


def test_a_share_of_the_pretrained_models_value(hills):
    # 0.8 of 0.8 is 0.64, as by hand above; both references at once as well.
    result = answer("right >= 80% of pretrained, maximize left", hills, pretrained=[0.1, 0.8])
    np.testing.assert_allclose(result.x, [0.4, 0.5], atol=2e-3)
    both = "left >= 90% of pretrained, right >= 40% of single, maximize right"
    result = answer(both, hills, single=[0.1, 1.0], pretrained=[0.91 / 0.9, 0.1])
    np.testing.assert_allclose(result.x, [0.3, 0.5], atol=2e-3)
    for references in ({}, {"single": [1, 1]}, {"pretrained": [1, np.nan]}):
        with pytest.raises(SearchError, match="needs the pre-trained model measured on right: measure it first"):
            answer("right >= 80% of pretrained, maximize left", hills, **references)


@pytest.fixture
def weights():
    """Weights of three models: each of three objectives is 1 − |x − its vertex|² / 2, and a fourth 1 − |x|²."""
    space, rng = Simplex("abc"), np.random.default_rng(0)
    X = space.sample(30, rng)
    values = [1 - ((X - vertex) ** 2).sum(axis=1) / 2 for vertex in np.eye(3)] + [1 - (X**2).sum(axis=1)]
    surrogates = fit_surrogates(space, X, np.column_stack(values), [("identity", None)] * 4)
    return surrogates, find_front(surrogates, generations=3)


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("maximize even", [1 / 3, 1 / 3, 1 / 3]),
        ("maximize worst", [1 / 3, 1 / 3, 1 / 3]),
        ("maximize a", [1, 0, 0]),
        ("maximize a + b", [0.5, 0.5, 0]),
        # On the edge between a and b, a has 1 - (1 - t)² and b 1 - t².
        ("b >= 75%, maximize a", [0.5, 0.5, 0]),
        ("b >= 150% of pretrained, maximize a", [0.5, 0.5, 0]),
    ],
)
def test_the_answer_on_a_simplex_with_more_objectives_than_models(weights, text, x):
    surrogates, front = weights
    result = apply_rule(parse_rule(text, ["a", "b", "c", "even"]), front, surrogates, pretrained=[0.5] * 4)
    assert result.feasible
    np.testing.assert_allclose(result.x, x, atol=5e-3)
    assert surrogates.space.contains(result.x[None]).all()
    np.testing.assert_array_equal(result.predicted, surrogates.predict(result.x[None])[0])


def test_a_rule_that_no_weights_meet_has_a_nearest(weights):
    surrogates, front = weights
    result = apply_rule(parse_rule("a >= 90%, b >= 90%, maximize c", ["a", "b", "c", "even"]), front, surrogates)
    assert not result.feasible
    np.testing.assert_allclose(result.x, [0.5, 0.5, 0], atol=5e-3)
    assert {miss.name for miss in result.misses} == {"a", "b"}


class TestJudged:
    VALUES = np.array([[0.9, 0.2], [0.7, 0.6], [0.6, 0.7], [0.2, 0.9]])

    @pytest.mark.parametrize(
        ("text", "best"),
        [
            ("maximize left", 0),
            ("maximize worst", 1),
            ("right >= 65%, maximize left", 2),
            ("right >= 80% of single, maximize left", 3),
            ("right >= 300% of pretrained, maximize left", 1),
        ],
    )
    def test_the_best_measured_row_that_meets_it(self, text, best):
        result = judge(parse_rule(text, TASKS), self.VALUES, single=[1, 1], pretrained=[0.2, 0.2])
        assert result.best == best
        assert result.feasible
        assert result.misses == ()

    def test_none_meets_it(self):
        result = judge(parse_rule("all >= 80%, maximize left", TASKS), self.VALUES)
        assert not result.feasible
        assert result.best == 1
        assert result.misses == (Miss("right", 0.8, 0.6), Miss("left", 0.8, 0.7))
        assert result.missed == "right by 20.0 points (60.0% of 80.0%) and left by 10.0 points (70.0% of 80.0%)"

    @pytest.mark.parametrize("values", [np.empty((0, 2)), [[0.1, 0.2, 0.3]], [0.1, 0.2]])
    def test_values_of_another_shape(self, values):
        with pytest.raises(SearchError, match="2 objectives, and the values have shape"):
            judge(parse_rule("maximize left", TASKS), values)
