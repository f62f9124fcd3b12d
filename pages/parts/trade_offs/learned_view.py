"""Trade-offs of a learned set: a preference, the model for it, and what is known of that model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from mapmerge_core.errors import MapMergeError, SearchError
from mapmerge_core.search.preferences import normalise
from pages.parts.shared import asked, live, pictures, preference, shell, state
from pages.parts.shared.words import size
from pages.parts.trade_offs import front_chart, learned_card, learned_choice, rule_editor, unlabelled_form
from pages.parts.trade_offs.learned_choice import LearnedChoice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapmerge_core.studies.analysis.learned import LearnedRule, LearnedSet

    from mapmerge_core.charts.trade_offs import Spot


def draw(study: state.StudyRow, run_id: int) -> None:
    """A learned set, in place of the surrogates' front."""
    try:
        learned = state.learned_set(run_id)
    except MapMergeError as error:
        shell.show_error(error)
        return
    about(learned)
    workbench(study, learned)


def about(learned: LearnedSet) -> None:
    """What learning the set took, what it adds to a model, and the file to take along."""
    file = state.store().learned_file(learned.run.id)
    with st.container(horizontal=True, vertical_alignment="center", key="about_set"):
        pictures.facts(learned_choice.facts(learned))
        st.space("stretch")
        st.link_button(
            f"Download the set ({size(file.stat().st_size)})",
            f"/download/set/{learned.run.id}",
            key="download_set",
            icon=":material/download:",
            help="λ, A, B and G with their recipe: the models for all preferences in one file.",
        )


@st.fragment
def workbench(study: state.StudyRow, learned: LearnedSet) -> None:
    """Everything that follows the pick; redrawn alone when a slider moves."""
    with shell.errors_shown():
        left, right = st.columns([1.9, 1], gap="large")
        with right:
            chooser(study, learned)
        choice = learned_choice.recall(study.id, learned)
        info, is_measured = learned_choice.pick_info(learned, choice.gamma)
        # The card is drawn before the figure, which takes the browser longer.
        learned_card.draw(learned, choice, info, is_measured=is_measured)
        with left:
            front(study.id, learned, learned_choice.spots(learned, choice, info))


def chooser(study: state.StudyRow, learned: LearnedSet) -> None:
    """Sliders, the rule editor or unlabelled data."""

    def choose(gamma: np.ndarray, how: Mapping[str, str]) -> None:
        learned_choice.remember(learned.run.id, LearnedChoice(how["kind"], gamma, how))

    way = unlabelled_form.ways(study.spec)
    if way == "Rule":
        rules(study.id, learned)
    elif way == unlabelled_form.WAY:
        unlabelled_form.draw(study, learned.run.id, choose)
    else:
        weights(study.id, learned)


def weights(study_id: int, learned: LearnedSet) -> None:
    """The preference's sliders."""

    def moved() -> None:
        learned_choice.by_weights(study_id, learned, preference.slider_weights(study_id, learned.tasks))

    preference.sliders(study_id, learned.tasks, moved, ())
    try:
        normalise(list(preference.current(study_id, learned.tasks).values()), len(learned.tasks))
    except SearchError as error:
        shell.show_error(error)
    st.caption("The set has a model for every preference. Or click any point.")


def rules(study_id: int, learned: LearnedSet) -> None:
    """The rule editor, and more measurements near what it leads to."""
    run_id = learned.run.id
    key = f"{study_id}_{run_id}"

    def chosen(outcome: LearnedRule, how: Mapping[str, str]) -> None:
        learned_choice.remember(run_id, LearnedChoice(how["kind"], outcome.gamma, how))

    editor = rule_editor.Editor(key, learned, chosen)
    found = asked.result(f"refine_{key}")
    if found is not None and found.is_new and found.of == editor.rule:
        editor.take(found.result, found.of)
    rule_editor.draw(editor)
    if st.button(
        "Measure near it (12 preferences)",
        key="refine",
        icon=":material/my_location:",
        disabled=editor.rule is None or state.live_job(study_id, "refine") is not None,
        help="Looks for a preference that meets the rule better, each measured on the validation split.",
    ):
        asked.remember(f"refine_{key}", state.jobs().refine(run_id, editor.rule), editor.rule)
        st.rerun()
    live.watch(study_id, "refine")


def front(study_id: int, learned: LearnedSet, spots: list[Spot]) -> None:
    """The measured preferences; a clicked one becomes the pick."""
    # In the preference's order, so that a line through two tasks' models is that from one to the other.
    order = np.lexsort(learned.gammas.T[::-1])
    gammas, values = learned.gammas[order], learned.values[order]

    def clicked(row: int) -> None:
        learned_choice.by_point(study_id, learned, gammas[row])

    shown = front_chart.Shown(learned.tasks, learned.metrics, gammas, values, spots, "preference")
    front_chart.draw(study_id, f"{study_id}_{learned.run.id}", shown, clicked)
