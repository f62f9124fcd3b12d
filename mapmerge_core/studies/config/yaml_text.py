"""YAML with the lines of its values: nothing in it is run, repeated or grows when it is read; comments are kept."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode

MAX_BYTES = 250_000
"""A study file is far smaller, and reading a larger one would take many seconds."""
_DEEPEST = 20
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")}


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

    by_place: Mapping[tuple[str | int, ...], int]

    def of(self, place: Sequence[str | int]) -> int | None:
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
    if len(text) > MAX_BYTES:
        raise NotYaml(f"it is longer than {MAX_BYTES // 1000} kB, so it is no study.", None)
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        sentence = f"this isn't YAML: {error.problem or error.context}."
        if error.problem and "\\t" in error.problem:
            sentence = "YAML takes no tab here: indent with spaces."
        raise NotYaml(sentence, mark.line + 1 if mark else None) from error
    except (YAMLError, ValueError) as error:
        raise NotYaml(f"this isn't YAML: {' '.join(str(error).split())[:200]}.", None) from error
    if node is None:
        raise NotYaml("it holds nothing: it should hold fields such as 'pretrained' and 'tasks'.", None)
    lines: dict[tuple[str | int, ...], int] = {}
    return _value(yaml.constructor, node, (), lines), Lines(lines)


def write_yaml(values: Mapping[str, Any], before: str = "") -> str:
    """Return the text that `read_yaml` reads as the same values.

    Args:
        values: What to write.
        before: The text that it takes the place of; comments and order are kept of the fields that stay.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda *_: True
    document = CommentedMap()
    if before:
        with suppress(NotYaml):
            if isinstance(read_yaml(before)[0], dict):
                document = yaml.load(before)
    _update(document, values)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


class _Composer(Composer):
    """Makes nodes of a text, and none of aliases or of what lies too deep."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:  # noqa: ANN401 - ruamel's own
        event = self.parser.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            raise NotYaml(f"'*{event.anchor}' repeats another part: write it out.", line)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotYaml(f"this lies more than {_DEEPEST} levels deep, so it is no study.", line)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _value(constructor: Any, node: Node, place: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> Any:  # noqa: ANN401
    """Return a node as plain values, and note their lines."""
    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    tag = node.tag or ""
    if tag not in _TAGS:
        raise NotYaml(f"the tag '{tag[:60]}' isn't needed: leave it out.", line)
    if isinstance(node, ScalarNode):
        _check_text(node)
        try:
            return constructor.construct_object(node)
        except (ValueError, LookupError, ArithmeticError) as error:
            raise NotYaml(f"'{node.value[:60]}' is no value: put it in quotes.", line) from error
    if isinstance(node, SequenceNode):
        return [_value(constructor, item, (*place, i), lines) for i, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key, item in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            raise NotYaml("the name of a field should be text.", line)
        _check_text(key)
        inner = (*place, key.value)
        if key.value in values:
            raise NotYaml(f"'{key.value}' is there twice, first in line {lines[inner]}: keep one.", line)
        lines[inner] = line
        values[key.value] = _value(constructor, item, inner, lines)
    return values


def _check_text(node: ScalarNode) -> None:
    """Refuse half of a character, which no file can hold but an escape can."""
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        raise NotYaml("this holds a character that isn't text: leave it out.", node.start_mark.line + 1) from error


def _update(document: CommentedMap, values: Mapping[str, Any]) -> None:
    """Make a mapping hold some values, changing no more of it than that takes."""
    for key in [key for key in document if key not in values]:
        del document[key]
    for key, value in values.items():
        old = document.get(key)
        if isinstance(value, Mapping) and isinstance(old, CommentedMap):
            _update(old, value)
        elif isinstance(value, list) and isinstance(old, CommentedSeq) and len(old) == len(value):
            for i, (before, now) in enumerate(zip(list(old), value, strict=True)):
                if isinstance(now, Mapping) and isinstance(before, CommentedMap):
                    _update(before, now)
                elif before != now:
                    old[i] = now
        elif old != value or key not in document:
            document[key] = value
