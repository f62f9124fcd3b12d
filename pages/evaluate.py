"""What to evaluate, what it will cost, and how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.methods.catalogue import SEARCHES
from pages.parts.evaluate import learning_results, nested_tree, results, run_form
from pages.parts.shared import live, pictures, shell, state
from pages.parts.shared.words import STATUS, duration
from pages.parts.trade_offs import learned_choice

if TYPE_CHECKING:
    from mapmerge_core.studies.store.rows import RunRow, StudyRow


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Evaluate", "Measure a few merged models and fit surrogates, or learn a model for every preference."
    )
    job = state.live_job(study.id, "run")
    elsewhere = state.run_elsewhere(study.id)
    runs = state.store().runs(study.id)
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        run_form.draw(study, job, elsewhere, runs[-1] if runs else None)
    with right:
        last = runs[-1] if runs else None
        learning = last if last is not None and last.method == "pareto_merging" else None
        if job or elsewhere or study.n_points or learning:
            if job:
                live.bar(job.id)
            elif elsewhere:
                live.watch_elsewhere(study.id)
            else:
                outcome(study, last)
            is_live = job is not None or elsewhere is not None
            if learning:
                learning_results.draw(study, learning, is_live=is_live)
            if not is_live:
                merged = next(
                    (run for run in runs[::-1] if (run.method, run.status) == ("nested", "done")), None
                )
                if merged:
                    with shell.errors_shown():
                        nested_tree.draw(study, merged)
            # Every run of Pareto Merging measures the anchors, which alone are nothing to look at.
            if not learning or any(run.method in SEARCHES and run.n_evaluations for run in runs):
                count = len(study.spec.tasks)
                results.draw(study.id, n_tasks=count, is_live=is_live and not learning)
        else:
            shell.empty(
                "Nothing measured yet",
                "Press **Start** to measure merged models. Points, contours and the quality of the fit "
                "appear here as they come. You can close the browser meanwhile.",
            )


def outcome(study: StudyRow, last: RunRow | None) -> None:
    """How the last run ended, and where to go now."""
    if last is None:
        return
    label, icon, colour = STATUS[last.status]
    learned = None
    if (last.method, last.status) == ("pareto_merging", "done"):
        with shell.errors_shown():
            learned = state.learned_set(last.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.badge(label, icon=icon, color=colour)
        if learned is not None:
            pictures.facts(learned_choice.facts(learned))
        elif last.method == "pareto_merging":
            pictures.facts([("Took", duration(last.seconds))])
        else:
            pictures.facts([("Points measured", str(study.n_points)), ("Took", duration(last.seconds))])
        st.space("stretch")
        nothing = not state.learned_runs(study.id) and state.analysis(study.id, rough=True).surrogates is None
        if st.button(
            "See trade-offs",
            key="see_tradeoffs",
            type="primary",
            icon=":material/balance:",
            disabled=nothing,
        ):
            query = {} if learned is None else {"learned": str(learned.run.id)}
            shell.go("pages/trade_offs.py", study.id, **query)
    if last.error:
        st.error(shell.plain(last.error), icon=":material/error:")
    if learned is not None and learned.is_flat:
        st.warning(
            "All preferences gave the same model: lower the weight of the norm.", icon=":material/adjust:"
        )


draw()
