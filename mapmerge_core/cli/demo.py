"""The command ``demo``: the whole way on the bundled models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mapmerge_core.cli.options import Device, Json, Seed, Tasks, Zoo


def demo(
    *,
    tasks: Tasks = None,
    points: Annotated[
        int | None, typer.Option(metavar="P", help="Points to evaluate; the paper's, at most 100.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the exported model.")] = None,
    zoo: Zoo = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Evaluate, fit, find the front, pick, measure and export on the bundled models."""
    from mapmerge_core.cli.opening import demo_of
    from mapmerge_core.cli.output import print_json, say
    from mapmerge_core.cli.reports import by_name, say_analysis, say_model
    from mapmerge_core.cli.session import Session, check_device
    from mapmerge_core.studies.analysis import analyse
    from mapmerge_core.studies.inputs.checking import check_study
    from mapmerge_core.studies.runs.exporting import export_pick

    started = time.perf_counter()
    file = demo_of(tasks, points, seed, device, zoo)
    check_device(device)
    check_study(file.config)
    session = Session()
    store = session.store
    study = store.studies.create(file.name, file.config)
    run = session.run(store.runs.create(study.id, file.run).id)
    evaluated = time.perf_counter()
    analysis = analyse(store, study.id, seed=seed)
    weights = dict.fromkeys(analysis.names, 1.0)
    front = analysis.fitted_front
    row = analysis.by_preference(weights)
    x = front.x[row]
    pick = store.picks.add(run.merge_id, x, {"kind": "preference", "weights": weights})
    measured = session.measure(study, run.merge_id, x, file.run.compute)
    exported = export_pick(store, pick.id, out)
    merge = analysis.merge(run.merge_id)
    seconds = {
        "evaluate": evaluated - started,
        "fit": merge.fit_seconds,
        "front": merge.front_seconds,
        "total": time.perf_counter() - started,
    }
    if json:
        predicted = by_name(analysis, analysis.predict(run.merge_id, x)[0])
        print_json(
            {
                "tasks": [task.name for task in study.config.tasks],
                "evaluations": run.n_evaluations,
                "r2": by_name(analysis, merge.r2),
                "front": {"size": len(front), "x": front.x, "predicted": front.predicted},
                "pick": {"x": x, "predicted": predicted, "measured": measured},
                "export": str(exported.path),
                "seconds": seconds,
            }
        )
        return
    say_analysis(analysis)
    say("\nThe pick, by equal preference:")
    say_model(analysis, run.merge_id, x, measured)
    say(f"\nExported to {exported.path}")
    say(f"{run.n_evaluations} evaluations in {seconds['evaluate']:.1f} s, {seconds['total']:.1f} s in all.")
