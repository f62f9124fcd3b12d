"""The figures of Compare: all models together, and how well each serves the preference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from mapmerge_core.charts.bars import Bar, weighted_bars, weighted_info
from mapmerge_core.charts.compare import Entry, compare_info, parallel
from mapmerge_core.charts.compare_fronts import fronts
from pages.parts.shared import shell

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.comparing import Comparison, Row


def models(comparison: Comparison, chosen: Row | None, *, normalise: bool) -> None:
    """Draw fronts and points of two or three objectives, one line a model for any other number."""
    names = [objective.name for objective in comparison.objectives]
    as_fronts = len(names) in (2, 3)
    info = compare_info(
        names,
        [objective.metric for objective in comparison.objectives],
        [entry(row, len(names)) for row in comparison.rows],
        comparison.single,
        normalise=normalise,
        chosen=chosen.key if chosen else None,
    )
    if not any(entry.kind in ("run", "baseline") for entry in info.entries):
        st.info(
            "Nothing is measured on the test split yet: **Run all baselines** measures the runs, too.",
            icon=":material/straighten:",
        )
        return
    figure = fronts if as_fronts else parallel
    st.plotly_chart(figure(info, shell.palette()), key="compare_chart", theme=None, config=shell.PLOT)
    if as_fronts:
        st.caption(
            "Points are measured models, each for another preference; a ring marks the one for yours. "
            "Choose a name to hide or show it."
        )
    else:
        st.caption("Each run's model for your preference. Choose a name to hide or show it.")


def entry(row: Row, n_objectives: int) -> Entry:
    """Return a row as the figures show it."""
    front = np.empty((0, n_objectives)) if row.front is None else row.front
    return Entry(row.key, row.name, row.kind, row.metrics, front)


def preferences(comparison: Comparison, chosen: Row | None, *, normalise: bool) -> None:
    """Draw bars of the preference-weighted sum, and how often the study's front wins over sampled preferences."""
    info = weighted_info(
        [
            Bar(row.key, row.name, row.kind, *comparison.weighted(row, normalise))
            for row in comparison.rows
            if row.kind != "single"
        ],
        comparison.weighed,
        comparison.single_weighted(normalise),
        normalise=normalise,
        chosen=chosen.key if chosen else None,
    )
    if not info.bars:
        return
    left, right = st.columns([1.5, 1], gap="large")
    with left:
        st.subheader("For your preference", anchor=False)
        st.plotly_chart(
            weighted_bars(info, shell.palette()), key="compare_bars", theme=None, config={"displayModeBar": False}
        )
        st.caption(explanation(comparison))
    with right:
        st.subheader(f"Over {len(comparison.preferences)} preferences", anchor=False)
        wins(comparison)


def explanation(comparison: Comparison) -> str:
    """Return what the bars are."""
    sentences = ["The metrics weighed by your preference, with 90% intervals."]
    if not comparison.has_intervals:
        sentences = ["The metrics weighed by your preference. 90% intervals are known for accuracies only."]
    if comparison.falls:
        sentences.append("Less is better.")
    elif not all(metric.maximize for metric in comparison.weighed):
        sentences.append("What goes down counts negatively: more is better.")
    if not np.isnan(comparison.single_weighted()):
        sentences.append("Dotted: every objective by its single model.")
    return " ".join(sentences)


def wins(comparison: Comparison) -> None:
    """Draw on which share of the sampled preferences the study's front does better than each other row."""
    winner = comparison.winner
    rows = [row for row in comparison.rows if row.key in comparison.wins and row.kind != "single"]
    if winner is None or not rows:
        st.caption("Once a run that leads to a front and other rows are measured, this says how often it does better.")
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
        alt=f"On which share of the sampled preferences {winner.name} is better than each other model",
        column_config={
            "against": st.column_config.TextColumn(f"{winner.name} against"),
            "wins": st.column_config.ProgressColumn("Wins", format="percent", min_value=0.0, max_value=1.0, width=110),
            "error": st.column_config.NumberColumn(
                "±", format="%.0f %%", width=60, help="Standard error of the share."
            ),
        },
    )
    st.caption(
        f"Sampled preferences; for each, the model of {shell.plain(winner.name)} for it against the other row's. "
        "Half is no difference."
    )
