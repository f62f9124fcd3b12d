"""Merges that only these experiments have, registered as any other package's: structures, and AdaMerging."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.pareto_merging.personalisations import STRUCTURES, Nothing
from mapmerge_core.merges._pareto_set import Block, Personalisation, PreparedParetoMerging
from mapmerge_core.merges._pareto_training import ParetoTraining
from mapmerge_core.merges._sparse import trimmed
from mapmerge_core.merges._state import read_state
from mapmerge_core.merges.base import PreparedMerge, register, state_file
from mapmerge_core.merges.pareto_merging import ParetoMerging
from mapmerge_core.settings import setting, settings

if TYPE_CHECKING:
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.streamed import Vectors
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors


@register
class StructuredMerging(ParetoMerging):
    """Learn as Pareto Merging does, with another structure of what a preference adds to a matrix."""

    name = "structured_merging"
    title = "Pareto Merging, another structure"

    @settings
    class Settings(ParetoMerging.Settings):
        """Those of Pareto Merging, and the structure."""

        structure: str = setting("loras", help="One of the benchmarks' structures.")

    @property
    def structure(self) -> type[Personalisation]:
        """What makes the structure."""
        return STRUCTURES[self.settings.structure][1]

    def training(self, evaluator: Evaluator, vectors: TaskVectors) -> ParetoTraining:
        """Return a training run before its first step."""
        return ParetoTraining(evaluator, vectors, self, structure=self.structure)

    def load(self, state: Path | None, vectors: Vectors, exported: Vectors) -> PreparedMerge:
        """Read what was trained, see `Merge.load`."""
        vectors, exported = trimmed(vectors, exported, self.settings.keep)
        header, tensors = read_state(state_file(state, self), self, exported)
        lambdas = tensors.pop("lambda").numpy()
        blocks = [Block(**values) for values in header["blocks"]]
        personalisation = self.structure(blocks, len(exported), self.settings.rank, self.settings.seed)
        personalisation.load_state_dict(tensors)
        personalisation.requires_grad_(requires_grad=False)
        return PreparedParetoMerging(self, vectors, exported, lambdas, personalisation)


@register
class PreferredAdaMerging(StructuredMerging):
    """Learn layer-wise AdaMerging for one preference: λ alone, minimising Σ γ_k f_k (equation 4)."""

    name = "preferred_adamerging"
    title = "AdaMerging + preference"

    @settings
    class Settings(ParetoMerging.Settings):
        """Those of Pareto Merging, and the preference."""

        gamma: dict[str, float] | None = setting(None, help="The preference: shares of the models; equal if left out.")

    @property
    def structure(self) -> type[Personalisation]:
        """What makes the structure: none."""
        return Nothing

    def training(self, evaluator: Evaluator, vectors: TaskVectors) -> ParetoTraining:
        """Return a training run before its first step."""
        return AdaMergingTraining(evaluator, vectors, self)


class AdaMergingTraining(ParetoTraining):
    """Learns λ for one preference (Pareto Merging, section 3.1).

    With equal preference and without balance it is AdaMerging itself (equation 1). It runs through the same
    steps as Pareto Merging, so that both see the same images, and their times can be compared. λ stays within
    [0, 1], as in Yang et al.'s code; here by moving it back after each step.
    """

    def __init__(self, evaluator: Evaluator, vectors: TaskVectors, merge: PreferredAdaMerging) -> None:
        super().__init__(evaluator, vectors, merge, structure=Nothing)
        shares = merge.settings.gamma or dict.fromkeys(vectors.names, 1 / len(vectors))
        gamma = [shares[model] for model in vectors.names]
        self._gamma = torch.tensor(gamma, dtype=torch.float32, device=evaluator.device)

    def step(self) -> tuple[Tensor, Tensor]:
        """Take one step, see `ParetoTraining.step`."""
        taken = super().step()
        with torch.no_grad():
            self._lambdas.clamp_(0, 1)
        return taken

    def _scalarised(self, f: Tensor, gamma: Tensor) -> Tensor:
        """Return the objective for the one preference, whatever was drawn."""
        del gamma
        return super()._scalarised(f, self._gamma)
