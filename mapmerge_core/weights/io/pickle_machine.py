"""A stack machine for pickles that executes nothing and imports nothing.

Whatever a pickle names is only a name here, objects become inert stand-ins that keep their state, and calls are left to
a function that decides by the name alone. Instructions that ``torch.save`` doesn't write are refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

# Instructions that come with a value, as `pickletools` reads it.
_VALUES = frozenset(
    (
        *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING"),
        *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: Mapping[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_IGNORED = frozenset({"PROTO", "FRAME"})
# What is named once can be handed over again and again: more items in all than any model has.
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


class Machine:
    """A machine that runs one pickle.

    Args:
        load: Finds what a file keeps outside of its pickle, such as a tensor's numbers.
        call: Answers a call of a named function with its arguments, or raises `RefusedError`.
    """

    def __init__(self, load: Callable[[object], object], call: Callable[[str, tuple], object]) -> None:
        self._load, self._answer = load, call
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._n_items = 0
        self._steps: Mapping[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "POP": self._pop,
            "POP_MARK": self._pop_to_mark,
            "DUP": lambda _: self._push(self._stack[-1]),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "TUPLE": lambda _: self._push(tuple(self._unmark())),
            "LIST": lambda _: self._push(self._unmark()),
            "DICT": self._dict,
            "FROZENSET": lambda _: self._push({key_of(item) for item in self._unmark()}),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._unmark()),
            "SETITEM": lambda _: self._set_items(self._take(2)),
            "SETITEMS": lambda _: self._set_items(self._unmark()),
            "ADDITEMS": self._add,
            "PUT": self._remember,
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "GET": lambda place: self._push(self._memo[place]),
            "BINGET": lambda place: self._push(self._memo[place]),
            "LONG_BINGET": lambda place: self._push(self._memo[place]),
            "GLOBAL": lambda text: self._push(Named(text)),
            "STACK_GLOBAL": self._name,
            "NEWOBJ": self._make,
            "REDUCE": self._call,
            "BUILD": self._build,
            "BINPERSID": lambda _: self._push(self._load(self._stack.pop())),
        }

    def run(self, stream: IO[bytes]) -> object:
        """Return what the pickle describes; afterwards ``stream`` stands behind it.

        Raises:
            RefusedError: It asks for something that is never done.
            Exception: It is damaged; of the kinds that indexing, `struct` and wrong types raise.
        """
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in self._steps:
                self._steps[name](argument)
            elif name in _VALUES:
                self._push(argument)
            elif name in _CONSTANTS:
                self._push(_CONSTANTS[name])
            elif name in _CONTAINERS:
                self._push(_CONTAINERS[name]())
            elif name == "STOP":
                return self._stack.pop()
            elif name not in _IGNORED:
                raise RefusedError(f"it uses the instruction {name}")
        raise EOFError

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _take(self, n: int) -> list[Any]:
        if len(self._stack) < n:
            raise IndexError
        taken = self._stack[len(self._stack) - n :]
        del self._stack[len(self._stack) - n :]
        return taken

    def _mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _unmark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._unmark()

    def _pop_to_mark(self, _: object) -> None:
        self._unmark()

    def _remember(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _tuple(self, n: int) -> None:
        self._push(tuple(self._take(n)))

    def _dict(self, _: object) -> None:
        items = self._unmark()
        self._push({})
        self._set_items(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        entries = target.items if isinstance(target, StandIn) else target
        if not isinstance(entries, list):
            raise TypeError("only lists are appended to")
        entries.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        entries = target.entries if isinstance(target, StandIn) else target
        if not isinstance(entries, dict):
            raise TypeError("only dictionaries have entries")
        entries.update((key_of(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def _add(self, _: object) -> None:
        items = self._unmark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise TypeError("only sets are added to")
        target.update(key_of(item) for item in items)

    def _name(self, _: object) -> None:
        module, name = self._take(2)
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name is no text")
        self._push(Named(f"{module} {name}"))

    def _make(self, _: object) -> None:
        """Push an object that is made without a call of its ``__init__``."""
        kind, _ = self._take(2)
        if not isinstance(kind, Named):
            raise TypeError("an object of no class")
        self._push(StandIn(kind.name))

    def _call(self, _: object) -> None:
        function, arguments = self._take(2)
        if not isinstance(function, Named):
            raise RefusedError("it calls what is no function")
        if not isinstance(arguments, tuple):
            raise TypeError("a call without arguments")
        self._count(arguments)
        self._push(self._answer(function.name, arguments))

    def _build(self, _: object) -> None:
        """Keep the attributes of a stand-in; its class's own ``__setstate__`` is never called."""
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, StandIn):
            parts = state if isinstance(state, tuple) else (state,)
            self._count(parts)
            for part in parts:
                if isinstance(part, dict):
                    target.state.update(part)

    def _count(self, parts: tuple) -> None:
        """Count arguments and the items in them: a pickle could hand the same ones over without end."""
        self._n_items += len(parts) + sum(len(p) for p in parts if isinstance(p, tuple | list | dict | set))
        if self._n_items > _MOST_ITEMS:
            raise RefusedError("it never ends")


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
