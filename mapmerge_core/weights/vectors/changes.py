"""What fine-tuned models and adapters change about a pre-trained model, one tensor at a time."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.adapters import Adapter, LowRank, tensor_of
from mapmerge_core.weights.io.checks import (
    Described,
    StateDict,
    arithmetic_dtype,
    check_any,
    check_finite,
    check_keys,
    check_models,
    check_shape,
    check_tensor,
    describe,
    differs,
    is_finite,
    refuse_complex,
)
from mapmerge_core.weights.io.norms import Norms, NormSums
from mapmerge_core.weights.vectors.sums import ADDED, ROUNDED_TO, Sums, make_sums

if TYPE_CHECKING:
    import numpy as np


# Differences are added in pieces of so many elements, which stay near a CPU's cores, and fill a GPU.
_PIECE_ON_CPU = 1 << 18
_PIECE_ELSEWHERE = 1 << 26
# Bytes of a tensor of all models that are held at once.
_TOGETHER = 1 << 30


@dataclass(frozen=True)
class Survey:
    """What one pass over all models finds out.

    Attributes:
        changed: The floating-point tensors that differ in any model, in the pre-trained model's order.
        differing: How many tensors of the part differ, for each model.
        norms: Norms and inner products of the task vectors over the part.
    """

    changed: tuple[str, ...]
    differing: Mapping[str, int]
    norms: Norms


class Changes:
    """A pre-trained model and what others change about it; a tensor is read when it is needed, and not kept.

    Args:
        pretrained: The model that all started from, best one that reads tensors when asked.
        models: Fine-tuned models, as lazy, or adapters.
        part: The prefix of the keys that are merged.

    Attributes:
        pretrained: The pre-trained model.
        models: The others, by name.
        part: The prefix of the keys that are merged.
        described: The pre-trained model's tensors.
        only_adapters: Whether no other model is whole.
        keys: Those in ``part``.
        touched: The floating-point tensors in ``part`` that any model may change, by what the models hold.

    Raises:
        CheckpointError: Keys, shapes or kinds of dtypes don't fit, or an adapter holds NaN or infinity.
    """

    def __init__(self, pretrained: StateDict, models: Mapping[str, StateDict | Adapter], part: str = "") -> None:
        check_any(models)
        self.pretrained = pretrained
        self.part = part
        self.models = dict(models)
        self.described = describe(pretrained)
        whole = {name: model for name, model in models.items() if isinstance(model, Mapping)}
        self.keys = check_models(self.described, {name: describe(m) for name, m in whole.items()}, part)
        touched: set[str] = set(self.keys) if whole else set()
        for name, model in models.items():
            if not isinstance(model, Mapping):
                touched.update(self._check_adapter(name, model, part))
        for key in self.keys:
            if self.described[key].dtype.is_complex and key in touched:
                for name, own in whole.items():
                    if differs(own[key], pretrained[key]):
                        raise refuse_complex(f"the model '{name}'", key)
        self.touched = tuple(key for key in self.keys if key in touched and self.described[key].dtype.is_floating_point)
        self.only_adapters = not whole

    @property
    def may_change(self) -> frozenset[str]:
        """Those of `touched` that are not known to be the same in all models."""
        survey: Survey | None = self.__dict__.get("survey")
        return frozenset(self.touched if survey is None else survey.changed)

    def kept(self, key: str) -> Tensor:
        """Return a tensor of the pre-trained model.

        Raises:
            CheckpointError: It holds NaN or infinity.
        """
        tensor = self.pretrained[key]
        check_finite("the pre-trained model", key, tensor)
        return tensor

    def merged(self, key: str, c: np.ndarray, device: torch.device) -> Tensor:
        """Return a tensor of θ_pre + Σ c_n v_n on ``device``, rounded to the pre-trained model's dtype.

        Computed in float32 (float64 if the pre-trained tensor is). Models with c_n = 0 and those that don't change the
        tensor are left out, so that θ_pre keeps its bits.

        Args:
            key: One of `touched`.
            c: N coefficients.
            device: Where it is computed.

        Raises:
            CheckpointError: It comes out as NaN or infinity because a checkpoint holds one.
        """
        base = self.pretrained[key].to(device)
        dtype = arithmetic_dtype(base.dtype)
        total = _new(base.shape, dtype, device).copy_(base)
        factors = []
        for coefficient, model in zip(c.tolist(), self.models.values(), strict=True):
            if coefficient == 0:
                continue
            change = tensor_of(model, key)
            if isinstance(change, LowRank):
                left, right = change.scaled_factors(dtype, device)
                factors.append((left, coefficient * right))
            elif change is not None and differs(change := change.to(device), base):
                _add_difference(total, change, base, coefficient)
        if factors:
            left, right = torch.cat([f[0] for f in factors], dim=1), torch.cat([f[1] for f in factors])
            total.view(len(total), -1).addmm_(left, right)
        rounded = total if dtype == base.dtype else _new(base.shape, base.dtype, device).copy_(total)
        if not is_finite(rounded):
            self.check_sources(key)
        return rounded

    def merge_into(self, key: str, c: np.ndarray, target: Tensor) -> bool:
        """Make a tensor of a module the merged one at the speed of memory, with the numbers of `merged`.

        Only the sign of zeros can be another: an element that no model changes keeps its bits.

        That is possible on a CPU, with whole models of floating-point numbers of 16 bits or more, as long as the tensor
        of all of them isn't too large to be held at once.

        Args:
            key: One of `touched`.
            c: N coefficients.
            target: What is written: the module's tensor of the same shape.

        Returns:
            Whether it was possible; if not, nothing is written. Whether the numbers are finite isn't checked.
        """
        models = [model for model, c_n in zip(self.models.values(), c, strict=True) if c_n]
        shape, dtype = self.described[key]
        computed_in = arithmetic_dtype(dtype)
        if (
            target.device.type != "cpu"
            or not target.is_contiguous()
            or target.dtype not in (computed_in, torch.bfloat16)
            or dtype not in ADDED
            or shape.numel() * dtype.itemsize * len(models) > _TOGETHER
            or not all(isinstance(model, Mapping) for model in models)
        ):
            return False
        rows = [model[key].to("cpu").reshape(-1) for model in models if isinstance(model, Mapping)]
        dtypes = {row.dtype for row in rows}
        is_too_wide = computed_in == torch.float32 and torch.float64 in dtypes
        if len(dtypes) > 1 or not dtypes <= set(ADDED) or is_too_wide:
            return False
        base = self.pretrained[key].to("cpu")
        rounded_to = dtype if dtype in ROUNDED_TO else None
        made = Sums(base.reshape(-1), rows, target.detach().view(1, -1), rounded_to, are_models=True)
        make_sums([made], c[c != 0][None])
        return True

    @cached_property
    def survey(self) -> Survey:
        """Read every model once, tensor by tensor.

        Raises:
            CheckpointError: A tensor holds NaN or infinity.
        """
        sums = NormSums(len(self.models))
        changed, differing = [], dict.fromkeys(self.models, 0)
        touched, inside = set(self.touched), set(self.keys)
        for key, (_, dtype) in self.described.items():
            base = self.pretrained[key]
            check_finite("the pre-trained model", key, base)
            if key not in inside:
                continue
            changes = [self._finite_change(name, key) for name in self.models]
            if not dtype.is_floating_point:
                for name, whole in zip(self.models, changes, strict=True):
                    differing[name] += isinstance(whole, torch.Tensor) and differs(whole, base)
                continue
            sums.add_base(base)
            if key in touched:
                distances = sums.add_changes(base, changes)
                for name, distance in zip(self.models, distances, strict=True):
                    differing[name] += bool(distance > 0)
                if distances.any():
                    changed.append(key)
        return Survey(tuple(changed), differing, sums.norms())

    def _finite_change(self, name: str, key: str) -> LowRank | Tensor | None:
        """Return what a model holds of a tensor; refuse NaN and infinity (adapters' factors were checked before)."""
        change = tensor_of(self.models[name], key)
        if isinstance(change, torch.Tensor):
            check_finite(f"the model '{name}'", key, change)
        return change

    def _check_adapter(self, name: str, adapter: Adapter, part: str) -> set[str]:
        """Return the keys in ``part`` that an adapter changes."""
        inside = {key for key in (*adapter.deltas, *adapter.full) if key.startswith(part)}
        check_keys(f"The adapter '{name}'", sorted(inside), inside & self.described.keys())
        if not inside:
            raise CheckpointError(
                f"The adapter '{name}' changes no tensor that starts with '{part}', which are all that is "
                "merged: choose another adapter."
            )
        for key in inside & adapter.full.keys():
            tensor = adapter.full[key]
            check_tensor(name, key, Described(tensor.shape, tensor.dtype), self.described[key])
            check_finite(f"the model '{name}'", key, tensor)
        for key in inside & adapter.deltas.keys():
            low_rank, (shape, dtype) = adapter.deltas[key], self.described[key]
            check_tensor(name, key, Described(shape, low_rank.A.dtype), Described(shape, dtype))
            flat = (*shape[:1], shape[1:].numel())  # as a convolution's is
            expected = flat if tuple(low_rank.shape) == flat else shape
            check_shape(f"the adapter '{name}'", key, low_rank.shape, expected)
            for factor in low_rank.factors:
                check_finite(f"the model '{name}'", key, factor)
        return inside

    def check_sources(self, key: str) -> None:
        """Read a tensor of all models anew, and refuse NaN and infinity.

        Raises:
            CheckpointError: One does.
        """
        self.kept(key)
        for name in self.models:
            self._finite_change(name, key)


def _new(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a new tensor without values, whose memory goes back to the system as soon as it is dropped.

    An allocator keeps what was freed for later, which among tensors of many sizes adds up to several tensors.
    """
    n_bytes = shape.numel() * dtype.itemsize
    if device.type != "cpu" or n_bytes < _PIECE_ON_CPU:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, n_bytes), dtype=dtype).view(shape)


def _add_difference(total: Tensor, whole: Tensor, base: Tensor, coefficient: float) -> None:
    """Add coefficient · (whole − base) to ``total``, in pieces whose memory is used again and again."""
    step = _PIECE_ON_CPU if total.device.type == "cpu" else _PIECE_ELSEWHERE
    pieces = (total.view(-1).split(step), whole.reshape(-1).split(step), base.reshape(-1).split(step))
    difference, wide = _new(torch.Size((2, min(step, total.numel()))), total.dtype, total.device)
    for piece, theirs, ours in zip(*pieces, strict=True):
        n = len(piece)
        difference[:n].copy_(theirs).sub_(wide[:n].copy_(ours))
        piece.add_(difference[:n].mul_(coefficient))  # rounded in between, as by `weighted_sums`
