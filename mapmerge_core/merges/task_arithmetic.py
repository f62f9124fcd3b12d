from __future__ import annotations

from typing import TYPE_CHECKING

from mapmerge_core.merges.base import LinearMerge, Needs, register
from mapmerge_core.search.spaces import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mapmerge_core.search.spaces import Space

_DEFAULT = 0.3


@register
class TaskArithmetic(LinearMerge):
    """Add a multiple of each task vector to the pre-trained model."""

    name = "task_arithmetic"
    title = "Task arithmetic"
    source = "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023"
    needs = Needs()
    searches_scalar = True

    def space(self, models: Sequence[str]) -> Space:
        return Box(tuple(models), default=_DEFAULT)

    def baselines(self, models: Sequence[str]) -> tuple[tuple[str, np.ndarray], ...]:
        return ((f"{self.title}, {_DEFAULT:g}", self.space(models).default),)
