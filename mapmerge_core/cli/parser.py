"""What can be typed after ``python -m mapmerge_core``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from mapmerge_core.methods.catalogue import MethodName
from mapmerge_core.merges._training_settings import ScalarisationName
from mapmerge_core.search.surrogates.fitting import LossName
from mapmerge_core.search.links import LinkName
from mapmerge_core.studies.config.manifest import DEMO_ZOO
from mapmerge_core.studies.config.run import QUICK_IMAGES, VectorsDtype
from mapmerge_core.studies.config.study import TransformKind

_EPILOG = """\
Everything is kept where the dashboard keeps it: in $MAPMERGE_HOME, by default the platform's data folder.
STUDY is a study's name or number, as `studies` lists them.

exit status:
  0    done
  1    something unexpected went wrong; one sentence on standard error says what
  2    something is wrong with what was asked; one sentence on standard error says what
  3    no model meets the rule; the nearest one is named
  130  interrupted; everything measured is kept, and `run --study STUDY`, or the same `compare` or
       `pareto-merge`, goes on
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mapmerge_core",
        description="See every trade-off of a model merge, pick one, export it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    _add_pareto_merge(commands)
    _add_front(commands)
    _add_pick(commands)
    _add_compare(commands)
    _add_export(commands)
    _add_studies(commands)
    _add_inspect(commands)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        command.epilog = _EPILOG
        command.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="evaluate, pick, measure and export on the bundled models")
    demo.add_argument("--tasks", type=int, default=2, metavar="N", help="tasks to merge (default 2)")
    demo.add_argument(
        "--points", type=int, metavar="P", help="points to evaluate (default: the paper's, at most 100)"
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of the points (default 0)")
    demo.add_argument("--out", type=Path, metavar="DIR", help="folder for the exported model")
    demo.add_argument("--zoo", type=Path, default=DEMO_ZOO, metavar="DIR", help="another folder of models")
    _add_device(demo)


def _add_run(commands: Commands) -> None:
    run = commands.add_parser("run", help="evaluate points of a new study, or go on with one")
    _add_place(run)
    run.add_argument("--study", help="go on with this study: resume its run, or with --points add one")
    run.add_argument("--tasks", metavar="A,B", help="the tasks to merge, in this order (default: all)")
    run.add_argument("--name", help="the new study's name")
    run.add_argument(
        "--points", type=int, metavar="P", help="points to evaluate (default: the file's, or the paper's)"
    )
    # Without defaults, so that those that were typed are known; the defaults are RunSettings' own.
    run.add_argument("--seed", type=int, help="seed of the points (default 0)")
    images = run.add_mutually_exclusive_group()
    images.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="images of each task to measure points on (default: all); a later run with more of them "
        "measures only the others",
    )
    images.add_argument(
        "--quick",
        dest="images",
        action="store_const",
        const=QUICK_IMAGES,
        help=f"a quick run: --images {QUICK_IMAGES}",
    )
    run.add_argument("--method", choices=get_args(MethodName), help="default: map")
    run.add_argument("--design", choices=["uniform", "sobol", "grid"], help="default: uniform")
    run.add_argument("--low", type=float, help="least coefficient (default 0)")
    run.add_argument("--high", type=float, help="greatest coefficient (default 1)")
    run.add_argument(
        "--no-anchors",
        dest="anchors",
        action="store_const",
        const=False,
        help="leave the pre-trained and single-task models out",
    )
    run.add_argument(
        "--link", choices=["auto", *get_args(LinkName)], help="the surrogates' link (default: the metric's)"
    )
    run.add_argument("--loss", choices=get_args(LossName), help="the surrogates' loss (default: squared)")
    run.add_argument("--initial", type=int, metavar="P", help="Bayesian MAP's first points")
    run.add_argument("--batch", type=int, metavar="P", help="Bayesian MAP's points a round")
    run.add_argument("--preference", help='nested MAP\'s weights, such as "MNIST=2,Emoji=1" (default: equal)')
    run.add_argument("--rule", help='nested MAP\'s rule, such as "all >= 70%%, maximize MNIST"')
    run.add_argument("--order", metavar="A,B,C,D", help="nested MAP's tasks, neighbours merged first")
    _add_transform(run)
    run.add_argument("--precision", choices=["auto", "float32", "bfloat16"], help="default: what is fast")
    run.add_argument(
        "--vectors",
        choices=get_args(VectorsDtype),
        help="what task vectors are held in (default: float32); bfloat16 takes half the memory",
    )
    _add_device(run)
    run.set_defaults(device=None)


