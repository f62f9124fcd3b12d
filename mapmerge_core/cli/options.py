"""Options that commands share, with one meaning everywhere, and flags made from the settings of merges and methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mapmerge_core.errors import SettingError
from mapmerge_core.registries import MERGES, METHODS
from mapmerge_core.settings import SettingField, fields_of, wanted

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Study = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name or number.")]
Place = Annotated[
    Path | None,
    typer.Argument(
        metavar="STUDY.yaml", help="A study's file, or a folder with a manifest.json, a study.yaml or models."
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(metavar="N or A,B", help="Which tasks: how many of the first, or their names in this order."),
]
Zoo = Annotated[Path | None, typer.Option(metavar="DIR", help="Another folder of models for the demo.")]
Name = Annotated[str, typer.Option(help="A name for it.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[
    str,
    typer.Option(help="cuda, mps or cpu, or several such as cuda:0,cuda:1; auto is the fastest there is, every GPU."),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"] | None, typer.Option(help="Of validation; auto is what is fast.")
]
Vectors = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="What task vectors are held in; bfloat16 takes half the memory."),
]
Preference = Annotated[
    str | None, typer.Option(metavar="A=2,B=1", help='Weights of objectives, or "equal"; others count nothing.')
]
Rule = Annotated[str | None, typer.Option(help='Such as "all >= 70%, maximize MNIST".')]
Merge = Annotated[str | None, typer.Option(metavar="NAME", help="A merge, as `mapmerge merges` lists them.")]

_KINDS: dict[type, Any] = {int: int, float: float, bool: bool}


def settings_fields() -> dict[str, list[tuple[str, SettingField]]]:
    """Return all settings of merges and methods by name, each with the titles of those that have it."""
    fields: dict[str, list[tuple[str, SettingField]]] = {}
    for item in (*METHODS, *MERGES):
        for field in fields_of(item.Settings):
            fields.setdefault(field.name, []).append((item.title, field))
    return fields


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each setting of any merge or method; it gets those typed as ``settings``."""
    signature = inspect.signature(command, eval_str=True)
    own = {name: parameter for name, parameter in signature.parameters.items() if name != "settings"}
    flags = {name: _flag(name, owners) for name, owners in settings_fields().items() if name not in own}

    def filled(**values: Any) -> None:  # noqa: ANN401 - of many types
        typed = {name: values.pop(name) for name in flags}
        command(**values, settings={name: value for name, value in typed.items() if value is not None})

    filled.__name__, filled.__doc__ = command.__name__, command.__doc__
    filled.__signature__ = signature.replace(parameters=[*own.values(), *flags.values()])  # type: ignore[attr-defined]
    filled.__annotations__ = {name: parameter.annotation for name, parameter in (own | flags).items()}
    return filled


def _flag(name: str, owners: list[tuple[str, SettingField]]) -> inspect.Parameter:
    """Make the option of a setting that one or several merges and methods have, with the shortest of their helps."""
    titles = list(dict.fromkeys(title for title, _ in owners))
    whose = ", ".join(titles) if len(titles) <= 3 else f"{', '.join(titles[:2])} and {len(titles) - 2} others"
    ranges = {_shown(field) for _, field in owners}
    range_ = f" ({ranges.pop()})" if len(ranges) == 1 else ""
    text = f"{whose}: {min((field.help for _, field in owners), key=len).rstrip('.')}{range_}."
    field = owners[0][1]
    kind = _KINDS.get(field.kind, str)
    words = (f"{field.flag}/--no-{field.flag[2:]}",) if kind is bool else (field.flag,)
    metavar = "A,B" if field.kind is list else "A=2,B=1" if field.kind is dict else None
    option = typer.Option(*words, help=text, metavar=metavar, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _shown(field: SettingField) -> str:
    if field.kind is bool:
        return f"{'on' if field.default else 'off'} by default"
    default = "none" if field.default is None or field.default == () else field.default
    return wanted(field) if field.is_required else f"{wanted(field)}; default {default}"


def divide_settings(
    settings: Mapping[str, Any], merge: str, method: str, names: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that were typed, those of the merge and those of the method.

    Args:
        settings: By name, as typed: lists and weights as text.
        merge: The merge's name.
        method: The method's name.
        names: Of the objectives, for weights such as "equal".

    Raises:
        SettingError: Neither has one of the settings.
    """
    parts: list[dict[str, Any]] = []
    chosen = (MERGES[merge], METHODS[method])
    for item in chosen:
        fields = {field.name: field for field in fields_of(item.Settings)}
        parts.append({name: _value(fields[name], value, names) for name, value in settings.items() if name in fields})
    for name in settings:
        if not any(name in part for part in parts):
            takers = [
                f"--{what} {item.name}"
                for what, registry in (("merge", MERGES), ("method", METHODS))
                for item in registry
                if name in {field.name for field in fields_of(item.Settings)}
            ]
            raise SettingError(
                f"{chosen[0].title} and {chosen[1].title} have no use for --{name.replace('_', '-')}: leave it out, or "
                f"choose {' or '.join(takers)}."
            )
    return parts[0], parts[1]


def _value(field: SettingField, value: Any, names: tuple[str, ...]) -> Any:  # noqa: ANN401
    if field.kind is list and isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if field.kind is dict and isinstance(value, str):
        return parse_weights(value, names)
    return value


def parse_weights(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """Read weights such as "MNIST=2,Emoji=1"; "equal" is 1 for each objective.

    Raises:
        SettingError: A part of the text is no weight.
    """
    if text.strip().lower() == "equal":
        return dict.fromkeys(names, 1.0)
    weights = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            example = ",".join(f"{name}={2 - i}" for i, name in enumerate(names[:2]))
            raise SettingError(f"'{part.strip()}' is no weight: write them as in '{example}', or equal.") from None
    return weights
