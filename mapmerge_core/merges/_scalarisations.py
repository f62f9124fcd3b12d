"""One number from the tasks' objectives f and a preference γ, for gradients to flow through."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 0.01
"""What γ counts as at least in 1/γ, so that it stays finite: a task that doesn't matter is a hundred times
less wanted than one that is all that matters, and doesn't take the others' part of the cosine."""


def scalarise(name: str, f: Tensor, gamma: Tensor, mu: float) -> Tensor:
    """Return the objective for a preference.

    The ideal z* is 0, the least entropy (or imbalance) and the least distance there are.

    Args:
        name: "linear": Σ γ_k f_k (Pareto Merging, equation 4). "tchebycheff": max_k γ_k f_k.
            "smooth_tchebycheff": μ log Σ exp(γ_k f_k / μ) (equation 7), which tends to the maximum as μ -> 0.
        f: Objectives (K,), none negative.
        gamma: Preference (K,), summing to 1.
        mu: μ.

    Returns:
        A scalar.
    """
    weighed = gamma * f
    if name == "linear":
        return weighed.sum()
    if name == "tchebycheff":
        return weighed.max()
    return mu * torch.logsumexp(weighed / mu, dim=0)


def alignment(f: Tensor, gamma: Tensor) -> Tensor:
    """Return the cosine of f with 1/γ (Pareto Merging, equation 10), γ being at least `FLOOR`.

    Args:
        f: Objectives (K,).
        gamma: Preference (K,).

    Returns:
        A scalar in [-1, 1].
    """
    return torch.nn.functional.cosine_similarity(1 / gamma.clamp(min=FLOOR), f, dim=0)
