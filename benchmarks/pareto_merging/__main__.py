"""Redoes an experiment: ``python -m benchmarks.pareto_merging EXPERIMENT``; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.paper.bench import Counter
from benchmarks.paper.models import from_zoo, parse_set
from benchmarks.paper.table import Kept, save
from benchmarks.pareto_merging.lab import KeepingBench, Lab
from mapmerge_core.cli.output import progress_bar
from mapmerge_core.errors import MapMergeError
from mapmerge_core.studies.config.run import check_seed
from mapmerge_core.studies.store.store import Store, home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.pareto_merging.experiment import Experiment

EXPERIMENTS = {
    "figure3": "two models, 11 preferences, against AdaMerging and task arithmetic + preference; Table 2",
    "figure4": "three models, 36 preferences, against AdaMerging",
    "table3": "eight models, 30 sampled preferences; Figure 5",
    "table4": "eight models, equal and priority preferences against every baseline",
    "unseen": "tasks without a fine-tuned model, in two splits; Tables 5 and 6",
    "ablations": "rank, β_cos, β_norm and balance on two models; Appendix 4",
    "scalarisations": "linear and Tchebycheff against smooth Tchebycheff; reviews",
    "structures": "sums of LoRAs, singular values, outer products; reviews and Appendix 5",
    "control": "accuracy by weight for eight models, and the cost",
}
RESULTS = Path(__file__).parents[1] / "results"
BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Redoes one experiment.

    Args:
        arguments: What was typed after the program's name, by default ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(typed)
    # Where things lie or run changes no figure, and isn't for others to repeat.
    _, words = _places().parse_known_args(typed)
    command = shlex.join(["python", "-m", "benchmarks.pareto_merging", *words])
    try:
        _redo(options, command)
    except MapMergeError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: what was trained and measured is kept; the same command goes on.\n")
        return INTERRUPTED
    return 0


def _redo(options: argparse.Namespace, command: str) -> None:
    experiment: Experiment = import_module(f"benchmarks.pareto_merging.{options.experiment}").EXPERIMENT
    models = from_zoo(options.zoo)
    sets = (
        [parse_set(word, models, options.seeds) for word in options.tasks]
        if options.tasks
        else [(names, tuple(options.seeds)) for names in experiment.sets(models)]
    )
    jobs = [(names, seed) for names, seeds in sets for seed in seeds]
    for _, seed in jobs:
        check_seed(seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.store or home() / "pareto"
    rows: list[dict[str, Any]] = []
    with progress_bar(options.experiment) as report:
        counter = Counter(0, report)
        bench = KeepingBench(
            models, Store(folder), counter, device=options.device, map_points=options.map_points
        )
        table = experiment.table(Lab(bench, options.steps, folder / "learned"))
        planned = [table.n_evaluations(bench, len(names)) for names, _ in jobs]
        counter.total = sum(planned)
        for number, (names, seed) in enumerate(jobs):
            counter.before = sum(planned[:number])
            rows += table.rows(bench, names, seed)
            left = len(jobs) - number - 1
            state = f"Unfinished: {left} of {len(jobs)} sets and seeds are missing." if left else ""
            name = f"pareto_{options.experiment}"
            text = save(table, name, rows, bench, command, state, options.out, Kept())
    sys.stdout.write(text)


def _parser() -> argparse.ArgumentParser:
    listed = "; ".join(f"{name}: {what}" for name, what in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pareto_merging",
        description="Redoes an experiment of the Pareto Merging paper (ICML 2025) or of its reviews.",
        epilog="Trainings are kept as they go: the same command goes on where one was interrupted.",
        parents=[_places()],
        allow_abbrev=False,
    )
    parser.add_argument("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT", help=listed)
    parser.add_argument("--zoo", default="demo", help="'demo' (default) or a folder with a manifest.json")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="SET",
        help="task sets: a number (the first n tasks) or names (A,B), either with seeds of its own (8:0,1)",
    )
    parser.add_argument("--steps", type=_count, default=2000, help="steps of every training (default 2000)")
    parser.add_argument("--seeds", "--seed", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--map-points", type=_count, help="MAP's budget in 'unseen' (default: the paper's)")
    return parser


def _places() -> argparse.ArgumentParser:
    """The options that say where."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--store", type=Path, help="folder of trainings (default: 'pareto' in the data folder)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the fastest there is)")
    parser.add_argument("--threads", type=_count, help="threads of the CPU (default: PyTorch's)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up belongs here, not '{text}'")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
