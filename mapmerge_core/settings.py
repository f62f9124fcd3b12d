"""Settings of merges, methods and families: declared once, from which files, flags, forms and tables are made.

``@settings`` makes a class a frozen, strict pydantic dataclass, ``setting`` declares a field with its help and
bounds, `fields_of` describes all fields for whoever draws or parses them, and `make` checks what a person wrote.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from mapmerge_core.errors import SettingError

T = TypeVar("T")
MAX_SEED = 2**31 - 1
"""The largest seed that every random number generator takes."""


def setting(
    default: Any = dataclasses.MISSING,  # noqa: ANN401 - of the field's type
    *,
    help: str,  # noqa: A002 - what it is called everywhere
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    advanced: bool = False,
) -> Any:  # noqa: ANN401 - a field
    """Declare a field of a class decorated with `settings`.

    Args:
        default: Its value where a person says nothing; a field without one must be given.
        help: One sentence for people.
        at_least: The least value.
        above: All values are greater than this.
        at_most: The greatest value.
        below: All values are less than this.
        advanced: Whether forms hide it among those that seldom change.
    """
    given: dict[str, Any] = {} if default is dataclasses.MISSING else {"default": default}
    return Field(
        description=help, ge=at_least, gt=above, le=at_most, lt=below, json_schema_extra={"advanced": advanced}, **given
    )


def seed_setting(help: str = "Seed of all random numbers; the same seed gives the same result.") -> Any:  # noqa: A002, ANN401
    """Declare a seed: the one rule for what a seed may be."""
    return setting(0, help=help, at_least=0, at_most=MAX_SEED)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting, seed_setting))
def settings(cls: type[T]) -> type[T]:
    """Make a class of fields a frozen, keyword-only dataclass that refuses unknown names and wrong values."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[return-value]


@settings
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True)
class SettingField:
    """A field of a settings class, as flags, forms, tables and files need it.

    Attributes:
        name: Its name, the key in study files; a flag has dashes for underscores.
        kind: The type of its values: int, float, bool or str; list for names; dict for numbers by name.
        default: Its default; None where ``is_optional`` and nothing is chosen.
        help: One sentence.
        choices: The values that it may have, if they are few.
        is_optional: Whether None is a value.
        is_required: Whether there is no default.
        is_advanced: Whether forms hide it at first.
        low, high: Its bounds, minus or plus infinity where there is none.
        excludes_low, excludes_high: Whether the bound itself is no value.
    """

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    is_required: bool = False
    is_advanced: bool = False
    low: float = -math.inf
    high: float = math.inf
    excludes_low: bool = False
    excludes_high: bool = False

    @property
    def flag(self) -> str:
        """The command line's option."""
        return "--" + self.name.replace("_", "-")


def fields_of(cls: type) -> tuple[SettingField, ...]:
    """Describe the fields of a settings class, in their order."""
    hints = get_type_hints(cls)
    return tuple(_field(hints[field.name], field.name, info) for field, info in _pairs(cls))


