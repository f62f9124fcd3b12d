"""A person's own measurements: any function of a model's tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mapmerge_core.errors import Cancelled, CheckpointError, MapMergeError
from mapmerge_core.tasks.families.base import Family
from mapmerge_core.tasks.metrics.base import Metric, Score
from mapmerge_core.weights.io.checkpoints import open_state_dict
from mapmerge_core.weights.io.checks import Described, describe

if TYPE_CHECKING:
    from mapmerge_core.tasks.task import Task

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class CallableFamily(Family):
    """Models that a person's own function measures, all tasks at once.

    The function is called once for each merge and split that something is measured on, either as
    ``function(state_dict)`` or, if its second parameter is named ``split`` or has no default, as
    ``function(state_dict, split)`` with "val" or "test". It returns a dictionary with a number for each task, by
    name; for a task with several metrics a dictionary of numbers by the metrics' names. Without a ``split`` it
    measures the same data for both: then the test split is no check of what was chosen on the validation split.

    ``state_dict`` holds the tensors of the merged model under the names, in the dtypes and in the shapes of
    the pre-trained checkpoint, on `device`: the very numbers that an export holds, whatever the precision of
    the study. They are the model's own memory: the function reads them, or works on a copy.

    Args:
        function: The function.
        pretrained: The pre-trained checkpoint, a file or a folder.
        tasks: The study's tasks; any metric will do.
        name: What messages call the function.

    Raises:
        CheckpointError: The checkpoint can't be read, or its names are not those of a model's parameters.
        MapMergeError: The function can't be called so.
    """

    def __init__(
        self, function: Callable[..., Mapping[str, float]], pretrained: Path, tasks: Sequence[Task], *, name: str
    ) -> None:
        self._function, self._name = function, name
        self.use(tasks)
        self._takes_split = _takes_split(function, name)
        self._tensors = describe(open_state_dict(pretrained))
        self._model = _tree(self._tensors, str(pretrained))
        self._measured: dict[str, dict[tuple[str, Metric], float]] = {}

    def use(self, tasks: Sequence[Task]) -> None:
        """Take note of the tasks, with any metrics: the function knows what it measures."""
        self._metrics = {task.name: task.metrics for task in tasks}

    def to(self, device: torch.device | str) -> None:
        """Move the model, in place."""
        super().to(device)
        self._measured.clear()

    def model_in(self, dtype: torch.dtype) -> nn.Module:  # noqa: ARG002 - the function gets what an export holds
        return self._model

    def merged(self, dtype: torch.dtype) -> None:  # noqa: ARG002
        """Forget what was measured of the last model."""
        self._measured.clear()

    def prepare(self, task: Task, split: str) -> None:
        """Do nothing: the function brings its data."""

    def measure(
        self,
        task: Task,
        split: str,
        dtype: torch.dtype,  # noqa: ARG002
        batch_size: int,  # noqa: ARG002
        examples: NDArray[np.intp] | None = None,  # noqa: ARG002
    ) -> Mapping[Metric, Score]:
        """Return what the function says of a task, as one example.

        Raises:
            MapMergeError: The function raises something, changes the tensors, or returns anything but a
                number within the metric's bounds for each of the study's tasks.
        """
        if split not in self._measured:
            self._measured[split] = self._checked(self._called(split))
        numbers = {metric: self._measured[split][task.name, metric] for metric in task.metrics}
        return {metric: Score(x, None, np.array([x], np.float32)) for metric, x in numbers.items()}

    def _called(self, split: str) -> object:
        held = self._model.state_dict()
        given = {name: held[name] for name in self._tensors}
        before = _versions(given)
        try:
            returned = self._function(given.copy(), *([split] if self._takes_split else []))
        except (MapMergeError, Cancelled):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip().rstrip(" .:").splitlines()[0]
            raise MapMergeError(f"'{self._name}' failed with {reason}; correct it, and go on.") from error
        for name, version in _versions(given).items():
            if version != before[name]:
                raise MapMergeError(
                    f"'{self._name}' changed the tensor '{name}' of the model that it measures: let it work on a copy."
                )
        return returned

    def _checked(self, returned: object) -> dict[tuple[str, Metric], float]:
        """Return a function's answer as a number for each task and metric."""
        of_tasks = self._complete(returned, "each task", "the task", "task of this study", self._metrics)
        numbers = {}
        for task, metrics in self._metrics.items():
            of_metrics: Mapping[str, object] = {metrics[0].name: of_tasks[task]}
            if len(metrics) > 1:
                what, names = f"metric of '{task}'", [metric.name for metric in metrics]
                of_metrics = self._complete(of_tasks[task], f"each {what}", f"the {what},", what, names)
            for metric in metrics:
                numbers[task, metric] = self._number(task, of_metrics[metric.name], metric)
        return numbers

    def _complete(
        self, returned: object, what: str, one: str, kind: str, names: Collection[str]
    ) -> Mapping[str, object]:
        """Return a dictionary that has exactly these names, or refuse it."""
        if not isinstance(returned, Mapping):
            raise MapMergeError(
                f"'{self._name}' returned a {type(returned).__name__}, not a dictionary with a number for "
                f"{what}: {', '.join(names)}."
            )
        for name in names:
            if name not in returned:
                raise MapMergeError(f"'{self._name}' returned no number for {one} '{name}': add it.")
        for name in returned:
            if name not in names:
                raise MapMergeError(
                    f"'{self._name}' returned a number for '{name}', which is no {kind}: leave it out, or "
                    f"choose from {', '.join(names)}."
                )
        return returned

    def _number(self, task: str, value: object, metric: Metric) -> float:
        scalar = value
        if isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1:
            scalar = value.item()
        if isinstance(scalar, bool) or not isinstance(scalar, Real) or not math.isfinite(scalar):
            raise MapMergeError(
                f"'{self._name}' returned {_short(value)} for '{task}', which is no finite number: return one."
            )
        number = float(scalar)
        if not metric.low <= number <= metric.high:
            raise MapMergeError(
                f"'{self._name}' returned {number:g} for '{task}', but {metric.name} lies between "
                f"{metric.low:g} and {metric.high:g}: correct it, or choose another metric."
            )
        return number


def _takes_split(function: Callable, name: str) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some that are written in C tell nothing
        return False
    places = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    needed = [parameter for parameter in places if parameter.default is parameter.empty]
    unnamed = any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters)
    keywords = [parameter for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]
    demanded = any(parameter.default is parameter.empty for parameter in keywords)
    if len(needed) > 2 or demanded or not (places or unnamed):
        raise MapMergeError(f"'{name}' must take a state dict, or a state dict and a split, and no more.")
    return len(needed) == 2 or (len(places) > 1 and places[1].name == "split")


def _tree(tensors: Mapping[str, Described], source: str) -> nn.Module:
    """Modules within modules as the dots in the names say, with parameters, and buffers for integers."""
    root = nn.Module()
    for name, (shape, dtype) in tensors.items():
        *path, attribute = name.split(".")
        tensor = torch.empty(shape, dtype=dtype)
        module = root
        try:
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if dtype.is_floating_point:
                module.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
            else:
                module.register_buffer(attribute, tensor)
        except (KeyError, AttributeError) as error:
            raise CheckpointError(
                f"The tensor '{name}' of {source} can't be a model's parameter "
                f"({str(error.args[0]).strip()}): rename it in all checkpoints."
            ) from error
    return root


def _versions(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how often each tensor was written to."""
    return {name: tensor._version for name, tensor in tensors.items()}  # noqa: SLF001 - no other way to know


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
