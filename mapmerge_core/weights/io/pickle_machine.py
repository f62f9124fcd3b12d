"""An unpickler that executes nothing and imports nothing.

Whatever a pickle names is only a name here, objects become inert stand-ins that keep their state, and calls are left to
a function that decides by the name alone. Instructions that ``torch.save`` doesn't write are refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

_REFUSED = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.PERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
# Instructions that hash what a pickle made, and which items of the stack they hash.
_KEYS = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(None, None, 2),
    pickle.DICT: slice(None, None, 2),
    pickle.ADDITEMS: slice(None),
    pickle.FROZENSET: slice(None),
}
# A pickle can hand the same arguments over again and again: more items in all than any model has.
_MOST_ITEMS = 5_000_000
# What `torch.save` uses as keys has a few parts at most.
_LONGEST_KEY = 100


class RefusedError(Exception):
    """A pickle asks for something that is never done; the message says for what."""


@dataclass(frozen=True)
class Named:
    """A class or function that a pickle names: ``"module name"``."""

    name: str


@dataclass(eq=False)
class StandIn:
    """An object of a class that was never imported.

    Attributes:
        kind: The class's module and name.
        state: Its attributes.
        entries: What it holds as a dictionary.
        items: What it holds as a list.
    """

    kind: str
    state: dict[Any, Any] = field(default_factory=dict)
    entries: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)

    def __setitem__(self, key: object, value: object) -> None:
        self.entries[key] = value

    def append(self, item: object) -> None:
        """Add an item, as to a list."""
        self.items.append(item)

    def extend(self, items: Iterable[object]) -> None:
        """Add items, as to a list."""
        self.items.extend(items)


_Unpickler: Any = pickle._Unpickler  # noqa: SLF001 - its steps can be replaced, as joblib does


class Machine(_Unpickler):
    """Reads one pickle; `load` returns what it describes, and leaves the stream behind it.

    `load` raises `RefusedError` where a pickle asks for something that is never done, and for damaged ones whatever
    indexing, `struct` and wrong types raise.

    Args:
        stream: Where the pickle begins.
        find: Finds what a file keeps outside of its pickle, such as a tensor's numbers.
        answer: Answers a call of a named function with its arguments, or raises `RefusedError`.
    """

    def __init__(
        self, stream: IO[bytes], find: Callable[[object], object], answer: Callable[[str, tuple], object]
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self.persistent_load = find
        self._answer = answer
        self._n_items = 0

    def find_class(self, module: str, name: str) -> Named:
        """Return the name alone."""
        return Named(f"{module} {name}")

    def _make(self) -> None:
        """Push an object whose class is only named; the arguments of its ``__new__`` are left out."""
        self.stack.pop()
        kind = self.stack.pop()
        if not isinstance(kind, Named):
            raise TypeError("an object of no class")
        self.append(StandIn(kind.name))

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Named):
            raise RefusedError("it calls what is no function")
        if not isinstance(arguments, tuple):
            raise TypeError("a call without arguments")
        self._count(arguments)
        self.append(self._answer(function.name, arguments))

    def _build(self) -> None:
        """Keep the attributes of a stand-in; its class's own ``__setstate__`` is never called."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StandIn):
            parts = state if isinstance(state, tuple) else (state,)
            self._count(parts)
            for part in parts:
                if isinstance(part, dict):
                    target.state.update(part)

    def _count(self, parts: tuple) -> None:
        self._n_items += len(parts) + sum(len(p) for p in parts if isinstance(p, tuple | list | dict | set))
        if self._n_items > _MOST_ITEMS:
            raise RefusedError("it never ends")

    def _refuse(self) -> None:
        raise RefusedError("it uses an instruction that PyTorch doesn't write")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_Unpickler.dispatch,
        pickle.NEWOBJ[0]: _make,
        pickle.REDUCE[0]: _call,
        pickle.BUILD[0]: _build,
        **dict.fromkeys([code[0] for code in _REFUSED], _refuse),
    }


def _with_checked_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    def checked(machine: Machine) -> None:
        for key in machine.stack[keys]:
            key_of(key)
        load(machine)

    return checked


Machine.dispatch |= {code[0]: _with_checked_keys(Machine.dispatch[code[0]], keys) for code, keys in _KEYS.items()}


def key_of(value: object) -> Hashable:
    """Return a key for a dictionary or a set.

    Raises:
        TypeError: It can't be one, or is a tuple that is nested or long: such could take forever to hash.
    """
    plain = (str, int, float, bool, bytes, type(None), Named, StandIn)
    if isinstance(value, plain):
        return value
    if isinstance(value, tuple) and len(value) <= _LONGEST_KEY and all(isinstance(item, plain) for item in value):
        return value
    raise TypeError("a key that can't be one")
