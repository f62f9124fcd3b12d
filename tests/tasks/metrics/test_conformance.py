"""What every registered metric must do, those of other packages too."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from mapmerge_core.errors import MapMergeError
from mapmerge_core.registries import FAMILIES, METRICS
from mapmerge_core.tasks.metrics import Metric, Observer, Predictions, Score
from mapmerge_core.tasks.metrics.base import MetricOfClasses
from mapmerge_core.tasks.outcome import pack, unpack
from mapmerge_core.tasks.subsets import standard_error

CLASSES = 7


def predictions(metric, n, seed=0, skill=2.0):
    """What a model predicts for n examples of unbalanced classes, and the classes."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.choice(CLASSES, n, p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.05, 0.0]))
    logits = torch.from_numpy(rng.normal(size=(n, CLASSES)).astype(np.float32))
    logits[torch.arange(n), labels] += skill
    if metric.needs <= {"losses", "tokens"}:
        return Predictions(losses=Predictions(logits, labels).losses), np.empty(0, np.int64)
    return Predictions(logits, labels), labels.numpy()


def score(metric, n, seed=0, skill=2.0):
    batch, labels = predictions(metric, n, seed, skill)
    return metric.score(metric.observe(batch).numpy(), labels)


@pytest.fixture(params=METRICS.names)
def metric(request):
    return METRICS[request.param]


def test_it_says_what_it_is(metric):
    assert metric.name
    assert metric.title[0].isupper()
    assert metric.help.endswith(".")
    assert metric.low < metric.high
    assert metric.is_computed
    assert metric.link in ("identity", "softplus", "sigmoid")
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric.name = "other"
    assert METRICS[metric.name] == metric
    assert len({metric, METRICS[metric.name]}) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 200])
@pytest.mark.parametrize("skill", [-50.0, 0.0, 2.0, 50.0])
def test_its_value_lies_within_its_bounds(metric, n, skill):
    for seed in range(5):
        result = score(metric, n, seed, skill)
        assert metric.low <= result.value <= metric.high or math.isinf(result.value)
        assert result.standard_error is None or result.standard_error >= 0
        assert len(result.per_example) == n
        assert result.per_example.dtype in (np.bool_, np.float32)


def test_better_predictions_have_a_better_value(metric):
    worse, better = (score(metric, 300, skill=skill).value for skill in (0.5, 4.0))
    assert (better > worse) == metric.maximize


def test_the_order_of_examples_does_not_matter(metric):
    batch, labels = predictions(metric, 100)
    observed, order = metric.observe(batch).numpy(), np.random.default_rng(1).permutation(100)
    one = metric.score(observed, labels)
    other = metric.score(observed[order], labels[order] if len(labels) else labels)
    assert other.value == pytest.approx(one.value, rel=1e-12)
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-9)
    np.testing.assert_array_equal(other.per_example, one.per_example[order])


def test_batches_are_observed_as_all_examples_at_once_are(metric):
    batch, labels = predictions(metric, 100)
    whole = metric.score(metric.observe(batch).numpy(), labels)
    observer = Observer([metric], 100)
    for start in range(0, 100, 32):
        rows = slice(start, start + 32)
        part = (
            Predictions(batch.logits[rows], batch.labels[rows])
            if len(labels)
            else Predictions(losses=batch.losses[rows])
        )
        observer.add(start, part)
    [(measured, result)] = observer.scores(labels).items()
    assert measured == metric
    assert result.value == pytest.approx(whole.value, rel=1e-6)
    np.testing.assert_allclose(result.per_example, whole.per_example, rtol=1e-6)


def test_the_standard_error_is_that_of_resampled_examples(metric):
    rng = np.random.default_rng(0)
    batch, labels = predictions(metric, 400, skill=1.5)
    observed = metric.observe(batch).numpy()
    values = []
    for _ in range(1500):
        rows = rng.integers(0, 400, 400)
        values.append(metric.score(observed[rows], labels[rows] if len(labels) else labels).value)
    assert metric.score(observed, labels).standard_error == pytest.approx(np.std(values), rel=0.1)


def test_a_mean_is_the_mean_of_its_examples(metric):
    if metric.is_mean:
        result = score(metric, 50)
        assert result.value == pytest.approx(result.per_example.mean(dtype=np.float64), rel=1e-12)
    if metric.is_share_right:
        assert metric.is_mean
        assert metric.is_share


def test_its_examples_survive_being_packed(metric):
    per_example = score(metric, 13).per_example
    np.testing.assert_array_equal(unpack(pack(per_example), 13), per_example)


def test_what_a_family_does_not_give_is_one_sentence(metric):
    with pytest.raises(MapMergeError, match=r"^This family of models gives no \w+: choose another metric\.$"):
        metric.observe(Predictions())


def test_no_metric_is_computed_by_anothers_function():
    values = {}
    for metric in METRICS:
        result = score(metric, 200, seed=3, skill=1.0)
        assert result.value not in values.values(), f"{metric.name} has another metric's value"
        values[metric.name] = result.value


def test_metrics_that_observe_the_same_share_one_pass():
    passes = []

    class Counted(Predictions):
        @property
        def predicted(self):
            passes.append("predicted")
            return super().logits.argmax(dim=1)

    batch, labels = predictions(METRICS["accuracy"], 20)
    chosen = [metric for metric in METRICS if metric.observes == "predicted"]
    observer = Observer(chosen, 20)
    observer.add(0, Counted(batch.logits, batch.labels))
    assert set(observer.scores(labels)) == set(chosen)
    assert passes == ["predicted"]


def test_a_metric_of_ones_own_has_no_function():
    r2 = Metric("R²", maximize=True, high=1.0)
    assert not r2.is_computed
    assert (r2.title, r2.bounds, r2.link) == ("R²", (-math.inf, 1.0), "softplus")
    assert r2 == Metric("R²", maximize=True, high=1.0)
    assert r2 != Metric("R²", maximize=True)
    assert r2 not in list(METRICS)


@pytest.mark.parametrize("bounds", [{"low": 1.0, "high": 0.0}, {"low": math.nan}, {"low": 1.0, "high": 1.0}])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(MapMergeError, match=r"can't lie between .*: give a lower bound below the upper one"):
        Metric("odd", maximize=True, **bounds)


class ErrorRate(MetricOfClasses):
    """Share of examples whose most likely class is wrong."""

    is_mean = True

    def score(self, observed, labels):
        wrong = observed != labels
        return Score(float(wrong.mean()), standard_error(wrong), wrong)


def test_one_class_adds_a_metric_to_every_family_that_gives_what_it_needs():
    metric = METRICS.register(ErrorRate("error rate", maximize=False, low=0.0, high=1.0))
    try:
        assert metric in FAMILIES["clip"].measurable()
        assert metric in FAMILIES["classifier"].measurable()
        assert metric not in FAMILIES["language"].measurable()
        assert (metric.title, metric.help) == ("Error rate", ErrorRate.__doc__)
        observer = Observer([metric, METRICS["accuracy"]], 50)
        batch, labels = predictions(metric, 50)
        observer.add(0, batch)
        scores = observer.scores(labels)
        assert scores[metric].value == pytest.approx(1 - scores[METRICS["accuracy"]].value)
    finally:
        METRICS.unregister("error rate")
    assert metric not in FAMILIES["clip"].measurable()
