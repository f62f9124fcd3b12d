"""The figures of Compare: all models together, and how well each serves the preference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from mapmerge_core.charts.compare import Entry, Kind, compare_info, parallel
from mapmerge_core.charts.compare_bars import Bar, bars_info, weighted_bars
from mapmerge_core.charts.compare_fronts import fronts
from pages.parts.shared import shell

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.comparing import Comparison, Row

WINNER = "MAP"
"""Whose wins are counted."""


def models(comparison: Comparison, chosen: Row | None, *, normalise: bool) -> None:
    """Fronts and points of two or three tasks, one line a model for more."""
    few = len(comparison.tasks) <= 3
    info = compare_info(
        comparison.tasks,
        comparison.metrics,
        [entry(row, len(comparison.tasks)) for row in comparison.rows],
        comparison.single,
        normalise=normalise,
        chosen=chosen.key if chosen else None,
    )
    if not any(found.kind in ("run", "baseline") for found in info.entries):
        st.info(
            "Nothing is measured on the test split yet: **Run all baselines** measures the runs, too.",
            icon=":material/straighten:",
        )
        return
    figure = fronts if few else parallel
    st.plotly_chart(figure(info, shell.palette()), key="compare_chart", theme=None, config=shell.PLOT)
    if few:
        st.caption(
            "Points are measured models, each for another preference; a ring marks the one for yours. "
            "Choose a name to hide or show it."
        )
    else:
        st.caption("Each run's model for your preference. Choose a name to hide or show it.")


def entry(row: Row, n_tasks: int) -> Entry:
    """A row as the figures show it."""
    front = np.empty((0, n_tasks)) if row.front is None else row.front
    return Entry(row.key, row.name, kind(row), row.metrics, front)


def kind(row: Row) -> Kind:
    """A row's kind as the figures tell it."""
    if row.kind != "reference":
        return row.kind
    return "pretrained" if row.method == "pretrained" else "single"


def preferences(comparison: Comparison, chosen: Row | None, *, normalise: bool) -> None:
    """Bars of the preference-weighted sum, and how often MAP wins over sampled preferences."""
    bars = [
        Bar(row.key, row.name, kind(row), *comparison.weighted(row, normalise))
        for row in comparison.rows
        if kind(row) != "single"
    ]
    info = bars_info(
        bars,
        comparison.weighed,
        comparison.own_weighted(normalise),
        normalise=normalise,
        chosen=chosen.key if chosen else None,
    )
    if not info.bars:
        return
    left, right = st.columns([1.5, 1], gap="large")
    with left:
        st.subheader("For your preference", anchor=False)
        st.plotly_chart(
            weighted_bars(info, shell.palette()),
            key="compare_bars",
            theme=None,
            config={"displayModeBar": False},
        )
        st.caption(said(comparison))
    with right:
        st.subheader(f"Over {len(comparison.preferences)} preferences", anchor=False)
        wins(comparison)


def said(comparison: Comparison) -> str:
    """What the bars are."""
    sentences = ["The tasks' metrics weighed by your preference, with 90% intervals."]
    if not comparison.has_intervals:
        sentences = ["The tasks' metrics weighed by your preference. 90% intervals are known for accuracies only."]
    if comparison.falls:
        sentences.append("Less is better.")
    elif not all(metric.maximize for metric in comparison.weighed):
        sentences.append("What goes down counts negatively: more is better.")
    return " ".join([*sentences, "Dotted: every task by its own model."])


def wins(comparison: Comparison) -> None:
    """On which share of the sampled preferences MAP does better than each other row."""
    rows = [row for row in comparison.rows if row.key in comparison.wins and kind(row) != "single"]
    if not rows:
        st.caption("Once a MAP run and other rows are measured, this says how often MAP does better.")
        return
    frame = pd.DataFrame(
        {
            "against": [row.name for row in rows],
            "wins": [comparison.wins[row.key][0] for row in rows],
            "error": [100 * comparison.wins[row.key][1] for row in rows],
        }
    )
    st.dataframe(
        frame,
        hide_index=True,
        height="content",
        key="compare_wins",
        alt="On which share of the sampled preferences MAP is better than each other model",
        column_config={
            "against": st.column_config.TextColumn("MAP against"),
            "wins": st.column_config.ProgressColumn("Wins", format="percent", min_value=0.0, max_value=1.0, width=110),
            "error": st.column_config.NumberColumn(
                "±", format="%.0f %%", width=60, help="Standard error of the share."
            ),
        },
    )
    st.caption("Sampled preferences; for each, MAP's model for it against the other row's. Half is no difference.")
