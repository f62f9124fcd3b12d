"""CLIP models of open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapmerge_core.settings import setting, settings
from mapmerge_core.tasks.families.base import Family, register

if TYPE_CHECKING:
    from mapmerge_core.weights.io.hub import HubRef

IMAGE_CLASSES = frozenset({"logits", "labels", "predicted", "losses"})
"""What the predictions of families that classify images hold."""


@register
class Clip(Family):
    """CLIP models of open_clip, which classify images by the prompt whose text embedding is nearest."""

    name = "clip"
    title = "CLIP zero-shot (open_clip)"
    examples = "images"
    gives = IMAGE_CLASSES
    needs_architecture = True
    gives_logits = True
    library = "open_clip"
    part = "visual."
    implementation = "mapmerge_core.tasks.families._models.clip:ClipZeroShot"

    @settings
    class Settings:
        """Settings of CLIP models of open_clip."""

        tag: str | None = setting(
            default=None,
            help="Which of open_clip's own weights these are, as ARCHITECTURE/TAG: they decide how images "
            "are prepared, unless a configuration file does.",
            advanced=True,
        )

    @classmethod
    def options_for(cls, pretrained: Path | HubRef) -> dict[str, Any]:
        if isinstance(pretrained, Path) or not pretrained.is_open_clip:
            return {}
        architecture, _, tag = pretrained.parts
        return {"tag": f"{architecture}/{tag}"}

    @classmethod
    def preprocessing(cls, architecture: str, options: Mapping[str, Any]) -> dict[str, Any]:
        if not options.get("tag") or architecture.endswith(".json"):
            return {}
        from mapmerge_core.tasks.families._models.clip import preprocessing_of

        return preprocessing_of(options["tag"])

    @classmethod
    def exported_like(cls, architecture: str, pretrained: Path) -> Path | None:  # noqa: ARG003
        """Return the configuration file that open_clip loads a folder by, if it is one."""
        config = Path(architecture)
        return config if config.name == "open_clip_config.json" else None
