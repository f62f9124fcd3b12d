"""Which files of a folder are weights, by their names, and which belong together."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from mapmerge_core.errors import CheckpointError
from mapmerge_core.files import DAMAGED

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin")
ADAPTER_CONFIG = "adapter_config.json"

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_INDEXES = (".safetensors.index.json", ".bin.index.json")
# What a folder's weights may be called, the best first; the names are those of transformers and open_clip.
_WHOLE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
# What trainers leave beside the weights.
_NOT_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.(pt|pth|bin|safetensors)")
# Beside the weights: configurations and tokenizers.
_BESIDE = re.compile(
    r".*\.(json|model|tiktoken|jinja)|(tokenizer|vocab|merges|spiece|sentencepiece)[^/]*\.(txt|bpe|model)"
)
_SHARD = r"-\d+-of-\d+"
_IS_SHARD = re.compile(rf".*{_SHARD}\.(safetensors|bin)")


def main_file(names: Collection[str]) -> str | None:
    """Return which of a folder's files holds its weights, or the index of those that do; None if none does.

    An adapter comes before whole weights, as in transformers, and safetensors before pickles. A folder whose files have
    names of their own counts if only one of them can be weights.
    """
    adapters = _ADAPTERS if ADAPTER_CONFIG in names else ()
    order: tuple[str, ...] = (*adapters, *_WHOLE)
    for usual in order:
        if usual in names:
            return usual
    for is_one in (is_index, is_weights):
        candidates = [name for name in names if is_one(name)]
        if len(candidates) == 1:
            return candidates[0]
    return None


def is_weights(name: str) -> bool:
    """Return whether a file of this name may hold a model by itself: neither a shard nor a trainer's state."""
    return name.endswith(SUFFIXES) and not _NOT_WEIGHTS.fullmatch(name) and not _IS_SHARD.fullmatch(name)


def is_index(name: str) -> bool:
    """Return whether a file of this name says which tensors lie in which of a checkpoint's shards."""
    return name.endswith(_INDEXES)


def is_settings(name: str) -> bool:
    """Return whether a file of this name says how a folder's model is built or reads its inputs."""
    return _BESIDE.fullmatch(name) is not None and not is_index(name)


def shards_beside(index: str, names: Collection[str]) -> set[str]:
    """Return which of a folder's files are shards of ``index``, by their names alone."""
    for ending in _INDEXES:
        if index.endswith(ending):
            stem, suffix = index.removesuffix(ending), ending.removesuffix(".index.json")
            pattern = re.compile(re.escape(stem) + _SHARD + re.escape(suffix))
            return {name for name in names if pattern.fullmatch(name)}
    return set()


def is_adapter_folder(path: Path) -> bool:
    """Return whether a path is a PEFT adapter: its folder, or the file with its weights."""
    folder = path if path.is_dir() else path.parent
    return (folder / ADAPTER_CONFIG).is_file() and (
        path.name in _ADAPTERS if path != folder else any((folder / name).is_file() for name in _ADAPTERS)
    )


def file_of(path: Path) -> Path:
    """Return the file that holds a checkpoint's weights, or the index of those that do.

    Raises:
        CheckpointError: There is nothing, a folder holds no weights or several, or it is no checkpoint.
    """
    if path.is_dir():
        try:
            names = [file.name for file in path.iterdir() if file.is_file()]
        except OSError as error:
            raise CheckpointError(f"{path} can't be listed: {error.strerror}.") from error
        name = main_file(names)
        if name is None:
            count = sum(map(is_weights, names))
            content = f"{count} checkpoints" if count else "no weights"
            raise CheckpointError(f"{path} is a folder with {content}: choose a checkpoint file.")
        return path / name
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint {path}.")
    if not path.name.endswith(SUFFIXES) and not is_index(path.name):
        raise CheckpointError(f"{path} can't be read: a checkpoint's name ends in one of {', '.join(SUFFIXES)}.")
    return path


def read_index(path: Path) -> dict[str, Path]:
    """Return the shard of each tensor that an index lists.

    Raises:
        CheckpointError: It isn't an index, names a file outside of its folder, or a shard is missing.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(file) for name, file in listed.items()}
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
    except DAMAGED as error:
        raise CheckpointError(f"{path} is damaged or not an index of a checkpoint's shards.") from error
    if not shards:
        raise CheckpointError(f"{path} lists no tensors.")
    for file in dict.fromkeys(shards.values()):
        if Path(file).name != file or "\\" in file or not file.endswith(SUFFIXES):
            raise CheckpointError(
                f"{path} names the shard '{file}', which is not a checkpoint file in the same folder: "
                "get the checkpoint anew."
            )
        if not (path.parent / file).is_file():
            raise CheckpointError(
                f"{path} names the shard '{file}', which is missing beside it: get all files of the checkpoint."
            )
    return {name: path.parent / file for name, file in shards.items()}


def weights_files(path: Path) -> tuple[Path, ...]:
    """Return a checkpoint's files: one, an index with its shards, or an adapter's configuration and weights.

    Raises:
        CheckpointError: There is no checkpoint, or a shard is missing.
    """
    file = file_of(path)
    if is_index(file.name):
        return (file, *dict.fromkeys(read_index(file).values()))
    if is_adapter_folder(path):
        return (file.parent / ADAPTER_CONFIG, file)
    return (file,)


def hash_of_files(files: Iterable[Path], hash_file: Callable[[Path], str]) -> str:
    """Return one SHA-256 for one or more files.

    Of one file it is that of the file's bytes. Of several it is that of the lines that ``sha256sum`` prints for them in
    the order of their names: each file's hash, two spaces and its name.

    Args:
        files: The files, of different names.
        hash_file: Gives a file's SHA-256 in hexadecimal.
    """
    hashes = {file.name: hash_file(file) for file in files}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
