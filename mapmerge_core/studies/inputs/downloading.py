"""What a study would download, before anything is: models and datasets, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mapmerge_core.errors import DatasetError
from mapmerge_core.files import DAMAGED
from mapmerge_core.weights.io.hub import Download, plan_downloads

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

    from mapmerge_core.studies.config.study import StudyConfig
    from mapmerge_core.tasks.data_source import DataSource

# Files in a dataset's repository that hold no examples.
_BESIDE = (".md", ".py", ".gitattributes", ".gitignore", ".txt")


def downloads(config: StudyConfig) -> tuple[Download, ...]:
    """Return what a study's models and datasets would have downloaded, each once; local files are left out.

    A dataset's size is that of its configuration's files, or of all where these can't be told apart. Where no
    hub can be reached, sizes are unknown; downloads that are here already are still marked so.

    Raises:
        CheckpointError: A hub has no such model.
        DatasetError: A hub has no such dataset.
    """
    data = {task.data.path: task.data for task in config.tasks if task.data is not None}
    models = plan_downloads(config.weights.values())
    return (*models, *(plan for source in data.values() for plan in _plan(source)))


def download_text(download: Download) -> str:
    """Describe a download, such as "hf://organisation/name, 605 MB"."""
    if download.cached:
        return f"{download.url}, already here"
    if download.n_bytes is None:
        return f"{download.url}, of unknown size"
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if download.n_bytes >= size:
            return f"{download.url}, {download.n_bytes / size:,.3g} {unit}"
    return f"{download.url}, {max(1, round(download.n_bytes / 1e3))} kB"


def _plan(source: DataSource) -> Iterable[Download]:
    if source.torchvision is not None:
        from mapmerge_core.tasks.datasets.cache import cache_folder

        folder = cache_folder() / "torchvision"
        here = {path.name.lower() for path in folder.iterdir()} if folder.is_dir() else set()
        yield Download(str(source.path), None, source.torchvision.lower() in here)
    elif source.hub is not None:
        yield _plan_hub(str(source.path), *source.hub, source.config)


def _plan_hub(url: str, name: str, revision: str | None, config: str | None) -> Download:
    from huggingface_hub import HfApi, constants, errors, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE:
        return Download(url, None, _is_kept(name, config))
    try:
        info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
    except errors.GatedRepoError as error:
        raise DatasetError(
            f"{url} is gated: ask for access on the dataset's page, then log in with 'hf auth login'."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DatasetError(f"{url} was not found: the dataset {name} has no revision '{revision}'.") from error
    except errors.RepositoryNotFoundError as error:
        raise DatasetError(
            f"{url} was not found: the hub has no dataset '{name}', or it is private and needs 'hf auth login'."
        ) from error
    except Exception:  # noqa: BLE001 - no network, in whatever words; only the size stays unknown
        return Download(url, None, _is_kept(name, config))
    missing = [
        size
        for file, size in _examples(info, config).items()
        if not isinstance(try_to_load_from_cache(name, file, revision=info.sha, repo_type="dataset"), str)
    ]
    sizes = [size for size in missing if size is not None]
    return Download(url, sum(sizes) if len(sizes) == len(missing) else None, not missing)


def _is_kept(name: str, config: str | None) -> bool:
    """Return whether the datasets library has made its tables before, which it opens where no hub can be reached.

    They are kept under the dataset's name and configuration, whatever the revision.
    """
    from datasets.packaged_modules.cache.cache import Cache

    short = name.rpartition("/")[2]
    try:
        Cache(repo_id=name, dataset_name=short, config_name=config, version="auto", hash="auto")
    except DAMAGED:
        return False
    return True


def _examples(info: DatasetInfo, config: str | None) -> dict[str, int | None]:
    """Return the sizes of the files that hold a configuration's examples, by name."""
    files = {file.rfilename: file.size for file in info.siblings or ()}
    files = {name: size for name, size in files.items() if not name.lower().endswith(_BESIDE)}
    own = {
        name: size for name, size in files.items() if config in {PurePosixPath(name).stem, *PurePosixPath(name).parts}
    }
    return own or files
