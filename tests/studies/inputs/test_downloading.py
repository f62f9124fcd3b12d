"""What is here already where no hub can be reached."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from mapmerge_core.errors import DatasetError
from mapmerge_core.studies.config import StudyConfig, TaskConfig
from mapmerge_core.studies.config.study_file import parse_study
from mapmerge_core.studies.inputs.downloading import download_text, downloads
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_texts
from mapmerge_core.weights.io.hub import Download
from tests.studies.config.test_study_file import STUDY


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
    models = {name: folder / f"{name}.safetensors" for name in ("A", "B")}
    tasks = tuple(TaskConfig(name=name, data=source, model=name) for name in models)
    (plan,) = downloads(StudyConfig(family="language", pretrained=folder / "model", models=models, tasks=tasks))
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


@pytest.fixture
def hub(monkeypatch):
    """A hub that has one model and one dataset of two configurations."""

    def files(sizes: dict[str, int]) -> SimpleNamespace:
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        return SimpleNamespace(sha="0" * 40, siblings=siblings)

    def model_info(_self, name, **_):
        assert name == "someone/clip_sun397"
        return files({"model.safetensors": 500, "pytorch_model.bin": 501, "config.json": 20})

    def dataset_info(_self, name, **_):
        if name != "someone/sun397":
            response = SimpleNamespace(status_code=404, headers={}, request=None)
            raise huggingface_hub.errors.RepositoryNotFoundError("Not found", response=response)
        return files({"README.md": 7, "full/train.parquet": 3_000_000, "small/train.parquet": 40_000})

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("config", "size"), [(None, 3_040_000), ("small", 40_000)])
def test_downloads_are_known_before_they_start(tmp_path, config, size):
    text = STUDY.replace("openclip://ViT-B-32/openai", "pretrained.pt")
    if config:
        text = text.replace("limit: 2000", f"config: {config}")
    assert downloads(parse_study(text, tmp_path).config) == (
        Download("hf://someone/clip_sun397", 520, cached=False),
        Download("hf://datasets/someone/sun397", size, cached=False),
    )


@pytest.mark.usefixtures("hub")
def test_a_dataset_that_is_not_there_is_said_before_any_download(tmp_path):
    text = STUDY.replace("openclip://ViT-B-32/openai", "pretrained.pt").replace("datasets/someone", "datasets/noone")
    with pytest.raises(DatasetError, match="the hub has no dataset 'noone/sun397'"):
        downloads(parse_study(text, tmp_path).config)


def test_sizes_that_cannot_be_known_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path))
    text = STUDY.replace("openclip://ViT-B-32/openai", "a.pt").replace("cars.npz", "torchvision://GTSRB")
    plans = downloads(parse_study(text, tmp_path).config)
    assert [(plan.n_bytes, plan.cached) for plan in plans] == [(None, False)] * 3
    (tmp_path / "cache" / "torchvision" / "GTSRB").mkdir(parents=True)
    assert downloads(parse_study(text, tmp_path).config)[2].cached


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(None, "of unknown size"), (605_157_884, "605 MB"), (16_060_000_000, "16.1 GB"), (20, "1 kB")]
)
def test_sizes_are_shown_as_people_say_them(n_bytes, text):
    assert download_text(Download("hf://a/b", n_bytes, cached=False)) == f"hf://a/b, {text}"
