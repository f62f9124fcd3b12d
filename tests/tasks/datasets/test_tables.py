from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_images, preview

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 6, 5, 3), np.uint8)
LABELS = np.arange(60) % 3
NAMES = ["cat", "hot_dog", "cow"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def hugging_face(rows=range(60), **columns):
    rows = list(rows)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    content = {"image": [Image.fromarray(PIXELS[row]) for row in rows], "label": LABELS[rows].tolist()}
    for name, values in columns.items():
        content[name] = [values[row] for row in rows]
        features[name] = datasets.Value("string" if isinstance(values[0], str) else "int64")
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def check(dataset, rows, split="test"):
    """The split's images are those of ``rows``, pixel by pixel."""
    assert np.array_equal(np.stack(list(dataset.images(split))), PIXELS[list(rows)])
    assert dataset.labels(split).tolist() == LABELS[list(rows)].tolist()


def test_hugging_face_folders_saved_to_disk(tmp_path):
    datasets.DatasetDict(
        train=hugging_face(range(20)), validation=hugging_face(range(20, 32)), test=hugging_face(range(32, 60))
    ).save_to_disk(tmp_path / "d")
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert dataset.sizes == {"train": 20, "val": 12, "test": 28}
    assert dataset.class_names == ("cat", "hot dog", "cow")
    assert dataset.columns == {"image": "image", "label": "label"}
    assert dataset.notes == ()
    check(dataset, range(20, 32), "val")
    check(dataset, range(32, 60))
    assert len({name for _, name in preview(DataSource(path=tmp_path / "d"), 3)}) == 3
    again = open_images(DataSource(path=tmp_path / "d"))
    assert again.content_key == dataset.content_key


def test_a_single_dataset_saved_to_disk_is_divided(tmp_path):
    hugging_face().shuffle(seed=0).save_to_disk(tmp_path / "d")
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert dataset.sizes == {"train": 48, "val": 6, "test": 6}
    assert np.bincount(dataset.labels("val")).tolist() == [2, 2, 2]
    for split in dataset.sizes:
        for image, label in zip(dataset.images(split), dataset.labels(split), strict=True):
            (row,) = np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))
            assert LABELS[row] == label


def test_parquet_folders_with_files_for_splits(tmp_path):
    (tmp_path / "d").mkdir()
    hugging_face(range(12)).to_parquet(tmp_path / "d" / "validation-00000-of-00001.parquet")
    hugging_face(range(12, 30)).to_parquet(tmp_path / "d" / "test-00000-of-00002.parquet")
    hugging_face(range(30, 60)).to_parquet(tmp_path / "d" / "test-00001-of-00002.parquet")
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert (dataset.sizes, dataset.class_names) == ({"val": 12, "test": 48}, ("cat", "hot dog", "cow"))
    check(dataset, range(12), "val")
    check(dataset, range(12, 60))


@pytest.mark.parametrize(
    "column",
    [
        [png(pixels) for pixels in PIXELS],
        [{"bytes": png(pixels), "path": None} for pixels in PIXELS],
        [pixels.tolist() for pixels in PIXELS],
    ],
    ids=["bytes", "struct", "lists"],
)
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LABELS, ("0", "1", "2")),
        ([NAMES[label] for label in LABELS], ("cat", "cow", "hot dog")),
        (LABELS == 1, ("False", "True")),
    ],
    ids=["integers", "texts", "bools"],
)
def test_parquet_files_of_pandas(tmp_path, column, labels, names):
    pd.DataFrame({"note": ["x"] * 60, "img": column, "target": labels}).to_parquet(tmp_path / "d.parquet")
    dataset = open_images(DataSource(path=tmp_path / "d.parquet"))
    assert dataset.columns == {"image": "img", "label": "target"}
    assert dataset.class_names == names
    for split in dataset.sizes:
        for image, label in zip(dataset.images(split), dataset.labels(split), strict=True):
            (row,) = np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))
            assert names[label] == str(labels[row]).replace("_", " ")


def test_the_key_of_a_file_follows_its_bytes(tmp_path):
    hugging_face().to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    hugging_face(range(59)).to_parquet(tmp_path / "c.parquet")
    a, b, c = (open_images(DataSource(path=tmp_path / f"{name}.parquet")).content_key for name in "abc")
    assert a == b != c


def test_tables_that_name_image_files(tmp_path):
    for row in range(60):
        Image.fromarray(PIXELS[row]).save(tmp_path / f"{row}.png")
    table = pd.DataFrame(
        {"file_name": [f"{row}.png" for row in range(60)], "label": [NAMES[label] for label in LABELS]}
    )
    table.to_csv(tmp_path / "d.csv", index=False)
    dataset = open_images(DataSource(path=tmp_path / "d.csv"))
    assert dataset.columns == {"image": "file_name", "label": "label"}
    assert dataset.sizes["test"] == 6
    for image, label in zip(dataset.images("test"), dataset.labels("test"), strict=True):
        (row,) = np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))
        assert dataset.class_names[label] == NAMES[LABELS[row]].replace("_", " ")
    # The same beside the images is Hugging Face's image folder.
    folder = tmp_path / "folder"
    folder.mkdir()
    for row in range(60):
        Image.fromarray(PIXELS[row]).save(folder / f"{row}.png")
    table.to_csv(folder / "metadata.csv", index=False)
    again = open_images(DataSource(path=folder))
    assert again.columns == {"image": "image", "label": "label"}
    assert again.sizes == dataset.sizes


