"""The rule editor: the same rule as a line of text and as a table, each following the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import streamlit as st

from mapmerge_core.errors import MapMergeError, RuleError
from mapmerge_core.search.rules import Rule, parse_rule, parse_table
from pages.parts.shared import asked, live, shell, state
from pages.parts.trade_offs import rule_examples

if TYPE_CHECKING:
    from mapmerge_core.search.rules.rule import Row
    from mapmerge_core.studies.analysis.analysis import RuleChoice, StudyAnalysis

COLUMNS = ("objective", "comparison", "value", "unit")
COMPARISONS = ("at least", "at most")
NO_UNIT = "–"
"""How the table shows that a value has no unit: an empty cell would look unfinished."""


@dataclass(frozen=True, eq=False)
class Editor:
    """An editor of rules over a study's objectives.

    Attributes:
        models: The merges that its rules choose among.
        chosen: Called with what ``models.by_rule`` returned, and how a pick of it is kept.
    """

    models: StudyAnalysis
    chosen: Callable[[RuleChoice, Mapping[str, str]], None]

    def key(self, name: str) -> str:
        """Return where the session keeps something of this study's editor."""
        return f"rule_{name}_{self.models.study_id}"

    @property
    def rule(self) -> str | None:
        """The rule, if there is one that could be applied."""
        text = st.session_state.get(self.key("text"), "").strip()
        return text if text and st.session_state.get(self.key("problem")) is None else None

    def take(self, outcome: RuleChoice, text: str) -> None:
        """Show what a rule leads to and make it the pick."""
        st.session_state[self.key("problem")] = None
        st.session_state[self.key("outcome")] = outcome
        self.chosen(outcome, {"kind": "rule" if outcome.feasible else "nearest", "text": text})

    def parsing(self) -> dict[str, Any]:
        """Return what reading a rule needs to know of the objectives."""
        bounds = [objective.metric.bounds for objective in self.models.objectives]
        return {"names": self.models.names, "maximize": self.models.maximize, "bounds": bounds}


def draw(editor: Editor) -> None:
    """Draw the editor; the model that a rule leads to becomes the visitor's pick."""
    answer = asked.answer(editor.key("refine"))
    if answer is not None and answer.is_new and answer.subject == editor.rule:
        editor.take(answer.result, answer.subject)
    objectives = editor.models.objectives
    examples = rule_examples.rules(objectives)
    st.session_state.setdefault(editor.key("text"), "")
    st.text_input(
        "Rule",
        key=editor.key("text"),
        placeholder=examples[0],
        on_change=_text_changed,
        args=(editor,),
        persist_state="session",
        help="Thresholds and one target, separated by commas. A threshold names an objective, `all` or "
        "`others`, and may be a share `of single`, what the task's own model reaches, or `of pretrained`. The "
        f"target is an objective, `mean`, `worst`, or a sum such as `{rule_examples.weighted_sum(objectives)}`.",
    )
    problem: MapMergeError | None = st.session_state.get(editor.key("problem"))
    outcome: RuleChoice | None = st.session_state.get(editor.key("outcome"))
    if problem is not None:
        shell.show_error(problem)
    elif outcome is not None and outcome.feasible:
        st.success(shell.plain(outcome.message), icon=":material/check_circle:")
    elif outcome is not None:
        st.warning(shell.plain(outcome.message), icon=":material/warning:")
    _table(editor)
    _refine(editor, outcome)
    st.caption("Examples")
    with st.container(horizontal=True, gap="small"):
        for number, text in enumerate(examples):
            st.button(f"`{text}`", key=f"rule_example_{number}", type="tertiary", on_click=_use, args=(editor, text))


