"""What a table is, and how it is written down: CSV, Markdown and a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from matplotlib.figure import Figure

from mapmerge_core.errors import MapMergeError

if TYPE_CHECKING:
    from benchmarks.paper.bench import Bench
    from benchmarks.paper.models import Models

COLOURS = ("#0b7a75", "#d9730d", "#3b6fb6", "#c2456f", "#7a8b1f", "#7b5ea7", "#8c5a3c", "#5b6770")
"""The dashboard's colours, so that both look alike."""

_ORIGIN = re.compile(r"\d{4}-\d\d-\d\d, .*: `.*`$")

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
        seeds: The usual seeds.
        store: The usual store, a folder in mapmerge's data folder.
    """

    title: str
    sets: Callable[[Models], list[tuple[str, ...]]]
    n_evaluations: Callable[[Bench, int], int]
    rows: Callable[[Bench, tuple[str, ...], int], list[dict[str, Any]]]
    summary: Callable[[pd.DataFrame], Tables]
    draw: Callable[[pd.DataFrame, Figure], None]
    notes: Callable[[Bench], list[str]]
    seeds: tuple[int, ...] = (0, 1, 2)
    store: str = "paper"


@dataclass(frozen=True)
class Kept:
    """What an earlier call wrote for other task sets and seeds: its rows, and the lines that say how."""

    rows: tuple[dict[str, Any], ...] = ()
    origins: tuple[str, ...] = ()


def keep(out: Path, name: str, redone: Collection[tuple[tuple[str, ...], int]]) -> Kept:
    """Reads the results in ``out``, but for the task sets and seeds that are ``redone``.

    Raises:
        MapMergeError: There are no such results, or they can't be read.
    """
    try:
        frame = pd.read_csv(out / f"{name}.csv")
        lines = (out / f"{name}.md").read_text(encoding="utf-8").splitlines()
        again = {(" + ".join(names), seed) for names, seed in redone}
        others = [pair not in again for pair in zip(frame["tasks"], frame["seed"], strict=True)]
    except (OSError, ValueError, KeyError) as error:
        raise MapMergeError(f"{out} has no results of {name} to extend: leave --extend out.") from error
    rows = cast("list[dict[str, Any]]", frame[others].to_dict("records"))
    return Kept(tuple(rows), tuple(line for line in lines if _ORIGIN.match(line)))


def save(
    table: Table,
    name: str,
    rows: Sequence[dict[str, Any]],
    bench: Bench,
    command: str,
    state: str,
    out: Path,
    kept: Kept,
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
        kept: What else belongs into the files.

    Returns:
        The Markdown.
    """
    out.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([*kept.rows, *rows])
    if "N" in frame:
        frame = frame.sort_values("N", kind="stable")
    frame.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    table.draw(frame, figure)
    figure.savefig(out / f"{name}.png", dpi=120)
    lines = [
        f"# {table.title}",
        "",
        *(line for origin in kept.origins for line in (origin, "")),
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
        n = len(models.names)
        return [models.first(k) for k in range(min(least, n), min(most, n) + 1)]

    return sets
