"""The commands that evaluate: ``demo`` and ``run``."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from mapmerge_core.cli.output import number, percent, print_json, print_table, say
from mapmerge_core.cli.reports import by_task, front_values, say_analysis, say_fit, say_pick
from mapmerge_core.cli.session import INFEASIBLE, Session, check_device, parse_weights
from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import TITLES, default_points
from mapmerge_core.methods.nested import NestedMAP
from mapmerge_core.studies.analysis import analyse
from mapmerge_core.studies.checking import check_spec
from mapmerge_core.studies.demo import create_demo_study
from mapmerge_core.studies.exporting import export_pick
from mapmerge_core.studies.replay import replay
from mapmerge_core.studies.siblings import sibling
from mapmerge_core.studies.spec import RunSettings, Transform, demo_tasks, spec_from_manifest

if TYPE_CHECKING:
    from argparse import Namespace

    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.studies.rows import RunRow, StudyRow
    from mapmerge_core.studies.spec import StudySpec
    from mapmerge_core.studies.store import Store

# What only some methods have a use for.
_FOR = {
    "design": ("map", "direct"),
    "anchors": ("map", "bayesian", "direct"),
    "link": ("map", "bayesian", "nested"),
    "loss": ("map", "bayesian", "nested"),
    "initial": ("bayesian",),
    "batch": ("bayesian",),
    "preference": ("nested",),
    "rule": ("nested",),
    "order": ("nested",),
}


def demo(options: Namespace) -> int:
    """Evaluates, fits, finds the front, picks by equal preference, measures and exports."""
    started = time.perf_counter()
    check_spec(spec_from_manifest(options.zoo, demo_tasks(options.tasks, options.zoo)))
    check_device(options.device)
    session = Session()
    run = create_demo_study(
        session.store,
        options.tasks,
        points=options.points,
        seed=options.seed,
        device=options.device,
        zoo=options.zoo,
    )
    run = session.run(run.id)
    evaluated = time.perf_counter()
    analysis = analyse(session.store, run.study_id, seed=options.seed)
    weights = dict.fromkeys(analysis.tasks, 1.0)
    c = analysis.fitted_front.c[analysis.by_preference(weights)]
    pick = session.store.add_pick(run.study_id, c, {"kind": "preference", "weights": weights})
    measured = session.measure(session.store.study(run.study_id), c, options.device)
    exported = export_pick(session.store, pick.id, options.out)
    seconds = {
        "evaluate": evaluated - started,
        "fit": analysis.fit_seconds,
        "front": analysis.front_seconds,
        "total": time.perf_counter() - started,
    }
    if options.json:
        print_json(
            {
                "tasks": analysis.tasks,
                "evaluations": run.n_evaluations,
                "r2": by_task(analysis, analysis.r2),
                "front": front_values(analysis),
                "pick": {
                    "c": c,
                    "predicted": by_task(analysis, analysis.predict(c)[0]),
                    "measured": measured,
                },
                "export": str(exported.path),
                "seconds": seconds,
            }
        )
        return 0
    say_analysis(analysis)
    say("\nThe pick, by equal preference:")
    say_pick(analysis, c, measured)
    say(f"\nExported to {exported.path}")
    say(f"{run.n_evaluations} evaluations in {seconds['evaluate']:.1f} s, {seconds['total']:.1f} s in all.")
    return 0


def run(options: Namespace) -> int:
    """Evaluates points of a new study, or goes on with one."""
    if (options.folder is None) == (options.study is None):
        raise StudyError("Name either a folder, for a new study, or with --study one to go on with.")
    given = _given_settings(options)
    transform = _given_transform(options)
    session = Session()
    if options.folder is not None:
        names = None if options.tasks is None else [name.strip() for name in options.tasks.split(",")]
        spec = replace(spec_from_manifest(options.folder, names), transform=transform)
        method, settings = _method_and_settings(options, given, spec)
        check_spec(spec)
        study = session.store.create_study(options.name, spec)
        row = session.store.create_run(study.id, settings, method)
    else:
        study = session.store.find_study(options.study)
        if options.tasks is not None or options.name is not None:
            raise StudyError("--tasks and --name are for a new study: name a folder, or leave them out.")
        if options.points is not None or options.method is not None or transform is not None:
            method, settings = _method_and_settings(options, given, study.spec)
            if transform is not None:
                study = sibling(session.store, study, transform)
            row = session.store.create_run(study.id, settings, method)
        elif given.keys() <= {"device"}:
            row = _unfinished(session.store, study)
        else:
            raise StudyError(
                "A run goes on with the settings that it was started with: leave all but --device out, or "
                "give --points to evaluate more."
            )
    row = session.run(row.id, options.device)
    return _report(session.store, study, row, as_json=options.json)


def _report(store: Store, study: StudyRow, row: RunRow, *, as_json: bool) -> int:
    """Prints what came of a run."""
    analysis = analyse(store, study.id, with_front=False)
    nested = replay(store, row.id).method if row.method == "nested" else None
    infeasible = isinstance(nested, NestedMAP) and not nested.feasible
    if as_json:
        values = {
            "study": {"id": study.id, "name": study.name},
            "run": {
                "id": row.id,
                "method": row.method,
                "status": row.status,
                "points": row.settings.points,
            },
            "evaluations": row.n_evaluations,
            "r2": by_task(analysis, analysis.r2),
        }
        if isinstance(nested, NestedMAP):
            values["nested"] = {
                "c": nested.c,
                "predicted": by_task(analysis, nested.predicted),
                "feasible": nested.feasible,
                "message": nested.message,
            }
        print_json(values)
        return INFEASIBLE if infeasible else 0
    say(f"Study {study.id}, {study.name}: {row.n_evaluations} evaluations, {row.seconds:.1f} s.")
    if isinstance(nested, NestedMAP):
        say(nested.message)
        print_table(
            ("task", "coefficient", "predicted"),
            [
                (task, number(c), percent(value))
                for task, c, value in zip(analysis.tasks, nested.c, nested.predicted, strict=True)
            ],
        )
    elif analysis.problem:
        say(analysis.problem)
    else:
        say_fit(analysis)
    return INFEASIBLE if infeasible else 0


def _given_settings(options: Namespace) -> dict[str, Any]:
    """The settings of a run that were typed, as they were typed."""
    if options.device is not None:
        check_device(options.device)
    names = ["preference", *(setting.name for setting in fields(RunSettings) if setting.name != "weights")]
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _method_and_settings(
    options: Namespace, given: dict[str, Any], spec: StudySpec
) -> tuple[MethodName, RunSettings]:
    """The new run that was asked for.

    Raises:
        MapMergeError: for what can't be run, before a study is kept.
    """
    method: MethodName = options.method or "map"
    for name, methods in _FOR.items():
        if name in given and method not in methods:
            option = "--no-anchors" if name == "anchors" else f"--{name}"
            raise StudyError(
                f"{TITLES[method]} has no use for {option}: leave it out, or choose --method "
                f"{' or '.join(methods)}."
            )
    values = {"points": default_points(method, len(spec.tasks))} | given
    if "preference" in values:
        values["weights"] = parse_weights(values.pop("preference"), spec.task_names)
    if "order" in values:
        values["order"] = [name.strip() for name in values["order"].split(",")]
    settings = RunSettings(**values)
    settings.make_method(method, spec)
    return method, settings


def _given_transform(options: Namespace) -> Transform | None:
    """The transform that was typed."""
    shares = {name: getattr(options, name) for name in ("keep", "drop") if getattr(options, name) is not None}
    used = {None: set(), "dare": {"drop"}}.get(options.transform, {"keep"})
    for name in shares.keys() - used:
        raise StudyError(
            f"--{name} goes with --transform {'dare' if name == 'drop' else 'ties_trim or ties'}."
        )
    return None if options.transform is None else Transform(options.transform, **shares)


def _unfinished(store: Store, study: StudyRow) -> RunRow:
    runs = [row for row in store.runs(study.id) if row.status != "done"]
    if not runs:
        raise StudyError(f"'{study.name}' has no run to resume: give --points to evaluate more.")
    return runs[-1]
