"""AdaMerging + preference: one run for each preference (Pareto Merging, section 3.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from benchmarks.pareto_merging.personalisations import Nothing
from mapmerge_core.merges._pareto_training import ParetoMerging

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mapmerge_core.merges._training_settings import Training
    from mapmerge_core.tasks.evaluator import Evaluator


def adamerging_training(training: Training) -> Training:
    """What AdaMerging takes of Pareto Merging's settings: data, steps, rate and start; no regularisers."""
    return replace(training, scalarisation="linear", beta_cos=0.0, beta_norm=0.0, rank=1)


class AdaMerging(ParetoMerging):
    """Layer-wise AdaMerging for one preference: λ alone, minimising Σ γ_k f_k (Pareto Merging, equation 4).

    With equal preference and without balance it is AdaMerging itself (equation 1). It runs through the same
    steps as Pareto Merging, so that both see the same images, and their times can be compared. λ stays within
    [0, 1], as in Yang et al.'s code; here by moving it back after each step.

    Args:
        evaluator: As for `ParetoMerging`.
        gamma: The preference (K,).
        training: What `adamerging_training` makes of one.
        seed: Decides which images are drawn.
    """

    def __init__(
        self, evaluator: Evaluator, gamma: Sequence[float], training: Training, *, seed: int = 0
    ) -> None:
        super().__init__(evaluator, training, seed=seed, structure=Nothing)
        self._gamma = torch.tensor(gamma, dtype=torch.float32, device=evaluator.device)

    def step(self) -> tuple[Tensor, Tensor]:
        """Takes one step, as `ParetoMerging.step`."""
        taken = super().step()
        with torch.no_grad():
            self._lambdas.clamp_(0, 1)
        return taken

    def _scalarised(self, f: Tensor, gamma: Tensor) -> Tensor:
        """The objective for the one preference, whatever was drawn."""
        del gamma
        return super()._scalarised(f, self._gamma)
