from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families import find_family
from mapmerge_core.tasks.metrics import LOSS, Metric
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.streamed import open_vectors
from tests.tasks.measuring import outcomes_of
from tests.tasks.own_family import R2

DISTANCE = Metric("distance", maximize=False, low=0.0)
TASKS = [Task("Near", None, (DISTANCE,)), Task("Far", None)]

# What the functions below were called with, as a person's own function would count or log.
calls = []


def distances(state_dict):
    calls.append(state_dict)
    total = sum(float(tensor.double().square().sum()) for tensor in state_dict.values())
    return {"Near": total**0.5, "Far": 1 / (1 + total)}


def by_split(state_dict, split):
    calls.append(split)
    found = distances(state_dict)
    return {"Near": found["Near"] + (split == "test"), "Far": torch.tensor(found["Far"])}


def with_default(_state_dict, split="train", scale=1.0):
    return {"Near": {"val": 1, "test": 2, "train": 3}[split] * scale, "Far": np.float32(0.5)}


def with_option(_state_dict, scale=3.0):
    return {"Near": scale, "Far": 0.5}


def three(state_dict, split, device): ...


def nothing(): ...


def keyword(state_dict, *, device): ...


def failing(_state_dict):
    raise ZeroDivisionError("no batches\nin the loader.")


def refusing(_state_dict):
    raise DatasetError("The file x.csv is missing: fetch it.")


def changing(state_dict):
    state_dict["head.bias"].mul_(2)
    return {"Near": 1, "Far": 0}


def emptying(state_dict):
    state_dict.clear()
    return {"Near": 1, "Far": 0}


ANSWERS = {}


def answering(_state_dict):
    return ANSWERS["now"]


@pytest.fixture
def models(tmp_path):
    """Three checkpoints with a half-precision tensor, an integer buffer, and names within names."""
    torch.manual_seed(0)
    for name in ("pretrained", "Near", "Far"):
        state = {
            "body.0.weight": torch.randn(4, 3).half(),
            "body.0.steps": torch.tensor(7),
            "body.norm.running_mean": torch.randn(4),
            "head.bias": torch.randn(2),
            "scale": torch.randn(()),
        }
        save_file(state, tmp_path / f"{name}.safetensors")
    calls.clear()
    return tmp_path


def make_evaluator(models, function, **options):
    family = find_family(f"tests.tasks.families.test_custom:{function}").make(
        "", models / "pretrained.safetensors", {}, TASKS
    )
    vectors = open_vectors(
        models / "pretrained.safetensors", {task.name: models / f"{task.name}.safetensors" for task in TASKS}
    )
    return Evaluator(family, vectors, TASKS, device="cpu", **options)


def expected_norm(models, c):
    """|θ(c)|, with each tensor rounded to the checkpoint's dtype."""
    base, near, far = (load_file(models / f"{name}.safetensors") for name in ("pretrained", "Near", "Far"))
    total = 0.0
    for name, tensor in base.items():
        merged = tensor
        if tensor.is_floating_point():
            for x, other in zip(c, (near, far), strict=True):
                merged = merged.float() + x * (other[name].float() - tensor.float())
        total += float(merged.to(tensor.dtype).double().square().sum())
    return total**0.5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_function_gets_what_an_export_holds(models, precision):
    evaluator = make_evaluator(models, "distances", precision=precision)
    for c in [(0, 0), (1, 0), (0.5, -0.25)]:
        outcomes = evaluator.evaluate(c)
        norm = expected_norm(models, c)
        assert outcomes["Near"].value == pytest.approx(norm, rel=1e-6)
        assert outcomes["Far"].value == pytest.approx(1 / (1 + norm**2), rel=1e-6)
        assert outcomes["Far"].n_examples == 1
        assert unpack(outcomes["Near"].per_example, 1) == pytest.approx([norm])
    given, exported = calls[-1], evaluator.vectors.merge([0.5, -0.25])
    assert given.keys() == exported.keys()
    for name, tensor in exported.items():
        assert given[name].dtype == tensor.dtype
        assert torch.equal(given[name], tensor)


