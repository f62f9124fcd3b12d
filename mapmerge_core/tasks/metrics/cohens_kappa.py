"""Cohen's kappa."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics.base import MetricOfClasses, Score


class CohensKappa(MetricOfClasses):
    """Accuracy beyond what guessing with the same class frequencies has: 1 at best, 0 for guessing."""

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:
        """Return (p_o − p_e) / (1 − p_e) (Cohen, 1960); 1 where all examples have one class and are right.

        Its error is the large-sample one of Fleiss, Cohen and Everitt (1969, Equation 13).
        """
        right, n = observed == labels, len(observed)
        _, both = np.unique(np.concatenate([labels, observed]), return_inverse=True)
        true, predicted = both[:n], both[n:]
        rows, columns = (np.bincount(of, minlength=both.max() + 1) / n for of in (true, predicted))
        by_chance = float(rows @ columns)
        if by_chance == 1:
            return Score(1.0, None, right)
        kappa = 1 - (1 - right.mean()) / (1 - by_chance)
        terms = right - (1 - kappa) * (columns[true] + rows[predicted])
        return Score(float(kappa), float(terms.std() / np.sqrt(n) / (1 - by_chance)), right)


COHENS_KAPPA = METRICS.register(CohensKappa("Cohen's kappa", maximize=True, low=-1.0, high=1.0))
