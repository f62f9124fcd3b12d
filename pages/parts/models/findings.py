"""What the check of a study's models and datasets found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from mapmerge_core.charts.cosines import cosine_heatmap
from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.families import find_family
from pages.parts.shared import pictures, shell
from pages.parts.shared.words import size

if TYPE_CHECKING:
    from mapmerge_core.studies.config import StudyConfig, TaskConfig
    from mapmerge_core.studies.inputs.checking import DataCheck, StudyCheck
    from pages.parts.models.diagnosis import Diagnosis

LISTED = 500
"""Tensors that are listed where models don't fit."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}
COLUMNS = {"image": "images", "label": "labels", "text": "texts"}


def problems(diagnosis: Diagnosis) -> None:
    """List everything that doesn't fit, by tensor and shape."""
    if not diagnosis.problems:
        return
    with st.expander("Why it doesn't fit", icon=":material/rule:", key="why"):
        frame = pd.DataFrame(diagnosis.problems[:LISTED], columns=["Model", "What doesn't fit"])
        st.dataframe(
            frame, hide_index=True, key="problems", column_config={"Model": st.column_config.TextColumn(width="small")}
        )
        rest = len(diagnosis.problems) - LISTED
        if rest > 0:
            st.caption(f"And {rest:,} more.")


def draw(config: StudyConfig, check: StudyCheck) -> None:
    """Draw the models, their task vectors, and the tasks with their data."""
    for model in check.models:
        if model.warning:
            st.warning(shell.plain(model.warning), icon=":material/warning:")
    _models(check)
    _tasks(config, check)
    left, right = st.columns([1, 1.4], gap="large")
    with left:
        st.subheader("How alike the task vectors are", anchor=False)
        st.plotly_chart(
            cosine_heatmap([model.name for model in check.models], check.cosines, shell.palette()),
            key="cosines",
            theme=None,
            config={"displayModeBar": False},
        )
        st.caption("Cosine between what each fine-tuning changed. Near 0: merging disturbs little.")
    with right:
        st.subheader("What the tasks look like", anchor=False)
        for task in config.tasks:
            _dataset(config, task, check.data.get(task.name))


def _models(check: StudyCheck) -> None:
    """Draw one row a model."""
    frame = pd.DataFrame(
        {
            "Model": [model.name for model in check.models],
            "Fits": [f"{model.n_tensors} tensors, {model.dtypes}" for model in check.models],
            "Tensors changed": [model.n_changed for model in check.models],
            "L1": [model.l1_ratio for model in check.models],
            "L2": [model.l2_ratio for model in check.models],
            "Size": [size(model.n_bytes) for model in check.models],
        }
    )
    top = frame[["L1", "L2"]].max().max()
    bar: dict[str, Any] = {"format": "percent", "min_value": 0.0, "max_value": float(top) or 1.0}
    st.dataframe(
        frame,
        hide_index=True,
        height="content",
        key="models_table",
        column_config={
            "Fits": st.column_config.TextColumn("Keys, shapes, dtypes fit"),
            "L1": st.column_config.ProgressColumn("Task vector, L1", help="|v|₁ / |θ_pre|₁", **bar),
            "L2": st.column_config.ProgressColumn("Task vector, L2", help="|v|₂ / |θ_pre|₂", **bar),
        },
    )


def _tasks(config: StudyConfig, check: StudyCheck) -> None:
    """Draw one row a task."""
    examples = find_family(config.family).examples or "examples"
    columns: dict[str, list[object]] = {
        "Task": [task.name for task in config.tasks],
        "Fine-tuned model": [task.model or "none: a skill to keep" for task in config.tasks],
        "Metrics": [", ".join(metric.name for metric in task.metrics) for task in config.tasks],
    }
    data = [check.data.get(task.name) for task in config.tasks]
    if any(one and one.n_classes for one in data):
        columns["Classes"] = [one.n_classes if one else None for one in data]
    if any(data):
        for name, split in (("Validation", "val"), ("Test", "test")):
            columns[f"{name} {examples}"] = [one.sizes.get(split) if one else None for one in data]
    st.dataframe(pd.DataFrame(columns), hide_index=True, height="content", key="tasks_table")


def _dataset(config: StudyConfig, task: TaskConfig, data: DataCheck | None) -> None:
    """Draw one task's dataset: its facts, and some of it."""
    with st.container(gap=None):
        st.markdown(f"**{shell.plain(task.name)}**")
        st.caption(" · ".join(facts(data)) if data else "Your own code reads this task's data.")
    if data is None:
        return
    try:
        if find_family(config.family).examples == "texts":
            pictures.quotes(pictures.texts(data.source, 3))
        else:
            pictures.strip(pictures.samples(data.source, 8), "labelled")
    except (MapMergeError, OSError) as error:
        st.caption(f":material/hide_image: {shell.plain(str(error))}")
    for note in notes(data):
        st.caption(f":material/info: {shell.plain(note)}")


def facts(data: DataCheck) -> list[str]:
    """Return classes, sizes of the splits and columns, as Markdown."""
    parts = [f"{data.n_classes} classes"] if data.n_classes else []
    parts.append(", ".join(f"{data.sizes[split]:,} {word}" for split, word in SPLITS.items() if split in data.sizes))
    if data.columns:
        parts.append(", ".join(f"{COLUMNS.get(what, what)}: `{column}`" for what, column in data.columns.items()))
    return parts


def notes(data: DataCheck) -> list[str]:
    """Return what a person should know of the dataset."""
    if not data.corrupt:
        return list(data.notes)
    named = ", ".join(data.corrupt[:3]) + (" and others" if len(data.corrupt) > 3 else "")
    count = len(data.corrupt)
    return [*data.notes, f"{count:,} unreadable image{'s are' if count > 1 else ' is'} left out: {named}."]
