"""Texts in plain files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.datasets import splitting
from mapmerge_core.tasks.datasets.base import Examples, RawTexts, Reader, key_of_file, key_of_files, register

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource


class TextFileReader(Reader):
    """A text file, its texts separated by blank lines, or a folder of text files."""

    name: ClassVar[str] = "texts"
    examples: ClassVar[tuple[Examples, ...]] = ("texts",)
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text", ".md")

    def reads(self, source: DataSource, examples: Examples) -> bool:
        """Return whether a source is such a file, or a folder of them."""
        path = source.path
        if isinstance(path, Path) and path.is_dir():
            return bool(_text_files(path, tuple(source.splits.values())))
        return super().reads(source, examples)

    def texts(self, source: DataSource) -> RawTexts:
        """Read a file, or files of which each is a split or, within one split, a text."""
        path = Path(source.path)
        if path.is_file():
            return RawTexts({"train": _documents(path)}, lambda: key_of_file(path))
        files = _text_files(path, tuple(source.splits.values()))
        texts = {
            split: _documents(paths[0]) if len(paths) == 1 else [_text(one) for one in paths]
            for split, paths in files.items()
        }
        every = [one for paths in files.values() for one in paths]
        return RawTexts(texts, lambda: key_of_files(path, every))


register(TextFileReader())


def _text_files(folder: Path, splits: tuple[str, ...]) -> dict[str, list[Path]]:
    """Return the text files of each split, which is their name or their folder's; else all of them as one."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.is_file() and path.suffix.lower() == ".txt"]
    by_split = {path.stem: [path] for path in files if path.stem in splits or splitting.ours(path.stem)}
    for path in inside:
        is_split = path.is_dir() and (path.name in splits or splitting.ours(path.name) is not None)
        if is_split and (within := sorted(path.rglob("*.txt"))):
            by_split[path.name] = within
    return by_split or ({"train": files} if files else {})


def _documents(path: Path) -> list[str]:
    """Return a file's texts, which are separated by blank lines."""
    return [text for text in re.split(r"\n[^\S\n]*\n\s*", _text(path).strip()) if text.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8: save it as such.") from error
