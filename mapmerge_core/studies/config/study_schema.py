"""The fields that a study file may have, and sentences for those that it may not."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails, PydanticCustomError

from mapmerge_core.methods.catalogue import SEARCHES, MethodName
from mapmerge_core.merges._training_settings import ScalarisationName
from mapmerge_core.search.designs import Kind
from mapmerge_core.search.surrogates.fitting import LossName
from mapmerge_core.search.links import LinkName
from mapmerge_core.studies.config.run import VectorsDtype
from mapmerge_core.studies.config.study import TransformKind

USED_BY: Mapping[str, tuple[MethodName, ...]] = {
    "low": SEARCHES,
    "high": SEARCHES,
    "design": ("map", "direct"),
    "anchors": ("map", "bayesian", "direct"),
    "link": ("map", "bayesian", "nested"),
    "loss": ("map", "bayesian", "nested"),
    "initial": ("bayesian",),
    "batch": ("bayesian",),
    "weights": ("nested",),
    "rule": ("nested",),
    "order": ("nested",),
    "training": ("pareto_merging",),
    "images": SEARCHES,
    "vectors": SEARCHES,
}
"""Settings that only some methods have a use for."""


def _texts(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    listed = value if isinstance(value, list) else [value]
    if value is None or (listed and all(isinstance(each, str) and each.strip() for each in listed)):
        return value
    raise PydanticCustomError("texts", "should be a list of texts, or a file of them")


def _short(field: str) -> BeforeValidator:
    """A text alone stands for ``{field: text}``."""
    return BeforeValidator(lambda value: {field: value} if isinstance(value, str) else value)


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


_Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
_Texts = Annotated[Any, BeforeValidator(_texts)]


class DataFields(_Fields):
    """A task's ``data``; a text alone is its path (see ``DataSource``)."""

    path: _Text
    config: _Text | None = None
    image: _Text | None = None
    label: _Text | None = None
    text: _Text | None = None
    splits: dict[str, _Text] | None = None
    class_names: _Texts = None
    templates: _Texts = None
    limit: int | None = None
    skip_corrupt: bool | None = None
    seed: int | None = None


class MetricFields(_Fields):
    """A task's ``metric``; a text alone is its name (see ``Metric``)."""

    name: _Text
    maximize: bool | None = None
    low: float | None = None
    high: float | None = None


class TaskFields(_Fields):
    """One of ``tasks``."""

    name: _Text
    checkpoint: _Text
    data: Annotated[DataFields | None, _short("path")] = None
    metric: Annotated[MetricFields | None, _short("name")] = None


class TransformFields(_Fields):
    """``transform`` (see ``Transform``)."""

    kind: TransformKind
    keep: float | None = None
    drop: float | None = None
    seed: int | None = None


class TrainingFields(_Fields):
    """A method's ``training`` (see ``Training``)."""

    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    rank: int | None = None
    start: float | None = None
    concentration: float | None = None
    scalarisation: ScalarisationName | None = None
    mu: float | None = None
    beta_cos: float | None = None
    beta_norm: float | None = None
    balance: float | None = None
    data_free: bool | None = None
    personalised: list[_Text] | None = None


class MethodFields(_Fields):
    """``method``: its name, and how it runs (see ``RunSettings``)."""

    name: MethodName | None = None
    points: int | None = None
    seed: int | None = None
    low: float | None = None
    high: float | None = None
    design: Kind | None = None
    anchors: bool | None = None
    device: _Text | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    vectors: VectorsDtype | None = None
    link: Literal[LinkName, "auto"] | None = None
    loss: LossName | None = None
    initial: int | None = None
    batch: int | None = None
    weights: dict[str, float] | None = None
    rule: _Text | None = None
    order: list[str] | None = None
    training: TrainingFields | None = None
    images: int | None = None


class StudyFields(_Fields):
    """A study file."""

    name: _Text | None = None
    family: _Text = "clip"
    architecture: _Text | None = None
    pretrained: _Text
    transform: TransformFields | None = None
    options: dict[str, Any] | None = None
    tasks: list[TaskFields]
    method: MethodFields | None = None


_KINDS: Mapping[tuple[str, ...], tuple[str, type[_Fields]]] = {
    (): ("a study", StudyFields),
    ("tasks",): ("a task", TaskFields),
    ("tasks", "data"): ("a dataset", DataFields),
    ("tasks", "metric"): ("a metric", MetricFields),
    ("transform",): ("a transform", TransformFields),
    ("method",): ("a method", MethodFields),
    ("method", "training"): ("a training", TrainingFields),
}

_SHOULD = {
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
    "list_type": "should be a list",
    "dict_type": "should hold fields",
}


def explained(problem: ErrorDetails) -> str:
    """One of pydantic's errors as a sentence that names the field."""
    place, kind = problem["loc"], problem["type"]
    field = _shown(place)
    if kind == "missing":
        return f"{_shown(place[:-1]) or 'the study'} has no '{place[-1]}': add it."
    if kind == "extra_forbidden":
        what, model = _kind(place[:-1])
        return f"{field} isn't a field of {what}: it may have {', '.join(model.model_fields)}."
    if kind == "model_type":
        what, model = _kind(place)
        return f"{field} should be {what}, with {', '.join(model.model_fields)}."
    if kind in {"string_too_short", "string_pattern_mismatch"}:
        return f"{field} is empty: fill it in, or leave the field out."
    given = problem["input"]
    plain = not isinstance(given, list | dict) and given is not None
    but = f", not {json.dumps(given, default=str, ensure_ascii=False)[:60]}" if plain else ""
    if kind == "literal_error":
        return f"{field} should be {problem['ctx']['expected']}{but}."
    quotes = ": put it in quotes" if kind == "string_type" and plain else ""
    return f"{field} {_SHOULD.get(kind, problem['msg'])}{but}{quotes}."


def _kind(place: tuple[str | int, ...]) -> tuple[str, type[_Fields]]:
    return _KINDS[tuple(part for part in place if isinstance(part, str))]


def _shown(place: tuple[str | int, ...]) -> str:
    """Such as ``tasks[1].data.path``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")