def make(cls: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Make settings of what a person wrote.

    Args:
        cls: A class decorated with `settings`.
        values: By name; a whole float counts as an integer, a list as a tuple, and so on.
        what: Whose settings these are, for sentences: "TIES", "The method MAP".

    Raises:
        SettingError: A name is unknown, or a value is of another type or out of bounds.
    """
    known = {field.name: field for field in fields_of(cls)}
    for name in values:
        if name not in known:
            listed = f"it has {', '.join(known)}" if known else "there is nothing to set"
            raise SettingError(f"{what} has no setting '{name}': {listed}.")
    plain = {name: _loosened(known[name], value) for name, value in values.items()}
    try:
        return cls(**plain)
    except ValidationError as error:
        raise SettingError(_sentence(error, known, what, values)) from None


def to_dict(values: Any) -> dict[str, Any]:  # noqa: ANN401 - any settings
    """Return settings as plain values that JSON and YAML can write, all fields by name."""
    return TypeAdapter(type(values)).dump_python(values, mode="json")  # type: ignore[no-any-return]


def changed(values: Any) -> dict[str, Any]:  # noqa: ANN401 - any settings
    """Return only those settings that differ from their defaults."""
    defaults = {field.name: field.default for field in fields_of(type(values))}
    return {name: value for name, value in to_dict(values).items() if value != _plain(defaults[name])}


def label(values: Any) -> str:  # noqa: ANN401 - any settings
    """Name the settings that differ from their defaults, such as "keep 0.5, seed 3"; "" where none does."""
    shown = changed(values).items()
    return ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in shown)


def _shown(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    return str(value)


def _plain(value: Any) -> Any:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else value


def _pairs(cls: type) -> list[tuple[Any, Any]]:
    infos = cls.__pydantic_fields__  # type: ignore[attr-defined]
    return [(field, infos[field.name]) for field in dataclasses.fields(cls)]


def _field(hint: Any, name: str, info: Any) -> SettingField:  # noqa: ANN401
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        optional, hint = len(parts) < len(get_args(hint)), parts[0]
    choices: tuple[str, ...] = ()
    if get_origin(hint) is Literal:
        choices, hint = get_args(hint), str
    origin = get_origin(hint)
    kind = (
        list if origin in (tuple, list) else dict if origin is dict or (origin and hasattr(origin, "items")) else hint
    )
    low, high, without_low, without_high = -math.inf, math.inf, False, False
    for bound in info.metadata:
        if getattr(bound, "ge", None) is not None:
            low = bound.ge
        if getattr(bound, "gt", None) is not None:
            low, without_low = bound.gt, True
        if getattr(bound, "le", None) is not None:
            high = bound.le
        if getattr(bound, "lt", None) is not None:
            high, without_high = bound.lt, True
    extra = info.json_schema_extra or {}
    return SettingField(
        name=name,
        kind=kind,
        default=None if info.is_required() else info.get_default(call_default_factory=True),
        help=info.description or "",
        choices=choices,
        is_optional=optional,
        is_required=info.is_required(),
        is_advanced=bool(extra.get("advanced")),
        low=low,
        high=high,
        excludes_low=without_low,
        excludes_high=without_high,
    )


def _loosened(field: SettingField, value: Any) -> Any:  # noqa: ANN401
    """Turn what JSON, YAML and terminals have for a value into the value itself, where nothing is lost."""
    if isinstance(value, bool) or value is None:
        return value
    if field.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if field.kind is float and isinstance(value, int):
        return float(value)
    if field.kind is list and isinstance(value, list):
        return tuple(value)
    if field.kind is dict and isinstance(value, dict):
        return {
            name: float(each) if isinstance(each, int) and not isinstance(each, bool) else each
            for name, each in value.items()
        }
    return value


_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list of names",
    dict: "numbers by name",
}


def _sentence(error: ValidationError, known: Mapping[str, SettingField], what: str, values: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing" or name not in known:
        return f"{what} needs the setting '{name}': give it."
    field = known[name]
    if first["type"] == "value_error":  # from a validator of the class, which words its own sentence
        return str(first["ctx"]["error"])
    return f"{what} can't have {name} = {_cut(values.get(name))}: give {wanted(field)}."


def wanted(field: SettingField) -> str:
    """Say which values a setting takes, such as "a number above 0 and at most 1"."""
    if field.choices:
        text = f"one of {', '.join(field.choices)}"
    else:
        text = _TYPES.get(field.kind, field.kind.__name__)
        ends = []
        if field.low > -math.inf:
            ends.append(f"above {field.low:.10g}" if field.excludes_low else f"of at least {field.low:.10g}")
        if field.high < math.inf:
            ends.append(f"below {field.high:.10g}" if field.excludes_high else f"at most {field.high:.10g}")
        text += " " + " and ".join(ends) if ends else ""
    return text + (", or none" if field.is_optional else "")


def _cut(value: Any) -> str:  # noqa: ANN401
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


def check_seed(seed: int) -> int:
    """Return a seed that every random number generator takes.

    Raises:
        SettingError: It is no whole number from 0 to `MAX_SEED`.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise SettingError(f"The seed {seed} can't be used: choose a whole number from 0 to {MAX_SEED}.")
    return seed
