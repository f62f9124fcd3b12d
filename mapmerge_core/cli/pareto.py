"""The command ``pareto-merge``: learns a model for every preference, and measures some on the test split."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.cli.learned import export_set
from mapmerge_core.cli.opening import (
    find_run,
    given_transform,
    kept_study,
    new_study,
    read_place,
    usual_training,
)
from mapmerge_core.cli.output import metric_text, print_json, progress_bar, say
from mapmerge_core.cli.reports import say_models
from mapmerge_core.cli.session import Session, check_device, ctrl_c_stops
from mapmerge_core.errors import Cancelled, StudyError
from mapmerge_core.methods.catalogue import default_points
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.search.preference_grid import preference_grid
from mapmerge_core.studies.inputs.checking import check_spec
from mapmerge_core.studies.config.demo import find_demo_study
from mapmerge_core.studies.analysis.learned import learned_set, run_name
from mapmerge_core.studies.runs.learning import load_learned, measure_learned
from mapmerge_core.studies.config.manifest import DEMO_ZOO, demo_tasks, demo_training, spec_from_manifest
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.analysis.siblings import sibling

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path
    from typing import Any

    from mapmerge_core.studies.analysis.learned import LearnedSet
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

_FOLDED = 5


def pareto_merge(options: Namespace) -> int:
    """Trains a learned set, or goes on with it, and prints the test metrics of a grid of preferences."""
    started = time.perf_counter()
    if sum([options.place is not None, options.study is not None, options.demo]) != 1:
        raise StudyError(
            "Name either a folder or a STUDY.yaml, or with --study a study, or take the bundled models with "
            "--demo."
        )
    check_device(options.device)
    session = Session()
    study, settings = _study_and_settings(session.store, options)
    run = find_run(session.store, study, "pareto_merging", settings)
    run = run or session.store.create_run(study.id, settings, "pareto_merging")
    try:
        if run.status == "done":
            sys.stderr.write(f"'{study.name}' has learned this set already: it is run {run.id}.\n")
        else:
            run = session.run(run.id, options.device)
        report = _measured(session, study, run, options.device)
    except (Cancelled, KeyboardInterrupt):
        raise KeyboardInterrupt(
            "Stopped; everything learned and measured is kept, and the same command goes on."
        ) from None
    exported = None if options.no_export else export_set(session.store, study, run.id, None)
    seconds = time.perf_counter() - started
    if options.json:
        print_json(_values(report, exported, seconds))
    else:
        _say(report, exported, seconds)
    return 0


def _study_and_settings(store: Store, options: Namespace) -> tuple[StudyRow, RunSettings]:
    """The study to learn from, kept now if it is new and nothing is wrong with what was asked."""
    if options.zoo is not None and not options.demo:
        raise StudyError("--zoo is for --demo: leave it out.")
    if options.place is not None:
        place = read_place(options)
        said = place.file.settings if place.file and place.file.method == "pareto_merging" else None
        settings = _settings(options, place.spec, said, usual_training(place.spec))
        return kept_study(store, place) or new_study(store, place), settings
    transform = given_transform(options)
    if options.name is not None or (options.study is not None and options.tasks is not None):
        raise StudyError("--tasks and --name are for a new study: leave them out.")
    if options.demo:
        zoo = options.zoo or DEMO_ZOO
        n_tasks = _number(options.tasks)
        spec = spec_from_manifest(zoo, demo_tasks(n_tasks, zoo))
        settings = _settings(options, spec, None, demo_training(n_tasks))
        check_spec(spec)
        study = find_demo_study(store, n_tasks, zoo=zoo)
    else:
        study = store.find_study(options.study)
        settings = _settings(options, study.spec, None, usual_training(study.spec))
    return sibling(store, study, transform) if transform else study, settings


def _settings(options: Namespace, spec: StudySpec, said: RunSettings | None, usual: Training) -> RunSettings:
    """The run that was asked for; what was typed comes before what a study file says (``said``).

    Raises:
        MapMergeError: for what can't be run, before a study is kept.
    """
    typed: dict[str, Any] = {each.name: getattr(options, each.name) for each in fields(Training)}
    if options.personalised is not None:
        typed["personalised"] = [name.strip() for name in options.personalised.split(",")]
    changes = {name: value for name, value in typed.items() if value is not None}
    settings = said or RunSettings(default_points("pareto_merging", len(spec.tasks)))
    settings = replace(
        settings,
        points=settings.points if options.points is None else options.points,
        seed=settings.seed if options.seed is None else options.seed,
        device=options.device,
        training=replace(settings.training or usual, **changes),
    )
    settings.check("pareto_merging", spec)
    return settings


def _number(text: str | None) -> int:
    """How many of the demo's tasks were asked for."""
    try:
        return 2 if text is None else int(text)
    except ValueError:
        raise StudyError(f"Say with --tasks how many of the demo's tasks to merge, not '{text}'.") from None


