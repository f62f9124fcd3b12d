"""Model soups."""

from __future__ import annotations

from collections.abc import Sequence

from mapmerge_core.merges.base import Needs, register
from mapmerge_core.merges.linear import LinearMerge
from mapmerge_core.search.spaces import Simplex, Space


@register
class Soup(LinearMerge):
    """Average the fine-tuned models, each with a weight."""

    name = "soup"
    title = "Model soup"
    source = "Wortsman et al., Model Soups, ICML 2022"
    needs = Needs()

    def space(self, models: Sequence[str]) -> Space:
        return Simplex(tuple(models))
