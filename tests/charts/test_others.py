"""Evaluations, fits, cosines, units, and the palette that the theme repeats."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from mapmerge_core.charts.cosines import cosine_heatmap
from mapmerge_core.charts.evaluations import evaluations_info, evaluations_scatter, fit_info, fit_scatter
from mapmerge_core.charts.palette import DARK, LIGHT, Palette, translucent
from mapmerge_core.charts.units import axis_title, hover_texts, notation, point_text, shared_axis, value_text
from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics import ACCURACY, LOSS

F1, PERPLEXITY = METRICS["F1"], METRICS["perplexity"]
TWO = ("MNIST", "Emoji")


def test_unfinished_points_are_left_out_and_dominated_ones_are_known() -> None:
    Y = np.array([[0.5, 0.5], [0.6, 0.4], [0.4, 0.4], [0.9, np.nan]])
    info = evaluations_info(TWO, (ACCURACY,) * 2, [("MAP", Y, list("abcd"))])
    assert info.points == ("a", "b", "c")
    np.testing.assert_array_equal(info.best, [True, True, False])
    figure = evaluations_scatter(info, LIGHT)
    by_name = {trace.name: trace for trace in figure.data}
    np.testing.assert_allclose(by_name["Dominated"].x, [40])
    np.testing.assert_allclose(by_name["Not dominated so far"].y, [50, 40])
    np.testing.assert_allclose(by_name["Newest"].x, [40])


def test_nothing_measured_draws_an_empty_figure() -> None:
    info = evaluations_info(TWO, (ACCURACY,) * 2, [("", np.empty((0, 2)), [])])
    assert all(len(trace.x) == 0 for trace in evaluations_scatter(info, LIGHT).data)


def test_many_tasks_have_one_column_of_dots_each() -> None:
    Y = np.random.default_rng(0).uniform(size=(9, 4))
    info = evaluations_info(("A", "B", "C", "D"), (ACCURACY,) * 4, [("", Y, [""] * 9)])
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
    figure = evaluations_scatter(
        evaluations_info(("A", "B", "C"), (ACCURACY, LOSS, ACCURACY), [("", Y, [""] * 3)]), LIGHT
    )
    np.testing.assert_allclose(figure.data[0].y, [0, 100, 25])
    np.testing.assert_allclose(figure.data[1].y, [0, 100, 50])
    np.testing.assert_allclose(figure.data[2].y, [0, 0, 0])
    np.testing.assert_allclose(figure.data[3].y, [25, 50, 0])
    assert "<b>B</b>  2.000" in figure.data[1].text[1]
    assert figure.layout.yaxis.title.text == "% of the way from worst to best so far"
    losses = evaluations_scatter(evaluations_info(("A", "B", "C"), (LOSS,) * 3, [("", Y, [""] * 3)]), LIGHT)
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
    assert fit_scatter(info, LIGHT).layout.xaxis.title.text == "Measured, % of each objective's range"


def test_the_diagonal_of_cosines_is_blank() -> None:
    cosines = np.array([[1, 0.25], [0.25, 1]])
    heatmap = cosine_heatmap(TWO, cosines, DARK).data[0]
    assert np.isnan(np.diag(np.array(heatmap.z, dtype=float))).all()
    assert heatmap.text[0][1] == "0.25"
    assert cosines[0, 0] == 1, "the caller's array stays as it was"


def test_units() -> None:
    assert value_text(0.93421, ACCURACY) == "93.4%"
    assert value_text(2.71828, PERPLEXITY) == "2.718"
    assert value_text(np.nan, ACCURACY) == "–"
    assert notation(ACCURACY).hover("y") == "%{y:.1f}%"
    assert notation(PERPLEXITY).hover("z") == "%{z:.3f}"
    assert notation(ACCURACY, LOSS).text(0.5) == "0.500"
    assert axis_title("MNIST", ACCURACY) == "Accuracy on MNIST (%)"
    assert axis_title("Books", PERPLEXITY) == "Perplexity on Books"
    assert axis_title("Books loss", LOSS) == "Books loss", "the objective's name says its metric"
    assert translucent("#0b7a75", 0.5) == "rgba(11,122,117,0.5)"


def test_a_point_is_written_by_its_coordinates_and_a_long_one_is_cut() -> None:
    assert point_text(("A", "B"), np.array([0.25, 1.0])) == "A 0.250, B 1.000"
    assert point_text((), np.empty(0)) == ""
    long = point_text([f"c{n}" for n in range(11)], np.zeros(11))
    assert long.startswith("c0 0.000, c1")
    assert long.endswith("c7 0.000, and 3 more")


def test_hovers_tell_objectives_and_then_the_point() -> None:
    texts = hover_texts(np.array([[0.5, np.nan]]), TWO, (ACCURACY, LOSS), ["A 0.250"])
    assert texts == ["<b>MNIST</b>  50.0%<br><b>Emoji</b>  –<br>A 0.250"]


def test_points_of_several_merges_have_a_colour_and_a_legend_each() -> None:
    Y = np.array([[0.5, 0.5], [0.6, np.nan], [0.4, 0.4]])
    tables = [("MAP", Y, list("abc")), ("Soup", Y[:1], ["d"])]
    first, second = evaluations_scatter(evaluations_info(TWO, (ACCURACY,) * 2, tables), LIGHT).data
    assert [first.name, second.name] == ["MAP", "Soup"]
    assert [len(first.x), len(second.x)] == [2, 1]
    assert first.marker.color != second.marker.color
    assert first.text[1].endswith("<br>c")
    many = evaluations_info(
        ("A", "B", "C"), (ACCURACY,) * 3, [("MAP", np.ones((2, 3)), "ab"), ("S", np.ones((1, 3)), "c")]
    )
    shown = [trace.name for trace in evaluations_scatter(many, LIGHT).data if trace.showlegend]
    assert shown == ["MAP", "S"]


def test_one_objective_is_one_column() -> None:
    info = evaluations_info(("A",), (ACCURACY,), [("", np.array([[0.5], [0.6]]), ["", ""])])
    column, newest = evaluations_scatter(info, LIGHT).data
    np.testing.assert_allclose(column.y, [50, 60])
    np.testing.assert_allclose(newest.y, [60])


@pytest.mark.parametrize(
    ("metrics", "own", "title", "scale"),
    [
        ((ACCURACY, ACCURACY), (0.8, 0.5), "Accuracy (%)", (100, 100)),
        ((ACCURACY, F1), (0.8, 0.5), "Accuracy / F1 (%)", (100, 100)),
        ((LOSS, LOSS), (0.8, 0.5), "Loss", (1, 1)),
        ((LOSS, PERPLEXITY), (2.0, 5.0), "% of the single models<br>lower = better", (50, 20)),
        ((ACCURACY, LOSS), (0.5, 2.0), "% of the single models<br>lower = better for loss", (200, 50)),
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
