"""The rule editor: the same rule as a line of text and as a table, each following the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from mapmerge_core.errors import MapMergeError, RuleError
from mapmerge_core.search.rule import Row, Rule
from mapmerge_core.search.rules import RuleResult, parse_rule
from pages.parts import choice as choosing
from pages.parts import rule_examples, shell

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis import Analysis

COMPARISONS = ("at least", "at most")
NO_UNIT = "–"
"""How the table shows that a value has no unit: an empty cell would look unfinished."""


def draw(study_id: int, analysis: Analysis) -> None:
    """The editor; a rule that some model meets becomes the visitor's pick."""
    examples = rule_examples.rules(analysis.tasks, analysis.metrics)
    st.session_state.setdefault(f"rule_text_{study_id}", "")
    st.text_input(
        "Rule",
        key=f"rule_text_{study_id}",
        placeholder=examples[0],
        on_change=_text_changed,
        args=(study_id, analysis),
        persist_state="session",
        help="Thresholds and one objective, separated by commas. A threshold names a task, `all` or "
        "`others`, and may be `of single`: a share of what the task's own model reaches. The objective is a "
        f"task, `mean`, `worst`, or a sum such as `{rule_examples.weighted_sum(analysis.tasks)}`.",
    )
    problem: MapMergeError | None = st.session_state.get(f"rule_problem_{study_id}")
    if problem is not None:
        shell.show_error(problem)
    outcome: RuleResult | None = st.session_state.get(f"rule_outcome_{study_id}")
    if problem is None and outcome is not None:
        if outcome.feasible:
            st.success(shell.plain(outcome.message), icon=":material/check_circle:")
        else:
            st.warning(shell.plain(outcome.message), icon=":material/warning:")
    _table(study_id, analysis)
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
    verbs = rule_examples.objectives(analysis.tasks, analysis.metrics)
    rows, objective = st.session_state.get(f"rule_rows_{study_id}", ([], verbs[-1]))
    version = st.session_state.setdefault(f"rule_version_{study_id}", 0)
    names = ["all", "others", *analysis.tasks]
    frame = pd.DataFrame(rows, columns=["task", "comparison", "value", "unit"]).astype({"value": float})
    frame["unit"] = frame["unit"].replace("", NO_UNIT)
    shares = [metric.is_share for metric in analysis.metrics]
    units = [*(["%"] if any(shares) else []), *([] if all(shares) else [NO_UNIT]), "% of single"]
    units += [unit for unit in dict.fromkeys(frame["unit"]) if unit not in units]
    st.data_editor(
        frame,
        key=f"rule_table_{study_id}_{version}",
        num_rows="dynamic",
        hide_index=True,
        height="content",
        column_config={
            "task": st.column_config.SelectboxColumn("Task", options=names, required=True, width=100),
            "comparison": st.column_config.SelectboxColumn(
                "Is",
                options=COMPARISONS,
                default=COMPARISONS[not analysis.maximize[0]],
                required=True,
                width=90,
            ),
            "value": st.column_config.NumberColumn("Value", required=True, width=76, format="%g"),
            "unit": st.column_config.SelectboxColumn(
                "Unit", options=units, default=units[0], required=True, width=90
            ),
        },
        on_change=_table_changed,
        args=(study_id, analysis, frame, version),
    )
    if objective not in verbs:
        verbs = (*verbs, objective)
    st.session_state[f"rule_objective_{study_id}"] = objective
    st.selectbox(
        "Objective",
        verbs,
        key=f"rule_objective_{study_id}",
        on_change=_table_changed,
        args=(study_id, analysis, frame, version),
    )


def _edited(study_id: int, frame: pd.DataFrame, version: int) -> list[Row]:
    changes = st.session_state.get(f"rule_table_{study_id}_{version}") or {}
    rows: list[Row] = frame.to_dict("records")
    for number, cells in changes.get("edited_rows", {}).items():
        rows[int(number)].update(cells)
    rows = [row for number, row in enumerate(rows) if number not in changes.get("deleted_rows", [])]
    return rows + list(changes.get("added_rows", []))


def _table_changed(study_id: int, analysis: Analysis, frame: pd.DataFrame, version: int) -> None:
    columns = ("task", "comparison", "value", "unit")
    # A row that is still being filled in says nothing yet.
    rows = [
        row for row in _edited(study_id, frame, version) if all(row.get(name) is not None for name in columns)
    ]
    objective = st.session_state[f"rule_objective_{study_id}"]
    st.session_state[f"rule_rows_{study_id}"] = (frame.to_dict("records"), objective)
    try:
        rule = Rule.from_table(
            [row | {"unit": str(row["unit"]).replace(NO_UNIT, "")} for row in rows],
            objective,
            analysis.tasks,
            maximize=analysis.maximize,
            bounds=[metric.bounds for metric in analysis.metrics],
        )
    except RuleError as error:
        st.session_state[f"rule_text_{study_id}"] = error.text
        st.session_state[f"rule_problem_{study_id}"] = error
        return
    st.session_state[f"rule_text_{study_id}"] = str(rule)
    _apply(study_id, analysis, rule)


def _use(study_id: int, analysis: Analysis, text: str) -> None:
    st.session_state[f"rule_text_{study_id}"] = text
    _text_changed(study_id, analysis)


def _text_changed(study_id: int, analysis: Analysis) -> None:
    text = st.session_state[f"rule_text_{study_id}"]
    if not text.strip():
        st.session_state[f"rule_problem_{study_id}"] = st.session_state[f"rule_outcome_{study_id}"] = None
        return
    try:
        rule = parse_rule(
            text,
            analysis.tasks,
            maximize=analysis.maximize,
            bounds=[metric.bounds for metric in analysis.metrics],
        )
    except RuleError as error:
        st.session_state[f"rule_problem_{study_id}"] = error
        return
    # Only text starts the table anew: while it is being edited, the table must keep its own edits.
    st.session_state[f"rule_rows_{study_id}"] = rule.to_table()
    st.session_state[f"rule_version_{study_id}"] += 1
    _apply(study_id, analysis, rule)


def _apply(study_id: int, analysis: Analysis, rule: Rule) -> None:
    try:
        outcome = analysis.by_rule(str(rule))
    except MapMergeError as error:
        st.session_state[f"rule_problem_{study_id}"] = error
        return
    st.session_state[f"rule_problem_{study_id}"] = None
    st.session_state[f"rule_outcome_{study_id}"] = outcome
    kind = "rule" if outcome.feasible else "nearest"
    choosing.remember(study_id, choosing.Choice(kind, outcome.c, {"kind": kind, "text": str(rule)}))
