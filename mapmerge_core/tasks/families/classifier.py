"""Classifiers of images of timm."""

from __future__ import annotations

from pathlib import Path

from mapmerge_core.settings import setting, settings
from mapmerge_core.tasks.families.base import Family, register
from mapmerge_core.tasks.families.clip import IMAGE_CLASSES


@register
class Classifier(Family):
    """Models of timm whose backbones are merged, with a head fitted for each task."""

    name = "classifier"
    title = "Classifier with heads (timm)"
    examples = "images"
    gives = IMAGE_CLASSES
    needs_architecture = True
    library = "timm"
    implementation = "mapmerge_core.tasks.families._models.classifier:ClassifierWithHeads"

    @settings
    class Settings:
        """Settings of classifiers."""

        train_examples: int = setting(
            default=2000, at_least=2, help="Training images of each task, at most, that its head is fitted to."
        )
        calibration_examples: int = setting(
            default=512, at_least=2, help="How many of these, at most, BatchNorm statistics are computed from."
        )
        recalibrate: bool = setting(default=True, help="Compute BatchNorm statistics anew for every merge.")
        image_size: int | None = setting(
            default=None,
            at_least=2,
            help="Height and width of the input, without timm's margin around the crop; by default the "
            "architecture's own size and margin.",
        )

    @classmethod
    def left_out(cls, architecture: str, pretrained: Path) -> tuple[str, ...]:
        from mapmerge_core.tasks.families._models.classifier import head_names

        return head_names(architecture, pretrained)
