"""What a family of models is: how parameters become predictions.

A family that comes with mapmerge, or in another package, is one light class that says all that is known of
it, decorated with `register`; its ``implementation`` names the class, derived from it, that holds a model and
needs torch. A family of one's own may be one class for both (see the README).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mapmerge_core.errors import MapMergeError
from mapmerge_core.registries import FAMILIES, METRICS
from mapmerge_core.registry import Helpful
from mapmerge_core.settings import NoSettings, fields_of
from mapmerge_core.settings import make as make_settings
from mapmerge_core.tasks.metrics.accuracy import ACCURACY

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mapmerge_core.tasks.metrics.base import Metric, Score
    from mapmerge_core.tasks.task import Task
    from mapmerge_core.weights.io.hub import HubRef

register = FAMILIES.register


class Family(Helpful, ABC):
    """How parameters become predictions; one object holds one model, into which merges are written.

    Made with an architecture's name or file, a local checkpoint or folder of the pre-trained model and, where
    ``Settings`` has fields, an instance of it. `Evaluator` calls `use` once; for each merge it writes into
    `model_in`, calls `merged`, then `measure` for each task.

    Attributes:
        name: What study files call it.
        title: What people call it.
        examples: What its datasets hold; None where a person's own code brings its data.
        metrics: The metrics to offer first, the usual one at the head, and those whose values `measure`
            computes by itself; empty where only its code knows.
        gives: What its predictions hold, names of `Predictions`' attributes: it can measure every metric that
            needs no more.
        needs_architecture: Whether a study names one; otherwise the pre-trained model's folder tells.
        gives_logits: Whether it has ``images``, ``head`` and ``class_logits`` as `ImageClassifier` has, which
            merges that look at data need.
        library: The library that loads its models, which a model card names, or "".
        part: The prefix of the checkpoint's keys that are merged; "" for all.
        implementation: The class that holds a model, as ``module:class``; "" for this one.
        Settings: Its own settings, the ``options`` of a study file.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    examples: ClassVar[Literal["images", "texts"] | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    gives: ClassVar[frozenset[str]] = frozenset()
    needs_architecture: ClassVar[bool] = False
    gives_logits: ClassVar[bool] = False
    library: ClassVar[str] = ""
    part: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
    Settings: ClassVar[type] = NoSettings

    # What is known of a family before its model's libraries are imported.

    @classmethod
    def usual_metric(cls) -> Metric | None:
        """Return what is measured unless a study says otherwise; None where a study must say."""
        return cls.metrics[0] if cls.metrics else None

    @classmethod
    def measurable(cls) -> tuple[Metric, ...]:
        """Return all metrics that it can measure, the usual one first; empty where only its code knows."""
        others = [metric for metric in METRICS if metric not in cls.metrics and cls.can_measure(metric)]
        return (*cls.metrics, *others)

    @classmethod
    def can_measure(cls, metric: Metric) -> bool:
        """Return whether it can measure a metric."""
        return metric in cls.metrics or (metric.is_computed and metric.needs <= cls.gives)

    @classmethod
    def options_for(cls, pretrained: Path | HubRef) -> dict[str, Any]:  # noqa: ARG003
        """Return the settings that follow from where the pre-trained model comes from."""
        return {}

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Make sure that a study's options are settings of it.

        Raises:
            SettingError: One is unknown or has a wrong value.
        """
        make_settings(cls.Settings, options, what=f"The family {cls.title or cls.name or cls.__name__}")

    # What its model's libraries are needed for.

    @classmethod
    def loaded(cls) -> type[Family]:
        """Import and return the class that holds a model.

        Raises:
            MapMergeError: It is a person's own and can't be imported.
        """
        if not cls.implementation:
            return cls
        module, _, attribute = cls.implementation.partition(":")
        implementation: type[Family] = getattr(import_module(module), attribute)
        return implementation

    @classmethod
    def make(cls, architecture: str, pretrained: Path, options: Mapping[str, Any], tasks: Sequence[Task]) -> Family:
        """Return the family holding a pre-trained model.

        Args:
            architecture: An architecture's name or configuration file; "" where the folder tells.
            pretrained: A local checkpoint or folder.
            options: Its settings by name.
            tasks: The study's tasks.

        Raises:
            SettingError: A setting is unknown or has a wrong value.
            CheckpointError: The model can't be made.
            MapMergeError: It is a person's own and can't be imported.
        """
        del tasks
        cls.check_options(options)
        given: Any = make_settings(cls.Settings, options, what=cls.title)
        implementation: Any = cls.loaded()
        family: Self = implementation(architecture, pretrained, *([given] if fields_of(cls.Settings) else []))
        return family

    @classmethod
    def has_extras(cls) -> bool:
        """Return whether an export holds more than the merge (see `extras`).

        Raises:
            MapMergeError: It is a person's own and can't be imported.
        """
        return cls.loaded().extras is not Family.extras

    @classmethod
    def left_out(cls, architecture: str, pretrained: Path) -> tuple[str, ...]:  # noqa: ARG003
        """Return the names of tensors that aren't merged, such as heads that each task has of its own."""
        return ()

    @classmethod
    def preprocessing(cls, architecture: str, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Return how images are prepared where a program that loads an export must be told."""
        return {}

    @classmethod
    def exported_like(cls, architecture: str, pretrained: Path) -> Path | None:  # noqa: ARG003
        """Return the folder or configuration file whose form an export repeats, None for one bare file."""
        return pretrained if (pretrained / "config.json").is_file() else None

    # The model.

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        import torch

        return self.__dict__.get("_device") or torch.device("cpu")

    @device.setter
    def device(self, device: torch.device | str) -> None:
        import torch

        self.__dict__["_device"] = torch.device(device)

    @abstractmethod
    def model_in(self, dtype: torch.dtype) -> nn.Module:
        """Return the module to merge into for ``dtype``, float32 or bfloat16, on `device`."""

    @abstractmethod
    def prepare(self, task: Task, split: str) -> None:
        """Load what measuring needs, so that the first `measure` takes no longer than the next.

        Raises:
            DatasetError: The task's dataset can't be read.
        """

    @abstractmethod
    def measure(
        self, task: Task, split: str, dtype: torch.dtype, batch_size: int, examples: NDArray[np.intp] | None = None
    ) -> Mapping[Metric, Score]:
        """Measure the model as it was last merged for ``dtype``.

        Args:
            task: A task, with the metrics to measure.
            split: "val" or "test".
            dtype: float32 or bfloat16.
            batch_size: Examples in a batch.
            examples: The examples to measure, in this order; all by default. A family whose `n_examples` says
                nothing is asked for all of them always, and needn't take this argument.

        Returns:
            A score for each of the task's metrics, with one number for each example, in the split's order or
            that of ``examples``; scores of other metrics are ignored.
        """

    def n_examples(self, task: Task, split: str) -> int:  # noqa: ARG002
        """Return how many examples a split has, for families that can measure some of them.

        Raises:
            DatasetError: The task's dataset can't be read.
            MapMergeError: This family measures whole splits only.
        """
        raise MapMergeError(
            "This family of models measures whole validation splits only: leave the number of images out."
        )

    def strata(self, task: Task, split: str) -> NDArray[np.intp] | None:  # noqa: ARG002
        """Return a split's classes (n,), of which parts of it get their share, or None.

        Raises:
            DatasetError: The task's dataset can't be read.
        """
        return None

    def at_once(self, task: Task, split: str, batch_size: int) -> int:  # noqa: ARG002
        """Return how many examples pass the model together where ``batch_size`` are asked for.

        Raises:
            DatasetError: The task's dataset can't be read.
        """
        return batch_size

    def to(self, device: torch.device | str) -> None:
        """Move the model, in place."""
        import torch

        self.device = torch.device(device)
        self.model_in(torch.float32).to(self.device)

    def merged(self, dtype: torch.dtype) -> None:
        """Do what follows each merge, before it is measured; by default nothing."""

    def extras(self) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """Return what an export of the model as it was last merged for float32 holds besides the merge.

        Returns:
            Tensors by the model's names that replace the merged ones, and files of tensors by name.
        """
        return {}, {}

    def use(self, tasks: Sequence[Task]) -> None:
        """Take note of the tasks, before anything is prepared or measured.

        Raises:
            MapMergeError: A task has a metric that this family can't measure.
        """
        for task in tasks:
            for metric in task.metrics:
                if not self.can_measure(metric):
                    known = ", ".join(known.name for known in self.measurable())
                    raise MapMergeError(
                        f"'{task.name}' can't be measured by {metric.name} with this family of models: choose {known}."
                    )
