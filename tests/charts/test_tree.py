"""The tree of nested MAP: every pair once, under its nodes, with the front that was chosen from."""

from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.charts.palette import LIGHT
from mapmerge_core.charts.tree import tree_figure, tree_info
from mapmerge_core.methods._tree import Pair
from mapmerge_core.methods.base import ObjectiveInfo
from mapmerge_core.methods.nested import NestedMAP
from mapmerge_core.search.spaces import Box
from mapmerge_core.tasks.metrics import ACCURACY, LOSS

NAMES = ("MNIST", "Emoji", "Flags", "Street", "Letters")


def metrics_of(C: np.ndarray) -> np.ndarray:
    """Accuracies that rise with a task's own coefficient and fall with all others."""
    others = (C**2).sum(axis=1, keepdims=True) - C**2
    return np.clip(0.9 - 0.5 * (C - 0.9) ** 2 - 0.2 * others, 0.05, 0.95)


def merge(n: int, **settings) -> Pair:
    objectives = [ObjectiveInfo(name, model=k) for k, name in enumerate(NAMES[:n])]
    method = NestedMAP(Box(NAMES[:n]), objectives, {"points": 12, **settings})
    while (batch := method.ask()) is not None:
        method.tell(batch, metrics_of(batch.X)[:, list(batch.objectives)])
    return method.tree


def test_four_tasks_are_two_pairs_and_one_under_them() -> None:
    order = ("Street", "MNIST", "Flags", "Emoji")
    tree = merge(4, order=order)
    info = tree_info(tree, NAMES[:4], (ACCURACY,) * 4)
    assert info.leaves == order
    assert [panel.round for panel in info.panels] == [1, 1, 2]
    assert [panel.span for panel in info.panels] == [(0, 2), (2, 4), (0, 4)]
    assert [panel.title for panel in info.panels] == ["MNIST + Street", "Emoji + Flags", "4 tasks"]
    assert info.panels[0].sides == ("Street", "MNIST")
    assert info.panels[2].feeds == ((1.0, 1), (3.0, 1))
    first = tree.left
    np.testing.assert_allclose(info.panels[0].chosen, 100 * first.predicted[[1, 0]])
    # Four tasks alike: each axis of the last pair is the mean over two of them.
    mean = 100 * tree.predicted.reshape(-1)[[3, 0, 2, 1]].reshape(2, 2).mean(axis=1)
    np.testing.assert_allclose(info.panels[2].chosen, mean)
    assert info.panels[2].front.shape == (len(tree.front.x), 2)


def test_the_figure_has_a_panel_for_each_pair_with_its_numbers() -> None:
    tree = merge(4, order=NAMES[:4])
    info = tree_info(tree, NAMES[:4], (ACCURACY,) * 4)
    figure = tree_figure(info, LIGHT)
    chosen = [trace for trace in figure.data if trace.name == "Chosen"]
    np.testing.assert_allclose([[t.x[0], t.y[0]] for t in chosen], [panel.chosen for panel in info.panels])
    assert [trace.showlegend for trace in chosen] == [True, False, False]
    front = next(trace for trace in figure.data if trace.name == "Front, predicted")
    np.testing.assert_allclose(sorted(front.x), sorted(100 * tree.left.front.predicted[:, 0]))
    assert figure.layout.xaxis.title.text == "MNIST"
    assert figure.layout.yaxis2.title.text == "Street"
    domains = [figure.layout[f"yaxis{n}"].domain for n in ("", 2, 3)]
    assert domains[0] == domains[1]
    assert domains[2][1] < domains[0][0], "the second round stands below the first"
    # Two lines lead from the first round's panels to the second's.
    assert len(figure.layout.shapes) == 2


def test_panels_of_a_round_never_overlap() -> None:
    figure = tree_figure(tree_info(merge(5, order=NAMES), NAMES, (ACCURACY,) * 5), LIGHT)
    areas = [(figure.layout[f"xaxis{n}"].domain, figure.layout[f"yaxis{n}"].domain) for n in ("", 2, 3, 4)]
    for i, (x, y) in enumerate(areas):
        for other_x, other_y in areas[:i]:
            assert x[0] >= other_x[1] or other_x[0] >= x[1] or y[0] >= other_y[1] or other_y[0] >= y[1]
    assert min(x[0] for x, _ in areas) >= 0
    assert max(x[1] for x, _ in areas) <= 1


def test_a_leaf_that_was_left_over_keeps_its_name_and_gets_a_line() -> None:
    info = tree_info(merge(3, order=NAMES[:3]), NAMES[:3], (ACCURACY,) * 3)
    assert info.panels[1].feeds == ((1.0, 1), (2.5, 0))
    figure = tree_figure(info, LIGHT)
    assert "<b>Flags</b>" in [note.text for note in figure.layout.annotations]
    assert len(figure.layout.shapes) == 2


def test_two_tasks_are_one_panel() -> None:
    tree = merge(2)
    figure = tree_figure(tree_info(tree, NAMES[:2], (ACCURACY,) * 2), LIGHT)
    assert not figure.layout.shapes
    assert figure.layout.annotations[0].text.startswith("<b>MNIST + Emoji</b>, R² ")
    chosen = next(trace for trace in figure.data if trace.name == "Chosen")
    assert chosen.x[0] == pytest.approx(100 * tree.predicted[0])
    assert f"{tree.point[0]:.2f} of MNIST" in chosen.hovertemplate


def test_each_side_has_the_unit_of_its_own_tasks() -> None:
    tree = merge(3, order=NAMES[:3])
    info = tree_info(tree, NAMES[:3], (ACCURACY, ACCURACY, LOSS))
    np.testing.assert_allclose(info.panels[0].chosen, 100 * tree.left.predicted)
    last = info.panels[1]
    np.testing.assert_allclose(last.chosen, [100 * tree.predicted[:2].mean(), tree.predicted[2]])
    np.testing.assert_allclose(last.front[:, 1], tree.front.predicted[:, 2])
    hovers = [trace.hovertemplate for trace in tree_figure(info, LIGHT).data if trace.xaxis == "x2"]
    assert all("%{x:.1f}%<br>Flags %{y:.3f}" in hover for hover in hovers)
