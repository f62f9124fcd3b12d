"""The F1 score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import MetricOfClasses, Score


class F1(MetricOfClasses):
    """Mean over the classes of the harmonic mean of precision and recall."""

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:
        """Return the mean F1 of the classes that have examples.

        F1 of class c is 2 TP_c / (T_c + P_c), of right ones, of true ones and of predicted ones. Its error follows from
        the delta method: example i changes it by (2 [right] − F1_c ([true] + [predicted])) / (T_c + P_c).
        """
        right = observed == labels
        classes, true = np.unique(labels, return_inverse=True)
        predicted = np.searchsorted(classes, observed).clip(max=len(classes) - 1)
        is_known = classes[predicted] == observed  # a prediction of any other class is only a miss
        total = np.bincount(true, minlength=len(classes)) + np.bincount(predicted, is_known, len(classes))
        f1 = 2 * np.bincount(true, right, len(classes)) / total
        change = (2 * right - f1[true]) / total[true] - is_known * (f1 / total)[predicted]
        return Score(float(f1.mean()), float(np.sqrt((change**2).sum()) / len(classes)), right)


F1_SCORE = METRICS.register(F1("F1", maximize=True, low=0.0, high=1.0))
