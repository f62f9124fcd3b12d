"""The table of Compare: one row a model, which can be opened, exported and saved as CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.units import axis_title
from mapmerge_core.studies.analysis.comparing import Comparison, Row, to_table
from mapmerge_core.studies.runs.targets import slug
from pages.parts.shared import choice as choosing
from pages.parts.shared import shell, state
from pages.parts.shared.choice import Choice

if TYPE_CHECKING:
    import pandas as pd


KINDS = {"run": "Run", "baseline": "Baseline", "single": "Reference", "pretrained": "Reference"}


def _key(comparison: Comparison) -> str:
    # New rows move others, and with them what a row's number stands for.
    return f"compare_table_{comparison.study_id}_{len(comparison.rows)}"


def chosen(comparison: Comparison) -> Row | None:
    """Return the row that the visitor chose in the table, if any."""
    rows = st.session_state.get(_key(comparison), {}).get("selection", {}).get("rows", [])
    return comparison.rows[rows[0]] if rows and rows[0] < len(comparison.rows) else None


def draw(comparison: Comparison, row: Row | None, *, normalise: bool) -> None:
    """Draw what can be done with the chosen row, then the table."""
    table = to_table(comparison, normalise)
    study = state.store().studies.get(comparison.study_id)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("All models", anchor=False, width="content")
        buttons(comparison.study_id, row)
        st.download_button(
            "Download CSV",
            table.to_csv(index=False),
            f"{slug(study.name)}-comparison.csv",
            "text/csv",
            key="compare_csv",
            icon=":material/table:",
            on_click="ignore",
        )
        # Last, as the table's own tools cover what stands here.
        st.caption("Choose a row to open or export its model." if row is None else f"**{shell.plain(row.name)}**")
    show(table, comparison, normalise=normalise)
    for other in comparison.rows:
        if other.problem:
            st.caption(f":material/info: {shell.plain(other.name)}: {shell.plain(other.problem)}")


def buttons(study_id: int, row: Row | None) -> None:
    """Draw the ways on from a row: open its model on Trade-offs, or export it."""
    model, reason = None, None
    is_drawable = False
    if row is not None and row.x is not None:
        model = Choice("compared", row.merge_id, row.x, {"kind": "compared", "name": row.name})
        is_drawable = choosing.is_predictable(state.analysis(study_id, rough=True), row.merge_id)
    if row is not None and not is_drawable:
        reason = row.problem or "Its merge has too few points for surrogates: evaluate more first."
    opens = st.button(
        "Open on Trade-offs", key="compare_open", icon=":material/balance:", disabled=not is_drawable, help=reason
    )
    exports = st.button("Export this model", key="compare_export", icon=":material/download:", disabled=model is None)
    if row is None or model is None:
        return
    if opens:
        choosing.remember(study_id, model)
        shell.go("pages/trade_offs.py", study_id)
    if exports:
        with shell.errors_shown():
            choosing.export(study_id, model, name=row.name)


def show(table: pd.DataFrame, comparison: Comparison, *, normalise: bool) -> None:
    """Draw the table itself, the best of runs and baselines shaded in each column."""
    objectives = comparison.objectives
    names = list(table.columns[2 : 2 + len(objectives)])
    percents = {name: normalise or objective.metric.is_share for name, objective in zip(names, objectives, strict=True)}
    percents |= dict.fromkeys(("mean", "worst"), all(percents.values()))
    percents["preference"] = normalise or all(metric.is_share for metric in comparison.weighed)
    frame = table.drop(columns="wins").assign(kind=table["kind"].map(KINDS))
    for name, is_percent in percents.items():
        frame[name] *= 100.0 if is_percent else 1.0
    titles = [
        f"{objective.name}, percent of the single model" if normalise else axis_title(objective.name, objective.metric)
        for objective in objectives
    ]
    columns = {
        name: st.column_config.NumberColumn(
            label, format="%.1f %%" if percents[name] else "%.3f", help=help_, width=30 + 8 * len(label)
        )
        for name, label, help_ in [
            *((name, name, title) for name, title in zip(names, titles, strict=True)),
            ("mean", "Mean", "Mean over the objectives"),
            ("worst", "Worst", "The worst objective's"),
            ("preference", "Preference", f"The metrics, weighed by your preference{direction(comparison)}"),
        ]
    }
    config = {
        **columns,
        "model": st.column_config.TextColumn("Model", width=232, pinned=True),
        "kind": st.column_config.TextColumn("Kind", width=84),
        "hypervolume": st.column_config.NumberColumn(
            "Hypervolume",
            format="%.3f",
            width=96,
            help="What the row's models dominate, in shares of the single models' metrics: 1 if as good.",
        ),
        "evaluations": st.column_config.NumberColumn(
            "Evaluations", format="localized", width=92, help="Of one model on one validation split."
        ),
        "seconds": st.column_config.NumberColumn(
            "Seconds", format="%.1f s", width=84, help="What those evaluations and preparing the merge took."
        ),
    }
    st.dataframe(
        shaded(frame, names, comparison),
        hide_index=True,
        height="content",
        key=_key(comparison),
        placeholder="–",
        alt="Each model's metrics on the test split",
        on_select="rerun",
        selection_mode="single-row",
        column_config=config,
        # Beside many objectives there is no room for what the bars show, and what the order says.
        column_order=[name for name in frame if len(names) <= 4 or name not in ("kind", "preference")],
    )


def direction(comparison: Comparison) -> str:
    """Return what has to be said of the weighted sums where less of some metric is better."""
    if comparison.falls:
        return "; less is better"
    down = not all(metric.maximize for metric in comparison.weighed)
    return "; what goes down counts negatively, so that more is better" if down else ""


def shaded(frame: pd.DataFrame, names: list[str], comparison: Comparison) -> pd.io.formats.style.Styler:
    """Return the frame with the best of runs and baselines shaded in each column of metrics."""
    mine = [row.kind in ("run", "baseline") for row in comparison.rows]
    colour = shell.palette().sequential[2]
    maximize = comparison.maximize
    upward = dict(zip(names, maximize, strict=True))
    upward |= {"preference": not comparison.falls, "hypervolume": True}
    if len(set(maximize)) == 1:
        upward |= dict.fromkeys(("mean", "worst"), maximize[0])

    def best(column: pd.Series) -> list[str]:
        values = column.where(mine)
        top = values.max() if upward[column.name] else values.min()
        return [f"background-color: {colour}" if value == top else "" for value in values]

    return frame.style.apply(best, subset=list(upward))