def _table(editor: Editor) -> None:
    models = editor.models
    targets = rule_examples.targets(models.objectives)
    rows, target = st.session_state.get(editor.key("rows"), ([], targets[-1]))
    version = st.session_state.setdefault(editor.key("version"), 0)
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})
    frame["unit"] = frame["unit"].replace("", NO_UNIT)
    shares = [objective.metric.is_share for objective in models.objectives]
    units = [*(["%"] if any(shares) else []), *([] if all(shares) else [NO_UNIT]), "% of single", "% of pretrained"]
    units += [unit for unit in dict.fromkeys(frame["unit"]) if unit not in units]
    names = ["all", "others", *models.names]
    names += [name for name in dict.fromkeys(frame["objective"]) if name not in names]
    changed: dict[str, Any] = {"on_change": _table_changed, "args": (editor, frame, version)}
    st.data_editor(
        frame,
        key=f"{editor.key('table')}_{version}",
        num_rows="dynamic",
        hide_index=True,
        height="content",
        column_config={
            "objective": st.column_config.SelectboxColumn("Objective", options=names, required=True, width=100),
            "comparison": st.column_config.SelectboxColumn(
                "Is", options=COMPARISONS, default=COMPARISONS[not models.maximize[0]], required=True, width=90
            ),
            "value": st.column_config.NumberColumn("Value", required=True, width=76, format="%g"),
            "unit": st.column_config.SelectboxColumn("Unit", options=units, default=units[0], required=True, width=90),
        },
        **changed,
    )
    st.session_state[editor.key("objective")] = target
    options = targets if target in targets else (*targets, target)
    st.selectbox("Target", options, key=editor.key("objective"), **changed)


def _refine(editor: Editor, outcome: RuleChoice | None) -> None:
    """Draw a button that measures where the rule is met best, in the merge that it leads to."""
    study_id, rule = editor.models.study_id, editor.rule
    pressed = st.button(
        "Measure near it (12 points)",
        key="refine",
        icon=":material/my_location:",
        disabled=rule is None or outcome is None or state.live_job(study_id, "refine") is not None,
        help="Looks for a point that meets the rule better, each measured on the validation split.",
    )
    if pressed and rule is not None and outcome is not None:
        asked.remember(editor.key("refine"), state.jobs().refine(outcome.merge_id, rule), rule)
        st.rerun()
    live.watch(study_id, "refine")


def _edited(editor: Editor, frame: pd.DataFrame, version: int) -> list[Row]:
    changes = st.session_state.get(f"{editor.key('table')}_{version}") or {}
    rows = cast("list[Row]", frame.to_dict("records"))
    for number, cells in changes.get("edited_rows", {}).items():
        rows[int(number)].update(cells)
    rows = [row for number, row in enumerate(rows) if number not in changes.get("deleted_rows", [])]
    return rows + list(changes.get("added_rows", []))


def _table_changed(editor: Editor, frame: pd.DataFrame, version: int) -> None:
    # A row that is still being filled in says nothing yet.
    rows = [row for row in _edited(editor, frame, version) if all(row.get(name) is not None for name in COLUMNS)]
    target = st.session_state[editor.key("objective")]
    st.session_state[editor.key("rows")] = (frame.to_dict("records"), target)
    plain = [row | {"unit": str(row["unit"]).replace(NO_UNIT, "")} for row in rows]
    try:
        rule = parse_table(plain, target, **editor.parsing())
    except RuleError as error:
        st.session_state[editor.key("text")] = error.text
        st.session_state[editor.key("problem")] = error
        return
    st.session_state[editor.key("text")] = str(rule)
    _apply(editor, rule)


def _use(editor: Editor, text: str) -> None:
    st.session_state[editor.key("text")] = text
    _text_changed(editor)


def _text_changed(editor: Editor) -> None:
    text = st.session_state[editor.key("text")]
    if not text.strip():
        st.session_state[editor.key("problem")] = st.session_state[editor.key("outcome")] = None
        return
    try:
        rule = parse_rule(text, **editor.parsing())
    except RuleError as error:
        st.session_state[editor.key("problem")] = error
        return
    # Only text starts the table anew: while it is being edited, the table must keep its own edits.
    st.session_state[editor.key("rows")] = rule.to_table()
    st.session_state[editor.key("version")] += 1
    _apply(editor, rule)


def _apply(editor: Editor, rule: Rule) -> None:
    try:
        editor.take(editor.models.by_rule(str(rule)), str(rule))
    except MapMergeError as error:
        st.session_state[editor.key("problem")] = error
