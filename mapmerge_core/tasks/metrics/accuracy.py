"""Accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import MetricOfClasses, Score
from mapmerge_core.tasks.subsets import standard_error

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Accuracy(MetricOfClasses):
    """Share of examples whose most likely class is the right one."""

    is_share_right = True
    is_mean = True

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:
        right = observed == labels
        return Score(float(right.mean()), standard_error(right), right)


ACCURACY = METRICS.register(Accuracy("accuracy", maximize=True, low=0.0, high=1.0))
