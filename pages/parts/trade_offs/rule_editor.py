"""The rule editor: the same rule as a line of text and as a table, each following the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import streamlit as st

from mapmerge_core.errors import MapMergeError, RuleError
from mapmerge_core.search.rules import parse_rule
from mapmerge_core.search.rules.rule import Row, Rule
from pages.parts.shared import shell
from pages.parts.trade_offs import rule_examples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mapmerge_core.tasks.metric import Metric

COMPARISONS = ("at least", "at most")
NO_UNIT = "–"
"""How the table shows that a value has no unit: an empty cell would look unfinished."""


class Outcome(Protocol):
    """What a rule leads to."""

    @property
    def feasible(self) -> bool:
        """Whether the model meets every threshold."""

    @property
    def message(self) -> str:
        """One sentence for people."""


class Models(Protocol):
    """Models that a rule can choose among, such as an ``Analysis`` or a ``LearnedSet``."""

    @property
    def tasks(self) -> Sequence[str]:
        """K names."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """K metrics."""

    @property
    def maximize(self) -> Sequence[bool]:
        """For each task, whether more is better."""

    def by_rule(self, text: str) -> Outcome:
        """The model that a rule asks for, or the nearest to it."""


@dataclass(frozen=True, eq=False)
class Editor:
    """An editor of rules.

    Attributes:
        key: What tells it from others.
        models: What its rules choose among.
        chosen: Called with what ``models.by_rule`` returned, and how a pick of it is kept.
    """

    key: str
    models: Models
    chosen: Callable[[Any, Mapping[str, str]], None]

    @property
    def rule(self) -> str | None:
        """The rule, if there is one that could be applied."""
        text = st.session_state.get(f"rule_text_{self.key}", "").strip()
        return text if text and st.session_state.get(f"rule_problem_{self.key}") is None else None

    def take(self, outcome: Outcome, text: str) -> None:
        """Shows what a rule leads to and makes it the pick."""
        st.session_state[f"rule_problem_{self.key}"] = None
        st.session_state[f"rule_outcome_{self.key}"] = outcome
        kind = "rule" if outcome.feasible else "nearest"
        self.chosen(outcome, {"kind": kind, "text": text})


def draw(editor: Editor) -> None:
    """The editor; the model that a rule leads to becomes the visitor's pick."""
    models = editor.models
    examples = rule_examples.rules(models.tasks, models.metrics)
    st.session_state.setdefault(f"rule_text_{editor.key}", "")
    st.text_input(
        "Rule",
        key=f"rule_text_{editor.key}",
        placeholder=examples[0],
        on_change=_text_changed,
        args=(editor,),
        persist_state="session",
        help="Thresholds and one objective, separated by commas. A threshold names a task, `all` or "
        "`others`, and may be `of single`: a share of what the task's own model reaches. The objective is a "
        f"task, `mean`, `worst`, or a sum such as `{rule_examples.weighted_sum(models.tasks)}`.",
    )
    problem: MapMergeError | None = st.session_state.get(f"rule_problem_{editor.key}")
    if problem is not None:
        shell.show_error(problem)
    outcome: Outcome | None = st.session_state.get(f"rule_outcome_{editor.key}")
    if problem is None and outcome is not None:
        if outcome.feasible:
            st.success(shell.plain(outcome.message), icon=":material/check_circle:")
        else:
            st.warning(shell.plain(outcome.message), icon=":material/warning:")
    _table(editor)
    st.caption("Examples")
    with st.container(horizontal=True, gap="small"):
        for number, text in enumerate(examples):
            st.button(
                f"`{text}`",
                key=f"rule_example_{number}",
                type="tertiary",
                on_click=_use,
                args=(editor, text),
            )


