"""The command ``compare``: every run, merge and reference of a study by its measured test metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mapmerge_core.cli.options import Device, Json, Preference, Seed, Tasks, Zoo, parse_weights
from mapmerge_core.errors import StudyError

if TYPE_CHECKING:
    from mapmerge_core.cli.session import Session
    from mapmerge_core.studies.analysis.comparing import Comparison
    from mapmerge_core.studies.config.study_file import StudyFile
    from mapmerge_core.studies.store import Study


def compare(
    study: Annotated[str | None, typer.Argument(metavar="STUDY", help="A study's name or number.")] = None,
    *,
    demo: Annotated[bool, typer.Option("--demo", help="Every method on the bundled models.")] = False,
    tasks: Tasks = None,
    points: Annotated[int | None, typer.Option(metavar="P", help="MAP's points in the demo.")] = None,
    direct_points: Annotated[int | None, typer.Option(metavar="P", help="Direct search's points in the demo.")] = None,
    zoo: Zoo = None,
    preference: Preference = None,
    merges: Annotated[
        str | None, typer.Option(metavar="A,B", help="Make only these merges that are missing; all if left out.")
    ] = None,
    no_merges: Annotated[bool, typer.Option("--no-merges", help="Make no merge that is missing.")] = False,
    normalise: Annotated[bool, typer.Option("--normalise", help="Show shares of the single models' values.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table, too.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure and compare every run, merge and fine-tuned model on the test split."""
    from mapmerge_core.cli.output import progress_bar
    from mapmerge_core.cli.session import Session, check_device, ctrl_c_stops, stopped_kindly
    from mapmerge_core.studies.analysis import compare as compare_study
    from mapmerge_core.studies.config import Compute
    from mapmerge_core.studies.runs.completing import complete

    if (study is None) != demo:
        raise StudyError("Name either a study, or with --demo the bundled models.")
    if no_merges and merges is not None:
        raise StudyError("--merges names merges to make, and --no-merges makes none: give one of them.")
    for option, value in (("tasks", tasks), ("points", points), ("direct-points", direct_points), ("zoo", zoo)):
        if value is not None and not demo:
            raise StudyError(f"--{option} is for --demo: leave it out.")
    check_device(device)
    if csv is not None and (csv.is_dir() or not csv.absolute().parent.is_dir()):
        raise StudyError(f"{csv} can't be written: choose a file in a folder that exists.")
    named = None if merges is None else [name.strip() for name in merges.split(",")]
    with stopped_kindly():
        if demo:
            from mapmerge_core.cli.opening import demo_of

            file = demo_of(tasks, points, seed, device, zoo)
            weights = _check(file.config, preference, named)
            session = Session()
            kept = _run_demo(session, file, direct_points)
        else:
            session = Session()
            kept = session.store.studies.find(study or "")
            weights = _check(kept.config, preference, named)
        with progress_bar("Merges and test metrics") as progress, ctrl_c_stops() as cancel:
            complete(
                session.store,
                kept.id,
                session.evaluators.get,
                merges=not no_merges if named is None else named,
                weights=weights,
                seed=seed,
                compute=Compute(device=device),
                cancel=cancel,
                progress=progress,
            )
    comparison = compare_study(session.store, kept.id, weights=weights, seed=seed)
    if csv is not None:
        _write_csv(comparison, csv, normalise=normalise)
    if json:
        _print_json(comparison)
    else:
        _say(kept, comparison, normalise=normalise)


def _check(config: Any, preference: str | None, named: list[str] | None) -> dict[str, float] | None:  # noqa: ANN401
    """Return the preference that was typed; refuse it and unknown merges before anything is measured."""
    from mapmerge_core.registries import MERGES
    from mapmerge_core.studies.analysis.references import shares_of

    names = tuple(objective.name for objective in config.objectives)
    weights = None if preference is None else parse_weights(preference, names)
    shares_of(weights, config.objectives)
    for name in named or []:
        MERGES[name]().check(config.facts())
    return weights


def _run_demo(session: Session, file: StudyFile, direct_points: int | None) -> Study:
    """Run every method on the demo's study to its end."""
    from mapmerge_core.cli.opening import open_study
    from mapmerge_core.studies.config.demo import demo_comparison

    runs = demo_comparison(file, direct_points)
    study = open_study(session.store, file)
    for config in runs:
        run = session.store.runs.find_same(study.id, config) or session.store.runs.create(study.id, config)
        if run.status != "done":
            session.run(run.id, config.compute)
    return study


def _print_json(comparison: Comparison) -> None:
    from mapmerge_core.cli.output import print_json

    objectives = [objective.name for objective in comparison.objectives]
    names = {row.key: row.name for row in comparison.rows}
    print_json(
        {
            "objectives": objectives,
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "x": row.x,
                    "metrics": dict(zip(objectives, row.metrics.tolist(), strict=True)),
                    "evaluations": row.evaluations,
                    "seconds": row.seconds,
                }
                for row in comparison.rows
            ],
            "preferences": {
                "winner": None if comparison.winner is None else comparison.winner.name,
                "wins": {names[key]: rate for key, (rate, _) in comparison.wins.items()},
            },
        }
    )


def _say(study: Study, comparison: Comparison, *, normalise: bool) -> None:
    from mapmerge_core.cli.output import number, percent, print_table, say
    from mapmerge_core.studies.analysis import to_table

    objectives = comparison.objectives
    weights = zip(objectives, comparison.weights, strict=True)
    shown = ", ".join(f"{objective.name} {100 * weight:.3g}%" for objective, weight in weights if weight)
    of = ", as shares of the own models'" if normalise else ""
    say(f"{study.name}: metrics on the test split{of}; the preference is {shown}.\n")
    table = to_table(comparison, normalise)
    as_text: dict[str, Callable[[Any], str]] = {
        "model": str,
        "kind": str,
        "hypervolume": number,
        "evaluations": str,
        "seconds": "{:.1f}".format,
    }
    in_percent = [normalise or objective.metric.is_share for objective in objectives]
    # The objectives' columns stand in their order, after the two first.
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
        titles = "; ".join(f"{merge.label} ({merge.name})" for merge in comparison.offered)
        say(f"\nNot made yet, in brackets the names for --merges: {titles}.")


def _write_csv(comparison: Comparison, path: Path, *, normalise: bool) -> None:
    from mapmerge_core.studies.analysis import to_table

    try:
        to_table(comparison, normalise).to_csv(path, index=False)
    except OSError as error:
        raise StudyError(f"{path} can't be written ({error.strerror or error}): choose another file.") from error
