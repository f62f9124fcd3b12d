"""Keeping the study in view as a study file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.files import absolute
from pages.parts.shared import shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENDINGS = (".yaml", ".yml")


def popover(write: Callable[[Path], None], usual: Path, opened: Callable[[Path], None]) -> None:
    """A button that asks where to, and writes the file.

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
    """The path of a study file that a person typed.

    Raises:
        StudyError: where no study file could have it.
    """
    path = absolute(text.strip())
    if path.suffix.lower() not in ENDINGS:
        raise StudyError(f"{path.name or 'The path'} is no study file's name: let it end in .yaml.")
    return path


def write_text(path: Path, text: str) -> None:
    """Writes a study file as it was typed, with its comments.

    Raises:
        StudyError: It can't be written; a file that was there before is then as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "it holds what isn't text"
        raise StudyError(f"{path} can't be written: {reason}.") from error
