"""The card of a learned set's pick: what is interpolated and measured of it, and the way out to Export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.parts.shared import live, shell, state
from pages.parts.shared.words import share
from pages.parts.trade_offs import learned_choice, pick_card
from pages.parts.trade_offs.learned_choice import LearnedChoice

if TYPE_CHECKING:
    from mapmerge_core.studies.analysis.learned import LearnedSet

    from mapmerge_core.charts.models import BarsInfo


def draw(learned: LearnedSet, choice: LearnedChoice, info: BarsInfo, *, is_measured: bool) -> None:
    """The card, and the shortlist under it."""
    with st.container(border=True, key="card_pick"):
        title, actions = st.columns([1, 1.6], vertical_alignment="center")
        with title, st.container(horizontal=True, vertical_alignment="center"):
            pick_card.heading(choice.kind)
            if is_measured:
                st.badge("Measured on validation", icon=":material/straighten:", color="green")
            else:
                st.badge("Interpolated between measured preferences", icon=":material/timeline:", color="gray")
        with actions, st.container(horizontal=True, horizontal_alignment="right"):
            buttons(learned, choice, info, is_measured=is_measured)
        live.watch(learned.run.study_id, "measure")
        what = "Measured on the validation split."
        if not is_measured:
            what = (
                "Interpolated between the measured preferences, with 90% intervals. "
                "*Measure on validation* makes this one of them."
            )
        pick_card.figures(
            info,
            [f"preference {share(part)}" for part in choice.gamma],
            f"{what} *Measure on test* evaluates this very model on unseen data.",
        )
    pick_card.shortlist(
        learned.tasks,
        learned.metrics,
        [
            pick_card.Shortlisted(
                f"learned_{pick.id}",
                learned_choice.pick_name(pick),
                learned.predict(pick.gamma)[0],
                lambda pick=pick: learned_choice.remember(
                    learned.run.id, LearnedChoice("shortlist", pick.gamma, pick.how)
                ),
                lambda pick=pick: state.store().update_learned_pick(pick.id, shortlisted=False),
            )
            for pick in learned_choice.shortlisted(learned)
        ],
    )


def buttons(learned: LearnedSet, choice: LearnedChoice, info: BarsInfo, *, is_measured: bool) -> None:
    """What can be done with the pick."""
    run_id = learned.run.id
    pick_card.shortlist_popover(lambda note: learned_choice.kept(run_id, choice, name=note, shortlisted=True))
    if st.button("Measure on validation", key="measure_val", icon=":material/straighten:", disabled=is_measured):
        state.jobs().measure_learned(run_id, choice.gamma[None], "val", "Measure the preference")
        st.rerun()
    if st.button(
        "Measure on test",
        key="measure",
        icon=":material/straighten:",
        disabled=pick_card.is_measured(info),
    ):
        state.jobs().measure_learned(run_id, choice.gamma[None], "test", "Measure the pick")
        st.rerun()
    if st.button("Export this model", key="export", type="primary", icon=":material/download:"):
        pick = learned_choice.kept(run_id, choice)
        state.export("learned", pick.id)
        shell.go("pages/export.py", learned.run.study_id, learned_pick=str(pick.id))
