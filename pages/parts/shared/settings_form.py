"""Forms made of settings: one widget for each field, whoever's settings these are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.parts.shared import shell

if TYPE_CHECKING:
    from mapmerge_core.settings import SettingField

EVEN = 50
"""What each slider of a preference stands at first."""


def draw(
    fields: Sequence[SettingField],
    values: Mapping[str, Any],
    key: Callable[[str], str],
    *,
    usual: Mapping[str, object] | None = None,
    names: Sequence[str] = (),
    disabled: bool = False,
) -> dict[str, Any]:
    """Draw a widget for each field.

    Args:
        fields: What to ask for.
        values: What stands in the form at first, by name; a field's default where nothing is given.
        key: Makes a widget's key of a field's name.
        usual: What fields that are left empty stand for, by name.
        names: What weights and lists may name.
        disabled: Whether nothing can be changed now.

    Returns:
        The settings by name, which `settings.make` has yet to check.
    """
    chosen: dict[str, Any] = {}
    for field in fields:
        value = values.get(field.name, field.default)
        common: dict[str, Any] = {"key": key(field.name), "disabled": disabled, "help": shell.plain(field.help)}
        if field.choices:
            chosen[field.name] = _choice(field, value, common)
        elif field.kind is bool:
            chosen[field.name] = st.toggle(title(field), bool(value), **common)
        elif field.kind in (int, float):
            chosen[field.name] = _number(field, value, (usual or {}).get(field.name), common)
        elif field.kind is dict:
            chosen[field.name] = _weights(field, value or {}, names, common)
        elif field.kind is list:
            chosen[field.name] = _names(field, value or (), names, common)
        else:
            text = st.text_input(title(field), value or "", **common).strip()
            chosen[field.name] = text or (None if field.is_optional else "")
    return chosen


def title(field: SettingField) -> str:
    """Return what a field's widget is called."""
    return field.name.replace("_", " ").capitalize()


def _choice(field: SettingField, value: Any, common: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    options: list[str | None] = [None, *field.choices] if field.is_optional else [*field.choices]
    return st.selectbox(
        title(field),
        options,
        options.index(value) if value in options else 0,
        format_func=lambda name: "None" if name is None else str(name).replace("_", " ").capitalize(),
        **common,
    )


def _number(field: SettingField, value: Any, usual: object, common: Mapping[str, Any]) -> Any:  # noqa: ANN401
    ends = [
        None if math.isinf(end) or excludes else field.kind(end)
        for end, excludes in ((field.low, field.excludes_low), (field.high, field.excludes_high))
    ]
    more: dict[str, Any] = {"step": 1, "format": "%d"}
    if field.kind is float:
        more = {"step": 0.05 if field.high <= 1 else 0.1, "format": "%g"}
    # An empty field is "none": so its help calls it, and so it doesn't look forgotten.
    more |= {"min_value": ends[0], "max_value": ends[1], "placeholder": "None" if usual is None else str(usual)}
    return st.number_input(title(field), value=value, **more, **common)


def _weights(
    field: SettingField, value: Mapping[str, float], names: Sequence[str], common: Mapping[str, Any]
) -> dict[str, float] | None:
    """Draw a slider for each name; where all are alike and nothing needs to be given, nothing is."""
    top = max(value.values(), default=0.0)
    weights = {}
    with st.popover(title(field), icon=":material/tune:", disabled=common["disabled"], key=common["key"]):
        st.caption(common["help"])
        for name in names:
            first = round(100 * value.get(name, 0.0) / top) if top > 0 else EVEN
            place = f"{common['key']}_{name}"
            weights[name] = float(st.slider(shell.plain(name), 0, 100, first, key=place, disabled=common["disabled"]))
    is_even = len(set(weights.values())) <= 1 and any(weights.values())
    return None if field.is_optional and (is_even or not weights) else weights


def _names(
    field: SettingField, value: Sequence[str], names: Sequence[str], common: Mapping[str, Any]
) -> tuple[str, ...] | None:
    chosen = st.multiselect(
        title(field),
        [*dict.fromkeys([*names, *value])],
        list(value),
        accept_new_options=not names,
        placeholder="Choose, in this order" if names else "Type a name",
        **common,
    )
    return tuple(chosen) or (None if field.is_optional else ())