def _add_pareto_merge(commands: Commands) -> None:
    learn = commands.add_parser(
        "pareto-merge", help="learn a model for every preference, and measure some of them"
    )
    _add_place(learn)
    learn.add_argument("--study", help="learn from this study's models")
    learn.add_argument("--demo", action="store_true", help="learn from the bundled models")
    learn.add_argument(
        "--tasks", metavar="A,B", help="the tasks to merge (default: all); of the demo how many (default 2)"
    )
    learn.add_argument("--zoo", type=Path, metavar="DIR", help="another folder of models for the demo")
    learn.add_argument("--name", help="the new study's name")
    learn.add_argument(
        "--points", type=int, metavar="P", help="preferences to measure (default: the paper's number)"
    )
    learn.add_argument("--seed", type=int, help="seed of preferences, images and parameters (default 0)")
    # Without defaults, as for `run`; they are Training's own, or the demo's.
    learn.add_argument("--steps", type=int, metavar="N", help="steps of training (default 2000)")
    learn.add_argument(
        "--data-free", action="store_const", const=True, help="learn from distances of weights, not images"
    )
    learn.add_argument("--rank", type=int, metavar="R", help="of the personal tensors (default 16)")
    learn.add_argument("--batch-size", type=int, metavar="B", help="images of a task in a step (default 32)")
    learn.add_argument("--lr", type=float, help="Adam's learning rate (default 0.001)")
    learn.add_argument(
        "--scalarisation", choices=get_args(ScalarisationName), help="default: smooth_tchebycheff"
    )
    learn.add_argument("--mu", type=float, help="smoothness of smooth_tchebycheff (default 0.1)")
    learn.add_argument(
        "--beta-cos", type=float, help="weight of the alignment with the preference (default 0.1)"
    )
    learn.add_argument(
        "--beta-norm", type=float, help="weight of the tensors' norm (default 1; of the demo less)"
    )
    learn.add_argument(
        "--balance", type=float, help="weight of the balance of predicted classes (default 0; of the demo 1)"
    )
    learn.add_argument(
        "--concentration", type=float, help="of the Dirichlet distribution of preferences (default 1)"
    )
    learn.add_argument("--start", type=float, help="what every coefficient starts from (default 0.3)")
    learn.add_argument(
        "--personalise", dest="personalised", metavar="A,B", help="tensors that depend on the preference, "
        "such as *.attn.* (default: the attention projections)",
    )  # fmt: skip
    _add_transform(learn)
    learn.add_argument("--no-export", action="store_true", help="don't copy the learned set to the exports")
    _add_device(learn)


def _add_front(commands: Commands) -> None:
    front = commands.add_parser("front", help="print the front of a study, or of one of its runs")
    front.add_argument("study", metavar="STUDY")
    front.add_argument("--run", type=int, metavar="N", help="the front of this run's own points")
    front.add_argument("--seed", type=int, default=0, help="seed of the search (default 0)")


