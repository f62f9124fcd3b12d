from __future__ import annotations

import numpy as np
import pytest
import torch

from mapmerge_core.merges._scalarisations import FLOOR, alignment, scalarise

F = torch.tensor([0.9, 0.2, 1.4, 0.5], dtype=torch.float64)
GAMMA = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
WEIGHED = F.numpy() * GAMMA.numpy()


def test_linear_is_the_weighted_sum():
    assert float(scalarise("linear", F, GAMMA, 0.1)) == pytest.approx(WEIGHED.sum())


def test_tchebycheff_is_the_largest_weighted_objective():
    assert float(scalarise("tchebycheff", F, GAMMA, 0.1)) == pytest.approx(0.28)


@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0, 10.0])
def test_the_smooth_one_is_its_formula_and_stays_near_the_maximum(mu):
    found = float(scalarise("smooth_tchebycheff", F, GAMMA, mu))
    assert found == pytest.approx(mu * np.log(np.exp(WEIGHED / mu).sum()))
    assert WEIGHED.max() <= found <= WEIGHED.max() + mu * np.log(4)


def test_the_smooth_one_tends_to_the_maximum():
    gaps = [float(scalarise("smooth_tchebycheff", F, GAMMA, mu)) - WEIGHED.max() for mu in (1, 0.1, 0.01, 1e-5)]
    assert gaps == sorted(gaps, reverse=True)
    assert abs(gaps[-1]) < 1e-12


def test_its_slopes_are_preferences_times_a_softmax():
    f = F.clone().requires_grad_()
    scalarise("smooth_tchebycheff", f, GAMMA, 0.1).backward()
    weights = np.exp(WEIGHED / 0.1) / np.exp(WEIGHED / 0.1).sum()
    assert f.grad.numpy() == pytest.approx(GAMMA.numpy() * weights)


def test_a_large_quotient_overflows_nothing():
    assert float(scalarise("smooth_tchebycheff", F.float() * 1e4, GAMMA.float(), 1e-3)) == pytest.approx(2800)


def test_alignment_is_the_cosine_with_the_inverse_preference():
    inverse = 1 / GAMMA.numpy()
    expected = inverse @ F.numpy() / (np.linalg.norm(inverse) * np.linalg.norm(F.numpy()))
    assert float(alignment(F, GAMMA)) == pytest.approx(expected)
    assert float(alignment(3 / GAMMA, GAMMA)) == pytest.approx(1)


def test_a_task_that_does_not_matter_keeps_the_alignment_finite():
    gamma = torch.tensor([0.0, 1.0], dtype=torch.float64)
    inverse, f = np.array([1 / FLOOR, 1]), np.array([0.7, 0.3])
    expected = inverse @ f / (np.linalg.norm(inverse) * np.linalg.norm(f))
    objectives = torch.from_numpy(f).requires_grad_()
    found = alignment(objectives, gamma)
    assert float(found.detach()) == pytest.approx(expected)
    found.backward()
    assert objectives.grad.isfinite().all()
