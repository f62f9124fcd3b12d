"""What a study is made of: manifests, absolute paths, changed files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mapmerge_core.errors import SearchError, StudyError
from mapmerge_core.studies.config.manifest import (
    DEMO_ZOO,
    demo_settings,
    demo_tasks,
    read_manifest,
    spec_from_manifest,
)
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.inputs.sources import check_sources, read_sources
from mapmerge_core.studies.config.study import StudySpec, TaskSpec, Transform
from mapmerge_core.tasks.data_source import DataSource

_TASK = {"name": "A", "checkpoint": "a.pt", "data": "a.npz"}


def _manifest(**changes: object) -> str:
    values = {"name": "x", "family": "clip", "architecture": "a", "pretrained": "p.pt", "tasks": [_TASK]}
    return json.dumps(values | changes)


def make_spec(folder: Path, *names: str) -> StudySpec:
    (folder / "pre.pt").write_bytes(b"pretrained")
    for name in names:
        (folder / f"{name}.pt").write_bytes(name.encode())
        (folder / f"{name}.npz").write_bytes(name.encode())
    tasks = tuple(
        TaskSpec(name, folder / f"{name}.pt", DataSource(path=folder / f"{name}.npz")) for name in names
    )
    return StudySpec(architecture="ViT-B-32", pretrained=folder / "pre.pt", tasks=tasks)


def test_a_manifest_becomes_a_spec_of_absolute_paths(tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tiny_zoo.parent)
    spec = spec_from_manifest(tiny_zoo.name, ["Stripes", "Light"])
    assert spec.task_names == ("Stripes", "Light")
    assert spec.pretrained == tiny_zoo / "pretrained.safetensors"
    assert Path(spec.architecture) == tiny_zoo / "tiny-clip.json"
    monkeypatch.chdir("/")
    read_sources(spec)
    assert StudySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_without_names_all_tasks_come_in_the_manifests_order(tiny_zoo: Path):
    assert spec_from_manifest(tiny_zoo).task_names == ("Colours", "Stripes", "Light")


def test_relative_paths_are_taken_from_where_the_spec_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    task = TaskSpec("A", Path("a.pt"), DataSource(path="a.npz"))
    assert (task.checkpoint, task.data.path) == (tmp_path / "a.pt", tmp_path / "a.npz")


def test_an_unknown_task_is_named_with_those_there_are(tiny_zoo: Path):
    with pytest.raises(StudyError, match="no task 'Colors': choose among Colours, Stripes, Light"):
        spec_from_manifest(tiny_zoo, ["Colors"])


def test_a_folder_without_a_manifest_says_so(tmp_path: Path):
    with pytest.raises(StudyError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "isn't a manifest"),
        ('{"name": "x"}', "has no 'architecture'"),
        ('{"name": "x", "architecture": 3}', "'architecture' is 3 and should be text"),
        ('{"name": 5}', "'name' is 5 and should be text"),
        ("[1]", r"\[1\] isn't an object"),
        ("[" * 100_000, "can't be read as JSON"),
        (_manifest(tasks=5), "'tasks' isn't a list"),
        (_manifest(tasks=["A"]), '"A" isn\'t an object'),
        (_manifest(title=["x"]), "'title' is"),
        (_manifest(tasks=[{**_TASK, "title": 7}]), "'title' is 7 and should be text"),
        (_manifest(tasks=[{**_TASK, "data": None}]), "'data' is null and should be text"),
        (_manifest(tasks=[_TASK, _TASK]), "two tasks called 'A'"),
    ],
)
def test_a_broken_manifest_says_what_is_wrong(tmp_path: Path, text: str, sentence: str):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StudyError, match=sentence):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["A"], "two tasks or more"),
        (["A", "A"], "Two tasks are called 'A'"),
        (["A", " "], "no name"),
        (["A", "pretrained"], "another name"),
    ],
)
def test_tasks_that_make_no_study_are_refused(tmp_path: Path, names: list[str], sentence: str):
    with pytest.raises(StudyError, match=sentence):
        make_spec(tmp_path, *names)


def test_another_family_is_refused(tmp_path: Path):
    with pytest.raises(StudyError, match=r"no family of models 'bert': choose clip, .*module:function"):
        StudySpec(family="bert", architecture="x", pretrained=tmp_path, tasks=())


def test_sources_are_hashed_and_a_changed_file_is_named(tmp_path: Path):
    spec = make_spec(tmp_path, "A", "B")
    sources = read_sources(spec)
    assert [source.role for source in sources] == [
        "pretrained", "A checkpoint", "A data", "B checkpoint", "B data",
    ]  # fmt: skip
    assert sources[0].sha256 == hashlib.sha256(b"pretrained").hexdigest()
    assert sources[0].n_bytes == 10
    check_sources(sources)
    (tmp_path / "B.pt").write_bytes(b"another model")
    with pytest.raises(StudyError, match=r"B\.pt has changed since this study was created"):
        check_sources(sources)


def test_folders_are_hashed_by_what_evaluations_depend_on(tmp_path: Path):
    make_spec(tmp_path, "A", "B")
    model, images = tmp_path / "model", tmp_path / "images" / "val" / "cat"
    model.mkdir()
    images.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    (model / "README.md").write_text("about")
    (images / "1.png").write_bytes(b"one")
    data = DataSource(path=tmp_path / "images")
    tasks = tuple(TaskSpec(name, tmp_path / f"{name}.pt", data) for name in "AB")
    sources = read_sources(StudySpec(family="clip_transformers", pretrained=model, tasks=tasks))
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
    spec = make_spec(tmp_path, "A", "B")
    (tmp_path / "A.npz").unlink()
    with pytest.raises(StudyError, match=r"A\.npz \(A data\) can't be read: No such file"):
        read_sources(spec)


def test_the_demo_takes_the_zoos_tasks_or_anothers(tiny_zoo: Path):
    assert demo_tasks(2, tiny_zoo) == ("Colours", "Stripes")
    with pytest.raises(StudyError, match="2 to 3 tasks, not 4"):
        demo_tasks(4, tiny_zoo)
    with pytest.raises(StudyError, match="2 to 3 tasks, not 1"):
        demo_tasks(1, tiny_zoo)


def test_the_demos_budgets_and_boxes():
    assert demo_settings(2) == RunSettings(points=30)
    assert demo_settings(4) == RunSettings(points=60)
    assert demo_settings(8) == RunSettings(points=100, high=0.6)
    assert demo_settings(2, 12, seed=3) == RunSettings(points=12, seed=3)


def test_the_bundled_zoo_offers_the_demos():
    assert demo_tasks(2) == ("MNIST", "Emoji")
    assert demo_tasks(4) == ("MNIST", "Emoji", "Letters", "Textures")
    assert len(demo_tasks(8)) == 8
    read_sources(spec_from_manifest(DEMO_ZOO))


def test_a_transform_is_kept_with_the_spec(tiny_zoo: Path):
    plain = spec_from_manifest(tiny_zoo, ["Stripes", "Light"])
    dare = replace(plain, transform=Transform("dare", drop=0.9, seed=3))
    assert StudySpec.from_dict(json.loads(json.dumps(dare.to_dict()))) == dare != plain
    assert "transform" not in plain.to_dict()
    assert dare.transform.label == "DARE 90 %"
    assert Transform("ties_trim", keep=0.25).label == "TIES-trim 25 %"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "breadcrumbs"}, "'breadcrumbs' is unknown: use ties_trim, ties, dare"),
        ({"kind": "ties", "keep": 0.0}, "above 0 and at most 1, not 0"),
        ({"kind": "ties_trim", "keep": 1.5}, "above 0 and at most 1, not 1.5"),
        ({"kind": "dare", "drop": 1.0}, "from 0 to below 1, not 1"),
        ({"kind": "dare", "drop": -0.1}, "from 0 to below 1, not -0.1"),
    ],
)
def test_a_transform_that_leaves_nothing_is_refused(values: dict[str, object], message: str):
    with pytest.raises(StudyError, match=message):
        Transform(**values)


def test_a_transforms_seed_is_a_seed():
    with pytest.raises(SearchError, match="seed -1"):
        Transform("dare", seed=-1)
