"""What checkpoints are, and whether they belong together, before anything is merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from mapmerge_core.files import read_json
from mapmerge_core.weights.io.adapters import Adapter, find_misfits, is_adapter, read_adapter, tensor_of
from mapmerge_core.weights.io.checkpoints import open_state_dict, sha256
from mapmerge_core.weights.io.checks import Described, StateDict, describe, dtype_name, is_finite
from mapmerge_core.weights.io.folders import weights_files
from mapmerge_core.weights.io.hub import HubRef, fetch, parse_source
from mapmerge_core.weights.io.keys import adapted, choose
from mapmerge_core.weights.io.norms import Norms, NormSums, matrix_shape

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
        path: The file, folder or reference to a hub.
        architecture: From the ``config.json`` beside it, or as far as its tensors' names tell; "" if unknown.
        n_bytes: Size of its files of weights.
        n_tensors: How many tensors it holds; an adapter's are its factors.
        n_parameters: How many floating-point numbers they hold together.
        dtypes: Number of tensors of each dtype.
        sha256: Of the file; of several files together (see `checkpoints.sha256`).
        not_finite: Tensors with NaN or infinity.
        problems: Why it can't be merged onto the pre-trained model, a line for each tensor.
        changed: Tensors that differ from the pre-trained model's.
        n_compared: How many tensors were compared.
        l1_ratio: |v|₁ / |θ_pre|₁ over them; None if it doesn't fit.
        l2_ratio: |v|₂ / |θ_pre|₂ over them; None if it doesn't fit.
        warning: A sentence if it was clearly not fine-tuned from the pre-trained model, or is the same; "".
    """

    name: str
    path: Path | HubRef
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


def inspect_models(
    models: Mapping[str, Path | str | HubRef],
    pretrained: Path | str | HubRef | None = None,
    *,
    without: Collection[str] = (),
) -> Inspection:
    """Read checkpoints and adapters, and compare them with the model that they were fine-tuned from.

    One tensor is read after the other, so that no model has to fit in memory. Of CLIP models only the vision towers,
    which are what is merged, are compared.

    Args:
        models: The checkpoints or adapters by name.
        pretrained: What they were fine-tuned from.
        without: Names of tensors that aren't compared, such as those of heads.

    Raises:
        CheckpointError: A checkpoint can't be fetched or read. What doesn't fit is reported, not raised.
    """
    sources = {name: parse_source(source) for name, source in models.items()}
    paths = {name: fetch(source) for name, source in sources.items()}
    reports = {name: _describe(name, source, paths[name]) for name, source in sources.items()}
    if pretrained is None:
        return Inspection(None, tuple(reports.values()), "", None)
    origin = parse_source(pretrained)
    whole = open_state_dict(origin)
    base = choose(whole, [name for name in whole if name not in without])
    part = "visual." if any(key.startswith("visual.") for key in base) else ""
    compared = {key: about for key, about in describe(base).items() if key.startswith(part)}
    problems, fitting = {}, {}
    for name, path in paths.items():
        problems[name], model = _fit(path, base, compared, part, without)
        if model is not None:
            fitting[name] = model
    norms, changed = _compare(base, compared, fitting)
    cosines = np.full((len(models), len(models)), np.nan)
    places = [list(models).index(name) for name in fitting]
    cosines[np.ix_(places, places)] = norms.cosines
    l1_ratios, l2_ratios = (dict(zip(fitting, r.tolist(), strict=True)) for r in (norms.l1_ratios, norms.l2_ratios))
    compared_reports = tuple(
        replace(report, problems=problems[name])
        if name not in fitting
        else replace(
            report,
            changed=tuple(changed[name]),
            n_compared=len(compared),
            l1_ratio=l1_ratios[name],
            l2_ratio=l2_ratios[name],
            warning=odd_one(name, l2_ratios),
        )
        for name, report in reports.items()
    )
    return Inspection(_describe("pretrained", origin, fetch(origin)), compared_reports, part, cosines)


