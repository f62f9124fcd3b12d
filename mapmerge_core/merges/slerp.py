"""Spherical linear interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.merges.base import Merge, Needs, PreparedMerge, register
from mapmerge_core.search.spaces import Simplex, Space

if TYPE_CHECKING:
    from mapmerge_core.weights.vectors.streamed import Vectors


@register
class Slerp(Merge):
    """Move along the arc from one model to another, tensor by tensor."""

    name = "slerp"
    title = "SLERP"
    source = "Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985"
    needs = Needs(whole_models=True, n_models=2)

    def space(self, models: Sequence[str]) -> Space:
        self.check_models(models)
        return Simplex(tuple(models))

    def load(self, state: Path | None, vectors: Vectors, exported: Vectors) -> PreparedMerge:
        del state
        from mapmerge_core.merges._averages import PreparedSlerp
        from mapmerge_core.weights.vectors.streamed import in_memory

        self.check_models(exported.names)
        return PreparedSlerp(self, in_memory(vectors), in_memory(exported))
