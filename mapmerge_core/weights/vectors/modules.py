"""A module's own tensors as merges write them: by the checkpoint's names, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mapmerge_core.weights.io.checks import Described, StateDict, check_keys, check_shape


def module_tensors(module: nn.Module, expected: Mapping[str, Described]) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, tied ones once.

    A module may have names that the checkpoint lacks for tensors that are tied to one it has, as a language model's
    output layer is to its embeddings.

    Args:
        module: Any module, in any float dtype.
        expected: The pre-trained checkpoint's tensors.

    Raises:
        CheckpointError: The module's keys or shapes are not the checkpoint's.
    """
    own = module.state_dict(keep_vars=True)
    expected_ids = {id(tensor) for name, tensor in own.items() if name in expected}
    tensors = {name: tensor for name, tensor in own.items() if name in expected or id(tensor) not in expected_ids}
    check_keys("The module", tensors, expected)
    targets: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        check_shape("the module", name, tensor.shape, expected[name].shape)
        targets.setdefault(id(tensor), (name, tensor))
    return dict(targets.values())


@torch.no_grad()
def write_if_other(target: Tensor, value: Tensor) -> None:
    """Write a tensor unless it holds the value already: memory that is mapped to a file stays so."""
    value = value.to(target.device, target.dtype)
    if not torch.equal(target, value):
        target.copy_(value)


@torch.no_grad()
def load_part(module: nn.Module, model: StateDict, expected: Mapping[str, Described], part: str) -> None:
    """Make ``part`` of ``module`` that of ``model``, rounded to the pre-trained checkpoint's dtypes.

    Args:
        module: A module as for `module_tensors`.
        model: A model with the pre-trained one's keys in ``part``; its other keys are ignored.
        expected: The pre-trained checkpoint's tensors.
        part: The prefix of the keys that are written.

    Raises:
        CheckpointError: The keys or shapes of ``module`` or ``model`` are not the pre-trained model's.
    """
    targets = module_tensors(module, expected)
    names: Sequence[str] = [name for name in model if name.startswith(part)]
    check_keys("The model", names, [name for name in expected if name.startswith(part)])
    for name in names:
        tensor = model[name]
        check_shape("the model", name, tensor.shape, expected[name].shape)
        if name in targets:
            targets[name].copy_(tensor.to(expected[name].dtype))
