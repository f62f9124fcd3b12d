"""What the check of a study's models and datasets found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from mapmerge_core.charts.models import cosine_heatmap
from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.families import family_info
from pages.parts.shared import pictures, shell
from pages.parts.shared.words import size

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.inputs.checking import DataCheck, ModelCheck, SpecCheck
    from pages.parts.models.diagnosis import Diagnosis

LISTED = 500
"""Tensors that are listed where models don't fit."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}
COLUMNS = {"image": "images", "label": "labels", "text": "texts"}


def problems(found: Diagnosis) -> None:
    """Everything that doesn't fit, by tensor and shape."""
    if not found.problems:
        return
    with st.expander("Why it doesn't fit", icon=":material/rule:", key="why"):
        frame = pd.DataFrame(found.problems[:LISTED], columns=["Model", "What doesn't fit"])
        st.dataframe(
            frame,
            hide_index=True,
            key="problems",
            column_config={"Model": st.column_config.TextColumn(width="small")},
        )
        rest = len(found.problems) - LISTED
        if rest > 0:
            st.caption(f"And {rest:,} more.")


def draw(spec: StudySpec, check: SpecCheck) -> None:
    """Models, their task vectors and their datasets."""
    for model in check.models:
        if model.warning:
            st.warning(shell.plain(model.warning), icon=":material/warning:")
    _table(spec, check)
    left, right = st.columns([1, 1.4], gap="large")
    with left:
        st.subheader("How alike the task vectors are", anchor=False)
        st.plotly_chart(
            cosine_heatmap([model.task for model in check.models], check.cosines, shell.palette()),
            key="cosines",
            theme=None,
            config={"displayModeBar": False},
        )
        st.caption("Cosine between what each fine-tuning changed. Near 0: merging disturbs little.")
    with right:
        st.subheader("What the tasks look like", anchor=False)
        for model in check.models:
            _dataset(spec, model)


def _table(spec: StudySpec, check: SpecCheck) -> None:
    """One row a model."""
    columns = {
        "Model": [model.task for model in check.models],
        "Fits": [f"{model.n_tensors} tensors, {model.dtypes}" for model in check.models],
        "Tensors changed": [model.n_changed for model in check.models],
        "L1": [model.l1_ratio for model in check.models],
        "L2": [model.l2_ratio for model in check.models],
        "Size": [size(model.n_bytes) for model in check.models],
        "Metric": [metric.name for metric in spec.metrics],
    }
    data = [model.data for model in check.models if model.data]
    if any(found.n_classes for found in data):
        columns["Classes"] = [model.data.n_classes if model.data else None for model in check.models]
    if data:
        for name, split in (("Validation", "val"), ("Test", "test")):
            columns[name] = [model.data.sizes.get(split) if model.data else None for model in check.models]
    frame = pd.DataFrame(columns)
    top = frame[["L1", "L2"]].max().max()
    bar = {"format": "percent", "min_value": 0.0, "max_value": float(top) or 1.0}
    examples = family_info(spec.family).examples or "examples"
    st.dataframe(
        frame,
        hide_index=True,
        height="content",
        key="models_table",
        column_config={
            "Fits": st.column_config.TextColumn("Keys, shapes, dtypes fit"),
            "L1": st.column_config.ProgressColumn("Task vector, L1", help="|v|₁ / |θ_pre|₁", **bar),
            "L2": st.column_config.ProgressColumn("Task vector, L2", help="|v|₂ / |θ_pre|₂", **bar),
            "Validation": st.column_config.NumberColumn(f"Validation {examples}"),
            "Test": st.column_config.NumberColumn(f"Test {examples}"),
        },
    )


def _dataset(spec: StudySpec, model: ModelCheck) -> None:
    """One task's dataset: its facts, and some of it."""
    with st.container(gap=None):
        st.markdown(f"**{shell.plain(model.task)}**")
        st.caption(" · ".join(facts(model.data)) if model.data else "Your own code reads this task's data.")
    if model.data is None:
        return
    try:
        if family_info(spec.family).examples == "texts":
            pictures.quotes(pictures.texts(model.data.source, 3))
        else:
            pictures.strip(pictures.samples(model.data.source, 8), "labelled")
    except (MapMergeError, OSError) as error:
        st.caption(f":material/hide_image: {shell.plain(str(error))}")
    for note in notes(model.data):
        st.caption(f":material/info: {shell.plain(note)}")


def facts(data: DataCheck) -> list[str]:
    """Classes, sizes of the splits and columns, as Markdown."""
    said = [f"{data.n_classes} classes"] if data.n_classes else []
    said.append(", ".join(f"{data.sizes[split]:,} {word}" for split, word in SPLITS.items() if split in data.sizes))
    if data.columns:
        said.append(", ".join(f"{COLUMNS.get(what, what)}: `{column}`" for what, column in data.columns.items()))
    return said


def notes(data: DataCheck) -> list[str]:
    """What a person should know of the dataset."""
    if not data.corrupt:
        return list(data.notes)
    named = ", ".join(data.corrupt[:3]) + (" and others" if len(data.corrupt) > 3 else "")
    count = len(data.corrupt)
    return [*data.notes, f"{count:,} unreadable image{'s are' if count > 1 else ' is'} left out: {named}."]
