"""What people see: progress on standard error, tables on standard output."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.charts.units import value_text

if TYPE_CHECKING:
    from mapmerge_core.studies.runs.measuring import Progress
    from mapmerge_core.tasks.metrics.base import Metric


def say(text: str = "") -> None:
    """Print one line on standard output."""
    sys.stdout.write(f"{text}\n")


@contextmanager
def progress_bar(title: str) -> Iterator[Progress | None]:
    """Show a bar with the time left on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object; NaN, which JSON doesn't know, becomes null."""
    say(json.dumps(_plain(values), allow_nan=False))


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print aligned columns; the first ``left`` of them to the left, the others to the right."""
    widths = [max(len(line[k]) for line in [headers, *rows]) for k in range(len(headers))]
    for line in [headers, *rows]:
        cells = [
            f"{cell:<{width}}" if k < left else f"{cell:>{width}}"
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def metric_text(value: float | None, metric: Metric) -> str:
    """Write a metric as people read it, "93.4%" or "2.713", a dash where there is none."""
    return "-" if value is None or math.isnan(value) else value_text(value, metric)


def percent(value: float | None) -> str:
    """Write a fraction as people read it, a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def number(value: float) -> str:
    """Write a coefficient or an R², a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.3f}"
