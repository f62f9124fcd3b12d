"""A task: data that merged models are measured on, and by which metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.metrics.accuracy import ACCURACY

if TYPE_CHECKING:
    from mapmerge_core.tasks.metrics.base import Metric


@dataclass(frozen=True)
class Task:
    """Data with one or several metrics.

    Attributes:
        name: Its name.
        data: Where its examples come from; None where a person's own function brings them.
        metrics: What is measured, all by one pass over the data.
        model: The name of the model that was fine-tuned for it, or None.

    Raises:
        DatasetError: There is no metric, or one is named twice.
    """

    name: str
    data: DataSource | None
    metrics: tuple[Metric, ...] = (ACCURACY,)
    model: str | None = None

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if not names:
            raise DatasetError(f"The task '{self.name}' has no metric: give it one.")
        for name in names:
            if names.count(name) > 1:
                raise DatasetError(f"The task '{self.name}' has the metric '{name}' twice: name each once.")

    @classmethod
    def from_file(cls, name: str, path: Path | str, metric: Metric = ACCURACY, *, model: str | None = None) -> Task:
        """Return a task whose data need no further settings: a file, a folder or an address."""
        return cls(name, DataSource(path=path), (metric,), model)

    @property
    def source(self) -> DataSource:
        """Its data.

        Raises:
            DatasetError: It has none.
        """
        if self.data is None:
            raise DatasetError(f"The task '{self.name}' has no dataset to measure models on: add one.")
        return self.data
