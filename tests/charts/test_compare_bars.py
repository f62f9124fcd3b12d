"""Bars of preference-weighted sums: in percent, as losses, or with losses counted negatively."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.compare_bars import Bar, bars_info, weighted_bars
from mapmerge_core.charts.palette import LIGHT
from mapmerge_core.tasks.metric import ACCURACY, F1, LOSS, PERPLEXITY


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
    # Sums of metrics that go down are negative, and the highest is the best; people read losses as they are.
    down = [Bar("a", "A", "run", -2.0, -2.1, -1.9), Bar("b", "B", "run", -1.0, -1.1, -0.9)]
    found = bars_info(down, (LOSS,) * 2, float("nan"), normalise=False)
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
    shares = bars_info(bars(), (ACCURACY,) * 2, 1.0, normalise=True, chosen="soup")
    assert shares.title == "Weighted share of own models (%)"
    assert LIGHT.pick in weighted_bars(shares, LIGHT).data[0].marker.color


def test_the_level_of_single_task_models_is_a_loss_as_people_read_it() -> None:
    down = [Bar("a", "A", "run", -2.0, *[float("nan")] * 2)]
    figure = weighted_bars(bars_info(down, (LOSS, PERPLEXITY), -1.5, normalise=False), LIGHT)
    assert figure.layout.shapes[0].x0 == pytest.approx(1.5)
    assert figure.layout.xaxis.title.text == "Weighted loss and perplexity, lower = better"
    shares = bars_info(down, (LOSS,), -1.0, normalise=True)
    assert (shares.bars[0].value, shares.level) == (200, 100)
    assert shares.title == "Weighted share of own models (%), lower = better"


def test_of_mixed_directions_losses_count_negatively() -> None:
    sums = [Bar("a", "A", "run", -0.5, *[float("nan")] * 2), Bar("b", "B", "run", 0.2, 0.1, 0.3)]
    found = bars_info(sums, (ACCURACY, LOSS), 0.4, normalise=False)
    assert [(bar.name, bar.value) for bar in found.bars] == [("B", 0.2), ("A", -0.5)]
    assert found.title == "Weighted accuracy and loss, loss counted negatively"
    assert list(weighted_bars(found, LIGHT).data[0].text) == ["-0.500", "0.200"]
    assert bars_info(sums, (ACCURACY, F1), 0.4, normalise=False).title == "Weighted accuracy and F1 (%)"
