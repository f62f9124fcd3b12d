"""Colours, and the look that every figure shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from plotly.basedatatypes import BaseTraceType


@dataclass(frozen=True)
class Palette:
    """The colours of one theme, as CSS hex strings; those of ``.streamlit/config.toml``.

    Each role keeps its colour in every figure: the front, the pick, single-task models and so on.
    """

    text: str
    muted: str
    grid: str
    background: str
    front: str
    pick: str
    single: str
    pretrained: str
    measured: str
    categorical: tuple[str, ...]
    sequential: tuple[str, ...]

    @property
    def scale(self) -> list[list[float | str]]:
        """Return ``sequential`` as a Plotly colour scale, low values nearest to the background."""
        last = len(self.sequential) - 1
        return [[index / last, colour] for index, colour in enumerate(self.sequential)]

    def of_merge(self, number: int) -> str:
        """Return the colour of a study's merge by its number: the front's for the first, never that of a role."""
        roles = (self.front, self.pick, self.single, self.pretrained)
        others = [colour for colour in self.categorical if colour not in roles]
        return [self.front, *others][number % (len(others) + 1)]


LIGHT = Palette(
    text="#1c2526",
    muted="#687476",
    grid="#e4e8e6",
    background="#fbfbfa",
    front="#0b7a75",
    pick="#d9730d",
    single="#3b6fb6",
    pretrained="#5b6770",
    measured="#98a3a4",
    categorical=(
        "#0b7a75",
        "#d9730d",
        "#3b6fb6",
        "#c2456f",
        "#7a8b1f",
        "#7b5ea7",
        "#8c5a3c",
        "#2a9db5",
        "#c49a12",
        "#5b6770",
    ),
    sequential=(
        "#edf6f1",
        "#d8ece3",
        "#bfe0d4",
        "#a2d3c6",
        "#82c4b8",
        "#60b2aa",
        "#3f9e9b",
        "#21878a",
        "#0f6d74",
        "#0a515b",
    ),
)

DARK = Palette(
    text="#e3e9e7",
    muted="#94a1a2",
    grid="#273132",
    background="#121819",
    front="#3fbfb2",
    pick="#f0a04b",
    single="#7fa9e6",
    pretrained="#a3b0b8",
    measured="#65727a",
    categorical=(
        "#3fbfb2",
        "#f0a04b",
        "#7fa9e6",
        "#ea86a8",
        "#b5c65a",
        "#b49ae0",
        "#c99a7c",
        "#6dcbe0",
        "#e3c35a",
        "#a3b0b8",
    ),
    sequential=(
        "#15282b",
        "#173a3d",
        "#194d50",
        "#1c6163",
        "#227776",
        "#2f8e89",
        "#4aa59b",
        "#70bbad",
        "#9bd0c0",
        "#cbe6d7",
    ),
)


FONT = "Inter, sans-serif"


@lru_cache
def template(palette: Palette) -> go.layout.Template:
    """Return the look that every figure shares: quiet grid, legend above, margins that clip nothing."""
    axis = {
        "gridcolor": palette.grid,
        "linecolor": palette.grid,
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"font": {"color": palette.text, "size": 13}, "standoff": 10},
        "tickfont": {"color": palette.muted, "size": 12},
    }
    bar = {
        "thickness": 12,
        "outlinewidth": 0,
        "tickfont": {"color": palette.muted},
        "title": {"side": "right", "font": {"color": palette.text, "size": 13}},
    }
    return go.layout.Template(
        layout={
            "margin": {"l": 16, "r": 16, "t": 40, "b": 16},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": palette.text, "size": 13, "family": FONT},
            "legend": {
                "orientation": "h",
                "yanchor": "bottom",
                "y": 1.02,
                "xanchor": "left",
                "x": 0.0,
                "font": {"size": 12},
                "itemsizing": "constant",
            },
            "hoverlabel": {
                "bgcolor": palette.background,
                "bordercolor": palette.grid,
                "font": {"color": palette.text, "size": 12, "family": FONT},
                "align": "left",
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": palette.muted, "activecolor": palette.text},
            "xaxis": axis,
            "yaxis": axis,
            "coloraxis": {"colorscale": palette.scale, "colorbar": bar},
        }
    )


def draw(
    traces: Sequence[BaseTraceType], palette: Palette, *, height: int, live: bool = False, **layout: object
) -> go.Figure:
    """Return a figure in the shared look, made in one step: changing a figure afterwards is many times slower.

    Args:
        traces: What is drawn.
        palette: Colours.
        height: Pixels.
        live: Whether the figure is redrawn while a person may be zooming in it; their zoom is then kept.
        layout: Further Plotly layout.
    """
    look = {"template": template(palette), "height": height, "uirevision": "live" if live else None}
    return go.Figure(list(traces), layout=look | layout)


def interval(
    values: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64], colour: str
) -> dict[str, object]:
    """Return Plotly's error bars from ``lower`` to ``upper`` about ``values``, each (n,)."""
    ends = {"array": upper - values, "arrayminus": values - lower}
    return {"type": "data", "symmetric": False, **ends, "color": colour, "thickness": 1.4, "width": 4}


def parts(figure: go.Figure) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a figure's traces and layout as plain values, for `assembled`."""
    return [trace.to_plotly_json() for trace in figure.data], figure.layout.to_plotly_json()


def assembled(traces: Sequence[BaseTraceType | dict[str, Any]], layout: dict[str, Any]) -> go.Figure:
    """Return a figure of what other figures were made of, without Plotly checking every value again.

    Args:
        traces: Traces, or those of `parts`; they stay as they are.
        layout: The layout of `parts`; it stays as it is.
    """
    # Plotly takes a trace's type out of the dictionary for a moment, which other threads may be reading.
    own = [dict(trace) if isinstance(trace, dict) else trace for trace in traces]
    return go.Figure(own, layout, _validate=False)


def translucent(colour: str, opacity: float) -> str:
    """Return ``colour`` (``#rrggbb``) as a CSS ``rgba()`` with the given opacity in [0, 1]."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
