from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_images
from mapmerge_core.tasks.metrics import ACCURACY, Metric

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


def read(path):
    """Opens a dataset and loads every image."""
    found = open_images(DataSource(path=path))
    for split in found.sizes:
        found.array(split)
    return found


def test_what_a_dataset_holds(tmp_path):
    path = save(tmp_path / "d.npz")
    found = read(path)
    assert (found.class_names, found.templates) == (("a", "b"), ("a {}.",))
    assert found.sizes == {"val": 4, "test": 3}
    labels = found.labels("test")
    assert (found.array("test").shape, labels.dtype, labels.tolist()) == ((3, 8, 8), np.int64, [0, 1, 1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_images": None}, "has the splits test, of which none can be validated on"),
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
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_datasets(tmp_path):
    whole = save(tmp_path / "d.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "random.npz").write_bytes(np.random.default_rng(0).bytes(1000))
    flipped = bytearray(whole)
    flipped[300] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name, says in (("cut", "damaged"), ("random", "damaged"), ("flipped", "damaged"), ("none", "no dataset")):
        with pytest.raises(DatasetError, match=says):
            read(tmp_path / f"{name}.npz")
    with pytest.raises(DatasetError, match="must hold a folder of images for each"):
        read(tmp_path)


@pytest.mark.parametrize("shape", [(4, 2**40, 3), (4, 2**64, 3), (4, 2**33, 2**31)])
def test_arrays_that_claim_to_be_larger_than_anything(tmp_path, shape):
    path = save(tmp_path / "d.npz", val_images=None)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("val_images.npy", header.getvalue())
    with pytest.raises(DatasetError, match="is damaged: 'val_images' can't be read"):
        read(path)


def test_encrypted_archives(tmp_path):
    path = save(tmp_path / "d.npz")
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        for found in re.finditer(sign, bytes(content)):
            content[found.start() + place] |= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is damaged"):
        read(path)


def test_a_metrics_bounds_choose_its_link():
    assert ACCURACY.link == "sigmoid"
    assert ACCURACY.bounds == (0, 1)
    assert Metric("perplexity", maximize=False, low=1).link == "softplus"
    assert Metric("R²", maximize=True, high=1).link == "softplus"
    assert Metric("score", maximize=True).link == "identity"
    assert Metric("score", maximize=True).bounds == (-math.inf, math.inf)


def test_datasets_and_metrics_do_not_load_torch():
    program = "import mapmerge_core.tasks.datasets, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_npz_file_as_a_source(tmp_path):
    train = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    labels = np.arange(40) % 2
    path = save(tmp_path / "mnist.npz", train_images=train, train_labels=labels)
    dataset = open_images(DataSource(path=path))
    assert dataset.sizes == {"train": 40, "val": 4, "test": 3}
    assert (dataset.class_names, dataset.templates, dataset.notes) == (("a", "b"), ("a {}.",), ())
    assert np.array_equal(dataset.array("train"), train)
    assert dataset.array("test").shape == (3, 8, 8)
    assert np.array_equal(dataset.images("train")[3], train[3])
    named = open_images(DataSource(path=path, class_names=("zero", "one"), templates="the {}"))
    assert (named.class_names, named.templates) == (("zero", "one"), ("the {}",))

    path = save(
        tmp_path / "mnist.npz",
        train_images=train,
        train_labels=labels,
        val_images=None,
        val_labels=None,
        class_names=None,
        templates=None,
    )
    dataset = open_images(DataSource(path=path))
    assert dataset.sizes == {"train": 36, "val": 4, "test": 3}
    assert dataset.class_names == ("0", "1")
    assert dataset.templates == ('a photo of the number: "{}".',)
    left, taken = dataset.array("train"), dataset.array("val")
    assert sorted(map(bytes, [*left, *taken])) == sorted(map(bytes, train))
    assert dataset.labels("val").tolist() == [labels[(train == image).all((1, 2, 3)).argmax()] for image in taken]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_images": None, "test_images": None}, "lacks the array 'val_images': it holds val_labels, "),
        ({"val_images": None}, "none can be validated on"),
        ({"test_labels": None}, "lacks the array 'test_labels'"),
        ({"val_images": np.zeros((4, 8, 8))}, "not float64 of shape"),
        ({"test_labels": np.array([0, 1])}, "must be 3 integers"),
        ({"val_labels": np.array([0, 1, 2, 0])}, "go from 0 to 2, but 2 class names allow 0 to 1"),
        ({"val_images": np.zeros((0, 8, 8), np.uint8), "val_labels": np.zeros(0, int)}, "'val' is empty"),
        ({"val_images": np.array([{}] * 4)}, "Python objects, which are never loaded"),
        ({"templates": np.array(["no name"])}, "'no name' needs exactly one {}"),
    ],
)
def test_what_is_wrong_with_an_npz_source_is_said_in_one_sentence(tmp_path, changes, says):
    path = save(tmp_path / "d.npz", **changes)
    with pytest.raises(DatasetError, match=says) as error:
        open_images(DataSource(path=path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
