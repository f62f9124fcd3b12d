"""What to evaluate and what it will cost, with Start, Stop and Resume."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st
from mapmerge_core.studies.analysis.learned import run_title
from mapmerge_core.studies.runs.learning import n_evaluations

from mapmerge_core.errors import MapMergeError
from mapmerge_core.methods.catalogue import SEARCHES, TITLES, default_points
from mapmerge_core.search.surrogates.quadratic import QuadraticSurrogate
from mapmerge_core.studies.config.run import MAX_POINTS, MAX_SEED, QUICK_IMAGES, RunSettings, has_parts
from mapmerge_core.tasks.families import family_info
from pages.parts.evaluate import learning_form, nested_form
from pages.parts.shared import live, shell, state
from pages.parts.shared.words import STATUS, duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapmerge_core.merges._training_settings import Training

    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.studies.store.rows import RunRow, StudyRow

METHODS = {
    "map": "One design, then a surrogate for each task: the whole front from few evaluations.",
    "bayesian": "Rounds of points where the surrogates are worst: for small budgets and few tasks.",
    "nested": "Merges pair after pair: few evaluations for many tasks, one model instead of a front.",
    "direct": "Measures a large design and keeps what nothing beats: no surrogate, many evaluations.",
    "pareto_merging": "Learns once, without labels, a model for every preference: sliders then generate "
    "models on the fly.",
}
"""Each method in one line."""
BUDGETS = {
    "nested": ("Points per pair", "Merged models to measure for every two nodes; the paper takes 20."),
    "pareto_merging": (
        "Preferences to measure",
        "On all tasks, once the set is learned; usual for {count} tasks: {paper}.",
    ),
}
"""What a method's budget is called, with its help; the other methods' is of points."""
POINTS = ("Points", "Merged models to measure on all tasks; usual for {count} tasks: {paper}.")
DESIGNS = {"uniform": "Uniform, as in the paper", "sobol": "Sobol, more even", "grid": "Grid"}
LINKS = {
    "auto": "What suits each metric",
    "identity": "Identity",
    "sigmoid": "Sigmoid, for metrics with two bounds",
    "softplus": "Softplus, for metrics with a lower bound",
}
LOSSES = {
    "squared": "Squared",
    "absolute": "Absolute, ignores wild points",
    "huber": "Huber, between the two",
}
DEVICES = {
    "auto": "Chosen by itself",
    "cpu": "Processor (cpu)",
    "cuda": "NVIDIA GPU (cuda)",
    "mps": "Apple GPU (mps)",
}
VECTORS = {"float32": "Exactly (float32)", "bfloat16": "In half the memory (bfloat16)"}


def draw(
    study: StudyRow, job: state.JobSnapshot | None, elsewhere: RunRow | None, last: RunRow | None
) -> None:
    """The run's settings with Start, Stop and Resume; a run ``elsewhere`` can't be stopped from here."""
    with st.container(border=True, key="card_run"):
        st.subheader("Run", anchor=False)
        busy = job is not None or elsewhere is not None
        unfinished = last is not None and last.status in ("stopped", "interrupted", "failed")
        if unfinished and not busy:
            resume(last)
        method, settings = settings_form(study, disabled=busy)
        if elsewhere:
            st.caption("Running in another process: stop it there.")
        elif job and st.button("Stop", key="stop", icon=":material/stop:", width="stretch"):
            state.jobs().stop(job.id)
            st.rerun()
        if busy:
            return
        count = None if settings is None else evaluations(study, method, settings)
        if settings is not None and count is not None:
            estimate(study, settings, count, first=last is None)
        kind = "secondary" if unfinished or (last is not None and last.status == "done") else "primary"
        label = "Start" if last is None else "Start another run"
        if st.button(
            label,
            key="start",
            type=kind,
            icon=":material/play_arrow:",
            width="stretch",
            disabled=count is None,
        ):
            with shell.errors_shown():
                run = state.store().create_run(study.id, settings, method)
                state.jobs().start_run(run.id)
                st.rerun()


def resume(last: RunRow) -> None:
    """What the unfinished run was, and the button that goes on with it."""
    label, _, _ = STATUS[last.status]
    st.caption(f"{label} run: {TITLES[last.method]}, seed {last.settings.seed}. {run_title(last)}.")
    if st.button("Resume", key="resume", type="primary", icon=":material/play_arrow:", width="stretch"):
        with shell.errors_shown():
            state.jobs().start_run(last.id)
            st.rerun()


def settings_form(study: StudyRow, *, disabled: bool) -> tuple[MethodName, RunSettings | None]:
    """Method, budget, box and what else the method takes; another run gets another seed.

    Returns:
        The method, and its settings: None, and why, where they are out of range.
    """
    count = len(study.spec.tasks)
    runs = state.store().runs(study.id)
    planned = state.planned(study.id)
    made = [(run.method, run.settings) for run in runs] or ([planned] if planned else [])

    def key(name: str) -> str:
        # After each run the form starts anew, from that run's settings.
        return f"{name}_{study.id}_{len(runs)}"

    methods: list[MethodName] = list(TITLES)
    method = st.selectbox(
        "Method",
        methods,
        methods.index(made[-1][0] if made else "map"),
        format_func=lambda name: "MAP, Algorithm 1" if name == "map" else TITLES[name],
        key=key("method"),
        disabled=disabled,
    )
    st.caption(METHODS[method])
    paper = default_points(method, count)
    # Searches have most settings in common, Pareto Merging has its own.
    alike = [found for found in made if (found[0] in SEARCHES) == (method in SEARCHES)]
    of, settings = alike[-1] if alike else (method, RunSettings(points=paper))
    before = settings if of == method else None
    label, text = BUDGETS.get(method, POINTS)
    points = st.number_input(
        label,
        1,
        MAX_POINTS,
        min(before.points if before else paper, MAX_POINTS),
        key=key(f"points_{method}"),
        disabled=disabled,
        help=text.format(count=count, paper=paper),
    )
    if method == "pareto_merging":
        training = settings.training or learning_form.usual(study)
        return method, learning(points, settings, training, key, another=bool(runs), disabled=disabled)
    more: dict[str, Any] = {"images": images(study, settings, key, disabled=disabled)}
    if method == "bayesian":
        more |= rounds(count, before, key, disabled=disabled)
    elif method == "nested":
        more |= nested_form.draw(study, before, key, disabled=disabled)
    low, high = st.columns(2)
    more["low"] = low.number_input(
        "Lowest coefficient", value=settings.low, step=0.1, key=key("low"), format="%.2f", disabled=disabled
    )
    more["high"] = high.number_input(
        "Highest", value=settings.high, step=0.1, key=key("high"), format="%.2f", disabled=disabled
    )
    # With the last run's seed, other images of the same points are measured.
    refines = bool(runs) and more["images"] != settings.images
    with st.expander("More settings", icon=":material/tune:"):
        more |= further(
            method,
            settings,
            key,
            another=bool(runs),
            refines=refines,
            transformed=study.spec.transform is not None,
            disabled=disabled,
        )
    return method, RunSettings(points, precision=settings.precision, **more)


def images(study: StudyRow, last: RunSettings, key: Callable[[str], str], *, disabled: bool) -> int | None:
    """On how many images of each task points are measured; None, without a choice, where all have to be."""
    if not has_parts(study.spec):
        return None
    held = str(family_info(study.spec.family).examples).capitalize()
    quick = f"Quick: {QUICK_IMAGES} a task"
    options: dict[str, int | None] = {"All": None, quick: QUICK_IMAGES}
    if last.images not in options.values():
        options[f"{last.images:,} a task"] = last.images
    chosen = st.segmented_control(
        held,
        list(options),
        default=next(name for name, number in options.items() if number == last.images),
        required=True,
        key=key("images"),
        disabled=disabled,
        width="stretch",
        help="A quick run measures each point on a part of the validation split. A later run with all of it "
        "and the same seed measures only what is missing.",
    )
    return options[chosen]


def learning(
    points: int,
    last: RunSettings,
    training: Training,
    key: Callable[[str], str],
    *,
    another: bool,
    disabled: bool,
) -> RunSettings | None:
    """Pareto Merging's settings, ``training`` at first; None, and why, where they are out of range."""
    chosen = learning_form.draw(training, key, disabled=disabled)
    with st.expander("More settings", icon=":material/tune:"):
        chosen |= learning_form.further(training, key, data_free=chosen["data_free"], disabled=disabled)
        more = further("pareto_merging", last, key, another=another, disabled=disabled)
    try:
        training = replace(training, **chosen)
    except MapMergeError as error:
        shell.show_error(error)
        return None
    return RunSettings(points, precision=last.precision, training=training, **more)


