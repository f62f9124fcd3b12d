"""What a method is: an algorithm that decides which points of a merge to evaluate.

A method is one class in one module of this folder, decorated with `register`. It keeps no files and no clock:
a new one that is given the same arguments and values asks for the same points, which is how a stopped
run resumes and how a finished one is looked at again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core.errors import SearchError
from mapmerge_core.registries import METHODS
from mapmerge_core.registry import Helpful
from mapmerge_core.search.designs import check_points
from mapmerge_core.settings import make, setting

if TYPE_CHECKING:
    from mapmerge_core.search.spaces import Space
    from mapmerge_core.search.surrogates.fitting import LossName

register = METHODS.register


@dataclass(frozen=True)
class ObjectiveInfo:
    """What a search knows of an objective.

    Attributes:
        name: Its name, by which rules and preferences call it.
        maximize: Whether more is better.
        bounds: Its least and greatest value.
        link: The surrogate's link.
        model: The number of the model that was fine-tuned for it, None where there is none.
    """

    name: str
    maximize: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    link: str = "sigmoid"
    model: int | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Points to evaluate next, and on what.

    Attributes:
        X: Points, `m x D`.
        objectives: Which objectives to measure at every row: columns in the study's order.
    """

    X: np.ndarray
    objectives: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Choice:
    """The one model that a method leads to.

    Attributes:
        x: Its point (D,).
        values: Its objectives (K,), predicted or measured.
        feasible: Whether it meets the method's rule, if there is one.
        message: One sentence for people; "" where there is nothing to say.
    """

    x: np.ndarray
    values: np.ndarray
    feasible: bool = True
    message: str = ""


class Method(Helpful, ABC):
    """A method with its settings, on a space and K objectives.

    Args:
        space: Where the merge's points lie; the part of it to sample.
        objectives: What is measured.
        settings: An instance of ``Settings``, or those that differ from the defaults, by name.
        loss: What the fits of surrogates minimise, for methods that fit any.

    Raises:
        SearchError: The space has no coordinates, or the budget is too small or too large.
        RuleError, SettingError: A setting isn't one, or can't be used.

    Attributes:
        name: What study files, the store and the command line call it.
        title: What tables and pages call it.
        source: The paper.
        advice: When to use it, a few words.
        is_front: What its result is: the front of "surrogates" of its points, those of its points that no
            other dominates ("measured"), or a "single" model, see `chosen`.
        tolerance: By how much a point may differ on another processor and still be the same.
        per_pair: Whether ``points`` counts for each pair of models.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    is_front: ClassVar[Literal["surrogates", "measured", "single"]] = "surrogates"
    tolerance: ClassVar[float] = 0.0
    per_pair: ClassVar[bool] = False
    Settings: ClassVar[type]

    def __init__(
        self,
        space: Space,
        objectives: Sequence[ObjectiveInfo],
        settings: Any = None,  # noqa: ANN401 - an instance of Settings
        *,
        loss: LossName = "squared",
    ) -> None:
        if settings is None or isinstance(settings, dict):
            settings = make(self.Settings, settings or {}, what=self.title)
        if space.n_free == 0:
            raise SearchError(f"{self.title} has nothing to search: this merge is a single model.")
        if not objectives:
            raise SearchError(f"{self.title} needs at least one objective to measure.")
        self.space, self.objectives, self.settings, self.loss = space, tuple(objectives), settings, loss
        self.points: int = self.default_points(space) if settings.points is None else settings.points
        check_points(self.points)
        self._waiting: Batch | None = None
        self.start()

    @classmethod
    @abstractmethod
    def default_points(cls, space: Space) -> int:
        """Return its usual budget, the paper's where there is one."""

    @abstractmethod
    def start(self) -> None:
        """Check what it was given, and set `_waiting` to the first batch.

        Raises:
            SearchError, RuleError: It can't work with that.
        """

    @property
    def all_objectives(self) -> tuple[int, ...]:
        """The columns of all objectives."""
        return tuple(range(len(self.objectives)))

    @property
    def n_evaluations(self) -> int:
        """How many pairs of a point and an objective it asks for in all; an upper bound where values decide."""
        return self.points * len(self.objectives)

    @property
    def chosen(self) -> Choice:
        """The one model that it leads to.

        Raises:
            SearchError: It isn't done yet, or its result is a front.
        """
        if self._waiting is not None:
            raise SearchError(f"{self.title} isn't complete yet: evaluate what it still asks for.")
        return self.choose()

    def choose(self) -> Choice:
        """Return the one model that it leads to; a method whose result is a single one overrides this."""
        raise SearchError(f"{self.title} leads to a front, not to one model: choose from it by a preference or a rule.")

    def ask(self) -> Batch | None:
        """Return what to evaluate next, the same batch until `tell` takes its values; None once the method is done."""
        return self._waiting

    def tell(self, batch: Batch, values: ArrayLike) -> None:
        """Take the values of what was asked for.

        Args:
            batch: What `ask` returned.
            values: A row for each of ``batch.X`` and a column for each of its objectives.

        Raises:
            SearchError: The batch isn't the one that was asked for, the values don't fit it, or a surrogate
                can't be fitted to them; the method is then as it was.
        """
        table = np.asarray(values, dtype=np.float64)
        asked = self._waiting
        if asked is None or batch.objectives != asked.objectives or not np.array_equal(batch.X, asked.X):
            raise SearchError("These values aren't those that were asked for: tell the batch that `ask` returned.")
        if table.shape != (len(batch.X), len(batch.objectives)) or not np.isfinite(table).all():
            raise SearchError(
                f"{len(batch.X)} points on {len(batch.objectives)} objectives need as many finite values, not an "
                f"array of shape {table.shape}."
            )
        self._waiting = self.take(batch, table)

    @abstractmethod
    def take(self, batch: Batch, values: np.ndarray) -> Batch | None:
        """Learn from the values (`m x K` floats) of a batch, and return the next one, None at the end."""


def anchors_setting() -> Any:  # noqa: ANN401 - as `setting`
    """Declare whether a design starts with the space's anchors."""
    return setting(
        True,
        advanced=True,
        help="Whether the space's anchors come first, such as the pre-trained and single-task models.",
    )


def links_of(objectives: Sequence[ObjectiveInfo]) -> list[tuple[str, tuple[float, float]]]:
    """Return each objective's link and bounds."""
    return [(objective.link, objective.bounds) for objective in objectives]


def weights_of(weights: Mapping[str, float], objectives: Sequence[ObjectiveInfo]) -> list[float]:
    """Return weights by name as a list in the order of the objectives, 0 for those without.

    Raises:
        SearchError: A name is none of theirs.
    """
    names = [objective.name for objective in objectives]
    for name in weights:
        if name not in names:
            raise SearchError(f"There is no objective '{name}': choose from {', '.join(names)}.")
    return [float(weights.get(name, 0.0)) for name in names]
