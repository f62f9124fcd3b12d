from __future__ import annotations

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import cached_inputs, open_images, preview

NAMES = ("cat", "dog")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((5, 4, 3), value, np.uint8)).save(path)


def opened(path, **said):
    return open_images(DataSource(path=path, labelled=False, **said))


def values(dataset):
    return sorted(int(image[0, 0, 0]) for image in dataset.images("val"))


def test_loose_images_are_all_used(tmp_path):
    for value in range(7):
        draw(tmp_path / "d" / f"{value}.png", value)
    draw(tmp_path / "d" / "monday" / "first.jpg", 100)
    draw(tmp_path / "d" / "tuesday" / "first.png", 200)
    (tmp_path / "d" / "notes.txt").write_text("no image")
    dataset = opened(tmp_path / "d", class_names=("hot_dog", "cow"))
    assert dataset.sizes == {"val": 9}
    assert dataset.class_names == ("hot dog", "cow")
    assert dataset.templates == ("a photo of a {}.",)
    assert values(dataset) == [*range(7), 100, 200]
    with pytest.raises(DatasetError, match="has no labels to measure models by"):
        dataset.labels("val")
    with pytest.raises(DatasetError, match="has no split 'test'"):
        dataset.images("test")
    assert [name for _, name in preview(dataset.source, 3)] == [""] * 3


def test_one_folder_of_loose_images_is_enough(tmp_path):
    for value in range(3):
        draw(tmp_path / "d" / "photos" / f"{value}.png", value)
    dataset = opened(tmp_path / "d", class_names=NAMES)
    assert values(dataset) == [0, 1, 2]


@pytest.mark.parametrize("deep", ["", "cat", "x/y"])
def test_folders_for_splits_keep_their_meaning(tmp_path, deep):
    for first, split in enumerate(("train", "valid", "test")):
        for each in range(3):
            draw(tmp_path / "d" / split / deep / f"{each}.png", 10 * first + each)
            draw(tmp_path / "d" / split / (deep and "dog") / f"{each + 3}.png", 10 * first + each + 3)
    assert values(opened(tmp_path / "d", class_names=NAMES)) == [10, 11, 12, 13, 14, 15]
    assert values(opened(tmp_path / "d", class_names=NAMES, splits={"val": "test"})) == list(range(20, 26))
    (tmp_path / "d" / "valid").rename(tmp_path / "d" / ".hidden")
    assert values(opened(tmp_path / "d", class_names=NAMES)) == list(range(6))
    with pytest.raises(DatasetError, match="has no split 'mine': choose from test, train"):
        opened(tmp_path / "d", class_names=NAMES, splits={"val": "mine", "train": "train", "test": "test"})


def test_class_folders_name_the_classes_and_nothing_else(tmp_path):
    for first, name in enumerate(("plane", "train", "fire_engine")):
        for each in range(4):
            draw(tmp_path / "d" / name / f"{each}.png", 10 * first + each)
    dataset = opened(tmp_path / "d")
    assert dataset.class_names == ("fire engine", "plane", "train")
    assert (dataset.sizes, dataset.notes) == ({"val": 12}, ())
    others = opened(tmp_path / "d", class_names=("big", "small"))
    assert others.class_names == ("big", "small")
    assert values(others) == values(dataset) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]


def test_a_limit_takes_some_of_them(tmp_path):
    for value in range(20):
        draw(tmp_path / "d" / f"{value}.png", value)
    whole = opened(tmp_path / "d", class_names=NAMES)
    some = opened(tmp_path / "d", class_names=NAMES, limit=6)
    assert some.sizes == {"val": 6}
    assert values(some) != values(opened(tmp_path / "d", class_names=NAMES, limit=6, seed=1))
    assert whole.content_key != some.content_key


