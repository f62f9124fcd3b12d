"""CLIP models of transformers."""

from __future__ import annotations

from pathlib import Path

from mapmerge_core.tasks.families.base import Family, register
from mapmerge_core.tasks.families.clip import IMAGE_CLASSES


@register
class ClipOfTransformers(Family):
    """CLIP models of transformers, which classify images by the prompt whose text embedding is nearest."""

    name = "clip_transformers"
    title = "CLIP zero-shot (transformers)"
    examples = "images"
    gives = IMAGE_CLASSES
    gives_logits = True
    library = "transformers"
    part = "vision_model."
    implementation = "mapmerge_core.tasks.families._models.clip_transformers:TransformersClip"

    @classmethod
    def left_out(cls, architecture: str, pretrained: Path) -> tuple[str, ...]:  # noqa: ARG003
        """Return the names of old constants beside the parameters (see `Family.left_out`).

        Raises:
            CheckpointError: The folder can't be read, or its checkpoint doesn't fit its configuration.
        """
        from mapmerge_core.tasks.families._models.clip_transformers import blueprint

        return tuple(blueprint(pretrained).constants)
