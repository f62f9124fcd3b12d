"""The bars of entropies show every model once, the chosen one first."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.entropies import entropies_info, entropy_bars
from mapmerge_core.charts.palette import LIGHT
from mapmerge_core.charts.units import Made

POINTS = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
ENTROPIES = np.array([0.9, 0.4, 0.7])


def test_bars_rise_and_the_surest_model_has_the_picks_colour() -> None:
    figure = entropy_bars(entropies_info(("MNIST", "Emoji"), POINTS, ENTROPIES), LIGHT)
    (bars,) = figure.data
    np.testing.assert_array_equal(bars.y, [0.4, 0.7, 0.9])
    assert bars.marker.color[0] == LIGHT.pick
    assert LIGHT.pick not in bars.marker.color[1:]


@pytest.mark.parametrize(
    ("made_by", "hovers"),
    [
        ("coefficients", ["MNIST  c = 1.000<br>Emoji  c = 0.000", "MNIST  c = 0.500<br>Emoji  c = 0.500"]),
        (
            "preference",
            [
                "MNIST  preference 100%<br>Emoji  preference 0%",
                "MNIST  preference 50%<br>Emoji  preference 50%",
            ],
        ),
    ],
)
def test_a_bars_hover_says_what_the_model_is_made_by(made_by: Made, hovers: list[str]) -> None:
    figure = entropy_bars(entropies_info(("MNIST", "Emoji"), POINTS, ENTROPIES, made_by), LIGHT)
    assert list(figure.data[0].customdata[:2]) == hovers
