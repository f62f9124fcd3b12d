"""How Pareto Merging is trained: everything that can be set, and how it goes. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args

from mapmerge_core.errors import MapMergeError

if TYPE_CHECKING:
    import numpy as np

ScalarisationName = Literal["smooth_tchebycheff", "tchebycheff", "linear"]

_ABOVE_ZERO = ("lr", "concentration", "mu")
_NOT_NEGATIVE = ("beta_cos", "beta_norm", "balance")


@dataclass(frozen=True)
class Training:
    """Settings of Pareto Merging; the defaults are the paper's (section 4.1 and Appendix 1).

    The paper doesn't say μ; the one here is that of Lin et al., "Smooth Tchebycheff Scalarization for
    Multi-Objective Optimization", ICML 2024.

    Attributes:
        steps: Steps of Adam, with β = (0.9, 0.999).
        batch_size: Images of each task in a step, or all of them where there are fewer.
        lr: Adam's learning rate.
        rank: r, of A, B and G.
        start: What every λ starts from; of data-free merging also the coefficient in its objectives.
        concentration: p of the Dirichlet distribution that preferences are drawn from; 1 is uniform.
        scalarisation: What one number is made of the tasks' objectives.
        mu: μ of the smooth Tchebycheff scalarisation: the smaller, the nearer to the maximum.
        beta_cos: Weight of the alignment with the inverse preference.
        beta_norm: Weight of the low-rank tensors' norm.
        balance: How much of the `imbalance` of predicted classes is added to each task's entropy; the best
            possible is 0 still. Not in the paper, hence 0. Where merged models are weak, the least entropy is
            that of calling everything by one class: 1 prevents it, if classes are about equally frequent.
        data_free: Whether the objectives are distances of weights, rather than entropies of predictions.
        personalised: Names of the tensors to personalise, in which ``*`` stands for anything; None for the
            attention projections.

    Raises:
        MapMergeError: Something is out of range.
    """

    steps: int = 2000
    batch_size: int = 32
    lr: float = 1e-3
    rank: int = 16
    start: float = 0.3
    concentration: float = 1.0
    scalarisation: ScalarisationName = "smooth_tchebycheff"
    mu: float = 0.1
    beta_cos: float = 0.1
    beta_norm: float = 1.0
    balance: float = 0.0
    data_free: bool = False
    personalised: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.personalised is not None:  # JSON has lists only
            object.__setattr__(self, "personalised", tuple(self.personalised))
        for name, what in (("steps", "step"), ("batch_size", "image in a batch"), ("rank", "rank")):
            if getattr(self, name) < 1:
                raise MapMergeError(f"Pareto Merging needs at least 1 {what}, not {getattr(self, name)}.")
        for name in _ABOVE_ZERO:
            if not 0 < getattr(self, name) < float("inf"):
                raise MapMergeError(f"Pareto Merging's {name} must be above 0, not {getattr(self, name):g}.")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < float("inf"):
                raise MapMergeError(
                    f"Pareto Merging's {name} must be 0 or more, not {getattr(self, name):g}."
                )
        if not isfinite(self.start):
            raise MapMergeError(f"Pareto Merging's start must be a finite number, not {self.start:g}.")
        if self.scalarisation not in get_args(ScalarisationName):
            raise MapMergeError(
                f"There is no scalarisation '{self.scalarisation}': choose "
                f"{' or '.join(get_args(ScalarisationName))}."
            )
        if self.personalised is not None and not all(name.strip() for name in self.personalised or ("",)):
            raise MapMergeError("Name the tensors to personalise, or leave the setting out.")


@dataclass(frozen=True, eq=False)
class TrainingPoint:
    """What training a learned set had come to.

    Attributes:
        step: Steps taken.
        objective: What is minimised, the mean since the point before.
        f: The tasks' objectives (K,), likewise: entropies in nats, or of data-free training distances as
            shares of those at the start.
        seconds: What the steps since the point before took.
    """

    step: int
    objective: float
    f: np.ndarray
    seconds: float
