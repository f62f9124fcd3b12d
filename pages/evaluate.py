"""What to evaluate, what it will cost, and how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.registries import METHODS
from mapmerge_core.studies.analysis.comparing import is_of_comparison
from pages.parts.evaluate import chosen_model, results, run_form
from pages.parts.shared import live, pictures, shell, state
from pages.parts.shared.words import STATUS, duration

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Run, Study


def draw() -> None:
    """Draw the page."""
    study = shell.study_heading(
        "Evaluate", "Choose a merge and a method, measure a few merged models, and see what they tell."
    )
    job = state.live_job(study.id, "run")
    elsewhere = state.run_elsewhere(study.id)
    runs = state.store().runs.all(study.id)
    # What Compare searched by itself is of interest only where a person started nothing.
    started = [run for run in runs if not is_of_comparison(run.config)] or runs
    last = started[-1] if started else None
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        run_form.draw(study, job, elsewhere, runs)
    with right:
        is_live = job is not None or elsewhere is not None
        if job:
            live.bar(job.id)
        elif elsewhere:
            live.watch_elsewhere(study.id)
        else:
            live.watch(study.id, "measure")
        if not is_live and not study.n_points:
            if state.live_job(study.id, "measure") is None:
                shell.empty(
                    "Nothing measured yet",
                    "Press **Start** to measure merged models. Points, contours and the quality of the fit "
                    "appear here as they come. You can close the browser meanwhile.",
                )
            return
        if not is_live:
            if last is not None:
                outcome(study, last)
            single = next((run for run in started[::-1] if leads_to_one(run)), None)
            if single is not None:
                with shell.errors_shown():
                    chosen_model.draw(study, single)
        results.draw(study, last.merge_id if last else None, is_live=is_live)


def leads_to_one(run: Run) -> bool:
    """Return whether a run is done and leads to a single model instead of a front."""
    return run.status == "done" and METHODS[run.config.method].is_front == "single"


def outcome(study: Study, last: Run) -> None:
    """Say how the last run ended, and where to go now."""
    label, icon, colour = STATUS[last.status]
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.badge(label, icon=icon, color=colour)
        merge = state.store().merges.get(last.merge_id)
        facts = [("Points measured", str(study.n_points)), ("Took", duration(last.seconds))]
        if merge.make().is_trained and merge.is_prepared:
            facts.append(("Training took", duration(merge.seconds)))
        pictures.facts(facts)
        st.space("stretch")
        if st.button(
            "See trade-offs",
            key="see_tradeoffs",
            type="primary",
            icon=":material/balance:",
            disabled=state.analysis(study.id, rough=True).front is None,
        ):
            shell.go("pages/trade_offs.py", study.id)
    if last.error:
        st.error(shell.plain(last.error), icon=":material/error:")


with shell.errors_shown():
    draw()
