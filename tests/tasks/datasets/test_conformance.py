"""What every registered reader must do, and what it takes to add one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from mapmerge_core.errors import DatasetError
from mapmerge_core.registries import READERS
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_images, open_texts, preview
from mapmerge_core.tasks.datasets.base import ArrayImages, LabelledImages, RawImages, Reader, find_reader


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


def npz(folder, n):
    arrays = {}
    for split in ("val", "test"):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(n) % 2
    np.savez(folder / "d.npz", **arrays)
    return folder / "d.npz"


def folders(folder, n):
    for split in ("val", "test"):
        for i in range(n):
            path = folder / "d" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (i, 2 * i, 3 * i)).save(path)
    return folder / "d"


def table(folder, n):
    rows = [{"pixels": [[i, 1], [2, 3]], "label": "ab"[i % 2], "text": f"This is text {i}."} for i in range(n)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "d.jsonl"


def table_folder(folder, n):
    (folder / "d").mkdir(exist_ok=True)
    table(folder, n).rename(folder / "d" / "train.jsonl")
    return folder / "d"


def text_file(folder, n):
    (folder / "d.txt").write_text("\n\n".join(f"This is text {i}." for i in range(n)))
    return folder / "d.txt"


def text_folder(folder, n):
    (folder / "d").mkdir(exist_ok=True)
    for i in range(n):
        (folder / "d" / f"{i}.txt").write_text(f"This is text {i}.")
    return folder / "d"


SOURCES = [
    ("npz", "images", npz),
    ("folders", "images", folders),
    ("tables", "images", table),
    ("tables", "texts", table),
    ("tables", "images", table_folder),
    ("tables", "texts", table_folder),
    ("texts", "texts", text_file),
    ("texts", "texts", text_folder),
]
OPEN = {"images": open_images, "texts": open_texts}


def test_every_reader_says_what_it_reads():
    for reader in READERS:
        assert reader.help().endswith(".")
        assert set(reader.examples) <= {"images", "texts"}
        assert reader.examples
        assert all(suffix.startswith(".") for suffix in reader.suffixes)
        for examples in reader.examples:  # what is needed to read them is there
            assert getattr(type(reader), examples) is not getattr(Reader, examples)


@pytest.mark.parametrize(("name", "examples", "make"), SOURCES)
def test_a_source_has_one_reader_and_the_same_content_every_time(tmp_path, name, examples, make):
    source = DataSource(path=make(tmp_path, 20))
    assert find_reader(source, examples).name == name
    dataset, again = OPEN[examples](source), OPEN[examples](source)
    assert dataset.content_key == again.content_key
    assert dataset.sizes == again.sizes
    assert min(dataset.sizes["val"], dataset.sizes["test"]) > 0
    if examples == "images":
        assert dataset.labels("val").tolist() == again.labels("val").tolist()
        assert len(preview(source, 2)) == 2
    else:
        assert list(dataset.texts("val")) == list(again.texts("val"))
        assert dataset.texts("val")[0].startswith("This is text")
    fewer = OPEN[examples](DataSource(path=source.path, limit=1))
    assert set(fewer.sizes.values()) == {1}
    assert fewer.content_key != dataset.content_key


@pytest.mark.parametrize(("name", "examples", "make"), SOURCES)
def test_other_content_has_another_key(tmp_path, name, examples, make):
    keys = []
    for n in (20, 24):
        (tmp_path / str(n)).mkdir()
        keys.append(OPEN[examples](DataSource(path=make(tmp_path / str(n), n))).content_key)
    assert keys[0] != keys[1], name


@pytest.mark.parametrize("examples", ["images", "texts"])
def test_what_nobody_reads_is_one_sentence(tmp_path, examples):
    (tmp_path / "x.zip").touch()
    for path, says in (
        ("x.zip", rf"x\.zip is no dataset of {examples}: choose a folder, or a file of the kind \..*\.jsonl"),
        ("missing.npz", r"There is no dataset .*missing\.npz\."),
        ("missing", "There is no dataset"),
    ):
        with pytest.raises(DatasetError, match=says) as caught:
            OPEN[examples](DataSource(path=tmp_path / path))
        assert "\n" not in str(caught.value)


def test_examples_of_the_other_kind_are_one_sentence(tmp_path):
    with pytest.raises(DatasetError, match=r"d\.npz holds images: choose a dataset of texts\."):
        open_texts(DataSource(path=npz(tmp_path, 4)))
    with pytest.raises(DatasetError, match=r"d\.txt holds texts: choose a dataset of images\."):
        open_images(DataSource(path=text_file(tmp_path, 4)))


class ToyReader(Reader):
    """Gray squares, as many as a file says."""

    name: ClassVar[str] = "toy"
    examples: ClassVar = ("images",)
    suffixes: ClassVar = (".toy",)

    def images(self, source):
        n = int(Path(source.path).read_text())
        gray = np.repeat(np.arange(n, dtype=np.uint8), 16).reshape(n, 4, 4)
        part = LabelledImages(ArrayImages("squares", lambda: gray, n), np.arange(n) % 2)
        return RawImages({"train": part}, lambda: f"toy {n}", class_names=("even", "odd"))


def test_one_class_adds_a_reader(tmp_path):
    (tmp_path / "d.toy").write_text("40")
    with pytest.raises(DatasetError, match="is no dataset of images"):
        open_images(DataSource(path=tmp_path / "d.toy"))
    READERS.register(ToyReader())
    try:
        dataset = open_images(DataSource(path=tmp_path / "d.toy"))
    finally:
        READERS.unregister("toy")
    assert dataset.sizes == {"train": 32, "val": 4, "test": 4}
    assert dataset.class_names == ("even", "odd")
    assert (dataset.array("val")[:, 0, 0] % 2).tolist() == dataset.labels("val").tolist()
