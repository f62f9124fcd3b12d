"""Figures of the comparison show the rows' numbers, in percent or in shares of the single-task models."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.compare import (
    Bar,
    CompareInfo,
    Entry,
    bars_info,
    compare_info,
    looks,
    parallel,
    weighted_bars,
)
from mapmerge_core.charts.compare_fronts import fronts, label_places
from mapmerge_core.charts.palette import DARK, LIGHT
from mapmerge_core.tasks.metric import ACCURACY, Metric

TWO = ("MNIST", "Emoji")
SINGLE = np.array([0.8, 0.5])
NONE = np.empty((0, 2))
FRONT = np.array([[0.6, 0.3], [0.4, 0.45], [np.nan, np.nan], [0.7, 0.2]])


def entries() -> list[Entry]:
    return [
        Entry("run-1", "MAP", "run", FRONT[0], FRONT),
        Entry("run-2", "Unfinished", "run", np.full(2, np.nan), NONE),
        Entry("soup", "Model soup", "baseline", np.array([0.5, 0.25]), NONE),
        Entry("ties", "TIES", "baseline", np.array([0.55, 0.1]), NONE),
        Entry("single-MNIST", "MNIST's own model", "single", np.array([0.8, 0.1]), NONE),
        Entry("single-Emoji", "Emoji's own model", "single", np.array([0.2, 0.5]), NONE),
        Entry("pretrained", "Pre-trained", "pretrained", np.array([0.2, 0.1]), NONE),
    ]


def info(*, normalise: bool = False, chosen: str | None = None) -> CompareInfo:
    return compare_info(TWO, (ACCURACY,) * 2, entries(), SINGLE, normalise=normalise, chosen=chosen)


def traces_named(figure, name: str) -> list:
    return [trace for trace in figure.data if trace.name == name]


def test_rows_are_in_percent_and_those_without_a_value_are_left_out() -> None:
    found = info()
    assert [entry.key for entry in found.entries] == [
        entry.key for entry in entries() if entry.key != "run-2"
    ]
    np.testing.assert_allclose(found.entries[0].values, [60, 30])
    np.testing.assert_allclose(found.entries[0].front, [[60, 30], [40, 45], [70, 20]])
    np.testing.assert_allclose(found.own, [80, 50])
    assert found.titles == ("Accuracy on MNIST (%)", "Accuracy on Emoji (%)")


def test_normalised_rows_are_percent_of_each_tasks_own_model() -> None:
    found = info(normalise=True)
    np.testing.assert_allclose(found.entries[0].values, [75, 60])
    np.testing.assert_allclose(found.entries[1].values, [62.5, 50])
    np.testing.assert_allclose(found.own, [100, 100])
    assert found.titles[0] == "MNIST, % of its own model"


def test_metrics_without_bounds_keep_their_unit_unless_normalised() -> None:
    loss = Metric("loss", maximize=False, low=0.0)
    absolute = compare_info(TWO, (loss,) * 2, entries(), SINGLE, normalise=False)
    np.testing.assert_allclose(absolute.entries[0].values, FRONT[0])
    assert (absolute.titles[0], absolute.unit) == ("Loss on MNIST", "")
    shares = compare_info(TWO, (loss,) * 2, entries(), SINGLE, normalise=True)
    np.testing.assert_allclose(shares.entries[0].values, [75, 60])
    assert shares.unit == "%"


def test_two_tasks_show_the_front_from_left_to_right_and_the_model_for_the_preference() -> None:
    figure = fronts(info(), LIGHT)
    front, ring = traces_named(figure, "MAP")
    np.testing.assert_allclose(front.x, [40, 60, 70])
    np.testing.assert_allclose(front.y, [45, 30, 20])
    assert front.mode == "lines+markers"
    assert (ring.x[0], ring.y[0]) == (60, 30)
    (soup,) = traces_named(figure, "Model soup")
    assert (soup.x[0], soup.y[0]) == (50, 25)
    assert figure.layout.xaxis.title.text == "Accuracy on MNIST (%)"


def test_own_models_are_lines_at_what_each_reaches_on_its_own_task() -> None:
    (line,) = traces_named(fronts(info(), LIGHT), "Own models' levels")
    assert list(line.x[:2]) == [80, 80]
    assert list(line.y[3:]) == [50, 50]


def test_far_models_wait_in_the_legend_until_they_are_chosen() -> None:
    figure = fronts(info(), LIGHT)
    singles = traces_named(figure, "Single-task models")
    assert [trace.visible for trace in singles] == ["legendonly", "legendonly"]
    assert [trace.showlegend for trace in singles] == [None, False]
    (pretrained,) = traces_named(fronts(info(chosen="pretrained"), LIGHT), "Pre-trained")
    assert pretrained.visible is True
    assert pretrained.marker.color == LIGHT.pick


def test_three_tasks_have_a_panel_for_each_pair_and_one_legend() -> None:
    values = np.array([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]])
    rows = [
        Entry("run-1", "MAP", "run", values[0], values),
        Entry("soup", "Soup", "baseline", values[1], np.empty((0, 3))),
    ]
    three = compare_info(("A", "B", "C"), (ACCURACY,) * 3, rows, np.full(3, 0.5), normalise=False)
    figure = fronts(three, LIGHT)
    soups = traces_named(figure, "Soup")
    assert [(trace.x[0], trace.y[0]) for trace in soups] == [(30, 10), (30, 20), (10, 20)]
    assert [trace.showlegend for trace in soups] == [None, False, False]
    assert [trace.xaxis for trace in soups] == ["x", "x2", "x3"]
    titles = [figure.layout[f"{axis}axis{n}"].title.text for n in ("", 2, 3) for axis in "xy"]
    assert [title.removeprefix("Accuracy on ")[0] for title in titles] == list("ABACBC")


def test_many_tasks_are_one_line_a_row_and_diamonds_for_own_models() -> None:
    figure = parallel(info(chosen="soup"), LIGHT)
    assert {trace.name for trace in figure.data} == {"MAP", "Model soup", "TIES", "Pre-trained", "Own models"}
    (soup,) = traces_named(figure, "Model soup")
    np.testing.assert_allclose(soup.y, [50, 25])
    assert soup.line.color == LIGHT.pick
    (own,) = traces_named(figure, "Own models")
    np.testing.assert_allclose(own.y, [80, 50])


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_no_two_baselines_look_alike_and_none_like_the_pick(palette) -> None:
    rows = [Entry(str(n), str(n), "baseline", SINGLE, NONE) for n in range(13)]
    found = list(looks(rows, palette).values())
    assert len(set(found)) == 13
    assert len({symbol for _, symbol in found}) == 12
    assert palette.pick not in {colour for colour, _ in found}


def test_labels_cover_neither_each_other_nor_points() -> None:
    spots = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    frame = np.array([[0.0, 0.0], [1.0, 1.0]])
    places = label_places(["a"] * 5, spots, np.vstack([spots, frame]), size=(400, 300))
    assert places == ["top center", "bottom center", "middle right", "middle left", None]
    above = np.array([[0.5, 0.54]])
    places = label_places(["abc"], spots[:1], np.vstack([spots[:1], above, frame]), size=(400, 300))
    assert places == ["bottom center"]
    edge = label_places(["a long name"], frame[1:], frame, size=(400, 300))
    assert edge == ["middle left"]
    assert label_places([], NONE, NONE, size=(400, 300)) == []


def bars() -> list[Bar]:
    return [
        Bar("soup", "Model soup", "baseline", 0.5, 0.48, 0.52),
        Bar("run-1", "MAP", "run", 0.7, 0.65, 0.74),
        Bar("ties", "TIES", "baseline", float("nan"), float("nan"), float("nan")),
    ]


def test_bars_are_sorted_and_carry_their_intervals() -> None:
    found = bars_info(bars(), (ACCURACY,) * 2, 0.9, normalise=False)
    assert [bar.name for bar in found.bars] == ["MAP", "Model soup"]
    assert found.title == "Weighted accuracy (%)"
    figure = weighted_bars(found, LIGHT)
    # Plotly draws the first at the bottom.
    assert list(figure.data[0].y) == ["Model soup", "MAP"]
    np.testing.assert_allclose(figure.data[0].x, [50, 70])
    np.testing.assert_allclose(figure.data[0].error_x.array, [2, 4])
    np.testing.assert_allclose(figure.data[0].error_x.arrayminus, [2, 5])
    assert figure.layout.shapes[0].x0 == pytest.approx(90)
    assert figure.layout.xaxis.range[0] == 0


def test_bars_without_an_interval_have_the_axis_and_the_label_without() -> None:
    found = bars_info(
        [Bar("a", "A", "run", 2.0, *[float("nan")] * 2), *bars()[:1]], (ACCURACY,) * 2, 0.9, normalise=True
    )
    figure = weighted_bars(found, LIGHT)
    np.testing.assert_allclose(figure.layout.xaxis.range, [0, 206])
    assert list(figure.data[0].customdata) == ["<br>90% interval 48.0–52.0%", ""]


def test_bars_without_single_task_models_have_no_line_and_losses_are_no_percent() -> None:
    loss = Metric("loss", maximize=False, low=0.0)
    # Sums of metrics that go down are negative, and the highest is the best.
    down = [Bar("a", "A", "run", -2.0, -2.1, -1.9), Bar("b", "B", "run", -1.0, -1.1, -0.9)]
    found = bars_info(down, (loss,) * 2, float("nan"), normalise=False)
    assert [bar.name for bar in found.bars] == ["B", "A"]
    assert (found.unit, found.title) == ("", "Weighted loss")
    figure = weighted_bars(found, LIGHT)
    assert not figure.layout.shapes
    assert figure.layout.xaxis.range[0] < -2.1
    assert figure.layout.xaxis.range[1] == 0
    shares = bars_info(bars(), (ACCURACY,) * 2, 1.0, normalise=True, chosen="soup")
    assert shares.title == "Weighted share of own models (%)"
    assert LIGHT.pick in weighted_bars(shares, LIGHT).data[0].marker.color