def _add_pick(commands: Commands) -> None:
    pick = commands.add_parser("pick", help="pick a model of a study's front or of a learned set")
    pick.add_argument("study", metavar="STUDY")
    pick.add_argument("--learned", type=int, metavar="RUN", help="of the set that this run has learned")
    how = pick.add_mutually_exclusive_group(required=True)
    how.add_argument("--rule", help='such as "all >= 70%%, maximize MNIST"')
    how.add_argument("--preference", help='weights such as "MNIST=2,Emoji=1", or "equal"')
    how.add_argument(
        "--unlabelled",
        metavar="DATASET",
        help="the model that is surest of these images: a dataset, whose labels aren't read, or a folder",
    )
    pick.add_argument(
        "--classes", metavar="A,B,C", help="the names of the images' classes, or a .txt or .json file of them"
    )
    pick.add_argument("--refine", action="store_true", help="measure more of a learned set near the rule")
    pick.add_argument(
        "--normalise", action="store_true", help="weigh metrics as shares of the single-task models'"
    )
    pick.add_argument("--name", default="", help="a name for the pick")
    pick.add_argument("--measure", action="store_true", help="measure the pick on the test split")
    _add_device(pick)


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser("compare", help="compare runs, baselines and single-task models")
    compare.add_argument("study", nargs="?", metavar="STUDY")
    compare.add_argument("--demo", action="store_true", help="every method on the bundled models")
    compare.add_argument("--tasks", type=int, metavar="N", help="the demo's tasks (default 2)")
    compare.add_argument("--points", type=int, metavar="P", help="MAP's points in the demo")
    compare.add_argument("--direct-points", type=int, metavar="P", help="direct search's points in the demo")
    compare.add_argument("--zoo", type=Path, metavar="DIR", help="another folder of models for the demo")
    compare.add_argument(
        "--seed", type=int, default=0, help="seed of the demo's runs and of the 20 preferences (default 0)"
    )
    compare.add_argument(
        "--preference", help='the shown models\' weights, such as "MNIST=2,Emoji=1" (default: equal)'
    )
    which = compare.add_mutually_exclusive_group()
    which.add_argument("--baselines", metavar="A,B", help="make these only, such as soup,ties (default: all)")
    which.add_argument("--no-baselines", action="store_true", help="make no baseline")
    compare.add_argument(
        "--normalise", action="store_true", help="show metrics as shares of the single-task models'"
    )
    compare.add_argument("--csv", type=Path, metavar="FILE", help="write the table, too")
    _add_device(compare)


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="write a picked or compared model as safetensors")
    export.add_argument("study", metavar="STUDY")
    what = export.add_mutually_exclusive_group()
    what.add_argument("--pick", type=int, metavar="N", help="the pick's number (default: the study's latest)")
    what.add_argument("--row", metavar="NAME", help="a model that `compare` lists, by its name")
    what.add_argument("--learned-pick", type=int, metavar="N", help="the number of a learned set's pick")
    what.add_argument("--learned", type=int, metavar="RUN", help="the set itself that this run has learned")
    export.add_argument("--out", type=Path, metavar="FILE", help="file ending in .safetensors, or a folder")


def _add_studies(commands: Commands) -> None:
    studies = commands.add_parser("studies", help="list the studies")
    studies.add_argument("--delete", metavar="STUDY", help="delete a study with its evaluations and picks")


def _add_inspect(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect", help="say what checkpoints hold and whether they belong together"
    )
    inspect.add_argument("paths", nargs="+", metavar="PATH", help="checkpoint files")
    inspect.add_argument(
        "--against",
        type=Path,
        metavar="PRETRAINED",
        help="the model that they started from",
    )
    inspect.add_argument(
        "--without", metavar="A,B", help="tensors that aren't compared, such as fc.weight,fc.bias"
    )


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "place",
        nargs="?",
        type=Path,
        metavar="STUDY.yaml",
        help="a study's file, or a folder with a manifest.json or a study.yaml",
    )


def _add_transform(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--transform", choices=get_args(TransformKind), help="run on task vectors that are trimmed or dropped"
    )
    command.add_argument("--keep", type=float, metavar="SHARE", help="what TIES keeps (default 0.2)")
    command.add_argument("--drop", type=float, metavar="SHARE", help="what DARE drops (default 0.5)")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        default="auto",
        help="cuda, mps or cpu, or several such as cuda:0,cuda:1 (default: the fastest there is, every GPU)",
    )
