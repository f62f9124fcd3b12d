"""Reading large files outside the script threads: one worker, answers kept, a spinner meanwhile."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.studies.checking import SpecCheck, check_spec
from pages.parts import live

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.spec import StudySpec


@st.cache_resource(show_spinner=False)
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="mapmerge-check")


@st.cache_resource(show_spinner=False, max_entries=16)
def _checking(_spec: StudySpec, key: object) -> Future[SpecCheck]:  # noqa: ARG001 - the cache's key
    return _worker().submit(check_spec, _spec)


def check(spec: StudySpec) -> SpecCheck | None:
    """What ``check_spec`` finds; None, and a spinner that redraws the page by itself, until it has ended.

    Raises:
        MapMergeError: where the models don't fit.
    """
    # A file that was changed is read again.
    changed = [path.stat().st_mtime_ns if path.exists() else 0 for path in spec.files().values()]
    future = _checking(spec, (str(spec.to_dict()), str(changed)))
    if future.done():
        return future.result()
    live.wait(future.done, "Reading and comparing the models…")
    return None


@st.cache_data(show_spinner="Reading the folder…", ttl=10)
def list_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder."""
    from mapmerge_core.weights.checkpoints import find_checkpoints  # noqa: PLC0415 - imports torch

    return [path.name for path in find_checkpoints(folder)]
