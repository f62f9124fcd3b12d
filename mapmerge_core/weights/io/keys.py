"""Tensors under other names: fine-tuned models in one library's format on a base in another's."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mapmerge_core.weights.io.checks import Described, StateDict, describe

# open_clip's name and that of transformers, without the prefix of the vision tower.
_SAME = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",  # spelt so by transformers
    "ln_post": "post_layernorm",
}
_SAME_IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PROJECTION = "visual_projection.weight"
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_LAYER_OF_TRANSFORMERS = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
# Older versions of transformers stored these constants with the weights; newer ones compute them.
_COUNTERS = "position_ids"
_CONSTANT = re.compile(rf"(.*\.)?(attn(ention)?\.(masked_)?bias|rotary_emb\.inv_freq|{_COUNTERS})")


def is_constant(name: str) -> bool:
    """Return whether a tensor is one that older versions of transformers stored and newer ones compute."""
    return _CONSTANT.fullmatch(name) is not None


def compared(model: Iterable[str], base: Collection[str], without: Collection[str]) -> list[str]:
    """Return which of a fine-tuned model's names are to be merged onto a base's.

    Left out are the names in ``without``, under any prefix, and old constants that the base lacks.

    Args:
        model: The fine-tuned model's names.
        base: The names of the base that count.
        without: Names that don't.
    """
    endings = tuple(f".{name}" for name in without)
    return [
        name
        for name in model
        if name not in without
        and not (endings and name.endswith(endings))
        and not (name not in base and is_constant(name))
    ]


def adapt(model: StateDict, base: StateDict, part: str = "") -> StateDict:
    """Return a fine-tuned model's tensors under the names and in the shapes of its base.

    These differences are bridged, each only if afterwards every name and shape in ``part`` is the base's:

    - a prefix more or less: ``module.`` of data parallel training, a tower that was saved alone, or one inside another
      module (as in the files of "Editing Models with Task Arithmetic", ICLR 2023);
    - the vision towers of open_clip's and of transformers' CLIP, in both directions. A tower of transformers that was
      saved without its projection gets the base's: fine-tuning it can't have changed it.

    Tensors are views, but for the projections of query, key and value that open_clip packs into one.

    Args:
        model: The fine-tuned model.
        base: The model that it was fine-tuned from.
        part: The prefix of the base's keys that count.

    Returns:
        ``model`` itself where it fits, and where nothing makes it fit.
    """
    wanted = {name: tensor for name, tensor in base.items() if name.startswith(part)}
    if not wanted or _fits({name: t for name, t in model.items() if name.startswith(part)}, wanted):
        return model
    return _with_other_prefix(model, wanted, part) or _with_other_tower(model, base, wanted, part) or model


def adapted(model: StateDict, base: StateDict, part: str, without: Collection[str]) -> StateDict:
    """Return a fine-tuned model's tensors that are merged under its base's names, left on disk where possible."""
    return adapt_lazily(choose(model, compared(model, base, without)), base, part)


def choose(model: StateDict, names: Sequence[str]) -> StateDict:
    """Return a model that has only the tensors in ``names``, left on disk."""
    return model if len(names) == len(model) else _Renamed(model, describe(model), {n: n for n in names})


def adapt_lazily(model: StateDict, base: StateDict, part: str) -> StateDict:
    """Do as `adapt`, but leave tensors on disk where they only have other names."""
    described = describe(model)
    outline, outline_of_base = _outline(described), _outline(describe(base))
    bridged = adapt(outline, outline_of_base, part)
    if bridged is outline:
        return model
    origins = {id(tensor): name for name, tensor in outline.items()}
    if all(id(tensor) in origins for tensor in bridged.values()):
        return _Renamed(model, described, {name: origins[id(tensor)] for name, tensor in bridged.items()})
    return adapt(dict(model), dict(base), part)


def _outline(described: Mapping[str, Described]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in described.items()}


class _Renamed(Mapping[str, Tensor]):
    """A model's tensors under other names, read when asked for."""

    def __init__(self, model: StateDict, described: Mapping[str, Described], origins: Mapping[str, str]) -> None:
        self._model, self._described, self._origins = model, described, origins

    def __getitem__(self, name: str) -> Tensor:
        return self._model[self._origins[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)

    def describe(self, name: str) -> Described:
        return self._described[self._origins[name]]


def _fits(model: StateDict, wanted: StateDict) -> bool:
    return model.keys() == wanted.keys() and all(model[name].shape == wanted[name].shape for name in wanted)


def _with_other_prefix(model: StateDict, wanted: StateDict, part: str) -> StateDict | None:
    """Return the model's tensors if their names have one prefix more than the wanted ones, or one less."""
    first = next(iter(wanted))
    for name in model:
        if name.endswith(first):
            more, less = name.removesuffix(first), ""
        elif first.endswith(name):
            more, less = "", first.removesuffix(name)
        else:
            continue
        renamed = {less + key.removeprefix(more): tensor for key, tensor in model.items() if key.startswith(more)}
        # What lies beside the part, such as a text tower, doesn't matter.
        inside = {key: tensor for key, tensor in renamed.items() if key.startswith(part)}
        if _fits(inside, wanted):
            return inside
    return None


def _with_other_tower(model: StateDict, base: StateDict, wanted: StateDict, part: str) -> StateDict | None:
    """Return the model's vision tower as the base's library names it."""
    tower, own = _find_tower(model), _find_tower(base)
    if tower is None or own is None:
        return None
    origin, tensors = tower
    prefix, of_base = own
    if f"{origin}embeddings.class_embedding" in model and "proj" in of_base:
        tensors.setdefault("proj", of_base["proj"])
    if f"{prefix}conv1.weight" in base:
        renamed = {prefix + name: tensor for name, tensor in tensors.items()}
    else:
        renamed = _as_transformers(tensors, prefix)
    renamed = {name: tensor for name, tensor in renamed.items() if name.startswith(part)}
    return renamed if _fits(renamed, wanted) else None


def _find_tower(model: StateDict) -> tuple[str, dict[str, Tensor]] | None:
    """Return a vision tower's prefix, and its tensors under open_clip's names without a prefix."""
    for name in model:
        prefix = name.removesuffix("embeddings.class_embedding")
        if prefix != name:
            return prefix, _as_open_clip(model, prefix)
        prefix = name.removesuffix("class_embedding")
        if prefix != name and f"{prefix}conv1.weight" in model:
            return prefix, {key.removeprefix(prefix): t for key, t in model.items() if key.startswith(prefix)}
    return None


def _as_open_clip(model: StateDict, prefix: str) -> dict[str, Tensor]:
    outside = {theirs: ours for ours, theirs in _SAME.items()}
    inside = {theirs: ours for ours, theirs in _SAME_IN_LAYER.items()}
    tower = {}
    for key, tensor in model.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or not name.startswith(_PARTS) or name.endswith(_COUNTERS):
            continue
        if layer := _LAYER_OF_TRANSFORMERS.fullmatch(name):
            place, rest = f"transformer.resblocks.{layer[1]}", layer[2]
            packed = re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest)
            if packed is None:
                tower[f"{place}.{_renamed(rest, inside)}"] = tensor
            elif packed[1] == "q":
                three = [model.get(key.replace(".q_proj.", f".{which}_proj.")) for which in "qkv"]
                parts = [part for part in three if part is not None and part.shape == tensor.shape]
                if len(parts) == 3:
                    tower[f"{place}.attn.in_proj_{packed[2]}"] = torch.cat(parts)
        else:
            tower[_renamed(name, outside)] = tensor
    projection = model.get(prefix.removesuffix("vision_model.") + _PROJECTION)
    return tower if projection is None else tower | {"proj": projection.T}


def _as_transformers(tower: StateDict, prefix: str) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tower.items():
        if name == "proj":
            renamed[prefix.removesuffix("vision_model.") + _PROJECTION] = tensor.T
        elif layer := _LAYER.fullmatch(name):
            place, rest = f"{prefix}encoder.layers.{layer[1]}", layer[2]
            kind = rest.removeprefix("attn.in_proj_")
            if kind == rest:
                renamed[f"{place}.{_renamed(rest, _SAME_IN_LAYER)}"] = tensor
            elif tensor.ndim:
                for which, piece in zip("qkv", tensor.tensor_split(3), strict=True):
                    renamed[f"{place}.self_attn.{which}_proj.{kind}"] = piece
        else:
            renamed[prefix + _renamed(name, _SAME)] = tensor
    return renamed


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Return the other library's name of a tensor, by its own or its module's name; unknown names stay."""
    module, _, kind = name.rpartition(".")
    return names.get(name) or (f"{names[module]}.{kind}" if module in names else name)
