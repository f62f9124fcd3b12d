"""The visitor's preference on a study: a slider for each objective, on Trade-offs and on Compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from pages.parts.shared import choice as choosing
from pages.parts.shared import shell

EVEN = 50
"""A slider's first value."""


def popover(study_id: int, names: Sequence[str], *, key: str) -> Mapping[str, float]:
    """Draw a button that says the preference and opens its sliders.

    Args:
        study_id: The study.
        names: Its objectives.
        key: What tells this form from others.

    Returns:
        Each objective's weight, from 0 to 100.
    """
    weights = current(study_id, names)
    title = f"Preference: {shell.plain(words(weights))}"
    with st.popover(title, icon=":material/tune:", key=f"{key}_{study_id}"):
        keys = {name: f"{key}_{study_id}_{number}" for number, name in enumerate(names)}
        for name in names:
            _slider(name, keys[name], weights[name], _moved, (study_id, keys))
    return weights


def sliders(study_id: int, names: Sequence[str], on_change: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Draw a slider for each objective, for Trade-offs; ``on_change`` reads them by `slider_weights`."""
    weights = current(study_id, names)
    places = st.columns(2 if len(names) > 4 else 1, gap="medium")
    for number, name in enumerate(names):
        with places[number % len(places)]:
            _slider(name, f"pref_{study_id}_{name}", weights[name], on_change, args)


def slider_weights(study_id: int, names: Sequence[str]) -> dict[str, float]:
    """Return what the sliders of Trade-offs say, by objective."""
    return {name: st.session_state[f"pref_{study_id}_{name}"] for name in names}


def current(study_id: int, names: Sequence[str]) -> dict[str, float]:
    """Return each objective's weight as the visitor last set it, here or there; all alike at first."""
    kept = choosing.preference(study_id)["weights"]
    return {name: kept.get(name, EVEN) for name in names}


def words(weights: Mapping[str, float]) -> str:
    """Return a preference in a few words: "all alike", "MNIST 75%, Emoji 25%"."""
    if len(set(weights.values())) == 1:
        return "all alike" if any(weights.values()) else "nothing counts"
    total = sum(weights.values())
    ranked = sorted(weights.items(), key=lambda item: -item[1])
    named = [f"{name} {weight / total:.0%}" for name, weight in ranked[:3] if weight]
    rest = sum(1 for _, weight in ranked[3:] if weight)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def _slider(name: str, key: str, weight: float, on_change: Callable[..., None], args: tuple[Any, ...]) -> None:
    # Sliders elsewhere may have moved since.
    st.session_state[key] = weight
    st.slider(shell.plain(name), 0, 100, step=5, key=key, on_change=on_change, args=args)


def _moved(study_id: int, keys: Mapping[str, str]) -> None:
    choosing.change_weights(study_id, {name: st.session_state[key] for name, key in keys.items()})
