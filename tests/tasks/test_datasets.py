from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.datasets import Task, inspect_dataset, load_split
from mapmerge_core.tasks.metric import ACCURACY, Metric

GOOD = {
    "val_images": np.zeros((4, 8, 8, 3), np.uint8),
    "val_labels": np.array([0, 1, 1, 0]),
    "test_images": np.zeros((3, 8, 8), np.uint8),
    "test_labels": np.array([0, 1, 1], np.uint8),
    "class_names": np.array(["a", "b"]),
    "templates": np.array(["a {}."]),
}


def save(path, **changes):
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(path, **arrays)
    return path


def test_what_a_dataset_holds(tmp_path):
    path = save(tmp_path / "d.npz")
    info = inspect_dataset(path)
    assert (info.class_names, info.templates, info.sizes) == (("a", "b"), ("a {}.",), {"val": 4, "test": 3})
    images, labels = load_split(path, "test")
    assert (images.shape, labels.dtype, labels.tolist()) == ((3, 8, 8), np.int64, [0, 1, 1])
    task = Task.from_file("T", path)
    assert (task.name, task.class_names, task.metric) == ("T", ("a", "b"), ACCURACY)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_images": None}, "lacks the array 'val_images': it holds val_labels, "),
        ({"class_names": None}, "lacks the array 'class_names'"),
        ({"templates": None}, "lacks the array 'templates'"),
        ({"test_labels": None}, "lacks the array 'test_labels'"),
        ({"class_names": np.array([], dtype=str)}, "'class_names' must be a list of texts"),
        ({"val_images": np.zeros((4, 8, 8, 3))}, "not float64 of shape"),
        ({"val_images": np.zeros((4, 3, 8, 8), np.uint8)}, r"\(4, 3, 8, 8\)"),
        ({"test_labels": np.array([0, 1])}, "must be 3 integers"),
        ({"test_labels": np.array([0, 1, 0.5])}, "not float64"),
        ({"val_labels": np.array([0, 1, 2, 0])}, "go from 0 to 2, but 2 class names allow 0 to 1"),
        ({"val_labels": np.array([0, 1, -1, 0])}, "go from -1"),
        ({"val_images": np.zeros((0, 8, 8, 3), np.uint8), "val_labels": np.zeros(0, int)}, "'val' is empty"),
        ({"class_names": np.array([1, 2])}, "'class_names' must be a list of texts"),
        ({"class_names": np.array(["a", "b"], dtype=object)}, "Python objects, which are never loaded"),
        ({"templates": np.array(["no name"])}, "'no name' needs exactly one {}"),
        ({"templates": np.array(["{} and {}"])}, "exactly one {}"),
        ({"templates": np.array(["{} and {x}"])}, "exactly one {}"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said_in_one_sentence(tmp_path, changes, says):
    path = save(tmp_path / "d.npz", **changes)
    with pytest.raises(DatasetError, match=says) as error:
        inspect_dataset(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_datasets(tmp_path):
    whole = save(tmp_path / "d.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "random.npz").write_bytes(np.random.default_rng(0).bytes(1000))
    flipped = bytearray(whole)
    flipped[300] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name, says in (
        ("cut", "damaged"),
        ("random", "damaged"),
        ("flipped", "damaged"),
        ("none", "no dataset"),
    ):
        with pytest.raises(DatasetError, match=says):
            inspect_dataset(tmp_path / f"{name}.npz")
    with pytest.raises(DatasetError, match="is a folder"):
        inspect_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no split 'train': choose one of val, test"):
        load_split(tmp_path / "d.npz", "train")


def test_a_metrics_bounds_choose_its_link():
    assert ACCURACY.link == "sigmoid"
    assert ACCURACY.bounds == (0, 1)
    assert Metric("perplexity", maximize=False, low=1).link == "softplus"
    assert Metric("score", maximize=True).link == "identity"
    assert Metric("score", maximize=True).bounds == (-math.inf, math.inf)


def test_datasets_and_metrics_do_not_load_torch():
    program = "import mapmerge_core.tasks.datasets, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
