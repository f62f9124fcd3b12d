"""The commands that list what can be chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mapmerge_core.registries import FAMILIES, MERGES, METHODS, METRICS
from mapmerge_core.settings import fields_of

if TYPE_CHECKING:
    from mapmerge_core.registry import Registry
    from tests.cli.conftest import Command


@pytest.mark.parametrize(("what", "registry"), [("merges", MERGES), ("methods", METHODS), ("families", FAMILIES)])
def test_what_is_registered_is_listed_with_its_settings(command: Command, what: str, registry: Registry):
    listed = {item["name"]: item for item in command.json(what)[what]}
    text, _ = command(what)
    assert list(listed) == list(registry.names)
    for item in registry:
        assert listed[item.name]["title"] == item.title
        assert list(listed[item.name]["settings"]) == [field.name for field in fields_of(item.Settings)]
        assert item.help() in text


def test_metrics_are_listed_with_their_direction(command: Command):
    listed = {item["name"]: item for item in command.json("metrics")["metrics"]}
    assert {name: item["maximize"] for name, item in listed.items()} == {m.name: m.maximize for m in METRICS}
    assert listed["accuracy"]["bounds"] == [0, 1]
    text, _ = command("metrics")
    assert all(metric.help in text for metric in METRICS)
