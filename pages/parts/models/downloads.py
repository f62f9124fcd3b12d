"""What a study would download, said before anything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from mapmerge_core.errors import MapMergeError
from pages.parts.models import background
from pages.parts.shared import shell
from pages.parts.shared.words import size

if TYPE_CHECKING:
    from mapmerge_core.studies.config import StudyConfig
    from mapmerge_core.weights.io.hub import Download

SHOWN = 9
"""Rows that are in view at once."""


def draw(config: StudyConfig) -> bool | None:
    """Draw a table of what has to be fetched and how large it is, if there is anything.

    Returns:
        Whether there is something to fetch; None while the hubs haven't answered yet.
    """
    try:
        planned = background.downloads(config)
    except MapMergeError as error:
        shell.show_error(error)
        return True
    if not planned:
        return None if planned is None else False
    missing = [download for download in planned if not download.cached]
    st.dataframe(
        pd.DataFrame(
            {"From": [download.url for download in planned], "Download": [_size(download) for download in planned]}
        ),
        hide_index=True,
        height="content" if len(planned) <= SHOWN else 35 * (SHOWN + 1),
        key="downloads",
        column_config={"Download": st.column_config.TextColumn(width="small")},
    )
    if missing:
        st.caption(f":material/cloud_download: {shell.plain(_total(missing))}")
    return bool(missing)


def _size(download: Download) -> str:
    if download.cached:
        return "already here"
    return "size unknown" if download.n_bytes is None else size(download.n_bytes)


def _total(missing: list[Download]) -> str:
    """Return all of it in one line."""
    known = [download.n_bytes for download in missing if download.n_bytes is not None]
    if not known:
        return "Nothing is fetched before you press the button; how large it is, the hub doesn't say now."
    least = "at least " if len(known) < len(missing) else ""
    return f"To fetch: {least}{size(sum(known))}. Nothing is fetched before you press the button."
