"""Write the reference pages that are made from the code itself: ``python docs/generate.py [FOLDER]``.

The tables of merges, methods, metrics and families come from the registries, the command line's page from its own
help, and the Python page lists what ``mapmerge_core`` exports for mkdocstrings to fill in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer.main
from typer import Context

import mapmerge_core
from mapmerge_core.cli.app import app
from mapmerge_core.registries import FAMILIES, MERGES, METHODS, METRICS
from mapmerge_core.settings import fields_of, wanted

REFERENCE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "reference"


def main() -> None:
    """Write all pages."""
    REFERENCE.mkdir(exist_ok=True)
    write("merges", "Merges", "A merge turns a point of its space into a model.", map(of_settings, MERGES))
    write("methods", "Methods", "A method decides which points to evaluate.", map(of_settings, METHODS))
    write("families", "Families of models", "A family turns parameters into predictions.", map(of_settings, FAMILIES))
    write("metrics", "Metrics", "A metric turns predictions into a number.", map(of_metric, METRICS))
    write("command-line", "Command line", "Every command takes `--json` and `--help`.", commands())
    write("python", "Python", "What `import mapmerge_core` offers.", python())


def write(name: str, title: str, lead: str, sections: Iterable[str]) -> None:
    """Write one page."""
    (REFERENCE / f"{name}.md").write_text("\n\n".join([f"# {title}", lead, *sections]) + "\n")


def of_settings(item: Any) -> str:  # noqa: ANN401 - whatever a registry holds
    """Describe an object with settings."""
    lines = [f"## {item.title}", f"`{item.name}`. {item.help()}"]
    if source := getattr(item, "source", ""):
        lines.append(f"Source: {source}.")
    fields = fields_of(item.Settings)
    if fields:
        rows = ["| setting | default | values | what it is |", "| --- | --- | --- | --- |"]
        rows += [
            f"| `{f.name}` | {'must be given' if f.is_required else shown(f.default)} | {wanted(f)} | {f.help} |"
            for f in fields
        ]
        lines.append("\n".join(rows))
    return "\n\n".join(lines)


def of_metric(metric: Any) -> str:  # noqa: ANN401
    """Describe a metric."""
    direction = "more is better" if metric.maximize else "less is better"
    low, high = metric.bounds
    return f"## {metric.name}\n\n{metric.help} From {low:g} to {high:g}, {direction}."


def shown(value: Any) -> str:  # noqa: ANN401
    """Show a default as a study file has it."""
    return "none" if value is None or value == () else f"`{value}`"


def commands() -> Iterable[str]:
    """Yield each command's help."""
    group = typer.main.get_command(app)
    with Context(group, info_name="mapmerge") as parent:
        for name in group.list_commands(parent):  # type: ignore[attr-defined]
            command = group.get_command(parent, name)  # type: ignore[attr-defined]
            with Context(command, info_name=name, parent=parent) as context:
                options = [param.get_help_record(context) for param in command.get_params(context)]
                rows = [f"| `{record[0]}` | {record[1].replace('|', chr(92) + '|')} |" for record in options if record]
                usage = " ".join(["mapmerge", name, *command.collect_usage_pieces(context)])
                table = "\n".join(["| option | what it does |", "| --- | --- |", *rows])
                yield f"## {name}\n\n{command.help}\n\n```\n{usage}\n```\n\n{table}"


def python() -> Iterable[str]:
    """Yield a mkdocstrings directive for each exported class and function, and a line for other values."""
    for name in sorted(mapmerge_core.__all__, key=str.lower):
        value = getattr(mapmerge_core, name)
        module = getattr(value, "__module__", None)
        if isinstance(value, type) or (module and callable(value)):
            yield f"::: {module}.{value.__name__}"
        elif not name.startswith("_"):
            yield f"## {name}\n\n`{type(value).__name__}`"


if __name__ == "__main__":
    main()
