import numpy as np
import pytest

from mapmerge_core.errors import SearchError
from mapmerge_core.search.preferences import choose_by_preference

FRONT = np.array([[0.95, 0.30], [0.85, 0.70], [0.60, 0.80], [0.20, 0.90]])


@pytest.mark.parametrize(
    ("weights", "row"), [([1, 1], 1), ([1, 0], 0), ([0, 1], 3), ([3, 1], 1), ([10, 1], 0), ([1, 5], 3), ([1, 3], 2)]
)
def test_weighted_sum_takes_the_row_with_the_highest(weights, row):
    assert choose_by_preference(FRONT, weights) == row == np.argmax(FRONT @ weights)


def test_only_the_proportions_of_weights_count():
    assert choose_by_preference(FRONT, [0.1, 0.5]) == choose_by_preference(FRONT, [1e6, 5e6])


def test_tchebycheff_reaches_the_dent_that_no_weighted_sum_reaches():
    dented = np.array([[1.0, 0.0], [0.45, 0.45], [0.0, 1.0]])
    assert {choose_by_preference(dented, [w, 1 - w]) for w in np.linspace(0, 1, 101)} == {0, 2}
    assert choose_by_preference(dented, [1, 1], scalarisation="tchebycheff") == 1


@pytest.mark.parametrize("weights", [[1, 1], [1, 3], [5, 1], [1, 0]])
def test_tchebycheff_is_its_formula(weights):
    w = np.array(weights) / np.sum(weights)
    losses = [max(w * (FRONT.max(0) - v)) + 0.05 * sum(w * (FRONT.max(0) - v)) for v in FRONT]
    assert choose_by_preference(FRONT, weights, scalarisation="tchebycheff") == np.argmin(losses)


def test_metrics_that_go_down_count_the_other_way():
    values = np.array([[0.9, 20.0], [0.8, 2.0], [0.75, 1.9]])
    assert choose_by_preference(values, [1, 1], maximize=[True, False]) == 2
    assert choose_by_preference(values, [1, 1], maximize=[True, False], scale=[1.0, 10.0]) == 1
    assert choose_by_preference(values, [1, 1]) == 0


def test_normalising_by_single_task_models_changes_who_wins():
    values = np.array([[0.90, 0.20], [0.60, 0.40]])
    assert choose_by_preference(values, [1, 1]) == 0
    assert choose_by_preference(values, [1, 1], scale=[0.9, 0.4]) == 1


@pytest.mark.parametrize("scalarisation", ["weighted_sum", "tchebycheff"])
def test_ties_go_to_the_better_elsewhere_then_to_the_first(scalarisation):
    values = [[0.5, 0.1], [0.5, 0.3], [0.5, 0.3], [0.2, 0.9]]
    assert choose_by_preference(values, [1, 0], scalarisation=scalarisation) == 1


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0, 0], "Every weight is zero"),
        ([1, -0.1], "negative"),
        ([1, np.nan], "not finite"),
        ([1, np.inf], "not finite"),
        ([1, 1, 1], "as many weights"),
        (1.0, "as many weights"),
    ],
)
def test_weights_that_say_nothing(weights, words):
    with pytest.raises(SearchError, match=words):
        choose_by_preference(FRONT, weights)


@pytest.mark.parametrize("scale", [[1, 0], [1, -1], [1, np.nan], [1]])
def test_scales_that_cannot_divide(scale):
    with pytest.raises(SearchError, match="single-task"):
        choose_by_preference(FRONT, [1, 1], scale=scale)


def test_other_mistakes():
    with pytest.raises(SearchError, match="no row"):
        choose_by_preference(np.empty((0, 2)), [1, 1])
    with pytest.raises(SearchError, match="finite"):
        choose_by_preference([[0.1, np.nan]], [1, 1])
    with pytest.raises(SearchError, match="directions"):
        choose_by_preference(FRONT, [1, 1], maximize=[True])
    with pytest.raises(SearchError, match="epsilon"):
        choose_by_preference(FRONT, [1, 1], scalarisation="epsilon")
