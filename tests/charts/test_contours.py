"""Contours: the plane, the points near it, and what lies between them, in boxes and simplexes."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.contours import GRID, contours, near_plane, plane_grid, plane_info, plane_points, usable_axes
from mapmerge_core.charts.palette import DARK
from mapmerge_core.search.spaces import Box, Product, Simplex, SinglePoint
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.tasks.metrics import ACCURACY, LOSS

AB = Box(("A", "B"))
ABC = Box(("A", "B", "C"))
WEIGHTS = Simplex(("A", "B", "C"))
EVEN = np.array([0.5, 0.5])


def metric(X: np.ndarray) -> np.ndarray:
    return 0.2 + 0.3 * X[:, 0] + 0.1 * X[:, 1]


def test_a_grid_of_a_box_holds_the_rest() -> None:
    points = plane_grid(Box(("A", "B", "C"), -1.0, 1.0), np.array([0.9, 0.4, 0.9]), (2, 0), 3)
    x, y = np.meshgrid([-1, 0, 1], [-1, 0, 1])
    np.testing.assert_allclose(points[:, 2], x.ravel())
    np.testing.assert_allclose(points[:, 0], y.ravel())
    np.testing.assert_allclose(points[:, 1], 0.4)


def test_a_grid_of_a_simplex_stays_in_it_and_the_other_weights_share_the_rest() -> None:
    space = Simplex(("A", "B", "C", "D"))
    points = plane_grid(space, np.array([0.4, 0.1, 0.3, 0.2]), (0, 3), 5)
    assert len(points) == 15, "the lower triangle of 5 x 5"
    assert space.contains(points).all()
    np.testing.assert_allclose(points[:, 2], 3 * points[:, 1], atol=1e-12)
    outside = plane_points(space, np.array([0.4, 0.1, 0.3, 0.2]), (0, 3), np.array([[0.8, 0.8]]))
    assert np.isnan(outside).all()
    none = plane_points(space, np.eye(4)[0], (0, 1), np.array([[0.2, 0.2]]))
    np.testing.assert_allclose(none, [[0.2, 0.2, 0.3, 0.3]])


def test_a_product_keeps_each_part_to_itself() -> None:
    space = Product((Simplex(("A", "B")), Box(("scale",), 0.0, 2.0)))
    assert usable_axes(space) == (0, 2)
    points = plane_points(space, np.array([0.5, 0.5, 1.0]), (0, 2), np.array([[0.3, 1.7]]))
    np.testing.assert_allclose(points, [[0.3, 0.7, 1.7]])
    assert usable_axes(SinglePoint()) == ()
    assert usable_axes(WEIGHTS) == (0, 1, 2)


def test_near_the_plane_looks_at_the_other_coordinates_only() -> None:
    X = np.array([[0, 0, 0.5], [1, 1, 0.55], [0, 0, 0.8]])
    np.testing.assert_array_equal(near_plane(ABC, X, np.array([9, 9, 0.5]), (0, 1)), [True, True, False])
    assert near_plane(ABC, np.empty((0, 3)), np.zeros(3), (0, 1)).shape == (0,)


def test_measured_and_fitted_agree_with_the_function_they_came_from() -> None:
    C = np.random.default_rng(0).uniform(size=(40, 2))
    C[:4] = [[0, 0], [1, 0], [0, 1], [1, 1]]
    surrogate = QuadraticSurrogate(link="identity").fit(C, metric(C))
    info = plane_info("A", ACCURACY, AB, surrogate.predict, C, metric(C), through=EVEN)
    x, y = np.meshgrid(info.x, info.y)
    truth = 0.2 + 0.3 * x + 0.1 * y
    np.testing.assert_allclose(info.fitted, truth, atol=1e-9)
    inside = ~np.isnan(info.measured)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(info.measured[inside], truth[inside], atol=1e-9)
    assert info.through == {}
    assert info.caption == ""


def test_only_points_in_the_box_and_near_the_plane_are_drawn() -> None:
    C = np.array([[0.1, 0.2, 0.5], [0.2, 0.9, 0.9], [0.4, 0.4, 0.45], [1.5, 0.1, 0.5], [0.5, 0.6, 0.5]])
    y = np.array([0.1, 0.2, 0.3, 0.4, np.nan])
    info = plane_info("B", ACCURACY, ABC, None, C, y, through=np.array([0.0, 0.0, 0.5]))
    np.testing.assert_allclose(info.points, [[0.1, 0.2, 0.1], [0.4, 0.4, 0.3]])
    assert info.through == {"C": 0.5}
    assert info.caption == "A plane through C 0.50."
    assert info.fitted is None
    assert info.measured is None, "two points span no triangle"


def test_points_on_one_line_make_no_surface() -> None:
    C = np.column_stack([np.linspace(0, 1, 6), np.linspace(0, 1, 6)])
    info = plane_info("A", ACCURACY, AB, None, C, metric(C), through=np.zeros(2))
    assert info.measured is None


def test_the_figure_has_one_colour_axis_for_both_sides_in_percent() -> None:
    C = np.random.default_rng(1).uniform(size=(20, 2))
    surrogate = QuadraticSurrogate(link="identity").fit(C, metric(C))
    info = plane_info("A", ACCURACY, AB, surrogate.predict, C, metric(C), through=EVEN, front=C[:5], pick=C[0])
    figure = contours(info, DARK)
    surfaces = [trace for trace in figure.data if trace.type == "contour"]
    assert len(surfaces) == 2
    assert {trace.coloraxis for trace in surfaces} == {"coloraxis"}
    assert np.shape(surfaces[1].z) == (GRID, GRID)
    assert np.max(surfaces[1].z) == pytest.approx(60, abs=0.1)
    fronts = [trace for trace in figure.data if trace.name == "Front"]
    assert len(fronts) == 2
    np.testing.assert_allclose(fronts[0].x, C[:5, 0])
    assert figure.layout.coloraxis.colorbar.title.text == "Accuracy on A (%)"


def test_hovers_of_losses_have_three_digits() -> None:
    C = np.random.default_rng(1).uniform(size=(20, 2))
    for kind, value in ((ACCURACY, ":.1f}%<"), (LOSS, ":.3f}<")):
        info = plane_info("A", kind, AB, None, C, metric(C), through=EVEN)
        surface, points = contours(info, DARK).data
        assert "%{z" + value in surface.hovertemplate
        assert "%{customdata" + value in points.hovertemplate


def test_three_weights_are_a_triangle_of_which_nothing_is_hidden() -> None:
    X = WEIGHTS.sample(40, np.random.default_rng(0))
    info = plane_info("A", ACCURACY, WEIGHTS, metric, X, metric(X), through=X[0])
    inside = np.add.outer(info.y, info.x) <= 1 + 1e-9
    np.testing.assert_array_equal(np.isfinite(info.fitted), inside)
    assert not np.isfinite(info.measured)[~inside].any()
    assert len(info.points) == 40, "every point lies on the plane"
    assert info.through == {}
    assert info.caption == "The whole space: C has the rest of the weight."
    assert len(contours(info, DARK).data) == 3


def test_a_plane_of_four_weights_says_how_the_others_share_the_rest() -> None:
    space = Simplex(("A", "B", "C", "D"))
    through = np.array([0.1, 0.2, 0.3, 0.4])
    info = plane_info("A", ACCURACY, space, None, through[None], np.array([0.5]), through=through)
    assert info.caption == (
        "A plane through C 0.30, D 0.40; weights that don't vary share the rest in these proportions."
    )
    assert len(info.points) == 1


@pytest.mark.parametrize("space", [Simplex(("A", "B")), Box(("A",))])
def test_one_free_dimension_is_a_line_with_its_points(space) -> None:
    X = space.from_unit(np.linspace(0, 1, 5)[:, None])
    assert usable_axes(space) == (0,)

    def predict(points: np.ndarray) -> np.ndarray:
        return 0.2 + 0.5 * points[:, 0]

    info = plane_info("A", ACCURACY, space, predict, X, predict(X), through=X[1], axes=(0,), pick=X[3])
    line, points, pick = contours(info, DARK).data
    np.testing.assert_allclose(line.y, 100 * (0.2 + 0.5 * np.asarray(line.x)))
    np.testing.assert_allclose(points.x, X[:, 0])
    np.testing.assert_allclose(points.y, 100 * predict(X))
    assert (pick.x[0], pick.y[0]) == (pytest.approx(0.75), pytest.approx(57.5))
