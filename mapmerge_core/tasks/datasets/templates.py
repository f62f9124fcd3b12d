"""Prompts and class names: those that are shipped, and those in a person's files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mapmerge_core.errors import DatasetError

DEFAULT_TEMPLATES = ("a photo of a {}.",)

# As in CLIP's evaluation (Radford et al., 2021), which the papers on task vectors follow; for chest
# X-rays (MAP, Appendix F.1) our own.
_SHIPPED: dict[str, tuple[str, ...]] = {
    "sun397": ("a photo of a {}.", "a photo of the {}."),
    "cars": (
        *("a photo of a {}.", "a photo of the {}.", "a photo of my {}.", "i love my {}!"),
        *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
    ),
    "resisc45": tuple(
        f"{view} {kind} of {article}{{}}."
        for article in ("", "a ", "the ")
        for kind in ("imagery", "photo", "view")
        for view in ("satellite", "aerial")
    ),
    "eurosat": tuple(f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the ")),
    "svhn": ('a photo of the number: "{}".',),
    "gtsrb": tuple(f'a {how} photo of a "{{}}" traffic sign.' for how in ("zoomed in", "centered", "close up")),
    "mnist": ('a photo of the number: "{}".',),
    "dtd": tuple(
        f"a photo of {article} {{}} {what}."
        for article in ("a", "the")
        for what in ("texture", "pattern", "thing", "object")
    ),
    "chest-xray": ("a chest X-ray showing {}.", "a chest X-ray of a patient with {}.", "an X-ray image of {}."),
}

_OTHER_NAMES = {"stanfordcars": "cars", "chestxray14": "chest-xray", "nihchestxray": "chest-xray"}

_DIGITS = tuple(str(digit) for digit in range(10))

_CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "chest-xray-1": ("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax"),
    "chest-xray-2": ("Nodule", "Mass", "Hernia"),
    "mnist": _DIGITS,
    "svhn": _DIGITS,
    "eurosat": (
        *("annual crop land", "forest", "herbaceous vegetation", "highway or road", "industrial buildings"),
        *("pasture land", "permanent crop land", "residential buildings", "river", "sea or lake"),
    ),
    "gtsrb": (
        *(f"{limit} km/h speed limit" for limit in (20, 30, 50, 60, 70, 80)),
        "end of 80 km/h speed limit",
        *("100 km/h speed limit", "120 km/h speed limit"),
        *("no overtaking", "no overtaking by trucks", "right of way at the next crossing", "priority road"),
        *("give way", "stop", "no vehicles", "no trucks", "no entry", "danger", "curve to the left"),
        *("curve to the right", "double curve", "bumpy road", "slippery road", "road narrows on the right"),
        *("road works", "traffic lights ahead", "pedestrians", "children crossing", "bicycles crossing"),
        *("ice or snow", "wild animals crossing", "end of all limits", "turn right ahead", "turn left ahead"),
        *("straight ahead only", "straight ahead or right", "straight ahead or left", "keep right"),
        *("keep left", "roundabout", "end of no overtaking", "end of no overtaking by trucks"),
    ),
}


def shipped_templates() -> dict[str, tuple[str, ...]]:
    """Return the prompts that come with us, by the name of the dataset they are meant for."""
    return dict(_SHIPPED)


def shipped_class_names() -> dict[str, tuple[str, ...]]:
    """Class names of datasets that don't name their classes, and of chest X-rays' two tasks (MAP, F.1)."""
    return dict(_CLASS_NAMES)


def find_shipped(name: str) -> str | None:
    """Return the shipped set that a dataset's name stands for, whatever its case and punctuation, if any."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    known = {re.sub(r"[^a-z0-9]", "", text): text for text in _SHIPPED} | _OTHER_NAMES
    return known.get(plain)


def read_templates(templates: tuple[str, ...] | str | Path) -> tuple[str, ...]:
    """Return prompts as they are, of a shipped set, or from a file, each with exactly one ``{}``.

    Raises:
        DatasetError: There is no such set or file, or a prompt has not exactly one ``{}``.
    """
    if isinstance(templates, str):
        name = find_shipped(templates)
        if name is None:
            raise DatasetError(f"There are no prompts named '{templates}': choose from {', '.join(_SHIPPED)}.")
        return _SHIPPED[name]
    if isinstance(templates, Path):
        return check_templates(read_list(templates), templates)
    return check_templates(templates, None)


def check_templates(templates: tuple[str, ...], where: object) -> tuple[str, ...]:
    """Return the prompts.

    Raises:
        DatasetError: One has not exactly one ``{}``.
    """
    for template in templates:
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            problem = f"the template {template!r} needs exactly one {{}} for the class name."
            raise DatasetError(f"{where}: {problem}" if where is not None else problem[0].upper() + problem[1:])
    return templates


def read_list(path: Path) -> tuple[str, ...]:
    """Read a file with one text a line, or a JSON list of texts (or JSON's ``{"0": "cat", ...}``).

    Raises:
        DatasetError: It can't be read, or holds no such list.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            held: object = [line.strip() for line in content.splitlines() if line.strip()]
        else:
            held = json.loads(content)
    except OSError as error:
        raise DatasetError(f"The file {path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"The file {path} is no text in UTF-8 or no JSON.") from error
    if isinstance(held, dict) and set(held) == {str(number) for number in range(len(held))}:
        held = [held[str(number)] for number in range(len(held))]
    if not isinstance(held, list) or not held or not all(isinstance(text, str) for text in held):
        raise DatasetError(f"The file {path} must hold one text a line, or a JSON list of texts.")
    return tuple(held)