def test_a_function_is_called_once_for_each_merge_and_split(models):
    evaluator = make_evaluator(models, "distances")
    evaluator.evaluate([0, 0])
    assert len(calls) == 1
    evaluator.evaluate([0.5, 0])
    evaluator.evaluate([0.5, 0], ["Far"])
    assert len(calls) == 3


def test_a_function_with_a_second_parameter_is_told_the_split(models):
    evaluator = make_evaluator(models, "by_split")
    val, test = (evaluator.evaluate([0.2, 0.3], split=split) for split in ("val", "test"))
    assert [split for split in calls if isinstance(split, str)] == ["val", "test"]
    assert test["Near"].value == pytest.approx(val["Near"].value + 1)
    assert test["Far"].value == val["Far"].value
    evaluator = make_evaluator(models, "with_default")
    assert [evaluator.evaluate([0, 0], split=split)["Near"].value for split in ("val", "test")] == [1, 2]
    # Other parameters keep their defaults.
    assert make_evaluator(models, "with_option").evaluate([0, 0])["Near"].value == 3


def test_a_model_from_elsewhere_is_measured(models):
    evaluator = make_evaluator(models, "distances")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in evaluator.vectors.merge([0, 0]).items()}
    assert dict(outcomes_of(evaluator, zeros))["Near"].value == 0
    assert evaluator.evaluate([1, 0])["Near"].value == pytest.approx(expected_norm(models, (1, 0)), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("failing", "failed with ZeroDivisionError: no batches; correct it, and go on."),
        ("changing", "changed the tensor 'head.bias' of the model that it measures: let it work on a copy."),
    ],
)
def test_a_function_that_fails_is_named(models, function, sentence):
    with pytest.raises(MapMergeError) as caught:
        make_evaluator(models, function).evaluate([0.5, 0.5])
    assert str(caught.value) == f"'tests.tasks.families.test_custom:{function}' {sentence}"


def test_what_is_said_for_people_passes_and_a_function_may_empty_its_dictionary(models):
    with pytest.raises(DatasetError, match=r"^The file x\.csv is missing: fetch it\.$"):
        make_evaluator(models, "refusing").evaluate([0, 0])
    evaluator = make_evaluator(models, "emptying")
    assert evaluator.evaluate([0, 0]) != evaluator.evaluate([1, 0])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (0.5, "returned a float, not a dictionary with a number for each task: Near, Far."),
        (None, "returned a NoneType, not a dictionary with a number for each task: Near, Far."),
        ({"Near": 1}, "returned no number for the task 'Far': add it."),
        (
            {"Near": 1, "Far": 0, "Middle": 1},
            "returned a number for 'Middle', which is no task of this study: leave it out",
        ),
        ({"Near": "1", "Far": 0}, "returned '1' for 'Near', which is no finite number: return one."),
        ({"Near": True, "Far": 0}, "returned True for 'Near', which is no finite number: return one."),
        ({"Near": float("nan"), "Far": 0}, "returned nan for 'Near', which is no finite number: return one."),
        ({"Near": np.inf, "Far": 0}, "returned inf for 'Near', which is no finite number: return one."),
        (
            {"Near": np.zeros(2), "Far": 0},
            "returned array([0., 0.]) for 'Near', which is no finite number: return one.",
        ),
        ({"Near": 1, "Far": 71.5}, "returned 71.5 for 'Far', but accuracy lies between 0 and 1: correct it"),
        ({"Near": -1, "Far": 0}, "returned -1 for 'Near', but distance lies between 0 and inf: correct it"),
    ],
)
def test_a_wrong_answer_is_refused_in_one_sentence(models, answer, sentence):
    ANSWERS["now"] = answer
    with pytest.raises(MapMergeError) as caught:
        make_evaluator(models, "answering").evaluate([0, 0])
    assert str(caught.value).startswith(f"'tests.tasks.families.test_custom:answering' {sentence}")


