"""What checkpoints are, and whether they belong together, before anything is merged."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from mapmerge_core.weights.checkpoints import read_state_dict, sha256
from mapmerge_core.weights.keys import adapt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mapmerge_core.weights.layout import StateDict

# Fine-tuning moves weights by a few percent of their norm; two models of other origins differ by about 140 %.
_FAR, _FAR_FROM_OTHERS = 0.5, 4.0
# A tensor that tells a library's models from others', the first that fits.
_SIGNS = (
    ("visual_projection.weight", "CLIP (transformers)"),
    ("embeddings.patch_embedding.weight", "CLIP vision tower (transformers)"),
    ("token_embedding.weight", "CLIP (open_clip)"),
    ("class_embedding", "CLIP vision tower (open_clip)"),
    ("model.embed_tokens.weight", "language model (transformers)"),
    ("transformer.wte.weight", "language model (transformers)"),
    ("layer4.1.conv1.weight", "ResNet"),
)


@dataclass(frozen=True)
class ModelReport:
    """One checkpoint, and how it compares with the pre-trained model if one was given.

    Attributes:
        name: What it is called here.
        path: The file.
        architecture: From the ``config.json`` beside it, or as far as its tensors' names tell; "" if unknown.
        n_bytes: Size of the file.
        n_tensors: How many tensors it holds.
        n_parameters: How many floating-point numbers they hold together.
        dtypes: Number of tensors of each dtype.
        sha256: Of the file.
        not_finite: Tensors with NaN or infinity.
        problems: Why it can't be merged onto the pre-trained model, a line for each tensor.
        changed: Tensors that differ from the pre-trained model's.
        n_compared: How many tensors were compared.
        l1_ratio: |v|₁ / |θ_pre|₁ over them; None if it doesn't fit.
        l2_ratio: |v|₂ / |θ_pre|₂ over them; None if it doesn't fit.
        warning: A sentence if it was clearly not fine-tuned from the pre-trained model, or is the same; "".
    """

    name: str
    path: Path
    architecture: str
    n_bytes: int
    n_tensors: int
    n_parameters: int
    dtypes: Mapping[str, int]
    sha256: str
    not_finite: tuple[str, ...]
    problems: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    n_compared: int = 0
    l1_ratio: float | None = None
    l2_ratio: float | None = None
    warning: str = ""


@dataclass(frozen=True, eq=False)
class Inspection:
    """The pre-trained model if one was given, the others, and their task vectors' cosines.

    Attributes:
        pretrained: What the others are compared with.
        models: A report for each.
        part: The prefix of the tensors that are compared, ``""`` for all.
        cosines: Between task vectors, n x n; NaN for models that don't fit; None without a pre-trained model.
    """

    pretrained: ModelReport | None
    models: tuple[ModelReport, ...]
    part: str
    cosines: np.ndarray | None


def inspect_models(models: Mapping[str, Path], pretrained: Path | None = None) -> Inspection:
    """Reads checkpoints and compares them, tensor by tensor, with the model that they started from.

    Of CLIP models the vision towers are compared, which are what is merged.

    Args:
        models: The checkpoints by name.
        pretrained: What they were fine-tuned from.

    Raises:
        CheckpointError: A file can't be read. What doesn't fit is reported, not raised.
    """
    states = {name: read_state_dict(path) for name, path in models.items()}
    reports = {name: _describe(name, models[name], state) for name, state in states.items()}
    if pretrained is None:
        return Inspection(None, tuple(reports.values()), "", None)
    base = read_state_dict(pretrained)
    part = "visual." if any(key.startswith("visual.") for key in base) else ""
    compared = {key: tensor for key, tensor in base.items() if key.startswith(part)}
    fitting = {name: adapt(state, base, part) for name, state in states.items()}
    problems = {name: _problems(state, compared, part) for name, state in fitting.items()}
    fitting = {name: state for name, state in fitting.items() if not problems[name]}
    sums, gram = _compare(compared, fitting)
    cosines = np.full((len(models), len(models)), np.nan)
    places = [list(models).index(name) for name in fitting]
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines[np.ix_(places, places)] = gram / np.outer(norms, norms)
        l2_ratios = dict(zip(fitting, (norms / sums.l2).tolist(), strict=True))
    described = []
    for name, report in reports.items():
        values = dict(vars(report)) | {"problems": problems[name]}
        if name in fitting:
            values |= {
                "changed": tuple(sums.changed[name]),
                "n_compared": len(compared),
                "l1_ratio": sums.l1_of[name] / sums.l1 if sums.l1 else 0.0,
                "l2_ratio": l2_ratios[name],
                "warning": odd_one(name, l2_ratios),
            }
        described.append(ModelReport(**values))
    about_base = _describe("pretrained", pretrained, base)
    return Inspection(about_base, tuple(described), part, cosines)


def odd_one(name: str, l2_ratios: Mapping[str, float]) -> str:
    """Returns a sentence if a model's distance to the pre-trained model is no fine-tuning's, else "".

    Args:
        name: The model.
        l2_ratios: |v|₂ / |θ_pre|₂ of it and of all that it is merged with.
    """
    own = l2_ratios[name]
    others = [ratio for other, ratio in l2_ratios.items() if other != name]
    if own == 0:
        return f"'{name}' is the pre-trained model itself: fine-tuning changed nothing that is merged."
    if own > _FAR:
        return (
            f"'{name}' was probably not fine-tuned from this pre-trained model: it differs from it by "
            f"{own:.0%} of its norm, where fine-tuning changes a few percent."
        )
    if len(others) > 1 and median(others) > 0 and own > _FAR_FROM_OTHERS * median(others):
        return (
            f"'{name}' may have another pre-trained model: it differs from this one by {own:.1%} of its "
            f"norm, the other models by {median(others):.1%} in the middle."
        )
    return ""


def _describe(name: str, path: Path, state: StateDict) -> ModelReport:
    floats = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    return ModelReport(
        name=name,
        path=Path(path),
        architecture=_architecture(Path(path), state),
        n_bytes=Path(path).stat().st_size,
        n_tensors=len(state),
        n_parameters=sum(tensor.numel() for tensor in floats.values()),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())),
        sha256=sha256(path),
        not_finite=tuple(key for key, tensor in floats.items() if not tensor.isfinite().all()),
    )


def _architecture(path: Path, state: StateDict) -> str:
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        named = config.get("architectures") or [config.get("architecture")]
        if isinstance(named[0], str):
            return named[0]
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        pass  # no configuration of transformers or timm
    return next((title for sign, title in _SIGNS if any(key.endswith(sign) for key in state)), "")


def _problems(model: StateDict, base: StateDict, part: str) -> tuple[str, ...]:
    found = [key for key in model if key.startswith(part)]
    lines = [f"lacks '{key}' of shape {tuple(base[key].shape)}" for key in base if key not in model]
    lines += [f"has '{key}' of shape {tuple(model[key].shape)} besides" for key in found if key not in base]
    for key in found:
        if key in base and model[key].shape != base[key].shape:
            lines.append(f"has '{key}' of shape {tuple(model[key].shape)}, not {tuple(base[key].shape)}")
        elif key in base and model[key].is_floating_point() != base[key].is_floating_point():
            lines.append(f"has '{key}' as {model[key].dtype}, not {base[key].dtype}".replace("torch.", ""))
    return tuple(lines)


@dataclass(frozen=True)
class _Sums:
    l1: float
    l2: float
    l1_of: Mapping[str, float]
    changed: Mapping[str, Sequence[str]]


def _compare(base: StateDict, models: Mapping[str, StateDict]) -> tuple[_Sums, np.ndarray]:
    """Norms and inner products of task vectors, one tensor at a time, summed in float64."""
    l1 = l2 = 0.0
    l1_of = dict.fromkeys(models, 0.0)
    changed: dict[str, list[str]] = {name: [] for name in models}
    gram = np.zeros((len(models), len(models)))
    for key, tensor in base.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        flat = _wide(tensor)
        l1 += float(flat.abs().sum())
        l2 += float(flat.square().sum())
        rows = torch.stack([_wide(state[key]) - flat for state in models.values()]) if models else flat[None]
        for name, row in zip(models, rows, strict=False):
            l1_of[name] += float(row.abs().sum())
            if row.any():
                changed[name].append(key)
        if models:
            gram += (rows @ rows.T).double().numpy()
    return _Sums(l1, l2**0.5, l1_of, changed), gram


def _wide(tensor: Tensor) -> Tensor:
    return tensor.flatten().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
