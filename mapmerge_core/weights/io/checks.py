"""What must hold before models are merged: the same keys and shapes, finite numbers, fitting coefficients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mapmerge_core.errors import CheckpointError, PointError

StateDict = Mapping[str, Tensor]

# Whole tensors are compared and cast in pieces of so many elements, which needs no second tensor.
_PIECE = 1 << 22


class Described(NamedTuple):
    """A tensor's shape and dtype."""

    shape: torch.Size
    dtype: torch.dtype


def describe(model: StateDict) -> dict[str, Described]:
    """Return each tensor's shape and dtype; a model that has a method ``describe`` isn't read for it."""
    describe_one = getattr(model, "describe", None)
    if describe_one is not None:
        return {name: Described(*describe_one(name)) for name in model}
    return {name: Described(tensor.shape, tensor.dtype) for name, tensor in model.items()}


def check_models(
    pretrained: Mapping[str, Described], finetuned: Mapping[str, Mapping[str, Described]], part: str
) -> list[str]:
    """Compare fine-tuned models with the pre-trained one by what they hold.

    Returns:
        The keys in ``part``.

    Raises:
        CheckpointError: No key starts with ``part``, or keys, shapes or kinds of dtypes differ.
    """
    keys = [key for key in pretrained if key.startswith(part)]
    if not keys:
        prefixes = ", ".join(sorted({key.split(".")[0] + "." * ("." in key) for key in pretrained})) or "none"
        raise CheckpointError(
            f"No tensor of the pre-trained model starts with '{part}': its keys start with {prefixes}."
        )
    for name, model in finetuned.items():
        check_keys(f"The model '{name}'", [key for key in model if key.startswith(part)], keys)
        for key in keys:
            check_tensor(name, key, model[key], pretrained[key])
    return keys


def check_any(finetuned: Collection[str]) -> None:
    """Refuse a merge of no model (CheckpointError)."""
    if not finetuned:
        raise CheckpointError("There is no fine-tuned model: a merge needs at least one.")


def check_keys(model: str, keys: Collection[str], expected: Collection[str]) -> None:
    """Compare a model's keys with the pre-trained model's.

    Raises:
        CheckpointError: Keys are missing or extra; the first is named, the rest counted.
    """
    own, base = dict.fromkeys(keys), dict.fromkeys(expected)
    for problem, wrong in (
        ("lacks", [key for key in base if key not in own]),
        ("has", [k for k in own if k not in base]),
    ):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            contrast = "has" if problem == "lacks" else "lacks"
            raise CheckpointError(
                f"{model} {problem} the tensor '{wrong[0]}'{more}, which the pre-trained model {contrast}: "
                "all models must share one architecture."
            )


def check_shape(model: str, key: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Compare a tensor's shape with the pre-trained model's.

    Raises:
        CheckpointError: The shapes differ; both are quoted.
    """
    if tuple(shape) != tuple(expected):
        raise CheckpointError(
            f"The tensor '{key}' has shape {tuple(shape)} in {model} but {tuple(expected)} "
            "in the pre-trained model: all models must share one architecture."
        )


def check_tensor(model: str, key: str, own: Described, expected: Described) -> None:
    """Compare a fine-tuned model's tensor with the pre-trained model's.

    Raises:
        CheckpointError: The shapes differ, or only one of them is of floating-point numbers.
    """
    check_shape(f"the model '{model}'", key, own.shape, expected.shape)
    if own.dtype.is_floating_point != expected.dtype.is_floating_point:
        raise CheckpointError(
            f"The tensor '{key}' is {dtype_name(own.dtype)} in the model '{model}' but "
            f"{dtype_name(expected.dtype)} in the pre-trained model: quantized models can't be merged."
        )


def check_finite(model: str, key: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: Naming ``model`` (as in "the model 'x'"), the tensor, and which of them it holds.
    """
    if not is_finite(tensor):
        kind = "NaN" if any(piece.isnan().any() for piece in _pieces(tensor)) else "infinity"
        raise CheckpointError(f"The tensor '{key}' of {model} holds {kind}: this checkpoint can't be merged.")


def check_coefficients(names: Sequence[str], coefficients: ArrayLike, rows: int | None = None) -> np.ndarray:
    """Return a coefficient for each of N ``names`` as float64, or ``rows`` x N.

    Raises:
        PointError: They have another shape, or hold NaN or infinity.
    """
    array = np.asarray(coefficients, dtype=np.float64)
    n = len(names)
    expected = (n,) if rows is None else (rows, n)
    if array.shape != expected:
        raise PointError(
            f"The coefficients have shape {array.shape}, but the {n} task vectors ({', '.join(names)}) need {expected}."
        )
    if not np.isfinite(array).all():
        raise PointError("The coefficients hold NaN or infinity: every coefficient must be a finite number.")
    return array


def refuse_complex(model: str, key: str) -> CheckpointError:
    """Return the error for a tensor of complex numbers that fine-tuning changed."""
    return CheckpointError(
        f"The tensor '{key}' of {model} holds complex numbers that differ from the pre-trained model's, and "
        "only real ones are merged: leave this model out."
    )


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor of any dtype holds neither NaN nor infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # The extremes of numbers with a NaN among them are NaN; finding them needs no second tensor.
    return all(bool(end.isfinite()) for piece in _pieces(tensor) for end in torch.aminmax(piece))


def differs(tensor: Tensor, base: Tensor) -> bool:
    """Return whether two tensors of one shape hold different values, whatever their dtypes."""
    if tensor.dtype == base.dtype and tensor.dtype.itemsize > 1:
        return not torch.equal(tensor, base)
    pieces = zip(tensor.reshape(-1).split(_PIECE), base.reshape(-1).split(_PIECE), strict=True)
    return any(not torch.equal(one.double(), other.double()) for one, other in pieces)


def too_large(key: str, dtype: torch.dtype) -> str:
    """Return the sentence about a merged tensor that holds infinity."""
    return (
        f"The merged tensor '{key}' holds numbers too large for its dtype, {dtype_name(dtype)}: "
        "choose smaller coefficients."
    )


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that tensors of a checkpoint's ``dtype`` are merged in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as people write it, such as ``float16``."""
    return str(dtype).removeprefix("torch.")


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Return pieces of a tensor; as float32 if a number takes one byte, which torch can hardly compute with."""
    pieces = list(tensor.reshape(-1).split(_PIECE))
    return [piece.float() for piece in pieces] if tensor.dtype.itemsize == 1 else pieces
