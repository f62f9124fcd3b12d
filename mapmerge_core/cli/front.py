"""The command ``front``: what a study, one of its merges or one of its runs offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mapmerge_core.cli.options import Json, Seed, Study
from mapmerge_core.errors import StudyError

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store
    from mapmerge_core.studies.store import Study as KeptStudy


def front(
    study: Study,
    *,
    merge: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this merge, by its name or number; all if left out.")
    ] = None,
    run: Annotated[int | None, typer.Option(metavar="N", help="What this run's own points offer.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Print the front of a study, over all its merges, of one merge, or of one run."""
    from mapmerge_core.cli.opening import find_merge
    from mapmerge_core.cli.output import print_json
    from mapmerge_core.cli.reports import by_name, front_values, say_analysis
    from mapmerge_core.cli.session import Session
    from mapmerge_core.studies.analysis import analyse

    store = Session().store
    kept = store.studies.find(study)
    if run is not None:
        _front_of_run(store, kept, run, seed, as_json=json)
        return
    merges = None if merge is None else [find_merge(store, kept, merge).id]
    analysis = analyse(store, kept.id, merges=merges, seed=seed)
    if not json:
        say_analysis(analysis)
        return
    front = analysis.fitted_front
    print_json(
        {
            "objectives": analysis.names,
            "merges": {merge.merge.id: merge.title for merge in analysis.merges},
            "r2": {merge.merge.id: by_name(analysis, merge.r2) for merge in analysis.merges},
            "front": front_values(front) | {"lower": front.lower, "upper": front.upper},
        }
    )


def _front_of_run(store: Store, study: KeptStudy, run_id: int, seed: int, *, as_json: bool) -> None:
    from mapmerge_core.cli.output import metric_text, print_json, print_table, say
    from mapmerge_core.cli.reports import SHOWN_ROWS, point_text
    from mapmerge_core.settings import check_seed
    from mapmerge_core.studies.analysis import run_result

    check_seed(seed)
    if run_id not in [row.id for row in store.runs.all(study.id)]:
        raise StudyError(f"'{study.name}' has no run {run_id}.")
    result = run_result(store, run_id, seed=seed)
    kind = "measured" if result.is_measured else "predicted"
    objectives = study.config.objectives
    if as_json:
        row = store.runs.get(run_id)
        about = {"id": row.id, "merge": row.config.merge, "method": row.config.method}
        values = {"size": len(result.x), "x": result.x, kind: result.values}
        print_json({"objectives": [o.name for o in objectives], "run": about, "front": values})
        return
    say(f"Run {run_id} offers {len(result.x)} models (points, then {kind} objectives):")
    print_table(
        ("point", *(o.name for o in objectives)),
        [
            (point_text(x), *(metric_text(v, o.metric) for v, o in zip(values, objectives, strict=True)))
            for x, values in list(zip(result.x, result.values, strict=True))[:SHOWN_ROWS]
        ],
    )
