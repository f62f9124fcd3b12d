"""Builds the study's models: ``python -m benchmarks.language build FOLDER``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from benchmarks.language import corpus, train
from benchmarks.language.corpus import LANGUAGES, TRANSLATED, whole_folder
from mapmerge_core.cli.output import print_table, progress_bar, say
from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.settings import check_seed

if TYPE_CHECKING:
    from mapmerge_core.studies.runs.measuring import Progress

PRETRAINED = "pretrained"
BAD_INPUT, INTERRUPTED = 2, 130
STUDY = """\
name: Manual pages
family: language
pretrained: {pretrained}
tasks:
{tasks}
options: {{block: {block}, tokens: {tokens}}}
run: {{method: {{name: map, points: 50}}}}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: What was typed after the program's name, by default ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except MapMergeError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: finished stages are kept, and the same command goes on from there.\n")
        return INTERRUPTED
    return 0


def build(options: argparse.Namespace) -> None:
    """Makes the text, the tokenizer, the models and ``study.yaml``, leaving stages that are there alone.

    Raises:
        StudyError: If the folder was begun with other settings.
        SettingError: If the seed is out of range.
        DatasetError: If the text can't be had.
    """
    check_seed(options.seed)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    folder: Path = options.folder.absolute()
    _check_settings(folder, {name: getattr(options, name) for name in ("seed", "pre_training", "fine_tuning")})
    text, seed = folder / "text", options.seed
    if _is_missing(text):
        with _stage("Text") as report:
            corpus.write_text(text, folder / "packages", seed=seed, report=report)
    if _is_missing(folder / "tokenizer"):
        with _stage("Tokenizer"), whole_folder(folder / "tokenizer") as unfinished:
            corpus.train_tokenizer(text, train.VOCABULARY).save_pretrained(unfinished)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    texts = train.streams(text, "train", tokenizer)
    if _is_missing(folder / PRETRAINED):
        with _stage("Pre-training") as report:
            model = train.new_model(tokenizer, seed)
            final = train.pre_train(model, texts, options.pre_training, seed, report)
            _save(folder / PRETRAINED, model, tokenizer)
        say(f"  loss in training: {final:.3f}")
    for number, language in enumerate(TRANSLATED, start=1):
        if _is_missing(folder / language.code):
            with _stage(f"Fine-tuning on {language.name}") as report:
                model = train.load(folder / PRETRAINED)
                final = train.fine_tune(model, texts[language.code], options.fine_tuning, seed + number, report)
                _save(folder / language.code, model, tokenizer)
            say(f"  loss in training: {final:.3f}")
    (folder / "study.yaml").write_text(_study(), encoding="utf-8")
    models = [PRETRAINED, *(language.code for language in TRANSLATED)]
    with _stage("Test"):
        table = train.losses(folder, models, train.streams(text, "test", tokenizer))
    say("\nLoss a token on the test text, in nats")
    rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(models, table, strict=True)]
    print_table(["model", *(language.name for language in LANGUAGES)], rows)


def _check_settings(folder: Path, settings: dict[str, int]) -> None:
    """Notes what decides the folder's contents, or compares it with what was noted."""
    file = folder / "settings.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    elif (begun := json.loads(file.read_text(encoding="utf-8"))) != settings:
        with_them = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in begun.items())
        raise StudyError(f"{folder} was begun with {with_them}: give these options again, or another folder.")


def _is_missing(stage: Path) -> bool:
    """Whether a stage has yet to be made; says so where not."""
    if stage.exists():
        say(f"{stage.name}: there already")
    return not stage.exists()


@contextmanager
def _stage(title: str) -> Iterator[Progress | None]:
    """Progress with the time left while a stage is made, and how long it took at the end."""
    start = time.monotonic()
    with progress_bar(title) as report:
        yield report
    say(f"{title}: {time.monotonic() - start:.0f} s")


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _study() -> str:
    tasks = [
        f"  - {{name: {one.name}, checkpoint: {one.code}, data: {{path: text/{one.code}}}, metrics: loss}}"
        for one in TRANSLATED
    ]
    return STUDY.format(pretrained=PRETRAINED, tasks="\n".join(tasks), block=train.BLOCK, tokens=train.TEST_TOKENS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language", description="A language study end to end, from Debian's manual pages."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    builder = commands.add_parser(
        "build",
        help="make the text, the tokenizer, the models and study.yaml",
        description="Downloads manual pages with apt, and trains a small model for each language on them.",
        epilog="Finished stages are kept: the same command goes on where one was interrupted.",
    )
    builder.add_argument("folder", type=Path, metavar="FOLDER")
    builder.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    builder.add_argument(
        "--pre-training",
        type=_positive,
        default=1400,
        metavar="STEPS",
        help="steps of 1,024 tokens (default: %(default)s)",
    )
    builder.add_argument(
        "--fine-tuning", type=_positive, default=350, metavar="STEPS", help="as above (default: %(default)s)"
    )
    builder.add_argument(
        "--threads", type=_positive, default=1, help="of PyTorch; more than 1 rounds differently (default: 1)"
    )
    builder.set_defaults(run=build)
    return parser


def _positive(word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word)):
        raise argparse.ArgumentTypeError(f"give a whole number from 1, not {word!r}")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
