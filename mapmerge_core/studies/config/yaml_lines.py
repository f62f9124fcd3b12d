"""YAML whose values know their lines; nothing in it is run, or grows when it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_BYTES = 1_000_000
_DEEPEST = 20
_PLAIN = (yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG)


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

    def of(self, place: Sequence[str | int]) -> int:
        """The line of a place, or of the closest one around it that is there."""
        place = tuple(place)
        while place and place not in self.by_place:
            place = place[:-1]
        return self.by_place[place]


def read_yaml(text: str) -> tuple[Any, Lines]:
    """Reads one document of mappings, lists and plain values.

    Raises:
        NotYaml: It isn't YAML; a field is there twice, which PyYAML doesn't mind; it is too long or too deep;
            or it uses what isn't needed and could be harmful, such as tags and aliases.
    """
    if len(text) > MAX_BYTES:
        raise NotYaml(f"it is longer than {MAX_BYTES // 1_000_000} MB, so it is no study.", None)
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise NotYaml("it holds nothing: it should hold fields such as 'pretrained' and 'tasks'.", None)
        values = _values(loader, node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        sentence = f"this isn't YAML: {error.problem or error.context}."
        if error.problem and repr("\t") in error.problem:
            sentence = "YAML takes no tab here: indent with spaces."
        raise NotYaml(sentence, mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        raise NotYaml(f"this isn't YAML: {' '.join(str(error).split())}.", None) from error
    return values, Lines(lines)


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, and with numbers such as 1e-3, which YAML 1.1 takes for text."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - PyYAML's own
        event = self.peek_event()
        line = event.start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            raise NotYaml(f"'*{event.anchor}' repeats another part: write it out.", line)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotYaml(f"this lies more than {_DEEPEST} levels deep, so it is no study.", line)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes everything out."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002 - PyYAML's own
        return True


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def dump_yaml(values: Mapping[str, Any]) -> str:
    """The text that `read_yaml` reads as the same values."""
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
    )
    return text


def _values(
    loader: _Loader, node: yaml.Node, place: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> Any:  # noqa: ANN401 - whatever the text holds
    lines.setdefault(place, node.start_mark.line + 1)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
        raise NotYaml(f"the tag '{node.tag}' isn't needed: leave it out.", node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_values(loader, each, (*place, row), lines) for row, each in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except ValueError as error:
            raise NotYaml(
                f"'{node.value}' is no value: put it in quotes.", node.start_mark.line + 1
            ) from error
    values = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise NotYaml("the name of a field should be text.", line)
        inner = (*place, key.value)
        if key.value in values:
            raise NotYaml(f"'{key.value}' is there twice, first in line {lines[inner]}: keep one.", line)
        lines[inner] = line
        values[key.value] = _values(loader, value, inner, lines)
    return values
