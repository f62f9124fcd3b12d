from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_images, preview

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((5, 4, 3), value, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def fill(folder, per_class, classes=("cat", "dog")):
    """Images that each hold one value: 100 x class + number."""
    for number, name in enumerate(classes):
        for each in range(per_class):
            draw(folder / name / f"{each:03}.png", 100 * number + each)
    return folder


def values(dataset, split):
    return [int(image[0, 0, 0]) for image in dataset.images(split)]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "testing")])
def test_folders_for_splits(tmp_path, names):
    for name, count in zip(names, (4, 2, 3), strict=True):
        fill(tmp_path / "d" / name, count)
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert dataset.sizes == {"train": 8, "val": 4, "test": 6}
    assert dataset.class_names == ("cat", "dog")
    assert dataset.templates == ("a photo of a {}.",)
    assert dataset.labels("test").tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.labels("test").dtype == np.int64
    assert values(dataset, "test") == [0, 1, 2, 100, 101, 102]
    assert (dataset.notes, dataset.corrupt, dataset.array("val")) == ((), (), None)


def test_one_set_of_folders_is_divided_alike_for_every_class(tmp_path):
    fill(tmp_path / "d", 50)
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert dataset.sizes == {"train": 80, "val": 10, "test": 10}
    for split in ("val", "test"):
        assert np.bincount(dataset.labels(split)).tolist() == [5, 5]
        assert [value // 100 for value in values(dataset, split)] == dataset.labels(split).tolist()
    everything = [value for split in dataset.sizes for value in values(dataset, split)]
    assert sorted(everything) == [*range(50), *range(100, 150)]
    assert len(dataset.notes) == 2
    assert dataset.notes[0] == (
        "There is no validation split: 10 of the 100 examples of 'd' (10% of each class, seed 0) are kept apart for it."
    )
    again = open_images(DataSource(path=tmp_path / "d"))
    other = open_images(DataSource(path=tmp_path / "d", seed=1))
    assert values(again, "val") == values(dataset, "val") != values(other, "val")
    assert again.content_key == dataset.content_key != other.content_key


def test_validation_comes_from_training_and_never_from_test(tmp_path):
    fill(tmp_path / "d" / "train", 20)
    for number, name in enumerate(("cat", "dog")):
        for each in range(20, 30):
            draw(tmp_path / "d" / "test" / name / f"{each}.png", 100 * number + each)
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert dataset.sizes == {"train": 36, "val": 4, "test": 20}
    assert {value % 100 for value in values(dataset, "val")} <= set(range(20))
    assert "'train'" in dataset.notes[0]

    (tmp_path / "d" / "train").rename(tmp_path / "d" / "other")
    with pytest.raises(DatasetError, match="none can be validated on: say which is 'val'"):
        open_images(DataSource(path=tmp_path / "d"))


def test_a_missing_test_split_comes_from_what_remains(tmp_path):
    fill(tmp_path / "a" / "train", 20)
    fill(tmp_path / "a" / "val", 4)
    dataset = open_images(DataSource(path=tmp_path / "a"))
    assert dataset.sizes == {"train": 36, "val": 8, "test": 4}
    fill(tmp_path / "b" / "val", 4)
    dataset = open_images(DataSource(path=tmp_path / "b"))
    assert dataset.sizes == {"val": 4, "test": 4}
    assert not set(values(dataset, "val")) & set(values(dataset, "test"))
    assert "no test split" in dataset.notes[0]


def test_named_splits_wrapping_folders_and_classes_named_like_splits(tmp_path):
    fill(tmp_path / "a" / "inner" / "mine", 3)
    fill(tmp_path / "a" / "inner" / "yours", 2)
    source = DataSource(path=tmp_path / "a", splits={"val": "mine", "test": "yours"})
    assert open_images(source).sizes == {"val": 6, "test": 4}
    with pytest.raises(DatasetError, match="has no split 'theirs': choose from mine, yours"):
        open_images(DataSource(path=tmp_path / "a", splits={"val": "mine", "train": "yours", "test": "theirs"}))
    fill(tmp_path / "b", 10, ("plane", "train", "car"))
    assert open_images(DataSource(path=tmp_path / "b")).class_names == ("car", "plane", "train")
    fill(tmp_path / "c" / "train", 10)
    draw(tmp_path / "c" / "test" / "hidden.png", 1)
    dataset = open_images(DataSource(path=tmp_path / "c"))
    assert dataset.notes[0] == "The split 'test' has no labels, so it is not used."
    assert dataset.sizes == {"train": 16, "val": 2, "test": 2}


def test_classes_are_numbered_as_torchvision_does(tmp_path):
    from torchvision.datasets import ImageFolder

    for name in ("10", "2", "B_b", "a"):
        for split in ("val", "test"):
            draw(tmp_path / "d" / split / name / "deep" / "x.PNG", 7)
    (tmp_path / "d" / "val" / "a" / "notes.txt").write_text("no image")
    reference = ImageFolder(tmp_path / "d" / "val")
    (tmp_path / "d" / "val" / "a" / ".hidden.png").write_bytes(b"")
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert dataset.class_names == ("10", "2", "B b", "a")
    assert [name.replace("_", " ") for name in reference.classes] == list(dataset.class_names)
    assert dataset.labels("val").tolist() == reference.targets


def test_class_names_order_rename_or_choose(tmp_path):
    fill(tmp_path / "d" / "val", 2, ("ant", "bee_eater", "cow"))
    fill(tmp_path / "d" / "test", 1, ("ant", "bee_eater", "cow"))
    path = tmp_path / "d"
    for given in (("cow", "ant", "bee_eater"), ("cow", "ant", "bee eater")):
        dataset = open_images(DataSource(path=path, class_names=given))
        assert dataset.class_names == ("cow", "ant", "bee eater")
        assert dataset.labels("test").tolist() == [1, 2, 0]
    renamed = open_images(DataSource(path=path, class_names=("Ameise", "Bienenfresser", "Kuh")))
    assert renamed.class_names == ("Ameise", "Bienenfresser", "Kuh")
    assert renamed.labels("test").tolist() == [0, 1, 2]
    (tmp_path / "names.txt").write_text("cow\nant\n\n", encoding="utf-8")
    some = open_images(DataSource(path=path, class_names=tmp_path / "names.txt"))
    assert (some.class_names, some.sizes) == (("cow", "ant"), {"val": 4, "test": 2})
    assert values(some, "test") == [0, 200]
    assert some.labels("test").tolist() == [1, 0]
    assert some.notes == ("2 of the dataset's 3 classes are used: 3 examples of others are left out.",)
    for names, says in (
        (("cow", "aunt", "bee eater"), "has the 3 classes ant, bee eater, cow, and aunt is none of them"),
        (("a", "b"), "a, b is none of them"),
        (("a", "a", "b"), "two classes are named 'a'"),
    ):
        with pytest.raises(DatasetError, match=says):
            open_images(DataSource(path=path, class_names=names))


def test_folders_that_hold_no_dataset(tmp_path):
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "loose" / "a.png", 1)
    fill(tmp_path / "one", 3, ("cat",))
    fill(tmp_path / "tiny", 1)
    for name, says in (
        ("empty", "but it holds none"),
        ("loose", "1 images outside any folder"),
        ("one", "the folders cat/"),
        ("tiny", "too small to be divided"),
    ):
        with pytest.raises(DatasetError, match=says) as error:
            open_images(DataSource(path=tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="There is no dataset"):
        open_images(DataSource(path=tmp_path / "missing"))
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"x\.zip is no dataset of images"):
        open_images(DataSource(path=tmp_path / "x.zip"))


