"""Write a merged model with its recipe and its card, and read the recipe back."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mapmerge_core import __version__
from mapmerge_core.errors import CheckpointError, ExportError
from mapmerge_core.files import DAMAGED
from mapmerge_core.weights.export.card import TASK_ARITHMETIC, Facts, mergekit_recipe, model_card
from mapmerge_core.weights.export.targets import Target
from mapmerge_core.weights.io.checks import Described, check_shape, describe
from mapmerge_core.weights.io.headers import read_header
from mapmerge_core.weights.io.tensor_files import write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

    from mapmerge_core.weights.vectors.base import Vectors

_METADATA_KEY = "mapmerge"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Recipe:
    """How a merged model was made; stored as JSON in its file's header.

    Attributes:
        method: The merge's title; task arithmetic is θ_pre + Σ c_n v_n.
        point: The coordinates of the merge's point, by name.
        coefficients: c_n of each task vector, where the model is such a sum of the models' own; `save_merged` fills it
            from its ``c``.
        layers: c_n of each task vector (in the order of ``sources``, the pre-trained model left out) for each tensor,
            where tensors have coefficients of their own.
        settings: What the merge was given, by name.
        sources: ``{"path": ..., "sha256": ...}`` of each fine-tuned model, and of ``"pretrained"``.
        predicted: The surrogates' values by objective; shares as fractions.
        measured: The values measured on the test split, likewise.
        tasks: What is known of each objective, such as its metric's name (``"metric"``), whether this is a share of 1
            (``"is_share"``, else shown as it is) and the number of test examples.
        family: Which family of models it is of; ``""`` if that isn't known.
        library: The library that loads its models: "open_clip", "timm", "transformers" or "".
        architecture: An open_clip configuration file, or an architecture's name in open_clip or timm; ``""`` if neither
            knows it.
        preprocessing: How the model's images are prepared (mean, std, interpolation, resize_mode), where not as
            open_clip's default is and no configuration file says it.
        version: The version of mapmerge.
        created: When, ISO 8601 in UTC.
    """

    method: str = TASK_ARITHMETIC
    point: Mapping[str, float] = field(default_factory=dict)
    coefficients: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    family: str = ""
    library: str = ""
    architecture: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__
    created: str = field(default_factory=_now)


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: The merged model.
        card: Its model card, ``<stem>.README.md``; in a folder ``README.md``.
        mergekit: The same merge as a mergekit recipe, ``<stem>.mergekit.yaml`` (in a folder ``mergekit.yaml``), where
            mergekit can make it: task arithmetic on the task vectors as they are. (Its TIES trims tensor by tensor, its
            DARE draws other numbers, and its SLERP needs both models whole.)
        architecture: A copy of the open_clip configuration, ``<stem>.json``, if the recipe named a file.
        sha256: Of the merged model's bytes.
        n_bytes: Size of the merged model.
        extra: The files of other tensors, by name.
        copied: The files from the pre-trained model's folder.
    """

    path: Path
    card: Path
    mergekit: Path | None
    architecture: Path | None
    sha256: str
    n_bytes: int
    extra: Mapping[str, Path] = field(default_factory=dict)
    copied: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Content:
    """What an export's tensors will be, the tensors themselves, and the files of others."""

    described: Mapping[str, Described]
    tensors: Iterable[tuple[str, Tensor]]
    extra: Mapping[str, Mapping[str, Tensor]]


