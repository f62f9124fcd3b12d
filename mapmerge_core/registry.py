"""Registries: objects by name, each found in a module of its own, or brought by another package.

A registry imports the modules of one package of mapmerge, and the entry points of its group, the first time
that it is asked for something. Nothing here imports torch, and no registered object may need it before it is
used, so that studies, forms and ``--help`` can describe everything at once.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from threading import RLock
from typing import Any, Generic, TypeVar

from mapmerge_core.errors import RegistryError

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind by their names.

    Args:
        kind: What one of them is called in sentences, such as "merge".
        package: The package of which each public module registers one object or a few.
        group: The entry points by which other packages add theirs; the module named there is imported.
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._items: dict[str, T] = {}
        self._lock = RLock()
        self._is_loaded = False

    def register(self, item: T) -> T:
        """Add an object under its ``name``; use it as a decorator of a class, or call it with an instance.

        Raises:
            RegistryError: The name is empty or taken.
        """
        name: str = getattr(item, "name", "")
        if not name:
            raise RegistryError(f"A {self.kind} needs a name: give {item!r} one.")
        with self._lock:
            known = self._items.get(name)
            if known is not None and not _is_same(known, item):
                raise RegistryError(f"There is a {self.kind} called '{name}' already: choose another name.")
            self._items[name] = item
        return item

    def unregister(self, name: str) -> None:
        """Remove an object, such as one that a test registered."""
        with self._lock:
            self._items.pop(name, None)

    def __getitem__(self, name: str) -> T:
        """Return the object called ``name``.

        Raises:
            RegistryError: There is none.
        """
        self._load()
        if name not in self._items:
            raise RegistryError(f"There is no {self.kind} '{name}': choose one of {', '.join(sorted(self._items))}.")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[T]:
        """Iterate over the objects, sorted by name."""
        self._load()
        return iter([self._items[name] for name in sorted(self._items)])

    def __len__(self) -> int:
        self._load()
        return len(self._items)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._load()
        return tuple(sorted(self._items))

    def _load(self) -> None:
        with self._lock:
            if self._is_loaded:
                return
            self._is_loaded = True
            for module in pkgutil.iter_modules(import_module(self.package).__path__):
                if not module.name.startswith("_"):
                    import_module(f"{self.package}.{module.name}")
            for entry in entry_points(group=self.group):
                try:
                    entry.load()
                except Exception as error:
                    self._is_loaded = False
                    raise RegistryError(
                        f"The {self.kind} '{entry.name}' of the package {_origin(entry)} can't be imported "
                        f"({type(error).__name__}: {' '.join(str(error).split())}): repair or uninstall it."
                    ) from error


class Helpful:
    """Something whose docstring begins with the one sentence that people get as help."""

    @classmethod
    def help(cls) -> str:
        """Return that sentence."""
        return next(iter((cls.__doc__ or "").strip().splitlines()), "")


def _is_same(known: Any, item: Any) -> bool:  # noqa: ANN401 - classes and instances
    """Whether a module was imported again under the same name, as reloading does."""
    key = [(getattr(x, "__module__", None), getattr(x, "__qualname__", type(x).__qualname__)) for x in (known, item)]
    return known is item or (key[0] == key[1] and isinstance(item, type))


def _origin(entry: Any) -> str:  # noqa: ANN401 - importlib's entry point
    return str(entry.dist.name if entry.dist is not None else entry.value)
