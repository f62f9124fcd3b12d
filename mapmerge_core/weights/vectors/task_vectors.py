"""Task vectors in memory: what fine-tuning changed, as rows of one matrix, and the models that they merge to."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mapmerge_core.weights.io.checkpoints import read_state_dict
from mapmerge_core.weights.io.keys import adapt, compared
from mapmerge_core.weights.io.norms import Norms, NormSums
from mapmerge_core.weights.vectors.base import Vectors
from mapmerge_core.weights.vectors.layout import Group, Layout, Slot, StateDict, lay_out
from mapmerge_core.weights.vectors.modules import module_tensors, write_if_other
from mapmerge_core.weights.vectors.sums import ROUNDED_TO, Sums, make_sums, weighted_sums

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from mapmerge_core.weights.io.checks import Described
    from mapmerge_core.weights.io.hub import HubRef


@dataclass(frozen=True)
class _Place:
    """One of a module's parameters or buffers, looked up each time: moving a module may replace it."""

    owner: weakref.ref[nn.Module]
    attribute: str

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = getattr(self.owner(), self.attribute)
        return tensor


@dataclass(frozen=True)
class _Receiver:
    """Where a module receives the merges of a group.

    Attributes:
        flat: A buffer (d,) that ``views`` lie in, of the group's dtype or bfloat16; None where the module takes no
            tensor as it is computed.
        views: Places that are views of ``flat``, with the view.
        copies: Other places, with the tensor that they are written from.
    """

    flat: Tensor | None
    views: tuple[tuple[_Place, Tensor], ...]
    copies: tuple[tuple[_Place, Slot], ...]

    def holds(self) -> bool:
        return all(place.tensor.data_ptr() == view.data_ptr() for place, view in self.views)

    def finish(self, group: Group, c: np.ndarray) -> None:
        """Write the other places, once ``flat`` is written."""
        if self.flat is not None and self.flat.dtype == group.base.dtype:
            for place, slot in self.copies:
                place.tensor.copy_(slot.view(self.flat))
            return
        # One tensor after the other, so that a module in another dtype needs no second one beside it.
        memory = group.base.new_empty(max((slot.shape.numel() for _, slot in self.copies), default=0))
        for place, slot in self.copies:
            place.tensor.copy_(group.merged(c, slot, memory))


