"""What a table is, and how it is written down: CSV, Markdown and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.paper.bench import Bench
    from benchmarks.paper.models import Models

COLOURS = ("#0b7a75", "#d9730d", "#3b6fb6", "#c2456f", "#7a8b1f", "#7b5ea7", "#8c5a3c", "#5b6770")
"""The dashboard's colours, so that both look alike."""

Tables = list[tuple[str, pd.DataFrame]]


@dataclass(frozen=True)
class Table:
    """One of the paper's tables or figures.

    Attributes:
        title: Its heading.
        sets: The task sets that it is made of unless others are named.
        n_evaluations: At most how many evaluations n tasks take for each seed, stored ones included.
        rows: The results for a set of tasks and a seed, plain values by column.
        summary: Captions and tables of means and standard deviations over seeds, as they are printed.
        draw: Draws the results.
        notes: Sentences that belong under the table.
    """

    title: str
    sets: Callable[[Models], list[tuple[str, ...]]]
    n_evaluations: Callable[[Bench, int], int]
    rows: Callable[[Bench, tuple[str, ...], int], list[dict[str, Any]]]
    summary: Callable[[pd.DataFrame], Tables]
    draw: Callable[[pd.DataFrame, Figure], None]
    notes: Callable[[Bench], list[str]]


def save(
    table: Table, name: str, rows: Sequence[dict[str, Any]], bench: Bench, command: str, state: str, out: Path
) -> str:
    """Writes ``name``.csv (a row for each result), ``name``.png and ``name``.md into ``out``.

    Args:
        table: The table.
        name: What the files are called.
        rows: What ``table.rows`` returned for all sets and seeds so far.
        bench: What they were made with.
        command: The command that printed them.
        state: A sentence if something is missing, otherwise "".
        out: The folder, made if missing.

    Returns:
        The Markdown.
    """
    out.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    table.draw(frame, figure)
    figure.savefig(out / f"{name}.png", dpi=120)
    lines = [
        f"# {table.title}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {bench.models.name}: `{command}`",
        "",
        *([f"**{state}**", ""] if state else []),
    ]
    for caption, part in table.summary(frame):
        lines += [caption, "", markdown(part), ""]
    lines += [f"- {note}" for note in table.notes(bench)]
    lines += ["", f"![{table.title}]({name}.png)", ""]
    text = "\n".join(lines)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def markdown(part: pd.DataFrame) -> str:
    """A table of text as Markdown, padded so that a terminal shows columns."""
    lines = [[str(column) for column in part.columns], *part.astype(str).to_numpy().tolist()]
    widths = [max(len(line[k]) for line in lines) for k in range(len(part.columns))]
    padded = [[f"{cell:{'>' if k else '<'}{widths[k]}}" for k, cell in enumerate(line)] for line in lines]
    rule = ["-" * (width - 1) + (":" if k else "-") for k, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def mean_std(values: pd.Series[float], factor: float = 1.0, digits: int = 2) -> str:
    """The mean ± the standard deviation (n - 1 below) over seeds; of one seed the value alone."""
    known = values.dropna() * factor
    if known.empty:
        return "-"
    if len(known) == 1:
        return f"{known.iloc[0]:.{digits}f}"
    return f"{known.mean():.{digits}f} ± {known.std():.{digits}f}"


def first_sets(least: int, most: int) -> Callable[[Models], list[tuple[str, ...]]]:
    """A table's usual sets: the first n tasks, for each n from ``least`` to ``most`` that the models have."""

    def sets(models: Models) -> list[tuple[str, ...]]:
        n = len(models.spec.tasks)
        return [models.first(k) for k in range(min(least, n), min(most, n) + 1)]

    return sets
