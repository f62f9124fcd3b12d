"""Write a merged model with its recipe and its card, and read the recipe back."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mapmerge_core import __version__
from mapmerge_core.errors import CheckpointError, ExportError
from mapmerge_core.weights.checkpoints import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike
    from torch import Tensor

    from mapmerge_core.weights.task_vectors import TaskVectors

_METADATA_KEY = "mapmerge"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Recipe:
    """How a merged model was made; stored as JSON in its file's header.

    Attributes:
        method: Which merge it is; task arithmetic is θ_pre + Σ c_n v_n.
        coefficients: c_n of each task vector, where the model is such a sum; `save_merged` fills it from its
            ``c``.
        layers: c_n of each task vector (in the order of ``sources``, the pre-trained model left out) for each
            tensor, where tensors have coefficients of their own.
        settings: What the method was given, by name.
        transform: What was done to the task vectors first, by name; empty if nothing was.
        sources: ``{"path": ..., "sha256": ...}`` of each fine-tuned model, and of ``"pretrained"``.
        predicted: The surrogates' metrics at c, as fractions.
        measured: The metrics measured on the test split, as fractions.
        tasks: Whatever is worth telling about each task, such as its metric and its number of examples.
        architecture: An open_clip configuration file or an open_clip architecture name; ``""`` if it is no
            CLIP.
        version: The version of mapmerge.
        created: When, ISO 8601 in UTC.
    """

    method: str = "task arithmetic"
    coefficients: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    transform: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    architecture: str = ""
    version: str = __version__
    created: str = field(default_factory=_now)


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: The merged model.
        card: Its model card, ``<stem>.README.md``.
        mergekit: The same merge as a mergekit recipe, ``<stem>.mergekit.yaml``, where mergekit can make it:
            task arithmetic on the task vectors as they are. (Its TIES trims tensor by tensor, its DARE draws
            other numbers, and its SLERP needs both models whole.)
        architecture: A copy of the open_clip configuration, ``<stem>.json``, if the recipe named a file.
        sha256: Of the merged model's bytes.
        n_bytes: Size of the merged model.
    """

    path: Path
    card: Path
    mergekit: Path | None
    architecture: Path | None
    sha256: str
    n_bytes: int


def save_merged(
    path: Path | str, vectors: TaskVectors, c: ArrayLike, *, recipe: Recipe | None = None
) -> ExportResult:
    """Writes θ(c) as `save_model` does.

    Args:
        path: The file to write, ending in ``.safetensors``; its folder is made if missing.
        vectors: What is merged.
        c: N coefficients.
        recipe: What is known about the merge; its coefficients are set to ``c``.

    Raises:
        ExportError: See `save_model`.
        CoefficientError: ``c`` has another length, or holds NaN or infinity.
    """
    coefficients = dict(zip(vectors.names, np.asarray(c, dtype=np.float64).tolist(), strict=True))
    merged = vectors.to("cpu").merge(c)
    return save_model(path, merged, recipe=replace(recipe or Recipe(), coefficients=coefficients))


