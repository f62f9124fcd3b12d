"""The command ``compare``: every run, baseline and reference of a study by its measured test metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapmerge_core.cli.opening import find_run
from mapmerge_core.cli.output import number, percent, print_json, print_table, progress_bar, say
from mapmerge_core.cli.session import Session, check_device, ctrl_c_stops, parse_weights
from mapmerge_core.errors import Cancelled, StudyError
from mapmerge_core.studies.runs.baselines import check_offered
from mapmerge_core.studies.inputs.checking import check_spec
from mapmerge_core.studies.analysis.comparing import Comparison, complete, to_table
from mapmerge_core.studies.analysis.comparing import compare as compare_study
from mapmerge_core.studies.config.demo import demo_runs, find_demo_study
from mapmerge_core.studies.analysis.entries import shares_of
from mapmerge_core.studies.config.manifest import DEMO_ZOO, demo_tasks, spec_from_manifest
from mapmerge_core.studies.analysis.siblings import family_of

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.studies.config.study import StudySpec


def compare(options: Namespace) -> int:
    """Makes the baselines, measures what is missing, and prints the comparison."""
    if (options.study is None) != options.demo:
        raise StudyError("Name either a study, or with --demo the bundled models.")
    check_device(options.device)
    if options.csv is not None and (options.csv.is_dir() or not options.csv.absolute().parent.is_dir()):
        raise StudyError(f"{options.csv} can't be written: choose a file in a folder that exists.")
    try:
        study, comparison = _prepare(options)
    except (Cancelled, KeyboardInterrupt):
        raise KeyboardInterrupt(
            "Stopped; everything measured is kept, and the same command goes on."
        ) from None
    if options.csv is not None:
        _write_csv(comparison, options.csv, normalise=options.normalise)
    if options.json:
        _print_json(comparison)
    else:
        _say_comparison(study, comparison, normalise=options.normalise)
    return 0


def _prepare(options: Namespace) -> tuple[StudyRow, Comparison]:
    """The study with all that was asked for made and measured."""
    if options.demo:
        session, study, weights = _run_demo(options)
    else:
        for name in ("tasks", "points", "direct_points", "zoo"):
            if getattr(options, name) is not None:
                raise StudyError(f"--{name.replace('_', '-')} is for --demo: leave it out.")
        session = Session()
        study = session.store.find_study(options.study)
        weights = _check(options, study.spec, family_of(session.store, study)[0].spec)
    named = _named_baselines(options)
    with progress_bar("Baselines and test metrics") as progress, ctrl_c_stops() as cancel:
        complete(
            session.store,
            study.id,
            lambda member: session.evaluators.get(member, options.device),
            baselines=not options.no_baselines if named is None else named,
            weights=weights,
            seed=options.seed,
            cancel=cancel,
            progress=progress,
        )
    return study, compare_study(session.store, study.id, weights=weights, seed=options.seed)


def _run_demo(options: Namespace) -> tuple[Session, StudyRow, Mapping[str, float] | None]:
    """The demo's study with every method run to its end."""
    n_tasks = 2 if options.tasks is None else options.tasks
    zoo = options.zoo or DEMO_ZOO
    spec = spec_from_manifest(zoo, demo_tasks(n_tasks, zoo))
    weights = _check(options, spec, spec)
    runs = demo_runs(
        n_tasks,
        points=options.points,
        direct_points=options.direct_points,
        seed=options.seed,
        device=options.device,
        zoo=zoo,
    )
    check_spec(spec)
    session = Session()
    study = find_demo_study(session.store, n_tasks, zoo=zoo)
    for method, settings in runs:
        run = find_run(session.store, study, method, settings)
        run = run or session.store.create_run(study.id, settings, method)
        if run.status != "done":
            session.run(run.id, options.device)
    return session, study, weights


def _check(options: Namespace, spec: StudySpec, base: StudySpec) -> Mapping[str, float] | None:
    """The preference that was typed; refuses it and unknown baselines before anything is measured.

    Baselines are those of ``base``, the same models' study without a transform if there is one.
    """
    weights = None if options.preference is None else parse_weights(options.preference, spec.task_names)
    shares_of(weights, spec.task_names)
    for name in _named_baselines(options) or []:
        check_offered(base, name)
    return weights


def _named_baselines(options: Namespace) -> list[str] | None:
    """The baselines that were asked for by name; None where all are wanted."""
    if options.baselines is None:
        return None
    return [name.strip() for name in options.baselines.split(",")]


def _print_json(comparison: Comparison) -> None:
    names = {row.key: row.name for row in comparison.rows}
    print_json(
        {
            "tasks": comparison.tasks,
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "c": row.c,
                    "metrics": dict(zip(comparison.tasks, row.metrics.tolist(), strict=True)),
                    "evaluations": row.evaluations,
                    "seconds": row.seconds,
                }
                for row in comparison.rows
            ],
            "preferences": {"wins": {names[key]: rate for key, (rate, _) in comparison.wins.items()}},
        }
    )


def _say_comparison(study: StudyRow, comparison: Comparison, *, normalise: bool) -> None:
    shown = ", ".join(
        f"{task} {100 * weight:.3g}%"
        for task, weight in zip(comparison.tasks, comparison.weights, strict=True)
        if weight
    )
    of = ", as shares of the single-task models'" if normalise else ""
    say(f"{study.name}: metrics on the test split{of}; the preference is {shown}.\n")
    table = to_table(comparison, normalise)
    as_text: dict[str, Callable[[Any], str]] = {
        "model": str,
        "kind": str,
        "hypervolume": number,
        "evaluations": str,
        "seconds": "{:.1f}".format,
    }
    in_percent = [normalise or metric.is_share for metric in comparison.metrics]
    # The columns of the tasks stand in their order, after the two first.
    for name, is_share in zip(table.columns[2:], in_percent, strict=False):
        as_text[name] = percent if is_share else number
    if not all(in_percent):
        as_text |= dict.fromkeys(("mean", "worst", "preference"), number)
    columns = [table[name].map(as_text.get(name, percent)) for name in table.columns]
    print_table(list(table.columns), list(zip(*columns, strict=True)))
    for row in comparison.rows:
        if row.problem:
            say(f"\n{row.name}: {row.problem}")
    if comparison.offered:
        titles = "; ".join(f"{kind.title} ({kind.name})" for kind in comparison.offered)
        say(f"\nNot made yet, in brackets the names for --baselines: {titles}.")


def _write_csv(comparison: Comparison, path: Path, *, normalise: bool) -> None:
    try:
        to_table(comparison, normalise).to_csv(path, index=False)
    except OSError as error:
        raise StudyError(
            f"{path} can't be written ({error.strerror or error}): choose another file."
        ) from error
