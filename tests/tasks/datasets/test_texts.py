from __future__ import annotations

import json

import datasets
import pandas as pd
import pytest

from mapmerge_core.errors import DatasetError
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.datasets import open_texts, text_preview

DOCUMENTS = [f"This is document {number}.\nIt has two lines." for number in range(30)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path / "home"))


def divided(dataset):
    """Every document is in exactly one split."""
    assert dataset.sizes == {"train": 24, "val": 3, "test": 3}
    assert sorted(text for split in dataset.sizes for text in dataset.texts(split)) == sorted(DOCUMENTS)
    return list(dataset.texts("val"))


def test_documents_between_blank_lines(tmp_path):
    (tmp_path / "d.txt").write_text("\n \n\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    dataset = open_texts(DataSource(path=tmp_path / "d.txt"))
    chosen = divided(dataset)
    assert dataset.notes[0] == (
        "There is no validation split: 3 of the 30 examples of 'train' (10%, seed 0) are kept apart for it."
    )
    assert divided(open_texts(DataSource(path=tmp_path / "d.txt"))) == chosen
    assert divided(open_texts(DataSource(path=tmp_path / "d.txt", seed=1))) != chosen
    assert dataset.texts("val")[1:] == chosen[1:]
    assert open_texts(DataSource(path=tmp_path / "d.txt", limit=2)).sizes == {"train": 2, "val": 2, "test": 2}


def test_a_single_text_is_cut_between_words(tmp_path):
    words = [f"word{number}" for number in range(200)]
    (tmp_path / "d.txt").write_text(" ".join(words), encoding="utf-8")
    dataset = open_texts(DataSource(path=tmp_path / "d.txt"))
    parts = [dataset.texts(split)[0] for split in ("train", "val", "test")]
    assert "".join(parts) == " ".join(words)
    whole = len(" ".join(words))
    assert [len(part) / whole for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=8 / whole)
    assert [word for part in parts for word in part.split()] == words
    assert "first 80% are the training part" in dataset.notes[0]
    # No spaces: cut where it must be.
    (tmp_path / "e.txt").write_text("文" * 1000, encoding="utf-8")
    assert len(open_texts(DataSource(path=tmp_path / "e.txt")).texts("val")[0]) == 100


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("column", ["text", "content", "output", "sentence", "anything"])
def test_tables_with_a_column_of_texts(tmp_path, kind, column):
    path = tmp_path / f"d.{kind}"
    rows = [{"id": number, column: text} for number, text in enumerate(DOCUMENTS)]
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    dataset = open_texts(DataSource(path=path))
    divided(dataset)
    assert dataset.columns == {"text": column}


def test_folders_of_text_files(tmp_path):
    for name, documents in (("train", DOCUMENTS[:10]), ("valid", DOCUMENTS[10:20]), ("test", DOCUMENTS[20:])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    dataset = open_texts(DataSource(path=tmp_path))
    assert list(dataset.texts("val")) == DOCUMENTS[10:20]
    assert list(dataset.texts("test")) == DOCUMENTS[20:]
    assert dataset.notes == ()
    (tmp_path / "many").mkdir()
    for number, document in enumerate(DOCUMENTS):
        (tmp_path / "many" / f"{number}.txt").write_text(document, encoding="utf-8")
    divided(open_texts(DataSource(path=tmp_path / "many")))


def test_hugging_face_folders(tmp_path):
    def table(texts):
        return datasets.Dataset.from_dict({"title": ["t"] * len(texts), "text": texts})

    datasets.DatasetDict(validation=table([*DOCUMENTS[:10], "", " \n"]), test=table(DOCUMENTS[10:])).save_to_disk(
        tmp_path / "d"
    )
    dataset = open_texts(DataSource(path=tmp_path / "d"))
    assert (list(dataset.texts("val")), list(dataset.texts("test"))) == (DOCUMENTS[:10], DOCUMENTS[10:])
    assert dataset.notes == ("2 of the 12 texts of 'validation' are empty and left out.",)
    titles = open_texts(DataSource(path=tmp_path / "d", text="title", splits={"val": "test", "test": "validation"}))
    assert titles.sizes == {"val": 20, "test": 12}
    assert titles.content_key != dataset.content_key
    assert open_texts(DataSource(path=tmp_path / "d")).content_key == dataset.content_key
    with pytest.raises(DatasetError, match="no split 'train': choose one of val, test"):
        dataset.texts("train")


def test_a_preview_shortens_texts(tmp_path):
    (tmp_path / "d.txt").write_text("\n\n".join(["a" * 1000] * 30))
    shown = text_preview(DataSource(path=tmp_path / "d.txt"), 2)
    assert shown == ["a" * 300 + " …"] * 2
    assert len(text_preview(DataSource(path=tmp_path / "d.txt"), 50)) == 3


def test_what_is_wrong_with_texts_is_said_in_one_sentence(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n \n")
    (tmp_path / "short.txt").write_text("ab")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "two.csv").write_text("a,b\nx,y\nz,w\n")
    (tmp_path / "numbers.csv").write_text("text\n1\n2\n")
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, says in (
        ("empty.txt", "holds no text, so there is nothing to measure"),
        ("short.txt", "a single text of 2 characters, too short to be divided"),
        ("latin.txt", "is no text in UTF-8"),
        ("bad.jsonl", "can't be opened"),
        ("two.csv", "which column holds the texts: choose the text column from a, b"),
        ("numbers.csv", "which column holds the texts"),
        ("x.bin", "is no dataset of texts"),
        ("missing.txt", "There is no dataset"),
        ("missing", "There is no dataset"),
        ("folder", "can't be opened"),
    ):
        with pytest.raises(DatasetError, match=says) as error:
            open_texts(DataSource(path=tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="no column 'words'"):
        open_texts(DataSource(path=tmp_path / "two.csv", text="words"))
    with pytest.raises(DatasetError, match="the column 'text' holds no texts"):
        open_texts(DataSource(path=tmp_path / "numbers.csv", text="text"))
    with pytest.raises(DatasetError, match="holds images: choose a dataset of texts"):
        open_texts(DataSource(path="torchvision://MNIST"))
