"""The front, and everything that helps to choose one model on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.errors import MapMergeError
from pages.parts.shared import choice as choosing
from pages.parts.shared import preference, shell, state
from pages.parts.trade_offs import (
    front_chart,
    learned_choice,
    learned_view,
    pick_card,
    rule_editor,
    unlabelled_form,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from mapmerge_core.search.rules import RuleResult
    from mapmerge_core.studies.analysis.analysis import Analysis

SCALARISATIONS = {"weighted_sum": "Weighted sum", "tchebycheff": "Tchebycheff (evens out)"}


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Trade-offs",
        "Weigh the tasks, write a rule, or click a point: the model that suits you stands below.",
    )
    learned = learned_choice.models_from(study)
    if learned is not None:
        learned_view.draw(study, learned)
        return
    if study.n_points == 0:
        shell.empty(
            "Nothing measured yet",
            "The front comes from merged models that were evaluated. Start a run, then come back.",
            ("pages/evaluate.py", "Go to Evaluate", ":material/monitoring:"),
            study.id,
        )
        return
    run = state.run_going_on(study.id)
    analysis = state.analysis(study.id) if run is None else analysis_as_opened(study.id, run)
    if analysis.front is None:
        shell.empty(
            "No front yet",
            shell.plain(analysis.problem or ""),
            ("pages/evaluate.py", "Go to Evaluate", ":material/monitoring:"),
            study.id,
        )
        return
    if run is not None:
        st.info(
            "A run is going on: this front shows what was known when the page was opened.",
            icon=":material/sync:",
        )
    if analysis.front.is_single_point:
        st.info(
            "The front is a single point: one model is best at every task, so there is nothing to trade off.",
            icon=":material/adjust:",
        )
    workbench(study, analysis)


def analysis_as_opened(study_id: int, run: int) -> Analysis:
    """The analysis that the page was opened with; while a run goes on, each new point moves the front."""
    opened = st.session_state.get(shell.OPENED)
    if opened is None or opened[0] != (study_id, run):
        opened = st.session_state[shell.OPENED] = ((study_id, run), state.analysis(study_id))
    return opened[1]


@st.fragment
def workbench(study: state.StudyRow, analysis: Analysis) -> None:
    """Everything that follows the pick; redrawn alone when a slider moves."""
    with shell.errors_shown():
        left, right = st.columns([1.9, 1], gap="large")
        with right:
            chooser(study, analysis)
        choice = choosing.recall(study.id, analysis)
        info = choosing.pick_info(study.id, analysis, choice.c)
        shortlisted = choosing.shortlist(study.id, analysis)
        # The card is drawn before the figure, which takes the browser longer.
        pick_card.draw(study.id, analysis, choice, info, shortlisted)
        with left:
            front(study.id, analysis, choosing.spots(analysis, choice, info, shortlisted))


def chooser(study: state.StudyRow, analysis: Analysis) -> None:
    """Sliders, the rule editor or unlabelled data."""

    def choose(kind: str, c: np.ndarray, how: Mapping[str, str]) -> None:
        choosing.remember(study.id, choosing.Choice(kind, c, how))

    def by_rule(outcome: RuleResult, how: Mapping[str, str]) -> None:
        choose(how["kind"], outcome.c, how)

    way = unlabelled_form.ways(study.spec)
    if way == "Rule":
        rule_editor.draw(rule_editor.Editor(str(study.id), analysis, by_rule))
    elif way == unlabelled_form.WAY:
        unlabelled_form.draw(study, None, lambda c, how: choose(how["kind"], c, how))
    else:
        weights(study.id, analysis)


def weights(study_id: int, analysis: Analysis) -> None:
    """The preference's sliders, and how they are weighed."""
    kept = choosing.preference(study_id)
    moved = {"on_change": preference_moved, "args": (study_id, analysis)}
    preference.sliders(study_id, analysis.tasks, **moved)
    with st.expander("How preferences are weighed", icon=":material/tune:"):
        key = f"scalarisation_{study_id}"
        st.session_state.setdefault(key, kept["scalarisation"])
        st.segmented_control(
            "Scalarisation",
            list(SCALARISATIONS),
            format_func=SCALARISATIONS.get,
            required=True,
            key=key,
            **moved,
        )
        key = f"normalise_{study_id}"
        st.session_state.setdefault(key, kept["normalise"])
        st.toggle("Count each task relative to its own model", key=key, **moved)
    problem = st.session_state.get(f"preference_problem_{study_id}")
    if problem:
        st.error(shell.plain(problem), icon=":material/error:")
    elif st.session_state.pop(f"preference_stayed_{study_id}", False):
        st.caption(":material/check: Of the front's models, the same one still suits these weights best.")
    st.caption("Equal weights give the best mean. Or click any point of the front.")


def preference_moved(study_id: int, analysis: Analysis) -> None:
    """A slider or an option changed: the front's row that suits the weights becomes the pick."""
    before = choosing.recall(study_id, analysis).c
    kept = choosing.keep_preference(
        study_id,
        preference.slider_weights(study_id, analysis.tasks),
        st.session_state[f"scalarisation_{study_id}"],
        normalise=st.session_state[f"normalise_{study_id}"],
    )
    problem = f"preference_problem_{study_id}"
    st.session_state[problem] = None
    try:
        choice = choosing.by_preference(analysis, kept)
        choosing.remember(study_id, choice)
        # A front of many tasks is coarse: a small move needn't lead to another of its models.
        st.session_state[f"preference_stayed_{study_id}"] = bool((choice.c == before).all())
    except MapMergeError as error:
        st.session_state[problem] = str(error)


def front(study_id: int, analysis: Analysis, spots: list) -> None:
    """The front; a clicked point of it becomes the pick."""

    def clicked(row: int) -> None:
        choosing.remember(study_id, choosing.Choice("point", analysis.front.c[row], {"kind": "point"}))

    shown = front_chart.Shown(analysis.tasks, analysis.metrics, analysis.front.c, analysis.front.predicted, spots)
    front_chart.draw(study_id, str(study_id), shown, clicked)


draw()
