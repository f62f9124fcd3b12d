"""The command ``studies``: list, rename or delete studies."""

from __future__ import annotations

from typing import Annotated

import typer

from mapmerge_core.cli.options import Json


def studies(
    *,
    delete: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Delete a study with its evaluations and picks.")
    ] = None,
    rename: Annotated[
        tuple[str, str] | None, typer.Option(metavar="STUDY NAME", help="Give a study another name.")
    ] = None,
    json: Json = False,
) -> None:
    """List the studies."""
    from mapmerge_core.cli.output import print_json, print_table, say
    from mapmerge_core.studies.store import Store

    store = Store()
    store.runs.recover()
    if delete is not None:
        store.studies.delete(store.studies.find(delete).id)
    if rename is not None:
        store.studies.rename(store.studies.find(rename[0]).id, rename[1])
    kept = store.studies.all()
    if json:
        print_json(
            {
                "studies": [
                    {
                        "id": study.id,
                        "name": study.name,
                        "models": study.config.model_names,
                        "objectives": [objective.name for objective in study.config.objectives],
                        "points": study.n_points,
                        "evaluations": study.n_evaluations,
                        "picks": study.n_picks,
                        "status": study.status,
                        "changed": study.changed.isoformat(),
                    }
                    for study in kept
                ]
            }
        )
    elif kept:
        print_table(
            ("study", "no.", "models", "objectives", "points", "picks", "last run"),
            [
                (
                    study.name,
                    str(study.id),
                    str(len(study.config.models)),
                    str(len(study.config.objectives)),
                    str(study.n_points),
                    str(study.n_picks),
                    study.status or "none",
                )
                for study in kept
            ],
        )
    else:
        say("There are no studies yet: start with `demo`, or with `run FOLDER`.")
