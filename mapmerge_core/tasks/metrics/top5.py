"""Top-5 accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import Metric, Predictions, Score
from mapmerge_core.tasks.subsets import standard_error

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Top5Accuracy(Metric):
    """Share of examples whose right class is among the five most likely ones."""

    needs = frozenset({"labels", "logits"})
    observes = "in top 5"
    is_share_right = True
    is_mean = True

    def observe(self, batch: Predictions) -> Tensor:
        largest = batch.logits.topk(min(5, batch.logits.shape[1]), dim=1).indices
        return (largest == batch.labels[:, None]).any(dim=1)

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:  # noqa: ARG002
        return Score(float(observed.mean()), standard_error(observed), observed)


TOP5_ACCURACY = METRICS.register(Top5Accuracy("top-5 accuracy", maximize=True, low=0.0, high=1.0))
