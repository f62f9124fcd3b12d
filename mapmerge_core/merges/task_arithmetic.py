"""Task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mapmerge_core.merges.base import Needs, register
from mapmerge_core.merges.linear import LinearMerge

if TYPE_CHECKING:
    import numpy as np


@register
class TaskArithmetic(LinearMerge):
    """Add a multiple of each task vector to the pre-trained model."""

    name = "task_arithmetic"
    title = "Task arithmetic"
    source = "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023"
    needs = Needs()
    searches_scalar = True

    def baselines(self, models: Sequence[str]) -> tuple[tuple[str, np.ndarray], ...]:
        return ((f"{self.title}, {self.default:g}", self.space(models).default),)
