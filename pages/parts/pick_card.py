"""The pick's card: what is predicted and measured of it, the shortlist, and the way out to Export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from mapmerge_core.charts.models import BarsInfo, metric_bars
from mapmerge_core.charts.units import value_text
from pages.parts import choice as choosing
from pages.parts import pictures, shell, state
from pages.parts.choice import HOW_BADGES, Choice
from pages.parts.live import watch

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis import Analysis


def draw(study_id: int, analysis: Analysis, choice: Choice, info: BarsInfo) -> None:
    """The card, and the shortlist under it."""
    with st.container(border=True, key="card_pick"):
        title, buttons = st.columns([1, 1.6], vertical_alignment="center")
        with title, st.container(horizontal=True, vertical_alignment="center"):
            st.subheader("Your pick", anchor=False, width="content")
            label, icon = HOW_BADGES[choice.kind]
            st.badge(label, icon=icon, color="orange")
        with buttons, st.container(horizontal=True, horizontal_alignment="right"):
            with st.popover("Add to shortlist", icon=":material/bookmark_add:", key="shortlist_add"):
                st.text_input("Note", key="shortlist_note", placeholder="Why this one?")
                st.button(
                    "Add",
                    key="shortlist_save",
                    type="primary",
                    on_click=shortlist_pick,
                    args=(study_id, choice),
                )
            if st.button(
                "Measure on test",
                key="measure",
                icon=":material/straighten:",
                disabled=info.measured is not None and not np.isnan(info.measured).any(),
            ):
                state.jobs().measure(study_id, choice.c[None], "test", "Measure the pick")
                st.rerun()
            if st.button("Export this model", key="export", type="primary", icon=":material/download:"):
                pick = choosing.kept(study_id, choice)
                state.export("pick", pick.id)
                shell.go("pages/export.py", study_id, pick=str(pick.id))
        watch(study_id, "measure")
        few = len(info.tasks) <= 3
        numbers, bars = st.columns([1.2, 1.6], gap="medium") if few else (st.container(), st.container())
        with numbers:
            pictures.tiles(tiles(info, choice.c), "pick")
        numbers.caption(
            "Predicted, with 90% intervals. *Measure on test* evaluates this very model on unseen data."
        )
        bars.plotly_chart(
            metric_bars(info, shell.palette(), height=250),
            key="pick_bars",
            theme=None,
            config={"displayModeBar": False},
        )
        if info.measured is not None:
            bars.caption("Pre-trained and own models: validation split. Measured: test split.")
    shortlist(study_id, analysis)


def tiles(info: BarsInfo, c: np.ndarray) -> list[pictures.Tile]:
    """One tile a task: predicted and measured metric, interval, share of own model's, coefficient."""
    cells = []
    shares = info.share_of_single()
    for k, (task, metric) in enumerate(zip(info.tasks, info.metrics, strict=True)):
        interval = f"{value_text(info.lower[k], metric)} – {value_text(info.upper[k], metric)}"
        own = "" if np.isnan(shares[k]) else f"{shares[k]:.0%} of own model"
        measured = ""
        if info.measured is not None and not np.isnan(info.measured[k]):
            measured = f"{value_text(info.measured[k], metric)} measured"
        notes = (interval, own, f"coefficient {c[k]:.3f}")
        cells.append(pictures.Tile(task, value_text(info.predicted[k], metric), measured, notes))
    return cells


def shortlist(study_id: int, analysis: Analysis) -> None:
    """The study's shortlisted picks, each with a way back to it."""
    picks = [pick for pick in state.store().picks(study_id) if pick.shortlisted]
    if not picks:
        return
    st.subheader("Shortlist", anchor=False)
    for pick in picks:
        predicted, _, _ = analysis.predict(pick.c)
        with st.container(border=True, key=f"card_shortlist_{pick.id}"):
            name, values, buttons = st.columns([1.4, 3, 1.3], vertical_alignment="center")
            name.markdown(f"**{shell.plain(pick.name or f'Pick {pick.id}')}**")
            values.caption(
                " · ".join(
                    f"{shell.plain(task)} {value_text(value, metric)}"
                    for task, value, metric in zip(analysis.tasks, predicted, analysis.metrics, strict=True)
                )
            )
            with buttons, st.container(horizontal=True, horizontal_alignment="right"):
                st.button(
                    "Choose",
                    key=f"shortlist_choose_{pick.id}",
                    on_click=choosing.remember,
                    args=(study_id, Choice("shortlist", pick.c, pick.how)),
                )
                st.button(
                    "",
                    key=f"shortlist_remove_{pick.id}",
                    icon=":material/close:",
                    type="tertiary",
                    help="Take off the shortlist",
                    on_click=state.store().update_pick,
                    args=(pick.id,),
                    kwargs={"shortlisted": False},
                )


def shortlist_pick(study_id: int, choice: Choice) -> None:
    """Put the pick on the shortlist with the note typed beside it."""
    choosing.kept(study_id, choice, name=st.session_state["shortlist_note"].strip(), shortlisted=True)
    st.session_state["shortlist_note"] = ""
