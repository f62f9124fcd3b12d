from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from mapmerge_core.errors import Cancelled, DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_images
from mapmerge_core.tasks.datasets.decode import to_pixels

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 5, 3), np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def test_plain_images_in_every_wrapping(tmp_path):
    data = encoded(Image.fromarray(COLOURS))
    (tmp_path / "a.png").write_bytes(data)
    for held in (
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        tmp_path / "a.png",
        "a.png",
        Image.fromarray(COLOURS),
        COLOURS,
        COLOURS.tolist(),
        COLOURS.transpose(2, 0, 1),
        COLOURS.astype(np.int64),
        COLOURS / 255,
        np.concatenate([COLOURS, COLOURS[..., :1]], axis=2),
    ):
        assert np.array_equal(to_pixels(held, "it", tmp_path), COLOURS)
    gray = COLOURS[..., 0]
    assert np.array_equal(to_pixels(gray[..., None], "it"), gray)
    assert np.array_equal(to_pixels(encoded(Image.fromarray(gray)), "it"), np.stack([gray] * 3, axis=2))


def test_unusual_images_become_rgb():
    rgba = Image.fromarray(np.concatenate([COLOURS, np.full((6, 5, 1), 9, np.uint8)], axis=2))
    assert np.array_equal(to_pixels(encoded(rgba), "it"), COLOURS)

    palette = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5)).convert("P")
    palette.putpalette([value for colour in COLOURS.reshape(-1, 3).tolist() for value in colour])
    data = encoded(palette, transparency=bytes(range(30)))
    assert np.array_equal(to_pixels(data, "it"), COLOURS)

    # CMYK is 255 minus RGB where no black is used.
    cmyk = Image.fromarray(np.concatenate([255 - COLOURS, np.zeros((6, 5, 1), np.uint8)], axis=2), "CMYK")
    assert np.array_equal(to_pixels(encoded(cmyk, "TIFF"), "it"), COLOURS)

    # 16-bit gray: 257 steps of 16 bits are one step of 8 bits.
    gray = COLOURS[..., 0]
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(to_pixels(encoded(deep, kind), "it"), np.stack([gray] * 3, axis=2))

    turned = Image.fromarray(COLOURS)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees, so the picture is to be turned clockwise
    assert np.array_equal(to_pixels(encoded(turned, exif=exif), "it"), np.rot90(COLOURS, -1))

    black_and_white = Image.fromarray(gray > 100)
    assert np.array_equal(
        to_pixels(encoded(black_and_white), "it")[..., 0], np.where(gray > 100, 255, 0).astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (b"", "it holds no bytes"),
        (b"GIF89a", "can't be read as an image"),
        (b"hello", "no image, or of another kind than JPEG, PNG"),
        (encoded(Image.fromarray(COLOURS))[:70], "can't be read as an image"),
        (None, "it is empty"),
        ("missing.png", "No such file"),
        (np.zeros(784, np.uint8), "an array of shape \\(784,\\) is no image"),
        (np.full((4, 4), 300), "must be whole from 0 to 255"),
        (np.full((4, 4, 3), -0.5), "fractions from 0 to 1"),
        ([[1, 2], [3]], "can't be read as an image"),
        (np.zeros((0, 4), np.uint8), "is no image"),
    ],
)
def test_what_is_no_image_is_said_in_one_sentence(held, says):
    with pytest.raises(DatasetError, match=says) as error:
        to_pixels(held, "it")
    assert "\n" not in str(error.value)


def test_images_of_dangerous_size_are_not_opened(monkeypatch):
    data = encoded(Image.new("1", (5000, 4000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19_000_000)
    too_many = "more pixels than is safe"
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DatasetError, match=too_many):
        to_pixels(data, "it")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(DatasetError, match=too_many):
        to_pixels(data, "it")


def test_pictures_that_are_programs_are_never_run(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: ran.append(1) or Image.new("RGB", (2, 2)).im)
    program = encoded(Image.fromarray(COLOURS), "EPS")
    (tmp_path / "cat.png").write_bytes(program)
    for held in (program, tmp_path / "cat.png"):
        with pytest.raises(DatasetError, match="it is no image, or of another kind than JPEG, PNG"):
            to_pixels(held, "it")
    assert not ran


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_damage_ends_in_a_dataset_error():
    whole = {
        kind: encoded(Image.fromarray(np.tile(COLOURS, (9, 9, 1))), kind)
        for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")
    }
    for data in whole.values():
        for _ in range(60):
            bad = bytearray(data)
            for place in RNG.integers(0, len(bad), 8):
                bad[place] = RNG.integers(256)
            try:
                pixels = to_pixels(bytes(bad[: RNG.integers(1, len(bad) + 1)]), "it")
            except DatasetError:
                continue
            assert (pixels.dtype, pixels.ndim) == (np.uint8, 3)


def some_damaged(folder):
    for split in ("val", "test"):
        for name in ("cat", "dog"):
            for each in range(10):
                path = folder / split / name / f"{each}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.tile(COLOURS, (9, 9, 1))).save(path)
    bad = [folder / "val" / "cat" / f"{each}.jpg" for each in range(2)] + [
        folder / "val" / "dog" / f"{each}.jpg" for each in range(3)
    ]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:400])
    bad[2].write_text("not an image")
    bad[3].write_bytes(bad[3].read_bytes()[:-60])
    bad[4].write_bytes(bytes(1000))
    return [path.relative_to(folder).as_posix() for path in bad]


def test_damaged_images_are_named_and_left_out_only_if_agreed(tmp_path):
    bad = some_damaged(tmp_path / "d")
    with pytest.raises(DatasetError) as error:
        open_images(DataSource(path=tmp_path / "d"))
    assert str(error.value) == (
        f"{tmp_path / 'd'}: 5 of the 20 images of 'val' can't be read ({', '.join(bad[:3])} and 2 more): "
        "repair or remove them, or agree to leave unreadable images out (skip_corrupt: true)."
    )
    dataset = open_images(DataSource(path=tmp_path / "d", skip_corrupt=True))
    assert dataset.corrupt == tuple(bad)
    assert dataset.sizes == {"val": 15, "test": 20}
    assert dataset.labels("val").tolist() == [0] * 8 + [1] * 7
    assert len(list(dataset.images("val"))) == 15
    unchecked = open_images(DataSource(path=tmp_path / "d"), check=False)
    assert unchecked.sizes == {"val": 20, "test": 20}
    with pytest.raises(DatasetError, match="5 of the 20 images"):
        unchecked.labels("val")


def test_a_check_is_remembered_reported_and_can_be_cancelled(tmp_path, monkeypatch):
    some_damaged(tmp_path / "d")
    source = DataSource(path=tmp_path / "d", skip_corrupt=True)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        open_images(source, cancel=cancel)
    seen = []
    open_images(source, progress=lambda *done: seen.append(done))
    assert seen == [(done, 40) for done in range(1, 41)]

    def refuse(*_):
        raise AssertionError("it was read again")

    monkeypatch.setattr(Image, "open", refuse)
    assert open_images(source).sizes == {"val": 15, "test": 20}


def test_a_split_of_nothing_but_damaged_images_is_refused(tmp_path):
    some_damaged(tmp_path / "d")
    for path in (tmp_path / "d" / "test").rglob("*.jpg"):
        path.write_bytes(b"x")
    with pytest.raises(DatasetError, match="20 of the 20 images of 'test'"):
        open_images(DataSource(path=tmp_path / "d", skip_corrupt=True))
