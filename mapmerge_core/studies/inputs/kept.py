"""What of a study in the store opening its files needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapmerge_core.studies.config.study import StudyConfig
    from mapmerge_core.studies.inputs.sources import Source


@dataclass(frozen=True, eq=False)
class KeptStudy:
    """A study that is kept.

    Attributes:
        id: Its number.
        name: Its name.
        config: What it is made of.
        sources: Its files as they were when it was created.
    """

    id: int
    name: str
    config: StudyConfig
    sources: tuple[Source, ...]
