"""The front's figures show the numbers that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.charts.fronts import (
    Backdrop,
    FrontInfo,
    Spot,
    colour_bins,
    front_info,
    front_parallel,
    front_scatter,
    parallel_backdrop,
    scatter_backdrop,
)
from mapmerge_core.charts.palette import DARK, LIGHT, Palette
from mapmerge_core.tasks.metrics import ACCURACY, LOSS, Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go


TASKS = ("MNIST", "Emoji", "Flags")
METRICS = (ACCURACY,) * 3
POINTS = ["A 0.100", "A 0.500", "A 0.900", "A 0.700"]
SINGLE = np.array([0.9, 0.8, 0.7])
PREDICTED = np.array([[0.50, 0.95, 0.3], [0.70, 0.80, 0.4], [0.90, 0.40, 0.5], [0.80, 0.60, 0.6]])


def spots() -> list[Spot]:
    own = [Spot("single", f"{task}'s model", np.full(3, 0.9 - k / 10), f"{task} 1.000") for k, task in enumerate(TASKS)]
    pick = Spot("pick", "Your pick", PREDICTED[1], POINTS[1], PREDICTED[1] - 0.02, PREDICTED[1] + 0.03)
    return [Spot("pretrained", "Pre-trained", np.full(3, 0.3)), *own, pick]


def test_scatter_shows_percent_and_says_which_row_was_clicked() -> None:
    figure = front_scatter(front_info(TASKS, METRICS, PREDICTED, points=POINTS), LIGHT, x=0, y=2, colour=1)
    front = figure.data[0]
    np.testing.assert_allclose(front.x, [50, 70, 90, 80])
    np.testing.assert_allclose(front.y, [30, 40, 50, 60])
    np.testing.assert_allclose(front.marker.color, [95, 80, 40, 60])
    assert list(front.customdata) == [0, 1, 2, 3]
    assert figure.layout.xaxis.title.text == "Accuracy on MNIST (%)"
    assert figure.layout.yaxis.title.text == "Accuracy on Flags (%)"
    assert front.text[0] == "<b>MNIST</b>  50.0%<br><b>Emoji</b>  95.0%<br><b>Flags</b>  30.0%<br>A 0.100"


def test_the_pick_stands_on_the_front_with_its_interval() -> None:
    figure = front_scatter(front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=spots()), LIGHT)
    pick = next(trace for trace in figure.data if trace.name and trace.name.startswith("Pick"))
    assert pick.x[0] == pytest.approx(70)
    assert pick.y[0] == pytest.approx(80)
    assert pick.error_x.array[0] == pytest.approx(3)
    assert pick.error_x.arrayminus[0] == pytest.approx(2)


def test_one_legend_entry_for_all_single_task_models() -> None:
    figure = front_scatter(front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=spots()), LIGHT)
    singles = [trace.showlegend for trace in figure.data if trace.name == "Single models"]
    assert singles == [True, False, False]


def test_a_long_front_is_thinned_evenly_and_keeps_its_row_numbers() -> None:
    values = np.linspace(0, 1, 900).reshape(300, 3)
    info = front_info(TASKS, METRICS, values, points=list(map(str, range(300))), most=50)
    assert len(info.rows) == 50
    assert info.rows[0] == 0
    assert info.rows[-1] == 299
    np.testing.assert_array_equal(info.predicted, values[info.rows])
    assert info.points == tuple(map(str, info.rows))


def test_parallel_lines_hold_every_model_once_and_know_their_rows() -> None:
    figure = front_parallel(front_info(TASKS, METRICS, PREDICTED, points=POINTS), LIGHT, colour=0)
    seen = {}
    for trace in figure.data:
        width = len(TASKS) + 1
        for start in range(0, len(trace.y), width):
            seen[int(trace.customdata[start])] = list(trace.y[start : start + width - 1])
    assert sorted(seen) == [0, 1, 2, 3]
    for row, values in seen.items():
        np.testing.assert_allclose(values, 100 * PREDICTED[row])
    assert list(figure.layout.xaxis.ticktext) == list(TASKS)


def test_parallel_shows_each_task_under_its_own_model() -> None:
    info = front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=spots(), single=SINGLE)
    figure = front_parallel(info, LIGHT)
    own = next(trace for trace in figure.data if trace.name == "Single models")
    np.testing.assert_allclose(own.y, [90, 80, 70])
    unknown = front_parallel(front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=spots()), LIGHT)
    assert "Single models" not in {trace.name for trace in unknown.data}


def test_colour_bins_are_equally_wide() -> None:
    np.testing.assert_array_equal(colour_bins(np.array([0.0, 0.24, 0.26, 0.74, 1.0]), 4), [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(colour_bins(np.array([0.5, 0.5]), 4), [3, 3])


def test_metrics_without_bounds_are_not_percent() -> None:
    loss = Metric("loss", maximize=False, low=0.0)
    figure = front_scatter(front_info(TASKS, (loss,) * 3, PREDICTED), LIGHT)
    np.testing.assert_allclose(figure.data[0].x, PREDICTED[:, 0])
    assert figure.layout.xaxis.title.text == "Loss on MNIST"


def test_parallel_lines_of_mixed_metrics_are_percent_of_own_models_with_their_own_hovers() -> None:
    metrics = (ACCURACY, LOSS, ACCURACY)
    figure = front_parallel(
        front_info(TASKS, metrics, PREDICTED, points=POINTS, spots=spots(), single=SINGLE), LIGHT, colour=0
    )
    assert figure.layout.yaxis.title.text == "% of the single models<br>lower = better for loss"
    pick = next(trace for trace in figure.data if trace.name == "Pick, with 90% interval")
    np.testing.assert_allclose(pick.y, 100 * PREDICTED[1] / [0.9, 0.8, 0.7])
    np.testing.assert_allclose(pick.error_y.array, 100 * 0.03 / np.array([0.9, 0.8, 0.7]))
    assert list(pick.text) == ["70.0%", "0.800", "40.0%"]
    own = next(trace for trace in figure.data if trace.name == "Single models")
    np.testing.assert_allclose(own.y, [100, 100, 100])
    hovers = {int(row): list(trace.text) for trace in figure.data[:4] for row in trace.customdata[:1]}
    for row, texts in hovers.items():
        assert texts[:2] == [f"{100 * PREDICTED[row, 0]:.1f}%", f"{PREDICTED[row, 1]:.3f}"]
    alone = front_parallel(front_info(TASKS, metrics, PREDICTED, points=POINTS), LIGHT)
    assert alone.layout.yaxis.title.text == "Metric, each in its own unit"


def test_parallel_losses_are_drawn_as_they_are() -> None:
    figure = front_parallel(front_info(TASKS, (LOSS,) * 3, PREDICTED, spots=spots()), LIGHT)
    assert figure.layout.yaxis.title.text == "Loss"
    pick = next(trace for trace in figure.data if trace.name == "Pick, with 90% interval")
    np.testing.assert_allclose(pick.y, PREDICTED[1])
    assert pick.text[0] == "0.700"


def two_merges() -> FrontInfo:
    members = np.array([1, 0, 1, 0])
    return front_info(TASKS, METRICS, PREDICTED, points=list("abcd"), merges=("MAP", "Soup"), members=members)


def test_points_of_several_merges_have_a_colour_a_legend_and_their_rows() -> None:
    arithmetic, soup = front_scatter(two_merges(), LIGHT).data
    assert [arithmetic.name, soup.name] == ["MAP", "Soup"]
    assert arithmetic.marker.color == LIGHT.front != soup.marker.color != LIGHT.pick
    assert list(arithmetic.customdata) == [1, 3]
    np.testing.assert_allclose(soup.x, [50, 90])
    assert "Soup" in soup.hovertemplate
    assert arithmetic.text[0].endswith("<br>b")
    lines = front_parallel(two_merges(), LIGHT).data
    assert [trace.name for trace in lines if trace.showlegend] == ["MAP", "Soup"]
    assert [int(trace.customdata[0]) for trace in lines] == [1, 0]
    shades = front_parallel(two_merges(), LIGHT, colour=0).data
    assert not any(trace.showlegend for trace in shades)
    hovers = {int(trace.customdata[0]): trace.hovertext[0] for trace in shades}
    assert hovers == {0: "Soup", 1: "MAP", 2: "Soup", 3: "MAP"}


def test_the_line_of_two_objectives_runs_from_left_to_right_in_each_merge() -> None:
    members = np.array([0, 0, 1, 0])
    info = front_info(TASKS[:2], METRICS[:2], PREDICTED[::-1, :2], merges=("MAP", "Soup"), members=members)
    first, second = front_scatter(info, LIGHT).data
    np.testing.assert_allclose(first.x, [50, 80, 90])
    assert list(first.customdata) == [3, 0, 1]
    assert {first.mode, second.mode} == {"markers"}, "another merge's points may lie in between"
    (alone,) = front_scatter(front_info(TASKS[:2], METRICS[:2], PREDICTED[::-1, :2]), LIGHT).data
    assert alone.mode == "lines+markers"
    np.testing.assert_allclose(alone.x, [50, 70, 80, 90])


def test_one_objective_is_drawn_as_parallel_lines_of_one_stop() -> None:
    info = front_info(TASKS[:1], METRICS[:1], PREDICTED[:2, :1], single=np.array([0.9]))
    *_, single = front_parallel(info, LIGHT).data
    np.testing.assert_allclose(single.y, [90])


WAYS = [(front_scatter, scatter_backdrop), (front_parallel, parallel_backdrop)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("draw", "draw_backdrop"), WAYS)
def test_spots_on_a_backdrop_look_like_those_drawn_with_it(
    draw: Callable[..., go.Figure], draw_backdrop: Callable[[FrontInfo, Palette], Backdrop], packed: bool
) -> None:
    *still, pick = spots()
    first = Spot("shortlist", "First", PREDICTED[2])
    second = Spot("shortlist", "Second", PREDICTED[3])
    backdrop = draw_backdrop(front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=still), DARK)
    if packed:
        backdrop = backdrop.packed()
    for moving in ([first, second, pick], [pick], [], [second, pick]):
        at_once = draw(front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=[*still, *moving]), DARK)
        assert backdrop.with_spots(moving).to_json() == at_once.to_json()


@pytest.mark.parametrize("draw_backdrop", [scatter_backdrop, parallel_backdrop])
def test_changing_a_figure_leaves_its_backdrop_alone(draw_backdrop: Callable[[FrontInfo, Palette], Backdrop]) -> None:
    *still, pick = spots()
    backdrop = draw_backdrop(front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=still), LIGHT)
    before = backdrop.with_spots([pick]).to_json()
    figure = backdrop.with_spots([pick])
    figure.update_layout(height=1, xaxis_title_text="Other", xaxis_tickfont_color="red")
    figure.data[0].update(x=[1, 2], marker_color="red", line_width=9)
    assert figure.to_json() != before
    assert backdrop.with_spots([pick]).to_json() == before


@pytest.mark.parametrize("draw", [front_scatter, front_parallel])
def test_plotly_accepts_what_was_put_together_unchecked(draw: Callable[..., go.Figure]) -> None:
    figure = draw(front_info(TASKS, METRICS, PREDICTED, points=POINTS, spots=spots()), LIGHT)
    assert type(figure)(figure.to_dict()).to_json() == figure.to_json()
