"""What a merge is: an operator that turns a point x of its space into a model, θ = merge(x).

A merge is one class in one module of this folder, decorated with `register`. It carries its name, title, help
(the docstring's first line), settings, what it needs of a study, its space, and how it is prepared. Nothing
here imports torch, so that forms, flags and tables can describe every merge at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar

from mapmerge_core.errors import CheckpointError, MapMergeError, StudyError
from mapmerge_core.registries import MERGES
from mapmerge_core.registry import Helpful
from mapmerge_core.settings import NoSettings, make
from mapmerge_core.settings import label as label_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from mapmerge_core.search.spaces import Space
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.tasks.objective import Objective
    from mapmerge_core.weights.vectors.streamed import Vectors

Progress = Callable[[int, int], None]
Report = Callable[["TrainingPoint"], None]

register = MERGES.register


@dataclass(frozen=True)
class Needs:
    """What a merge needs of a study.

    Attributes:
        data: Validation examples of a task of each model's own.
        logits: A family that gives logits, through which gradients flow.
        whole_models: Task vectors in memory, in float32: not of adapters, nor left on disk.
        n_models: How many models; None for any number.
    """

    data: bool = False
    logits: bool = False
    whole_models: bool = False
    n_models: int | None = None


@dataclass(frozen=True)
class StudyFacts:
    """What a merge needs to know of a study to say whether it can serve it.

    Attributes:
        models: The N models' names.
        objectives: The K objectives.
        tasks_with_data: The names of the tasks that have examples.
        gives_logits: Whether the family does.
        in_low_rank: Whether a model is an adapter, so that task vectors stay in low rank.
        vectors: How task vectors are held: "float32" or "bfloat16".
    """

    models: tuple[str, ...]
    objectives: tuple[Objective, ...] = ()
    tasks_with_data: frozenset[str] = frozenset()
    gives_logits: bool = False
    in_low_rank: bool = False
    vectors: str = "float32"

    def own_task(self, model: str) -> str | None:
        """Return the first task with data that ``model`` was fine-tuned for, None if there is none."""
        tasks = (o.task for o in self.objectives if o.model == model and o.task in self.tasks_with_data)
        return next(tasks, None)


@dataclass(frozen=True, eq=False)
class TrainingPoint:
    """How far a training run is.

    Attributes:
        step: Steps taken.
        objective: What is minimised, the mean since the point before.
        f: A `N` array of each model's own objective, likewise.
        seconds: What the steps since the point before took.
    """

    step: int
    objective: float
    f: np.ndarray
    seconds: float


class PreparedMerge(ABC):
    """A merge of a study's models, ready to turn points into models.

    Args:
        space: Where its points lie.
        vectors: The study's task vectors (or what the merge made of them) on the evaluator's device.
        exported: The same on the CPU, as an export merges them.
    """

    def __init__(self, space: Space, vectors: Vectors, exported: Vectors) -> None:
        self.space, self.vectors, self.exported = space, vectors, exported

    @abstractmethod
    def write(self, module: nn.Module, x: ArrayLike) -> None:
        """Make ``module`` the model at ``x``, in place, the fast way: for the validation split.

        Raises:
            PointError: ``x`` is no point of the space.
        """

    @abstractmethod
    def write_exact(self, module: nn.Module, x: ArrayLike) -> None:
        """Make ``module`` the model at ``x`` bit for bit as `tensors` gives it, computed on the CPU.

        Raises:
            PointError: ``x`` is no point of the space.
        """

    @abstractmethod
    def tensors(self, x: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        """Return the whole merged model, one tensor at a time on the CPU, in the checkpoint's dtypes.

        Raises:
            PointError: ``x`` is no point of the space.
        """

    def coefficients(self, x: ArrayLike) -> np.ndarray | None:
        """Return the coefficients of the study's own task vectors that give the model at ``x``.

        Returns:
            A `N` array where the model is θ_pre + Σ c_n v_n, an `L x N` array (a row for each of
            ``exported.layers``) where each tensor has coefficients of its own, None where it is no such sum.
        """
        del x
        return None

    def save(self, path: Path) -> None:
        """Write all that `Merge.load` needs; only for merges that have a state.

        Raises:
            ExportError: The file can't be written.
        """
        raise NotImplementedError(f"{type(self).__name__} has no state to keep: it is made again in no time.")


class Merge(Helpful, ABC):
    """A merge with its settings.

    Args:
        settings: An instance of ``Settings``, or those that differ from the defaults, by name.

    Raises:
        SettingError: A setting is unknown or out of bounds.

    Attributes:
        name: What study files, the store and the command line call it.
        title: What tables and plots call it.
        source: The paper.
        needs: What it needs of a study.
        has_state: Whether what preparation finds out is kept in a file (`PreparedMerge.save`).
        is_trained: Whether preparation is a training run, which reports `TrainingPoint` and resumes from its
            checkpoint.
        searches_scalar: Whether the best single scalar along the box's diagonal is a baseline of it, too.
        variants: The settings with which comparisons offer it as a baseline.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str] = ""
    has_state: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False
    searches_scalar: ClassVar[bool] = False
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    needs: Needs = Needs()
    Settings: ClassVar[type] = NoSettings

    def __init__(self, settings: Any = None) -> None:  # noqa: ANN401 - an instance of Settings
        if settings is None or isinstance(settings, Mapping):
            settings = make(self.Settings, settings or {}, what=self.title)
        self.settings = settings

    @property
    def label(self) -> str:
        """Its title and those settings that differ from the defaults."""
        changed = label_of(self.settings)
        return f"{self.title} ({changed})" if changed else self.title

    @abstractmethod
    def space(self, models: Sequence[str]) -> Space:
        """Return where its points lie, for the models with these names."""

    def check(self, facts: StudyFacts) -> None:
        """Make sure that it can merge a study's models.

        Raises:
            StudyError: It can't; the sentence says why.
            SearchError: There are too few models for its space.
        """
        needs = self.needs
        self.space(facts.models)
        if needs.logits and not facts.gives_logits:
            raise StudyError(f"{self.title} needs the logits of image classifiers: choose another merge.")
        if needs.whole_models and facts.in_low_rank:
            raise StudyError(f"{self.title} needs whole models, and adapters stay in low rank: choose another merge.")
        if needs.whole_models and facts.vectors != "float32":
            raise StudyError(f"{self.title} looks into the task vectors, which takes float32: hold them in float32.")
        if needs.data:
            for model in facts.models:
                if facts.own_task(model) is None:
                    raise StudyError(
                        f"{self.title} needs examples of a task of the model '{model}': add a task with that "
                        "model and a dataset, or choose another merge."
                    )

    def check_models(self, models: Sequence[str]) -> None:
        """Make sure that it can merge as many models.

        Raises:
            StudyError: It can't.
        """
        n = self.needs.n_models
        if n is not None and n != len(models):
            raise StudyError(
                f"{self.title} merges {n} models, not {len(models)} ({', '.join(models)}): choose another "
                f"merge or a study of {n} models."
            )

    def prepare(
        self,
        evaluator: Evaluator,
        *,
        progress: Progress | None = None,
        cancel: Event | None = None,
        checkpoint: Path | None = None,
        report: Report | None = None,
    ) -> PreparedMerge:
        """Find out all that turning points into models takes, which may be long.

        Here for merges that find out nothing but what `load` does.

        Args:
            evaluator: Whose family, task vectors and tasks to use; it measures as before afterwards.
            progress: Called with what is done and its total.
            cancel: Set it to stop.
            checkpoint: Where a training run is kept every few seconds, and resumed from if the file is there.
            report: Called with how far a training run is, about a hundred times.

        Raises:
            Cancelled: Once ``cancel`` is set.
            MapMergeError: The models or data don't allow it, or the device runs out of memory.
        """
        del progress, cancel, checkpoint, report
        return self.load(None, evaluator.vectors, evaluator.exported_vectors)

    @abstractmethod
    def load(self, state: Path | None, vectors: Vectors, exported: Vectors) -> PreparedMerge:
        """Return what `prepare` gave, without the evaluator.

        Args:
            state: What `PreparedMerge.save` wrote; None for a merge without state.
            vectors: As ``Evaluator.vectors``.
            exported: As ``Evaluator.exported_vectors``.

        Raises:
            CheckpointError: The file can't be read, is damaged, or is of another merge or other models.
        """

    def baselines(self, models: Sequence[str]) -> tuple[tuple[str, np.ndarray], ...]:
        """Return the titles and points with which a comparison shows it without a search."""
        return ((self.label, self.space(models).default),)

    def passes(self, sizes: Sequence[int]) -> int:
        """Return roughly how many examples preparation passes forward, a pass backward counted as two.

        Args:
            sizes: How many validation examples each model's own task has.
        """
        del sizes
        return 0

    def time_preparation(self, evaluator: Evaluator) -> float:
        """Return the seconds that a training run will take, by taking a few steps; 0 where none is needed."""
        del evaluator
        return 0.0


def applicable(facts: StudyFacts) -> tuple[Merge, ...]:
    """Return the merges, with default settings, that can merge a study's models."""
    merges = [merge() for merge in MERGES]
    return tuple(merge for merge in merges if not obstacle(merge, facts))


def obstacle(merge: Merge, facts: StudyFacts) -> str:
    """Return why a merge can't serve a study, one sentence; "" where it can."""
    try:
        merge.check(facts)
    except MapMergeError as error:
        return str(error)
    return ""


def state_file(state: Path | None, merge: Merge) -> Path:
    """Return the state file of a merge that has one.

    Raises:
        CheckpointError: There is none.
    """
    if state is None or not state.exists():
        where = f" from {state}" if state else ""
        raise CheckpointError(f"What {merge.label} prepared is gone{where}: prepare it again.")
    return state
