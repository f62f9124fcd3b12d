"""Linear classifiers on frozen features."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mapmerge_core.errors import MapMergeError

# In cross-validation on 1,000 training images (512 features) of each of four tasks, from here to ten times it
# accuracy is within half a point of the best.
_INVERSE_REGULARISATION = 0.03
_ITERATIONS = 200
# Of a class that no training image shows, so that it is never predicted, as scikit-learn's own models do.
_NEVER = -1e4


def fit_head(features: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Fit a linear classifier.

    Args:
        features: n x d, float32.
        labels: n integers, of two classes or more.
        n_classes: How many classes the dataset names.

    Returns:
        (d + 1) x n_classes, float32: weights of the features as they are, and in the last row the bias.

    Raises:
        MapMergeError: A feature is NaN or infinite.
    """
    if not np.isfinite(features).all():
        raise MapMergeError(
            "The features of the model at these coefficients are not finite numbers: sample a smaller box."
        )
    scaler = StandardScaler()
    standard = scaler.fit_transform(features.astype(np.float64))
    classifier = LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # The last iterations change accuracy by less than its error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(standard, labels)
    weights, bias = classifier.coef_, classifier.intercept_
    if len(classifier.classes_) == 2:  # which scikit-learn tells apart by one number, the log of the odds
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / scaler.scale_
    head = np.zeros((features.shape[1] + 1, n_classes), np.float32)
    head[-1] = _NEVER
    head[:-1, classifier.classes_] = weights.T
    head[-1, classifier.classes_] = bias - weights @ scaler.mean_
    return head