def _table(editor: Editor) -> None:
    models = editor.models
    verbs = rule_examples.objectives(models.tasks, models.metrics)
    rows, objective = st.session_state.get(f"rule_rows_{editor.key}", ([], verbs[-1]))
    version = st.session_state.setdefault(f"rule_version_{editor.key}", 0)
    names = ["all", "others", *models.tasks]
    frame = pd.DataFrame(rows, columns=["task", "comparison", "value", "unit"]).astype({"value": float})
    frame["unit"] = frame["unit"].replace("", NO_UNIT)
    shares = [metric.is_share for metric in models.metrics]
    units = [*(["%"] if any(shares) else []), *([] if all(shares) else [NO_UNIT]), "% of single"]
    units += [unit for unit in dict.fromkeys(frame["unit"]) if unit not in units]
    st.data_editor(
        frame,
        key=f"rule_table_{editor.key}_{version}",
        num_rows="dynamic",
        hide_index=True,
        height="content",
        column_config={
            "task": st.column_config.SelectboxColumn("Task", options=names, required=True, width=100),
            "comparison": st.column_config.SelectboxColumn(
                "Is",
                options=COMPARISONS,
                default=COMPARISONS[not models.maximize[0]],
                required=True,
                width=90,
            ),
            "value": st.column_config.NumberColumn("Value", required=True, width=76, format="%g"),
            "unit": st.column_config.SelectboxColumn("Unit", options=units, default=units[0], required=True, width=90),
        },
        on_change=_table_changed,
        args=(editor, frame, version),
    )
    if objective not in verbs:
        verbs = (*verbs, objective)
    st.session_state[f"rule_objective_{editor.key}"] = objective
    st.selectbox(
        "Objective",
        verbs,
        key=f"rule_objective_{editor.key}",
        on_change=_table_changed,
        args=(editor, frame, version),
    )


def _edited(editor: Editor, frame: pd.DataFrame, version: int) -> list[Row]:
    changes = st.session_state.get(f"rule_table_{editor.key}_{version}") or {}
    rows: list[Row] = frame.to_dict("records")
    for number, cells in changes.get("edited_rows", {}).items():
        rows[int(number)].update(cells)
    rows = [row for number, row in enumerate(rows) if number not in changes.get("deleted_rows", [])]
    return rows + list(changes.get("added_rows", []))


def _table_changed(editor: Editor, frame: pd.DataFrame, version: int) -> None:
    models = editor.models
    columns = ("task", "comparison", "value", "unit")
    # A row that is still being filled in says nothing yet.
    rows = [row for row in _edited(editor, frame, version) if all(row.get(name) is not None for name in columns)]
    objective = st.session_state[f"rule_objective_{editor.key}"]
    st.session_state[f"rule_rows_{editor.key}"] = (frame.to_dict("records"), objective)
    try:
        rule = Rule.from_table(
            [row | {"unit": str(row["unit"]).replace(NO_UNIT, "")} for row in rows],
            objective,
            models.tasks,
            maximize=models.maximize,
            bounds=[metric.bounds for metric in models.metrics],
        )
    except RuleError as error:
        st.session_state[f"rule_text_{editor.key}"] = error.text
        st.session_state[f"rule_problem_{editor.key}"] = error
        return
    st.session_state[f"rule_text_{editor.key}"] = str(rule)
    _apply(editor, rule)


def _use(editor: Editor, text: str) -> None:
    st.session_state[f"rule_text_{editor.key}"] = text
    _text_changed(editor)


def _text_changed(editor: Editor) -> None:
    models = editor.models
    text = st.session_state[f"rule_text_{editor.key}"]
    if not text.strip():
        st.session_state[f"rule_problem_{editor.key}"] = st.session_state[f"rule_outcome_{editor.key}"] = None
        return
    try:
        rule = parse_rule(
            text,
            models.tasks,
            maximize=models.maximize,
            bounds=[metric.bounds for metric in models.metrics],
        )
    except RuleError as error:
        st.session_state[f"rule_problem_{editor.key}"] = error
        return
    # Only text starts the table anew: while it is being edited, the table must keep its own edits.
    st.session_state[f"rule_rows_{editor.key}"] = rule.to_table()
    st.session_state[f"rule_version_{editor.key}"] += 1
    _apply(editor, rule)


def _apply(editor: Editor, rule: Rule) -> None:
    try:
        outcome = editor.models.by_rule(str(rule))
    except MapMergeError as error:
        st.session_state[f"rule_problem_{editor.key}"] = error
        return
    editor.take(outcome, str(rule))
