"""Contours: the plane, the points near it, and what lies between them."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.contours import GRID, contours, near_plane, plane_info, plane_points
from mapmerge_core.charts.palette import DARK
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.tasks.metric import ACCURACY, LOSS


def metric(C: np.ndarray) -> np.ndarray:
    return 0.2 + 0.3 * C[:, 0] + 0.1 * C[:, 1]


def test_plane_points_are_a_grid_with_the_rest_held() -> None:
    points = plane_points(np.array([9.0, 0.4, 9.0]), (2, 0), -1.0, 1.0, 3)
    x, y = np.meshgrid([-1, 0, 1], [-1, 0, 1])
    np.testing.assert_allclose(points[:, 2], x.ravel())
    np.testing.assert_allclose(points[:, 0], y.ravel())
    np.testing.assert_allclose(points[:, 1], 0.4)


def test_near_plane_looks_at_the_other_coefficients_only() -> None:
    C = np.array([[0, 0, 0.5], [1, 1, 0.55], [0, 0, 0.8]])
    np.testing.assert_array_equal(near_plane(C, np.array([9, 9, 0.5]), (0, 1), 0.1), [True, True, False])


def test_measured_and_fitted_agree_with_the_function_they_came_from() -> None:
    C = np.random.default_rng(0).uniform(size=(40, 2))
    C[:4] = [[0, 0], [1, 0], [0, 1], [1, 1]]
    surrogate = QuadraticSurrogate(link="identity").fit(C, metric(C))
    info = plane_info(
        0, ("A", "B"), ACCURACY, surrogate, C, metric(C), through=np.array([0.5, 0.5]), low=0.0, high=1.0
    )
    x, y = np.meshgrid(info.axis, info.axis)
    truth = 0.2 + 0.3 * x + 0.1 * y
    np.testing.assert_allclose(info.fitted, truth, atol=1e-9)
    inside = ~np.isnan(info.measured)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(info.measured[inside], truth[inside], atol=1e-9)
    assert info.through == {}


def test_only_points_in_the_box_and_near_the_plane_are_drawn() -> None:
    C = np.array([[0.1, 0.2, 0.5], [0.2, 0.9, 0.9], [0.4, 0.4, 0.45], [1.5, 0.1, 0.5], [0.5, 0.6, 0.5]])
    y = np.array([0.1, 0.2, 0.3, 0.4, np.nan])
    info = plane_info(
        1, ("A", "B", "C"), ACCURACY, None, C, y, through=np.array([0.0, 0.0, 0.5]), low=0.0, high=1.0
    )
    np.testing.assert_allclose(info.points, [[0.1, 0.2, 0.1], [0.4, 0.4, 0.3]])
    assert info.through == {"C": 0.5}
    assert info.fitted is None
    assert info.measured is None, "two points span no triangle"


def test_points_on_one_line_make_no_surface() -> None:
    C = np.column_stack([np.linspace(0, 1, 6), np.linspace(0, 1, 6)])
    info = plane_info(0, ("A", "B"), ACCURACY, None, C, metric(C), through=np.zeros(2), low=0.0, high=1.0)
    assert info.measured is None


def test_the_figure_has_one_colour_axis_for_both_sides_in_percent() -> None:
    C = np.random.default_rng(1).uniform(size=(20, 2))
    surrogate = QuadraticSurrogate(link="identity").fit(C, metric(C))
    info = plane_info(
        0, ("A", "B"), ACCURACY, surrogate, C, metric(C),
        through=np.array([0.5, 0.5]), low=0.0, high=1.0, front=C[:5], pick=C[0],
    )  # fmt: skip
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
    through = np.array([0.5, 0.5])
    for kind, value in ((ACCURACY, ":.1f}%<"), (LOSS, ":.3f}<")):
        info = plane_info(0, ("A", "B"), kind, None, C, metric(C), through=through, low=0.0, high=1.0)
        surface, points = contours(info, DARK).data
        assert "%{z" + value in surface.hovertemplate
        assert "%{customdata" + value in points.hovertemplate
