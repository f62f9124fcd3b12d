"""What every registered method does on any space and any objectives, those of other packages too."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mapmerge_core.errors import MapMergeError, SearchError, SettingError
from mapmerge_core.methods.base import Batch, ObjectiveInfo
from mapmerge_core.registries import METHODS
from mapmerge_core.search.spaces import Box, Product, Simplex, SinglePoint
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.search.surrogates.spaces import fit_surrogates
from mapmerge_core.settings import fields_of, make, to_dict

SPACES = {
    "box of one": Box("a"),
    "box of two": Box("ab"),
    "box of three": Box("abc"),
    "narrow box": Box("ab", 0.2, 0.6),
    "simplex of two": Simplex("ab"),
    "simplex of four": Simplex("abcd"),
    "product": Product([Simplex("abc"), Box(["scale"], 0.5, 2.0)]),
}
KINDS = [(True, (0.0, 1.0), "sigmoid"), (False, (0.0, np.inf), "softplus"), (True, (-np.inf, np.inf), "identity")]


def objectives_of(n, n_models):
    """Accuracies, losses and scores by turns: the first ones the models' own, the others nobody's."""
    return [
        ObjectiveInfo(f"task {k}", *KINDS[k % 3][:2], KINDS[k % 3][2], k if k < n_models else None) for k in range(n)
    ]


def truth(space, objectives):
    """A function that gives each objective (`m x K`) a top of its own in the space."""
    tops = space.sample(len(objectives), np.random.default_rng(1))

    def values(X):
        heights = 1 - ((X[:, None] - tops) ** 2).sum(axis=2)
        columns = []
        for height, objective in zip(heights.T, objectives, strict=True):
            if np.isfinite(objective.bounds[1]):
                columns.append(1 / (1 + np.exp(-2 * height)))
            else:
                columns.append(height if objective.maximize else np.exp(-height))
        return np.column_stack(columns)

    return values


def play(method, values):
    """Tell a method what it asks for until it is done, and return its batches with their values."""
    told = []
    while (batch := method.ask()) is not None:
        table = values(batch.X)[:, list(batch.objectives)]
        method.tell(batch, table)
        told.append((batch, table))
        assert len(told) < 1000
    return told


def attempt(kind, space, objectives):
    """Make a method, or skip the test if it refuses the space or the objectives in one sentence."""
    try:
        return kind(space, objectives)
    except SearchError as error:
        assert_is_a_sentence(error)
        pytest.skip(str(error))


def assert_is_a_sentence(error):
    text = str(error)
    assert text[0].isupper() or text[0].isdigit()
    assert text.endswith(".")
    assert "\n" not in text
    assert text.count(". ") == 0


@pytest.fixture(params=METHODS.names)
def kind(request):
    return METHODS[request.param]


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def space(request):
    return request.param


@pytest.fixture
def case(kind, space):
    """A method at its usual budget with two objectives more than models, and what is true of these."""
    objectives = objectives_of(space.n + 2, space.n)
    return attempt(kind, space, objectives), truth(space, objectives)


def test_it_describes_itself(kind):
    assert METHODS[kind.name] is kind
    assert kind.name.isidentifier()
    assert kind.title[0].isupper()
    assert kind.help().endswith(".")
    assert len(kind.help()) <= 130
    assert kind.advice
    assert not kind.advice.endswith(".")
    assert kind.is_front in ("surrogates", "measured", "single")
    fields = {field.name: field for field in fields_of(kind.Settings)}
    assert fields["points"].is_optional
    assert fields["seed"].default == 0
    for field in fields.values():
        assert field.help.endswith("."), field.name
        assert not field.is_required, field.name
    usual = make(kind.Settings, {}, what=kind.title)
    assert make(kind.Settings, to_dict(usual), what=kind.title) == usual


def test_it_takes_its_settings_by_name_or_as_an_instance(kind):
    space, objectives = SPACES["box of two"], objectives_of(2, 2)
    settings = make(kind.Settings, {"points": 12, "seed": 3}, what=kind.title)
    batches = [kind(space, objectives, how).ask() for how in (settings, {"points": 12, "seed": 3})]
    np.testing.assert_array_equal(batches[0].X, batches[1].X)


def test_it_runs_on_a_box_with_an_own_objective_for_each_model(kind):
    space, objectives = SPACES["box of three"], objectives_of(3, 3)
    assert play(kind(space, objectives), truth(space, objectives))


def test_the_same_seed_asks_for_the_same_points(case, kind):
    method, values = case
    again = kind(method.space, method.objectives, {"seed": 0})
    first, second = play(method, values), play(again, values)
    assert len(first) == len(second)
    for (batch, _), (other, _) in zip(first, second, strict=True):
        assert batch.X.tobytes() == other.X.tobytes()
        assert batch.objectives == other.objectives


def test_it_goes_on_after_any_batch_as_if_never_stopped(case, kind):
    method, values = case
    told = play(method, values)
    for n_told in {0, len(told) // 2, len(told) - 1}:
        resumed = kind(method.space, method.objectives)
        for batch, table in told[:n_told]:
            np.testing.assert_array_equal(resumed.ask().X, batch.X)
            resumed.tell(batch, table)
        next_batch, _ = told[n_told]
        np.testing.assert_array_equal(resumed.ask().X, next_batch.X)
        assert resumed.ask().objectives == next_batch.objectives


def test_it_asks_until_it_is_told_and_for_nothing_afterwards(case):
    method, values = case
    batch = method.ask()
    assert method.ask() is batch
    play(method, values)
    assert method.ask() is None
    with pytest.raises(SearchError, match="tell the batch that `ask` returned"):
        method.tell(batch, values(batch.X)[:, list(batch.objectives)])


def test_points_are_canonical_and_inside_but_for_the_anchors(case):
    method, values = case
    space = method.space
    for batch, _ in play(method, values):
        assert batch.X.dtype == np.float64
        assert space.points(batch.X).tobytes() == np.ascontiguousarray(batch.X).tobytes()
        is_anchor = (batch.X[:, None] == space.anchors).all(axis=2).any(axis=1)
        if not method.per_pair:  # a pair's coefficients are multiplied along a tree
            assert (space.contains(batch.X) | is_anchor).all()


def test_it_asks_for_no_more_than_it_says_and_for_nothing_twice(case):
    method, values = case
    most = method.n_evaluations
    asked = [(tuple(x), k) for batch, _ in play(method, values) for x in batch.X for k in batch.objectives]
    assert len(set(asked)) == len(asked) == method.n_evaluations <= most
    assert {k for _, k in asked} <= set(range(len(method.objectives)))


def test_wrong_values_and_batches_are_refused_and_leave_it_as_it_was(case, kind):
    method, values = case
    batch = method.ask()
    table = values(batch.X)[:, list(batch.objectives)]
    wrong = [table[:-1], table[:, :-1], table.ravel(), np.full_like(table, np.nan), np.full_like(table, np.inf)]
    for bad in wrong:
        with pytest.raises(SearchError, match="finite values") as error:
            method.tell(batch, bad)
        assert_is_a_sentence(error.value)
    others = [Batch(batch.X + 1e-9, batch.objectives), Batch(batch.X, (*batch.objectives, 0)), Batch(batch.X[1:], ())]
    for other in others:
        with pytest.raises(SearchError, match="tell the batch that `ask` returned"):
            method.tell(other, table)
    assert method.ask() is batch
    untouched = kind(method.space, method.objectives)
    for (one, _), (other, _) in zip(play(method, values), play(untouched, values), strict=True):
        np.testing.assert_array_equal(one.X, other.X)


def test_its_result_is_of_the_kind_that_it_says(case):
    method, values = case
    told = play(method, values)
    if method.is_front == "single":
        choice = method.chosen
        assert choice.x.shape == (method.space.n,)
        assert choice.values.shape == (len(method.objectives),)
        assert method.space.point(choice.x).tobytes() == choice.x.tobytes()
        measured = {k for batch, _ in told for k in batch.objectives}
        assert np.isfinite(choice.values[sorted(measured)]).all()
        assert method.chosen.x.tobytes() == choice.x.tobytes()
        return
    X = np.vstack([batch.X for batch, _ in told])
    Y = np.vstack([table for _, table in told])
    assert Y.shape == (len(X), len(method.objectives))
    if method.is_front == "surrogates":
        inside = method.space.contains(X)
        links = [(objective.link, objective.bounds) for objective in method.objectives]
        assert len(fit_surrogates(method.space, X[inside], Y[inside], links)) == Y.shape[1]


def test_there_is_no_choice_before_the_end_nor_from_a_front(kind):
    space, objectives = SPACES["box of two"], objectives_of(2, 2)
    method = kind(space, objectives)
    with pytest.raises(SearchError, match="isn't complete yet") as error:
        _ = method.chosen
    assert_is_a_sentence(error.value)
    play(method, truth(space, objectives))
    if kind.is_front != "single":
        with pytest.raises(SearchError, match="leads to a front") as error:
            _ = method.chosen
        assert_is_a_sentence(error.value)


def test_its_usual_budget_is_enough_for_surrogates(kind, space):
    points = kind.default_points(space)
    assert 1 <= points <= 2000
    if kind.is_front == "surrogates":
        assert points >= 2 * QuadraticSurrogate.n_parameters(space.n_free)


@pytest.mark.parametrize("n_objectives", [1, 2, 5])
def test_any_number_of_objectives_will_do(kind, n_objectives):
    space, objectives = SPACES["box of two"], objectives_of(n_objectives, 2)
    method = attempt(kind, space, objectives)
    asked = {k for batch, _ in play(method, truth(space, objectives)) for k in batch.objectives}
    assert asked == set(range(n_objectives)) or method.per_pair


@pytest.mark.parametrize("points", [1, 2, 3, 6, 7, 11, 23])
def test_any_budget_is_kept_or_refused(kind, space, points):
    objectives = objectives_of(space.n, space.n)
    try:
        method = kind(space, objectives, {"points": points})
    except MapMergeError as error:
        assert_is_a_sentence(error)
        return
    told = play(method, truth(space, objectives))
    assert method.per_pair or sum(len(batch.X) for batch, _ in told) <= points
    assert all(len(batch.X) for batch, _ in told)


@pytest.mark.parametrize("settings", [{"points": 0}, {"points": -3}, {"points": 2.5}, {"points": "many"}])
def test_a_budget_that_is_none_is_refused(kind, settings):
    with pytest.raises(SettingError, match="points") as error:
        kind(SPACES["box of two"], objectives_of(2, 2), settings)
    assert_is_a_sentence(error.value)


def test_a_budget_that_no_memory_holds_is_refused(kind):
    with pytest.raises(MapMergeError, match="choose 100000 or fewer"):
        kind(SPACES["box of two"], objectives_of(2, 2), {"points": 10**9})


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, "one", True, None])
def test_a_seed_that_is_none_is_refused(kind, seed):
    with pytest.raises(SettingError, match="seed"):
        kind(SPACES["box of two"], objectives_of(2, 2), {"seed": seed})


def test_a_setting_that_it_has_not_is_refused(kind):
    with pytest.raises(SettingError, match="has no setting 'nonsense'"):
        kind(SPACES["box of two"], objectives_of(2, 2), {"nonsense": 1})


def test_there_must_be_something_to_search_and_to_measure(kind):
    with pytest.raises(SearchError, match="nothing to search") as error:
        kind(SinglePoint(), objectives_of(2, 2))
    assert_is_a_sentence(error.value)
    with pytest.raises(SearchError, match="at least one objective") as error:
        kind(SPACES["box of two"], [])
    assert_is_a_sentence(error.value)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_values_that_are_all_equal_end_it_as_others_do(kind, level):
    objectives = [ObjectiveInfo(name, model=k) for k, name in enumerate("ab")]
    method = kind(SPACES["box of two"], objectives)
    told = play(method, lambda X: np.full((len(X), 2), level))
    assert sum(table.size for _, table in told) == method.n_evaluations
    if method.is_front == "single":
        assert np.isfinite(method.chosen.x).all()


def test_listing_methods_loads_neither_torch_nor_what_only_searching_needs():
    heavy = ["torch", "sklearn", "pymoo", "scipy.stats", "scipy.optimize", "pandas"]
    code = (
        "import sys; from mapmerge_core.registries import METHODS; list(METHODS);"
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.stderr.strip() == ""
