"""Choose models and tasks, see whether they fit together, and make a study of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError
from mapmerge_core.studies.config.demo import read_manifest
from mapmerge_core.studies.config.study_file import STUDY_FILE, StudyFile, read_study_file, write_study_file
from pages.parts.models import background, downloads, findings, proposal_form, saving, study_editor
from pages.parts.shared import shell, state

if TYPE_CHECKING:
    from mapmerge_core.studies.config import StudyConfig

READY = shell.ASSETS / "studies"
"""Study files that come with mapmerge."""


@dataclass(frozen=True)
class Offer:
    """A study that the page holds.

    Attributes:
        study: The study.
        usual: Where it is saved, unless the person says otherwise.
        text: The study file's text, of one that is open.
        shipped: Whether that file comes with mapmerge.
    """

    study: StudyFile
    usual: Path
    text: str | None = None
    shipped: bool = False

    def write(self, path: Path, config: StudyConfig) -> None:
        """Write the study, with what the person has agreed to in ``config``, to a study file.

        Raises:
            StudyError: It can't be written.
        """
        # Its own text keeps comments. What is shipped is meant to be copied with its relative paths.
        as_typed = self.shipped or path.parent == self.usual.parent
        if self.text is not None and as_typed and config == self.study.config:
            saving.write_text(path, self.text)
        else:
            write_study_file(path, replace(self.study, config=config))


def draw() -> None:
    """Draw the page."""
    shell.heading(
        "Models", "Models that were fine-tuned from one pre-trained model can be merged. See whether yours fit."
    )
    with st.container(border=True, key="card_folder"):
        text = place()
        try:
            offer = offered(text)
        except MapMergeError as error:
            shell.show_error(error)
            return
        except OSError as error:
            st.error(f"{shell.plain(text)} can't be read: {error.strerror}.", icon=":material/lock:")
            return
        if offer is None:
            return
        config = leaving_out(offer.study.config, st.session_state.get("leave_out", set()))
        fetches = False if background.is_checked(config) else downloads.draw(config)
        with st.container(horizontal=True, vertical_alignment="bottom"):
            if st.button(
                "Download and check" if fetches else "Check",
                key="check",
                type="primary",
                icon=":material/cloud_download:" if fetches else ":material/fact_check:",
                disabled=fetches is None,
            ):
                background.check_again(config)
                st.session_state["checked_config"] = config
            saving.popover(lambda path: offer.write(path, config), offer.usual, open_place)
    if st.session_state.get("checked_config") == config:
        outcome(offer, config, fetches=bool(fetches))


def place() -> str:
    """Ask where the models are, as typed or chosen."""
    ready = sorted(READY.glob("*.yaml"))
    left, right = st.columns([2.6, 1]) if ready else (st.container(), None)
    text = left.text_input(
        "Folder with the models, or a study file",
        str(state.zoo()),
        key="folder",
        persist_state="session",
        help="A folder of checkpoints and datasets, perhaps with a manifest.json, or a study file (.yaml).",
    )
    if right:
        right.selectbox(
            "Ready studies",
            ready,
            None,
            key="ready_study",
            format_func=ready_name,
            placeholder="Open one",
            on_change=open_ready,
        )
    return (text or "").strip()


@st.cache_data(show_spinner=False)
def ready_name(path: Path) -> str:
    """Return what a shipped study is called."""
    try:
        return read_study_file(path).name or path.stem
    except MapMergeError:
        return path.stem


def open_ready() -> None:
    """Open the chosen study, and offer the list anew."""
    if path := st.session_state["ready_study"]:
        open_place(path)
        st.session_state["ready_study"] = None


def open_place(path: Path) -> None:
    """Type a path into the field; a study file is read anew."""
    st.session_state["folder"] = str(path)
    st.session_state.pop(study_editor.key(path), None)


def offered(text: str) -> Offer | None:
    """Return the study that is at a place; None where something has to be said first.

    Raises:
        MapMergeError: There is none.
        OSError: The place can't be read.
    """
    path = typed_path(text)
    if path is None:
        st.error(
            f"There is no folder or study file {shell.plain(text)}: type the path of one.", icon=":material/folder_off:"
        )
        return None
    if path.is_file():
        return from_study_file(saving.checked(str(path)))
    has_manifest = (path / "manifest.json").exists()
    if not has_manifest and (path / STUDY_FILE).is_file():
        return from_study_file(path / STUDY_FILE)
    config = from_manifest(path) if has_manifest else proposal_form.draw(path)
    return None if config is None else Offer(StudyFile(config=config), path / STUDY_FILE)


def typed_path(text: str) -> Path | None:
    """Return the folder or file that a person typed the path of; None where there is none."""
    try:
        path = Path(text).expanduser().absolute()
        return path if text and path.exists() else None
    # Unknown users, names that are too long, and characters that no path may have.
    except (OSError, RuntimeError, ValueError):
        return None


def from_study_file(path: Path) -> Offer | None:
    """Return the study of a study file, whose text can be changed."""
    shipped = path.is_relative_to(READY)
    edited = study_editor.draw(path, shipped=shipped)
    if edited is None:
        return None
    study, text = edited
    return Offer(study, state.store().folder / path.name if shipped else path, text, shipped)


def from_manifest(folder: Path) -> StudyConfig | None:
    """Ask which of the tasks of a folder with a manifest to take."""
    manifest = read_manifest(folder)
    tasks = manifest.config.tasks
    names = [task.name for task in tasks]
    st.caption(f"**{shell.plain(manifest.title)}**, as its manifest describes it")
    chosen = st.pills("Tasks", names, selection_mode="multi", default=names, key="tasks")
    if not any(task.model for task in tasks if task.name in chosen):
        st.info("Choose a task with a fine-tuned model or more.", icon=":material/info:")
        return None
    return manifest.config.with_tasks([name for name in names if name in chosen])


def leaving_out(config: StudyConfig, paths: Collection[str], *, leave_out: bool = True) -> StudyConfig:
    """Return the study, with unreadable images of the datasets at ``paths`` left out or not."""
    tasks = tuple(
        replace(task, data=replace(task.data, skip_corrupt=leave_out))
        if task.data and str(task.data.path) in paths
        else task
        for task in config.tasks
    )
    return replace(config, tasks=tasks)


def agreements(config: StudyConfig, names: Collection[str]) -> None:
    """Draw a box for each of the named tasks to agree that its unreadable images are left out."""
    for task in config.tasks:
        if task.name in names and task.data is not None:
            path = str(task.data.path)
            st.checkbox(
                f"Leave out unreadable images of **{shell.plain(task.name)}**",
                path in st.session_state.get("leave_out", set()),
                key=f"leave_out_{path}",
                on_change=agree,
                args=(path, f"leave_out_{path}"),
            )


def agree(path: str, key: str) -> None:
    """Leave out a dataset's unreadable images, or no longer, and check again."""
    leave_out: bool = st.session_state[key]
    before = st.session_state.get("leave_out", set())
    st.session_state["leave_out"] = before | {path} if leave_out else before - {path}
    st.session_state["checked_config"] = leaving_out(st.session_state["checked_config"], {path}, leave_out=leave_out)


