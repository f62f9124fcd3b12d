"""The loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import Metric, Predictions, Score
from mapmerge_core.tasks.subsets import standard_error

if TYPE_CHECKING:
    from torch import Tensor


class Loss(Metric):
    """Mean negative log-likelihood, in nats, of the right classes or of the text's tokens."""

    needs = frozenset({"losses"})
    observes = "losses"
    is_mean = True

    def observe(self, batch: Predictions) -> Tensor:
        return batch.losses

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:  # noqa: ARG002
        return Score(float(observed.mean(dtype=np.float64)), standard_error(observed), observed)


LOSS = METRICS.register(Loss("loss", maximize=False, low=0.0))
