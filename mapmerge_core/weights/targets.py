"""Where exports go, and what goes with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The weights' name in a folder of transformers or timm.
_MODEL = "model.safetensors"
# What is copied from the pre-trained model's folder: what loading needs, but never weights or programs.
_COPIED = (
    "config.json",
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
        like: The pre-trained model's folder, None for a file.
        config: That folder's ``config.json``.
    """

    model: Path
    like: Path | None
    config: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, like: Path | None) -> Target:
        """Returns where an export to ``path`` goes.

        Raises:
            ExportError: Nothing can be exported there, or ``like`` is no folder of transformers or timm.
        """
        if like is None:
            if path.suffix != ".safetensors":
                raise ExportError(
                    f"{path} can't be exported to: the name of a merged model ends in .safetensors."
                )
            if path.is_dir():
                raise ExportError(f"{path} is a folder: choose a file name for the merged model.")
            return cls(path, None, {})
        config = _read_config(like)
        folder = path.parent if path.name == _MODEL else path
        if folder.is_file() or folder.suffix == ".safetensors":
            raise ExportError(f"{path} is no folder: this model is exported to a folder, as {_MODEL} in it.")
        if folder.is_dir() and folder.samefile(like):
            raise ExportError(f"{folder} holds the pre-trained model: export to another folder.")
        return cls(folder / _MODEL, like, config)

    def beside(self, name: str) -> Path:
        """Returns where a file of the export goes: beside a file, its name begins as the model's."""
        return self.model.with_name(name if self.like else f"{self.model.stem}.{name}")

    def copied(self) -> list[Path]:
        """Returns the files to copy from the pre-trained model's folder."""
        if self.like is None:
            return []
        return sorted(
            path
            for path in self.like.iterdir()
            if path.is_file()
            and any(fnmatch(path.name, pattern) for pattern in _COPIED)
            and not any(fnmatch(path.name, pattern) for pattern in _NEVER_COPIED)
        )


def _read_config(like: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((like / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(
            f"{like} holds no config.json, without which the merged model could not be loaded: give the "
            "folder of a model of transformers or timm."
        ) from error
    except ValueError as error:
        raise ExportError(
            f"{like / 'config.json'} is no JSON: repair the pre-trained model's folder."
        ) from error
    return config if isinstance(config, dict) else {}
