import numpy as np
import pytest

from mapmerge_core.errors import SearchError, SettingError
from mapmerge_core.search.designs import make_design


@pytest.mark.parametrize("kind", ["uniform", "sobol", "grid"])
def test_anchors_come_first_and_count(kind):
    design = make_design(kind, 40, 3, seed=4)
    np.testing.assert_array_equal(design[0], [0, 0, 0])
    np.testing.assert_array_equal(design[1:4], np.eye(3))
    assert len(design) <= 40
    assert design.dtype == np.float64
    assert len(np.unique(design, axis=0)) == len(design)


@pytest.mark.parametrize("kind", ["uniform", "sobol"])
def test_same_seed_same_design_and_other_seed_another(kind):
    first = make_design(kind, 30, 2, seed=7)
    assert first.shape == (30, 2)
    np.testing.assert_array_equal(first, make_design(kind, 30, 2, seed=7))
    assert not np.array_equal(first, make_design(kind, 30, 2, seed=8))


@pytest.mark.parametrize("kind", ["uniform", "sobol"])
def test_a_longer_design_starts_with_the_shorter(kind):
    np.testing.assert_array_equal(make_design(kind, 57, 3, seed=1)[:20], make_design(kind, 20, 3, seed=1))


@pytest.mark.parametrize("kind", ["uniform", "sobol", "grid"])
def test_points_fill_the_box(kind):
    design = make_design(kind, 300, 2, low=-0.2, high=0.6, anchors=False)
    assert design.min() >= -0.2
    assert design.max() <= 0.6
    halves, _, _ = np.histogram2d(*design.T, bins=2, range=[[-0.2, 0.6]] * 2)
    assert halves.min() > 50


def test_sobol_is_more_even_than_chance():
    counts, _, _ = np.histogram2d(*make_design("sobol", 256, 2, anchors=False).T, bins=8, range=[[0, 1]] * 2)
    assert counts.min() == counts.max() == 4


def test_grid_of_100_points_is_ten_by_ten_and_holds_the_anchors_once():
    design = make_design("grid", 100, 2)
    levels = np.linspace(0, 1, 10)
    assert {tuple(row) for row in design} == {(x, y) for x in levels for y in levels}


def test_grid_takes_the_largest_that_fits_beside_the_anchors():
    inside = make_design("grid", 30, 2, low=0.1, high=0.6)
    assert len(inside) == 3 + 25
    assert len(make_design("grid", 27, 2, low=0.1, high=0.6)) == 3 + 16
    assert len(make_design("grid", 27, 2, low=0.1, high=0.6, anchors=False)) == 25


@pytest.mark.parametrize(("n_vectors", "n_rows"), [(1, 100_000), (2, 316**2), (3, 46**3), (16, 2**16)])
def test_the_largest_grids_are_soon_there(n_vectors, n_rows):
    assert len(make_design("grid", 100_000, n_vectors)) == n_rows


def test_anchors_stay_even_outside_the_box():
    design = make_design("sobol", 20, 8, high=0.6)
    np.testing.assert_array_equal(design[1:9], np.eye(8))
    assert design[9:].max() <= 0.6


def test_a_budget_for_the_anchors_alone_is_enough():
    assert make_design("uniform", 3, 2).shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("latin", 10, 2), "latin"),
        (("uniform", 2, 2), "at least as many"),
        (("uniform", 0, 2), "at least one point"),
        (("uniform", 5, 0), "at least one task vector"),
        (("grid", 100, 8), "too few for a grid over 8 coefficients besides the anchors"),
        (("uniform", 100_001, 2), "100001 points are too many for one run: choose 100000 or fewer"),
        (("sobol", 20_000_000_000, 2), "20000000000 points are too many"),
        (("grid", 20_000_000_000, 2), "20000000000 points are too many"),
    ],
)
def test_what_cannot_be_designed_is_said(arguments, words):
    with pytest.raises(SearchError, match=words):
        make_design(*arguments)


@pytest.mark.parametrize("box", [{"low": 1.0, "high": 0.0}, {"low": 0.5, "high": 0.5}, {"high": float("nan")}])
def test_an_empty_box_is_refused(box):
    with pytest.raises(SearchError, match="below"):
        make_design("uniform", 10, 2, **box)


def test_a_negative_seed_is_refused():
    for kind in ("uniform", "sobol", "grid"):
        with pytest.raises(SettingError, match="seed -1"):
            make_design(kind, 10, 2, seed=-1)