class TaskVectors(Vectors):
    """Task vectors that are held in memory.

    Tensors that differ in any model lie in one flat float32 buffer (and one more where the pre-trained model is
    float64); task vectors are the rows of a matrix V (N x d), so that a merge reads everything once (see `make_sums`).
    Left out, with the pre-trained model's values kept: tensors that are identical in all models, everything outside
    ``part``, and integer or boolean tensors, even if they differ (BatchNorm's ``num_batches_tracked``). Tied tensors
    are merged once.

    Task vectors can be rounded to bfloat16, which halves their memory; sums are computed as before. Each tensor has a
    buffer of its own then.

    Results are rounded to the pre-trained checkpoint's dtypes, also inside a wider module: a float16 checkpoint merges
    to float16 values, so that what is evaluated is what is exported.

    The first `merge_into` turns a module's merged parameters (those of the arithmetic's dtype, or in bfloat16, and on
    its device) into views of flat buffers; later calls write these and allocate no model. A module in another dtype is
    written tensor by tensor.

    Build one with `from_state_dicts` or `from_files`.
    """

    def __init__(self, names: Sequence[str], part: str, layout: Layout) -> None:
        super().__init__(names, part, layout.n_parameters)
        self._layout = layout

    @classmethod
    def from_state_dicts(
        cls, pretrained: StateDict, finetuned: Mapping[str, StateDict], *, part: str = "", rounded: bool = False
    ) -> TaskVectors:
        """Take the difference of each fine-tuned model to the pre-trained one.

        Args:
            pretrained: The model that all others started from; its tensors are copied.
            finetuned: One state dict per name, with the pre-trained model's keys and shapes. Other float dtypes are
                fine.
            part: Merge only keys with this prefix, such as ``"visual."``; a fine-tuned model's other keys, if it has
                any, are ignored.
            rounded: Hold the task vectors in bfloat16.

        Raises:
            CheckpointError: There is no fine-tuned model, no key starts with ``part``, keys or shapes don't match, or a
                tensor holds NaN or infinity; the sentence names the model and the tensor.
        """
        layout = lay_out(pretrained, finetuned, part, rounded=rounded)
        kept = {name: tensor.clone() for name, tensor in layout.kept.items()}
        groups = layout.groups
        if rounded:
            groups = tuple(replace(group, base=group.base.clone()) for group in groups)
        layout = replace(layout, kept=kept, groups=groups)
        return cls(tuple(finetuned), part, layout)

    @classmethod
    def from_files(
        cls,
        pretrained: Path | HubRef | str,
        finetuned: Mapping[str, Path | HubRef | str],
        *,
        part: str = "",
        without: Collection[str] = (),
        rounded: bool = False,
    ) -> TaskVectors:
        """Take the differences of checkpoint files, memory-mapped: what is not merged is never copied.

        Fine-tuned models may have other names for the same tensors, such as another library's (see `adapt`).

        Args:
            pretrained: The checkpoint that the others started from.
            finetuned: A checkpoint for each name.
            part: Merge only keys with this prefix.
            without: Names of tensors that are left out of all models, such as heads.
            rounded: Hold the task vectors in bfloat16; a float32 θ_pre then stays in its file, too.

        Raises:
            CheckpointError: As for `from_state_dicts` and `read_state_dict`.
        """
        base = {name: t for name, t in read_state_dict(pretrained).items() if name not in without}
        models = {}
        for name, source in finetuned.items():
            model = read_state_dict(source)
            models[name] = adapt({key: model[key] for key in compared(model, base, without)}, base, part)
        layout = lay_out(base, models, part, rounded=rounded)
        return cls(tuple(finetuned), part, layout)

    @property
    def device(self) -> torch.device:
        return self.groups[0].V.device if self.groups else torch.device("cpu")

    @property
    def described(self) -> Mapping[str, Described]:
        return self._layout.described

    @property
    def groups(self) -> tuple[Group, ...]:
        """θ_pre, V and the place of each merged tensor in them, by dtype or tensor; read, don't write."""
        return self._layout.groups

    @property
    def is_rounded(self) -> bool:
        """Whether the task vectors are held in bfloat16."""
        return any(group.V.dtype != group.base.dtype for group in self.groups)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(slot.name for group in self.groups for slot in group.slots)

    def to(self, device: torch.device | str) -> TaskVectors:
        device = torch.device(device)
        if self.device == device:
            return self
        groups = tuple(replace(g, base=g.base.to(device), V=g.V.to(device)) for g in self.groups)
        return TaskVectors(self.names, self.part, replace(self._layout, groups=groups))

    def transformed(self, matrices: Sequence[Tensor]) -> TaskVectors:
        """Return other task vectors of the same models: one N x d matrix in the place of each group's V."""
        groups = tuple(replace(group, V=V) for group, V in zip(self.groups, matrices, strict=True))
        return TaskVectors(self.names, self.part, replace(self._layout, groups=groups))

    def merge(self, c: ArrayLike) -> dict[str, Tensor]:
        return self.state_dict_of(self._flats(self._checked(c)))

    def tensors(self, c: ArrayLike) -> Iterator[tuple[str, Tensor]]:
        return self._tensors(self._checked(c))

    def merge_layers(self, coefficients: ArrayLike) -> dict[str, Tensor]:
        """Return a state dict as `merge` does, with coefficients of its own for each tensor.

        Args:
            coefficients: L x N, a row for each of `layers`.

        Raises:
            PointError: ``coefficients`` is not L x N, or holds NaN or infinity.
        """
        return self.state_dict_of(self.flats_of_layers(coefficients))

    def flats_of_layers(self, coefficients: ArrayLike) -> list[Tensor]:
        """Return the buffers (d,) for `state_dict_of`, one for each group, of `merge_layers`.

        Raises:
            PointError: ``coefficients`` is not L x N, or holds NaN or infinity.
        """
        rows = iter(self._checked(coefficients, len(self.layers)))
        flats = [torch.empty_like(group.base) for group in self.groups]
        for group, flat in zip(self.groups, flats, strict=True):
            for slot in group.slots:
                base, V = slot.columns(group.base), slot.columns(group.V)
                weighted_sums(base, V, next(rows)[None], slot.columns(flat)[None])
        return flats

    def state_dict_of(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return a model as `merge` does, whose merged tensors lie in one buffer (d,) for each group."""
        tensors = {name: tensor.to(self.device) for name, tensor in self._layout.kept.items()}
        for group, flat in zip(self.groups, flats, strict=True):
            tensors.update({slot.name: slot.view(flat).to(slot.dtype) for slot in group.slots})
        return {name: tensors[self._layout.aliases.get(name, name)] for name in self._layout.described}

    @torch.no_grad()
    def merge_into(self, module: nn.Module, c: ArrayLike) -> None:
        row = self._checked(c)
        receivers: tuple[_Receiver, ...] | None = self._modules.get(module)
        if receivers is None or not all(receiver.holds() for receiver in receivers):
            receivers = self._modules[module] = self._bind(module)
        pairs = list(zip(self.groups, receivers, strict=True))
        make_sums([s for g, r in pairs if r.flat is not None for s in g.sums(r.flat)], row[None])
        for group, receiver in pairs:
            receiver.finish(group, row)

    @cached_property
    def norms(self) -> Norms:
        sums = NormSums(len(self), self._layout.l1, self._layout.l2)
        for group in self.groups:
            for slot in group.slots:
                sums.add_vectors(slot.columns(group.V), group.base.dtype)
        return sums.norms()

    def differing(self) -> dict[str, int]:
        return dict(self._layout.differing)

    def _flats(self, row: np.ndarray) -> list[Tensor]:
        """Return the merged buffer (d,) of each group."""
        flats = [torch.empty_like(group.base) for group in self.groups]
        make_sums([Sums(g.base, g.V, flat[None]) for g, flat in zip(self.groups, flats, strict=True)], row[None])
        return flats

    def _tensors(self, row: np.ndarray) -> Iterator[tuple[str, Tensor]]:
        flats = self._flats(row)
        places = {s.name: (s, flat) for g, flat in zip(self.groups, flats, strict=True) for s in g.slots}
        for name in self._layout.described:
            source = self._layout.aliases.get(name, name)
            if source in places:
                slot, flat = places[source]
                yield name, slot.view(flat).to(slot.dtype).cpu()
            else:
                yield name, self._layout.kept[source].cpu()

    def _bind(self, module: nn.Module) -> tuple[_Receiver, ...]:
        """Find or make the places that merges are written to, and write all others."""
        targets = module_tensors(module, self._layout.described)
        places: dict[str, list[tuple[_Place, Tensor]]] = defaultdict(list)
        merged = set(self.layers)
        for name, target in targets.items():
            source_name = self._layout.aliases.get(name, name)
            if source_name in merged:
                owner, _, attribute = name.rpartition(".")
                place = _Place(weakref.ref(module.get_submodule(owner)), attribute)
                places[source_name].append((place, target))
            else:
                write_if_other(target, self._layout.kept[source_name])
        return tuple(_receiver(group, places) for group in self.groups)


def _receiver(group: Group, places: Mapping[str, Sequence[tuple[_Place, Tensor]]]) -> _Receiver:
    """Turn those of a module's tensors into views that can take a group's sums as they are computed."""
    flat, views, copies = None, [], []
    is_quick = all(dtype in ROUNDED_TO for dtype, _, _ in group.narrow)
    taken = (group.base.dtype, torch.bfloat16) if is_quick else ()
    for slot in group.slots:
        for place, target in places.get(slot.name, ()):
            dtype = target.dtype if flat is None else flat.dtype
            if dtype in taken and target.dtype == dtype and target.device == group.base.device:
                flat = torch.empty_like(group.base, dtype=dtype) if flat is None else flat
                target.data = slot.view(flat)
                views.append((place, target.data))
            else:
                copies.append((place, slot))
    return _Receiver(flat, tuple(views), tuple(copies))
