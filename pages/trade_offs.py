"""The front, and everything that helps to choose one model on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.trade_offs import MOST_LINES, front_info, front_parallel, front_scatter
from mapmerge_core.errors import MapMergeError
from pages.parts import choice as choosing
from pages.parts import pick_card, preference, rule_editor, shell, state

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis import Analysis

SCALARISATIONS = {"weighted_sum": "Weighted sum", "tchebycheff": "Tchebycheff (evens out)"}


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Trade-offs",
        "Weigh the tasks, write a rule, or click a point: the model that suits you stands below.",
    )
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
    workbench(study.id, analysis)


def analysis_as_opened(study_id: int, run: int) -> Analysis:
    """The analysis that the page was opened with; while a run goes on, each new point moves the front."""
    opened = st.session_state.get(shell.OPENED)
    if opened is None or opened[0] != (study_id, run):
        opened = st.session_state[shell.OPENED] = ((study_id, run), state.analysis(study_id))
    return opened[1]


@st.fragment
def workbench(study_id: int, analysis: Analysis) -> None:
    """Everything that follows the pick; redrawn alone when a slider moves."""
    with shell.errors_shown():
        left, right = st.columns([1.9, 1], gap="large")
        with right:
            chooser(study_id, analysis)
        choice = choosing.recall(study_id, analysis)
        info = choosing.pick_info(study_id, analysis, choice.c)
        # The card is drawn before the figure, which takes the browser longer.
        pick_card.draw(study_id, analysis, choice, info)
        with left:
            front(study_id, analysis, choosing.spots(study_id, analysis, choice, info))


def chooser(study_id: int, analysis: Analysis) -> None:
    """Sliders or the rule editor."""
    by = st.segmented_control(
        "Choose by",
        ["Preference", "Rule"],
        default="Preference",
        required=True,
        key="choose_by",
        label_visibility="collapsed",
        width="stretch",
        persist_state="session",
    )
    if by == "Rule":
        rule_editor.draw(study_id, analysis)
        return
    kept = choosing.preference(study_id)
    weights = preference.current(study_id, analysis.tasks)
    moved = {"on_change": preference_moved, "args": (study_id, analysis)}
    places = st.columns(2 if len(analysis.tasks) > 4 else 1, gap="medium")
    for number, task in enumerate(analysis.tasks):
        key = f"pref_{study_id}_{task}"
        st.session_state.setdefault(key, weights[task])
        places[number % len(places)].slider(shell.plain(task), 0, 100, step=5, key=key, **moved)
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
        {task: st.session_state[f"pref_{study_id}_{task}"] for task in analysis.tasks},
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
    """The front as a scatter or, for more tasks, parallel coordinates; a click picks."""
    tasks = analysis.tasks
    count = len(tasks)
    view, x, y, colour = "Scatter", 0, 1, None
    numbers = list(range(count))
    if count > 2:
        with st.container(horizontal=True):
            view = st.segmented_control(
                "View",
                ["Parallel", "Scatter"] if count > 3 else ["Scatter", "Parallel"],
                default="Parallel" if count > 3 else "Scatter",
                required=True,
                key=f"front_view_{study_id}",
                persist_state="session",
            )
            if view == "Scatter":
                x = st.selectbox(
                    "Across", numbers, 0, key=f"front_x_{study_id}", format_func=tasks.__getitem__, width=170
                )
                y = st.selectbox(
                    "Up", numbers, 1, key=f"front_y_{study_id}", format_func=tasks.__getitem__, width=170
                )
            colour = st.selectbox(
                "Colour",
                numbers,
                2 if count == 3 else 0,
                key=f"front_colour_{study_id}",
                format_func=tasks.__getitem__,
                width=170,
            )
    info = front_info(
        tasks,
        analysis.metrics,
        analysis.front.c,
        analysis.front.predicted,
        spots=spots,
        most=MOST_LINES if view == "Parallel" else None,
    )
    if view == "Scatter":
        figure = front_scatter(info, shell.palette(), x=x, y=y, colour=colour)
    else:
        figure = front_parallel(info, shell.palette(), colour=colour or 0)
    st.plotly_chart(
        figure,
        key=f"front_chart_{study_id}",
        on_select=lambda: point_clicked(study_id, analysis),
        selection_mode="points",
        theme=None,
        config=shell.PLOT,
    )


def point_clicked(study_id: int, analysis: Analysis) -> None:
    """A clicked point of the front becomes the pick; so does one clicked again, which unselects it."""
    points = st.session_state[f"front_chart_{study_id}"]["selection"]["points"]
    rows = [point["customdata"] for point in points if isinstance(point.get("customdata"), int | float)]
    row = int(rows[0]) if rows else st.session_state.get(f"clicked_row_{study_id}")
    if row is None or not 0 <= row < len(analysis.front.c):
        return
    st.session_state[f"clicked_row_{study_id}"] = row
    choosing.remember(study_id, choosing.Choice("point", analysis.front.c[row], {"kind": "point"}))


draw()
