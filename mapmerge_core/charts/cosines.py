"""Cosines between task vectors: how much one fine-tuning changed what another one did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mapmerge_core.charts.palette import Palette, draw


def cosine_heatmap(
    names: Sequence[str], cosines: NDArray[np.float64], palette: Palette, *, height: int | None = None
) -> go.Figure:
    """Draw the cosines between task vectors (``N x N``) with their figures, the diagonal left blank."""
    values = np.array(cosines, dtype=np.float64)
    np.fill_diagonal(values, np.nan)
    limit = max(0.1, float(np.nanmax(np.abs(values)))) if len(names) > 1 else 1.0
    texts = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in values]
    heatmap = go.Heatmap(
        z=values,
        x=list(names),
        y=list(names),
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 12},
        colorscale=palette.scale,
        zmin=min(0.0, float(np.nanmin(values))) if len(names) > 1 else 0.0,
        zmax=limit,
        xgap=2,
        ygap=2,
        hovertemplate="%{y} and %{x}<br>cosine %{z:.3f}<extra></extra>",
        showscale=False,
    )
    return draw(
        [heatmap],
        palette,
        height=height or 120 + 40 * len(names),
        xaxis={"showgrid": False, "tickangle": 0 if len(names) <= 4 else -35},
        yaxis={"showgrid": False, "autorange": "reversed"},
    )
