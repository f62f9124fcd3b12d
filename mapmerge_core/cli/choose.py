"""The commands that choose and export: ``front``, ``pick``, ``export`` and ``studies``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapmerge_core.cli.learned import (
    export_set,
    look_at_unlabelled,
    pick_learned,
    show_front,
    unlabelled_text,
    unlabelled_values,
)
from mapmerge_core.cli.output import print_json, print_table, say
from mapmerge_core.cli.reports import by_task, front_values, say_analysis, say_models, say_pick
from mapmerge_core.cli.session import INFEASIBLE, Session, check_device, parse_weights
from mapmerge_core.errors import StudyError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.analysis.comparing import compare
from mapmerge_core.studies.runs.exporting import export_baseline, export_learned_pick, export_pick
from mapmerge_core.studies.analysis.replay import run_front
from mapmerge_core.studies.config.run import check_seed
from mapmerge_core.studies.store.store import Store

if TYPE_CHECKING:
    from argparse import Namespace

    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.weights.export.writing import ExportResult


def front(options: Namespace) -> int:
    """Prints the front of a study, or of one of its runs."""
    session = Session()
    study = session.store.find_study(options.study)
    if options.run is not None:
        return _run_front(session.store, study, options)
    analysis = analyse(session.store, study.id, seed=options.seed)
    if options.json:
        print_json(
            {
                "tasks": analysis.tasks,
                "r2": by_task(analysis, analysis.r2),
                "front": front_values(analysis)
                | {"lower": analysis.fitted_front.lower, "upper": analysis.fitted_front.upper},
            }
        )
    else:
        say_analysis(analysis)
    return 0


def _run_front(store: Store, study: StudyRow, options: Namespace) -> int:
    """Prints what a run found by itself: predicted metrics, of direct search measured ones."""
    check_seed(options.seed)
    if options.run not in [row.id for row in store.runs(study.id)]:
        raise StudyError(f"'{study.name}' has no run {options.run}.")
    if store.run(options.run).method == "pareto_merging":
        return show_front(store, study, options.run, as_json=options.json)
    found = run_front(store, options.run, seed=options.seed)
    kind = "measured" if found.measured else "predicted"
    tasks = study.spec.task_names
    if options.json:
        row = store.run(options.run)
        values = {"size": len(found.c), "c": found.c, kind: found.values}
        print_json({"tasks": tasks, "run": {"id": row.id, "method": row.method}, "front": values})
    else:
        say(f"Run {options.run} offers {len(found.c)} models (coefficients, then {kind} metrics):")
        say_models(tasks, study.spec.metrics, found.c, found.values)
    return 0


def pick(options: Namespace) -> int:
    """Picks a model by rule, by preference or for unlabelled data, and measures it if asked."""
    if options.refine and (options.learned is None or options.rule is None):
        raise StudyError("--refine goes with --learned and --rule: leave it out.")
    if options.classes is not None and options.unlabelled is None:
        raise StudyError("--classes goes with --unlabelled: leave it out.")
    check_device(options.device)
    session = Session()
    study = session.store.find_study(options.study)
    if options.learned is not None:
        return pick_learned(session, study, options)
    choice = None
    analysis = analyse(session.store, study.id, with_front=options.unlabelled is None)
    message, misses, how = "", [], {}
    if options.rule is not None:
        result = analysis.by_rule(options.rule)
        c, message, how = result.c, result.message, {"kind": "rule", "text": options.rule}
        misses = [{"task": miss.task, "wanted": miss.wanted, "got": miss.got} for miss in result.misses]
    elif options.unlabelled is not None:
        choice, how = look_at_unlabelled(session, study, options)
        c, message = choice.points[choice.best], unlabelled_text(choice)
    else:
        weights = parse_weights(options.preference, analysis.tasks)
        c = analysis.fitted_front.c[analysis.by_preference(weights, normalise=options.normalise)]
        how = {"kind": "preference", "weights": weights, "normalise": options.normalise}
    feasible = not misses
    row = session.store.add_pick(study.id, c, how, name=options.name) if feasible else None
    if row and options.measure:
        session.measure(study, c, options.device)
    measured = session.store.measured(study.id, c, "test")
    if options.json:
        predicted, lower, upper = analysis.predict(c)
        print_json(
            {
                "study": {"id": study.id, "name": study.name},
                "feasible": feasible,
                "message": message,
                "misses": misses,
                "pick": {
                    "id": row.id if row else None,
                    "c": c,
                    "predicted": by_task(analysis, predicted),
                    "lower": by_task(analysis, lower),
                    "upper": by_task(analysis, upper),
                    "measured": measured,
                },
            }
            | unlabelled_values(choice)
        )
    else:
        if message:
            say(message)
        say(f"Pick {row.id}:" if row else "The nearest model, which is not kept as a pick:")
        say_pick(analysis, c, measured)
    return 0 if feasible else INFEASIBLE


def export(options: Namespace) -> int:
    """Writes a picked model, or that of a row of the comparison."""
    session = Session()
    study = session.store.find_study(options.study)
    if options.row is not None:
        return _export_row(session.store, study, options)
    if options.learned is not None:
        return _export_set(session.store, study, options)
    if options.learned_pick is not None:
        return _export_learned_pick(session.store, study, options)
    picks = [row for row in session.store.picks(study.id) if options.pick in (None, row.id)]
    if not picks:
        wanted = "pick yet" if options.pick is None else f"pick {options.pick}"
        raise StudyError(f"'{study.name}' has no {wanted}: make one with the command `pick`.")
    exported = export_pick(session.store, picks[-1].id, options.out)
    return _say_export(exported, f"Pick {picks[-1].id}", {"pick": picks[-1].id}, as_json=options.json)


def _export_row(store: Store, study: StudyRow, options: Namespace) -> int:
    """Writes the model of a run, a baseline or a reference."""
    comparison = compare(store, study.id)
    keys = {row.name: row.key for row in comparison.rows}
    key = keys.get(options.row, options.row)
    for kind in comparison.offered:
        if options.row in (kind.name, kind.title) and key not in keys.values():
            raise StudyError(
                f"'{study.name}' has no {kind.title} yet: make it with "
                f"`compare {study.id} --baselines {kind.name}`."
            )
    row = comparison.row(key)
    if row.baseline_id is not None:
        exported = export_baseline(store, row.baseline_id, options.out)
    elif row.c is not None:
        how = {"kind": "compared", "name": row.name}
        pick = store.add_pick(row.study_id, row.c, how, name=row.name)
        exported = export_pick(store, pick.id, options.out)
    else:
        raise StudyError(row.problem)
    return _say_export(exported, row.name, {"row": row.name}, as_json=options.json)


def _export_set(store: Store, study: StudyRow, options: Namespace) -> int:
    """Writes a learned set."""
    path = export_set(store, study, options.learned, options.out)
    if options.json:
        print_json({"learned": options.learned, "export": str(path), "bytes": path.stat().st_size})
    else:
        say(f"The learned set of run {options.learned} exported to {path}")
    return 0


def _export_learned_pick(store: Store, study: StudyRow, options: Namespace) -> int:
    """Writes the model of a learned set's pick."""
    if options.learned_pick not in [row.id for row in store.learned_picks(study.id)]:
        raise StudyError(
            f"'{study.name}' has no learned pick {options.learned_pick}: make one with `pick --learned RUN`."
        )
    exported = export_learned_pick(store, options.learned_pick, options.out)
    what = {"learned_pick": options.learned_pick}
    return _say_export(exported, f"Learned pick {options.learned_pick}", what, as_json=options.json)