def odd_one(name: str, l2_ratios: Mapping[str, float]) -> str:
    """Return a sentence if a model's distance to the pre-trained model is no fine-tuning's, else "".

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


def _describe(name: str, source: Path | HubRef, path: Path) -> ModelReport:
    files = weights_files(path)
    state = open_state_dict(files[-1] if is_adapter(path) else path)
    described = describe(state)
    floats = [key for key, about in described.items() if about.dtype.is_floating_point]
    return ModelReport(
        name=name,
        path=source,
        architecture=_architecture(path, described),
        n_bytes=sum(file.stat().st_size for file in files),
        n_tensors=len(state),
        n_parameters=sum(described[key].shape.numel() for key in floats),
        dtypes=dict(Counter(dtype_name(about.dtype) for about in described.values())),
        sha256=sha256(path),
        not_finite=tuple(key for key in floats if not is_finite(state[key])),
    )


def _architecture(path: Path, described: Mapping[str, Described]) -> str:
    if is_adapter(path):
        ranks = {str(about.shape[0]) for key, about in described.items() if ".lora_" in key and "A" in key}
        return f"LoRA adapter (rank {', '.join(sorted(ranks, key=int))})" if ranks else "adapter"
    config = read_json((path if path.is_dir() else path.parent) / "config.json")
    named = config.get("architectures") or config.get("architecture")
    if isinstance(named, list):
        named = named[0]
    if isinstance(named, str):
        return named
    return next((title for sign, title in _SIGNS if any(key.endswith(sign) for key in described)), "")


def _fit(
    path: Path, base: StateDict, compared: Mapping[str, Described], part: str, without: Collection[str]
) -> tuple[tuple[str, ...], StateDict | Adapter | None]:
    """Return why a model can't be merged onto its base, and the model where nothing stands against it."""
    if is_adapter(path):
        problems = find_misfits(path, base)
        if problems:
            return problems, None
        adapter = read_adapter(path, base, without)
        problems = _problems_of_adapter(adapter, compared)
        return problems, None if problems else adapter
    state = adapted(open_state_dict(path), base, part, without)
    problems = _problems(describe(state), compared, part)
    return problems, None if problems else state


def _problems(model: Mapping[str, Described], base: Mapping[str, Described], part: str) -> tuple[str, ...]:
    inside = [key for key in model if key.startswith(part)]
    lines = [f"lacks '{key}' of shape {tuple(base[key].shape)}" for key in base if key not in model]
    lines += [f"has '{key}' of shape {tuple(model[key].shape)} besides" for key in inside if key not in base]
    for key in inside:
        if key in base and model[key].shape != base[key].shape:
            lines.append(f"has '{key}' of shape {tuple(model[key].shape)}, not {tuple(base[key].shape)}")
        elif key in base and model[key].dtype.is_floating_point != base[key].dtype.is_floating_point:
            lines.append(f"has '{key}' as {model[key].dtype}, not {base[key].dtype}".replace("torch.", ""))
    return tuple(lines)


def _problems_of_adapter(adapter: Adapter, base: Mapping[str, Described]) -> tuple[str, ...]:
    lines = []
    for key, low_rank in adapter.deltas.items():
        if key in base and (not base[key].shape or low_rank.shape != matrix_shape(base[key].shape)):
            lines.append(f"changes '{key}' by a matrix of shape {tuple(low_rank.shape)}, not {tuple(base[key].shape)}")
    for key, tensor in adapter.full.items():
        if key in base and tensor.shape != base[key].shape:
            lines.append(f"has '{key}' of shape {tuple(tensor.shape)}, not {tuple(base[key].shape)}")
    return tuple(lines)


def _compare(
    base: StateDict, compared: Mapping[str, Described], models: Mapping[str, StateDict | Adapter]
) -> tuple[Norms, dict[str, list[str]]]:
    """Return norms of the models' task vectors, and for each model the tensors that differ from the base's."""
    sums, changed = NormSums(len(models)), {name: list[str]() for name in models}
    for key, (shape, dtype) in compared.items():
        if dtype.is_floating_point and shape.numel():
            tensor = base[key]
            sums.add_base(tensor)
            distances = sums.add_changes(tensor, [tensor_of(model, key) for model in models.values()])
            for name, distance in zip(models, distances.tolist(), strict=True):
                if distance != 0:
                    changed[name].append(key)
    return sums.norms(), changed
