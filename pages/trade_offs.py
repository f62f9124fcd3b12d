"""The front, and everything that helps to choose one model on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.errors import MapMergeError
from mapmerge_core.search.fronts import join_fronts
from mapmerge_core.tasks.families import find_family
from pages.parts.shared import choice as choosing
from pages.parts.shared import pictures, preference, shell, state
from pages.parts.shared.choice import Choice
from pages.parts.shared.words import duration, size
from pages.parts.trade_offs import front_chart, pick_card, rule_editor, unlabelled_form

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.analysis import MergeAnalysis, RuleChoice, StudyAnalysis
    from mapmerge_core.studies.store import Study

SCALARISATIONS = {"weighted_sum": "Weighted sum", "tchebycheff": "Tchebycheff (evens out)"}
TO_EVALUATE = ("pages/evaluate.py", "Go to Evaluate", ":material/monitoring:")


def draw() -> None:
    """Draw the page."""
    study = shell.study_heading(
        "Trade-offs", "Weigh the objectives, write a rule, or click a point: the model that suits you stands below."
    )
    if study.n_points == 0:
        text = "The front comes from merged models that were evaluated. Start a run, then come back."
        shell.empty("Nothing measured yet", text, TO_EVALUATE, study.id)
        return
    run = state.run_going_on(study.id)
    analysis = state.analysis(study.id) if run is None else analysis_as_opened(study.id, run)
    if analysis.front is None:
        shell.empty("No front yet", shell.plain(analysis.problem or ""), TO_EVALUATE, study.id)
        return
    if run is not None:
        st.info("A run is going on: this front shows what was known when the page was opened.", icon=":material/sync:")
    chosen = merge_in_view(analysis)
    view = analysis if chosen is None else narrowed(analysis, chosen)
    if view.fitted_front.is_single_point:
        st.info(
            "The front is a single point: one model is best at every objective, so there is nothing to trade off.",
            icon=":material/adjust:",
        )
    workbench(study, analysis, view)


def analysis_as_opened(study_id: int, run: int) -> StudyAnalysis:
    """Return the analysis that the page was opened with; while a run goes on, each new point moves the front."""
    opened: tuple[tuple[int, int], StudyAnalysis] | None = st.session_state.get(shell.OPENED)
    if opened is None or opened[0] != (study_id, run):
        opened = st.session_state[shell.OPENED] = ((study_id, run), state.analysis(study_id))
    return opened[1]


def merge_in_view(analysis: StudyAnalysis) -> MergeAnalysis | None:
    """Ask which merge's front to show, where several have one; None for that of all together.

    It is kept in the address (``?merge=3``) and, between pages, in the session.
    """
    merges = {str(merge.merge.id): merge for merge in analysis.merges if merge.front is not None}
    kept = f"merge_chosen_{analysis.study_id}"
    asked = st.query_params.get("merge")
    of_study = st.session_state.get("merges_of_study", analysis.study_id)
    st.session_state["merges_of_study"] = analysis.study_id
    if of_study != analysis.study_id:
        asked = None  # it was about the study that was in view before
    if asked is not None and asked not in merges:
        st.warning(
            f"This study has no front of merge {shell.plain(asked)}: it has too few points, or was deleted.",
            icon=":material/search_off:",
        )
    wanted = next((name for name in (asked, st.session_state.get(kept)) if name in merges), "")
    if len(merges) > 1:
        key = "merge_in_view"
        st.session_state[key] = wanted

        def keep() -> None:
            _keep_merge(kept, st.session_state[key])

        st.selectbox(
            "Front of",
            ["", *merges],
            key=key,
            format_func=lambda name: merges[name].title if name else "All merges together",
            on_change=keep,
            width=420,
        )
    else:
        wanted = ""
    _keep_merge(kept, wanted)
    if not wanted:
        return None
    with shell.errors_shown():
        about(merges[wanted])
    return merges[wanted]


def _keep_merge(kept: str, name: str) -> None:
    st.session_state[kept] = name
    if name:
        st.query_params["merge"] = name
    else:
        st.query_params.pop("merge", None)


def about(merge: MergeAnalysis) -> None:
    """Draw what preparing a merge took, and a link to what it keeps."""
    if not merge.merge.is_prepared or not merge.merge.make().has_state:
        return
    file = state.state_file(merge.merge.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        pictures.facts([("Prepared in", duration(merge.merge.seconds)), ("Measured", f"{len(merge.X)} points")])
        st.link_button(
            f"Download what was prepared ({size(file.stat().st_size)})",
            f"/download/merge/{merge.merge.id}",
            icon=":material/download:",
        )


def narrowed(analysis: StudyAnalysis, merge: MergeAnalysis) -> StudyAnalysis:
    """Return what the analysis says of one merge."""
    fronts = [(merge.merge.id, merge.front)] if merge.front is not None else []
    front = join_fronts(fronts, analysis.maximize)
    return replace(analysis, merges=(merge,), front=front)


@st.fragment
def workbench(study: Study, analysis: StudyAnalysis, view: StudyAnalysis) -> None:
    """Draw everything that follows the pick; redrawn alone when a slider moves.

    Args:
        study: The study.
        analysis: All of its merges.
        view: Those in view.
    """
    with shell.errors_shown():
        left, right = st.columns([1.9, 1], gap="large")
        with right:
            chooser(study, analysis, view)
        choice = choosing.recall(study.id, view, analysis)
        st.session_state[f"drawn_{study.id}"] = choice.key
        info = choosing.pick_info(analysis, choice)
        shortlisted = choosing.shortlist(study.id, analysis)
        # The card is drawn before the figure, which takes the browser longer.
        pick_card.draw(analysis, choice, info, shortlisted)

        def clicked(row: int) -> None:
            choosing.remember(study.id, choosing.at_row(view, row, {"kind": "point"}))

        with left:
            front_chart.draw(view, choosing.spots(analysis, choice, info, shortlisted), clicked)


def chooser(study: Study, analysis: StudyAnalysis, view: StudyAnalysis) -> None:
    """Draw sliders, the rule editor or the form for unlabelled data."""

    def by_rule(outcome: RuleChoice, how: Mapping[str, str]) -> None:
        choosing.remember(study.id, Choice(how["kind"], outcome.merge_id, outcome.x, how))

    offered = ["Preference", "Rule"]
    # Heads would have to be trained for new classes; CLIP's are made of their names.
    if find_family(study.config.family).gives_logits:
        offered.append("Unlabelled data")
    if st.session_state.get("choose_by") not in offered:
        st.session_state["choose_by"] = offered[0]
    way = st.segmented_control(
        "Choose by",
        offered,
        required=True,
        key="choose_by",
        label_visibility="collapsed",
        width="stretch",
        persist_state="session",
    )
    if way == "Rule":
        rule_editor.draw(rule_editor.Editor(view, by_rule))
    elif way == "Unlabelled data":
        merge_id = view.merges[0].merge.id if view is not analysis else None
        unlabelled_form.draw(analysis, merge_id, lambda choice: choosing.remember(study.id, choice))
    else:
        weights(view)


def weights(view: StudyAnalysis) -> None:
    """Draw the preference's sliders, and how they are weighed."""
    study_id = view.study_id
    kept = choosing.preference(study_id)
    preference.sliders(study_id, view.names, preference_moved, (view,))
    with st.expander("How preferences are weighed", icon=":material/tune:"):
        key = f"scalarisation_{study_id}"
        st.session_state.setdefault(key, kept["scalarisation"])
        st.segmented_control(
            "Scalarisation",
            list(SCALARISATIONS),
            format_func=SCALARISATIONS.__getitem__,
            required=True,
            key=key,
            on_change=preference_moved,
            args=(view,),
        )
        key = f"normalise_{study_id}"
        st.session_state.setdefault(key, kept["normalise"])
        st.toggle("Count each relative to its single model", key=key, on_change=preference_moved, args=(view,))
    problem = st.session_state.get(f"preference_problem_{study_id}")
    if problem:
        st.error(shell.plain(problem), icon=":material/error:")
    elif st.session_state.pop(f"preference_stayed_{study_id}", False):
        st.caption(":material/check: Of the front's models, the same one still suits these weights best.")
    st.caption("Equal weights give the best mean. Or click any point of the front.")


def preference_moved(view: StudyAnalysis) -> None:
    """Make the front's row that suits the weights the pick, after a slider or an option changed."""
    study_id = view.study_id
    before = st.session_state.get(f"drawn_{study_id}")
    kept = choosing.keep_preference(
        study_id,
        preference.slider_weights(study_id, view.names),
        st.session_state[f"scalarisation_{study_id}"],
        normalise=st.session_state[f"normalise_{study_id}"],
    )
    problem = f"preference_problem_{study_id}"
    st.session_state[problem] = None
    try:
        choice = choosing.by_preference(view, kept)
    except MapMergeError as error:
        st.session_state[problem] = str(error)
        return
    choosing.remember(study_id, choice)
    # A front of many objectives is coarse: a small move needn't lead to another of its models.
    st.session_state[f"preference_stayed_{study_id}"] = choice.key == before


with shell.errors_shown():
    draw()
