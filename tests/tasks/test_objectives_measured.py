"""N models and K objectives: tasks with several metrics, tasks of no model, and points of any merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mapmerge_core.errors import DatasetError, MapMergeError
from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families._models.clip import ClipZeroShot
from mapmerge_core.tasks.metrics import ACCURACY, LOSS
from mapmerge_core.tasks.outcome import unpack
from mapmerge_core.tasks.subsets import standard_error
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

C = (0.3, 0.4)
MODELS = ("Colours", "Stripes")
EVERY = tuple(metric for metric in METRICS if metric.needs <= ClipZeroShot.gives)


class Counted(ClipZeroShot):
    """Counts the images that the model sees."""

    n_seen = 0

    def logits(self, batch, task, dtype):
        self.n_seen += len(batch)
        return super().logits(batch, task, dtype)


def make_evaluator(zoo, tasks, batch_size=25):
    family = Counted(str(zoo / "tiny-clip.json"), zoo / "pretrained.safetensors")
    checkpoints = {model: zoo / f"{model}.safetensors" for model in MODELS}
    vectors = TaskVectors.from_files(zoo / "pretrained.safetensors", checkpoints, part=family.part)
    return Evaluator(family, vectors, tasks, device="cpu", precision="float32", batch_size=batch_size)


def task_of(zoo, name, *metrics, model=None):
    return Task(name, Task.from_file(name, zoo / f"{name}.npz").data, metrics or (ACCURACY,), model)


@pytest.fixture(scope="module")
def evaluator(tiny_zoo):
    """Two models and four objectives: one task of no model, two metrics on another."""
    return make_evaluator(
        tiny_zoo,
        [
            task_of(tiny_zoo, "Colours", ACCURACY, LOSS, model="Colours"),
            task_of(tiny_zoo, "Stripes", model="Stripes"),
            task_of(tiny_zoo, "Light", LOSS),
        ],
    )


def measure(evaluator, *args, **options):
    return dict(evaluator.outcomes(evaluator.at(C), *args, **options))


def test_two_models_and_four_objectives(evaluator):
    assert len(evaluator.vectors) == 2
    assert [o.key for o in evaluator.objectives] == [
        "Colours/accuracy",
        "Colours/loss",
        "Stripes/accuracy",
        "Light/loss",
    ]
    assert [o.model for o in evaluator.objectives] == ["Colours", "Colours", "Stripes", None]
    named = evaluator.evaluate(C)
    assert list(named) == ["Colours accuracy", "Colours loss", "Stripes", "Light"]
    keyed = measure(evaluator)
    assert list(keyed) == [o.key for o in evaluator.objectives]
    assert [o.value for o in keyed.values()] == [o.value for o in named.values()]
    assert list(evaluator.evaluate(C, ["Light", "Colours"])) == ["Light", "Colours accuracy", "Colours loss"]


def test_all_metrics_of_a_task_take_one_pass_and_have_their_values_alone(tiny_zoo):
    together = make_evaluator(tiny_zoo, [task_of(tiny_zoo, "Stripes", *EVERY)])
    outcomes = measure(together)
    assert together.family.n_seen == 60
    for metric in EVERY:
        alone = make_evaluator(tiny_zoo, [task_of(tiny_zoo, "Stripes", metric)])
        [(key, outcome)] = measure(alone).items()
        other = outcomes[key]
        assert (other.value, other.standard_error) == (outcome.value, outcome.standard_error)
        assert other.per_example == outcome.per_example
        assert (other.n_examples, other.n_total) == (60, None)


def test_only_what_is_asked_for_is_measured(evaluator):
    before = evaluator.family.n_seen
    outcomes = measure(evaluator, ["Light/loss", "Colours/loss", "Light/loss"])
    assert list(outcomes) == ["Light/loss", "Colours/loss"]
    assert evaluator.family.n_seen - before == 2 * 60
    with pytest.raises(DatasetError, match="no objective 'Light/F1': choose from Colours/accuracy, Colours/"):
        measure(evaluator, ["Light/F1"])


def test_an_outcome_is_handed_out_before_the_next_task_is_measured(evaluator):
    before = evaluator.family.n_seen
    outcomes = evaluator.outcomes(evaluator.at(C))
    assert next(outcomes)[0] == "Colours/accuracy"
    assert evaluator.family.n_seen - before == 60
    assert next(outcomes)[0] == "Colours/loss"
    assert evaluator.family.n_seen - before == 60
    assert next(outcomes)[0] == "Stripes/accuracy"
    assert evaluator.family.n_seen - before == 120


def test_parts_of_two_metrics_are_completed_by_one_pass(evaluator):
    numbers = {key: unpack(o.per_example, o.n_examples) for key, o in measure(evaluator, images=40).items()}
    measured = {"Colours/accuracy": numbers["Colours/accuracy"][:30], "Colours/loss": numbers["Colours/loss"][:10]}
    before = evaluator.family.n_seen
    keys = ["Colours/accuracy", "Colours/loss"]
    completed = measure(evaluator, keys, images=40, measured=measured)
    assert evaluator.family.n_seen - before == 30, "those that either lacks"
    for key in keys:
        outcome = completed[key]
        np.testing.assert_allclose(unpack(outcome.per_example, 40), numbers[key], rtol=1e-5)
        np.testing.assert_array_equal(unpack(outcome.per_example, 40)[: len(measured[key])], measured[key])
    whole = measure(evaluator, keys, measured=measured)
    for key, outcome in measure(evaluator, keys).items():
        assert whole[key].value == pytest.approx(outcome.value, rel=1e-6)
        assert whole[key].is_whole


def test_errors_of_parts_are_those_of_the_whole_splits_estimate(evaluator):
    for key, part in measure(evaluator, images=20).items():
        per_example = unpack(part.per_example, 20)
        assert part.standard_error == pytest.approx(standard_error(per_example, 60)), key
        whole = measure(evaluator, [key])[key]
        assert whole.standard_error == pytest.approx(standard_error(unpack(whole.per_example, 60)))


def test_where_one_metric_is_no_mean_parts_are_refused(tiny_zoo):
    evaluator = make_evaluator(tiny_zoo, [task_of(tiny_zoo, "Stripes", LOSS, METRICS["F1"])])
    with pytest.raises(MapMergeError, match="The F1 on 'Stripes' is no mean over examples"):
        measure(evaluator, images=20)
    assert list(measure(evaluator, ["Stripes/loss"], images=20)) == ["Stripes/loss"]


class Recorded:
    """A merge that notes how its models are written."""

    def __init__(self, evaluator):
        self.evaluator, self.written = evaluator, []

    def write(self, module, x):
        self.written.append(("fast", next(module.visual.parameters()).dtype, x))
        self.evaluator.vectors.merge_into(module, [x, 1 - x])

    def write_exact(self, module, x):
        self.written.append(("exact", next(module.visual.parameters()).dtype, x))
        self.evaluator.exported_vectors.merge_into(module, [x, 1 - x])


def test_any_merge_is_written_once_and_exactly_for_the_test_split(evaluator):
    merge = Recorded(evaluator)
    val = dict(evaluator.outcomes((merge, 0.3)))
    test = dict(evaluator.outcomes((merge, 0.3), split="test"))
    assert merge.written == [("fast", torch.float32, 0.3), ("exact", torch.float32, 0.3)]
    for split, outcomes in (("val", val), ("test", test)):
        expected = evaluator.evaluate([0.3, 0.7], split=split)
        assert [o.per_example for o in outcomes.values()] == [o.per_example for o in expected.values()]
    evaluator.extras((merge, 0.5))
    assert merge.written[-1] == ("exact", torch.float32, 0.5)


def test_a_family_that_forgets_a_metric_is_told(tiny_zoo):
    class Forgetful(Counted):
        def measure(self, *args, **options):
            scores = super().measure(*args, **options)
            return {metric: score for metric, score in scores.items() if metric != LOSS}

    made = make_evaluator(tiny_zoo, [])
    family = Forgetful(str(tiny_zoo / "tiny-clip.json"), tiny_zoo / "pretrained.safetensors")
    evaluator = Evaluator(family, made.vectors, [task_of(tiny_zoo, "Light", ACCURACY, LOSS)], device="cpu")
    with pytest.raises(MapMergeError, match="measured no loss on 'Light': let its `measure` return a score"):
        measure(evaluator)


def functions(state_dict):
    total = float(sum(tensor.double().square().sum() for tensor in state_dict.values()))
    return {"Both": {"accuracy": 0.5, "loss": total}, "One": total}


def wrong(_state_dict):
    return {"Both": {"accuracy": 0.5}, "One": 1.0}


def test_a_persons_own_function_returns_a_number_for_each_metric(tiny_zoo):
    from mapmerge_core.tasks.families import find_family
    from mapmerge_core.weights.vectors.streamed import open_vectors

    tasks = [Task("Both", None, (ACCURACY, LOSS)), Task("One", None, (LOSS,))]
    pretrained = tiny_zoo / "pretrained.safetensors"
    vectors = open_vectors(pretrained, {"model": pretrained}, part="")

    def evaluator(function):
        family = find_family(f"tests.tasks.test_objectives_measured:{function}").make("", pretrained, {}, tasks)
        return Evaluator(family, vectors, tasks, device="cpu")

    values = {name: outcome.value for name, outcome in evaluator("functions").evaluate([0.0]).items()}
    assert values["Both accuracy"] == 0.5
    assert values["Both loss"] == values["One"] > 0
    with pytest.raises(MapMergeError, match="returned no number for the metric of 'Both', 'loss': add it"):
        evaluator("wrong").evaluate([0.0])
