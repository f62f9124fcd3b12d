"""An exported model's files: where they are, how large, their checksum, and links to download them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import streamlit as st

from pages.parts.shared import exported, pictures, shell, state
from pages.parts.shared.words import size


def draw(pick_id: int, path: Path) -> None:
    """Draw the facts of a pick's file."""
    st.success("Exported, read back and compared.", icon=":material/check_circle:")
    is_folder = path.name == exported.IN_FOLDER
    pictures.facts([("Folder" if is_folder else "File", exported.title(path)), ("Size", size(path.stat().st_size))])
    st.caption("Path")
    st.code(str(path), language=None, wrap_lines=True)
    st.caption(f"SHA-256 of {exported.IN_FOLDER}" if is_folder else "SHA-256")
    st.code(state.checksum(path, path.stat().st_mtime_ns), language=None, wrap_lines=True)
    address = f"/download/{pick_id}"
    st.link_button(
        f"Download {path.name}" if is_folder else "Download",
        address,
        key="download",
        type="primary",
        icon=":material/download:",
        width="stretch",
    )
    others = exported.beside(path)
    if others:
        title = "Its other files, which loading needs" if is_folder else "Files beside it"
        with st.expander(title, icon=":material/folder:"):
            for other in others:
                st.link_button(
                    f"{shell.plain(other.name)} ({size(other.stat().st_size)})",
                    f"{address}/{quote(other.name)}",
                    type="tertiary",
                    icon=":material/download:",
                )


def card(path: Path | None) -> None:
    """Draw the model card beside the file."""
    card = None if path is None else exported.card(path)
    if card is None or not card.is_file():
        shell.empty("Not exported yet", "Press **Export**: the model card and the lines that load it appear here.")
        return
    with st.container(border=True, key="card_model"):
        # The first block between dashes is for model hubs.
        st.markdown(card.read_text(encoding="utf-8").split("---\n", 2)[-1])