def _say_export(exported: ExportResult, title: str, what: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print_json(
            what
            | {
                "export": str(exported.path),
                "card": str(exported.card),
                "mergekit": None if exported.mergekit is None else str(exported.mergekit),
                "sha256": exported.sha256,
                "bytes": exported.n_bytes,
            }
        )
    else:
        say(f"{title} exported to {exported.path} ({exported.n_bytes / 1e6:.1f} MB)")
        say(f"SHA-256 {exported.sha256}")
    return 0


def studies(options: Namespace) -> int:
    """Lists the studies, or deletes one."""
    store = Store()
    store.recover()
    if options.delete is not None:
        store.delete_study(store.find_study(options.delete).id)
    rows = store.studies()
    if options.json:
        print_json(
            {
                "studies": [
                    {
                        "id": row.id,
                        "name": row.name,
                        "tasks": row.spec.task_names,
                        "points": row.n_points,
                        "evaluations": row.n_evaluations,
                        "picks": row.n_picks,
                        "status": row.status,
                        "changed": row.changed.isoformat(),
                    }
                    for row in rows
                ]
            }
        )
    elif rows:
        print_table(
            ("study", "no.", "tasks", "points", "picks", "last run"),
            [
                (
                    row.name,
                    str(row.id),
                    str(len(row.spec.tasks)),
                    str(row.n_points),
                    str(row.n_picks),
                    row.status or "none",
                )
                for row in rows
            ],
        )
    else:
        say("There are no studies yet: start with `demo`, or with `run FOLDER`.")
    return 0
