"""How sure several models are of unlabelled data: a bar for each, the surest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from mapmerge_core.charts.palette import Palette, draw, translucent
from mapmerge_core.charts.units import entry_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mapmerge_core.charts.units import Made


@dataclass(frozen=True, eq=False)
class EntropiesInfo:
    """What the bars show.

    Attributes:
        tasks: K names.
        points: The models' coefficients or preferences (``n x K``), that of the least entropy first.
        entropies: Their mean entropies in nats (n,), ascending.
        made_by: Which of the two ``points`` holds.
    """

    tasks: tuple[str, ...]
    points: NDArray[np.float64]
    entropies: NDArray[np.float64]
    made_by: Made


def entropies_info(
    tasks: Sequence[str],
    points: NDArray[np.float64],
    entropies: NDArray[np.float64],
    made_by: Made = "coefficients",
) -> EntropiesInfo:
    """Sorts models by how sure they are.

    Args:
        tasks: K names.
        points: Coefficients or preferences, ``n x K``.
        entropies: Mean entropies in nats (n,).
        made_by: Which of the two ``points`` holds.
    """
    order = np.argsort(entropies, kind="stable")
    return EntropiesInfo(tuple(tasks), points[order], entropies[order], made_by)


def entropy_bars(info: EntropiesInfo, palette: Palette, *, height: int = 190) -> go.Figure:
    """One bar a model, ascending; the chosen one, which is the first, in the pick's colour."""
    hovers = [
        "<br>".join(
            f"{task}  {entry_text(entry, info.made_by)}"
            for task, entry in zip(info.tasks, point, strict=True)
        )
        for point in info.points
    ]
    colours = [palette.pick, *[translucent(palette.front, 0.55)] * (len(info.entropies) - 1)]
    bars = go.Bar(
        x=np.arange(1, len(info.entropies) + 1),
        y=info.entropies,
        marker={"color": colours, "cornerradius": 2, "line": {"width": 0}},
        customdata=hovers,
        hovertemplate="<b>%{y:.3f} nats</b><br>%{customdata}<extra></extra>",
    )
    return draw(
        [bars],
        palette,
        height=height,
        bargap=0.25,
        margin={"l": 16, "r": 8, "t": 8, "b": 16},
        xaxis={"showgrid": False, "showticklabels": False, "title": {"text": "Models, the surest first"}},
        yaxis={"title": {"text": "Entropy (nats)"}, "nticks": 4},
    )