def test_a_limit_keeps_the_classes_shares(tmp_path):
    for name, count in (("many", 40), ("few", 10)):
        for split in ("val", "test"):
            for each in range(count):
                draw(tmp_path / "d" / split / name / f"{each:03}.png", each)
    whole = open_images(DataSource(path=tmp_path / "d"))
    some = open_images(DataSource(path=tmp_path / "d", limit=10))
    assert some.sizes == {"val": 10, "test": 10}
    assert np.bincount(some.labels("val")).tolist() == [2, 8]
    assert np.bincount(open_images(DataSource(path=tmp_path / "d", limit=2)).labels("val")).tolist() == [1, 1]
    assert open_images(DataSource(path=tmp_path / "d", limit=1000)).sizes == whole.sizes
    assert some.content_key != whole.content_key


def test_a_preview_shows_different_classes_and_reads_nothing_else(tmp_path, monkeypatch):
    names = tuple(f"class {number}" for number in range(8))
    for split in ("val", "test"):
        fill(tmp_path / "d" / split, 3, names[:3])
        for number, name in enumerate(names[3:]):
            draw(tmp_path / "d" / split / name / "x.png", number)
    (tmp_path / "d" / "val" / "class 0" / "000.png").write_bytes(b"damaged")
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(file) or real(file, **options))
    shown = preview(DataSource(path=tmp_path / "d"), 4)
    assert len({name for _, name in shown}) == 4
    assert all(image.shape == (5, 4, 3) for image, _ in shown)
    assert len(opened) == 5
    assert len({name for _, name in preview(DataSource(path=tmp_path / "d"), 8)}) == 8
    assert len(preview(DataSource(path=tmp_path / "d"), 100)) == 13


def test_the_key_follows_the_content_and_not_the_place(tmp_path):
    fill(tmp_path / "a" / "val", 2)
    fill(tmp_path / "a" / "test", 2)
    before = open_images(DataSource(path=tmp_path / "a")).content_key
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_images(DataSource(path=tmp_path / "b")).content_key == before
    draw(tmp_path / "b" / "val" / "cat" / "000.png", 9)
    os.utime(tmp_path / "b" / "val" / "cat" / "000.png", ns=(1, 1))
    assert open_images(DataSource(path=tmp_path / "b")).content_key != before
