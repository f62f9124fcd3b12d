from __future__ import annotations

import json
from pathlib import Path

import pytest

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource


def test_addresses():
    assert DataSource(path="a/b.npz").path == Path.cwd() / "a" / "b.npz"
    assert DataSource(path=Path("~/b")).path == Path.home() / "b"
    assert DataSource(path="hf://datasets/org/name@refs/pr/1").hub == ("org/name", "refs/pr/1")
    assert DataSource(path="hf://datasets/org/my-name.v2").hub == ("org/my-name.v2", None)
    assert DataSource(path="hf://datasets/mnist").hub == ("mnist", None)
    assert DataSource(path="torchvision://CIFAR10").torchvision == "CIFAR10"
    plain = DataSource(path="a/b.npz")
    assert (plain.hub, plain.torchvision) == (None, None)


@pytest.mark.parametrize(
    "source",
    [
        DataSource(path="x.npz"),
        DataSource(path="hf://datasets/a/b@main", config="c", image="i", label="l", splits={"val": "validation"}),
        DataSource(path="d", class_names=["a", "b"], templates="a {}.", limit=5, skip_corrupt=True, seed=3),
        DataSource(path="d", class_names="names.txt", templates="prompts.json"),
        DataSource(path="d", class_names=Path("names"), templates=Path("prompts")),
        DataSource(path="d.csv", text="words", templates="Chest-Xray"),
    ],
)
def test_a_source_survives_json(source):
    again = DataSource.from_dict(json.loads(json.dumps(source.to_dict())))
    assert again == source
    assert hash(again) == hash(source)


def test_only_what_differs_from_the_defaults_is_written():
    assert DataSource(path="torchvision://DTD", limit=9).to_dict() == {"path": "torchvision://DTD", "limit": 9}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": "hf://org/name"}, "'hf://org/name' is no dataset's address: write hf://datasets/"),
        ({"path": "hf://datasets/a/b/c"}, "is no dataset's address"),
        ({"path": "https://x.org/a.zip"}, "is no dataset's address"),
        ({"path": "torchvision://"}, "is no dataset's address"),
        ({"path": " "}, "must be a file, a folder or an address"),
        ({}, "needs a 'path'"),
        ({"path": "a", "spilts": {}}, "no setting 'spilts': choose from path, config"),
        ({"path": "a", "splits": {"dev": "x"}}, "There is no split 'dev': choose one of train, val, test"),
        ({"path": "a", "splits": {"val": "x", "test": "x"}}, "'x' can't be two splits at once"),
        ({"path": "a", "splits": ["val"]}, "'splits' must give"),
        ({"path": "a", "limit": 0}, "the limit must be a whole number from 1 on, not 0"),
        ({"path": "a", "limit": True}, "the limit must be"),
        ({"path": "a", "seed": -1}, "a: The seed -1 can't be used: choose a whole number from 0 to"),
        ({"path": "a", "class_names": []}, "'class_names' must be a list of texts or a file"),
        ({"path": "a", "class_names": [1]}, "'class_names' must be a list"),
        ({"path": "a", "templates": 3}, "'templates' must be a list"),
        ({"path": "a", "label": 3}, "'label' must be a text, not 3"),
        ({"path": "a", "skip_corrupt": "yes"}, "'skip_corrupt' must be true or false"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(settings, says):
    with pytest.raises(DatasetError, match=says) as error:
        DataSource.from_dict(settings)
    assert "\n" not in str(error.value)
