from __future__ import annotations

from dataclasses import replace

import pytest

from mapmerge_core.errors import SearchError, SettingError, StudyError
from mapmerge_core.merges.base import StudyFacts, applicable, obstacle
from mapmerge_core.registries import MERGES
from mapmerge_core.settings import to_dict
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from mapmerge_core.tasks.objective import Objective

MODELS = ("cars", "signs")
OBJECTIVES = (
    Objective("kept", ACCURACY, None, "kept"),
    *(Objective(name, metric, name, f"{name} {metric.name}") for name in MODELS for metric in (ACCURACY, LOSS)),
)
FACTS = StudyFacts(MODELS, OBJECTIVES, tasks_with_data=frozenset(("kept", *MODELS)), gives_logits=True)


def test_the_defaults_are_the_papers():
    training = MERGES["pareto_merging"]().settings
    assert (training.steps, training.batch_size, training.lr, training.rank) == (2000, 32, 1e-3, 16)
    assert (training.start, training.concentration, training.beta_cos, training.beta_norm) == (0.3, 1, 0.1, 1)
    assert training.scalarisation == "smooth_tchebycheff"
    assert training.balance == 0
    assert not training.data_free


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps = 0: give a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size = 0: give a whole number of at least 1"),
        ({"rank": 0}, "rank = 0: give a whole number of at least 1"),
        ({"lr": 0}, "lr = 0: give a number above 0"),
        ({"mu": -0.1}, "mu = -0.1: give a number above 0"),
        ({"concentration": float("nan")}, "concentration = nan: give a number above 0"),
        ({"concentration": float("inf")}, "concentration = inf: give a number above 0"),
        ({"beta_cos": -1}, "beta_cos = -1: give a number of at least 0"),
        ({"beta_norm": float("nan")}, "beta_norm = nan: give a number of at least 0"),
        ({"balance": -0.5}, "balance = -0.5: give a number of at least 0"),
        ({"start": float("inf")}, "start = inf: give a number"),
        ({"scalarisation": "worst"}, "scalarisation = 'worst': give one of smooth_tchebycheff, tchebycheff"),
        ({"personalised": []}, "Name the tensors to personalise, or leave the setting out"),
        ({"personalised": ["attn.*", " "]}, "Name the tensors to personalise"),
        ({"seed": 2**31}, f"seed = {2**31}: give a whole number of at least 0 and at most"),
        ({"momentum": 0.9}, "Pareto Merging has no setting 'momentum': it has steps, data_free"),
    ],
)
def test_what_is_out_of_range_is_refused(changes, sentence):
    with pytest.raises(SettingError, match=sentence):
        MERGES["pareto_merging"](changes)


def test_settings_survive_the_way_through_a_file():
    merge = MERGES["pareto_merging"]({"personalised": ["attn.*"], "keep": 0.5, "steps": 7.0})
    assert merge.settings.personalised == ("attn.*",)
    assert MERGES["pareto_merging"](to_dict(merge.settings)).settings == merge.settings


@pytest.mark.parametrize(
    ("name", "settings", "label"),
    [
        ("task_arithmetic", {}, "Task arithmetic"),
        ("ties", {"keep": 0.5}, "TIES (keep 0.5)"),
        ("adamerging", {"level": "task"}, "AdaMerging, task-wise"),
        ("adamerging", {"keep": 0.2}, "AdaMerging++, layer-wise"),
        ("adamerging", {"keep": 0.5, "steps": 9}, "AdaMerging++, layer-wise (keep 0.5, steps 9)"),
        ("pareto_merging", {}, "Pareto Merging"),
        ("pareto_merging", {"keep": 0.2, "data_free": True}, "Pareto Merging++ (data free yes)"),
    ],
)
def test_labels_tell_what_differs(name, settings, label):
    assert MERGES[name](settings).label == label


def test_a_study_of_image_classifiers_with_own_tasks_can_have_every_merge():
    assert {merge.name for merge in applicable(FACTS)} == set(MERGES.names)


LEARNING = ("fisher", "regmean", "adamerging", "pareto_merging")
OF_MEMORY = ("ties", "ties_trim", "dare", "dare_ties", "breadcrumbs", "della", "slerp", *LEARNING)


@pytest.mark.parametrize(
    ("names", "changes", "sentence"),
    [
        (("slerp",), {"models": ("one", *MODELS)}, r"SLERP merges 2 models, not 3 \(one, cars, signs\): choose"),
        (("soup", "fisher", "regmean"), {"models": ("cars",)}, "need at least two models"),
        (OF_MEMORY, {"in_low_rank": True}, "needs whole models, and adapters stay in low rank: choose another"),
        (OF_MEMORY, {"vectors": "bfloat16"}, "looks into the task vectors, which takes float32: hold them in"),
        (LEARNING[:3], {"gives_logits": False}, "needs the logits of image classifiers: choose another merge"),
        (LEARNING[3:], {"gives_logits": False}, "learns from the logits of image classifiers: train data-free"),
        (
            LEARNING[:3],
            {"tasks_with_data": frozenset(("kept", "cars"))},
            "needs examples of a task of the model 'signs': add a task with that model and a dataset",
        ),
        (
            LEARNING[3:],
            {"objectives": OBJECTIVES[:3]},
            "needs unlabelled images of a task of the model 'signs': add its dataset, or train data-free",
        ),
    ],
)
def test_what_a_study_can_not_have_is_one_sentence(names, changes, sentence):
    facts = replace(FACTS, **changes)
    for name in names:
        merge = MERGES[name]()
        with pytest.raises((StudyError, SearchError), match=sentence):
            merge.check(facts)
        assert obstacle(merge, facts).endswith(".")
    assert {merge.name for merge in applicable(facts)}.isdisjoint(names)


def test_learning_from_weights_alone_needs_no_data():
    nothing = StudyFacts(MODELS)
    MERGES["pareto_merging"]({"data_free": True}).check(nothing)
    assert obstacle(MERGES["pareto_merging"](), nothing)
    assert "Pareto Merging needs whole models" in obstacle(
        MERGES["pareto_merging"]({"data_free": True}), replace(nothing, in_low_rank=True)
    )
    assert {merge.name for merge in applicable(replace(nothing, in_low_rank=True))} == {"soup", "task_arithmetic"}


def test_what_preparation_costs_in_passes():
    sizes = [100, 300]
    expected = {
        ("fisher", ()): 4 * (100 + 256),
        ("fisher", (("examples", None),)): 4 * 400,
        ("regmean", ()): 2 * 400,
        ("adamerging", (("steps", 10),)): 3 * 10 * 2 * 16,
        ("pareto_merging", (("steps", 10), ("batch_size", 200))): 3 * 10 * 300,
        ("pareto_merging", (("data_free", True),)): 0,
        ("ties", ()): 0,
    }
    for (name, settings), passes in expected.items():
        assert MERGES[name](dict(settings)).passes(sizes) == passes
