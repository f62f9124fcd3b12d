"""What to evaluate and what it will cost, with Start, Stop and Resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from mapmerge_core.methods.catalogue import default_points
from mapmerge_core.studies.spec import MAX_POINTS, MAX_SEED, RunSettings
from pages.parts import live, shell, state
from pages.parts.words import STATUS, duration

if TYPE_CHECKING:
    from mapmerge_core.studies.rows import RunRow, StudyRow

DESIGNS = {"uniform": "Uniform, as in the paper", "sobol": "Sobol, more even", "grid": "Grid"}
DEVICES = {
    "auto": "Chosen by itself",
    "cpu": "Processor (cpu)",
    "cuda": "NVIDIA GPU (cuda)",
    "mps": "Apple GPU (mps)",
}


def draw(
    study: StudyRow, job: state.JobSnapshot | None, elsewhere: RunRow | None, last: RunRow | None
) -> None:
    """The run's settings with Start, Stop and Resume; a run ``elsewhere`` can't be stopped from here."""
    with st.container(border=True, key="card_run"):
        st.subheader("Run", anchor=False)
        busy = job is not None or elsewhere is not None
        unfinished = last is not None and last.status in ("stopped", "interrupted", "failed")
        if unfinished and not busy:
            label, _, _ = STATUS[last.status]
            st.caption(f"{label} run: {last.settings.points} points, seed {last.settings.seed}.")
            if st.button(
                "Resume", key="resume", type="primary", icon=":material/play_arrow:", width="stretch"
            ):
                with shell.errors_shown():
                    state.jobs().start_run(last.id)
                    st.rerun()
        settings = settings_form(study, disabled=busy)
        if elsewhere:
            st.caption("Running in another process: stop it there.")
        elif job and st.button("Stop", key="stop", icon=":material/stop:", width="stretch"):
            state.jobs().stop(job.id)
            st.rerun()
        if busy:
            return
        estimate(study, settings, first=last is None)
        kind = "secondary" if unfinished or (last is not None and last.status == "done") else "primary"
        label = "Start" if last is None else "Start another run"
        if st.button(label, key="start", type=kind, icon=":material/play_arrow:", width="stretch"):
            with shell.errors_shown():
                run = state.store().create_run(study.id, settings)
                state.jobs().start_run(run.id)
                st.rerun()


def settings_form(study: StudyRow, *, disabled: bool) -> RunSettings:
    """Method, budget, box, design, seed, anchors and device; another run gets another seed."""
    count = len(study.spec.tasks)

    runs = state.store().runs(study.id)
    last = runs[-1].settings if runs else RunSettings(points=default_points("map", count))

    def key(name: str) -> str:
        # After each run the form starts anew, from that run's settings.
        return f"{name}_{study.id}_{len(runs)}"

    st.selectbox("Method", ["MAP, Algorithm 1"], key=key("method"), disabled=disabled)
    points = st.number_input(
        "Points",
        1,
        MAX_POINTS,
        min(last.points, MAX_POINTS),
        key=key("points"),
        disabled=disabled,
        help=f"Merged models to measure on all tasks; the paper takes {default_points("map", count)} for {count}.",
    )
    low, high = st.columns(2)
    lower = low.number_input(
        "Lowest coefficient", value=last.low, step=0.1, key=key("low"), format="%.2f", disabled=disabled
    )
    upper = high.number_input(
        "Highest", value=last.high, step=0.1, key=key("high"), format="%.2f", disabled=disabled
    )
    with st.expander("More settings", icon=":material/tune:"):
        design = st.selectbox(
            "Design",
            list(DESIGNS),
            list(DESIGNS).index(last.design),
            format_func=DESIGNS.get,
            key=key("design"),
            disabled=disabled,
        )
        seed = st.number_input(
            "Seed", 0, MAX_SEED, min(last.seed + bool(runs), MAX_SEED), key=key("seed"), disabled=disabled
        )
        anchors = st.toggle(
            "Include the pre-trained and single-task models",
            last.anchors,
            key=key("anchors"),
            disabled=disabled,
            help="They count toward the points, and every comparison needs them.",
        )
        device = st.selectbox(
            "Device",
            list(DEVICES),
            list(DEVICES).index(last.device) if last.device in DEVICES else 0,
            format_func=DEVICES.get,
            key=key("device"),
            disabled=disabled,
        )
    return RunSettings(points, seed, lower, upper, design, anchors, device)


def estimate(study: StudyRow, settings: RunSettings, *, first: bool) -> None:
    """What the run will take, from timing real evaluations; asked for by itself before the first run."""
    key = f"estimate_{study.id}_{settings.device}"
    job = state.job(st.session_state.get(key))
    if job is None:
        if not first and not st.button(
            "Estimate the time", key="estimate", type="tertiary", icon=":material/schedule:"
        ):
            return
        st.session_state[key] = state.jobs().estimate(study.id, settings.device)
        job = state.jobs().snapshot(st.session_state[key])
    if job.is_live:
        live.wait_for_job(job.id, "Timing a real evaluation…")
    elif job.status == "failed":
        st.error(shell.plain(job.error), icon=":material/error:")
    elif job.result:
        found = job.result
        st.caption(
            f":material/schedule: About **{duration(found.seconds_for(settings.points))}** on "
            f"{found.device}, {found.precision}"
        )
