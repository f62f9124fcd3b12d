"""What every method has in common: it asks for evaluations and is told their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mapmerge_core.errors import SearchError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Batch:
    """Coefficients to evaluate next, and on what.

    Attributes:
        C: Coefficients, ``m x N``.
        tasks: Which tasks to measure at every row: columns in the study's order of tasks.
    """

    C: np.ndarray
    tasks: tuple[int, ...]


class Method(Protocol):
    """An algorithm that decides which coefficients to evaluate.

    The runner alternates ``ask`` and ``tell`` until ``ask`` returns None. A method keeps no files and no
    clock: a new one with the same arguments that is told the same values asks for the same coefficients,
    which is how a stopped run resumes.
    """

    @property
    def n_evaluations(self) -> int:
        """Pairs of coefficients and task that the method will ask for in all."""
        ...

    def ask(self) -> Batch | None:
        """What is wanted next, the same until it has been told; None once the method is done."""
        ...

    def tell(self, batch: Batch, values: ArrayLike) -> None:
        """Takes the values of what was asked for, a row for each of ``batch.C`` and a column a task of it.

        Raises:
            SearchError: where the batch isn't the one that was asked for, or the values don't fit it.
        """
        ...


def check_told(asked: Batch | None, batch: Batch, values: ArrayLike) -> np.ndarray:
    """Makes sure that what a method is told is what it asked for, and returns it as ``m x K`` floats.

    Raises:
        SearchError: where it isn't, or a value is missing.
    """
    table = np.asarray(values, dtype=np.float64)
    if asked is None or batch.tasks != asked.tasks or not np.array_equal(batch.C, asked.C):
        raise SearchError("A method is told what it asked for: tell the batch that `ask` returned.")
    if table.shape != (len(batch.C), len(batch.tasks)) or not np.isfinite(table).all():
        raise SearchError(
            f"{len(batch.C)} coefficients on {len(batch.tasks)} tasks need as many finite values, not an "
            f"array of shape {table.shape}."
        )
    return table
