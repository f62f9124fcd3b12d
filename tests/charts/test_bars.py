"""Bars: weighted sums in percent or as losses, a pick beside its models, entropies with the surest first."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.bars import (
    Bar,
    PickInfo,
    entropies_info,
    entropy_bars,
    pick_bars,
    weighted_bars,
    weighted_info,
)
from mapmerge_core.charts.palette import LIGHT
from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics import ACCURACY, LOSS

F1, PERPLEXITY = METRICS["F1"], METRICS["perplexity"]
TWO = ("MNIST", "Emoji")


def bars() -> list[Bar]:
    return [
        Bar("soup", "Model soup", "baseline", 0.5, 0.48, 0.52),
        Bar("run-1", "MAP", "run", 0.7, 0.65, 0.74),
        Bar("ties", "TIES", "baseline", float("nan"), float("nan"), float("nan")),
    ]


def test_bars_are_sorted_and_carry_their_intervals() -> None:
    found = weighted_info(bars(), (ACCURACY,) * 2, 0.9, normalise=False)
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
    found = weighted_info(
        [Bar("a", "A", "run", 2.0, *[float("nan")] * 2), *bars()[:1]], (ACCURACY,) * 2, 0.9, normalise=True
    )
    figure = weighted_bars(found, LIGHT)
    np.testing.assert_allclose(figure.layout.xaxis.range, [0, 206])
    assert list(figure.data[0].customdata) == ["<br>90% interval 48.0–52.0%", ""]


def test_bars_without_single_task_models_have_no_line_and_losses_are_no_percent() -> None:
    # Sums of metrics that go down are negative, and the highest is the best; people read losses as they are.
    down = [Bar("a", "A", "run", -2.0, -2.1, -1.9), Bar("b", "B", "run", -1.0, -1.1, -0.9)]
    found = weighted_info(down, (LOSS,) * 2, float("nan"), normalise=False)
    assert [bar.name for bar in found.bars] == ["B", "A"]
    assert found.title == "Weighted loss, lower = better"
    assert [(bar.value, bar.lower, bar.upper) for bar in found.bars] == [(1.0, 0.9, 1.1), (2.0, 1.9, 2.1)]
    figure = weighted_bars(found, LIGHT)
    assert list(figure.data[0].text) == ["2.000", "1.000"]
    np.testing.assert_allclose(figure.data[0].error_x.array, [0.1, 0.1])
    assert figure.data[0].customdata[0] == "<br>90% interval 1.900–2.100"
    assert "%{x:.3f}%{customdata}" in figure.data[0].hovertemplate
    assert not figure.layout.shapes
    np.testing.assert_allclose(figure.layout.xaxis.range, [0, 1.03 * 2.1])
    shares = weighted_info(bars(), (ACCURACY,) * 2, 1.0, normalise=True, chosen="soup")
    assert shares.title == "Weighted share of single models (%)"
    assert LIGHT.pick in weighted_bars(shares, LIGHT).data[0].marker.color


def test_the_level_of_single_task_models_is_a_loss_as_people_read_it() -> None:
    down = [Bar("a", "A", "run", -2.0, *[float("nan")] * 2)]
    figure = weighted_bars(weighted_info(down, (LOSS, PERPLEXITY), -1.5, normalise=False), LIGHT)
    assert figure.layout.shapes[0].x0 == pytest.approx(1.5)
    assert figure.layout.xaxis.title.text == "Weighted loss and perplexity, lower = better"
    shares = weighted_info(down, (LOSS,), -1.0, normalise=True)
    assert (shares.bars[0].value, shares.level) == (200, 100)
    assert shares.title == "Weighted share of single models (%), lower = better"


def test_of_mixed_directions_losses_count_negatively() -> None:
    sums = [Bar("a", "A", "run", -0.5, *[float("nan")] * 2), Bar("b", "B", "run", 0.2, 0.1, 0.3)]
    found = weighted_info(sums, (ACCURACY, LOSS), 0.4, normalise=False)
    assert [(bar.name, bar.value) for bar in found.bars] == [("B", 0.2), ("A", -0.5)]
    assert found.title == "Weighted accuracy and loss, loss counted negatively"
    assert list(weighted_bars(found, LIGHT).data[0].text) == ["-0.500", "0.200"]
    assert weighted_info(sums, (ACCURACY, F1), 0.4, normalise=False).title == "Weighted accuracy and F1 (%)"


def picked(measured: np.ndarray | None = None) -> PickInfo:
    pair = np.array([0.8, 0.6])
    return PickInfo(TWO, (ACCURACY,) * 2, pair - 0.3, pair + 0.1, pair, pair - 0.05, pair + 0.02, measured)


def test_bars_show_percent_with_the_interval_and_the_measurement() -> None:
    figure = pick_bars(picked(np.array([0.79, np.nan])), LIGHT)
    by_name = {trace.name: trace for trace in figure.data}
    np.testing.assert_allclose(by_name["Pick, predicted"].y, [80, 60])
    np.testing.assert_allclose(by_name["Pick, predicted"].error_y.array, [2, 2])
    np.testing.assert_allclose(by_name["Pick, predicted"].error_y.arrayminus, [5, 5])
    assert list(by_name["Pick, measured on test"].customdata) == ["79.0%", "–"]
    assert "Pick, measured on test" not in {trace.name for trace in pick_bars(picked(), LIGHT).data}
    np.testing.assert_allclose(picked().share_of_single(), [0.8 / 0.9, 0.6 / 0.7])
    assert type(figure)(figure.to_dict()).to_json() == figure.to_json(), "Plotly accepts every value"


def test_bars_of_mixed_metrics_are_percent_of_the_single_models_with_their_own_hovers() -> None:
    pair = np.array([0.8, 3.0])
    info = PickInfo(TWO, (ACCURACY, LOSS), pair, np.array([0.9, 2.5]), pair, pair - 0.09, pair + 0.05)
    figure = pick_bars(info, LIGHT)
    pick = next(trace for trace in figure.data if trace.name == "Pick, predicted")
    np.testing.assert_allclose(pick.y, [100 * 0.8 / 0.9, 120])
    np.testing.assert_allclose(pick.error_y.array, [100 * 0.05 / 0.9, 2])
    np.testing.assert_allclose(pick.error_y.arrayminus, [10, 3.6])
    assert list(pick.customdata) == ["80.0%", "3.000"]
    assert figure.layout.yaxis.title.text == "% of the single models<br>lower = better for loss"


def test_a_pick_without_an_interval_has_no_error_bars() -> None:
    pair = np.array([0.8, 0.6])
    info = PickInfo(TWO, (ACCURACY,) * 2, pair - 0.3, pair + 0.1, pair, pair, pair)
    pick = next(trace for trace in pick_bars(info, LIGHT).data if trace.name == "Pick, predicted")
    np.testing.assert_allclose(pick.y, [80, 60])
    assert pick.error_y.array is None


def test_entropies_rise_and_the_surest_model_has_the_picks_colour() -> None:
    info = entropies_info(np.array([0.9, 0.4, 0.7]), ["soup A 0.250", "soup A 1.000", "soup A 0.500"])
    (bars,) = entropy_bars(info, LIGHT).data
    np.testing.assert_array_equal(bars.y, [0.4, 0.7, 0.9])
    assert bars.marker.color[0] == LIGHT.pick
    assert LIGHT.pick not in bars.marker.color[1:]
    assert list(bars.customdata) == ["soup A 1.000", "soup A 0.500", "soup A 0.250"]
