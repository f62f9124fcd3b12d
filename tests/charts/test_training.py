"""How a merge's training goes: each model's objective over the steps, and what is minimised."""

from __future__ import annotations

import numpy as np

from mapmerge_core.charts.palette import DARK, LIGHT
from mapmerge_core.charts.training import training_info, training_lines
from mapmerge_core.merges.base import TrainingPoint

TWO = ("MNIST", "Emoji")
POINTS = [
    TrainingPoint(10, 0.9, np.array([1.5, 0.9]), 1.0),
    TrainingPoint(20, 0.6, np.array([1.2, 0.8]), 1.0),
    TrainingPoint(25, 0.5, np.array([0.7, 0.85]), 0.5),
]


def test_each_model_has_a_line_and_what_is_minimised_a_strip_below() -> None:
    figure = training_lines(training_info(TWO, POINTS), LIGHT)
    first, second, objective = figure.data
    assert [first.name, second.name] == list(TWO)
    np.testing.assert_allclose(first.x, [10, 20, 25])
    np.testing.assert_allclose(first.y, [1.5, 1.2, 0.7])
    np.testing.assert_allclose(second.y, [0.9, 0.8, 0.85])
    np.testing.assert_allclose(objective.y, [0.9, 0.6, 0.5])
    assert len({first.line.color, second.line.color, objective.line.color}) == 3
    assert objective.yaxis == "y2"
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]


def test_a_single_point_of_training_is_a_marker_and_none_draws_nothing() -> None:
    one = training_lines(training_info(TWO, POINTS[:1]), DARK)
    assert {trace.mode for trace in one.data} == {"markers"}
    none = training_lines(training_info(TWO, []), DARK)
    assert [len(trace.x) for trace in none.data] == [0, 0, 0]
