"""How a learned set forms: objectives over the steps, and what its models measured on the way."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.learning import (
    Look,
    forming_info,
    forming_panels,
    forming_scatter,
    training_info,
    training_lines,
)
from mapmerge_core.charts.palette import DARK, LIGHT
from mapmerge_core.merges._training_settings import Training, TrainingPoint
from mapmerge_core.tasks.metric import ACCURACY, LOSS

TWO = ("MNIST", "Emoji")
THREE = ("A", "B", "C")
POINTS = [
    TrainingPoint(10, 0.9, np.array([1.5, 0.9]), 1.0),
    TrainingPoint(20, 0.6, np.array([1.2, 0.8]), 1.0),
    TrainingPoint(25, 0.5, np.array([0.7, 0.85]), 0.5),
]


@pytest.mark.parametrize(
    ("how", "title"),
    [
        ({}, "Entropy (nats)"),
        ({"balance": 0.5}, "Entropy + imbalance (nats)"),
        ({"data_free": True, "balance": 0.5}, "Distance, share of that at the start"),
    ],
)
def test_each_task_has_a_line_and_the_objective_a_strip_below(how: dict[str, object], title: str) -> None:
    figure = training_lines(training_info(TWO, POINTS, Training(**how)), LIGHT)
    first, second, objective = figure.data
    assert [first.name, second.name] == list(TWO)
    np.testing.assert_allclose(first.x, [10, 20, 25])
    np.testing.assert_allclose(first.y, [1.5, 1.2, 0.7])
    np.testing.assert_allclose(second.y, [0.9, 0.8, 0.85])
    np.testing.assert_allclose(objective.y, [0.9, 0.6, 0.5])
    assert len({first.line.color, second.line.color, objective.line.color}) == 3
    assert figure.layout.yaxis.title.text == title
    assert objective.yaxis == "y2"
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]


def test_a_single_point_of_training_is_a_marker_and_none_draws_nothing() -> None:
    one = training_lines(training_info(TWO, POINTS[:1], Training()), DARK)
    assert {trace.mode for trace in one.data} == {"markers"}
    none = training_lines(training_info(TWO, [], Training()), DARK)
    assert [len(trace.x) for trace in none.data] == [0, 0, 0]


def test_looks_at_two_tasks_are_joined_in_order_and_older_ones_fainter() -> None:
    gammas = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    values = np.array([[0.6, 0.7], [0.8, 0.2], [0.1, 0.9]])
    looks = [Look(20, gammas, values - 0.1), Look(40, gammas, values - 0.05), Look(1000, gammas, values)]
    info = forming_info(TWO, (ACCURACY, LOSS), looks, followed=gammas, steps=1000)
    figure = forming_scatter(info, LIGHT)
    assert [trace.name for trace in figure.data] == ["20 steps", "40 steps", "1,000 steps, finished"]
    last = figure.data[-1]
    np.testing.assert_allclose(last.x, [10, 60, 80])
    np.testing.assert_allclose(last.y, [0.9, 0.7, 0.2])
    assert "<b>MNIST</b>  10.0%  (preference 0%)" in last.text[0]
    shades = [trace.marker.color for trace in figure.data]
    order = [LIGHT.sequential.index(shade) for shade in shades[:2]]
    assert order == sorted(set(order))
    assert shades[2] == LIGHT.front
    assert figure.layout.xaxis.title.text == "Accuracy on MNIST (%)"
    assert figure.layout.yaxis.title.text == "Loss on Emoji"
    unfinished = forming_scatter(
        forming_info(TWO, (ACCURACY, LOSS), looks[:1], followed=gammas, steps=1000), LIGHT
    )
    assert [trace.name for trace in unfinished.data] == ["20 steps"]


def test_preferences_that_are_not_measured_on_all_tasks_yet_wait() -> None:
    gammas = np.array([[0.5, 0.5], [1.0, 0.0]])

    def info(*looks: Look):
        return forming_info(TWO, (ACCURACY,) * 2, looks, followed=gammas, steps=9)

    begun = info(Look(8, gammas, np.array([[0.6, 0.7], [0.8, np.nan]])))
    np.testing.assert_allclose(begun.looks[0].gammas, [[0.5, 0.5]])
    nothing = Look(8, gammas[:1], np.array([[np.nan, 0.3]]))
    assert forming_scatter(info(nothing), LIGHT).data == ()
    assert forming_scatter(info(), LIGHT).data == ()


def test_more_tasks_have_a_panel_each_with_equal_preference_and_their_own() -> None:
    gammas = np.vstack([np.full(3, 1 / 3), 0.25 + 0.25 * np.eye(3)])
    early = np.array([[0.5, 0.4, 3.0], [0.6, 0.3, 3.5], [0.4, 0.5, 3.2], [0.3, 0.2, 2.5]])
    # The finished set has other preferences as well, in another order, and one of the first is missing.
    last_gammas = np.vstack([[1.0, 0.0, 0.0], gammas[2], gammas[0], gammas[1]])
    last = np.array([[0.9, 0.0, 4.0], [0.5, 0.6, 3.1], [0.55, 0.45, 2.9], [0.7, 0.3, 3.4]])
    looks = [Look(50, gammas, early), Look(100, last_gammas, last)]
    info = forming_info(THREE, (ACCURACY, ACCURACY, LOSS), looks, followed=gammas, steps=100)
    np.testing.assert_allclose(info.own, [[0.6, 0.5, 2.5], [0.7, 0.6, np.nan]])
    np.testing.assert_allclose(info.equal, [[0.5, 0.4, 3.0], [0.55, 0.45, 2.9]])
    assert info.is_finished
    figure = forming_panels(info, LIGHT)
    equal, own = "Equal preference", "Preference for this task"
    assert [(trace.name, trace.xaxis, trace.showlegend) for trace in figure.data[:4]] == [
        (equal, "x", True),
        (own, "x", True),
        (equal, "x2", False),
        (own, "x2", False),
    ]
    np.testing.assert_allclose(figure.data[1].x, [50, 100])
    np.testing.assert_allclose(figure.data[1].y, [60, 70])
    np.testing.assert_allclose(figure.data[4].y, [3.0, 2.9])
    assert [note.text for note in figure.layout.annotations] == [
        "<b>A</b>  Accuracy (%)",
        "<b>B</b>  Accuracy (%)",
        "<b>C</b>  Loss",
    ]


def test_a_panel_of_shares_is_never_so_narrow_that_chance_looks_like_change() -> None:
    gammas = np.vstack([np.full(3, 1 / 3), np.eye(3)])
    # At equal preference and at its own: 80% and 81% of the first task, 20% and 60% of the second.
    values = np.array([[0.8, 0.2, 3.0], [0.81, 0, 0], [0, 0.6, 0], [0, 0, 2.9]])
    info = forming_info(
        THREE, (ACCURACY, ACCURACY, LOSS), [Look(5, gammas, values)], followed=gammas, steps=9
    )
    layout = forming_panels(info, LIGHT).layout
    np.testing.assert_allclose(layout.yaxis.range, [78, 83])
    np.testing.assert_allclose(layout.yaxis2.range, [16, 64])
    assert layout.yaxis3.range is None


@pytest.mark.parametrize("n_tasks", [3, 4, 5, 8])
def test_panels_stand_apart_and_inside_the_figure(n_tasks: int) -> None:
    gammas = np.vstack([np.full(n_tasks, 1 / n_tasks), np.eye(n_tasks)])
    names = tuple("ABCDEFGH"[:n_tasks])
    looks = [Look(5, gammas, np.ones_like(gammas))]
    info = forming_info(names, (ACCURACY,) * n_tasks, looks, followed=gammas, steps=5)
    layout = forming_panels(info, LIGHT).layout
    numbers = ["", *map(str, range(2, n_tasks + 1))]
    boxes = [(*layout[f"xaxis{n}"].domain, *layout[f"yaxis{n}"].domain) for n in numbers]
    for number, (left, right, bottom, top) in enumerate(boxes):
        assert -1e-9 <= left < right <= 1 + 1e-9
        assert -1e-9 <= bottom < top <= 1 + 1e-9
        for other in boxes[:number]:
            assert right <= other[0] or other[1] <= left or top <= other[2] or other[3] <= bottom
