"""What is here already where no hub can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import datasets
import huggingface_hub
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from mapmerge_core.studies.inputs.downloading import downloads
from mapmerge_core.studies.config.study import StudySpec, TaskSpec
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_texts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The datasets library's own cache, with the configuration "small" of someone/Books in it."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
    table = tmp_path / "table.parquet"
    datasets.Dataset.from_dict({"text": [f"Line {number}." for number in range(40)]}).to_parquet(table)
    builder = Parquet(
        cache_dir=str(folder),
        dataset_name="books",
        config_name="small",
        hash="0" * 40,
        data_files={"train": [str(table)]},
    )
    builder.download_and_prepare(str(folder / "someone___books" / "small" / "0.0.0" / ("0" * 40)))
    return folder


def is_here(source: DataSource, folder: Path) -> bool:
    tasks = tuple(TaskSpec(name, folder / f"{name}.safetensors", source) for name in ("A", "B"))
    (plan,) = downloads(StudySpec(family="language", pretrained=folder / "model", tasks=tasks))
    assert (plan.url, plan.n_bytes) == (str(source.path), None)
    return plan.cached


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("offline", [True, False])
def test_datasets_in_the_cache_are_found_without_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("No network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    books = DataSource(path="hf://datasets/someone/Books")
    small, large = (DataSource(path=books.path, config=config) for config in ("small", "large"))
    assert [is_here(source, tmp_path) for source in (books, small, large)] == [True, True, False]
    assert not is_here(DataSource(path="hf://datasets/someone/Poems"), tmp_path)
    if offline:
        # What counts as being here is what opens.
        assert sum(open_texts(small).sizes.values()) == 40
