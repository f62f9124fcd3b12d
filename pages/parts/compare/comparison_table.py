"""The table of Compare: one row a model, which can be opened, exported and saved as CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.units import shared_title
from mapmerge_core.studies.analysis.comparing import to_table
from mapmerge_core.studies.runs.exporting import slug
from pages.parts.shared import choice as choosing
from pages.parts.shared import shell, state
from pages.parts.trade_offs import learned_choice

if TYPE_CHECKING:
    import pandas as pd

    from mapmerge_core.studies.analysis.comparing import Comparison, Row

KINDS = {"run": "Run", "baseline": "Baseline", "reference": "Reference"}


def _key(comparison: Comparison) -> str:
    # New rows move others, and with them what a row's number stands for.
    return f"compare_table_{comparison.study_id}_{len(comparison.rows)}"


def chosen(comparison: Comparison) -> Row | None:
    """The row that the visitor chose in the table, if any."""
    rows = st.session_state.get(_key(comparison), {}).get("selection", {}).get("rows", [])
    return comparison.rows[rows[0]] if rows and rows[0] < len(comparison.rows) else None


def draw(comparison: Comparison, row: Row | None, *, normalise: bool) -> None:
    """What can be done with the chosen row, then the table."""
    table = to_table(comparison, normalise)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("All models", anchor=False, width="content")
        buttons(row)
        study = state.store().study(comparison.study_id)
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
    tasks = list(table.columns[2 : 2 + len(comparison.tasks)])
    show(table, tasks, comparison, normalise=normalise)
    for found in comparison.rows:
        if found.problem:
            st.caption(f":material/info: {shell.plain(found.name)}: {shell.plain(found.problem)}")


def buttons(row: Row | None) -> None:
    """Open the row's model on Trade-offs, or export it."""
    no_c = row is not None and row.c is None and row.gamma is None
    drawable = (
        row is not None
        and not no_c
        and (row.gamma is not None or state.analysis(row.study_id, rough=True).surrogates is not None)
    )
    reason = None
    if no_c:
        reason = row.problem or "This model is no sum of task vectors, so it has no place among the trade-offs."
    elif row is not None and not drawable:
        reason = "Its study has too few points for surrogates."
    if st.button(
        "Open on Trade-offs",
        key="compare_open",
        icon=":material/balance:",
        disabled=not drawable,
        help=reason,
    ):
        open_on_trade_offs(row)
    exportable = row is not None and (not no_c or row.baseline_id is not None)
    if st.button("Export this model", key="compare_export", icon=":material/download:", disabled=not exportable):
        with shell.errors_shown():
            export(row)


def open_on_trade_offs(row: Row) -> None:
    """Go to Trade-offs with the row's model as the pick."""
    if row.gamma is not None:
        learned_choice.remember(row.run_id, learned(row))
        shell.go("pages/trade_offs.py", row.study_id, learned=str(row.run_id))
    choosing.remember(row.study_id, choosing.Choice("compared", row.c, how(row)))
    learned_choice.show_front(row.study_id)
    shell.go("pages/trade_offs.py", row.study_id)


def learned(row: Row) -> learned_choice.LearnedChoice:
    """The preference that a learned set's row is about, as a choice."""
    return learned_choice.LearnedChoice("compared", row.gamma, how(row))


def how(row: Row) -> dict[str, str]:
    """How a pick of the row's model was chosen, as a PickRow keeps it."""
    return {"kind": "compared", "name": row.name}


def export(row: Row) -> None:
    """Start to write the row's model and go to watch it."""
    if row.baseline_id is not None:
        state.export("baseline", row.baseline_id)
        shell.go("pages/export.py", row.study_id, baseline=str(row.baseline_id))
    if row.gamma is not None:
        pick = learned_choice.kept(row.run_id, learned(row), name=row.name)
        state.export("learned", pick.id)
        shell.go("pages/export.py", row.study_id, learned_pick=str(pick.id))
    pick = choosing.kept(row.study_id, choosing.Choice("compared", row.c, how(row)), name=row.name)
    state.export("pick", pick.id)
    shell.go("pages/export.py", row.study_id, pick=str(pick.id))


def show(table: pd.DataFrame, tasks: list[str], comparison: Comparison, *, normalise: bool) -> None:
    """The table itself, the best of runs and baselines shaded in each column."""
    percents = {task: normalise or metric.is_share for task, metric in zip(tasks, comparison.metrics, strict=True)}
    percents |= dict.fromkeys(("mean", "worst"), all(percents.values()))
    percents["preference"] = normalise or all(metric.is_share for metric in comparison.weighed)
    frame = table.drop(columns="MAP wins").assign(kind=table["kind"].map(KINDS))
    for name, is_percent in percents.items():
        frame[name] *= 100.0 if is_percent else 1.0
    relative = "Percent of the task's own model"
    titles = [relative if normalise else shared_title(metric) for metric in comparison.metrics]
    what = " and ".join(dict.fromkeys(titles))
    columns = {
        name: st.column_config.NumberColumn(
            label, format="%.1f %%" if percents[name] else "%.3f", help=help_, width=30 + 8 * len(label)
        )
        for name, label, help_ in [
            *((task, task, title) for task, title in zip(tasks, titles, strict=True)),
            ("mean", "Mean", f"{what}, mean over tasks"),
            ("worst", "Worst", f"{what}, the worst task's"),
            ("preference", "Preference", f"{what}, weighed by your preference{direction(comparison)}"),
        ]
    }
    columns |= {
        "model": st.column_config.TextColumn("Model", width=232, pinned=True),
        "kind": st.column_config.TextColumn("Kind", width=84),
        "hypervolume": st.column_config.NumberColumn(
            "Hypervolume",
            format="%.3f",
            width=96,
            help="What the row's models dominate, in shares of single-task models' metrics: 1 if as good.",
        ),
        "evaluations": st.column_config.NumberColumn(
            "Evaluations", format="localized", width=92, help="Of one model on one task's validation split."
        ),
        "seconds": st.column_config.NumberColumn(
            "Seconds", format="%.1f s", width=84, help="What those evaluations and making the merge took."
        ),
    }
    st.dataframe(
        shaded(frame, tasks, comparison),
        hide_index=True,
        height="content",
        key=_key(comparison),
        placeholder="–",
        alt="Each model's metrics on the test split",
        on_select="rerun",
        selection_mode="single-row",
        column_config=columns,
        # Beside many tasks there is no room for what the bars show, and what the order says.
        column_order=[name for name in frame if len(tasks) <= 4 or name not in ("kind", "preference")],
    )


def direction(comparison: Comparison) -> str:
    """What has to be said of the weighted sums where less of some metric is better."""
    if comparison.falls:
        return "; less is better"
    down = not all(metric.maximize for metric in comparison.weighed)
    return "; what goes down counts negatively, so that more is better" if down else ""


def shaded(frame: pd.DataFrame, tasks: list[str], comparison: Comparison) -> pd.io.formats.style.Styler:
    """The frame with the best of runs and baselines shaded in each column of metrics."""
    mine = [row.kind != "reference" for row in comparison.rows]
    colour = shell.palette().sequential[2]
    upward = dict(zip(tasks, comparison.maximize, strict=True))
    upward |= {"preference": not comparison.falls, "hypervolume": True}
    if len(set(comparison.maximize)) == 1:
        upward |= dict.fromkeys(("mean", "worst"), comparison.maximize[0])

    def best(column: pd.Series) -> list[str]:
        values = column.where(mine)
        top = values.max() if upward[column.name] else values.min()
        return [f"background-color: {colour}" if value == top else "" for value in values]

    return frame.style.apply(best, subset=list(upward))
