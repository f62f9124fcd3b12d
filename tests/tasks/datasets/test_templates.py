from __future__ import annotations

import numpy as np
import pytest

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_images, shipped_class_names, shipped_templates
from mapmerge_core.tasks.datasets.splitting import divide, subset
from mapmerge_core.tasks.datasets.templates import check_templates, read_templates


@pytest.fixture
def path(tmp_path):
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "d.npz", val_images=images, val_labels=labels, test_images=images, test_labels=labels)
    return tmp_path / "d.npz"


def test_shipped_prompts_are_those_of_the_papers_datasets():
    shipped = shipped_templates()
    counts = {"sun397": 2, "cars": 8, "resisc45": 18, "eurosat": 3, "svhn": 1, "gtsrb": 3, "mnist": 1, "dtd": 8}
    assert {name: len(set(prompts)) for name, prompts in shipped.items() if name != "chest-xray"} == counts
    for prompts in shipped.values():
        assert check_templates(prompts, None) == prompts
    assert shipped["cars"][3:5] == ("i love my {}!", "a photo of my dirty {}.")
    assert "aerial view of the {}." in shipped["resisc45"]
    assert shipped["gtsrb"][0] == 'a zoomed in photo of a "{}" traffic sign.'


def test_shipped_class_names():
    names = shipped_class_names()
    assert {name: len(set(each)) for name, each in names.items()} == {
        "chest-xray-1": 4,
        "chest-xray-2": 3,
        "mnist": 10,
        "svhn": 10,
        "eurosat": 10,
        "gtsrb": 43,
    }
    assert (names["gtsrb"][14], names["gtsrb"][33], names["gtsrb"][40]) == ("stop", "turn right ahead", "roundabout")


@pytest.mark.parametrize("name", ["SUN397", "sun397", "Sun-397"])
def test_shipped_prompts_are_found_whatever_their_case(path, name):
    dataset = open_images(DataSource(path=path, templates=name))
    assert dataset.templates == ("a photo of a {}.", "a photo of the {}.")
    assert read_templates("Stanford_Cars") == shipped_templates()["cars"]


def test_prompts_are_typed_or_in_a_file(path, tmp_path):
    assert open_images(DataSource(path=path)).templates == ("a photo of a {}.",)
    (tmp_path / "p.txt").write_text("one {}\n\n  two {}  \n", encoding="utf-8")
    (tmp_path / "p.json").write_text('["one {}", "two {}"]', encoding="utf-8")
    (tmp_path / "names.json").write_text('{"0": "cat", "1": "dog"}', encoding="utf-8")
    for given in (tmp_path / "p.txt", str(tmp_path / "p.json"), ["one {}", "two {}"]):
        dataset = open_images(DataSource(path=path, templates=given, class_names=tmp_path / "names.json"))
        assert (dataset.templates, dataset.class_names) == (("one {}", "two {}"), ("cat", "dog"))


def test_what_is_wrong_with_prompts_or_names_is_said(path, tmp_path):
    (tmp_path / "bad.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    (tmp_path / "empty.txt").write_text("\n")
    for settings, says in (
        ({"templates": ("none",)}, "The template 'none' needs exactly one {}"),
        ({"templates": "{} {}"}, "needs exactly one {}"),
        ({"templates": "nothing"}, "There are no prompts named 'nothing': choose from sun397, "),
        ({"templates": tmp_path / "missing.txt"}, "missing.txt can't be read: No such file"),
        ({"class_names": tmp_path / "bad.json"}, "must hold one text a line, or a JSON list"),
        ({"class_names": tmp_path / "broken.json"}, "is no text in UTF-8 or no JSON"),
        ({"class_names": tmp_path / "deep.json"}, "is no text in UTF-8 or no JSON"),
        ({"class_names": tmp_path / "latin.txt"}, "is no text in UTF-8"),
        ({"class_names": tmp_path / "empty.txt"}, "must hold one text a line"),
        ({"class_names": ("only",)}, "go from 0 to 1, but 1 class names allow 0 to 0"),
    ):
        with pytest.raises(DatasetError, match=says) as error:
            open_images(DataSource(path=path, **settings))
        assert "\n" not in str(error.value)


def test_chest_xrays_two_tasks_choose_classes_of_one_dataset(tmp_path):
    from PIL import Image

    findings = (
        "Atelectasis",
        "Consolidation",
        "Hernia",
        "Infiltration",
        "Mass",
        "No Finding",
        "Nodule",
        "Pneumothorax",
    )
    for split in ("val", "test"):
        for name in findings:
            (tmp_path / "x" / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / "x" / split / name / "a.png")
    for group, count in (("chest-xray-1", 4), ("chest-xray-2", 3)):
        names = shipped_class_names()[group]
        dataset = open_images(DataSource(path=tmp_path / "x", class_names=names, templates="chest-xray"))
        assert (dataset.class_names, dataset.sizes) == (names, {"val": count, "test": count})
        files = [dataset.images("val").name(row).split("/")[1] for row in range(count)]
        assert [names[label] for label in dataset.labels("val")] == files


def test_dividing_and_limiting_keep_classes_shares():
    labels = np.repeat([0, 1, 2, 3], [100, 30, 2, 1])
    taken = divide(labels, ("val", "test"), 0.1, seed=0)
    for rows in taken.values():
        assert np.bincount(labels[rows], minlength=4).tolist() == [10, 3, 1, 0]
    assert not set(taken["val"]) & set(taken["test"])
    assert np.bincount(labels[subset(labels, 40, 0)]).tolist() == [29, 9, 1, 1]
    assert set(subset(labels, 20, 0)) < set(subset(labels, 40, 0))
    assert set(labels[subset(labels, 4, 0)]) == {0, 1, 2, 3}
    assert subset(labels, None, 0).tolist() == list(range(133))
