"""What a merge's preparation found out, in a file: tensors, and a header that says whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapmerge_core.errors import CheckpointError
from mapmerge_core.settings import to_dict
from mapmerge_core.weights.io.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from mapmerge_core.merges.base import Merge
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

_KEY = "mapmerge"
_DIFFERENCES = {
    "merge": "by another merge",
    "models": "from other models",
    "layers": "from other models",
    "settings": "with other settings",
}


def write_state(path: Path, merge: Merge, vectors: TaskVectors, tensors: Mapping[str, Tensor], **more: object) -> None:
    """Write a file that is there whole or not at all.

    Args:
        path: The file.
        merge: Which merge prepared it; its settings are written, too.
        vectors: The task vectors of the models that it was prepared from.
        tensors: What the file holds, from any device.
        **more: What else the header holds, as JSON has it.

    Raises:
        ExportError: The file can't be written.
    """
    header = _header(merge, vectors) | more
    write_tensors(path, tensors, {_KEY: json.dumps(header)})


def read_state(
    path: Path, merge: Merge, vectors: TaskVectors, *, remedy: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_state` wrote.

    Args:
        path: The file.
        merge: The merge that should have written it.
        vectors: The task vectors of the models that it should have been prepared from.
        remedy: What to do where it is another file; by default to prepare the merge again.

    Returns:
        The header and the tensors, on the CPU.

    Raises:
        CheckpointError: The file can't be read, is no such file, or is of another merge or other models.
    """
    remedy = remedy or f"prepare {merge.label} again"
    tensors, metadata = read_tensors(path, remedy)
    try:
        header = json.loads(metadata.get(_KEY, "null"))
    except ValueError as error:
        raise CheckpointError(f"{path} can't be read ({error}): {remedy}.") from error
    expected = _header(merge, vectors)
    if not isinstance(header, dict) or not header.keys() >= expected.keys():
        raise CheckpointError(f"{path} is no file that a merge prepared: {remedy}.")
    for key, what in _DIFFERENCES.items():
        if header[key] != expected[key]:
            raise CheckpointError(f"{path} was prepared {what}: {remedy}.")
    return header, tensors


def damaged(path: Path, merge: Merge) -> CheckpointError:
    """The error for a file whose tensors aren't what its header promises."""
    return CheckpointError(f"{path} is damaged: prepare {merge.label} again.")


def _header(merge: Merge, vectors: TaskVectors) -> dict[str, Any]:
    shapes = {slot.name: list(slot.shape) for group in vectors.groups for slot in group.slots}
    return {"merge": merge.name, "settings": to_dict(merge.settings), "models": list(vectors.names), "layers": shapes}
