from __future__ import annotations

import urllib.error

import numpy as np
import pytest
import torchvision
from PIL import Image

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import cache_folder, open_images
from mapmerge_core.tasks.datasets.torchvision import _KNOWN

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


class Cifar:
    """Stands in for torchvision.datasets.CIFAR10, whose download is made here."""

    classes = ("air_plane", "car")
    downloads: list = []  # noqa: RUF012

    def __init__(self, root, train, download):
        if download:
            self.downloads.append(train)
            (root / f"{train}.bin").write_bytes(b"x")
        elif not (root / f"{train}.bin").exists():
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        self.targets = [row % 2 for row in range(40 if train else 10)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, row):
        return Image.fromarray(PIXELS[row]), self.targets[row]


def test_a_dataset_is_downloaded_once(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    Cifar.downloads.clear()
    dataset = open_images(DataSource(path="torchvision://cifar10"))
    assert dataset.sizes == {"train": 36, "val": 4, "test": 10}
    assert dataset.class_names == ("air plane", "car")
    assert np.array_equal(np.stack(list(dataset.images("test"))), PIXELS[:10])
    assert dataset.labels("test").tolist() == [0, 1] * 5
    again = open_images(DataSource(path="torchvision://CIFAR10"))
    assert again.content_key == dataset.content_key
    assert Cifar.downloads == [True, False]
    assert [path.name for path in (cache_folder() / "torchvision").iterdir() if path.is_dir()] == ["CIFAR10"]


def test_a_download_that_breaks_off_leaves_nothing(monkeypatch):
    class Broken(Cifar):
        def __init__(self, root, train, download):
            super().__init__(root, train, download)
            if not train:
                raise urllib.error.URLError("connection lost")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Broken)
    with pytest.raises(DatasetError, match=r"CIFAR10 can't be downloaded: .*connection lost.*; try again, or choose"):
        open_images(DataSource(path="torchvision://CIFAR10"))
    assert not [path for path in (cache_folder() / "torchvision").iterdir() if path.is_dir()]
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    assert open_images(DataSource(path="torchvision://CIFAR10")).sizes["test"] == 10


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "CIFAR100", "GTSRB", "DTD", "EuroSAT", "Flowers102", "StanfordCars"])
def test_failing_downloads_of_the_real_classes(monkeypatch, name):
    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(DatasetError, match=f"torchvision's {name} can't be downloaded: ") as error:
        open_images(DataSource(path=f"torchvision://{name}"))
    assert "\n" not in str(error.value)


def test_every_known_dataset_takes_the_arguments_it_is_given(tmp_path):
    # Without a download each real class says that its files are missing, but not that an argument is wrong.
    for name, known in _KNOWN.items():
        make = getattr(torchvision.datasets, name)
        for options in known.splits.values():
            with pytest.raises((RuntimeError, OSError)):
                make(root=tmp_path / "none", download=False, **{**known.default, **options})


def test_unknown_names_and_variants():
    with pytest.raises(DatasetError, match=r"There is no dataset 'COCO' of torchvision .*: choose from CIFAR10, "):
        open_images(DataSource(path="torchvision://COCO"))
    with pytest.raises(DatasetError, match="MNIST has no configurations: leave out 'letters'"):
        open_images(DataSource(path="torchvision://MNIST", config="letters"))


def test_real_mnist_files_are_read():
    """MNIST in its own format, written by hand where torchvision would put a download."""
    raw = cache_folder() / "torchvision" / "MNIST" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    gray = np.random.default_rng(1).integers(0, 256, (40, 28, 28), np.uint8)
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = (2051).to_bytes(4) + count.to_bytes(4) + (28).to_bytes(4) * 2 + gray[:count].tobytes()
        labels = (2049).to_bytes(4) + count.to_bytes(4) + (np.arange(count) % 10).astype(np.uint8).tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    dataset = open_images(DataSource(path="torchvision://MNIST"))
    assert dataset.sizes == {"train": 30, "val": 10, "test": 20}
    assert dataset.class_names == tuple("0123456789")
    assert dataset.templates == ('a photo of the number: "{}".',)
    assert np.array_equal(np.stack(list(dataset.images("test")))[..., 0], gray[:20])
    assert dataset.labels("test").tolist() == [*range(10), *range(10)]
