from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from mapmerge_core.errors import Cancelled, DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import cache_folder, cached_inputs, open_images

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def dataset(tmp_path):
    return open_images(DataSource(path=save(tmp_path / "d.npz")))


def save(path, images=IMAGES):
    labels = np.arange(12) % 2
    np.savez(
        path, val_images=images, val_labels=labels, test_images=255 - images, test_labels=labels, class_names=["a", "b"]
    )
    return path


def turned(image):
    return 255 - image.transpose(2, 0, 1)


def files():
    return sorted(path.name for path in (cache_folder() / "inputs").glob("*") if path.suffix != ".lock")


def test_inputs_are_prepared_once_and_shared(dataset, tmp_path):
    calls = []

    def transform(image):
        calls.append(1)
        return turned(image)

    seen = []
    inputs = cached_inputs(dataset, "val", transform, "t", (3, 4, 4), progress=lambda *done: seen.append(done))
    assert isinstance(inputs, np.memmap)
    assert np.array_equal(inputs, 255 - IMAGES.transpose(0, 3, 1, 2))
    inputs[0] = 0  # whoever writes to what was handed out changes a copy of their own
    assert seen == [(done, 12) for done in range(1, 13)]
    # The same content elsewhere, or opened again, is the same.
    save(tmp_path / "copy.npz")
    again = cached_inputs(open_images(DataSource(path=tmp_path / "copy.npz")), "val", transform, "t", (3, 4, 4))
    assert np.array_equal(again, 255 - IMAGES.transpose(0, 3, 1, 2))
    assert len(calls) == 12
    assert len(files()) == 1


def test_another_transform_split_content_or_choice_is_prepared_anew(dataset, tmp_path):
    def prepared(dataset, split="val", key="t"):
        return np.array(cached_inputs(dataset, split, turned, key, (3, 4, 4)))

    prepared(dataset)
    prepared(dataset, key="u")
    assert np.array_equal(prepared(dataset, "test"), IMAGES.transpose(0, 3, 1, 2))
    changed = open_images(DataSource(path=save(tmp_path / "e.npz", IMAGES // 2)))
    assert np.array_equal(prepared(changed), 255 - (IMAGES // 2).transpose(0, 3, 1, 2))
    some = open_images(DataSource(path=tmp_path / "d.npz", limit=4))
    assert np.array_equal(prepared(some), 255 - some.array("val").transpose(0, 3, 1, 2))
    assert len(files()) == 5


def test_a_killed_write_is_never_taken_for_complete(dataset, tmp_path):
    program = """
import os, sys, time
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import cached_inputs, open_images
def slow(image):
    if image[0, 0, 0] == int(sys.argv[2]):
        print("half", flush=True)
        time.sleep(60)
    return 255 - image.transpose(2, 0, 1)
cached_inputs(open_images(DataSource(path=sys.argv[1])), "val", slow, "t", (3, 4, 4))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "d.npz"), str(IMAGES[6, 0, 0, 0])], stdout=subprocess.PIPE
    )
    assert process.stdout.readline().strip() == b"half"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not [name for name in files() if name.endswith(".npy")]
    inputs = cached_inputs(dataset, "val", turned, "t", (3, 4, 4))
    assert np.array_equal(inputs, 255 - IMAGES.transpose(0, 3, 1, 2))
    assert [name.rpartition(".")[2] for name in files()] == ["npy"]


def test_a_damaged_file_is_prepared_anew(dataset):
    wanted = np.array(cached_inputs(dataset, "val", turned, "t", (3, 4, 4)))
    (path,) = (cache_folder() / "inputs").glob("*.npy")
    path.write_bytes(path.read_bytes()[:-5])
    assert np.array_equal(cached_inputs(dataset, "val", turned, "t", (3, 4, 4)), wanted)
    path.write_bytes(b"")
    assert np.array_equal(cached_inputs(dataset, "val", turned, "t", (3, 4, 4)), wanted)


def _in_process(path, where):
    os.environ["MAPMERGE_HOME"] = where
    made = []

    def transform(image):
        made.append(1)
        time.sleep(0.01)
        return turned(image)

    inputs = cached_inputs(open_images(DataSource(path=path)), "val", transform, "t", (3, 4, 4))
    return len(made), np.array(inputs)


def test_processes_share_one_preparation(tmp_path):
    path = save(tmp_path / "d.npz")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.starmap(_in_process, [(path, str(tmp_path / "home"))] * 2)
    assert sorted(count for count, _ in results) == [0, 12]
    assert np.array_equal(results[0][1], results[1][1])


def test_a_full_disk_is_one_sentence(dataset, monkeypatch):
    usage = namedtuple("usage", "total used free")
    says = r"is full: 0\.0 GB are needed and 0\.0 GB are free; free some space"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 100))
        with pytest.raises(DatasetError, match=says):
            cached_inputs(dataset, "val", turned, "t", (3, 4, 4))

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DatasetError, match="is full; free some space, or set MAPMERGE_HOME"):
        cached_inputs(dataset, "val", turned, "t", (3, 4, 4))
    assert files() == []


def test_a_really_full_disk(dataset, monkeypatch):
    # Writing to this device fails as on a full disk.
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *args, **kw: real(Path("/dev/full") if self.suffix == ".part" else self, *args, **kw)
    )
    with pytest.raises(DatasetError, match="is full; free some space"):
        cached_inputs(dataset, "val", turned, "t", (3, 4, 4))
    assert files() == []


def test_a_cache_that_cannot_be_written_is_one_sentence(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match=r"can't be written .*: set MAPMERGE_HOME to another folder"):
        cached_inputs(dataset, "val", turned, "t", (3, 4, 4))


def test_preparing_can_be_cancelled(dataset):
    cancel = threading.Event()

    def transform(image):
        cancel.set()
        return turned(image)

    with pytest.raises(Cancelled):
        cached_inputs(dataset, "val", transform, "t", (3, 4, 4), cancel=cancel)
    assert files() == []
    assert len(cached_inputs(dataset, "val", turned, "t", (3, 4, 4))) == 12


def test_waiting_for_another_can_be_cancelled(dataset):
    started, cancel = threading.Event(), threading.Event()
    go_on = threading.Event()

    def slow(image):
        started.set()
        go_on.wait(10)
        return turned(image)

    other = threading.Thread(target=lambda: cached_inputs(dataset, "val", slow, "t", (3, 4, 4)))
    other.start()
    started.wait(10)
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(Cancelled):
        cached_inputs(dataset, "val", turned, "t", (3, 4, 4), cancel=cancel)
    go_on.set()
    other.join()
    assert len(files()) == 1


def test_a_transform_of_another_shape_is_refused(dataset):
    with pytest.raises(DatasetError, match=r"val_images\[0\] was prepared as uint8 of shape \(4, 4, 3\)"):
        cached_inputs(dataset, "val", lambda image: image, "t", (3, 4, 4))


def test_the_cache_lies_where_it_was_said(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "home" / "cache"
    monkeypatch.delenv("MAPMERGE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "mapmerge"
