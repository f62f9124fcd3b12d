"""The command that says what checkpoints are before anything is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mapmerge_core.cli.options import Json
from mapmerge_core.cli.output import number, percent, print_json, print_table, say
from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.hub import HubRef, parse_source

if TYPE_CHECKING:
    from mapmerge_core.weights.io.inspection import Inspection, ModelReport

_LISTED = 10
"""Tensors that are listed; JSON has them all."""


def inspect(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Checkpoints: files, folders or hf://...")],
    *,
    against: Annotated[str | None, typer.Option(metavar="PRETRAINED", help="The model that they started from.")] = None,
    without: Annotated[
        str, typer.Option(metavar="A,B", help="Tensors that aren't compared, such as fc.weight,fc.bias.")
    ] = "",
    json: Json = False,
) -> None:
    """Say what checkpoints hold and whether they belong together."""
    from mapmerge_core.weights.io.inspection import inspect_models

    sources = [_source(path) for path in paths]
    pretrained = None if against is None else _source(against)
    left_out = [name.strip() for name in without.split(",") if name.strip()]
    inspection = inspect_models(dict(zip(_names(sources), sources, strict=True)), pretrained, without=left_out)
    if json:
        print_json(
            {
                "part": inspection.part,
                "pretrained": _plain(inspection.pretrained) if inspection.pretrained else None,
                "models": [_plain(model) for model in inspection.models],
                "cosines": inspection.cosines,
            }
        )
    else:
        _print(inspection)


def _source(text: str | Path) -> Path | HubRef:
    source = parse_source(text)
    return source.expanduser() if isinstance(source, Path) else source


def _names(sources: Sequence[Path | HubRef]) -> list[str]:
    """Short names that differ: a file's or folder's, or with its folder's where two are called alike."""
    stems = [source.name if isinstance(source, HubRef) else _name(source) for source in sources]
    names = [
        stem if stems.count(stem) == 1 else _longer(stem, source) for stem, source in zip(stems, sources, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise CheckpointError(f"Two of the checkpoints are called '{name}': inspect them one by one.")
    return names


def _name(path: Path) -> str:
    return path.absolute().name if path.is_dir() else path.stem


def _longer(stem: str, source: Path | HubRef) -> str:
    if isinstance(source, HubRef):
        return source.url
    return f"{source.absolute().parent.name}/{stem}"


def _plain(model: ModelReport) -> dict[str, object]:
    return asdict(model) | {"path": str(model.path)}


def _print(inspection: Inspection) -> None:
    everything = [*([inspection.pretrained] if inspection.pretrained else []), *inspection.models]
    print_table(
        ("model", "architecture", "tensors", "parameters", "dtypes", "MB", "SHA-256"),
        [
            (
                model.name,
                model.architecture or "unknown",
                str(model.n_tensors),
                f"{model.n_parameters:,}",
                ", ".join(model.dtypes),
                f"{model.n_bytes / 1e6:.1f}",
                model.sha256[:12],
            )
            for model in everything
        ],
    )
    if inspection.pretrained:
        say()
        say(f"Against {inspection.pretrained.path}" + (f", tensors in '{inspection.part}'" if inspection.part else ""))
        print_table(
            ("task vector", "L1", "L2", "tensors changed"),
            [
                (
                    model.name,
                    percent(model.l1_ratio),
                    percent(model.l2_ratio),
                    "doesn't fit" if model.problems else f"{len(model.changed)} of {model.n_compared}",
                )
                for model in inspection.models
            ],
        )
    if inspection.cosines is not None and len(inspection.models) > 1:
        say()
        names = [model.name for model in inspection.models]
        rows = zip(names, inspection.cosines.tolist(), strict=True)
        print_table(("cosine", *names), [(name, *map(number, row)) for name, row in rows])
    for model in everything:
        _list(f"'{model.name}' doesn't fit: it", model.problems)
        _list(f"'{model.name}' holds NaN or infinity in", [f"'{name}'" for name in model.not_finite])
        if model.warning:
            say(f"\n{model.warning}")


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        say(f"\n{title}")
        for line in lines[:_LISTED]:
            say(f"  {line}")
        if len(lines) > _LISTED:
            say(f"  and {len(lines) - _LISTED} more (--json lists all)")
