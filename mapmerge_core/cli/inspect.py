"""The command that says what checkpoints are before anything is merged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.cli.output import number, percent, print_json, print_table, say
from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.hub import HubRef, parse_source

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from mapmerge_core.weights.io.inspection import Inspection, ModelReport

_LISTED = 10
"""Tensors that are listed; JSON has them all."""


def inspect(options: Namespace) -> int:
    """Prints what checkpoints hold and how they compare with the model that they started from."""
    from mapmerge_core.weights.io.inspection import inspect_models

    sources = [_source(path) for path in options.paths]
    against = None if options.against is None else _source(options.against)
    without = [name.strip() for name in (options.without or "").split(",") if name.strip()]
    found = inspect_models(dict(zip(_names(sources), sources, strict=True)), against, without=without)
    if options.json:
        print_json(
            {
                "part": found.part,
                "pretrained": _plain(found.pretrained) if found.pretrained else None,
                "models": [_plain(model) for model in found.models],
                "cosines": found.cosines,
            }
        )
    else:
        _print(found)
    return 0


def _source(text: str | Path) -> Path | HubRef:
    source = parse_source(text)
    return source.expanduser() if isinstance(source, Path) else source


def _names(sources: Sequence[Path | HubRef]) -> list[str]:
    """Short names that differ: a file's or folder's, or with its folder's where two are called alike."""
    stems = [source.name if isinstance(source, HubRef) else _name(source) for source in sources]
    names = [
        stem if stems.count(stem) == 1 else _longer(stem, source)
        for stem, source in zip(stems, sources, strict=True)
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


def _print(found: Inspection) -> None:
    everything = [*([found.pretrained] if found.pretrained else []), *found.models]
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
    if found.pretrained:
        say()
        say(f"Against {found.pretrained.path}" + (f", tensors in '{found.part}'" if found.part else ""))
        print_table(
            ("task vector", "L1", "L2", "tensors changed"),
            [
                (
                    model.name,
                    percent(model.l1_ratio),
                    percent(model.l2_ratio),
                    "doesn't fit" if model.problems else f"{len(model.changed)} of {model.n_compared}",
                )
                for model in found.models
            ],
        )
    if found.cosines is not None and len(found.models) > 1:
        say()
        names = [model.name for model in found.models]
        rows = zip(names, found.cosines.tolist(), strict=True)
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
