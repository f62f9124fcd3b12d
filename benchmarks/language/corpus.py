"""Plain text of manual pages from Debian's packages, divided by page, and a tokenizer of it."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mapmerge_core.errors import DatasetError


@dataclass(frozen=True)
class Language:
    """A language and the Debian packages with its manual pages.

    Attributes:
        code: Name of its folders.
        name: Its name in the study and in tables.
        packages: Debian packages.
        pages: Folder of its pages in the packages, from their root.
    """

    code: str
    name: str
    packages: tuple[str, ...]
    pages: str


ENGLISH = Language("en", "English", ("manpages", "manpages-dev"), "usr/share/man")
TRANSLATED = tuple(
    Language(code, name, (f"manpages-{code}",), f"usr/share/man/{code}")
    for code, name in (("fr", "French"), ("de", "German"), ("es", "Spanish"))
)
LANGUAGES = (ENGLISH, *TRANSLATED)

SPLITS = ("train", "val", "test")
END = "<|endoftext|>"
"""Token between documents."""
_SHARES = {"val": 0.1, "test": 0.1}
_PROGRAMS = ("apt-get", "dpkg-deb", "groff")
_SHORTEST, _LONGEST = 500, 100_000
"""Characters of a page: shorter ones only refer to another, longer ones would be a whole split."""
_MOST = 2_500_000
"""Characters of a language: small translations and large ones come nearer to each other."""
_NOTICE_LENGTH, _NOTICE_PAGES = 40, 5
"""A paragraph at least this long in more than so many pages is a licence or a translator's notice."""


def write_text(folder: Path, packages: Path, *, seed: int, report: Callable[[int, int], object] | None = None) -> None:
    """Writes ``<language>/train.txt``, ``val.txt`` and ``test.txt``, and ``sources.json``.

    A document is a page, a line is a paragraph, and a blank line divides documents. A page and its
    translations are in the same split.

    Args:
        folder: Where to write; it appears once it is whole.
        packages: Where the packages are downloaded to; those that are there already are taken as they are.
        seed: Decides the splits.
        report: Called with how many pages have been converted, and out of how many.

    Raises:
        DatasetError: If a program is missing, or if a package can't be had.
    """
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise DatasetError(
            f"The text comes from Debian's manual pages, and {', '.join(missing)} can't be found here: "
            "build the study on Debian or Ubuntu, with the package groff-base installed."
        )
    archives = {language.code: [_download(name, packages) for name in language.packages] for language in LANGUAGES}
    with tempfile.TemporaryDirectory() as unpacked, whole_folder(folder) as unfinished:
        files: dict[str, list[Path]] = {}
        for language in LANGUAGES:
            root = Path(unpacked) / language.code
            for archive in archives[language.code]:
                _run("dpkg-deb", "-x", str(archive), str(root))
            found = (root / language.pages).glob("man[1-8]/*.gz")
            files[language.code] = sorted(file for file in found if not file.is_symlink())
        total = sum(map(len, files.values()))
        done = 0
        sources: dict[str, object] = {}
        for language in LANGUAGES:
            pages = {}
            for file in files[language.code]:
                pages[file.stem] = plain_text(gzip.decompress(file.read_bytes()))
                done += 1
                if report is not None:
                    report(done, total)
            sources[language.code] = {
                "packages": [archive.name for archive in archives[language.code]],
                "splits": _write_splits(unfinished / language.code, _chosen(pages, seed), seed),
            }
        (unfinished / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")


def plain_text(roff: bytes) -> str:
    """A manual page's text: a paragraph a line, without its header, footer and layout.

    Args:
        roff: The page's source, in UTF-8.
    """
    command = ["groff", "-t", "-Kutf8", "-Tutf8", "-mandoc", "-P-cbou", "-rLL=4000n", "-rHY=0"]
    printed = subprocess.run(command, input=roff, capture_output=True, check=False).stdout.decode("utf-8", "replace")
    lines = (" ".join(re.sub(r"[\u2500-\u257f]", " ", line).split()) for line in printed.splitlines())
    return "\n".join([line for line in lines if any(map(str.isalpha, line))][1:-1])


def split_of(page: str, seed: int) -> str:
    """The split that a page and its translations are in.

    Args:
        page: Its name and section, such as ``ls.1``.
        seed: Seed of the splits.
    """
    place = _place(page, seed)
    for split, share in _SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def documents(file: Path) -> list[str]:
    """The documents of a text file that blank lines divide."""
    return [text for text in file.read_text(encoding="utf-8").strip().split("\n\n") if text]


def train_tokenizer(text: Path, size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on as much text of each language.

    Args:
        text: Folder of the languages' text.
        size: Size of the vocabulary.
    """
    texts = [(text / language.code / "train.txt").read_text(encoding="utf-8") for language in LANGUAGES]
    shortest = min(map(len, texts))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    lines = (line for whole in texts for line in whole[:shortest].splitlines(keepends=True))
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``folder`` at the end if nothing went wrong."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        unfinished = Path(work) / folder.name
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(folder)


def _download(package: str, folder: Path) -> Path:
    """The package's archive, downloaded with apt unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob(f"{package}_*.deb"))):
        _run("apt-get", "download", package, folder=folder)
        found = sorted(folder.glob(f"{package}_*.deb"))
    return found[-1]


def _run(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise DatasetError(
            f"“{' '.join(command)}” failed ({said[-1]}): "
            "run “apt-get update” and check the connection, then start again."
        )


def _place(page: str, seed: int) -> float:
    """A number in [0, 1) that only a page's name and the seed decide, whatever other pages a release has."""
    digest = hashlib.sha256(f"{seed}/{page}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _chosen(pages: dict[str, str], seed: int) -> dict[str, str]:
    """Pages without notices, neither short nor long, at random up to ``_MOST`` characters."""
    seen = Counter(line for text in pages.values() for line in set(text.split("\n")))
    notices = {line for line, times in seen.items() if len(line) >= _NOTICE_LENGTH and times > _NOTICE_PAGES}
    chosen: dict[str, str] = {}
    left = _MOST
    for name in sorted(pages, key=lambda page: _place(f"order/{page}", seed)):
        text = "\n".join(line for line in pages[name].split("\n") if line not in notices)
        if _SHORTEST <= len(text) <= min(_LONGEST, left):
            chosen[name] = text
            left -= len(text)
    return chosen


def _write_splits(folder: Path, pages: dict[str, str], seed: int) -> dict[str, dict[str, int]]:
    """Writes the splits of a language; the pages and characters of each."""
    folder.mkdir()
    written = {}
    for split in SPLITS:
        texts = [text for name, text in pages.items() if split_of(name, seed) == split]
        (folder / f"{split}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        written[split] = {"pages": len(texts), "characters": sum(map(len, texts))}
    return written
