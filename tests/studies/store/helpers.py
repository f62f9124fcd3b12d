"""Made-up measurements, and the merge that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.tasks.outcome import Outcome

if TYPE_CHECKING:
    from mapmerge_core.studies.store import Store, Study

COLOURS, STRIPES = "Colours/accuracy", "Stripes/accuracy"
INNER = np.array([0.2, 0.3])


def outcome(value: float, seconds: float = 0.25) -> Outcome:
    """A measurement of all 10 examples of a split."""
    return Outcome(value=value, n_examples=10, per_example=np.packbits([1, 0, 1]).tobytes(), seconds=seconds)


def part(right: Sequence[int], n_total: int = 60, standard_error: float = 0.1) -> Outcome:
    """What was right among the first examples of a split of 60."""
    return Outcome(float(np.mean(right)), len(right), np.packbits(right).tobytes(), 0.25, n_total, standard_error)


def plain(store: Store, study: Study) -> int:
    """The id of the merge that every study has: task arithmetic."""
    return store.merges.all(study.id)[0].id
