"""The front, and everything that helps to choose one model on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.trade_offs import MOST_LINES, front_info, front_parallel, front_scatter
from mapmerge_core.errors import MapMergeError
from pages.parts import choice as choosing
from pages.parts import pick_card, rule_editor, shell, state

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
    analysis = state.analysis(study.id)
    if analysis.front is None:
        shell.empty(
            "No front yet",
            shell.plain(analysis.problem or ""),
            ("pages/evaluate.py", "Go to Evaluate", ":material/monitoring:"),
            study.id,
        )
        return
    if state.live_run(study.id):
        st.info(
            "A run is going on: this front shows what was known when the page was opened.",
            icon=":material/sync:",
        )
    if analysis.front.is_single_point:
        st.info(
            "The front is a single point: one model is best at every task, so there is nothing to trade off.",
            icon=":material/adjust:",
        )
    workbench(study.id)


@st.fragment
def workbench(study_id: int) -> None:
    """Everything that follows the pick; redrawn alone when a slider moves."""
    with shell.errors_shown():
        analysis = state.analysis(study_id)
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
    places = st.columns(2 if len(analysis.tasks) > 4 else 1, gap="medium")
    for number, task in enumerate(analysis.tasks):
        places[number % len(places)].slider(
            shell.plain(task),
            0,
            100,
            50,
            5,
            key=f"pref_{task}",
            on_change=preference_moved,
            args=(study_id, analysis),
            persist_state="session",
        )
    with st.expander("How preferences are weighed", icon=":material/tune:"):
        st.segmented_control(
            "Scalarisation",
            list(SCALARISATIONS),
            format_func=SCALARISATIONS.get,
            default="weighted_sum",
            required=True,
            key="scalarisation",
            on_change=preference_moved,
            args=(study_id, analysis),
            persist_state="session",
        )
        st.toggle(
            "Count each task relative to its own model",
            key="normalise",
            on_change=preference_moved,
            args=(study_id, analysis),
            persist_state="session",
        )
    problem = st.session_state.get("preference_problem")
    if problem:
        st.error(problem, icon=":material/error:")
    st.caption("Equal weights give the best mean. Or click any point of the front.")


def preference_moved(study_id: int, analysis: Analysis) -> None:
    """A slider or an option changed: the front's row that suits the weights becomes the pick."""
    weights = {task: float(st.session_state[f"pref_{task}"]) for task in analysis.tasks}
    st.session_state["preference_problem"] = None
    try:
        choosing.remember(
            study_id,
            choosing.by_preference(
                analysis,
                weights,
                st.session_state.get("scalarisation") or "weighted_sum",
                normalise=bool(st.session_state.get("normalise")),
            ),
        )
    except MapMergeError as error:
        st.session_state["preference_problem"] = str(error)


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
                key="front_view",
                persist_state="session",
            )
            if view == "Scatter":
                x = st.selectbox(
                    "Across", numbers, 0, key="front_x", format_func=tasks.__getitem__, width=170
                )
                y = st.selectbox("Up", numbers, 1, key="front_y", format_func=tasks.__getitem__, width=170)
            colour = st.selectbox(
                "Colour",
                numbers,
                2 if count == 3 else 0,
                key="front_colour",
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
        key="front_chart",
        on_select=lambda: point_clicked(study_id, analysis),
        selection_mode="points",
        theme=None,
        config=shell.PLOT,
    )


def point_clicked(study_id: int, analysis: Analysis) -> None:
    """A clicked point of the front becomes the pick; so does one clicked again, which unselects it."""
    points = st.session_state["front_chart"]["selection"]["points"]
    rows = [point["customdata"] for point in points if isinstance(point.get("customdata"), int | float)]
    row = int(rows[0]) if rows else st.session_state.get("clicked_row")
    if row is None or not 0 <= row < len(analysis.front.c):
        return
    st.session_state["clicked_row"] = row
    choosing.remember(study_id, choosing.Choice("point", analysis.front.c[row], {"kind": "point"}))


draw()