def save_merged(
    path: Path | str,
    vectors: Vectors,
    c: ArrayLike,
    *,
    recipe: Recipe | None = None,
    like: Path | None = None,
    replaced: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> ExportResult:
    """Write θ(c) = θ_pre + Σ c_n v_n as `save_model` does.

    Args:
        path: As for `save_model`.
        vectors: What is merged.
        c: N coefficients.
        recipe: What is known about the merge; its coefficients are set to ``c``.
        like: As for `save_model`.
        replaced: Tensors of the model that are not the merge's, such as statistics taken anew; rounded to the
            pre-trained model's dtypes.
        extra: As for `save_model`.

    Raises:
        ExportError: See `save_model`.
        CheckpointError: A tensor of a model holds NaN or infinity, or can't be read any more; or a name or shape in
            ``replaced`` is not the model's.
        PointError: ``c`` has another length, or holds NaN or infinity.
    """
    vectors = vectors.to("cpu")
    coefficients = dict(zip(vectors.names, np.asarray(c, dtype=np.float64).tolist(), strict=True))
    return save_model(
        path,
        vectors.described,
        vectors.tensors(c),
        recipe=replace(recipe or Recipe(), coefficients=coefficients),
        like=like,
        replaced=replaced,
        extra=extra,
    )


def save_model(
    path: Path | str,
    described: Mapping[str, Described],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    recipe: Recipe,
    like: Path | None = None,
    replaced: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> ExportResult:
    """Write a merged model tensor by tensor, with its card and recipes beside it.

    Everything is written to a temporary folder beside ``path``, synced, read back and compared, and only then moved to
    its name: a full disk or a crash leaves no broken file, and replaces no good one.

    Args:
        path: The file to write, ending in ``.safetensors``; its folder is made if missing. With ``like``, the folder to
            write, or ``model.safetensors`` in it.
        described: The shape and dtype of every tensor.
        tensors: Every tensor by name, one at a time.
        recipe: What is known about the merge.
        like: The pre-trained model's folder, if it is one of transformers or timm, or the configuration of one of
            open_clip: the export becomes such a folder, with copies of its configuration and tokenizer, that its
            library loads.
        replaced: Tensors of the model that are not the merge's, such as statistics taken anew; rounded to the
            pre-trained model's dtypes.
        extra: Other tensors to write, such as heads: ``<stem>.<name>.safetensors`` beside a file,
            ``<name>.safetensors`` in a folder.

    Raises:
        ExportError: A file can't be written, doesn't read back equal, or would hold infinity; or ``like`` is no model's
            folder.
        CheckpointError: A tensor of a model holds NaN or infinity, or can't be read any more; or a name or shape in
            ``replaced`` is not the model's.
    """
    target = Target.of(Path(path), like)
    for name, tensor in (replaced or {}).items():
        if name not in described:
            raise CheckpointError(f"The tensor '{name}' can't replace one of the merged model, which lacks it.")
        check_shape("its replacement", name, tensor.shape, described[name].shape)
    content = _Content(described, _replacing(tensors, replaced) if replaced else tensors, extra or {})
    return _save(target, content, recipe, has_mergekit=bool(recipe.coefficients) and not replaced)


def read_recipe(path: Path | str) -> Recipe:
    """Read the recipe from the header of a model that `save_merged` wrote.

    Raises:
        CheckpointError: The file can't be read, or mapmerge didn't write it.
    """
    metadata = read_header(Path(path)).metadata
    try:
        return Recipe(**json.loads(metadata[_METADATA_KEY]))
    except DAMAGED as error:
        raise CheckpointError(f"{path} holds no recipe: it was not exported by mapmerge.") from error


def _replacing(tensors: Iterable[tuple[str, Tensor]], replaced: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, replaced[name].to(tensor.dtype) if name in replaced else tensor


def _save(target: Target, content: _Content, recipe: Recipe, *, has_mergekit: bool) -> ExportResult:
    """Write every file into a temporary folder, and move all to their names if that went well."""
    for name in content.extra:
        if Path(name).name != name or target.beside(f"{name}.safetensors") == target.model:
            raise ExportError(f"'{name}' can't be the name of a file beside the merged model: choose another.")
    parent = target.model.parent
    is_new = not parent.exists()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.model.stem}-", dir=parent))
    except OSError as error:
        raise ExportError(f"{parent} can't be written to: {error.strerror}.") from error
    try:
        result = _write(target, folder, content, recipe, has_mergekit=has_mergekit)
    except OSError as error:
        raise _not_written(target.model, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # an empty folder is all that is left of a failure
                parent.rmdir()
    return result


def _write(target: Target, folder: Path, content: _Content, recipe: Recipe, *, has_mergekit: bool) -> ExportResult:
    """Write every file into ``folder``, check the tensors, and move all to their names, the model last."""
    card, mergekit = target.beside("README.md"), target.beside("mergekit.yaml")
    has_architecture = target.like is None and Path(recipe.architecture).suffix == ".json"
    architecture = target.model.with_suffix(".json") if has_architecture else None
    if architecture:
        (folder / architecture.name).write_bytes(Path(recipe.architecture).read_bytes())
    copied = target.copied()
    for path in copied:
        shutil.copyfile(path, folder / path.name)
    if has_mergekit:
        dtypes = [dtype for _, dtype in content.described.values()]
        (folder / mergekit.name).write_text(mergekit_recipe(dtypes, recipe), encoding="utf-8")
    metadata = {_METADATA_KEY: json.dumps(asdict(recipe)), "format": "pt"}
    model = folder / target.model.name
    written = write_safetensors(model, content.described, content.tensors, metadata)
    if asdict(read_recipe(model)) != asdict(recipe):
        raise ExportError(f"{model.name} did not read back as it was written: check the disk.")
    extra = {name: target.beside(f"{name}.safetensors") for name in content.extra}
    digests = {
        path.name: write_safetensors(folder / path.name, describe(tensors), tensors.items(), {"format": "pt"}).sha256
        for path, tensors in zip(extra.values(), content.extra.values(), strict=True)
    }
    facts = Facts(
        model=target.model,
        digest=written.sha256,
        architecture=architecture.name if architecture else "",
        config=target.config,
        beside=[path.name for path in copied],
        mergekit=mergekit.name if has_mergekit else "",
        extra=digests,
    )
    (folder / card.name).write_text(model_card(recipe, facts), encoding="utf-8")
    beside = [target.model.with_name(path.name) for path in copied]
    optional = [*([mergekit] if has_mergekit else []), *([architecture] if architecture else [])]
    _move(folder, [card, *optional, *beside, *extra.values(), target.model])
    if not has_mergekit:  # that of an earlier export to this name would make another model
        mergekit.unlink(missing_ok=True)
    return ExportResult(
        path=target.model,
        card=card,
        mergekit=mergekit if has_mergekit else None,
        architecture=architecture,
        sha256=written.sha256,
        n_bytes=written.n_bytes,
        extra=extra,
        copied=tuple(beside),
    )


def _move(folder: Path, targets: Sequence[Path]) -> None:
    """Sync the files of these names in ``folder`` and move them, in this order."""
    for target in targets:
        with (folder / target.name).open("rb+") as file:
            os.fsync(file.fileno())
    for target in targets:
        (folder / target.name).replace(target)
    if os.name == "posix":  # elsewhere a folder can't be opened to be synced
        descriptor = os.open(targets[0].parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _not_written(path: Path, error: Exception) -> ExportError:
    if isinstance(error, ExportError):
        return error
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return ExportError(f"The merged model could not be written to {path}: {reason}.")
