"""Jobs that this visitor asked for, whose results their pick takes up once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from pages.parts.shared import state


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of a job.

    Attributes:
        result: Its result.
        subject: What it was about.
        is_new: Whether this is the first look at it.
    """

    result: Any
    subject: str
    is_new: bool


def remember(key: str, job_id: int, subject: str) -> None:
    """Keep in the session that a job was asked for; it takes the place of one with the same ``key``."""
    st.session_state[f"asked_{key}"] = job_id, subject
    st.session_state.pop(f"seen_{key}", None)


def answer(key: str) -> Answer | None:
    """Return what came of the latest job with that ``key``; None while it goes on, and where it failed."""
    job_id, subject = st.session_state.get(f"asked_{key}", (None, ""))
    job = state.job(job_id)
    if job is None or job.result is None:
        return None
    seen = st.session_state.get(f"seen_{key}")
    st.session_state[f"seen_{key}"] = job_id
    return Answer(job.result, subject, is_new=seen != job_id)
