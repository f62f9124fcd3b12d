"""Metrics: each is one module, with its value, its standard error and what it needs of predictions."""

from mapmerge_core.tasks.metrics.accuracy import ACCURACY
from mapmerge_core.tasks.metrics.base import Metric, Observer, Predictions, Score
from mapmerge_core.tasks.metrics.loss import LOSS

__all__ = ["ACCURACY", "LOSS", "Metric", "Observer", "Predictions", "Score"]
