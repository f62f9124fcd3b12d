"""The front's figures show the numbers that they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.charts.palette import DARK, LIGHT, Palette
from mapmerge_core.charts.trade_offs import (
    Spot,
    colour_bins,
    front_info,
    front_parallel,
    front_scatter,
    own_metrics,
    parallel_backdrop,
    scatter_backdrop,
)
from mapmerge_core.tasks.metric import ACCURACY, LOSS, Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    import plotly.graph_objects as go

    from mapmerge_core.charts.trade_offs import Backdrop, FrontInfo

TASKS = ("MNIST", "Emoji", "Flags")
METRICS = (ACCURACY,) * 3
C = np.array([[0.1, 0.9, 0.2], [0.5, 0.5, 0.3], [0.9, 0.1, 0.4], [0.7, 0.2, 0.1]])
PREDICTED = np.array([[0.50, 0.95, 0.3], [0.70, 0.80, 0.4], [0.90, 0.40, 0.5], [0.80, 0.60, 0.6]])


def spots() -> list[Spot]:
    own = [
        Spot("single", f"{task}'s model", np.eye(3)[k], np.full(3, 0.9 - k / 10))
        for k, task in enumerate(TASKS)
    ]
    pick = Spot("pick", "Your pick", C[1], PREDICTED[1], PREDICTED[1] - 0.02, PREDICTED[1] + 0.03)
    return [Spot("pretrained", "Pre-trained", np.zeros(3), np.full(3, 0.3)), *own, pick]


def test_scatter_shows_percent_and_says_which_row_was_clicked() -> None:
    figure = front_scatter(front_info(TASKS, METRICS, C, PREDICTED), LIGHT, x=0, y=2, colour=1)
    front = figure.data[0]
    np.testing.assert_allclose(front.x, [50, 70, 90, 80])
    np.testing.assert_allclose(front.y, [30, 40, 50, 60])
    np.testing.assert_allclose(front.marker.color, [95, 80, 40, 60])
    assert list(front.customdata) == [0, 1, 2, 3]
    assert figure.layout.xaxis.title.text == "Accuracy on MNIST (%)"
    assert figure.layout.yaxis.title.text == "Accuracy on Flags (%)"
    assert "<b>Emoji</b>  95.0%  (c = 0.900)" in front.text[0]


def test_the_pick_stands_on_the_front_with_its_interval() -> None:
    figure = front_scatter(front_info(TASKS, METRICS, C, PREDICTED, spots=spots()), LIGHT)
    pick = next(trace for trace in figure.data if trace.name and trace.name.startswith("Pick"))
    assert pick.x[0] == pytest.approx(70)
    assert pick.y[0] == pytest.approx(80)
    assert pick.error_x.array[0] == pytest.approx(3)
    assert pick.error_x.arrayminus[0] == pytest.approx(2)


def test_one_legend_entry_for_all_single_task_models() -> None:
    figure = front_scatter(front_info(TASKS, METRICS, C, PREDICTED, spots=spots()), LIGHT)
    singles = [trace.showlegend for trace in figure.data if trace.name == "Single-task models"]
    assert singles == [True, False, False]


def test_a_long_front_is_thinned_evenly_and_keeps_its_row_numbers() -> None:
    c = np.linspace(0, 1, 900).reshape(300, 3)
    info = front_info(TASKS, METRICS, c, c, most=50)
    assert len(info.rows) == 50
    assert info.rows[0] == 0
    assert info.rows[-1] == 299
    np.testing.assert_array_equal(info.c, c[info.rows])


def test_parallel_lines_hold_every_model_once_and_know_their_rows() -> None:
    figure = front_parallel(front_info(TASKS, METRICS, C, PREDICTED), LIGHT, colour=0)
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
    info = front_info(TASKS, METRICS, C, PREDICTED, spots=spots())
    np.testing.assert_allclose(own_metrics(info), [0.9, 0.8, 0.7])
    figure = front_parallel(info, LIGHT)
    own = next(trace for trace in figure.data if trace.name == "Each task's own model")
    np.testing.assert_allclose(own.y, [90, 80, 70])
    assert own_metrics(front_info(TASKS, METRICS, C, PREDICTED, spots=spots()[:3])) is None


def test_colour_bins_are_equally_wide() -> None:
    np.testing.assert_array_equal(colour_bins(np.array([0.0, 0.24, 0.26, 0.74, 1.0]), 4), [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(colour_bins(np.array([0.5, 0.5]), 4), [3, 3])


def test_metrics_without_bounds_are_not_percent() -> None:
    loss = Metric("loss", maximize=False, low=0.0)
    figure = front_scatter(front_info(TASKS, (loss,) * 3, C, PREDICTED), LIGHT)
    np.testing.assert_allclose(figure.data[0].x, PREDICTED[:, 0])
    assert figure.layout.xaxis.title.text == "Loss on MNIST"


def test_parallel_lines_of_mixed_metrics_are_percent_of_own_models_with_their_own_hovers() -> None:
    metrics = (ACCURACY, LOSS, ACCURACY)
    figure = front_parallel(front_info(TASKS, metrics, C, PREDICTED, spots=spots()), LIGHT)
    assert figure.layout.yaxis.title.text == "% of each task's own model<br>lower = better for loss"
    pick = next(trace for trace in figure.data if trace.name == "Pick, with 90% interval")
    np.testing.assert_allclose(pick.y, 100 * PREDICTED[1] / [0.9, 0.8, 0.7])
    np.testing.assert_allclose(pick.error_y.array, 100 * 0.03 / np.array([0.9, 0.8, 0.7]))
    assert list(pick.text) == ["70.0%", "0.800", "40.0%"]
    own = next(trace for trace in figure.data if trace.name == "Each task's own model")
    np.testing.assert_allclose(own.y, [100, 100, 100])
    hovers = {int(row): list(trace.text) for trace in figure.data[:4] for row in trace.customdata[:1]}
    for row, texts in hovers.items():
        assert texts[:2] == [f"{100 * PREDICTED[row, 0]:.1f}%", f"{PREDICTED[row, 1]:.3f}"]
    alone = front_parallel(front_info(TASKS, metrics, C, PREDICTED), LIGHT)
    assert alone.layout.yaxis.title.text == "Metric, each in its own unit"


def test_parallel_losses_are_drawn_as_they_are() -> None:
    figure = front_parallel(front_info(TASKS, (LOSS,) * 3, C, PREDICTED, spots=spots()), LIGHT)
    assert figure.layout.yaxis.title.text == "Loss"
    pick = next(trace for trace in figure.data if trace.name == "Pick, with 90% interval")
    np.testing.assert_allclose(pick.y, PREDICTED[1])
    assert pick.text[0] == "0.700"


GAMMAS = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [1.0, 0.0, 0.0], [0.0, 0.25, 0.75]])


@pytest.mark.parametrize("draw", [front_scatter, front_parallel])
def test_a_learned_sets_models_are_told_by_their_preferences(draw: Callable[..., go.Figure]) -> None:
    measured = Spot("pick", "Your pick", GAMMAS[0], PREDICTED[0], made_by="preference")
    own = Spot("single", "MNIST's model", np.eye(3)[0], PREDICTED[2])
    info = front_info(TASKS, METRICS, GAMMAS, PREDICTED, spots=[measured, own], made_by="preference")
    figure = draw(info, LIGHT)
    assert "Measured on validation" in figure.data[0].hovertemplate
    names = {trace.name for trace in figure.data}
    assert "Pick" in names, "a measured pick has no interval"
    if draw is front_scatter:
        assert figure.data[0].name == "Measured preferences"
        assert "<b>Flags</b>  30.0%  (preference 50%)" in figure.data[0].text[0]
        pick, single = figure.data[1:]
        assert "(preference 20%)" in pick.customdata[0]
        assert "(c = 1.000)" in single.customdata[0], "a single-task model is made by coefficients"


WAYS = [(front_scatter, scatter_backdrop), (front_parallel, parallel_backdrop)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("draw", "draw_backdrop"), WAYS)
def test_spots_on_a_backdrop_look_like_those_drawn_with_it(
    draw: Callable[..., go.Figure], draw_backdrop: Callable[[FrontInfo, Palette], Backdrop], packed: bool
) -> None:
    *still, pick = spots()
    first = Spot("shortlist", "First", C[2], PREDICTED[2])
    second = Spot("shortlist", "Second", C[3], PREDICTED[3])
    backdrop = draw_backdrop(front_info(TASKS, METRICS, C, PREDICTED, spots=still), DARK)
    if packed:
        backdrop = backdrop.packed()
    for moving in ([first, second, pick], [pick], [], [second, pick]):
        at_once = draw(front_info(TASKS, METRICS, C, PREDICTED, spots=[*still, *moving]), DARK)
        assert backdrop.with_spots(moving).to_json() == at_once.to_json()


@pytest.mark.parametrize("draw_backdrop", [scatter_backdrop, parallel_backdrop])
def test_changing_a_figure_leaves_its_backdrop_alone(
    draw_backdrop: Callable[[FrontInfo, Palette], Backdrop],
) -> None:
    *still, pick = spots()
    backdrop = draw_backdrop(front_info(TASKS, METRICS, C, PREDICTED, spots=still), LIGHT)
    before = backdrop.with_spots([pick]).to_json()
    figure = backdrop.with_spots([pick])
    figure.update_layout(height=1, xaxis_title_text="Other", xaxis_tickfont_color="red")
    figure.data[0].update(x=[1, 2], marker_color="red", line_width=9)
    assert figure.to_json() != before
    assert backdrop.with_spots([pick]).to_json() == before


@pytest.mark.parametrize("draw", [front_scatter, front_parallel])
def test_plotly_accepts_what_was_put_together_unchecked(draw: Callable[..., go.Figure]) -> None:
    figure = draw(front_info(TASKS, METRICS, C, PREDICTED, spots=spots()), LIGHT)
    assert type(figure)(figure.to_dict()).to_json() == figure.to_json()
