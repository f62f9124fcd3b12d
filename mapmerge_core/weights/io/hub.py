"""Weights that lie on a hub: how they are named, what a download would take, and where it ends up."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.folders import ADAPTER_CONFIG, is_adapter_folder, is_settings, main_file, shards_beside
from mapmerge_core.weights.io.hub_errors import explain, is_unreachable, not_a_model

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["ADAPTER_CONFIG", "Download", "HubRef", "fetch", "is_adapter", "parse_source", "plan_downloads"]

_URL = re.compile(r"(hf|openclip):/{1,2}(.*)", re.DOTALL)
_NAME = r"[A-Za-z0-9][\w.-]*"
_REVISION = r"refs/(?:pr|convert)/[\w.-]+|[^/@]+"
_HUGGING_FACE = re.compile(rf"({_NAME}/{_NAME})(?:@({_REVISION}))?(?:/([^/].*?))?/?")
_OPEN_CLIP = re.compile(r"([\w.-]+)/([\w.-]+)")


@dataclass(frozen=True)
class HubRef:
    """Weights on a hub: ``hf://organisation/name[@revision][/file or folder]`` or ``openclip://ARCHITECTURE/TAG``.

    Build one with `parse_source`, which checks it.

    Attributes:
        url: The reference as text.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def is_open_clip(self) -> bool:
        """Whether it names one of open_clip's own pre-trained models."""
        return self.url.startswith("openclip://")

    @property
    def parts(self) -> tuple[str, str | None, str]:
        """Repository, revision or None, and path inside it or ""; of open_clip's: architecture, None, tag."""
        rest = self.url.partition("://")[2]
        if self.is_open_clip:
            architecture, _, tag = rest.partition("/")
            return architecture, None, tag
        match = _HUGGING_FACE.fullmatch(rest)
        if match is None:
            raise CheckpointError(not_a_model(self.url))
        return match[1], unquote(match[2]) if match[2] else None, match[3] or ""

    @property
    def name(self) -> str:
        """A short name: the file's stem or folder inside the repository, else the repository's own."""
        repository, _, path = self.parts
        if self.is_open_clip:
            return f"{repository}-{path}"
        return PurePosixPath(path).stem if path else repository.rpartition("/")[2]


@dataclass(frozen=True)
class Download:
    """What `fetch` would still have to bring.

    Attributes:
        url: The reference.
        n_bytes: How much is missing; None where that can't be known, such as without a network.
        cached: Whether everything is here already.
    """

    url: str
    n_bytes: int | None
    cached: bool


def parse_source(text: Path | str | HubRef) -> Path | HubRef:
    """Return the reference to a hub that a text is, else the path.

    A `Path` that was made from a reference (which folds its two slashes into one) is understood as well.

    Raises:
        CheckpointError: It begins like a reference, but is none, or names a dataset.
    """
    if isinstance(text, HubRef):
        return text
    match = _URL.fullmatch(str(text))
    if str(text).startswith(("http://", "https://", "http:/", "https:/")):
        raise CheckpointError(f"'{text}' is a page's address: write hf://organisation/name for a model on the hub.")
    if match is None:
        return Path(text)
    kind, rest = match[1], match[2].strip()
    url = f"{kind}://{rest.rstrip('/')}"
    if kind == "openclip":
        if _OPEN_CLIP.fullmatch(rest) is None:
            raise CheckpointError(
                f"'{url}' is not one of open_clip's models: write openclip://ARCHITECTURE/TAG, such as "
                "openclip://ViT-B-32/openai."
            )
        return HubRef(url)
    if rest.startswith("datasets/"):
        raise CheckpointError(f"'{url}' is a dataset, not a model: choose it as a task's data.")
    match = _HUGGING_FACE.fullmatch(rest)
    if match is None or ".." in PurePosixPath(unquote(match[2] or ""), match[3] or "").parts:
        raise CheckpointError(not_a_model(url))
    return HubRef(url)


def is_adapter(source: Path | HubRef) -> bool:
    """Return whether a source is a PEFT adapter: its folder, or the file with its weights.

    A reference counts as one only once it was fetched.
    """
    if isinstance(source, HubRef):
        local = None if source.is_open_clip else _cached(source)
        return local is not None and is_adapter_folder(local)
    return is_adapter_folder(source)


def fetch(source: Path | str | HubRef) -> Path:
    """Return the local file or folder of a source; what isn't here yet is downloaded, with progress.

    Of a repository only weights (safetensors if there are both kinds), configurations and tokenizers are brought.
    huggingface_hub's cache and its offline mode (``HF_HUB_OFFLINE``) are respected.

    Raises:
        CheckpointError: There is no such model, revision or file, it is gated, the hub can't be reached, or offline
            mode is on and the cache doesn't hold it.
    """
    source = parse_source(source)
    if isinstance(source, Path):
        return source
    if source.is_open_clip:
        return _fetch_open_clip(source)
    from huggingface_hub import snapshot_download

    repository, revision, path = source.parts
    if not _offline():
        try:
            files = _wanted(source, _ask(source))
            patterns = [glob.escape(name) for name in files]
            folder = snapshot_download(repository, revision=revision, allow_patterns=patterns)
            return Path(folder, path)
        except CheckpointError:
            raise
        except Exception as error:
            if not is_unreachable(error) or _cached(source) is None:
                raise explain(source.url, source.parts, error) from error
    cached = _cached(source)
    if cached is None:
        raise CheckpointError(_not_cached(source))
    return cached


