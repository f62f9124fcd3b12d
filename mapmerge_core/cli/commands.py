"""The commands: each does what a page does, with the same store, and prints what came of it."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.cli.output import number, percent, print_json, print_table, progress_bar, say
from mapmerge_core.errors import StudyError
from mapmerge_core.methods.catalogue import default_points
from mapmerge_core.studies.analysis import Analysis, analyse
from mapmerge_core.studies.checking import check_spec
from mapmerge_core.studies.demo import create_demo_study
from mapmerge_core.studies.evaluators import EvaluatorCache
from mapmerge_core.studies.exporting import export_pick
from mapmerge_core.studies.runner import execute_run, measure
from mapmerge_core.studies.spec import RunSettings, demo_tasks, spec_from_manifest
from mapmerge_core.studies.store import Store

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from mapmerge_core.studies.rows import RunRow, StudyRow

INFEASIBLE = 3
_SHOWN_ROWS = 20


@dataclass
class Session:
    """One command's store and evaluators."""

    store: Store = field(default_factory=Store)
    evaluators: EvaluatorCache = field(default_factory=EvaluatorCache)

    def __post_init__(self) -> None:
        self.store.recover()

    def run(self, run_id: int, device: str | None = None) -> RunRow:
        """Runs a run to its end, with a progress bar, on another device than its own where one is given."""
        claim = self.store.claim_run(run_id)
        study_id = self.store.run(run_id).study_id
        try:
            if device is not None:
                self.store.set_device(run_id, device)
            with progress_bar("Evaluating") as progress, _ctrl_c_stops() as cancel:
                run = execute_run(self.store, run_id, self.evaluators.get, cancel=cancel, progress=progress)
            stopped = run.status == "stopped"
        except KeyboardInterrupt:
            stopped = True
        finally:
            claim.release()
        if stopped:
            raise KeyboardInterrupt(
                f"Stopped; everything measured is kept, and `run --study {study_id}` goes on."
            )
        return run

    def measure(self, study: StudyRow, c: np.ndarray, device: str) -> dict[str, float]:
        """The metrics of the model at ``c`` (N,) on the test split."""
        evaluator = self.evaluators.get(study, device)
        with progress_bar("Measuring") as progress:
            values = measure(self.store, study, evaluator, c[None], split="test", progress=progress)
        return dict(zip(study.spec.task_names, values[0].tolist(), strict=True))


@contextmanager
def _ctrl_c_stops() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that a run stops between two evaluations and never within a commit.

    Pressed again, Ctrl-C interrupts at once.
    """
    cancel = Event()

    def stop(*_: object) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def demo(options: Namespace) -> int:
    """Evaluates, fits, finds the front, picks by equal preference, measures and exports."""
    started = time.perf_counter()
    check_spec(spec_from_manifest(options.zoo, demo_tasks(options.tasks, options.zoo)))
    _check_device(options.device)
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
                "r2": _by_task(analysis, analysis.r2),
                "front": _front_values(analysis),
                "pick": {
                    "c": c,
                    "predicted": _by_task(analysis, analysis.predict(c)[0]),
                    "measured": measured,
                },
                "export": str(exported.path),
                "seconds": seconds,
            }
        )
        return 0
    _say_analysis(analysis)
    say("\nThe pick, by equal preference:")
    _say_pick(analysis, c, measured)
    say(f"\nExported to {exported.path}")
    say(f"{run.n_evaluations} evaluations in {seconds['evaluate']:.1f} s, {seconds['total']:.1f} s in all.")
    return 0


def run(options: Namespace) -> int:
    """Evaluates points of a new study, or goes on with one."""
    if (options.folder is None) == (options.study is None):
        raise StudyError("Name either a folder, for a new study, or with --study one to go on with.")
    given = _given_settings(options)
    session = Session()
    if options.folder is not None:
        names = None if options.tasks is None else [name.strip() for name in options.tasks.split(",")]
        spec = spec_from_manifest(options.folder, names)
        settings = _settings(given, len(spec.tasks))
        settings.make_method("map", spec)  # refuses what can't be sampled before a study is kept
        check_spec(spec)
        study = session.store.create_study(options.name, spec)
        row = session.store.create_run(study.id, settings)
    else:
        study = session.store.find_study(options.study)
        if options.tasks is not None or options.name is not None:
            raise StudyError("--tasks and --name are for a new study: name a folder, or leave them out.")
        if options.points is not None:
            row = session.store.create_run(study.id, _settings(given, len(study.spec.tasks)))
        elif given.keys() <= {"device"}:
            row = _unfinished(session.store, study)
        else:
            raise StudyError(
                "A run goes on with the settings that it was started with: leave all but --device out, or "
                "give --points to evaluate more."
            )
    row = session.run(row.id, options.device)
    analysis = analyse(session.store, study.id, with_front=False)
    if options.json:
        print_json(
            {
                "study": {"id": study.id, "name": study.name},
                "run": {"id": row.id, "status": row.status, "points": row.settings.points},
                "evaluations": row.n_evaluations,
                "r2": _by_task(analysis, analysis.r2),
            }
        )
        return 0
    say(f"Study {study.id}, {study.name}: {row.n_evaluations} evaluations, {row.seconds:.1f} s.")
    if analysis.problem:
        say(analysis.problem)
    else:
        _say_fit(analysis)
    return 0


def front(options: Namespace) -> int:
    """Prints a study's front."""
    session = Session()
    analysis = analyse(session.store, session.store.find_study(options.study).id, seed=options.seed)
    if options.json:
        print_json(
            {
                "tasks": analysis.tasks,
                "r2": _by_task(analysis, analysis.r2),
                "front": _front_values(analysis)
                | {"lower": analysis.fitted_front.lower, "upper": analysis.fitted_front.upper},
            }
        )
    else:
        _say_analysis(analysis)
    return 0


