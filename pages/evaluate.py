"""What to evaluate, what it will cost, and how it goes."""

from __future__ import annotations

import streamlit as st

from mapmerge_core.charts.contours import contours, plane_info, plane_points
from mapmerge_core.charts.evaluations import evaluations_info, evaluations_scatter, fit_info, fit_scatter
from mapmerge_core.methods.map import default_points
from mapmerge_core.studies.analysis import Analysis
from mapmerge_core.studies.rows import RunRow, StudyRow
from mapmerge_core.studies.spec import RunSettings
from pages.parts import choice as choosing
from pages.parts import live, pictures, shell, state
from pages.parts.words import STATUS, duration

DESIGNS = {"uniform": "Uniform, as in the paper", "sobol": "Sobol, more even", "grid": "Grid"}
DEVICES = {
    "auto": "Chosen by itself",
    "cpu": "Processor (cpu)",
    "cuda": "NVIDIA GPU (cuda)",
    "mps": "Apple GPU (mps)",
}
PLOT = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
SLICE = 5
"""Points along each side of a measured slice."""


def draw() -> None:
    """The page."""
    study = shell.study_heading(
        "Evaluate", "Measure a few merged models; a surrogate of each task's metric fills in the rest."
    )
    job = state.live_run(study.id)
    runs = state.store().runs(study.id)
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        control(study, job, runs[-1] if runs else None)
    with right:
        if job or study.n_points:
            if job:
                st.fragment(progress, run_every=live.EVERY)(study.id, job.id)
            else:
                outcome(study, runs[-1] if runs else None)
            results(study.id, is_live=job is not None)
        else:
            shell.empty(
                "Nothing measured yet",
                "Press **Start** to measure merged models. Points, contours and the quality of the fit appear here as "
                "they come. You can close the browser meanwhile.",
            )


def control(study: StudyRow, job: state.JobSnapshot | None, last: RunRow | None) -> None:
    """The run's settings with Start, Stop and Resume."""
    with st.container(border=True, key="card_run"):
        st.subheader("Run", anchor=False)
        busy = job is not None
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
        if busy:
            if st.button("Stop", key="stop", icon=":material/stop:", width="stretch"):
                state.jobs().stop(job.id)
                st.rerun()
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
    """Method, budget, box, design, seed, anchors and device; keyed by study so that two don't mix."""
    count = len(study.spec.tasks)

    def key(name: str) -> str:
        return f"{name}_{study.id}"

    runs = state.store().runs(study.id)
    last = runs[-1].settings if runs else RunSettings(points=default_points(count))
    st.selectbox("Method", ["MAP, Algorithm 1"], key=key("method"), disabled=disabled)
    points = st.number_input(
        "Points", 1, 100_000, last.points, key=key("points"), disabled=disabled,
        help=f"Merged models to measure on all tasks. The paper takes {default_points(count)} for {count} tasks.",
    )  # fmt: skip
    low, high = st.columns(2)
    lower = low.number_input(
        "Lowest coefficient", value=last.low, step=0.1, key=key("low"), format="%.2f", disabled=disabled
    )
    upper = high.number_input(
        "Highest", value=last.high, step=0.1, key=key("high"), format="%.2f", disabled=disabled
    )
    with st.expander("More settings", icon=":material/tune:"):
        design = st.selectbox("Design", list(DESIGNS), list(DESIGNS).index(last.design), format_func=DESIGNS.get,
                              key=key("design"), disabled=disabled)  # fmt: skip
        seed = st.number_input("Seed", 0, 2**31 - 1, last.seed, key=key("seed"), disabled=disabled)
        anchors = st.toggle(
            "Include the pre-trained and single-task models", last.anchors, key=key("anchors"), disabled=disabled,
            help="They count toward the points, and every comparison needs them.",
        )  # fmt: skip
        device = st.selectbox("Device", list(DEVICES), list(DEVICES).index(last.device) if last.device in DEVICES else 0,
                              format_func=DEVICES.get, key=key("device"), disabled=disabled)  # fmt: skip
    return RunSettings(points, seed, lower, upper, design, anchors, device)


def estimate(study: StudyRow, settings: RunSettings, *, first: bool) -> None:
    """What the run will take, from timing real evaluations in the background; by itself before the first run."""
    key = f"estimate_{study.id}_{settings.device}"
    if key not in st.session_state:
        if not first and not st.button(
            "Estimate the time", key="estimate", type="tertiary", icon=":material/schedule:"
        ):
            return
        st.session_state[key] = state.jobs().estimate(study.id, settings.device)
    job = state.jobs().snapshot(st.session_state[key])
    if job.is_live:
        st.fragment(_waiting, run_every=live.EVERY)(job.id)
    elif job.status == "failed":
        st.error(shell.plain(job.error), icon=":material/error:")
    elif job.result:
        found = job.result
        st.caption(
            f":material/schedule: About **{duration(found.seconds_per_point * settings.points)}** on {found.device}, "
            f"{found.precision}"
        )


def _waiting(job_id: int) -> None:
    if not state.jobs().snapshot(job_id).is_live:
        st.rerun()
    pictures.busy("Timing a real evaluation…")