def rounds(
    count: int, before: RunSettings | None, key: Callable[[str], str], *, disabled: bool
) -> dict[str, Any]:
    """Bayesian MAP's first points and those of each round; left empty, its own defaults."""
    parameters = QuadraticSurrogate.n_parameters(count)
    first, later = st.columns(2)
    return {
        "initial": first.number_input(
            "First points",
            1,
            MAX_POINTS,
            before.initial if before else None,
            key=key("initial"),
            placeholder=str(parameters),
            disabled=disabled,
            help=f"Drawn at random before the first round; empty: the {parameters} that fix a surrogate.",
        ),
        "batch": later.number_input(
            "Points a round",
            1,
            MAX_POINTS,
            before.batch if before else None,
            key=key("batch"),
            placeholder=str(-(-parameters // 2)),
            disabled=disabled,
            help="Drawn where the surrogates are worst; empty: one half of a surrogate's parameters.",
        ),
    }


def further(
    method: MethodName,
    last: RunSettings,
    key: Callable[[str], str],
    *,
    another: bool,
    disabled: bool,
    refines: bool = False,
    transformed: bool = False,
) -> dict[str, Any]:
    """What seldom needs a change, as far as the method has it."""

    def choose(label: str, name: str, options: dict[str, str]) -> str:
        value = getattr(last, name)
        return st.selectbox(
            label,
            list(options),
            list(options).index(value) if value in options else 0,
            format_func=options.get,
            key=key(name),
            disabled=disabled,
        )

    chosen: dict[str, Any] = {}
    if method in ("map", "direct"):
        chosen["design"] = choose("Design", "design", DESIGNS)
    chosen["seed"] = st.number_input(
        "Seed",
        0,
        MAX_SEED,
        min(last.seed + (another and not refines), MAX_SEED),
        key=key("seed_refined" if refines else "seed"),
        disabled=disabled,
    )
    if method in ("map", "bayesian", "direct"):
        chosen["anchors"] = st.toggle(
            "Include the pre-trained and single-task models",
            last.anchors,
            key=key("anchors"),
            disabled=disabled,
            help="They count toward the points, and every comparison needs them.",
        )
    if method in ("map", "bayesian", "nested"):
        chosen["link"] = choose("Surrogate's link", "link", LINKS)
        chosen["loss"] = choose("Surrogate's loss", "loss", LOSSES)
    chosen["device"] = choose("Device", "device", DEVICES)
    if method in SEARCHES and not transformed:
        chosen["vectors"] = choose("Task vectors in memory", "vectors", VECTORS)
    return chosen


def evaluations(study: StudyRow, method: MethodName, settings: RunSettings) -> int | None:
    """Says how much the run does at most; None, and why, where it can't be done as it is set.

    Returns:
        Its evaluations; training steps come on top.
    """
    training = settings.training
    try:
        settings.check(method, study.spec)
        if training is None:
            count = settings.make_method(method, study.spec).n_evaluations
        else:
            count = n_evaluations(settings.points, training, len(study.spec.tasks))
    except MapMergeError as error:
        shell.show_error(error)
        return None
    most = f"At most **{count:,} evaluations** of one model on one task"
    if training is not None:
        steps = f"{training.steps:,} training step{'' if training.steps == 1 else 's'}"
        most = f"**{steps}** and {most[0].lower()}{most[1:]}"
    st.caption(f":material/functions: {most}")
    return count


def estimate(study: StudyRow, settings: RunSettings, count: int, *, first: bool) -> None:
    """What the run will take, from timing real work; asked for by itself before the first run."""
    training = settings.training
    key = f"estimate_{study.id}_{settings.device}_{settings.vectors}"
    timed = f"timed_steps_{study.id}"
    text = "Timing a real evaluation…"
    if training is not None:
        text = "Timing a real evaluation and a few steps…"
        # All that changes what a step takes.
        key += f"_{training.data_free}_{training.batch_size}_{training.rank}_{training.personalised}"
        # Once by itself: else each change of a setting would have steps timed anew.
        first = first and timed not in st.session_state
    job = state.job(st.session_state.get(key))
    if job is None:
        if not first and not st.button(
            "Estimate the time", key="estimate", type="tertiary", icon=":material/schedule:"
        ):
            return
        st.session_state[key] = state.jobs().estimate(
            study.id, settings.device, settings.precision, settings.vectors, training
        )
        if training is not None:
            st.session_state[timed] = True
        job = state.jobs().snapshot(st.session_state[key])
    if job.is_live:
        live.wait_for_job(job.id, text)
    elif job.status == "failed":
        st.error(shell.plain(job.error), icon=":material/error:")
    elif job.result:
        found = job.result
        points = -(-count // len(study.spec.tasks))
        steps = 0 if training is None else training.steps
        seconds = found.seconds_for(points, steps, settings.images)
        st.caption(f":material/schedule: About **{duration(seconds)}** on {found.device}, {found.precision}")