def pick(options: Namespace) -> int:
    """Picks a model by rule or by preference, and measures it if asked."""
    session = Session()
    study = session.store.find_study(options.study)
    analysis = analyse(session.store, study.id)
    message, misses, how = "", [], {}
    if options.rule is not None:
        result = analysis.by_rule(options.rule)
        c, message, how = result.c, result.message, {"kind": "rule", "text": options.rule}
        misses = [{"task": miss.task, "wanted": miss.wanted, "got": miss.got} for miss in result.misses]
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
                    "predicted": _by_task(analysis, predicted),
                    "lower": _by_task(analysis, lower),
                    "upper": _by_task(analysis, upper),
                    "measured": measured,
                },
            }
        )
    else:
        if message:
            say(message)
        say(f"Pick {row.id}:" if row else "The nearest model, which is not kept as a pick:")
        _say_pick(analysis, c, measured)
    return 0 if feasible else INFEASIBLE


def export(options: Namespace) -> int:
    """Writes a picked model."""
    session = Session()
    study = session.store.find_study(options.study)
    picks = [row for row in session.store.picks(study.id) if options.pick in (None, row.id)]
    if not picks:
        wanted = "pick yet" if options.pick is None else f"pick {options.pick}"
        raise StudyError(f"'{study.name}' has no {wanted}: make one with the command `pick`.")
    exported = export_pick(session.store, picks[-1].id, options.out)
    if options.json:
        print_json(
            {
                "pick": picks[-1].id,
                "export": str(exported.path),
                "card": str(exported.card),
                "mergekit": str(exported.mergekit),
                "sha256": exported.sha256,
                "bytes": exported.n_bytes,
            }
        )
    else:
        say(f"Pick {picks[-1].id} exported to {exported.path} ({exported.n_bytes / 1e6:.1f} MB)")
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


def parse_weights(text: str, tasks: tuple[str, ...]) -> dict[str, float]:
    """Weights from text such as "MNIST=2,Emoji=1"; "equal" is 1 for each task.

    Raises:
        StudyError: for anything else.
    """
    if text.strip().lower() == "equal":
        return dict.fromkeys(tasks, 1.0)
    weights = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            raise StudyError(
                f"'{part.strip()}' is no weight: write them as in '{tasks[0]}=2,{tasks[1]}=1', or equal."
            ) from None
    return weights


def _given_settings(options: Namespace) -> dict[str, Any]:
    """The settings of a run that were typed."""
    if options.device is not None:
        _check_device(options.device)
    given = {setting.name: getattr(options, setting.name, None) for setting in fields(RunSettings)}
    return {name: value for name, value in given.items() if value is not None}


def _settings(given: dict[str, Any], n_tasks: int) -> RunSettings:
    return RunSettings(**{"points": default_points("map", n_tasks)} | given)


def _check_device(name: str) -> None:
    from mapmerge_core.tasks.evaluator import choose_device

    choose_device(name)


def _unfinished(store: Store, study: StudyRow) -> RunRow:
    runs = [row for row in store.runs(study.id) if row.status != "done"]
    if not runs:
        raise StudyError(f"'{study.name}' has no run to resume: give --points to evaluate more.")
    return runs[-1]


def _by_task(analysis: Analysis, values: np.ndarray) -> dict[str, float]:
    return dict(zip(analysis.tasks, values.tolist(), strict=True))


def _front_values(analysis: Analysis) -> dict[str, Any]:
    found = analysis.fitted_front
    return {"size": len(found), "c": found.c, "predicted": found.predicted}


def _say_fit(analysis: Analysis) -> None:
    print_table(
        ("task", "R²", "pre-trained", "single-task"),
        [
            (task, number(r2), percent(pretrained), percent(single))
            for task, r2, pretrained, single in zip(
                analysis.tasks, analysis.r2, analysis.pretrained, analysis.single, strict=True
            )
        ],
    )


def _say_analysis(analysis: Analysis) -> None:
    found = analysis.fitted_front
    _say_fit(analysis)
    rows = np.unique(np.linspace(0, len(found) - 1, _SHOWN_ROWS).round().astype(int))
    if found.is_single_point:
        say("\nOne model is best at everything: there is no trade-off to choose from.")
    else:
        listed = "" if len(rows) == len(found) else f", {len(rows)} of them here and all with --json"
        say(f"\nThe front has {len(found)} models{listed} (coefficients, then predicted metrics):")
    print_table(
        (*(f"c {task}" for task in analysis.tasks), *analysis.tasks),
        [
            (*map(number, c), *map(percent, predicted))
            for c, predicted in zip(found.c[rows], found.predicted[rows], strict=True)
        ],
    )


def _say_pick(analysis: Analysis, c: np.ndarray, measured: dict[str, float]) -> None:
    predicted, lower, upper = analysis.predict(c)
    print_table(
        ("task", "coefficient", "predicted", "90% interval", "measured"),
        [
            (
                task,
                number(c[k]),
                percent(predicted[k]),
                f"{percent(lower[k])} to {percent(upper[k])}",
                percent(measured.get(task)),
            )
            for k, task in enumerate(analysis.tasks)
        ],
    )
