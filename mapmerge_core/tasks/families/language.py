"""Causal language models of transformers."""

from __future__ import annotations

from pathlib import Path

from mapmerge_core.settings import setting, settings
from mapmerge_core.tasks.families.base import Family, register
from mapmerge_core.tasks.metrics.loss import LOSS


@register
class Language(Family):
    """Causal language models of transformers, measured by their loss on text."""

    name = "language"
    title = "Causal language model (transformers)"
    examples = "texts"
    metrics = (LOSS,)
    gives = frozenset({"losses", "tokens"})
    library = "transformers"
    implementation = "mapmerge_core.tasks.families._models.language:CausalLanguageModel"

    @settings
    class Settings:
        """Settings of language models."""

        block: int | None = setting(
            default=None,
            at_least=2,
            help="Tokens of a block; by default 1,024, or the model's context where that is shorter.",
        )
        tokens: int = setting(default=65_536, at_least=2, help="Tokens of each split, at most, that are measured.")

    @classmethod
    def left_out(cls, architecture: str, pretrained: Path) -> tuple[str, ...]:  # noqa: ARG003
        """Return the names of old constants beside the parameters (see `Family.left_out`).

        Raises:
            CheckpointError: The folder can't be read, or its checkpoint doesn't fit its configuration.
        """
        from mapmerge_core.tasks.families._models.language import blueprint

        return tuple(blueprint(pretrained).constants)
