"""Evaluations, fits, bars, cosines, units, and the palette that the theme repeats."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from mapmerge_core.charts.evaluations import evaluations_info, evaluations_scatter, fit_info, fit_scatter
from mapmerge_core.charts.models import BarsInfo, cosine_heatmap, metric_bars, one_of_each
from mapmerge_core.charts.palette import DARK, LIGHT, Palette, translucent
from mapmerge_core.charts.units import axis_title, notation, shared_axis, value_text
from mapmerge_core.tasks.metric import ACCURACY, F1, LOSS, PERPLEXITY

TWO = ("MNIST", "Emoji")


def test_unfinished_points_are_left_out_and_dominated_ones_are_known() -> None:
    C = np.arange(8.0).reshape(4, 2)
    Y = np.array([[0.5, 0.5], [0.6, 0.4], [0.4, 0.4], [0.9, np.nan]])
    info = evaluations_info(TWO, (ACCURACY,) * 2, C, Y)
    np.testing.assert_array_equal(info.C, C[:3])
    np.testing.assert_array_equal(info.best, [True, True, False])
    figure = evaluations_scatter(info, LIGHT)
    by_name = {trace.name: trace for trace in figure.data}
    np.testing.assert_allclose(by_name["Dominated"].x, [40])
    np.testing.assert_allclose(by_name["Not dominated so far"].y, [50, 40])
    np.testing.assert_allclose(by_name["Newest"].x, [40])


def test_nothing_measured_draws_an_empty_figure() -> None:
    info = evaluations_info(TWO, (ACCURACY,) * 2, np.empty((0, 2)), np.empty((0, 2)))
    assert all(len(trace.x) == 0 for trace in evaluations_scatter(info, LIGHT).data)


def test_many_tasks_have_one_column_of_dots_each() -> None:
    Y = np.random.default_rng(0).uniform(size=(9, 4))
    info = evaluations_info(("A", "B", "C", "D"), (ACCURACY,) * 4, Y, Y)
    figure = evaluations_scatter(info, LIGHT)
    for k in range(4):
        np.testing.assert_allclose(figure.data[k].y, 100 * Y[:, k])
        assert np.abs(figure.data[k].x - k).max() <= 0.25
    assert list(figure.layout.xaxis.ticktext) == ["A", "B", "C", "D"]


def test_left_out_predictions_stand_against_the_rows_that_were_fitted() -> None:
    Y = np.array([[0.1, 0.2], [0.3, np.nan], [0.5, 0.6], [0.7, 0.8]])
    inside = np.array([True, True, False, True])
    left_out = (np.array([0.11, 0.31, 0.71]), np.array([0.21, 0.81]))
    info = fit_info(TWO, (ACCURACY,) * 2, Y, inside, left_out)
    np.testing.assert_allclose(info.measured[0], [0.1, 0.3, 0.7])
    np.testing.assert_allclose(info.measured[1], [0.2, 0.8])
    figure = fit_scatter(info, LIGHT)
    np.testing.assert_allclose(figure.data[1].x, [20, 80])
    np.testing.assert_allclose(figure.data[1].y, [21, 81])
    np.testing.assert_allclose(figure.data[2].x, [10, 81])


def test_columns_of_mixed_metrics_run_from_each_tasks_worst_to_its_best() -> None:
    Y = np.array([[0.5, 3.0, 0.2], [0.9, 2.0, 0.2], [0.6, 2.5, 0.2]])
    figure = evaluations_scatter(evaluations_info(("A", "B", "C"), (ACCURACY, LOSS, ACCURACY), Y, Y), LIGHT)
    np.testing.assert_allclose(figure.data[0].y, [0, 100, 25])
    np.testing.assert_allclose(figure.data[1].y, [0, 100, 50])
    np.testing.assert_allclose(figure.data[2].y, [0, 0, 0])
    np.testing.assert_allclose(figure.data[3].y, [25, 50, 0])
    assert "<b>B</b>  2.000" in figure.data[1].text[1]
    assert figure.layout.yaxis.title.text == "% of the way from worst to best so far"
    losses = evaluations_scatter(evaluations_info(("A", "B", "C"), (LOSS,) * 3, Y, Y), LIGHT)
    np.testing.assert_allclose(losses.data[1].y, [3.0, 2.0, 2.5])
    assert losses.layout.yaxis.title.text == "Loss"


def test_fits_of_mixed_metrics_are_drawn_over_each_tasks_range() -> None:
    Y = np.array([[0.5, 3.0], [0.9, 2.0]])
    left_out = (np.array([0.6, 0.8]), np.array([2.5, 2.0]))
    info = fit_info(TWO, (ACCURACY, LOSS), Y, np.ones(2, bool), left_out)
    first, second, diagonal = fit_scatter(info, LIGHT).data
    np.testing.assert_allclose([first.x, first.y], [[0, 100], [25, 75]])
    np.testing.assert_allclose([second.x, second.y], [[100, 0], [50, 0]])
    assert (first.text[0], first.customdata[0]) == ("50.0%", "60.0%")
    assert (second.text[0], second.customdata[0]) == ("3.000", "2.500")
    np.testing.assert_allclose(diagonal.x, [0, 100])
    assert fit_scatter(info, LIGHT).layout.xaxis.title.text == "Measured, % of each task's range"


def bars(measured: np.ndarray | None = None) -> BarsInfo:
    pair = np.array([0.8, 0.6])
    return BarsInfo(TWO, (ACCURACY,) * 2, pair - 0.3, pair + 0.1, pair, pair - 0.05, pair + 0.02, measured)


def test_bars_show_percent_with_the_interval_and_the_measurement() -> None:
    figure = metric_bars(bars(np.array([0.79, np.nan])), LIGHT)
    by_name = {trace.name: trace for trace in figure.data}
    np.testing.assert_allclose(by_name["Pick, predicted"].y, [80, 60])
    np.testing.assert_allclose(by_name["Pick, predicted"].error_y.array, [2, 2])
    np.testing.assert_allclose(by_name["Pick, predicted"].error_y.arrayminus, [5, 5])
    assert list(by_name["Pick, measured on test"].customdata) == ["79.0%", "–"]
    assert "Pick, measured on test" not in {trace.name for trace in metric_bars(bars(), LIGHT).data}
    np.testing.assert_allclose(bars().share_of_single(), [0.8 / 0.9, 0.6 / 0.7])
    assert type(figure)(figure.to_dict()).to_json() == figure.to_json(), "Plotly accepts every value"


def test_bars_of_mixed_metrics_are_percent_of_the_own_models_with_their_own_hovers() -> None:
    pair = np.array([0.8, 3.0])
    info = BarsInfo(TWO, (ACCURACY, LOSS), pair, np.array([0.9, 2.5]), pair, pair - 0.09, pair + 0.05)
    figure = metric_bars(info, LIGHT)
    pick = next(trace for trace in figure.data if trace.name == "Pick, predicted")
    np.testing.assert_allclose(pick.y, [100 * 0.8 / 0.9, 120])
    np.testing.assert_allclose(pick.error_y.array, [100 * 0.05 / 0.9, 2])
    np.testing.assert_allclose(pick.error_y.arrayminus, [10, 3.6])
    assert list(pick.customdata) == ["80.0%", "3.000"]
    assert figure.layout.yaxis.title.text == "% of each task's own model<br>lower = better for loss"


def test_a_pick_that_is_measured_has_no_interval() -> None:
    pair = np.array([0.8, 0.6])
    info = BarsInfo(
        TWO, (ACCURACY,) * 2, pair - 0.3, pair + 0.1, pair, pair, pair, pick="Pick, on validation"
    )
    pick = next(trace for trace in metric_bars(info, LIGHT).data if trace.name == "Pick, on validation")
    np.testing.assert_allclose(pick.y, [80, 60])
    assert pick.error_y.array is None


def test_the_diagonal_of_cosines_is_blank() -> None:
    cosines = np.array([[1, 0.25], [0.25, 1]])
    heatmap = cosine_heatmap(TWO, cosines, DARK).data[0]
    assert np.isnan(np.diag(np.array(heatmap.z, dtype=float))).all()
    assert heatmap.text[0][1] == "0.25"
    assert cosines[0, 0] == 1, "the caller's array stays as it was"


def test_samples_are_of_as_many_classes_as_possible() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    assert set(labels[one_of_each(labels, 4)]) == {0, 1, 2, 3}
    assert len(set(one_of_each(labels, 6))) == 6
    assert len(one_of_each(labels, 100)) == 8
    assert set(np.arange(30)[one_of_each(np.arange(30), 3)]) == {0, 10, 20}


def test_units() -> None:
    assert value_text(0.93421, ACCURACY) == "93.4%"
    assert value_text(2.71828, PERPLEXITY) == "2.718"
    assert value_text(np.nan, ACCURACY) == "–"
    assert notation(ACCURACY).hover("y") == "%{y:.1f}%"
    assert notation(PERPLEXITY).hover("z") == "%{z:.3f}"
    assert notation(ACCURACY, LOSS).text(0.5) == "0.500"
    assert axis_title("MNIST", ACCURACY) == "Accuracy on MNIST (%)"
    assert axis_title("Books", PERPLEXITY) == "Perplexity on Books"
    assert translucent("#0b7a75", 0.5) == "rgba(11,122,117,0.5)"


@pytest.mark.parametrize(
    ("metrics", "own", "title", "scale"),
    [
        ((ACCURACY, ACCURACY), (0.8, 0.5), "Accuracy (%)", (100, 100)),
        ((ACCURACY, F1), (0.8, 0.5), "Accuracy / F1 (%)", (100, 100)),
        ((LOSS, LOSS), (0.8, 0.5), "Loss", (1, 1)),
        ((LOSS, PERPLEXITY), (2.0, 5.0), "% of each task's own model<br>lower = better", (50, 20)),
        ((ACCURACY, LOSS), (0.5, 2.0), "% of each task's own model<br>lower = better for loss", (200, 50)),
        ((ACCURACY, LOSS), (0.5, np.nan), "Metric, each in its own unit", (100, 1)),
        ((ACCURACY, LOSS), (0.5, 0.0), "Metric, each in its own unit", (100, 1)),
    ],
)
def test_metrics_share_an_axis_in_a_unit_that_they_have_in_common(metrics, own, title, scale) -> None:
    axis = shared_axis(metrics, np.array(own))
    assert axis.title == title
    np.testing.assert_allclose(axis.scale, scale)


@pytest.mark.parametrize(("name", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_the_theme_has_the_palettes_colours(name: str, palette: Palette) -> None:
    config = Path(__file__).parents[2] / ".streamlit" / "config.toml"
    theme = tomllib.loads(config.read_text())["theme"][name]
    assert tuple(theme["chartCategoricalColors"]) == palette.categorical
    assert tuple(theme["chartSequentialColors"]) == palette.sequential
    assert len(palette.categorical) == len(palette.sequential) == 10
    assert theme["textColor"] == palette.text
    assert theme["backgroundColor"] == palette.background