@dataclass(frozen=True, eq=False)
class _Report:
    """A learned set, its models on the test split, and what took how long.

    Attributes:
        study: The study.
        learned: What its run has learned.
        gammas: A grid of preferences (``m x K``).
        values: Their models' metrics (``m x K``).
        measuring: Seconds, of what wasn't known yet.
        folding: Seconds that it takes to make the model for one preference.
    """

    study: StudyRow
    learned: LearnedSet
    gammas: np.ndarray
    values: np.ndarray
    measuring: float
    folding: float

    @property
    def equal(self) -> np.ndarray:
        """The metrics (K,) for the equal preference, which every grid has."""
        distances = np.abs(self.gammas - 1 / len(self.learned.tasks)).max(axis=1)
        equal: np.ndarray = self.values[distances.argmin()]
        return equal


def _measured(session: Session, study: StudyRow, run: RunRow, device: str) -> _Report:
    evaluator = session.evaluators.get(study, device, run.settings.precision)
    gammas = preference_grid(len(study.spec.tasks), run.settings.points, run.settings.seed)
    started = time.perf_counter()
    with progress_bar("Test metrics") as progress, ctrl_c_stops() as cancel:
        values = measure_learned(
            session.store, run.id, evaluator, gammas, split="test", cancel=cancel, progress=progress
        )
    measuring = time.perf_counter() - started
    folding = _folding(session.store, run.id, evaluator, gammas)
    return _Report(study, learned_set(session.store, run.id), gammas, values, measuring, folding)


def _folding(store: Store, run_id: int, evaluator: Evaluator, gammas: np.ndarray) -> float:
    """The median of the seconds that folding a preference into the weights takes."""
    from mapmerge_core.weights.vectors.streamed import in_memory

    learned = load_learned(store, run_id, in_memory(evaluator.exported_vectors))
    seconds = []
    for gamma in np.resize(gammas, (_FOLDED, gammas.shape[1])):
        started = time.perf_counter()
        learned.merge(gamma)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _values(report: _Report, exported: Path | None, seconds: float) -> dict[str, Any]:
    learned, run = report.learned, report.learned.run
    training = run.settings.training or Training()
    return {
        "study": {"id": report.study.id, "name": report.study.name},
        "run": {"id": run.id, "method": run.method},
        "tasks": learned.tasks,
        "steps": training.steps,
        "data_free": training.data_free,
        "preferences": report.gammas,
        "measured": report.values,
        "equal": dict(zip(learned.tasks, report.equal.tolist(), strict=True)),
        "mean": float(report.equal.mean()),
        "seconds": {
            "train": learned.train_seconds,
            "measure": report.measuring,
            "fold": report.folding,
            "total": seconds,
        },
        "extra_parameters": learned.n_extra,
        "parameters": learned.n_parameters,
        "share": learned.n_extra / learned.n_parameters,
        "export": None if exported is None else str(exported),
    }


def _say(report: _Report, exported: Path | None, seconds: float) -> None:
    learned, run = report.learned, report.learned.run
    name = run_name(run, report.study.spec)
    say(f"{report.study.name}: {name} (run {run.id}), preferences, then metrics on the test split:\n")
    most = len(report.gammas)
    say_models(learned.tasks, learned.metrics, report.gammas, report.values, symbol="γ", most=most)
    if len(set(learned.metrics)) == 1:
        mean = metric_text(float(report.equal.mean()), learned.metrics[0])
        say(f"\nThe mean for the equal preference is {mean}.")
    if learned.is_flat:
        say("All preferences gave the same model: lower the weight of the norm (--beta-norm).")
    steps = (run.settings.training or Training()).steps
    share = learned.n_extra / learned.n_parameters
    say(f"{learned.n_extra:,} extra parameters, {share:.2%} of the {learned.n_parameters:,} that are merged.")
    say(
        f"{steps:,} steps of training took {learned.train_seconds:.1f} s, and folding a preference into the "
        f"weights takes {1000 * report.folding:.1f} ms; {seconds:.1f} s in all."
    )
    if exported is not None:
        say(f"Exported to {exported}")
