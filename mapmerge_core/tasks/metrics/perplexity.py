"""Perplexity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import Metric, Predictions, Score
from mapmerge_core.tasks.subsets import standard_error

if TYPE_CHECKING:
    from torch import Tensor


class Perplexity(Metric):
    """The exponential of the mean loss of the text's tokens."""

    needs = frozenset({"losses", "tokens"})
    observes = "losses"

    def observe(self, batch: Predictions) -> Tensor:
        return batch.losses

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:  # noqa: ARG002
        """Return exp(mean loss); by the delta method its error is that of the mean loss times itself."""
        with np.errstate(over="ignore"):
            value = float(np.exp(observed.mean(dtype=np.float64)))
        error = standard_error(observed)
        return Score(value, None if error is None else error * value, observed)


PERPLEXITY = METRICS.register(Perplexity("perplexity", maximize=False, low=1.0))
