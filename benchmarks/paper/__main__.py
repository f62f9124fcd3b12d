"""Redoes a table: ``python -m benchmarks.paper TABLE``; ``--help`` lists the tables and options."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paper.bench import Bench, Counter
from benchmarks.paper.models import from_study, from_zoo, parse_set
from benchmarks.paper.table import Kept, keep, save
from mapmerge_core.cli.output import progress_bar
from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.config.run import check_seed
from mapmerge_core.studies.store.store import Store, home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.paper.table import Table

TABLES = {
    "table2": "win rate over direct search, and R², for 2 to 8 tasks",
    "table3": "20 preferences against every baseline",
    "table5": "nested against direct merging of four models under rules",
    "figure2": "maximise each of 8 tasks with all above a threshold",
    "figure4": "R² against the number of points",
    "bayesian": "Bayesian against plain MAP: GD and IGD at 6, 9 and 12 points",
    "budget": "the front by the images that each point is measured on",
}
RESULTS = Path(__file__).parents[1] / "results"
PLACES = ("--store", "--out", "--device")
"""Options that say where, and change no figure."""
BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Redoes one table.

    Args:
        arguments: What was typed after the program's name, by default ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _redo(_parser().parse_args(typed), _without_places(typed))
    except MapMergeError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(
            "Interrupted: everything measured is kept, and the same command goes on from here.\n"
        )
        return INTERRUPTED
    return 0


def _without_places(typed: Sequence[str]) -> str:
    """The command as it can be repeated elsewhere."""
    kept = []
    words = iter(typed)
    for word in words:
        if word in PLACES:
            next(words, None)
        elif word.split("=")[0] not in PLACES:
            kept.append(word)
    return shlex.join(["python", "-m", "benchmarks.paper", *kept])


@dataclass(frozen=True)
class _Job:
    """A set of tasks and a seed."""

    names: tuple[str, ...]
    seed: int


def _redo(options: argparse.Namespace, command: str) -> None:
    table: Table = import_module(f"benchmarks.paper.{options.table}").TABLE
    models = from_study(options.study) if options.study else from_zoo(options.zoo)
    words = options.tasks
    sets = (
        [parse_set(word, models, options.seeds) for word in words]
        if words
        else [(names, tuple(options.seeds)) for names in table.sets(models)]
    )
    jobs = [_Job(names, seed) for names, seeds in sets for seed in seeds]
    for job in jobs:
        check_seed(job.seed)
    store = Store(options.store or home() / "paper")
    kept = (
        keep(options.out, options.table, {(job.names, job.seed) for job in jobs})
        if options.extend
        else Kept()
    )
    rows: list[dict[str, Any]] = []
    with progress_bar(options.table) as report:
        counter = Counter(0, report)
        bench = Bench(
            models,
            store,
            counter,
            device=options.device,
            sample=options.sample,
            thresholds=None if options.thresholds is None else tuple(options.thresholds),
            map_points=options.map_points,
            direct_points=options.direct_points,
        )
        planned = [table.n_evaluations(bench, len(job.names)) for job in jobs]
        counter.total = sum(planned)
        for number, job in enumerate(jobs):
            counter.before = sum(planned[:number])
            rows += table.rows(bench, job.names, job.seed)
            left = jobs[number + 1 :]
            state = f"Unfinished: {len(left)} of {len(jobs)} sets and seeds are missing." if left else ""
            text = save(table, options.table, rows, bench, command, state, options.out, kept)
    sys.stdout.write(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description="Redoes a table or figure of the MAP paper (ICLR 2025).",
        epilog="Evaluations are kept as they are made: the same command goes on where one was interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed = "\n".join(f"{name}: {what}" for name, what in TABLES.items())
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help="; ".join(listed.splitlines()))
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--zoo", default="demo", help="'demo' (default) or a folder with a manifest.json")
    source.add_argument("--study", type=Path, metavar="STUDY.yaml", help="models of your own")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="SET",
        help="task sets: a number (the first n tasks) or names (A,B), either with seeds of its own (8:0,1)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--store", type=Path, help="folder of the evaluations (default: 'paper' in the data folder)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--extend", action="store_true", help="keep the results in --out that are for other sets and seeds"
    )
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the fastest there is)")
    parser.add_argument(
        "--sample", type=_count, default=100, help="most points measured of a front (default 100)"
    )
    parser.add_argument(
        "--thresholds",
        nargs=2,
        type=_percent,
        metavar="PERCENT",
        help="shares of the single-task models: figure2's loose and tight, table5's in pairs and in the end",
    )
    parser.add_argument("--map-points", type=_count, help="MAP's budget (default: the paper's)")
    parser.add_argument("--direct-points", type=_count, help="direct search's budget (default: the paper's)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up belongs here, not '{text}'")
    return int(text)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"a share above 0 and up to 100 percent belongs here, not '{text}'")
    return value / 100


if __name__ == "__main__":
    sys.exit(main())
