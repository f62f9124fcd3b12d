"""The command ``export``: write a picked or compared model as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mapmerge_core.cli.options import Json, Study
from mapmerge_core.errors import StudyError

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store
    from mapmerge_core.studies.store import Study as KeptStudy
    from mapmerge_core.weights.export.writing import ExportResult


def export(
    study: Study,
    *,
    pick: Annotated[int | None, typer.Option(metavar="N", help="The pick's number; the latest if left out.")] = None,
    row: Annotated[str | None, typer.Option(metavar="NAME", help="A model that `compare` lists, by its name.")] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What this merge's preparation found out, such as a learned set, by its name."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file ending in .safetensors, or a folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a picked or compared model with its recipe and card."""
    from mapmerge_core.cli.opening import find_merge
    from mapmerge_core.cli.output import print_json, say
    from mapmerge_core.cli.session import Session
    from mapmerge_core.studies.runs.exporting import export_merge_state, export_pick
    from mapmerge_core.studies.runs.targets import slug

    if sum(each is not None for each in (pick, row, merge)) > 1:
        raise StudyError("Export one of --pick, --row and --merge.")
    store = Session().store
    kept = store.studies.find(study)
    if merge is not None:
        stored = find_merge(store, kept, merge)
        path = export_merge_state(store, stored.id, out or store.folder / "exports" / slug(kept.name))
        if json:
            print_json({"merge": stored.name, "export": str(path), "bytes": path.stat().st_size})
        else:
            say(f"What {stored.make().title} prepared exported to {path}")
        return
    if row is not None:
        _say(_export_row(store, kept, row, out), row, {"row": row}, as_json=json)
        return
    picks = [each for each in store.picks.all(kept.id) if pick in (None, each.id)]
    if not picks:
        wanted = "pick yet" if pick is None else f"pick {pick}"
        raise StudyError(f"'{kept.name}' has no {wanted}: make one with the command `pick`.")
    number = picks[-1].id
    _say(export_pick(store, number, out), f"Pick {number}", {"pick": number}, as_json=json)


def _export_row(store: Store, study: KeptStudy, name: str, out: Path | None) -> ExportResult:
    """Write the model of a row of the comparison."""
    from mapmerge_core.studies.analysis import compare
    from mapmerge_core.studies.runs.exporting import export_pick, export_point

    comparison = compare(store, study.id)
    keys = {row.name: row.key for row in comparison.rows}
    key = keys.get(name, name)
    for merge in comparison.offered:
        if name in (merge.name, merge.title, merge.label) and key not in keys.values():
            raise StudyError(
                f"'{study.name}' has no {merge.title} yet: make it with `compare {study.id} --merges {merge.name}`."
            )
    row = comparison.row(key)
    if row.x is None or row.merge_id is None:
        raise StudyError(row.problem)
    if row.run_id is None:
        return export_point(store, row.merge_id, row.x, out)
    how = {"kind": "compared", "name": row.name}
    return export_pick(store, store.picks.add(row.merge_id, row.x, how, name=row.name).id, out)


def _say(exported: ExportResult, title: str, what: dict[str, Any], *, as_json: bool) -> None:
    from mapmerge_core.cli.output import print_json, say

    if as_json:
        values = {
            "export": str(exported.path),
            "card": str(exported.card),
            "mergekit": None if exported.mergekit is None else str(exported.mergekit),
            "sha256": exported.sha256,
            "bytes": exported.n_bytes,
        }
        print_json(what | values)
    else:
        say(f"{title} exported to {exported.path} ({exported.n_bytes / 1e6:.1f} MB)")
        say(f"SHA-256 {exported.sha256}")
