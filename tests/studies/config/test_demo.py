"""Manifests, and the studies that the demo zoo offers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.demo import (
    DEMO_ZOO,
    config_from_manifest,
    demo_comparison,
    demo_study,
    demo_tasks,
    is_demo,
    kept_skills,
    read_manifest,
)
from mapmerge_core.studies.inputs.sources import read_sources

_TASK = {"name": "A", "checkpoint": "a.pt", "data": "a.npz"}


def _manifest(**changes: object) -> str:
    values = {"name": "x", "family": "clip", "architecture": "a", "pretrained": "p.pt", "tasks": [_TASK]}
    return json.dumps(values | changes)


def test_a_manifest_becomes_a_study_of_absolute_paths(tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tiny_zoo.parent)
    config = config_from_manifest(tiny_zoo.name, ["Stripes", "Light"])
    assert config.model_names == ("Stripes", "Light")
    assert config.pretrained == tiny_zoo / "pretrained.safetensors"
    assert Path(config.architecture) == tiny_zoo / "tiny-clip.json"
    assert [task.model for task in config.tasks] == ["Stripes", "Light"]
    monkeypatch.chdir("/")
    read_sources(config)


def test_without_names_all_tasks_come_in_the_manifests_order(tiny_zoo: Path):
    assert config_from_manifest(tiny_zoo).model_names == ("Colours", "Stripes", "Light")


def test_a_task_without_a_checkpoint_is_a_skill_to_keep(tmp_path: Path):
    kept = {"name": "Kept", "data": "kept.npz"}
    (tmp_path / "manifest.json").write_text(_manifest(tasks=[_TASK, kept]))
    config = config_from_manifest(tmp_path)
    assert config.model_names == ("A",)
    assert [(task.name, task.model) for task in config.tasks] == [("A", "A"), ("Kept", None)]
    assert kept_skills(tmp_path) == ("Kept",)


def test_an_unknown_task_is_named_with_those_there_are(tiny_zoo: Path):
    with pytest.raises(StudyError, match="no task 'Colors': choose among Colours, Stripes, Light"):
        config_from_manifest(tiny_zoo, ["Colors"])


def test_a_folder_without_a_manifest_says_so(tmp_path: Path):
    with pytest.raises(StudyError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "isn't a manifest"),
        ("[" * 100_000, "can't be read as JSON"),
        ('{"name": "x"}', "the study has no 'pretrained': add it"),
        ('{"name": 5}', "name should be text, not 5"),
        (_manifest(architecture=3), "architecture should be text, not 3"),
        (_manifest(architecture=""), "needs an architecture: name one"),
        (_manifest(tasks=5), "tasks should be a list, not 5"),
        (_manifest(tasks=["A"]), r"tasks\[0\] should be a task, with name"),
        (_manifest(tasks=[{**_TASK, "checkpoint": 7}]), "models.A should be the path of a file or folder"),
        (_manifest(tasks=[{**_TASK, "data": None}]), "The task 'A' has no dataset"),
        (_manifest(tasks=[_TASK, _TASK]), "Two tasks are called 'A'"),
        (_manifest(tasks=[_TASK, {"name": "A", "data": "b.npz"}]), "Two tasks are called 'A'"),
    ],
)
def test_a_broken_manifest_says_what_is_wrong(tmp_path: Path, text: str, sentence: str):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StudyError, match=sentence):
        read_manifest(tmp_path)


def test_the_demo_takes_the_zoos_tasks_or_anothers(tiny_zoo: Path):
    assert demo_tasks(2, tiny_zoo) == ("Colours", "Stripes")
    with pytest.raises(StudyError, match="2 to 3 tasks, not 4"):
        demo_tasks(4, tiny_zoo)
    with pytest.raises(StudyError, match="2 to 3 tasks, not 1"):
        demo_tasks(1, tiny_zoo)


@pytest.mark.parametrize(("n_tasks", "points", "high"), [(2, 30, None), (4, 60, None), (8, 100, 0.6)])
def test_the_demos_budgets_and_boxes(n_tasks: int, points: int, high: float | None):
    study = demo_study(n_tasks)
    assert (study.run.points, study.run.high) == (points, high)
    assert is_demo(study.config)
    assert study.run.space(study.config).high.tolist() == [high or 1.0] * n_tasks


def test_the_demo_of_some_points_and_a_seed():
    run = demo_study(2, points=12, seed=3).run
    assert (run.points, run.seed) == (12, 3)
    with pytest.raises(StudyError, match="5 points are too few to see the trade-offs of 2 tasks: choose 6 or more"):
        demo_study(2, points=5)


def test_the_demos_comparison_runs_every_method():
    runs = demo_comparison(demo_study(8, points=60), direct_points=30)
    assert [(run.method, run.points, run.high) for run in runs] == [
        ("map", 60, 0.6),
        ("bayesian", None, 0.6),
        ("nested", None, None),
        ("direct", 30, 0.6),
    ]


def test_the_bundled_zoo_offers_the_demos():
    assert demo_tasks(2) == ("MNIST", "Emoji")
    assert demo_tasks(4) == ("MNIST", "Emoji", "Letters", "Textures")
    assert len(demo_tasks(8)) == 8
    read_sources(config_from_manifest(DEMO_ZOO))
    [skill] = kept_skills()
    study = demo_study(["MNIST", "Emoji", skill])
    assert [objective.model for objective in study.config.objectives] == ["MNIST", "Emoji", None]
