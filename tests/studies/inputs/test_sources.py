"""The files of a study: hashed, found again, and compared."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config import StudyConfig, TaskConfig
from mapmerge_core.studies.inputs.sources import check_sources, read_sources
from mapmerge_core.tasks.data_source import DataSource
from tests.studies.config.test_study import make_config


def files_of(folder: Path, *names: str) -> StudyConfig:
    """A study whose files are there."""
    (folder / "pre.pt").write_bytes(b"pretrained")
    for name in names:
        (folder / f"{name}.pt").write_bytes(name.encode())
        (folder / f"{name}.npz").write_bytes(name.encode())
    return make_config(folder, *names)


def test_sources_are_hashed_and_a_changed_file_is_named(tmp_path: Path):
    config = files_of(tmp_path, "A", "B")
    sources = read_sources(config)
    assert [source.role for source in sources] == ["pretrained", "A model", "B model", "A data", "B data"]
    assert sources[0].sha256 == hashlib.sha256(b"pretrained").hexdigest()
    assert sources[0].n_bytes == 10
    check_sources(sources)
    (tmp_path / "B.pt").write_bytes(b"another model")
    with pytest.raises(StudyError, match=r"B\.pt has changed since this study was created"):
        check_sources(sources)


def test_folders_are_hashed_by_what_evaluations_depend_on(tmp_path: Path):
    files_of(tmp_path, "A", "B")
    model, images = tmp_path / "model", tmp_path / "images" / "val" / "cat"
    model.mkdir()
    images.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    (model / "README.md").write_text("about")
    (images / "1.png").write_bytes(b"one")
    config = StudyConfig(
        family="clip_transformers",
        pretrained=model,
        models={"A": tmp_path / "A.pt"},
        tasks=(TaskConfig(name="A", data=DataSource(path=tmp_path / "images")),),
    )
    sources = read_sources(config)
    by_role = {source.role: source for source in sources}
    assert next(iter(by_role)) == "pretrained"
    # What `inspect` prints, and what `sha256sum` does.
    assert by_role["pretrained"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert by_role["A data"].n_bytes == 3
    (model / "README.md").write_text("more about it")
    check_sources(sources)
    for file in (model / "config.json", images / "2.png", model / "model.safetensors"):
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(b"changed")
        with pytest.raises(StudyError, match="has changed since this study was created"):
            check_sources(sources)
        file.unlink() if before is None else file.write_bytes(before)


def test_a_missing_file_is_named(tmp_path: Path):
    config = files_of(tmp_path, "A", "B")
    (tmp_path / "A.npz").unlink()
    with pytest.raises(StudyError, match=r"A\.npz \(A data\) can't be read: No such file"):
        read_sources(config)
