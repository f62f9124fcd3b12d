"""Choosing for unlabelled data: a task that no model was fine-tuned for (Pareto Merging, section 4.3)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.charts.bars import entropies_info, entropy_bars
from mapmerge_core.charts.units import point_text
from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.data_source import DataSource
from pages.parts.shared import asked, live, shell, state
from pages.parts.shared.choice import Choice

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.analysis import StudyAnalysis
    from mapmerge_core.studies.runs.unlabelled import UnlabelledChoice


def draw(analysis: StudyAnalysis, merge_id: int | None, chosen: Callable[[Choice], None]) -> None:
    """Draw the form, what goes on, and what came of it.

    Args:
        analysis: All of the study's merges.
        merge_id: The merge whose models are tried; None for the study's front.
        chosen: Called once with the surest model.
    """
    study_id = analysis.study_id
    key = f"unlabelled_{study_id}_{merge_id}"
    st.caption(
        "Images of a task that has no fine-tuned model: of 30 merged models, the one that is surest of them "
        "becomes your pick. Labels are never read."
    )
    st.text_input(
        "Dataset",
        key=f"unlabelled_path_{study_id}",
        placeholder="/data/images, or hf://datasets/org/name",
        persist_state="session",
        help="A file, a folder of images, or an address as on the Models page.",
    )
    st.text_area(
        "Class names",
        key=f"unlabelled_names_{study_id}",
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
        args=(key, study_id, merge_id),
        disabled=state.live_job(study_id, "choose") is not None,
    )
    problem: MapMergeError | None = st.session_state.get(f"problem_{key}")
    if problem is not None:
        shell.show_error(problem)
        return
    live.watch(study_id, "choose")
    answer = asked.answer(key)
    if answer is None:
        return
    result: UnlabelledChoice = answer.result
    if answer.is_new:
        best = result.best
        how = {"kind": "unlabelled", "data": answer.subject}
        chosen(Choice("unlabelled", result.merge_ids[best], result.points[best], how))
    entropies(analysis, result)


def _start(key: str, study_id: int, merge_id: int | None) -> None:
    st.session_state[f"problem_{key}"] = None
    try:
        source = DataSource(
            path=st.session_state[f"unlabelled_path_{study_id}"].strip(),
            class_names=parse_names(st.session_state[f"unlabelled_names_{study_id}"]),
        )
        asked.remember(key, state.jobs().choose_unlabelled(study_id, source, merge_id), str(source.path))
    except MapMergeError as error:
        st.session_state[f"problem_{key}"] = error


def parse_names(text: str) -> tuple[str, ...] | None:
    """Return class names as a person typed them; None where there are none."""
    names = tuple(name.strip() for name in re.split(r"[,\n]", text) if name.strip())
    return names or None


def entropies(analysis: StudyAnalysis, choice: UnlabelledChoice) -> None:
    """Draw how sure each model was, and say of how many images."""
    merges = {merge.merge.id: merge for merge in analysis.merges}
    models = [
        f"{merges[at].title}: {point_text(merges[at].space.names, x)}" if at in merges else ""
        for at, x in zip(choice.merge_ids, choice.points, strict=True)
    ]
    info = entropies_info(choice.entropies, models)
    st.plotly_chart(
        entropy_bars(info, shell.palette()), key="unlabelled_chart", theme=None, config={"displayModeBar": False}
    )
    st.caption(
        f"The mean entropy of {len(choice.entropies)} models' predictions on {choice.n_images:,} images; the "
        f"least is {info.entropies[0]:.3f} nats."
    )
