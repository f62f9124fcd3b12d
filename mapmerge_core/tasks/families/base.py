"""What a family of models is: how parameters become predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from mapmerge_core.errors import MapMergeError
from mapmerge_core.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mapmerge_core.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Scores:
    """A model measured on a task.

    Attributes:
        value: The task's metric.
        per_example: One number for each example (n) in the split's order, or in the order asked for: bool
            for right or wrong, or float32 losses.
    """

    value: float
    per_example: np.ndarray


class Family(ABC):
    """How parameters become predictions; one object holds one model, into which merges are written.

    Made with an architecture's name or file, a local checkpoint or folder of the pre-trained model, and the
    family's own settings by name. `Evaluator` calls `use` once; for each merge it writes into `model_in`,
    calls `merged`, then `measure` for each task.

    Attributes:
        part: The prefix of the checkpoint's keys that are merged; ``""`` for all.
        metrics: What it can measure, the usual one first.
        gives_logits: Whether it has ``images``, ``head`` and ``class_logits`` as `ImageClassifier` has, which
            merges that look at data (Fisher, RegMean, AdaMerging) need.
        options: Names of its own settings, keyword arguments of its constructor.
        device: Where the model is.
    """

    part: ClassVar[str] = ""
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    gives_logits: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    device: torch.device = torch.device("cpu")

    @classmethod
    def left_out(cls, architecture: str, pretrained: Path) -> tuple[str, ...]:  # noqa: ARG003
        """Returns the names of tensors that aren't merged, such as heads that each task has of its own."""
        return ()

    @abstractmethod
    def model_in(self, dtype: torch.dtype) -> nn.Module:
        """Returns the module to merge into for ``dtype``, float32 or bfloat16, on `device`."""

    @abstractmethod
    def prepare(self, task: Task, split: str) -> None:
        """Loads what measuring needs, so that the first `measure` takes no longer than the next.

        Args:
            task: A task.
            split: ``"val"`` or ``"test"``.

        Raises:
            DatasetError: Its dataset can't be read.
        """

    @abstractmethod
    def measure(
        self,
        task: Task,
        split: str,
        dtype: torch.dtype,
        batch_size: int,
        examples: NDArray[np.intp] | None = None,
    ) -> Scores:
        """Measures the model as it was last merged for ``dtype``.

        Args:
            task: A task.
            split: ``"val"`` or ``"test"``.
            dtype: float32 or bfloat16.
            batch_size: Examples in a batch.
            examples: The examples to measure, in this order; all by default. A family whose `n_examples` says
                nothing is asked for all of them always, and needn't take this argument.
        """

    def n_examples(self, task: Task, split: str) -> int:  # noqa: ARG002
        """Returns how many examples a split has, for families that can measure some of them.

        Raises:
            DatasetError: The task's dataset can't be read.
            MapMergeError: This family measures whole splits only.
        """
        raise MapMergeError(
            "This family of models measures whole validation splits only: leave the number of images out."
        )

    def strata(self, task: Task, split: str) -> NDArray[np.intp] | None:  # noqa: ARG002
        """Returns a split's classes (n,), of which some of its examples get their share, or None.

        Raises:
            DatasetError: The task's dataset can't be read.
        """
        return None

    def at_once(self, task: Task, split: str, batch_size: int) -> int:  # noqa: ARG002
        """Returns how many examples pass the model together where ``batch_size`` are asked for.

        Raises:
            DatasetError: The task's dataset can't be read.
        """
        return batch_size

    def to(self, device: torch.device | str) -> None:
        """Moves the model, in place."""
        self.device = torch.device(device)
        self.model_in(torch.float32).to(self.device)

    def merged(self, dtype: torch.dtype) -> None:  # noqa: B027 - most families have nothing to do
        """Called after each merge and before it is measured; by default nothing happens."""

    def extras(self) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """What an export of the model as it was last merged for float32 holds besides the merge.

        Returns:
            Tensors by the model's names that replace the merged ones, and files of tensors by name.
        """
        return {}, {}

    def use(self, tasks: Sequence[Task]) -> None:
        """Says which tasks there are, before anything is prepared or measured.

        Raises:
            MapMergeError: A task's metric is none that this family can measure.
        """
        for task in tasks:
            if task.metric not in self.metrics:
                known = ", ".join(metric.name for metric in self.metrics)
                raise MapMergeError(
                    f"'{task.name}' can't be measured by {task.metric.name} with this family of models: "
                    f"choose {known}."
                )