def outcome(offer: Offer, config: StudyConfig, *, fetches: bool) -> None:
    """Show what the check found; then the way to a study."""
    try:
        check = background.check(config, downloads=fetches)
    except MapMergeError as error:
        shell.show_error(error)
        if isinstance(error, CheckpointError | DatasetError) and (diagnosis := background.diagnosis(config)):
            agreements(config, diagnosis.corrupt)
            findings.problems(diagnosis)
        return
    if check is None:
        return
    create(offer, config)
    n_models = len(check.models)
    fit = "The model fits" if n_models == 1 else f"All {n_models} models fit"
    st.success(
        f"{fit} the pre-trained one; {check.n_parameters:,} parameters are merged.", icon=":material/check_circle:"
    )
    agreed = st.session_state.get("leave_out", set())
    agreements(config, [task.name for task in config.tasks if task.data and str(task.data.path) in agreed])
    findings.draw(config, check)


def create(offer: Offer, config: StudyConfig) -> None:
    """Name the study, make it, and go on to Evaluate."""
    with st.container(border=True, key="card_create", horizontal=True, vertical_alignment="bottom"):
        usual = offer.study.name or " + ".join(task.name for task in config.tasks)
        name = st.text_input("Name of the study", key="study_name", placeholder=usual, width=480)
        if st.button("Create study", key="create_study", type="primary", icon=":material/add:"):
            with shell.errors_shown(), st.spinner("Reading the files for their checksums…"):
                study = state.store().studies.create(name or offer.study.name or None, config)
                if offer.text is not None:
                    state.plan(study.id, offer.study.run)
                shell.go("pages/evaluate.py", study.id)


with shell.errors_shown():
    draw()
