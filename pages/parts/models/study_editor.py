"""A study file's text, with what is wrong in it, and Save."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.studies.config.study_file import StudyFile, parse_study, read_study_file
from mapmerge_core.studies.config.yaml_text import MAX_BYTES
from pages.parts.models import saving
from pages.parts.shared import shell

LINES = 24
"""Lines of a long file that are in view at once."""
LINE_HEIGHT = 20
"""Pixels."""


def draw(path: Path, *, shipped: bool) -> tuple[StudyFile, str] | None:
    """Draw the editor of a study file.

    Args:
        path: The file.
        shipped: Whether it comes with mapmerge, and is saved under a name of the person's own only.

    Returns:
        The study and the text that says it, as they are now; None while the text is no study.

    Raises:
        StudyError: The file can't be read.
    """
    kept = _read(path)
    with st.container(key="study_text"):
        text = st.text_area(
            path.name,
            kept,
            key=key(path),
            height=LINE_HEIGHT * min(LINES, kept.count("\n") + 2),
            label_visibility="collapsed",
            persist_state="session",
        )
    try:
        study_file = parse_study(text or "", path.parent)
    except MapMergeError as error:
        shell.show_error(error)
        return None
    if text != kept:
        if shipped:
            st.caption("Changed. It comes with mapmerge: save it under a name of your own.")
        elif st.button("Save", key="save_text", icon=":material/save:"):
            with shell.errors_shown():
                saving.write_text(path, text)
                st.rerun()
    return study_file, text or ""


def key(path: Path) -> str:
    """Return where the session keeps a study file's text as it is being edited."""
    return f"study_text_{path}"


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            read_study_file(path)  # says why not
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StudyError(f"{path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is no text in UTF-8, so it is no study file.") from error
