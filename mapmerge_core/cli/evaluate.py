"""The commands that evaluate: ``demo`` and ``run``."""

from __future__ import annotations

import sys
import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from mapmerge_core.cli.learned import report_run
from mapmerge_core.cli.opening import given_transform, kept_study, new_study, read_place, usual_training
from mapmerge_core.cli.output import metric_text, number, print_json, print_table, say
from mapmerge_core.cli.reports import by_task, front_values, say_analysis, say_fit, say_pick
from mapmerge_core.cli.session import INFEASIBLE, Session, check_device, parse_weights
from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import TITLES, default_points
from mapmerge_core.methods.nested import NestedMAP
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.inputs.checking import check_spec
from mapmerge_core.studies.config.demo import create_demo_study
from mapmerge_core.studies.runs.exporting import export_pick
from mapmerge_core.studies.config.manifest import demo_tasks, spec_from_manifest
from mapmerge_core.studies.analysis.replay import replay
from mapmerge_core.studies.config.run import RunSettings, has_parts
from mapmerge_core.studies.analysis.siblings import sibling
from mapmerge_core.studies.config.study_schema import USED_BY

if TYPE_CHECKING:
    from argparse import Namespace

    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.studies.config.study_file import StudyFile


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
    if (options.place is None) == (options.study is None):
        raise StudyError(
            "Name either a folder or a STUDY.yaml, for a new study, or with --study one to go on with."
        )
    session = Session()
    study, row = (_of_study if options.place is None else _of_place)(session.store, options)
    if row.status == "done":
        others = "--points, --images or --seed" if has_parts(study.spec) else "--points or --seed"
        sys.stderr.write(f"'{study.name}' has done this run already: other {others} evaluate more.\n")
    else:
        row = session.run(row.id, options.device)
    return _report(session.store, study, row, as_json=options.json)


def _of_place(store: Store, options: Namespace) -> tuple[StudyRow, RunRow]:
    """The study and run that a folder or a file asks for; those that a study file asked for before go on."""
    given, place = _given_settings(options), read_place(options)
    method, settings = _method_and_settings(options, given, place.spec, place.file)
    study = None if place.file is None else kept_study(store, place)
    if study is None:
        study = new_study(store, place)
    for row in reversed(store.runs(study.id)):
        if row.method == method and replace(row.settings, device=settings.device) == settings:
            return study, row
    return study, store.create_run(study.id, settings, method)


def _of_study(store: Store, options: Namespace) -> tuple[StudyRow, RunRow]:
    """A study that there is, and its unfinished run or a new one."""
    given, transform = _given_settings(options), given_transform(options)
    study = store.find_study(options.study)
    if options.tasks is not None or options.name is not None:
        raise StudyError(
            "--tasks and --name are for a new study: name a folder or a STUDY.yaml, or leave them out."
        )
    if options.points is not None or options.method is not None or transform is not None:
        spec = replace(study.spec, transform=transform or study.spec.transform)
        method, settings = _method_and_settings(options, given, spec)
        if transform is not None:
            study = sibling(store, study, transform)
        return study, store.create_run(study.id, settings, method)
    if given.keys() <= {"device"}:
        return study, _unfinished(store, study)
    raise StudyError(
        "A run goes on with the settings that it was started with: leave all but --device out, or "
        "give --points to evaluate more."
    )


def _report(store: Store, study: StudyRow, row: RunRow, *, as_json: bool) -> int:
    """Prints what came of a run."""
    if row.method == "pareto_merging":
        return report_run(store, study, row, as_json=as_json)
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
                "images": row.settings.images,
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
                (task, number(c), metric_text(value, metric))
                for task, metric, c, value in zip(
                    analysis.tasks, analysis.metrics, nested.c, nested.predicted, strict=True
                )
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
    others = {"weights": "preference", "training": None}
    names = [others.get(setting.name, setting.name) for setting in fields(RunSettings)]
    return {name: getattr(options, name) for name in names if name and getattr(options, name) is not None}


def _method_and_settings(
    options: Namespace, given: dict[str, Any], spec: StudySpec, file: StudyFile | None = None
) -> tuple[MethodName, RunSettings]:
    """The new run that was asked for; what was typed comes before what a study file says.

    Raises:
        MapMergeError: for what can't be run, before a study is kept.
    """
    method: MethodName = options.method or (file.method if file else "map")
    for setting, methods in USED_BY.items():
        name = "preference" if setting == "weights" else setting
        if name in given and method not in methods:
            option = "--no-anchors" if name == "anchors" else f"--{name}"
            raise StudyError(
                f"{TITLES[method]} has no use for {option}: leave it out, or choose --method "
                f"{' or '.join(methods)}."
            )
    values = dict(given)
    if "preference" in values:
        values["weights"] = parse_weights(values.pop("preference"), spec.task_names)
    if "order" in values:
        values["order"] = [name.strip() for name in values["order"].split(",")]
    usual = {"points": default_points(method, len(spec.tasks))}
    settings = RunSettings(**usual | _said(file, method, values) | values)
    if method == "pareto_merging":
        settings = replace(settings, training=settings.training or usual_training(spec))
    settings.check(method, spec)
    return method, settings


def _said(file: StudyFile | None, method: MethodName, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a study file that hold for a run with what was typed (``values``)."""
    if file is None:
        return {}
    said = {
        each.name: getattr(file.settings, each.name)
        for each in fields(RunSettings)
        if method in USED_BY.get(each.name, (method,))
    }
    usual = default_points(file.method, len(file.spec.tasks))
    if method != file.method or file.settings.points == usual:
        del said["points"]  # they follow from the method and the number of tasks
    for name, other in (("rule", "weights"), ("weights", "rule")):
        if name in values:
            said.pop(other, None)
    return said


def _unfinished(store: Store, study: StudyRow) -> RunRow:
    runs = [row for row in store.runs(study.id) if row.status != "done"]
    if not runs:
        raise StudyError(f"'{study.name}' has no run to resume: give --points to evaluate more.")
    return runs[-1]
