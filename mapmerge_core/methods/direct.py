"""Direct search: evaluate a large design and keep what nothing dominates (MAP, Section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mapmerge_core.methods.base import register
from mapmerge_core.methods.map import MAP

if TYPE_CHECKING:
    from mapmerge_core.search.spaces import Space


@register
class DirectSearch(MAP):
    """Sample as MAP does, but more, and keep the measured points that no other dominates, without surrogates."""

    name = "direct"
    title = "Direct search"
    source = "MAP (ICLR 2025), Section 5.2"
    advice = "a check on the others"
    is_front = "measured"
    paper_points: ClassVar[dict[int, int]] = {2: 200, 3: 300, 4: 300, 5: 500, 6: 500, 7: 1000, 8: 1000}

    @classmethod
    def default_points(cls, space: Space) -> int:
        return cls.paper_points[min(max(space.n, 2), 8)]
