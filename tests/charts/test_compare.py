"""Figures of the comparison show the rows' numbers, in percent or in shares of the single-task models."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mapmerge_core.charts.compare import CompareInfo, Entry, compare_info, looks, parallel
from mapmerge_core.charts.compare_fronts import fronts, label_places
from mapmerge_core.charts.palette import DARK, LIGHT
from mapmerge_core.tasks.metrics import ACCURACY, LOSS, Metric

TWO = ("MNIST", "Emoji")
SINGLE = np.array([0.8, 0.5])
NONE = np.empty((0, 2))
FRONT = np.array([[0.6, 0.3], [0.4, 0.45], [np.nan, np.nan], [0.7, 0.2]])


def entries() -> list[Entry]:
    return [
        Entry("run-1", "MAP", "run", FRONT[0], FRONT),
        Entry("run-2", "Unfinished", "run", np.array([0.6, np.nan]), NONE),
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


def test_rows_are_in_percent_and_those_that_make_no_point_are_left_out() -> None:
    found = info()
    assert [entry.key for entry in found.entries] == [entry.key for entry in entries() if entry.key != "run-2"]
    np.testing.assert_allclose(found.entries[0].values, [60, 30])
    np.testing.assert_allclose(found.entries[0].front, [[60, 30], [40, 45], [70, 20]])
    np.testing.assert_allclose(found.single, [80, 50])
    assert found.titles == ("Accuracy on MNIST (%)", "Accuracy on Emoji (%)")


def test_normalised_rows_are_percent_of_each_tasks_own_model() -> None:
    found = info(normalise=True)
    np.testing.assert_allclose(found.entries[0].values, [75, 60])
    np.testing.assert_allclose(found.entries[1].values, [62.5, 50])
    np.testing.assert_allclose(found.single, [100, 100])
    assert found.titles[0] == "MNIST, % of the single model"


def test_metrics_without_bounds_keep_their_unit_unless_normalised() -> None:
    loss = Metric("loss", maximize=False, low=0.0)
    absolute = compare_info(TWO, (loss,) * 2, entries(), SINGLE, normalise=False)
    np.testing.assert_allclose(absolute.entries[0].values, FRONT[0])
    assert (absolute.titles[0], absolute.shared) == ("Loss on MNIST", "Loss")
    shares = compare_info(TWO, (loss,) * 2, entries(), SINGLE, normalise=True)
    np.testing.assert_allclose(shares.entries[0].values, [75, 60])
    assert shares.notations[0].text(75.0) == "75.0%"
    assert shares.shared == "% of the single models<br>lower = better"


def hover_at(trace, index: int) -> str:
    """A trace's hover at one of its points, as Plotly fills it in."""
    values = {name: None if trace[name] is None else trace[name][index] for name in ("x", "y", "text")}

    def fill(found: re.Match) -> str:
        name, _, form = found[1].partition(":")
        return format(values[name], form)

    return re.sub(r"%\{(.*?)\}", fill, trace.hovertemplate)


def test_each_task_has_its_own_digits_and_unit() -> None:
    mixed = compare_info(TWO, (ACCURACY, LOSS), entries(), SINGLE, normalise=False)
    assert mixed.titles == ("Accuracy on MNIST (%)", "Loss on Emoji")
    (soup,) = traces_named(fronts(mixed, LIGHT), "Model soup")
    assert hover_at(soup, 0) == "<b>Model soup</b><br>MNIST 50.0%<br>Emoji 0.250<extra></extra>"


def test_on_one_axis_metrics_without_a_common_unit_are_percent_of_single_models() -> None:
    mixed = compare_info(TWO, (ACCURACY, LOSS), entries(), SINGLE, normalise=False)
    figure = parallel(mixed, LIGHT)
    (soup,) = traces_named(figure, "Model soup")
    np.testing.assert_allclose(soup.y, [100 * 0.5 / 0.8, 100 * 0.25 / 0.5])
    assert hover_at(soup, 0) == "<b>Model soup</b>  50.0%<extra></extra>"
    assert hover_at(soup, 1) == "<b>Model soup</b>  0.250<extra></extra>"
    np.testing.assert_allclose(traces_named(figure, "Single models")[0].y, [100, 100])
    assert list(traces_named(figure, "Single models")[0].text) == ["80.0%", "0.500"]
    assert figure.layout.yaxis.title.text == "% of the single models<br>lower = better for loss"
    unknown = compare_info(TWO, (ACCURACY, LOSS), entries(), np.array([0.8, np.nan]), normalise=False)
    (soup,) = traces_named(parallel(unknown, LIGHT), "Model soup")
    np.testing.assert_allclose(soup.y, [50, 0.25])
    assert parallel(unknown, LIGHT).layout.yaxis.title.text == "Metric, each in its own unit"


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
    (line,) = traces_named(fronts(info(), LIGHT), "Single models' levels")
    assert list(line.x[:2]) == [80, 80]
    assert list(line.y[3:]) == [50, 50]


def test_far_models_wait_in_the_legend_until_they_are_chosen() -> None:
    figure = fronts(info(), LIGHT)
    singles = traces_named(figure, "Single models")
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
    assert {trace.name for trace in figure.data} == {"MAP", "Model soup", "TIES", "Pre-trained", "Single models"}
    (soup,) = traces_named(figure, "Model soup")
    np.testing.assert_allclose(soup.y, [50, 25])
    assert soup.line.color == LIGHT.pick
    (own,) = traces_named(figure, "Single models")
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
