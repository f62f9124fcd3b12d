"""Choosing for unlabelled data: a task that no model was fine-tuned for (Pareto Merging, section 4.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.entropies import entropies_info, entropy_bars
from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families import family_info
from pages.parts.shared import asked, live, shell, state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.runs.unlabelled import UnlabelledChoice

WAY = "Unlabelled data"


def ways(spec: StudySpec) -> str:
    """Asks how to choose a model: by "Preference", by "Rule", or for `WAY`, where the study's models can."""
    offered = ["Preference", "Rule"]
    # Heads would have to be trained for new classes; CLIP's are made of their names.
    if family_info(spec.family).gives_logits:
        offered.append(WAY)
    if st.session_state.get("choose_by") not in offered:
        st.session_state["choose_by"] = offered[0]
    return st.segmented_control(
        "Choose by",
        offered,
        required=True,
        key="choose_by",
        label_visibility="collapsed",
        width="stretch",
        persist_state="session",
    )


def draw(study: state.StudyRow, run_id: int | None, chosen: Callable[[np.ndarray, Mapping[str, str]], None]) -> None:
    """The form, what goes on, and what came of it.

    Args:
        study: The study.
        run_id: The run whose learned set is chosen from; None for the study's front.
        chosen: Called once with the point of the surest model, and how a pick of it is kept.
    """
    key = f"unlabelled_{study.id}_{run_id}"
    st.caption(
        "Images of a task that has no fine-tuned model: of 30 merged models, the one that is surest of them "
        "becomes your pick. Labels are never read."
    )
    st.text_input(
        "Dataset",
        key=f"unlabelled_path_{study.id}",
        placeholder="/data/images, or hf://datasets/org/name",
        persist_state="session",
        help="A file, a folder of images, or an address as on the Models page.",
    )
    st.text_area(
        "Class names",
        key=f"unlabelled_names_{study.id}",
        placeholder="cat, dog, horse",
        height=80,
        persist_state="session",
        help="Separated by commas, or one a line. Leave this empty if the dataset has them.",
    )
    st.button(
        "Choose for these images",
        key="unlabelled_choose",
        type="primary",
        icon=":material/image_search:",
        on_click=_start,
        args=(key, study.id, run_id),
        disabled=state.live_job(study.id, "choose") is not None,
    )
    problem: MapMergeError | None = st.session_state.get(f"problem_{key}")
    if problem is not None:
        shell.show_error(problem)
        return
    live.watch(study.id, "choose")
    found = asked.result(key)
    if found is None:
        return
    choice: UnlabelledChoice = found.result
    if found.is_new:
        chosen(choice.points[choice.best], {"kind": "unlabelled", "data": found.of})
    result(study.spec.task_names, choice, is_learned=run_id is not None)


def _start(key: str, study_id: int, run_id: int | None) -> None:
    try:
        source = DataSource(
            path=st.session_state[f"unlabelled_path_{study_id}"].strip(),
            class_names=parse_names(st.session_state[f"unlabelled_names_{study_id}"]),
        )
        asked.remember(key, state.jobs().choose_unlabelled(study_id, source, run_id), str(source.path))
    except MapMergeError as error:
        st.session_state[f"problem_{key}"] = error
    else:
        st.session_state[f"problem_{key}"] = None


def parse_names(text: str) -> tuple[str, ...] | None:
    """Class names as a person typed them; None where there are none."""
    names = tuple(name.strip() for name in re.split(r"[,\n]", text) if name.strip())
    return names or None


def result(tasks: tuple[str, ...], choice: UnlabelledChoice, *, is_learned: bool) -> None:
    """How sure each model was, and of how many images."""
    info = entropies_info(tasks, choice.points, choice.entropies, "preference" if is_learned else "coefficients")
    st.plotly_chart(
        entropy_bars(info, shell.palette()),
        key="unlabelled_chart",
        theme=None,
        config={"displayModeBar": False},
    )
    st.caption(
        f"The mean entropy of {len(choice.entropies)} models' predictions on {choice.n_images:,} images; the "
        f"least is {info.entropies[0]:.3f} nats."
    )
