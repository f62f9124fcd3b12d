"""Keeping the study in view as a study file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.files import absolute, write_atomically
from pages.parts.shared import shell

ENDINGS = (".yaml", ".yml")


def popover(write: Callable[[Path], None], usual: Path, opened: Callable[[Path], None]) -> None:
    """Draw a button that asks where to, and writes the file.

    Args:
        write: Writes the file to a path; raises a MapMergeError where it can't.
        usual: Where to, unless the person says otherwise.
        opened: Called with the path once it is written.
    """
    with st.popover("Save as study file", icon=":material/save:", key="save_study"):
        text = st.text_input("Path", str(usual), key=f"save_path_{usual}", width=520)
        try:
            path = checked(text or "")
        except MapMergeError as error:
            shell.show_error(error)
            return
        agreed = not path.exists() or st.checkbox("Replace the file that is there", key="save_replace")
        st.button(
            "Save",
            key="save",
            type="primary",
            icon=":material/save:",
            disabled=not agreed,
            on_click=_save,
            args=(path, write, opened),
        )
    if problem := st.session_state.pop("save_problem", None):
        shell.show_error(problem)


def _save(path: Path, write: Callable[[Path], None], opened: Callable[[Path], None]) -> None:
    try:
        write(path)
    except MapMergeError as error:
        st.session_state["save_problem"] = error
        return
    opened(path)
    st.toast(f"Saved as {shell.plain(path.name)}", icon=":material/check:")


def checked(text: str) -> Path:
    """Return the path of a study file that a person typed.

    Raises:
        StudyError: No study file could have it.
    """
    path = absolute(text.strip())
    if path.suffix.lower() not in ENDINGS:
        raise StudyError(f"{path.name or 'The path'} is no study file's name: let it end in .yaml.")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a study file as it was typed, with its comments.

    Raises:
        StudyError: It can't be written; a file that was there before is then as it was.
    """
    try:
        with write_atomically(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds what isn't text"
        raise StudyError(f"{path} can't be written: {reason}.") from error
