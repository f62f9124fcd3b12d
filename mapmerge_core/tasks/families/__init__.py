"""Families of models: each is one light module, found by name; its model is imported when it is made."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

from mapmerge_core.errors import RegistryError
from mapmerge_core.registries import FAMILIES

if TYPE_CHECKING:
    from mapmerge_core.tasks.families.base import Family

_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def find_family(name: str) -> type[Family]:
    """Return the family with a name, or a person's own ``module:function`` or ``module:class``.

    A person's code isn't imported before its model is made: reading or showing a study runs nothing.

    Raises:
        RegistryError: The name is neither.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if _PLACE.fullmatch(name):
        own: type[Family] = import_module("mapmerge_core.tasks.families.custom").own_family(name)
        return own
    raise RegistryError(
        f"There is no family of models '{name}': choose {', '.join(FAMILIES.names)}, or name your own as "
        "module:function."
    )