def test_image_files_that_a_table_names_may_be_repaired(tmp_path):
    names = [f"{row}.png" for row in range(60)]
    for name in names:
        (tmp_path / name).write_bytes(b"damaged")
    pd.DataFrame({"file": names, "label": LABELS}).to_csv(tmp_path / "d.csv", index=False)
    source = DataSource(path=tmp_path / "d.csv")
    with pytest.raises(DatasetError, match="can't be read"):
        open_images(source)
    for row, name in enumerate(names):
        (tmp_path / name).write_bytes(png(PIXELS[row]))
    before = open_images(source).split_key("val")
    for name in names:
        (tmp_path / name).write_bytes(png(np.zeros((3, 3, 3), np.uint8)))
    assert open_images(source).split_key("val") != before


def test_columns_are_guessed_or_chosen(tmp_path):
    fine = (np.arange(60) % 6).tolist()
    path = tmp_path / "d"
    hugging_face(coarse=fine, caption=["a"] * 60).rename_column("label", "kind").save_to_disk(path)
    dataset = open_images(DataSource(path=path))
    assert dataset.columns == {"image": "image", "label": "kind"}
    chosen = open_images(DataSource(path=path, label="coarse"))
    assert chosen.class_names == tuple("012345")
    assert chosen.notes[0].startswith("The dataset doesn't name its classes, so they are called 0 to 5")
    assert chosen.content_key != dataset.content_key
    named = open_images(DataSource(path=path, label="coarse", class_names=tuple("abcdef")))
    assert named.class_names == tuple("abcdef")
    for settings, says in (
        ({"label": "missing"}, "no column 'missing' in 'train': choose from image, kind, coarse, caption"),
        ({"label": "coarse", "class_names": ("a", "b")}, "go from 0 to 5, but 2 class names allow 0 to 1"),
        ({"label": "image"}, "holds no labels"),
    ):
        with pytest.raises(DatasetError, match=says):
            open_images(DataSource(path=path, **settings))
    hugging_face(a=fine, b=fine).remove_columns("label").save_to_disk(tmp_path / "e")
    with pytest.raises(DatasetError, match="which column holds the labels: choose the label column from image, a, b"):
        open_images(DataSource(path=tmp_path / "e"))
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(tmp_path / "f")
    with pytest.raises(DatasetError, match="which column holds the images"):
        open_images(DataSource(path=tmp_path / "f"))


def test_labels_that_are_hidden_or_missing(tmp_path):
    hidden = hugging_face(range(30, 60)).map(lambda _: {"label": -1})
    datasets.DatasetDict(train=hugging_face(range(30)), test=hidden).save_to_disk(tmp_path / "d")
    dataset = open_images(DataSource(path=tmp_path / "d"))
    assert dataset.notes[0] == "The split 'test' has no labels, so it is not used."
    assert dataset.sizes == {"train": 24, "val": 3, "test": 3}
    some = [None if row < 3 else int(LABELS[row]) for row in range(60)]
    pd.DataFrame({"image": [png(pixels) for pixels in PIXELS], "label": some}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(DatasetError, match="3 of the 60 labels of 'train' are empty"):
        open_images(DataSource(path=tmp_path / "e.parquet"))


def test_damaged_images_in_tables_are_named_by_row(tmp_path):
    column = [png(pixels) for pixels in PIXELS]
    column[7] = column[7][:40]
    column[8] = None
    rows = pd.DataFrame({"image": column, "label": LABELS})
    (tmp_path / "d").mkdir()
    rows.to_parquet(tmp_path / "d" / "test.parquet")
    rows[20:].to_parquet(tmp_path / "d" / "validation.parquet")
    with pytest.raises(
        DatasetError, match=r"2 of the 60 images of 'test' can't be read \(row 7 of test, row 8 of test\)"
    ):
        open_images(DataSource(path=tmp_path / "d"))
    dataset = open_images(DataSource(path=tmp_path / "d", skip_corrupt=True))
    check(dataset, [row for row in range(60) if row not in {7, 8}])


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "dataset_info.json").write_text("{")
    (tmp_path / "b" / "state.json").write_text("{")
    (tmp_path / "c.json").write_text("[1, 2")
    for name in ("a.parquet", "b", "c.json"):
        with pytest.raises(DatasetError, match=r"can't be opened: .") as error:
            open_images(DataSource(path=tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_datasets_own_code_is_never_run(tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DatasetError):
        open_images(DataSource(path=folder))
    import pickle

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "train.pkl").write_bytes(pickle.dumps(Evil()))
    (pickles / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.pkl\nbuilder_name: pandas\n---\n"
    )
    with pytest.raises(DatasetError):
        open_images(DataSource(path=pickles))
    assert not (tmp_path / "ran").exists()


def test_hub_datasets(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    hugging_face().to_parquet(tmp_path / "d" / "train.parquet")
    real, asked = datasets.load_dataset_builder, []

    def local(name, config=None, **options):
        asked.append((name, config, options))
        return real(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    source = DataSource(path="hf://datasets/someone/eurosat@v1", config="small")
    dataset = open_images(source)
    assert asked == [("someone/eurosat", "small", {"revision": "v1"})]
    assert dataset.sizes == {"train": 48, "val": 6, "test": 6}
    assert dataset.templates[0] == "a centered satellite photo of {}."
    assert dataset.notes[-1] == "The prompts are those that are shipped for eurosat."
    assert open_images(source).content_key == dataset.content_key


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DatasetError, match=r"hf://datasets/someone/nothing can't be opened: .*someone/nothing.*; check the address"
    ):
        open_images(DataSource(path="hf://datasets/someone/nothing"))


def test_json_lines_of_lists(tmp_path):
    rows = [{"pixels": PIXELS[row, ..., 0].tolist(), "y": int(LABELS[row])} for row in range(60)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = open_images(DataSource(path=tmp_path / "d.jsonl"))
    assert dataset.columns == {"image": "pixels", "label": "y"}
    for image in dataset.images("val"):
        assert (image == PIXELS[..., 0]).all(axis=(1, 2)).sum() == 1
