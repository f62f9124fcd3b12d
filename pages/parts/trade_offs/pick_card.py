"""The pick's card: where it lies, what is predicted and measured of it, and the way out to Export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from mapmerge_core.charts.bars import PickInfo, pick_bars
from mapmerge_core.charts.units import value_text
from pages.parts.shared import choice as choosing
from pages.parts.shared import live, pictures, shell, state
from pages.parts.shared.choice import HOW_BADGES, Choice

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.analysis import StudyAnalysis
    from mapmerge_core.studies.store import Pick


def draw(
    analysis: StudyAnalysis, choice: Choice, info: PickInfo, shortlisted: Sequence[tuple[Pick, np.ndarray]]
) -> None:
    """Draw the card, and the shortlist under it.

    Args:
        analysis: All of the study's merges.
        choice: The pick.
        info: The pick's values.
        shortlisted: See `choice.shortlist`.
    """
    study_id = analysis.study_id
    with st.container(border=True, key="card_pick"):
        title, buttons = st.columns([1, 1.6], vertical_alignment="center")
        with title, st.container(horizontal=True, vertical_alignment="center"):
            st.subheader("Your pick", anchor=False, width="content")
            label, icon = HOW_BADGES[choice.kind]
            st.badge(label, icon=icon, color="orange")
        with buttons, st.container(horizontal=True, horizontal_alignment="right"):
            shortlist_popover(choice)
            is_measured = info.measured is not None and not bool(np.isnan(info.measured).any())
            if st.button("Measure on test", key="measure", icon=":material/straighten:", disabled=is_measured):
                state.jobs().measure(choice.merge_id, choice.x[None], "test", "Measure the pick")
                st.rerun()
            if st.button("Export this model", key="export", type="primary", icon=":material/download:"):
                choosing.export(study_id, choice)
        live.watch(study_id, "measure")
        figures(info)
        merge = analysis.merge(choice.merge_id)
        coordinates = [(name, f"{value:.3f}") for name, value in zip(merge.space.names, choice.x, strict=True)]
        pictures.facts([("Merge", merge.title), *coordinates])
    shortlist(analysis, shortlisted)


def shortlist_popover(choice: Choice) -> None:
    """Draw a button that asks for a name and puts the pick on the shortlist."""

    def save() -> None:
        choosing.kept(choice, name=st.session_state["shortlist_note"].strip(), shortlisted=True)
        st.session_state["shortlist_note"] = ""

    with st.popover("Add to shortlist", icon=":material/bookmark_add:", key="shortlist_add"):
        st.text_input("Name", key="shortlist_note", placeholder="Why this one?")
        st.button("Add", key="shortlist_save", type="primary", on_click=save)


def figures(info: PickInfo) -> None:
    """Draw the pick's tiles beside its bars, or above them where there are many objectives."""
    few = len(info.objectives) <= 3
    numbers, bars = st.columns([1.2, 1.6], gap="medium") if few else (st.container(), st.container())
    with numbers:
        pictures.tiles(tiles(info), "pick")
    numbers.caption("Predicted, with 90% intervals. *Measure on test* evaluates this very model on unseen data.")
    bars.plotly_chart(
        pick_bars(info, shell.palette(), height=250), key="pick_bars", theme=None, config={"displayModeBar": False}
    )
    if info.measured is not None:
        bars.caption("Pre-trained and single models: validation split. Measured: test split.")


def tiles(info: PickInfo) -> list[pictures.Tile]:
    """Return one tile an objective: predicted and measured value, interval, shares of what it started from."""
    shares = [
        (values, f"of {reference}")
        for values, reference in (
            (info.predicted / info.single, "the single model"),
            (info.predicted / np.where(info.pretrained > 0, info.pretrained, np.nan), "pre-trained"),
        )
    ]
    cells = []
    for k, (name, metric) in enumerate(zip(info.objectives, info.metrics, strict=True)):
        notes = []
        if info.upper[k] > info.lower[k]:
            notes.append(f"{value_text(info.lower[k], metric)} – {value_text(info.upper[k], metric)}")
        notes += [f"{values[k]:.0%} {of}" for values, of in shares if not np.isnan(values[k])]
        measured = ""
        if info.measured is not None and not np.isnan(info.measured[k]):
            measured = f"{value_text(info.measured[k], metric)} on test"
        cells.append(pictures.Tile(name, value_text(info.predicted[k], metric), measured, tuple(notes)))
    return cells


def shortlist(analysis: StudyAnalysis, picks: Sequence[tuple[Pick, np.ndarray]]) -> None:
    """Draw the shortlisted picks, each with a way back to it."""
    if not picks:
        return
    st.subheader("Shortlist", anchor=False)
    for pick, values in picks:
        with st.container(border=True, key=f"card_shortlist_{pick.id}"):
            name, facts, buttons = st.columns([1.4, 3, 1.3], vertical_alignment="center")
            name.markdown(f"**{shell.plain(pick.name or f'Pick {pick.id}')}**")
            parts = [analysis.merge(pick.merge_id).title] if len(analysis.merges) > 1 else []
            parts += [
                f"{objective.name} {value_text(value, objective.metric)}"
                for objective, value in zip(analysis.objectives, values, strict=True)
            ]
            facts.caption(shell.plain(" · ".join([*parts, *([pick.notes] if pick.notes else [])])))
            with buttons, st.container(horizontal=True, horizontal_alignment="right"):
                st.button("Choose", key=f"shortlist_choose_{pick.id}", on_click=_choose, args=(analysis.study_id, pick))
                st.button(
                    "",
                    key=f"shortlist_remove_{pick.id}",
                    icon=":material/close:",
                    type="tertiary",
                    help="Take off the shortlist",
                    on_click=_remove,
                    args=(pick.id,),
                )


def _choose(study_id: int, pick: Pick) -> None:
    choosing.remember(study_id, Choice("shortlist", pick.merge_id, pick.x, pick.how))


def _remove(pick_id: int) -> None:
    state.store().picks.update(pick_id, shortlisted=False)
