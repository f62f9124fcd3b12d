"""Accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import Metric, Predictions, Score
from mapmerge_core.tasks.subsets import standard_error

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Accuracy(Metric):
    """Share of examples whose most likely class is the right one."""

    needs: ClassVar[frozenset[str]] = frozenset({"labels", "predicted"})
    observes: ClassVar[str] = "predicted"
    is_share_right: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True

    def observe(self, batch: Predictions) -> Tensor:
        """Return the predicted classes (n)."""
        return batch.predicted

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:
        """Return the share that is right, with its binomial error."""
        right = observed == labels
        return Score(float(right.mean()), standard_error(right), right)


ACCURACY = METRICS.register(Accuracy("accuracy", maximize=True, low=0.0, high=1.0))
