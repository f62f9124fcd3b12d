"""What a study is made of: models, tasks, objectives, and plain values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mapmerge_core.errors import MapMergeError, StudyError
from mapmerge_core.merges.base import applicable
from mapmerge_core.registries import METRICS
from mapmerge_core.studies.config import Compute, RunConfig, StudyConfig, TaskConfig
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.metrics import Metric
from mapmerge_core.weights.io.hub import HubRef


def make_config(folder: Path, *names: str, **changes: object) -> StudyConfig:
    """A study of files that need not be there."""
    values: dict = {
        "architecture": "ViT-B-32",
        "pretrained": folder / "pre.pt",
        "models": {name: folder / f"{name}.pt" for name in names},
        "tasks": tuple(
            TaskConfig(name=name, data=DataSource(path=folder / f"{name}.npz"), model=name) for name in names
        ),
    }
    return StudyConfig(**values | changes)


def test_two_metrics_a_skill_and_a_model_without_a_task(tmp_path: Path):
    """Two models and four objectives: two metrics on one task, and a task without a model."""
    data = DataSource(path=tmp_path / "a.npz")
    config = make_config(
        tmp_path,
        "A",
        "B",
        tasks=(
            TaskConfig(name="A", data=data, model="A", metrics=(METRICS["accuracy"], METRICS["loss"])),
            TaskConfig(name="Kept", data=data),
            TaskConfig(name="B", data=data, model="B", metrics=(METRICS["F1"],)),
        ),
    )
    assert config.model_names == ("A", "B")
    assert [(o.name, o.key, o.model) for o in config.objectives] == [
        ("A accuracy", "A/accuracy", "A"),
        ("A loss", "A/loss", "A"),
        ("Kept", "Kept/accuracy", None),
        ("B", "B/F1", "B"),
    ]
    assert StudyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    infos = RunConfig().objectives(config)
    assert [(info.link, info.maximize, info.model) for info in infos] == [
        ("sigmoid", True, 0),
        ("softplus", False, 0),
        ("sigmoid", True, None),
        ("sigmoid", True, 1),
    ]
    assert RunConfig().make_method(config).n_evaluations == 30 * 4


def test_models_in_another_order_are_another_study(tmp_path: Path):
    """A point's coordinates are in the models' order."""
    config = make_config(tmp_path, "A", "B")
    assert config == make_config(tmp_path, "A", "B")
    assert hash(config) == hash(make_config(tmp_path, "A", "B"))
    assert config != replace(config, models={name: config.models[name] for name in ("B", "A")})


def test_plain_values_read_back_the_same(tmp_path: Path):
    own = Metric("BLEU", maximize=True, low=0.0)
    config = StudyConfig(
        family="my.module:score",
        pretrained=HubRef("hf://a/b"),
        models={"one": tmp_path / "one.pt"},
        tasks=(TaskConfig(name="T", metrics=(own, METRICS["loss"])),),
    )
    values = json.loads(json.dumps(config.to_dict()))
    assert values["tasks"] == [{"name": "T", "metrics": [{"name": "BLEU", "maximize": True, "low": 0.0}, "loss"]}]
    assert StudyConfig.from_dict(values) == config


def test_relative_paths_are_taken_from_where_the_study_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(Path(), "A")
    assert config.pretrained == tmp_path / "pre.pt"
    assert config.models["A"] == tmp_path / "A.pt"
    assert config.tasks[0].data.path == tmp_path / "A.npz"


def test_places_are_named_by_their_roles(tmp_path: Path):
    config = make_config(tmp_path, "A", architecture=str(tmp_path / "a.json"), pretrained=HubRef("hf://a/b"))
    assert list(config.places()) == ["pretrained", "A model", "architecture", "A data"]
    assert list(config.files()) == ["A model", "architecture", "A data"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "one model or more, and none"),
        (["A", " "], "no name"),
        (["A", "pretrained"], "'pretrained' means something else in rules: give that model another name"),
        (["A", "all"], "'all' means something else in rules"),
    ],
)
def test_models_that_make_no_study_are_refused(tmp_path: Path, names: list[str], sentence: str):
    with pytest.raises(StudyError, match=sentence):
        make_config(tmp_path, *names)


def test_tasks_that_make_no_study_are_refused(tmp_path: Path):
    data = DataSource(path=tmp_path / "a.npz")
    for tasks, sentence in (
        ([], "one task or more, and none"),
        ([TaskConfig(name="T", data=data), TaskConfig(name="T", data=data)], "Two tasks are called 'T'"),
        ([TaskConfig(name="T")], "The task 'T' has no dataset"),
        ([TaskConfig(name="T", data=data, model="B")], "names the model 'B', which the study doesn't have: .* A"),
        (
            [
                TaskConfig(name="T", data=data, metrics=(METRICS["loss"], METRICS["F1"])),
                TaskConfig(name="T loss", data=data),
            ],
            "Two objectives are named 'T loss'",
        ),
    ):
        with pytest.raises(StudyError, match=sentence):
            make_config(tmp_path, "A", tasks=tuple(tasks))


def test_a_family_is_one_that_there_is(tmp_path: Path):
    with pytest.raises(StudyError, match=r"no family of models 'bert': choose .*clip.*module:function"):
        make_config(tmp_path, "A", family="bert")
    with pytest.raises(StudyError, match="has no setting 'size'"):
        make_config(tmp_path, "A", options={"size": 3})
    with pytest.raises(StudyError, match="The task 'A' has no metric: say which"):
        make_config(tmp_path, "A", family="my.module:score")


def test_what_merges_need_to_know(tmp_path: Path):
    facts = make_config(tmp_path, "A", "B").facts()
    assert (facts.models, facts.tasks_with_data, facts.gives_logits) == (("A", "B"), frozenset("AB"), True)
    assert "regmean" in {merge.name for merge in applicable(facts)}
    (tmp_path / "B.pt").mkdir()
    (tmp_path / "B.pt" / "adapter_config.json").write_text("{}")
    (tmp_path / "B.pt" / "adapter_model.safetensors").touch()
    low_rank = make_config(tmp_path, "A", "B").facts()
    assert low_rank.in_low_rank
    assert "regmean" not in {merge.name for merge in applicable(low_rank)}


def test_runs_are_the_same_wherever_they_are_computed(tmp_path: Path):
    config = make_config(tmp_path, "A", "B")
    run = RunConfig(merge="dare", merge_settings={"drop": 0.4}, method_settings={"points": 12})
    assert run.is_same_as(RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))))
    elsewhere = RunConfig(
        merge="dare", merge_settings={"drop": 0.4}, method_settings={"points": 12}, compute=Compute(device="cpu")
    )
    assert run.is_same_as(elsewhere)
    assert run != elsewhere
    assert not run.is_same_as(RunConfig(merge="dare", method_settings={"points": 12}))
    assert run.label == "MAP on DARE (drop 0.4) (points 12)"
    run.check(config)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"merge": "salad"}, "There is no merge 'salad': choose one of"),
        ({"method": "salad"}, "There is no method 'salad': choose one of"),
        ({"link": "salad"}, "There is no link 'salad'"),
        ({"merge": "dare", "merge_settings": {"drop": 1.0}}, "DARE can't have drop = 1.0"),
        ({"method_settings": {"seed": -1}}, "MAP can't have seed = -1"),
        ({"method_settings": {"points": 2}}, "2 points are too few"),
        ({"method_settings": {"points": 100_001}}, "100001 points are too many for one run"),
        ({"method_settings": {"points": 5}, "link": "identity"}, "with the identity link needs 6 points"),
        ({"method_settings": {"points": 6}, "link": "identity", "high": 0.5}, "anchors outside the box aren't fitted"),
        ({"low": 1.0}, "The lowest coefficient must be below the highest"),
        ({"merge": "soup", "low": 0.1}, "no lowest and highest coefficient"),
        ({"merge": "adamerging"}, "nothing to search"),
        ({"merge": "soup", "method": "nested"}, "choose another method for this merge"),
        ({"images": 5}, "a whole number from 10 on, not 5"),
        ({"merge": "ties", "compute": Compute(vectors="bfloat16")}, "hold them in float32"),
    ],
)
def test_runs_that_cannot_be_done_are_refused_before_anything_is_measured(
    tmp_path: Path, values: dict[str, object], sentence: str
):
    with pytest.raises(MapMergeError, match=sentence):
        RunConfig(**values).check(make_config(tmp_path, "A", "B"))
