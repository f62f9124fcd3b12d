"""What is done to the task vectors before any merge, as a person chooses it."""

from __future__ import annotations

import streamlit as st

from mapmerge_core.studies.config.run import MAX_SEED
from mapmerge_core.studies.config.study import Transform

KINDS = {
    "none": "As they are",
    "ties_trim": "TIES-trim: the largest entries only",
    "ties": "TIES: the largest entries whose signs agree",
    "dare": "DARE: entries dropped at random",
}


def draw(key: str, *, none: bool = True) -> Transform | None:
    """The choice of a transform; None for vectors as they are, offered unless ``none`` is false."""
    kinds = [kind for kind in KINDS if none or kind != "none"]
    kind = st.selectbox("Task vectors", kinds, format_func=KINDS.get, key=f"{key}_kind", width=320)
    if kind == "none":
        return None
    if kind == "dare":
        share = st.number_input(
            "Dropped, %",
            0.0,
            99.0,
            50.0,
            5.0,
            format="%g",
            key=f"{key}_drop",
            width=130,
            help="Share of each task vector that is dropped; the rest is enlarged to make up for it.",
        )
        seed = st.number_input("Seed", 0, MAX_SEED, 0, key=f"{key}_seed", width=110)
        return Transform(kind, drop=share / 100, seed=seed)
    share = st.number_input(
        "Kept, %",
        1.0,
        100.0,
        20.0,
        5.0,
        format="%g",
        key=f"{key}_keep",
        width=130,
        help="Share of each task vector that is kept: its largest entries.",
    )
    return Transform(kind, keep=share / 100)
