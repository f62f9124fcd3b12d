"""The visitor's preference on a study, in a compact form: the one that the sliders of Trade-offs keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.parts.shared import choice as choosing
from pages.parts.shared import shell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EVEN = 50
"""A slider's first value."""


def popover(study_id: int, tasks: Sequence[str], *, key: str, disabled: bool = False) -> Mapping[str, float]:
    """A button that says the preference and opens its sliders.

    Args:
        study_id: The study.
        tasks: Its tasks.
        key: What tells this form from others.
        disabled: Whether it can't be changed now.

    Returns:
        Each task's weight, from 0 to 100.
    """
    weights = current(study_id, tasks)
    with st.popover(
        f"Preference: {shell.plain(words(weights))}",
        icon=":material/tune:",
        key=f"{key}_{study_id}",
        disabled=disabled,
    ):
        for number, task in enumerate(tasks):
            # The sliders of Trade-offs may have moved since.
            st.session_state[f"{key}_{study_id}_{number}"] = weights[task]
            st.slider(
                shell.plain(task),
                0,
                100,
                step=5,
                key=f"{key}_{study_id}_{number}",
                on_change=_moved,
                args=(study_id, tuple(tasks), key),
            )
    return weights


def sliders(study_id: int, tasks: Sequence[str], on_change: Callable[..., None], args: tuple[Any, ...]) -> None:
    """A slider for each task, for Trade-offs; ``on_change`` reads them by `slider_weights`."""
    weights = current(study_id, tasks)
    places = st.columns(2 if len(tasks) > 4 else 1, gap="medium")
    for number, task in enumerate(tasks):
        key = f"pref_{study_id}_{task}"
        # A click or Compare may have changed the preference since.
        st.session_state[key] = weights[task]
        places[number % len(places)].slider(shell.plain(task), 0, 100, step=5, key=key, on_change=on_change, args=args)


def slider_weights(study_id: int, tasks: Sequence[str]) -> dict[str, float]:
    """What the sliders of Trade-offs say, by task."""
    return {task: st.session_state[f"pref_{study_id}_{task}"] for task in tasks}


def current(study_id: int, tasks: Sequence[str]) -> dict[str, float]:
    """Each task's weight as the visitor last set it, here or on Trade-offs; all alike at first."""
    kept = choosing.preference(study_id)["weights"]
    return {task: kept.get(task, EVEN) for task in tasks}


def words(weights: Mapping[str, float]) -> str:
    """A preference in a few words: "all tasks alike", "MNIST 75%, Emoji 25%"."""
    if len(set(weights.values())) == 1:
        return "all tasks alike" if any(weights.values()) else "no task counts"
    total = sum(weights.values())
    ranked = sorted(weights.items(), key=lambda item: -item[1])
    named = [f"{task} {weight / total:.0%}" for task, weight in ranked[:3] if weight]
    rest = sum(1 for _, weight in ranked[3:] if weight)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def _moved(study_id: int, tasks: Sequence[str], key: str) -> None:
    weights = {task: st.session_state[f"{key}_{study_id}_{number}"] for number, task in enumerate(tasks)}
    choosing.change_weights(study_id, weights)