def save_model(path: Path | str, merged: Mapping[str, Tensor], *, recipe: Recipe) -> ExportResult:
    """Writes a merged model as it is, and its card and recipes beside it.

    Everything is written to a temporary folder beside ``path``, synced, read back and compared, and only then
    moved to its name: a full disk or a crash leaves no broken file, and replaces no good one.

    Args:
        path: The file to write, ending in ``.safetensors``; its folder is made if missing.
        merged: A state dict, as `TaskVectors.merge` gives it.
        recipe: What is known about the merge.

    Raises:
        ExportError: The file can't be written, doesn't read back equal, or would hold infinity.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ExportError(f"{path} can't be exported to: the name of a merged model ends in .safetensors.")
    if path.is_dir():
        raise ExportError(f"{path} is a folder: choose a file name for the merged model.")
    storable = _storable(merged)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
    except OSError as error:
        raise ExportError(f"{path.parent} can't be written to: {error.strerror}.") from error
    try:
        return _write(path, folder, storable, recipe)
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to a new safetensors file, synced, without a recipe; its folder is made if missing.

    Raises:
        ExportError: The file can't be written, for which nothing is left of it, or would hold infinity.
    """
    storable = _storable(tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(storable, path)
        _sync(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            path.unlink()
        raise _not_written(path, error) from error


def _not_written(path: Path, error: Exception) -> ExportError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return ExportError(f"The merged model could not be written to {path}: {reason}.")


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read_recipe(path: Path | str) -> Recipe:
    """Reads the recipe from the header of a model that `save_merged` wrote.

    Raises:
        CheckpointError: The file can't be read, or mapmerge didn't write it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return Recipe(**json.loads(metadata[_METADATA_KEY]))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read as a safetensors file: {error}.") from error
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} holds no recipe: it was not exported by mapmerge.") from error


def _storable(merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, contiguous, tied ones copied: safetensors files share nothing between names."""
    storable: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in merged.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ExportError(
                f"The merged tensor '{name}' holds numbers too large for its dtype, "
                f"{str(tensor.dtype).removeprefix('torch.')}: choose smaller coefficients."
            )
        stored = tensor.cpu().contiguous()
        storable[name] = stored.clone() if id(tensor) in seen else stored
        seen.add(id(tensor))
    return storable


def _write(path: Path, folder: Path, merged: dict[str, Tensor], recipe: Recipe) -> ExportResult:
    """Writes every file into ``folder``, checks the model, and moves all to their names, the model last."""
    architecture = path.with_suffix(".json") if Path(recipe.architecture).suffix == ".json" else None
    card, mergekit = path.with_suffix(".README.md"), path.with_suffix(".mergekit.yaml")
    has_mergekit = bool(recipe.coefficients) and not recipe.transform
    if architecture:
        (folder / architecture.name).write_bytes(Path(recipe.architecture).read_bytes())
    if has_mergekit:
        (folder / mergekit.name).write_text(_mergekit_recipe(merged, recipe), encoding="utf-8")
    model = folder / path.name
    save_file(merged, model, metadata={_METADATA_KEY: json.dumps(asdict(recipe)), "format": "pt"})
    _check_written(model, merged, recipe)
    digest, n_bytes = sha256(model), model.stat().st_size
    text = _card(path, architecture, recipe, digest, mergekit.name if has_mergekit else None)
    (folder / card.name).write_text(text, encoding="utf-8")
    mode = (folder / card.name).stat().st_mode  # safetensors makes files for the owner's eyes only
    model.chmod(mode)
    targets = [card, *([mergekit] if has_mergekit else []), *([architecture] if architecture else []), path]
    for target in targets:
        _sync(folder / target.name)
    for target in targets:
        (folder / target.name).replace(target)
    if not has_mergekit:  # that of an earlier export to this name would make another model
        mergekit.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder can't be opened to be synced
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return ExportResult(path, card, mergekit if has_mergekit else None, architecture, digest, n_bytes)


def _check_written(model: Path, merged: Mapping[str, Tensor], recipe: Recipe) -> None:
    written = load_file(model)
    equal = written.keys() == merged.keys() and all(
        written[name].dtype == tensor.dtype and torch.equal(written[name], tensor)
        for name, tensor in merged.items()
    )
    if not equal or asdict(read_recipe(model)) != asdict(recipe):
        raise ExportError(f"{model.name} did not read back as it was written: check the disk.")


def _mergekit_recipe(merged: Mapping[str, Tensor], recipe: Recipe) -> str:
    """The same merge for mergekit: task_arithmetic without normalisation is θ_pre + Σ c_n v_n."""
    dtypes = [tensor.dtype for tensor in merged.values() if tensor.is_floating_point()]
    stored = max(set(dtypes), key=dtypes.count)
    computed = torch.promote_types(stored, torch.float32)
    text: str = yaml.safe_dump(
        {
            "merge_method": "task_arithmetic",
            "base_model": _source_path(recipe, "pretrained"),
            "models": [
                {"model": _source_path(recipe, name), "parameters": {"weight": coefficient}}
                for name, coefficient in recipe.coefficients.items()
            ],
            "parameters": {"normalize": False},
            "dtype": str(computed).removeprefix("torch."),
            "out_dtype": str(stored).removeprefix("torch."),
        },
        sort_keys=False,
        allow_unicode=True,
    )
    return text


def _source_path(recipe: Recipe, name: str) -> str:
    source = recipe.sources.get(name)
    return source["path"] if source else name


def _card(path: Path, architecture: Path | None, recipe: Recipe, digest: str, mergekit: str | None) -> str:
    """The model card: Markdown with the front matter that model hubs read."""
    tasks = [
        f"| {task} | {_percent(recipe.predicted.get(task))} | {_percent(recipe.measured.get(task))} |"
        for task in dict.fromkeys([*recipe.predicted, *recipe.measured])
    ]
    lines = [
        "---",
        f"tags: [mapmerge, merge{', task-arithmetic' if recipe.coefficients else ''}]",
        *(
            ["library_name: open_clip", "pipeline_tag: zero-shot-image-classification"]
            if recipe.architecture
            else []
        ),
        "---",
        "",
        f"# {path.stem}",
        "",
        *_origin(recipe),
        "",
    ]
    if tasks:
        lines += [
            "## Metrics",
            "",
            "Predicted by surrogates fitted to validation splits; measured on test splits.",
            "",
            "| task | predicted (%) | measured (%) |",
            "| --- | ---: | ---: |",
            *tasks,
            "",
        ]
    lines += ["## Use", "", "```python", *_loading(path, architecture, recipe), "```", ""]
    lines += [
        f"The recipe is in the file's header too (key `mapmerge`){',' if mergekit else '.'}",
        *([f"and beside it for mergekit (`{mergekit}`)."] if mergekit else []),
        f"SHA-256 of `{path.name}`: `{digest}`.",
        "",
    ]
    return "\n".join(lines)


def _origin(recipe: Recipe) -> list[str]:
    """The card's lines about what was merged and how."""
    coefficients = recipe.coefficients
    names = list(coefficients) or [name for name in recipe.sources if name != "pretrained"]
    about = [f"A merge of {len(names)} fine-tuned models into one by {recipe.method}"]
    if coefficients:
        about[0] += ": the pre-trained model plus"
        about.append("each model's difference to it, scaled by a coefficient.")
    else:
        about[0] += "."
    if recipe.transform:
        about.append(f"The differences were transformed first ({_listed(recipe.transform)}).")
    if recipe.settings:
        about.append(f"Settings: {_listed(recipe.settings)}.")
    if recipe.method == Recipe.method:
        about.append("No training was involved.")
    about.append(f"Made with mapmerge {recipe.version} on {recipe.created}.")
    scaled = [f" {coefficients[name]:.4f} |" if coefficients else "" for name in names]
    return [
        *about,
        "",
        "| model | coefficient | source |" if coefficients else "| model | source |",
        "| --- | ---: | --- |" if coefficients else "| --- | --- |",
        f"| pre-trained |{' |' if coefficients else ''} {_source(recipe, 'pretrained')} |",
        *(f"| {name} |{c} {_source(recipe, name)} |" for name, c in zip(names, scaled, strict=True)),
    ]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {'all' if v is None else v}" for name, v in values.items())


def _source(recipe: Recipe, name: str) -> str:
    source = recipe.sources.get(name, {})
    return f"`{Path(source['path']).name}`, SHA-256 `{source['sha256']}`" if source else "not recorded"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _loading(path: Path, architecture: Path | None, recipe: Recipe) -> list[str]:
    if not recipe.architecture:
        return [
            "from safetensors.torch import load_file",
            "",
            f'model.load_state_dict(load_file("{path.name}"))  # a model of the pre-trained architecture',
        ]
    name = architecture.stem if architecture else recipe.architecture
    register = [f'open_clip.add_model_config("{architecture.name}")'] if architecture else []
    return [
        "import open_clip",
        "",
        *register,
        f'model, _, preprocess = open_clip.create_model_and_transforms("{name}", pretrained="{path.name}")',
        f'tokenizer = open_clip.get_tokenizer("{name}")',
        "model.eval()",
    ]
