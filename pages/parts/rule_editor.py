"""The rule editor: the same rule as a line of text and as a table, each following the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from mapmerge_core.errors import MapMergeError, RuleError
from mapmerge_core.search.rule import Row, Rule, quoted
from mapmerge_core.search.rules import RuleResult, parse_rule
from pages.parts import choice as choosing
from pages.parts import shell

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis import Analysis

COMPARISONS = ("at least", "at most")
UNITS = ("%", "% of single")


def draw(study_id: int, analysis: Analysis) -> None:
    """The editor; a rule that some model meets becomes the visitor's pick."""
    tasks = analysis.tasks
    if "rule_text" not in st.session_state:
        st.session_state["rule_text"] = ""
    st.text_input(
        "Rule",
        key="rule_text",
        placeholder=f"all >= 70%, maximize {quoted(tasks[0])}",
        on_change=_text_changed,
        args=(study_id, analysis),
        persist_state="session",
        help="Thresholds and one objective, separated by commas. A threshold names a task, `all` or "
        "`others`, and may be `of single`: a share of what the task's own model reaches. The objective is a "
        "task, `mean`, `worst`, or a sum such as `2 MNIST + Emoji`.",
    )
    problem: MapMergeError | None = st.session_state.get("rule_problem")
    if problem is not None:
        shell.show_error(problem)
    outcome: RuleResult | None = st.session_state.get("rule_outcome")
    if problem is None and outcome is not None:
        if outcome.feasible:
            st.success(outcome.message, icon=":material/check_circle:")
        else:
            st.warning(outcome.message, icon=":material/warning:")
    _table(study_id, analysis)
    examples = (
        f"all >= 70%, maximize {quoted(tasks[0])}",
        "all >= 90% of single, maximize mean",
        "maximize worst",
    )
    st.caption("Examples")
    with st.container(horizontal=True, gap="small"):
        for number, text in enumerate(examples):
            st.button(
                f"`{text}`",
                key=f"rule_example_{number}",
                type="tertiary",
                on_click=_use,
                args=(study_id, analysis, text),
            )


def _table(study_id: int, analysis: Analysis) -> None:
    rows, objective = st.session_state.get("rule_rows", ([], "maximize worst"))
    version = st.session_state.setdefault("rule_version", 0)
    names = ["all", "others", *analysis.tasks]
    frame = pd.DataFrame(rows, columns=["task", "comparison", "value", "unit"]).astype({"value": float})
    st.data_editor(
        frame,
        key=f"rule_table_{version}",
        num_rows="dynamic",
        hide_index=True,
        height="content",
        column_config={
            "task": st.column_config.SelectboxColumn("Task", options=names, required=True, width=100),
            "comparison": st.column_config.SelectboxColumn(
                "Is", options=COMPARISONS, default=COMPARISONS[0], required=True, width=90
            ),
            "value": st.column_config.NumberColumn("Value", required=True, width=76, format="%g"),
            "unit": st.column_config.SelectboxColumn(
                "Unit", options=UNITS, default=UNITS[0], required=True, width=90
            ),
        },
        on_change=_table_changed,
        args=(study_id, analysis, frame, version),
    )
    verbs = [*(f"maximize {quoted(task)}" for task in analysis.tasks), "maximize mean", "maximize worst"]
    if objective not in verbs:
        verbs.append(objective)
    st.session_state["rule_objective"] = objective
    st.selectbox(
        "Objective",
        verbs,
        key="rule_objective",
        on_change=_table_changed,
        args=(study_id, analysis, frame, version),
    )


def _edited(frame: pd.DataFrame, version: int) -> list[Row]:
    changes = st.session_state.get(f"rule_table_{version}") or {}
    rows: list[Row] = frame.to_dict("records")
    for number, cells in changes.get("edited_rows", {}).items():
        rows[int(number)].update(cells)
    rows = [row for number, row in enumerate(rows) if number not in changes.get("deleted_rows", [])]
    return rows + list(changes.get("added_rows", []))


def _table_changed(study_id: int, analysis: Analysis, frame: pd.DataFrame, version: int) -> None:
    columns = ("task", "comparison", "value", "unit")
    # A row that is still being filled in says nothing yet.
    rows = [row for row in _edited(frame, version) if all(row.get(name) is not None for name in columns)]
    objective = st.session_state["rule_objective"]
    st.session_state["rule_rows"] = (frame.to_dict("records"), objective)
    try:
        rule = Rule.from_table(
            rows,
            objective,
            analysis.tasks,
            maximize=analysis.maximize,
            bounds=[metric.bounds for metric in analysis.metrics],
        )
    except RuleError as error:
        st.session_state["rule_text"] = error.text
        st.session_state["rule_problem"] = error
        return
    st.session_state["rule_text"] = str(rule)
    _apply(study_id, analysis, rule)


def _use(study_id: int, analysis: Analysis, text: str) -> None:
    st.session_state["rule_text"] = text
    _text_changed(study_id, analysis)


def _text_changed(study_id: int, analysis: Analysis) -> None:
    text = st.session_state["rule_text"]
    if not text.strip():
        st.session_state["rule_problem"] = st.session_state["rule_outcome"] = None
        return
    try:
        rule = parse_rule(
            text,
            analysis.tasks,
            maximize=analysis.maximize,
            bounds=[metric.bounds for metric in analysis.metrics],
        )
    except RuleError as error:
        st.session_state["rule_problem"] = error
        return
    # Only text starts the table anew: while it is being edited, the table must keep its own edits.
    st.session_state["rule_rows"] = rule.to_table()
    st.session_state["rule_version"] += 1
    _apply(study_id, analysis, rule)


def _apply(study_id: int, analysis: Analysis, rule: Rule) -> None:
    try:
        outcome = analysis.by_rule(str(rule))
    except MapMergeError as error:
        st.session_state["rule_problem"] = error
        return
    st.session_state["rule_problem"] = None
    st.session_state["rule_outcome"] = outcome
    choosing.remember(study_id, choosing.Choice("rule", outcome.c, {"kind": "rule", "text": str(rule)}))