def progress(study_id: int, job_id: int) -> None:
    """The bar of a live run; redraws the page once when it ends."""
    job = state.jobs().snapshot(job_id)
    if not job.is_live:
        st.rerun()
    st.progress(live.share(job), text=live.line(job))


def outcome(study: StudyRow, last: RunRow | None) -> None:
    """How the last run ended, and where to go now."""
    if last is None:
        return
    label, icon, colour = STATUS[last.status]
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.badge(label, icon=icon, color=colour)
        pictures.facts([("Points measured", str(study.n_points)), ("Took", duration(last.seconds))])
        st.space("stretch")
        if st.button("See trade-offs", key="see_tradeoffs", type="primary", icon=":material/balance:",
                     disabled=state.analysis(study.id, rough=True).surrogates is None):  # fmt: skip
            shell.go("pages/trade_offs.py", study.id)
    if last.error:
        st.error(shell.plain(last.error), icon=":material/error:")


def results(study_id: int, *, is_live: bool) -> None:
    """Points, contours and fit; redrawn every two seconds while a run is live."""
    st.fragment(_results, run_every=2 if is_live else None)(study_id, is_live)


def _results(study_id: int, is_live: bool) -> None:  # noqa: FBT001 - a fragment's argument
    with shell.errors_shown():
        analysis = state.analysis(study_id, rough=is_live)
        if not len(analysis.C):
            pictures.busy("Reading the models; the first point will be here soon…")
            return
        fit_quality(analysis)
        st.subheader("Points measured so far" if is_live else "Points measured", anchor=False)
        info = evaluations_info(analysis.tasks, analysis.metrics, analysis.C, analysis.Y)
        st.plotly_chart(
            evaluations_scatter(info, shell.palette(), height=360), key="points_chart", config=PLOT
        )
        slices(study_id, analysis, is_live=is_live)
        if analysis.surrogates and not is_live:
            with st.expander(
                "How well does the fit predict points that it has not seen?", icon=":material/query_stats:"
            ):
                fit(analysis)


def fit_quality(analysis: Analysis) -> None:
    """R² so far, one number a task."""
    if analysis.surrogates is None:
        st.caption(shell.plain(analysis.problem or ""))
        return
    cells = [(f"R² on {task}", f"{r2:.3f}") for task, r2 in zip(analysis.tasks, analysis.r2, strict=True)]
    pictures.tiles(cells)
    st.caption(
        "R², leave-one-out: how much of a metric's variation the surrogate explains at points that it has not seen. "
        "1 is perfect, 0 is no better than the mean."
    )


def slices(study_id: int, analysis: Analysis, *, is_live: bool) -> None:
    """Measured and fitted contours of one task on a plane of two coefficients."""
    tasks, count = analysis.tasks, len(analysis.tasks)
    numbers = list(range(count))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader("Measured against fitted", anchor=False, width="stretch")
        task = st.selectbox("Metric of", numbers, key="contour_task", format_func=tasks.__getitem__, width=180,
                            persist_state="session")  # fmt: skip
        x, y = 0, 1
        if count > 2:
            x = st.selectbox("Across", numbers, 0, key="contour_x", format_func=tasks.__getitem__, width=180)
            y = st.selectbox("Up", [n for n in numbers if n != x], 0, key="contour_y", format_func=tasks.__getitem__,
                             width=180)  # fmt: skip
        through = analysis.C.mean(axis=0) if analysis.front is None else choosing.recall(study_id, analysis).c
        if (
            count > 2
            and not is_live
            and st.button(
                f"Measure this slice ({SLICE * SLICE} points)", key="measure_slice", icon=":material/grid_on:"
            )
        ):
            C = plane_points(through, (x, y), analysis.low, analysis.high, SLICE)
            state.jobs().measure(study_id, C, "val", f"Measure the slice of {tasks[x]} and {tasks[y]}")
            st.rerun()
    if not is_live:
        live.watch(study_id, "measure")
    pick = None if analysis.front is None or is_live else through
    info = plane_info(
        task,
        tasks,
        analysis.metrics[task],
        analysis.surrogates[task] if analysis.surrogates else None,
        analysis.C,
        analysis.Y[:, task],
        through=through,
        axes=(x, y),
        low=analysis.low,
        high=analysis.high,
        front=analysis.front.c if analysis.front is not None and not is_live else None,
        pick=pick,
    )
    st.plotly_chart(contours(info, shell.palette()), key="contour_chart", config=PLOT)
    if info.through:
        held = ", ".join(f"{name} {value:.2f}" for name, value in info.through.items())
        st.caption(
            f"A plane through {'your pick' if pick is not None else 'the middle of the points'}: {shell.plain(held)}."
        )


def fit(analysis: Analysis) -> None:
    """Measured against left-out predictions."""
    left_out = [surrogate.loo_predictions_ for surrogate in analysis.surrogates or ()]
    info = fit_info(analysis.tasks, analysis.metrics, analysis.Y, analysis.inside, left_out)
    st.plotly_chart(fit_scatter(info, shell.palette(), height=420), key="fit_chart", config=PLOT)


draw()
