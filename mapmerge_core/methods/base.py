"""What every method has in common: it asks for evaluations and is told their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Method(Protocol):
    """An algorithm that decides which coefficients to evaluate.

    The runner alternates ``ask`` and ``tell`` until ``ask`` returns no rows. A method keeps no files and no
    clock: a new one with the same arguments that is told the same values asks for the same coefficients,
    which is how a stopped run resumes.
    """

    @property
    def points(self) -> int:
        """Coefficient vectors that the method will ask for in all."""
        ...

    def ask(self) -> np.ndarray:
        """Coefficients wanted next, an ``m x N`` array; ``0 x N`` once the method is done."""
        ...

    def tell(self, C: np.ndarray, values: np.ndarray) -> None:
        """Takes the values (``m x K``, in the study's order of tasks) of the rows of ``C`` (``m x N``)."""
        ...
