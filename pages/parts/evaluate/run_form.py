"""What a run is asked to do: a merge, a method, a budget, and where it is computed; what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from mapmerge_core.errors import MapMergeError
from mapmerge_core.merges.base import obstacle
from mapmerge_core.registries import LINKS, MERGES, METHODS
from mapmerge_core.settings import MAX_SEED, SettingField, fields_of
from mapmerge_core.studies.analysis.comparing import is_of_comparison
from mapmerge_core.studies.config import QUICK_IMAGES, Compute, RunConfig
from mapmerge_core.studies.config.demo import demo_merge_settings, is_demo
from mapmerge_core.tasks.families import find_family
from pages.parts.shared import live, settings_form, shell, state
from pages.parts.shared.words import STATUS, duration

if TYPE_CHECKING:
    from mapmerge_core.search.spaces import Space
    from mapmerge_core.studies.jobs.job import JobSnapshot
    from mapmerge_core.studies.store import Run, Study

LOSSES = {"squared": "Squared", "absolute": "Absolute, ignores wild points", "huber": "Huber, between the two"}
DEVICES = {"auto": "Chosen by itself", "cpu": "Processor (cpu)", "cuda": "NVIDIA GPU (cuda)", "mps": "Apple GPU (mps)"}
PRECISIONS = {"auto": "What is fast", "float32": "Exact (float32)", "bfloat16": "Half (bfloat16)"}
VECTORS = {"float32": "Exactly (float32)", "bfloat16": "In half the memory (bfloat16)"}


def draw(study: Study, job: JobSnapshot | None, elsewhere: Run | None, runs: Sequence[Run]) -> None:
    """Draw the run's settings with Start, Stop and Resume; a run ``elsewhere`` can't be stopped from here."""
    last = runs[-1] if runs else None
    with st.container(border=True, key="card_run"):
        st.subheader("Run", anchor=False)
        is_busy = job is not None or elsewhere is not None
        is_unfinished = last is not None and last.status in ("stopped", "interrupted", "failed")
        if last is not None and is_unfinished and not is_busy:
            resume(last)
        run = run_form(study, runs, disabled=is_busy)
        if elsewhere:
            st.caption("Running in another process: stop it there.")
        elif job and st.button("Stop", key="stop", icon=":material/stop:", width="stretch"):
            state.jobs().stop(job.id)
            st.rerun()
        if is_busy:
            return
        n_evaluations = None if run is None else cost(study, run)
        if run is not None and n_evaluations is not None:
            estimate(study, run, n_evaluations, is_first=last is None)
        is_done = is_unfinished or (last is not None and last.status == "done")
        if st.button(
            "Start" if last is None else "Start another run",
            key="start",
            type="secondary" if is_done else "primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=n_evaluations is None,
        ):
            with shell.errors_shown():
                start(study, run)
                st.rerun()


def start(study: Study, run: RunConfig | None) -> None:
    """Start a run in the background; of a merge that is a single model, measure that."""
    if run is None:
        return
    space = run.make_merge().space(study.config.model_names)
    if space.n_free:
        state.jobs().start_run(state.store().runs.create(study.id, run).id)
        return
    merge = state.store().merges.add(study.id, run.merge, run.merge_settings)
    title = f"Make and measure {run.make_merge().title}"
    state.jobs().measure(merge.id, space.anchors, "val", title, run.compute)


def resume(last: Run) -> None:
    """Say what the unfinished run was, and offer to go on with it."""
    label, _, _ = STATUS[last.status]
    st.caption(shell.plain(f"{label} run: {last.config.label}."))
    if st.button("Resume", key="resume", type="primary", icon=":material/play_arrow:", width="stretch"):
        with shell.errors_shown():
            state.jobs().start_run(last.id)
            st.rerun()


def run_form(study: Study, runs: Sequence[Run], *, disabled: bool) -> RunConfig | None:
    """Ask for a run; after each run the form starts anew, from that run's settings with another seed.

    Returns:
        The run; None, after saying why, where a setting is out of range.
    """
    config = study.config
    planned = state.planned(study.id)
    # Compare's own searches for a merge's best scalar aren't what a person would run again.
    chosen = [run.config for run in runs if not is_of_comparison(run.config)]
    made = chosen or ([planned] if planned else [])
    last = made[-1] if made else RunConfig()

    def key(name: str) -> str:
        return f"{name}_{study.id}_{len(runs)}"

    merges = sorted(MERGES, key=lambda kind: (kind.name != RunConfig().merge, kind.title))
    merge = _registered("Merge", merges, last.merge, key("merge"), disabled=disabled)
    st.caption(shell.plain(merge.help()))
    before = _settings_before(made, "merge", merge.name)
    if not before and is_demo(config, state.zoo()):
        before = demo_merge_settings(merge.name, len(config.models))
    basic, advanced = _split(fields_of(merge.Settings))
    merge_settings = settings_form.draw(basic, before, lambda n: key(f"{merge.name}_{n}"), disabled=disabled)
    space = _space(merge, merge_settings, study)
    method = None
    method_settings: dict[str, Any] = {}
    more: dict[str, Any] = {"images": None}
    if space is None or space.n_free:
        method = _registered("Method", list(METHODS), last.method, key("method"), disabled=disabled)
        advice = f" {method.advice[0].upper()}{method.advice[1:]}." if method.advice else ""
        st.caption(shell.plain(method.help() + advice))
        basic_method, advanced_method = _split(fields_of(method.Settings))
        before_method = dict(_settings_before(made, "method", method.name))
        drawn = [field for field in basic_method if field.name != "seed"]
        usual = {} if space is None else {"points": method.default_points(space)}
        names = [objective.name for objective in config.objectives]
        form: dict[str, Any] = {"usual": usual, "names": names, "disabled": disabled}
        method_settings = settings_form.draw(drawn, before_method, lambda n: key(f"{method.name}_{n}"), **form)
        more["images"] = images(study, last, key, disabled=disabled)
        more |= _bounds(space, last, key, disabled=disabled)
    with st.expander("More settings", icon=":material/tune:"):
        if advanced:
            st.caption(shell.plain(f"Of {merge.title}"))
        merge_settings |= settings_form.draw(advanced, before, lambda n: key(f"{merge.name}_{n}"), disabled=disabled)
        if method is not None:
            st.caption(shell.plain(f"Of {method.title}"))
            # With the last run's seed, other images of the same points are measured.
            refines = bool(runs) and more["images"] != last.images
            seeds = [field for field in basic_method if field.name == "seed"]
            first = {"seed": min(last.seed + (bool(runs) and not refines), MAX_SEED)}
            suffix = "_refined" if refines else ""
            method_settings |= settings_form.draw(seeds, first, lambda n: key(f"{n}{suffix}"), disabled=disabled)
            method_settings |= settings_form.draw(
                advanced_method, before_method, lambda n: key(f"{method.name}_{n}"), **form
            )
            more |= _surrogates(last, key, disabled=disabled)
        more["compute"] = _compute(last.compute, key, disabled=disabled)
    try:
        return RunConfig(
            merge=merge.name,
            merge_settings=merge_settings,
            method=last.method if method is None else method.name,
            method_settings=method_settings,
            **more,
        )
    except MapMergeError as error:
        shell.show_error(error)
        return None


def _registered(label: str, kinds: Sequence[Any], name: str, key: str, *, disabled: bool) -> Any:  # noqa: ANN401
    """Ask for one of the registered merges or methods."""
    names = [kind.name for kind in kinds]
    titles = {kind.name: kind.title for kind in kinds}
    chosen = st.selectbox(
        label,
        names,
        names.index(name) if name in names else 0,
        format_func=titles.__getitem__,
        key=key,
        disabled=disabled,
    )
    return kinds[names.index(chosen)]


def _settings_before(made: Sequence[RunConfig], what: str, name: str) -> Mapping[str, Any]:
    """Return the settings of the latest run with that merge or method; none without one."""
    same = [run for run in made if getattr(run, what) == name]
    settings: Mapping[str, Any] = getattr(same[-1], f"{what}_settings") if same else {}
    return settings


def _split(fields: Sequence[SettingField]) -> tuple[list[SettingField], list[SettingField]]:
    """Return the fields that forms show at once, and those that seldom change."""
    return [f for f in fields if not f.is_advanced], [f for f in fields if f.is_advanced]


def _space(merge: Any, settings: Mapping[str, Any], study: Study) -> Space | None:  # noqa: ANN401 - a class
    """Return the merge's space; None where it has none for these models or settings, which is said later."""
    try:
        space: Space = merge(settings).space(study.config.model_names)
    except MapMergeError:
        return None
    return space


