"""YAML with the lines of its values: nothing in it is run, repeated or grows when it is read; comments are kept."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

MAX_BYTES = 1_000_000
_DEEPEST = 20
_KEYS = str | int


class NotYaml(Exception):  # noqa: N818 - a sentence on its way to a StudyError
    """A text can't be read.

    Attributes:
        line: Where, counted from 1; None where it is the whole.
    """

    def __init__(self, sentence: str, line: int | None) -> None:
        super().__init__(sentence)
        self.line = line


@dataclass(frozen=True)
class Lines:
    """The line of every value by its place, such as ("tasks", 0, "name"); of a field, that of its name."""

    by_place: Mapping[tuple[_KEYS, ...], int]

    def of(self, place: Sequence[_KEYS]) -> int | None:
        """Return the line of a place, or of the closest one around it that is there."""
        place = tuple(place)
        while place and place not in self.by_place:
            place = place[:-1]
        return self.by_place.get(place)


def read_yaml(text: str) -> tuple[Any, Lines]:
    """Read one document of mappings, lists and plain values.

    Raises:
        NotYaml: It isn't YAML, holds a field twice, is too long or too deep, or uses what isn't needed and could
            be harmful, such as tags and aliases.
    """
    document = _parse(text)
    lines: dict[tuple[_KEYS, ...], int] = {(): 1}
    return _plain(document, (), lines), Lines(lines)


def write_yaml(values: Mapping[str, Any], before: str = "") -> str:
    """Return the text that `read_yaml` reads as the same values.

    Args:
        values: What to write.
        before: The text that it takes the place of, whose comments and order are kept as far as its fields are.
    """
    document: Any = CommentedMap()
    if before:
        try:
            document = _parse(before)
        except NotYaml:
            document = CommentedMap()
    if not isinstance(document, CommentedMap):
        document = CommentedMap()
    _update(document, values)
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda *_: True
    return yaml


def _parse(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    if len(text) > MAX_BYTES:
        raise NotYaml(f"it is longer than {MAX_BYTES // 1_000_000} MB, so it is no study.", None)
    try:
        _check_events(text)
        document = _yaml().load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotYaml("a field is there twice: keep one.", line) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        sentence = f"this isn't YAML: {error.problem or error.context}."
        if error.problem and "\\t" in error.problem:
            sentence = "YAML takes no tab here: indent with spaces."
        raise NotYaml(sentence, mark.line + 1 if mark else None) from error
    except (YAMLError, ValueError) as error:
        raise NotYaml(f"this isn't YAML: {' '.join(str(error).split())[:200]}.", None) from error
    if document is None:
        raise NotYaml("it holds nothing: it should hold fields such as 'pretrained' and 'tasks'.", None)
    return document


def _check_events(text: str) -> None:
    """Refuse what isn't needed before anything is made of it."""
    depth = 0
    for event in _yaml().parse(text):
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            raise NotYaml(f"'*{event.anchor}' repeats another part: write it out.", line)
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            raise NotYaml(f"the tag '{str(event.tag)[:60]}' isn't needed: leave it out.", line)
        if isinstance(event, CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise NotYaml(f"this lies more than {_DEEPEST} levels deep, so it is no study.", line)
        elif isinstance(event, CollectionEndEvent):
            depth -= 1


def _plain(value: Any, place: tuple[_KEYS, ...], lines: dict[tuple[_KEYS, ...], int]) -> Any:  # noqa: ANN401
    """Return a part of a document as plain values, and note their lines."""
    if isinstance(value, CommentedMap):
        values = {}
        for key, inner in value.items():
            line = value.lc.key(key)[0] + 1
            if not isinstance(key, str):
                raise NotYaml("the name of a field should be text.", line)
            lines[(*place, key)] = line
            values[key] = _plain(inner, (*place, key), lines)
        return values
    if isinstance(value, CommentedSeq):
        for i in range(len(value)):
            lines[(*place, i)] = value.lc.item(i)[0] + 1
        return [_plain(inner, (*place, i), lines) for i, inner in enumerate(value)]
    if isinstance(value, bool) or value is None:
        return value
    return next((kind(value) for kind in (int, float, str) if isinstance(value, kind)), value)


def _update(document: CommentedMap, values: Mapping[str, Any]) -> None:
    """Make a mapping hold some values, changing no more of it than that takes."""
    for key in [key for key in document if key not in values]:
        del document[key]
    for key, value in values.items():
        known = document.get(key)
        if isinstance(value, Mapping) and isinstance(known, CommentedMap):
            _update(known, value)
        elif isinstance(value, list) and isinstance(known, CommentedSeq) and len(known) == len(value):
            for i, (before, now) in enumerate(zip(list(known), value, strict=True)):
                if isinstance(now, Mapping) and isinstance(before, CommentedMap):
                    _update(before, now)
                elif before != now:
                    known[i] = now
        elif known != value or key not in document:
            document[key] = value
