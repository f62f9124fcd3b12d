"""Models of other libraries, built and loaded so that whatever is wrong ends in one sentence."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from mapmerge_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn


@contextmanager
def building(sentence: str) -> Iterator[None]:
    """Turns whatever a wrong name or configuration makes another library raise into one sentence.

    Args:
        sentence: Its beginning: who can't build what, from what.

    Raises:
        CheckpointError: Instead of the library's errors.
    """
    try:
        yield
    except (
        *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
        *(OSError, RuntimeError, TypeError, ValueError),
    ) as error:
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(" .:")
        raise CheckpointError(f"{sentence}: {reason or 'it holds a value that is not allowed'}.") from error


def load_exactly(
    model: nn.Module, state_dict: Mapping[str, Tensor], path: Path | str, architecture: str
) -> None:
    """Loads a checkpoint into a model.

    Raises:
        CheckpointError: A name or a shape of the one is not the other's.
    """
    expected = model.state_dict()
    for name in [*expected, *state_dict]:
        if name not in state_dict:
            problem = f"lacks the tensor '{name}'"
        elif name not in expected:
            problem = f"holds the tensor '{name}', which the architecture lacks"
        elif state_dict[name].shape != expected[name].shape:
            found, wanted = tuple(state_dict[name].shape), tuple(expected[name].shape)
            problem = f"holds '{name}' with shape {found} where the architecture has {wanted}"
        else:
            continue
        raise CheckpointError(f"{path} does not fit the architecture {architecture}: it {problem}.")
    model.load_state_dict(state_dict)