@pytest.mark.parametrize("answer", [torch.tensor([2.0]), np.array(2.0), np.int64(2), 2])
def test_numbers_come_in_many_forms(models, answer):
    ANSWERS["now"] = {"Near": answer, "Far": 0}
    assert make_evaluator(models, "answering").evaluate([0, 0])["Near"].value == 2


@pytest.mark.parametrize("function", ["three", "nothing", "keyword"])
def test_a_function_that_takes_something_else_is_refused_at_once(models, function):
    with pytest.raises(MapMergeError, match="must take a state dict, or a state dict and a split, and no more"):
        make_evaluator(models, function)


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a.forward",), ("a.",)])
def test_names_that_no_model_can_have_are_refused(tmp_path, names):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"The tensor 'a.*' of .* can't be a model's parameter"):
        find_family("tests.tasks.families.test_custom:distances").make("", tmp_path / "odd.safetensors", {}, TASKS)


def test_a_function_has_no_settings(models):
    with pytest.raises(MapMergeError, match="has no setting 'x': there is nothing to set"):
        find_family("tests.tasks.families.test_custom:distances").make(
            "", models / "pretrained.safetensors", {"x": 1}, TASKS
        )


def regression_zoo(folder):
    """One network fine-tuned on two functions of its inputs, and their datasets."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
    save_file(model.state_dict(), folder / "pretrained.safetensors")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, function in (("Sum", lambda x: x.sum(1)), ("First", lambda x: 2 * x[:, 0])):
        arrays = {}
        for split, n in (("train", 400), ("val", 50), ("test", 60)):
            arrays[f"{split}_x"] = rng.normal(size=(n, 3)).astype(np.float32)
            arrays[f"{split}_y"] = function(arrays[f"{split}_x"])
        np.savez(folder / f"{name}.npz", **arrays)
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = torch.from_numpy(arrays["train_x"]), torch.from_numpy(arrays["train_y"])
        for _ in range(200):
            optimizer.zero_grad()
            (model(x)[:, 0] - y).square().mean().backward()
            optimizer.step()
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return model


def test_a_family_of_ones_own(tmp_path):
    model = regression_zoo(tmp_path)
    names = ("Sum", "First")
    tasks = [Task.from_file("Sum", tmp_path / "Sum.npz", LOSS), Task.from_file("First", tmp_path / "First.npz", R2)]
    family = find_family("tests.tasks.own_family:Regression").make(
        "3-32-1", tmp_path / "pretrained.safetensors", {}, tasks
    )
    vectors = open_vectors(
        tmp_path / "pretrained.safetensors", {name: tmp_path / f"{name}.safetensors" for name in names}
    )
    evaluator = Evaluator(family, vectors, tasks, device="cpu", batch_size=7)
    for c in [(1, 0), (0, 1), (0.4, 0.5)]:
        model.load_state_dict(vectors.merge(c))
        for split in ("val", "test"):
            outcomes = evaluator.evaluate(c, split=split)
            found = {}
            for name in names:
                arrays = np.load(tmp_path / f"{name}.npz")
                with torch.no_grad():
                    found[name] = (model(torch.from_numpy(arrays[f"{split}_x"]))[:, 0].numpy(), arrays[f"{split}_y"])
            guess, truth = found["Sum"]
            assert outcomes["Sum"].value == pytest.approx(np.mean((guess - truth) ** 2), rel=1e-5)
            guess, truth = found["First"]
            r2 = 1 - np.sum((guess - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)
            assert outcomes["First"].value == pytest.approx(r2, rel=1e-5)
    assert evaluator.evaluate([1, 0])["Sum"].value < 0.1 < 0.9 < evaluator.evaluate([0, 1])["First"].value
    assert "tests.tasks.own_family" in sys.modules


def test_a_class_of_ones_own_that_fails_is_one_sentence(tmp_path):
    with pytest.raises(MapMergeError, match="own_family:Regression' can't be made, it raises ValueError: "):
        find_family("tests.tasks.own_family:Regression").make("wide", tmp_path, {}, [])
