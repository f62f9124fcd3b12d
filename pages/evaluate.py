"""What to evaluate, what it will cost, and how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.parts import live, nested_tree, pictures, results, run_form, shell, state
from pages.parts.words import STATUS, duration

if TYPE_CHECKING:
    from mapmerge_core.studies.rows import RunRow, StudyRow


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Evaluate", "Measure a few merged models; a surrogate of each task's metric fills in the rest."
    )
    job = state.live_job(study.id, "run")
    elsewhere = state.run_elsewhere(study.id)
    runs = state.store().runs(study.id)
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        run_form.draw(study, job, elsewhere, runs[-1] if runs else None)
    with right:
        if job or elsewhere or study.n_points:
            if job:
                live.bar(job.id)
            elif elsewhere:
                live.watch_elsewhere(study.id)
            else:
                outcome(study, runs[-1] if runs else None)
                merged = next(
                    (run for run in runs[::-1] if (run.method, run.status) == ("nested", "done")), None
                )
                if merged:
                    with shell.errors_shown():
                        nested_tree.draw(study, merged)
            is_live = job is not None or elsewhere is not None
            results.draw(study.id, n_tasks=len(study.spec.tasks), is_live=is_live)
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
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.badge(label, icon=icon, color=colour)
        pictures.facts([("Points measured", str(study.n_points)), ("Took", duration(last.seconds))])
        st.space("stretch")
        if st.button(
            "See trade-offs",
            key="see_tradeoffs",
            type="primary",
            icon=":material/balance:",
            disabled=state.analysis(study.id, rough=True).surrogates is None,
        ):
            shell.go("pages/trade_offs.py", study.id)
    if last.error:
        st.error(shell.plain(last.error), icon=":material/error:")


draw()
