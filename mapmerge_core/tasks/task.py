"""A task: what a merged model is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Task:
    """A dataset with a metric.

    Attributes:
        name: Its name.
        data: Where its examples come from; None where a person's own callable brings them.
        metric: What is measured.
    """

    name: str
    data: DataSource | None
    metric: Metric = ACCURACY

    @classmethod
    def from_file(cls, name: str, path: Path | str, metric: Metric = ACCURACY) -> Task:
        """A task whose dataset needs no further settings: a file, a folder or an address."""
        return cls(name, DataSource(path=path), metric)

    @property
    def source(self) -> DataSource:
        """Its data.

        Raises:
            DatasetError: It has none.
        """
        if self.data is None:
            raise DatasetError(f"The task '{self.name}' has no dataset to measure models on: add one.")
        return self.data