def plan_downloads(sources: Iterable[Path | HubRef]) -> list[Download]:
    """Return what `fetch` would download for each source on a hub, once for each; paths are left out.

    Raises:
        CheckpointError: A hub says that there is no such model.
    """
    refs = dict.fromkeys(ref for ref in sources if isinstance(ref, HubRef))
    return [_plan_open_clip(ref) if ref.is_open_clip else _plan(ref) for ref in refs]


def _plan(ref: HubRef) -> Download:
    from huggingface_hub import try_to_load_from_cache

    if _offline():
        return Download(ref.url, None, _cached(ref) is not None)
    try:
        info = _ask(ref)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        missing = [
            sizes[name]
            for name in _wanted(ref, info)
            if not isinstance(try_to_load_from_cache(ref.parts[0], name, revision=info.sha), str)
        ]
    except CheckpointError:
        raise
    except Exception as error:
        if not is_unreachable(error):
            raise explain(ref.url, ref.parts, error) from error
        return Download(ref.url, None, _cached(ref) is not None)
    n_bytes = None if None in missing else sum(size or 0 for size in missing)
    return Download(ref.url, n_bytes, not missing)


def _ask(ref: HubRef) -> ModelInfo:
    from huggingface_hub import HfApi

    repository, revision, _ = ref.parts
    return HfApi().model_info(repository, revision=revision, files_metadata=True)


def _wanted(ref: HubRef, info: ModelInfo) -> list[str]:
    """Return the files of a repository that a reference needs."""
    names = [file.rfilename for file in info.siblings or ()]
    path = ref.parts[2]
    if path in names:
        folder, chosen = path.rpartition("/")[0], path.rpartition("/")[2]
    else:
        folder, chosen = path, ""
    prefix = f"{folder}/" if folder else ""
    here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    here = [name for name in here if "/" not in name]
    if not here:
        raise CheckpointError(f"{ref} was not found: the model has no file or folder '{path}'.")
    chosen = chosen or main_file(here) or ""
    if not chosen:
        raise CheckpointError(
            f"{ref} holds no weights, or several without saying which count: add a file's name to the reference."
        )
    beside = {name for name in here if is_settings(name)}
    wanted = {chosen} | beside | shards_beside(chosen, here)
    return [prefix + name for name in here if name in wanted]


def _cached(ref: HubRef) -> Path | None:
    """Return where a reference's weights lie in the cache, None if they don't; the hub isn't asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision, path = ref.parts
    try:
        # No pattern: else files that were left out on purpose would count as missing.
        folder = snapshot_download(repository, revision=revision, allow_patterns=[], local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    local = Path(folder, path)
    if local.is_dir():
        return local if main_file([file.name for file in local.iterdir()]) else None
    return local if local.exists() else None


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _not_cached(ref: HubRef) -> str:
    return (
        f"{ref} is not in the local cache, and offline mode (HF_HUB_OFFLINE) is on: download it first, or "
        "switch offline mode off."
    )


def _open_clip_config(ref: HubRef) -> dict[str, Any]:
    from open_clip import pretrained

    architecture, _, tag = ref.parts
    config: dict[str, Any] = pretrained.get_pretrained_cfg(architecture, tag)
    if not config:
        tags = pretrained.list_pretrained_tags_by_model(architecture)
        raise CheckpointError(
            f"{ref} was not found: open_clip "
            + (
                f"knows {architecture} with {', '.join(tags)}."
                if tags
                else f"has no pre-trained weights for '{architecture}'."
            )
        )
    return config


def _fetch_open_clip(ref: HubRef) -> Path:
    from open_clip import pretrained

    config = _open_clip_config(ref)
    local = _cached_open_clip(config)
    if local is not None:
        return local
    if _offline():
        raise CheckpointError(_not_cached(ref))
    try:
        return Path(pretrained.download_pretrained(config))
    except Exception as error:
        raise CheckpointError(
            f"{ref} can't be downloaded, for the hub can't be reached or lacks it: check the network, or "
            "choose a local file."
        ) from error


def _plan_open_clip(ref: HubRef) -> Download:
    config = _open_clip_config(ref)
    if _cached_open_clip(config) is not None:
        return Download(ref.url, 0, cached=True)
    repository, _, file = str(config.get("hf_hub", "")).rpartition("/")
    if not repository or _offline():
        return Download(ref.url, None, cached=False)
    names = _open_clip_files(file)
    try:
        sizes = {f.rfilename: f.size for f in _ask(HubRef(f"hf://{repository}")).siblings or ()}
    except Exception:  # noqa: BLE001 - see `fetch`; only the size stays unknown
        return Download(ref.url, None, cached=False)
    return Download(ref.url, next((sizes[name] for name in names if name in sizes), None), cached=False)


def _cached_open_clip(config: dict[str, Any]) -> Path | None:
    """Return where open_clip's own download has put these weights, None if it hasn't."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = str(config.get("hf_hub", "")).rpartition("/")
    if repository:
        for name in _open_clip_files(file):
            local = try_to_load_from_cache(repository, name)
            if isinstance(local, str):
                return Path(local)
    return None


def _open_clip_files(file: str) -> list[str]:
    """Return the names that open_clip looks for in a repository, of which the first that exists counts."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    if not file or file == HF_WEIGHTS_NAME:
        return [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    safe = str(PurePosixPath(file).with_suffix(".safetensors"))
    return [safe, file]
