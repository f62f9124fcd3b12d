"""PEFT's LoRA adapters: low-rank differences to a model's tensors, and tensors that they replace."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapmerge_core.errors import CheckpointError
from mapmerge_core.files import DAMAGED
from mapmerge_core.weights.io.checkpoints import open_state_dict
from mapmerge_core.weights.io.folders import ADAPTER_CONFIG, file_of
from mapmerge_core.weights.io.hub import is_adapter
from mapmerge_core.weights.io.keys import compared

__all__ = ["Adapter", "LowRank", "find_misfits", "is_adapter", "read_adapter"]

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$)[\w-]+)?(?:\.weight)?")
_WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.\w+(?=\.))?|base_layer)(?=\.)")
# Settings under which an adapter is more than a low-rank difference to the model that it names.
_MORE = {
    "use_dora": "magnitudes (DoRA)",
    "use_qalora": "pooled inputs (QALoRA)",
    "use_bdlora": "block-diagonal factors",
    "alora_invocation_tokens": "tokens that switch it on",
    "arrow_config": "routing between adapters",
    "kasa_config": "singular values (KaSA)",
    "monteclora_config": "random factors",
    "layer_replication": "replicated layers",
    "target_parameters": "factors of parameters inside modules",
    "trainable_token_indices": "single tokens' embeddings",
    "lora_bias": "biases in its factors",
}
# Initialisations that change the base model's weights, so that the factors alone are not the difference.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


@dataclass(frozen=True, eq=False)
class LowRank:
    """A difference of low rank: scale · B A, transposed where the base model stores its weights in x out.

    A convolution's difference has its last dimensions flattened into one.

    Attributes:
        A: r x in.
        B: out x r.
        scale: α / r, or α / √r for rank-stabilised LoRA.
        transposed: Whether the base model's tensor is in x out, as an embedding's is.
    """

    A: Tensor
    B: Tensor
    scale: float
    transposed: bool = False

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Rows x r and r x columns, whose product times `scale` is the difference as the base stores it."""
        return (self.A.T, self.B.T) if self.transposed else (self.B, self.A)

    @property
    def shape(self) -> torch.Size:
        """Rows and columns of the difference."""
        left, right = self.factors
        return torch.Size((left.shape[0], right.shape[1]))

    def scaled_factors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return two matrices whose product is the difference as the base stores it."""
        left, right = self.factors
        return left.to(device, dtype), self.scale * right.to(device, dtype)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the whole difference."""
        left, right = self.scaled_factors(dtype)
        return left @ right

    def inner(self, other: LowRank) -> float:
        """Return the inner product ⟨s B A, s' B' A'⟩ = s s' Σ (BᵀB') ∘ (A A'ᵀ), in float64.

        It needs matrices of r x r' numbers only. With itself it is the squared Frobenius norm.
        """
        (left, right), (their_left, their_right) = self.factors, other.factors
        lefts = left.double().T @ their_left.double()
        rights = right.double() @ their_right.double().T
        return self.scale * other.scale * float((lefts * rights).sum())


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter changes about its base model, by the base model's names; no name is in both.

    Attributes:
        deltas: Differences of low rank.
        full: Tensors that replace the base model's: ``modules_to_save``, trained biases.
    """

    deltas: Mapping[str, LowRank]
    full: Mapping[str, Tensor]


def tensor_of(model: Mapping[str, Tensor] | Adapter, key: str) -> LowRank | Tensor | None:
    """Return what a model holds of a tensor: all of it, factors of its difference, or None where that is the base's."""
    if isinstance(model, Adapter):
        return model.deltas.get(key, model.full.get(key))
    return model[key]


def read_adapter(path: Path, base_keys: Iterable[str], without: Collection[str] = ()) -> Adapter:
    """Read a LoRA adapter of the PEFT library.

    Names are found in the base model as they are, or with a prefix more or less (``model.``).

    Args:
        path: The adapter's folder, or the file with its weights.
        base_keys: The names of the base model's tensors.
        without: Names of tensors that are left out of all models, such as heads.

    Raises:
        CheckpointError: It can't be read, is another kind of adapter than LoRA or has what low-rank factors can't
            express, a factor lacks its other, or a name is not in the base model or fits several.
    """
    deltas, full = _read(path)
    base = tuple(base_keys)
    kept = set(compared([*deltas, *full], base, without))
    deltas = {name: low_rank for name, low_rank in deltas.items() if name in kept}
    full = {name: tensor for name, tensor in full.items() if name in kept}
    names, misfits = _match(deltas, full, base)
    if misfits:
        raise CheckpointError(
            f"The adapter {path} {misfits[0]}: it was trained on another model, or on a tensor that is tied "
            "to another one in this model."
        )
    return Adapter(
        {names[name]: low_rank for name, low_rank in deltas.items() if name in names},
        {names[name]: tensor for name, tensor in full.items() if name in names},
    )


