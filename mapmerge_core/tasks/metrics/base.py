"""What a metric is: from a model's predictions to one number and its standard error, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mapmerge_core.errors import MapMergeError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's value on n examples.

    Attributes:
        value: The metric.
        standard_error: How far it may be from the value on all data like these; None where it isn't known.
        per_example: One number for each example (n): bool for right or wrong, or float32.
    """

    value: float
    standard_error: float | None = None
    per_example: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.float32))


class Predictions:
    """What a model predicts for a batch of n examples; everything derived is computed once, when first used.

    Args:
        logits: n x classes, float32.
        labels: n classes, int64.
        losses: n losses, float32; by default the cross-entropy of ``logits`` and ``labels``, in nats.
    """

    def __init__(
        self, logits: Tensor | None = None, labels: Tensor | None = None, losses: Tensor | None = None
    ) -> None:
        self._logits, self._labels, self._losses = logits, labels, losses

    @property
    def logits(self) -> Tensor:
        """The logits, n x classes, float32."""
        return _there(self._logits, "logits")

    @property
    def labels(self) -> Tensor:
        """Return the true classes, n, int64."""
        return _there(self._labels, "labels")

    @cached_property
    def predicted(self) -> Tensor:
        """Return the classes with the largest logits, n, int64."""
        return self.logits.argmax(dim=1)

    @cached_property
    def losses(self) -> Tensor:
        """Return the losses, n, float32, in nats."""
        if self._losses is not None:
            return self._losses
        return -self.logits.log_softmax(dim=1).gather(1, self.labels[:, None])[:, 0]


def _there(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise MapMergeError(f"This family of models gives no {name}: choose another metric.")
    return tensor


@dataclass(frozen=True)
class Metric:
    """A number with a direction and bounds, and how it is computed.

    A subclass says how: what to `observe` of each example on the model's device, and the `score` of all
    that was observed. A plain instance has no function of its own: a family of models that lists it in its
    ``metrics`` computes its value.

    Attributes:
        name: What study files call it, such as ``"accuracy"``.
        maximize: Whether more is better.
        low: Its least possible value, or ``-math.inf``.
        high: Its greatest possible value, or ``math.inf``.
        title: What pages call it; by default its name.
        needs: What it looks at, names of `Predictions`' attributes: families give some of them, see ``Family.gives``.
        observes: Names what it observes; metrics that observe the same thing share one name, so that it is
            collected once.
        is_share_right: Whether it is the share of examples that are right, with a binomial error.
        is_mean: Whether it is the mean of `Score.per_example`, so that some examples estimate that of all.
    """

    name: str
    maximize: bool
    low: float = -math.inf
    high: float = math.inf
    title: str = field(default="", compare=False)

    needs: ClassVar[frozenset[str]] = frozenset()
    observes: ClassVar[str] = ""
    is_share_right: ClassVar[bool] = False
    is_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.name:
            raise MapMergeError("A metric needs a name: give it one.")
        if math.isnan(self.low) or math.isnan(self.high) or not self.low < self.high:
            raise MapMergeError(
                f"The metric '{self.name}' can't lie between {self.low:g} and {self.high:g}: give a lower "
                "bound below the upper one."
            )
        if not self.title:
            object.__setattr__(self, "title", self.name[:1].upper() + self.name[1:])

    @property
    def help(self) -> str:
        """One sentence that says what it is."""
        return next(iter((type(self).__doc__ or "").strip().splitlines()), "") if self.is_computed else ""

    @property
    def is_computed(self) -> bool:
        """Return whether it computes its own value from predictions; otherwise a family of models does."""
        return bool(self.needs)

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest possible value."""
        return self.low, self.high

    @property
    def link(self) -> Literal["identity", "softplus", "sigmoid"]:
        """Return the surrogate's link that keeps predictions inside the bounds (MAP, Section 4.1)."""
        n_bounds = math.isfinite(self.low) + math.isfinite(self.high)
        return ("identity", "softplus", "sigmoid")[n_bounds]

    @property
    def is_share(self) -> bool:
        """Return whether it lies in [0, 1] and is therefore shown in percent."""
        return self.low == 0.0 and self.high == 1.0

    def observe(self, batch: Predictions) -> Tensor:
        """Return one number for each of a batch's n examples, on the device that the predictions are on."""
        raise NotImplementedError

    def score(self, observed: NDArray[Any], labels: NDArray[Any]) -> Score:
        """Return the metric of n examples.

        Args:
            observed: What `observe` returned for them, n numbers.
            labels: Their true classes, n integers; empty where there are none.
        """
        raise NotImplementedError


class MetricOfClasses(Metric):
    """A metric of predicted classes, which are collected once for all of its kind."""

    needs = frozenset({"labels", "predicted"})
    observes = "predicted"

    def observe(self, batch: Predictions) -> Tensor:
        return batch.predicted


class Observer:
    """Collects what metrics observe of n examples, batch by batch, on the model's device.

    Args:
        metrics: Metrics that compute their own values; those that observe the same thing share it.
        n: How many examples there are.
    """

    def __init__(self, metrics: Iterable[Metric], n: int) -> None:
        self._metrics, self._n = tuple(metrics), n
        self._by_record = {metric.observes or metric.name: metric for metric in self._metrics}
        self._records: dict[str, Tensor] = {}

    def add(self, start: int, batch: Predictions) -> None:
        """Observe a batch, the examples from ``start`` on."""
        for record, metric in self._by_record.items():
            observed = metric.observe(batch)
            if record not in self._records:
                self._records[record] = observed.new_empty(self._n)
            self._records[record][start : start + len(observed)] = observed

    def scores(self, labels: NDArray[Any]) -> dict[Metric, Score]:
        """Return every metric's score; what was observed is fetched from the device once.

        Args:
            labels: The examples' true classes, n integers; empty where there are none.
        """
        observed = {record: tensor.cpu().numpy() for record, tensor in self._records.items()}
        return {metric: metric.score(observed[metric.observes or metric.name], labels) for metric in self._metrics}
