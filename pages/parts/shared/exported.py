"""An exported model's files: one with others beside it, or a folder that the model's own library loads."""

from __future__ import annotations

from pathlib import Path

IN_FOLDER = "model.safetensors"
"""The weights' name in a folder."""


def card(model: Path) -> Path:
    """Where the model's card is."""
    return model.with_name("README.md") if model.name == IN_FOLDER else model.with_suffix(".README.md")


def title(model: Path) -> str:
    """The export's own name: the file's, or the folder's."""
    return f"{model.parent.name}/" if model.name == IN_FOLDER else model.name


def beside(model: Path) -> list[Path]:
    """The export's other files, by name."""
    folder = sorted(path for path in model.parent.iterdir() if path.is_file() and path != model)
    if model.name == IN_FOLDER:
        return folder
    return [path for path in folder if path.name.startswith(f"{model.stem}.")]
