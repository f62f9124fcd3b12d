"""Measures every row: ``python -m benchmarks.speed [--device ...] [--rows ...] [--json]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.machine import described
from benchmarks.speed.row import Measured, Row, chosen
from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.devices import choose_device

MODULES = ("merging", "evaluating", "fitting", "fronts", "pages", "memory", "starting")
RESULTS = Path(__file__).parents[1] / "results"
BAD_INPUT, MISSED = 2, 1


@dataclass(frozen=True)
class Line:
    """A row and what it came to; None where this machine lacks the row's device."""

    row: Row
    measured: Measured | None

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None where it wasn't measured."""
        return None if self.measured is None else self.row.is_met(self.measured.score)

    def as_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        measured = self.measured
        return {
            "row": self.row.name,
            "value": measured and measured.value,
            "against": measured and measured.against,
            "target": self.row.target,
            "ok": self.ok,
            "unit": measured and measured.unit,
            "score": measured and measured.score,
            "bound": "at most" if self.row.at_most else "at least",
            "title": self.row.title,
            "peer": self.row.peer,
            "note": "not measured" if measured is None else measured.note,
        }

    def as_markdown(self) -> str:
        """A line of the table."""
        row, measured = self.row, self.measured
        bound = "≤" if row.at_most else "≥"
        cells = [row.title, row.peer, f"{bound} {row.target:g} {row.unit}"]
        if measured is None:
            cells += ["not measured", "", "", ""]
        else:
            against = "" if measured.against is None else f"{measured.against:,.3g} {measured.unit}"
            verdict = "met" if self.ok else "**missed**"
            score = f"{measured.score:.3g} {row.unit}"
            cells += [f"{measured.value:,.3g} {measured.unit}", against, score, verdict]
        return "| " + " | ".join(cells) + " |"


def rows() -> list[Row]:
    """Every row, in the table's order."""
    return [row for module in MODULES for row in import_module(f"benchmarks.speed.{module}").ROWS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the rows asked for.

    Args:
        arguments: What was typed after the program's name, by default ``sys.argv[1:]``.

    Returns:
        The exit code: 0 where every target that was measured is met.
    """
    options = _parser().parse_args(arguments)
    try:
        lines = _measured(options)
    except MapMergeError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    if options.out:
        _save(lines, options.out)
    if options.json:
        sys.stdout.write(json.dumps([line.as_json() for line in lines], indent=1) + "\n")
    else:
        sys.stdout.write(_table(lines))
    return MISSED if any(line.ok is False for line in lines) else 0


def _measured(options: argparse.Namespace) -> list[Line]:
    """The rows asked for, measured as far as this machine has their devices."""
    device = choose_device(options.device).type
    lines = []
    for row in chosen(rows(), options.rows):
        is_here = row.device in ("cpu", device)
        doing = "..." if is_here else f"needs {row.device}, not measured"
        sys.stderr.write(f"{row.name} {doing}\n")
        if is_here and options.profile and row.profile:
            row.profile(device)
        lines.append(Line(row, row.measure(device) if is_here else None))
    return lines


def _table(lines: Sequence[Line]) -> str:
    head = ("what", "against", "target", "ours", "theirs", "score", "verdict")
    table = ["| " + " | ".join(head) + " |", "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    table += [line.as_markdown() for line in lines]
    notes = [f"- {line.row.title}: {line.measured.note}" for line in lines if line.measured and line.measured.note]
    return "\n".join([*table, "", *notes, ""])


def _save(lines: Sequence[Line], folder: Path) -> None:
    """Writes the table and the figures, with the machine's description."""
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# Speed\n\n`python -m benchmarks.speed`, {datetime.now(UTC):%Y-%m-%d}, on {described()}.\n\n"
    (folder / "speed.md").write_text(head + _table(lines), encoding="utf-8")
    figures = {"machine": described(), "rows": [line.as_json() for line in lines]}
    (folder / "speed.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Measures mapmerge's speed beside peers and limits, each in the same run.",
        epilog="The exit code is 1 where a target is missed.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the fastest there is)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="names of rows; all by default")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--profile", action="store_true", help="show where each row's time goes")
    parser.add_argument(
        "--out", type=Path, nargs="?", const=RESULTS, help="write speed.md and speed.json, by default into results/"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
