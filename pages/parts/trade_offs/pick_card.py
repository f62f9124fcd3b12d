"""The pick's card: what is predicted and measured of it, the shortlist, and the way out to Export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from mapmerge_core.charts.models import BarsInfo, metric_bars
from mapmerge_core.charts.units import value_text
from pages.parts.shared import choice as choosing
from pages.parts.shared import pictures, shell, state
from pages.parts.shared.choice import HOW_BADGES, Choice
from pages.parts.shared.live import watch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mapmerge_core.tasks.metric import Metric

    from mapmerge_core.studies.analysis.analysis import Analysis
    from mapmerge_core.studies.store.rows import PickRow


@dataclass(frozen=True, eq=False)
class Shortlisted:
    """A pick on the shortlist.

    Attributes:
        key: What tells it from others.
        name: What the person called it, or its number.
        values: Its metrics (K,).
        choose: Makes it the visitor's pick.
        remove: Takes it off the shortlist.
    """

    key: str
    name: str
    values: np.ndarray
    choose: Callable[[], None]
    remove: Callable[[], None]


def draw(
    study_id: int,
    analysis: Analysis,
    choice: Choice,
    info: BarsInfo,
    shortlisted: Sequence[tuple[PickRow, np.ndarray]],
) -> None:
    """The card, and the shortlist under it.

    Args:
        study_id: The study.
        analysis: Its surrogates.
        choice: The pick.
        info: The pick's metrics.
        shortlisted: See `choice.shortlist`.
    """
    with st.container(border=True, key="card_pick"):
        title, buttons = st.columns([1, 1.6], vertical_alignment="center")
        with title, st.container(horizontal=True, vertical_alignment="center"):
            heading(choice.kind)
        with buttons, st.container(horizontal=True, horizontal_alignment="right"):
            shortlist_popover(
                lambda note: choosing.kept(study_id, choice, name=note, shortlisted=True),
            )
            if st.button("Measure on test", key="measure", icon=":material/straighten:", disabled=is_measured(info)):
                state.jobs().measure(study_id, choice.c[None], "test", "Measure the pick")
                st.rerun()
            if st.button("Export this model", key="export", type="primary", icon=":material/download:"):
                pick = choosing.kept(study_id, choice)
                state.export("pick", pick.id)
                shell.go("pages/export.py", study_id, pick=str(pick.id))
        watch(study_id, "measure")
        figures(
            info,
            [f"coefficient {coefficient:.3f}" for coefficient in choice.c],
            "Predicted, with 90% intervals. *Measure on test* evaluates this very model on unseen data.",
        )
    shortlist(
        analysis.tasks,
        analysis.metrics,
        [
            Shortlisted(
                str(pick.id),
                pick.name or f"Pick {pick.id}",
                values,
                lambda pick=pick: choosing.remember(study_id, Choice("shortlist", pick.c, pick.how)),
                lambda pick=pick: state.store().update_pick(pick.id, shortlisted=False),
            )
            for pick, values in shortlisted
        ],
    )


def heading(kind: str) -> None:
    """The card's title, and how the pick was chosen."""
    st.subheader("Your pick", anchor=False, width="content")
    label, icon = HOW_BADGES[kind]
    st.badge(label, icon=icon, color="orange")


def shortlist_popover(add: Callable[[str], object]) -> None:
    """A button that asks for a note; ``add`` is called with it and puts the pick on the shortlist."""

    def save() -> None:
        add(st.session_state["shortlist_note"].strip())
        st.session_state["shortlist_note"] = ""

    with st.popover("Add to shortlist", icon=":material/bookmark_add:", key="shortlist_add"):
        st.text_input("Note", key="shortlist_note", placeholder="Why this one?")
        st.button("Add", key="shortlist_save", type="primary", on_click=save)


def is_measured(info: BarsInfo) -> bool:
    """Whether the pick was measured on every task's test split."""
    return info.measured is not None and not bool(np.isnan(info.measured).any())


def figures(info: BarsInfo, made_of: Sequence[str], caption: str) -> None:
    """The pick's tiles beside its bars, or above them where there are many tasks.

    Args:
        info: The pick's metrics.
        made_of: What each task's tile says last.
        caption: What the tiles show.
    """
    few = len(info.tasks) <= 3
    numbers, bars = st.columns([1.2, 1.6], gap="medium") if few else (st.container(), st.container())
    with numbers:
        pictures.tiles(tiles(info, made_of), "pick")
    numbers.caption(caption)
    bars.plotly_chart(
        metric_bars(info, shell.palette(), height=250),
        key="pick_bars",
        theme=None,
        config={"displayModeBar": False},
    )
    if info.measured is not None:
        bars.caption("Pre-trained and own models: validation split. Measured: test split.")


def tiles(info: BarsInfo, made_of: Sequence[str]) -> list[pictures.Tile]:
    """One tile a task: predicted and measured metric, interval, share of own model's, what it is made of."""
    cells = []
    shares = info.share_of_single()
    for k, (task, metric) in enumerate(zip(info.tasks, info.metrics, strict=True)):
        lower, upper = value_text(info.lower[k], metric), value_text(info.upper[k], metric)
        interval = [f"{lower} – {upper}"] if info.upper[k] > info.lower[k] else []
        own = "" if np.isnan(shares[k]) else f"{shares[k]:.0%} of own model"
        measured = ""
        if info.measured is not None and not np.isnan(info.measured[k]):
            measured = f"{value_text(info.measured[k], metric)} on test"
        notes = (*interval, own, made_of[k])
        cells.append(pictures.Tile(task, value_text(info.predicted[k], metric), measured, notes))
    return cells


def shortlist(tasks: Sequence[str], metrics: Sequence[Metric], picks: Sequence[Shortlisted]) -> None:
    """The shortlisted picks, each with a way back to it."""
    if not picks:
        return
    st.subheader("Shortlist", anchor=False)
    for pick in picks:
        with st.container(border=True, key=f"card_shortlist_{pick.key}"):
            name, values, buttons = st.columns([1.4, 3, 1.3], vertical_alignment="center")
            name.markdown(f"**{shell.plain(pick.name)}**")
            values.caption(
                " · ".join(
                    f"{shell.plain(task)} {value_text(value, metric)}"
                    for task, value, metric in zip(tasks, pick.values, metrics, strict=True)
                )
            )
            with buttons, st.container(horizontal=True, horizontal_alignment="right"):
                st.button("Choose", key=f"shortlist_choose_{pick.key}", on_click=pick.choose)
                st.button(
                    "",
                    key=f"shortlist_remove_{pick.key}",
                    icon=":material/close:",
                    type="tertiary",
                    help="Take off the shortlist",
                    on_click=pick.remove,
                )