def images(study: Study, last: RunConfig, key: Callable[[str], str], *, disabled: bool) -> int | None:
    """Ask on how many images of each task points are measured; None, without asking, where all have to be."""
    if not study.config.has_parts:
        return None
    options: dict[str, int | None] = {"All": None, f"Quick: {QUICK_IMAGES} a task": QUICK_IMAGES}
    if last.images not in options.values():
        options[f"{last.images:,} a task"] = last.images
    chosen = st.segmented_control(
        str(find_family(study.config.family).examples).capitalize(),
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


def _bounds(
    space: Space | None, last: RunConfig, key: Callable[[str], str], *, disabled: bool
) -> dict[str, float | None]:
    """Ask between which coefficients to sample, where the space has some."""
    parts = [] if space is None else getattr(space, "parts", (space,))
    boxes = [part for part in parts if hasattr(part, "low")]
    if not boxes:
        return {}
    chosen: dict[str, float | None] = {}
    columns = st.columns(2)
    for column, end, label in zip(columns, ("low", "high"), ("Lowest coefficient", "Highest"), strict=True):
        chosen[end] = column.number_input(
            label,
            value=getattr(last, end),
            step=0.1,
            format="%.2f",
            placeholder=f"{getattr(boxes[0], end)[0]:.2f}",
            key=key(end),
            disabled=disabled,
        )
    return chosen


def _surrogates(last: RunConfig, key: Callable[[str], str], *, disabled: bool) -> dict[str, str]:
    links = {"auto": "What suits each metric"} | {link.name: link.name.capitalize() for link in LINKS}
    return {
        "link": _select("Surrogate's link", links, last.link, key("link"), disabled=disabled),
        "loss": _select("Surrogate's loss", LOSSES, last.loss, key("loss"), disabled=disabled),
    }


def _compute(last: Compute, key: Callable[[str], str], *, disabled: bool) -> Compute:
    devices = DEVICES if last.device in DEVICES else {**DEVICES, last.device: last.device}
    chosen: dict[str, Any] = {
        "device": _select("Device", devices, last.device, key("device"), disabled=disabled),
        "precision": _select("Precision", PRECISIONS, last.precision, key("precision"), disabled=disabled),
        "vectors": _select("Task vectors in memory", VECTORS, last.vectors, key("vectors"), disabled=disabled),
    }
    return Compute(**chosen)


def _select(label: str, options: Mapping[str, str], value: str, key: str, *, disabled: bool) -> str:
    names = list(options)
    index = names.index(value) if value in names else 0
    return st.selectbox(label, names, index, format_func=options.__getitem__, key=key, disabled=disabled)


def cost(study: Study, run: RunConfig) -> int | None:
    """Say how much a run does at most.

    Returns:
        Its evaluations; None, after saying why, where it can't be done as it is set.
    """
    config, merge = study.config, run.make_merge()
    try:
        if problem := obstacle(merge, config.facts(run.compute.vectors)):
            st.info(shell.plain(problem), icon=":material/block:")
            return None
        if merge.space(config.model_names).n_free == 0:
            st.caption("One model: nothing to search.")
            return len(config.objectives)
        run.check(config)
        n_evaluations = run.make_method(config).n_evaluations
    except MapMergeError as error:
        shell.show_error(error)
        return None
    st.caption(f":material/functions: At most **{n_evaluations:,} evaluations** of one model on one objective")
    return n_evaluations


def estimate(study: Study, run: RunConfig, n_evaluations: int, *, is_first: bool) -> None:
    """Say how long the run will take, from timing real work; asked for by itself before the first run."""
    is_trained = run.make_merge().is_trained
    # Merges that aren't trained take no time worth telling apart; nothing is kept of one that is only looked at.
    merge: dict[str, Any] = {"merge": run.merge, "merge_settings": run.merge_settings} if is_trained else {}
    timed = RunConfig(compute=run.compute, **merge)
    key, asked = f"estimate_{study.id}_{timed.to_dict()}", f"timed_{study.id}"
    job = state.job(st.session_state.get(key))
    if job is None:
        # By itself only once: else each change of a setting would be timed anew.
        by_itself = is_first and asked not in st.session_state
        if not by_itself and not st.button(
            "Estimate the time", key="estimate", type="tertiary", icon=":material/schedule:"
        ):
            return
        st.session_state[key] = state.jobs().estimate(study.id, timed)
        st.session_state[asked] = True
        job = state.jobs().snapshot(st.session_state[key])
    if job.is_live:
        live.wait_for_job(
            job.id, "Timing a real evaluation and a few steps…" if is_trained else "Timing a real evaluation…"
        )
    elif job.status == "failed":
        st.error(shell.plain(job.error or ""), icon=":material/error:")
    elif job.result:
        points = -(-n_evaluations // len(study.config.objectives))
        seconds = job.result.seconds_for(points, run.images)
        st.caption(f":material/schedule: About **{duration(seconds)}** on {job.result.device}, {job.result.precision}")