def test_prepared_images_are_never_those_of_the_labelled_dataset(tmp_path):
    """With and without labels the same files may have another order."""
    for value, name in enumerate(("a", "a/b", "c", "d")):
        draw(tmp_path / "d" / "val" / name / "x.png", value)
        draw(tmp_path / "d" / "test" / name / "x.png", value)
    source = DataSource(path=tmp_path / "d")
    for each in (source, replace(source, labelled=False)):
        dataset = open_images(each)
        inputs = cached_inputs(dataset, "val", lambda image: image[:2, :2].copy(), "crop", (2, 2, 3))
        assert [int(row[0, 0, 0]) for row in inputs] == [int(row[0, 0, 0]) for row in dataset.images("val")]
    assert open_images(source).split_key("val") != dataset.split_key("val")


def test_images_that_cannot_be_read_are_refused_or_left_out(tmp_path):
    for value in range(4):
        draw(tmp_path / "d" / f"{value}.png", value)
    (tmp_path / "d" / "2.png").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"1 of the 4 images of 'val' can't be read \(2\.png\)"):
        opened(tmp_path / "d", class_names=NAMES)
    dataset = opened(tmp_path / "d", class_names=NAMES, skip_corrupt=True)
    assert (dataset.sizes, dataset.corrupt, values(dataset)) == ({"val": 3}, ("2.png",), [0, 1, 3])


def test_wrong_labels_change_nothing(tmp_path):
    images = np.arange(6 * 48, dtype=np.uint8).reshape(6, 4, 4, 3)
    for name, labels in (("right", [0, 1] * 3), ("wrong", [99, -5, 0, 0, 7, 1])):
        splits = {f"{split}_{what}": value for split in ("val", "test") for what, value in
                  (("images", images), ("labels", np.array(labels)))}  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", class_names=NAMES, **splits)
    right, wrong = (opened(tmp_path / f"{name}.npz") for name in ("right", "wrong"))
    assert right.sizes == wrong.sizes == {"val": 6}
    assert right.class_names == wrong.class_names == NAMES
    assert np.array_equal(right.array("val"), wrong.array("val"))
    with pytest.raises(DatasetError, match="labels of 'val' go from -5 to 99"):
        open_images(DataSource(path=tmp_path / "wrong.npz"))


def write_table(path, **columns):
    features = {"image": datasets.Image()} | {name: feature for name, (feature, _) in columns.items()}
    pictures = [Image.fromarray(np.full((5, 4, 3), value, np.uint8)) for value in range(6)]
    content = {"image": pictures} | {name: held for name, (_, held) in columns.items()}
    datasets.Dataset.from_dict(content, features=datasets.Features(features)).to_parquet(path)


def test_tables_need_no_column_of_labels(tmp_path):
    text = datasets.Value("string")
    write_table(tmp_path / "a.parquet", written=(text, list("abcdef")), by=(text, list("uvwxyz")))
    dataset = opened(tmp_path / "a.parquet", class_names=NAMES)
    assert (dataset.sizes, dataset.columns) == ({"val": 6}, {"image": "image"})
    assert values(dataset) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DatasetError, match="doesn't name its classes: give class names"):
        opened(tmp_path / "a.parquet")
    classes = datasets.ClassLabel(names=["cat", "hot_dog"])
    write_table(tmp_path / "b.parquet", label=(classes, [0, None, 1, 1, None, 0]))
    dataset = opened(tmp_path / "b.parquet")
    assert (dataset.sizes, dataset.class_names) == ({"val": 6}, ("cat", "hot dog"))


def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path):
    draw(tmp_path / "d" / "x.png", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.json").write_text(json.dumps(["cat", "cow"]))
    assert opened(tmp_path / "d", class_names=tmp_path / "names.json").class_names == ("cat", "cow")
    for name, said, says in (
        ("d", {}, "d doesn't name its classes: give class names"),
        ("d", {"class_names": ("cat",)}, "two or more different classes, not cat"),
        ("d", {"class_names": ("cat", "cat")}, "two or more different classes, not cat, cat"),
        ("empty", {"class_names": NAMES}, "empty holds no images"),
        ("missing", {"class_names": NAMES}, "There is no dataset"),
    ):
        with pytest.raises(DatasetError, match=says) as error:
            opened(tmp_path / name, **said)
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="'labelled' must be true or false"):
        DataSource.from_dict({"path": "d", "labelled": 0})
    assert DataSource.from_dict({"path": "d", "labelled": False}).to_dict()["labelled"] is False
