"""Balanced accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import MetricOfClasses, Score


class BalancedAccuracy(MetricOfClasses):
    """Mean over the classes of the share of their examples that are right: rare classes count as much."""

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:
        """Return the mean recall of the C classes that have examples.

        Its variance is Σ r_c (1 − r_c) / n_c / C², that of independent shares r_c of n_c examples.
        """
        right = observed == labels
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        recall = np.bincount(index, right) / counts
        error = np.sqrt((recall * (1 - recall) / counts).sum()) / len(counts)
        return Score(float(recall.mean()), float(error), right)


BALANCED_ACCURACY = METRICS.register(BalancedAccuracy("balanced accuracy", maximize=True, low=0.0, high=1.0))
