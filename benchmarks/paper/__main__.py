"""Redoes a table: ``python -m benchmarks.paper TABLE``; ``--help`` lists the tables and options."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.bench import Bench, Counter
from benchmarks.paper.models import from_study, from_zoo, parse_set
from benchmarks.paper.table import Kept, Table, keep, save
from mapmerge_core.cli.output import progress_bar
from mapmerge_core.errors import MapMergeError
from mapmerge_core.settings import check_seed
from mapmerge_core.studies.store import Store, home

TABLES = {
    "table2": "win rate over direct search, and R², for 2 to 8 tasks",
    "table3": "20 preferences against every baseline",
    "table5": "nested against direct merging of four models under rules",
    "figure2": "maximise each of 8 tasks with all above a threshold",
    "figure4": "R² against the number of points",
    "bayesian": "Bayesian against plain MAP: GD and IGD at 6, 9 and 12 points",
    "budget": "the front by the images that each point is measured on",
    "pareto_figure3": "two models, 11 preferences, against AdaMerging and task arithmetic + preference; Table 2",
    "pareto_figure4": "three models, 36 preferences, against AdaMerging",
    "pareto_table3": "eight models, 30 sampled preferences; Figure 5",
    "pareto_table4": "eight models, equal and priority preferences against every baseline",
    "pareto_unseen": "tasks without a fine-tuned model, in two splits; Tables 5 and 6",
    "pareto_ablations": "rank, β_cos, β_norm and balance on two models; Appendix 4",
    "pareto_scalarisations": "linear and Tchebycheff against smooth Tchebycheff; reviews",
    "pareto_structures": "sums of LoRAs, singular values, outer products; reviews and Appendix 5",
    "pareto_control": "accuracy by weight for eight models, and the cost",
}
"""Those of MAP (ICLR 2025), and "pareto_" with those of Pareto Merging (ICML 2025)."""
RESULTS = Path(__file__).parents[1] / "results"
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
        # Where things lie or run changes no figure, and isn't for others to repeat.
        _, words = _places().parse_known_args(typed)
        _redo(_parser().parse_args(typed), shlex.join(["python", "-m", "benchmarks.paper", *words]))
    except MapMergeError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(
            "Interrupted: what was trained and measured is kept, and the same command goes on from here.\n"
        )
        return INTERRUPTED
    return 0


@dataclass(frozen=True)
class _Job:
    """A set of tasks and a seed."""

    names: tuple[str, ...]
    seed: int


def _redo(options: argparse.Namespace, command: str) -> None:
    package = "pareto_merging" if options.table.startswith("pareto_") else "paper"
    module = import_module(f"benchmarks.{package}.{options.table.removeprefix('pareto_')}")
    table: Table = module.TABLE
    seeds = options.seeds or table.seeds
    if options.threads:
        torch.set_num_threads(options.threads)
    models = from_study(options.study) if options.study else from_zoo(options.zoo)
    words = options.tasks
    sets = (
        [parse_set(word, models, seeds) for word in words]
        if words
        else [(names, tuple(seeds)) for names in table.sets(models)]
    )
    jobs = [_Job(names, seed) for names, own in sets for seed in own]
    for job in jobs:
        check_seed(job.seed)
    store = Store(options.store or home() / table.store)
    kept = keep(options.out, options.table, {(job.names, job.seed) for job in jobs}) if options.extend else Kept()
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
            steps=options.steps,
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
        description="Redoes a table or figure of the MAP paper (ICLR 2025) or of Pareto Merging (ICML 2025).",
        epilog="What is trained and measured is kept: the same command goes on where one was interrupted.",
        parents=[_places()],
        allow_abbrev=False,
    )
    listed = "; ".join(f"{name}: {what}" for name, what in TABLES.items())
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help=listed)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--zoo", default="demo", help="'demo' (default) or a folder with a manifest.json")
    source.add_argument("--study", type=Path, metavar="STUDY.yaml", help="models of your own")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="SET",
        help="task sets: a number (the first n tasks) or names (A,B), either with seeds of its own (8:0,1)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; of Pareto Merging 0")
    parser.add_argument("--steps", type=_count, default=2000, help="steps of every training (default 2000)")
    parser.add_argument(
        "--extend", action="store_true", help="keep the results in --out that are for other sets and seeds"
    )
    parser.add_argument("--sample", type=_count, default=100, help="most points measured of a front (default 100)")
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


def _places() -> argparse.ArgumentParser:
    """Return the options that say where."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--store", type=Path, help="folder of what is kept (default: one in the data folder)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the fastest there is)")
    parser.add_argument("--threads", type=_count, help="threads of the CPU (default: PyTorch's)")
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
