"""Where exports go, and what goes with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mapmerge_core.errors import ExportError

# The weights' name in a folder of transformers or timm.
_MODEL = "model.safetensors"
# What is copied from the pre-trained model's folder beside its configuration: what loading needs, but never
# weights or programs.
_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "*.model",
)
_NEVER_COPIED = ("*.py", "*.safetensors", "*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class Target:
    """Where an export goes: a file with others beside it, or a folder like the pre-trained model's.

    Attributes:
        model: The model's file.
        like: The pre-trained model's configuration, None for a file.
        config: What it says.
    """

    model: Path
    like: Path | None
    config: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, like: Path | None) -> Target:
        """Return where an export to ``path`` goes.

        Raises:
            ExportError: Nothing can be exported there, or ``like`` is no folder of transformers or timm, and no
                configuration of open_clip.
        """
        if like is None:
            if path.suffix != ".safetensors":
                raise ExportError(f"{path} can't be exported to: the name of a merged model ends in .safetensors.")
            if path.is_dir():
                raise ExportError(f"{path} is a folder: choose a file name for the merged model.")
            return cls(path, None, {})
        file = like if like.is_file() else like / "config.json"
        config = _read_config(file)
        folder = path.parent if path.name == _MODEL else path
        if folder.is_file() or folder.suffix == ".safetensors":
            raise ExportError(f"{path} is no folder: this model is exported to a folder, as {_MODEL} in it.")
        if folder.is_dir() and folder.samefile(file.parent):
            raise ExportError(f"{folder} holds the pre-trained model: export to another folder.")
        return cls(folder / _MODEL, file, config)

    def beside(self, name: str) -> Path:
        """Return where a file of the export goes: beside a file, its name begins as the model's."""
        return self.model.with_name(name if self.like else f"{self.model.stem}.{name}")

    def copied(self) -> list[Path]:
        """Return the files to copy from the pre-trained model's folder."""
        if self.like is None:
            return []
        return sorted(
            path
            for path in self.like.parent.iterdir()
            if path.is_file()
            and any(fnmatch(path.name, pattern) for pattern in (self.like.name, *_COPIED))
            and not any(fnmatch(path.name, pattern) for pattern in _NEVER_COPIED)
        )


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(
            f"{file.parent} holds no {file.name}, without which the merged model could not be loaded: give "
            "the folder of a model of transformers or timm."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{file} is no JSON: repair the pre-trained model's folder.") from error
    return config if isinstance(config, dict) else {}
