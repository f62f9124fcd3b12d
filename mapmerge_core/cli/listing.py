"""The commands that list what can be chosen: ``merges``, ``methods``, ``metrics`` and ``families``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapmerge_core.cli.options import Json
from mapmerge_core.cli.output import print_json, print_table
from mapmerge_core.registries import FAMILIES, MERGES, METHODS, METRICS
from mapmerge_core.settings import fields_of

if TYPE_CHECKING:
    from mapmerge_core.registry import Registry


def merges(*, json: Json = False) -> None:
    """List the merges, with what can be set for each."""
    _print(MERGES, "merges", as_json=json)


def methods(*, json: Json = False) -> None:
    """List the methods, with what can be set for each."""
    _print(METHODS, "methods", as_json=json)


def families(*, json: Json = False) -> None:
    """List the families of models, with what can be set for each."""
    _print(FAMILIES, "families", as_json=json)


def metrics(*, json: Json = False) -> None:
    """List the metrics."""
    if json:
        print_json(
            {"metrics": [{"name": m.name, "help": m.help, "maximize": m.maximize, "bounds": m.bounds} for m in METRICS]}
        )
        return
    print_table(
        ("metric", "better", "what it is"),
        [(m.name, "more" if m.maximize else "less", m.help) for m in METRICS],
        left=3,
    )


def _print(registry: Registry[Any], what: str, *, as_json: bool) -> None:
    if as_json:
        items = [
            {
                "name": item.name,
                "title": item.title,
                "help": item.help(),
                "settings": {field.name: field.default for field in fields_of(item.Settings)},
            }
            for item in registry
        ]
        print_json({what: items})
        return
    print_table(
        (registry.kind, "title", "what it does", "settings"),
        [
            (item.name, item.title, item.help(), ", ".join(f.name for f in fields_of(item.Settings)))
            for item in registry
        ],
        left=4,
    )
