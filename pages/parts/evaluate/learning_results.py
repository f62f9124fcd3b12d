"""How a learned set forms, while it is learned and afterwards: the tasks' objectives and measured models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.runs.learning import look_preferences

from mapmerge_core.charts import trade_offs
from mapmerge_core.charts.learning import (
    forming_info,
    forming_panels,
    forming_scatter,
    training_info,
    training_lines,
)
from pages.parts.shared import choice as choosing
from pages.parts.shared import pictures, shell, state

if TYPE_CHECKING:
    from mapmerge_core.merges._training_settings import TrainingPoint

    from mapmerge_core.charts.learning import FormingInfo, Look
    from mapmerge_core.studies.store.rows import RunRow, StudyRow

EVERY = 2
"""Seconds between looks at a run that is live."""


def draw(study: StudyRow, run: RunRow, *, is_live: bool) -> None:
    """A run of Pareto Merging; redrawn every few seconds while it is live."""
    st.fragment(_results, run_every=EVERY if is_live else None)(study, run, is_live)


def _results(study: StudyRow, run: RunRow, is_live: bool) -> None:
    with shell.errors_shown():
        points, looks = state.training_points(run.id), state.learned_looks(run.id)
        if not points and not looks:
            if is_live:
                pictures.busy("Reading the models; the first steps will be here soon…")
            return
        training = run.settings.training or Training()
        objectives(study, training, points)
        info = gathered(study, training, looks)
        if info.looks:
            forming(info, is_live=is_live)
        # Two tasks' are the last line of the chart above.
        if run.status == "done" and info.is_finished and len(info.tasks) > 2:
            finished(study.id, info)


def objectives(study: StudyRow, training: Training, points: list[TrainingPoint]) -> None:
    """What training lowers, task by task."""
    st.subheader("What training lowers", anchor=False)
    info = training_info(study.spec.task_names, points, training)
    st.plotly_chart(
        training_lines(info, shell.palette()), key="training_chart", theme=None, config=shell.PLOT
    )
    if training.data_free:
        lowered = "How far the merged weights are from each task's own"
    elif training.balance:
        lowered = (
            "How unsure merged models are of each task's images, and how unevenly they choose its classes"
        )
    else:
        lowered = "How unsure merged models are of each task's images"
    st.caption(f"{lowered}, over preferences drawn at random.")


def gathered(study: StudyRow, training: Training, looks: list[Look]) -> FormingInfo:
    """What the models measured on the way."""
    tasks = study.spec.task_names
    return forming_info(
        tasks, study.spec.metrics, looks, followed=look_preferences(len(tasks)), steps=training.steps
    )


def forming(info: FormingInfo, *, is_live: bool) -> None:
    """What the models measured on the way: two tasks against each other, of more each by itself."""
    st.subheader("Models so far, on validation" if is_live else "Models, on validation", anchor=False)
    tasks = info.tasks
    if len(tasks) == 2:
        figure = forming_scatter(info, shell.palette())
        text = f"Each line leads from the whole weight on {tasks[1]} to the whole weight on {tasks[0]}."
    else:
        figure = forming_panels(info, shell.palette())
        text = "How far a task's two lines part is what the set has learned to trade off."
    st.plotly_chart(figure, key="forming_chart", theme=None, config=shell.PLOT)
    st.caption(shell.plain(text))


def finished(study_id: int, info: FormingInfo) -> None:
    """The preferences that were measured once all was learned."""
    last = info.looks[-1]
    st.subheader("Preferences measured at the end", anchor=False)
    front = trade_offs.front_info(
        info.tasks,
        info.metrics,
        last.gammas,
        last.values,
        spots=choosing.anchor_spots(state.anchors(study_id)),
        most=trade_offs.MOST_LINES,
        made_by="preference",
    )
    if len(info.tasks) == 3:
        figure = trade_offs.front_scatter(front, shell.palette(), colour=2, height=420)
    else:
        figure = trade_offs.front_parallel(front, shell.palette(), height=420)
    st.plotly_chart(figure, key="finished_chart", theme=None, config=shell.PLOT)