def find_misfits(path: Path, base_keys: Iterable[str]) -> tuple[str, ...]:
    """Return a line for each tensor of an adapter that can't be found in a base model; see `read_adapter`.

    Raises:
        CheckpointError: The adapter can't be read.
    """
    deltas, full = _read(path)
    return _match(deltas, full, tuple(base_keys))[1]


def _match(
    deltas: Mapping[str, LowRank], full: Mapping[str, Tensor], base_keys: tuple[str, ...]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the base model's name of each tensor, and a line for each that has none or could have several."""
    in_base, names, misfits = set(base_keys), {}, []
    for name in sorted(deltas.keys() | full.keys()):
        matches = [name]
        if name not in in_base:
            matches = [key for key in base_keys if key.endswith(f".{name}") or name.endswith(f".{key}")]
        if len(matches) == 1:
            names[name] = matches[0]
        elif matches:
            misfits.append((name, f"could be '{matches[0]}' or '{matches[1]}' in the pre-trained model"))
        else:
            misfits.append((name, "the pre-trained model lacks"))
    lines = (
        f"changes '{name}', which {why}"
        for name, why in misfits
        if not _is_copy(name, names, deltas) and not _is_copy(name, names, full)
    )
    return names, tuple(lines)


def _is_copy(name: str, names: Mapping[str, str], tensors: Mapping[str, LowRank] | Mapping[str, Tensor]) -> bool:
    """Return whether a tensor repeats one that the base model has, as an output layer tied to embeddings does."""
    own = tensors.get(name)
    return own is not None and any(_same(own, tensors[other]) for other in names if other in tensors)


def _same(one: LowRank | Tensor, other: LowRank | Tensor) -> bool:
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return one.scale == other.scale and all(map(torch.equal, one.factors, other.factors))
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _read(path: Path) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Return differences and whole tensors by the names that the adapter gives them; no name is in both."""
    file = file_of(path)
    config = _read_config(file.parent)
    stored = open_state_dict(file)
    parts: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    full: dict[str, Tensor] = {}
    for key in stored:
        name = key.removeprefix(_PREFIX)
        if factor := _FACTOR.fullmatch(name):
            parts.setdefault(factor[1], {})[factor[3]] = stored[key]
            if factor[2]:
                embeddings.add(factor[1])
        elif "lora_" in name:
            raise CheckpointError(_too_much(path, f"'{name}'"))
        elif ".original_module." not in name:  # untouched, and saved with embeddings
            full[_WRAPPED.sub("", name)] = stored[key]
    deltas = {
        f"{module}.weight": _low_rank(path, module, pair, config, embedding=module in embeddings)
        for module, pair in parts.items()
    }
    for name in deltas.keys() & full.keys():  # a saved embedding, and factors on top of it
        delta, whole = deltas.pop(name), full[name]
        if delta.shape.numel() != whole.numel():
            raise CheckpointError(f"The factors of '{name}' in {path} don't fit the tensor saved with them.")
        full[name] = whole.float() + delta.dense().view(whole.shape)
    return deltas, full


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
    except DAMAGED as error:
        raise CheckpointError(f"{path} is damaged or not an adapter's configuration.") from error
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of the kind {kind}, and only LoRA can be merged as it is: merge it into "
            "its base model with peft's merge_and_unload, and choose the result."
        )
    for setting, what in _MORE.items():
        if config.get(setting):
            raise CheckpointError(_too_much(folder, what))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(_too_much(folder, f"a base model that its start ({start}) has changed"))
    return dict(config)


def _too_much(path: Path, what: str) -> str:
    return (
        f"{path} is an adapter with {what}, which is more than a difference of low rank: merge it into its "
        "base model with peft's merge_and_unload, and choose the result."
    )


def _low_rank(
    path: Path, module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], *, embedding: bool
) -> LowRank:
    if len(pair) < 2:
        lacking = "A" if "B" in pair else "B"
        raise CheckpointError(f"{path} lacks the factor lora_{lacking} of '{module}': get the adapter anew.")
    A, B = (pair[factor].flatten(1) if pair[factor].ndim > 1 else pair[factor] for factor in "AB")
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or not A.shape[0]:
        shapes = f"{tuple(pair['A'].shape)} and {tuple(pair['B'].shape)}"
        raise CheckpointError(f"The factors of '{module}' in {path} have shapes {shapes}, which don't fit.")
    try:
        alpha = float(_by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
    except (LookupError, TypeError, ValueError, re.error) as error:
        raise CheckpointError(f"The configuration of {path} has no usable lora_alpha for '{module}'.") from error
    rank = A.shape[0]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(A, B, scale, transposed=embedding or bool(config.get("fan_in_fan_out")))


def _by_pattern(patterns: Mapping[str, Any], module: str, default: object) -> Any:  # noqa: ANN401 - from JSON
    """Return the value of the first pattern that a module's name ends in, as PEFT looks it up."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)
