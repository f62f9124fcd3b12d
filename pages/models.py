"""Choose models, see whether they fit together, and make a study of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from mapmerge_core.charts.models import cosine_heatmap
from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.studies.spec import StudySpec, TaskSpec, read_manifest, spec_from_manifest
from pages.parts import background, pictures, shell, state, transform_form
from pages.parts.words import size

if TYPE_CHECKING:
    from mapmerge_core.studies.checking import SpecCheck


def draw() -> None:
    """The page."""
    shell.heading(
        "Models",
        "Models that were fine-tuned from one pre-trained model can be merged. See whether yours fit.",
    )
    with st.container(border=True, key="card_folder"):
        text = st.text_input(
            "Folder with the models",
            str(state.zoo()),
            key="folder",
            persist_state="session",
            help="With a manifest.json, or with checkpoints (.safetensors, .pt) and datasets (.npz).",
        )
        folder = typed_folder(text)
        if folder is None:
            st.error(
                f"There is no folder {shell.plain(text)}: type the path of one.", icon=":material/folder_off:"
            )
            return
        try:
            spec = from_manifest(folder) if (folder / "manifest.json").exists() else from_files(folder)
        except MapMergeError as error:
            shell.show_error(error)
            return
        except OSError as error:
            st.error(f"{shell.plain(str(folder))} can't be read: {error.strerror}.", icon=":material/lock:")
            return
        if spec is None:
            return
        if st.button("Check", key="check", type="primary", icon=":material/fact_check:"):
            st.session_state["checked_spec"] = spec
    if st.session_state.get("checked_spec") == spec:
        findings(spec)


def typed_folder(text: str) -> Path | None:
    """The folder that a person typed the path of; None where there is none."""
    try:
        folder = Path(text.strip()).expanduser()
        return folder if folder.is_dir() else None
    # Unknown users, names that are too long, and characters that no path may have.
    except (OSError, RuntimeError, ValueError):
        return None


def from_manifest(folder: Path) -> StudySpec | None:
    """The tasks of a folder with a manifest."""
    manifest = read_manifest(folder)
    names = [task.name for task in manifest.tasks]
    st.caption(f"**{shell.plain(manifest.title)}**, as its manifest describes it")
    chosen = st.pills("Tasks to merge", names, selection_mode="multi", default=names, key="tasks")
    if len(chosen) < 2:
        st.info("Choose two tasks or more.", icon=":material/info:")
        return None
    return spec_from_manifest(folder, [name for name in names if name in chosen])


def from_files(folder: Path) -> StudySpec | None:
    """The tasks of a folder without a manifest, put together from its files."""
    checkpoints = background.list_checkpoints(folder)
    datasets = sorted(path.name for path in folder.glob("*.npz"))
    if len(checkpoints) < 3:
        raise StudyError(
            f"{folder} holds {len(checkpoints)} checkpoints: merging takes a pre-trained model and at least "
            "two fine-tuned ones."
        )
    if not datasets:
        raise StudyError(f"{folder} holds no dataset (.npz) to measure models on: add one for each task.")
    st.caption("This folder has no manifest.json: say which file is what.")
    left, right = st.columns(2)
    guess = next((number for number, name in enumerate(checkpoints) if "pre" in name.lower()), 0)
    pretrained = left.selectbox("Pre-trained model", checkpoints, guess, key="pretrained")
    configurations = sorted(path.name for path in folder.glob("*.json"))
    architecture = right.selectbox(
        "Architecture",
        configurations,
        0 if configurations else None,
        key="architecture",
        accept_new_options=True,
        placeholder="A configuration file, or type an open_clip name such as ViT-B-32",
    )
    others = [name for name in checkpoints if name != pretrained]
    frame = pd.DataFrame(
        {
            "use": True,
            "task": [Path(name).stem for name in others],
            "checkpoint": others,
            "data": [_matching(name, datasets) for name in others],
        }
    )
    rows = st.data_editor(
        frame,
        key=f"files_{folder}_{pretrained}",
        hide_index=True,
        width="stretch",
        column_config={
            "use": st.column_config.CheckboxColumn("Merge", width="small"),
            "task": st.column_config.TextColumn("Task", required=True),
            "checkpoint": st.column_config.TextColumn("Fine-tuned model", disabled=True),
            "data": st.column_config.SelectboxColumn("Dataset", options=datasets),
        },
    )
    if not architecture:
        st.info("Choose the architecture.", icon=":material/info:")
        return None
    tasks = []
    for row in rows[rows["use"]].to_dict("records"):
        if not row["data"]:
            raise StudyError(
                f"The task '{row['task']}' has no dataset: choose one in its row, or leave the task out."
            )
        tasks.append(TaskSpec(row["task"] or "", folder / row["checkpoint"], folder / row["data"]))
    named_file = folder / architecture
    return StudySpec(
        architecture=str(named_file) if named_file.is_file() else architecture,
        pretrained=folder / pretrained,
        tasks=tuple(tasks),
    )


def _matching(checkpoint: str, datasets: list[str]) -> str | None:
    stem = Path(checkpoint).stem.lower()
    return next((name for name in datasets if Path(name).stem.lower() in (stem, stem.split("-")[0])), None)


def findings(spec: StudySpec) -> None:
    """What the check found; then the way to a study."""
    try:
        check = background.check(spec)
    except MapMergeError as error:
        shell.show_error(error)
        return
    if check is None:
        return
    create(spec)
    st.success(
        f"All {len(check.models)} models fit the pre-trained one; {check.n_parameters:,} parameters are "
        "merged.",
        icon=":material/check_circle:",
    )
    for model in check.models:
        if model.warning:
            st.warning(shell.plain(model.warning), icon=":material/warning:")
    table(check)
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
            st.markdown(f"**{shell.plain(model.task)}**")
            pictures.strip(pictures.samples(model.data, 8), "labelled")


def table(check: SpecCheck) -> None:
    """One row a model."""
    frame = pd.DataFrame(
        {
            "Model": [model.task for model in check.models],
            "Fits": [f"{model.n_tensors} tensors, {model.dtypes}" for model in check.models],
            "Tensors changed": [model.n_changed for model in check.models],
            "L1": [model.l1_ratio for model in check.models],
            "L2": [model.l2_ratio for model in check.models],
            "Size": [size(model.n_bytes) for model in check.models],
            "Classes": [model.n_classes for model in check.models],
            "Validation": [model.n_val for model in check.models],
            "Test": [model.n_test for model in check.models],
        }
    )
    top = frame[["L1", "L2"]].max().max()
    bar = {"format": "percent", "min_value": 0.0, "max_value": float(top)}
    st.dataframe(
        frame,
        hide_index=True,
        height="content",
        key="models_table",
        column_config={
            "Fits": st.column_config.TextColumn("Keys, shapes, dtypes fit"),
            "L1": st.column_config.ProgressColumn("Task vector, L1", help="|v|₁ / |θ_pre|₁", **bar),
            "L2": st.column_config.ProgressColumn("Task vector, L2", help="|v|₂ / |θ_pre|₂", **bar),
            "Validation": st.column_config.NumberColumn("Validation images"),
            "Test": st.column_config.NumberColumn("Test images"),
        },
    )


def create(spec: StudySpec) -> None:
    """Name the study, make it, and go on to Evaluate."""
    with st.container(border=True, key="card_create", horizontal=True, vertical_alignment="bottom"):
        transform = transform_form.draw("transform")
        usual = " + ".join(spec.task_names)
        if transform:
            usual = f"{usual} on {transform.label}"
        name = st.text_input("Name of the study", key="study_name", placeholder=usual, width=480)
        if st.button("Create study", key="create_study", type="primary", icon=":material/add:"):
            with shell.errors_shown(), st.spinner("Reading the files for their checksums…"):
                made = replace(spec, transform=transform)
                study = state.store().create_study(name or (usual if transform else None), made)
                shell.go("pages/evaluate.py", study.id)


draw()
