"""Metrics against scikit-learn, and their errors against the formulas of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from mapmerge_core.registries import METRICS
from mapmerge_core.tasks.metrics import Predictions

N, CLASSES = 250, 8


@pytest.fixture(scope="module")
def example():
    """Logits and labels of unbalanced classes, of which two have no examples."""
    rng = np.random.default_rng(4)
    labels = rng.choice(CLASSES, N, p=[0.35, 0.25, 0.2, 0.1, 0.06, 0.04, 0, 0])
    logits = rng.normal(size=(N, CLASSES)).astype(np.float32)
    logits[np.arange(N), labels] += 1.5
    return logits, labels


def measured(name, logits, labels):
    metric = METRICS[name]
    batch = Predictions(torch.from_numpy(logits), torch.from_numpy(labels))
    return metric.score(metric.observe(batch).numpy(), labels)


def softmax(logits):
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


SKLEARN = {
    "accuracy": lambda logits, y: sklearn_metrics.accuracy_score(y, logits.argmax(1)),
    "top-5 accuracy": lambda logits, y: sklearn_metrics.top_k_accuracy_score(y, logits, k=5, labels=range(CLASSES)),
    "balanced accuracy": lambda logits, y: sklearn_metrics.recall_score(
        y, logits.argmax(1), labels=np.unique(y), average="macro"
    ),
    "F1": lambda logits, y: sklearn_metrics.f1_score(y, logits.argmax(1), labels=np.unique(y), average="macro"),
    "Cohen's kappa": lambda logits, y: sklearn_metrics.cohen_kappa_score(y, logits.argmax(1)),
    "loss": lambda logits, y: sklearn_metrics.log_loss(y, softmax(logits), labels=range(CLASSES)),
    "perplexity": lambda logits, y: np.exp(sklearn_metrics.log_loss(y, softmax(logits), labels=range(CLASSES))),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_values_are_scikit_learns(example, name):
    assert measured(name, *example).value == pytest.approx(SKLEARN[name](*example), rel=1e-6)


def test_balanced_accuracy_is_scikit_learns_where_all_predicted_classes_have_examples(example):
    logits, labels = example
    seen = logits[:, :6]
    expected = sklearn_metrics.balanced_accuracy_score(labels, seen.argmax(1))
    assert measured("balanced accuracy", seen, labels).value == pytest.approx(expected)


def test_losses_are_torchs_cross_entropy_bit_by_bit(example):
    logits, labels = map(torch.from_numpy, example)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(Predictions(logits, labels).losses, expected)


def test_five_of_fewer_classes_are_all_of_them(example):
    logits, labels = example
    assert measured("top-5 accuracy", logits[:, :4], labels % 4).value == 1


def confusion(example):
    logits, labels = example
    return sklearn_metrics.confusion_matrix(labels, logits.argmax(1), labels=range(CLASSES)) / N


def test_kappas_error_is_that_of_fleiss_cohen_and_everitt(example):
    p = confusion(example)
    rows, columns = p.sum(1), p.sum(0)
    by_chance = rows @ columns
    kappa = (np.trace(p) - by_chance) / (1 - by_chance)
    a = sum(p[i, i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in range(CLASSES))
    b = sum(p[i, j] * (columns[i] + rows[j]) ** 2 for i in range(CLASSES) for j in range(CLASSES) if i != j)
    c = (kappa - by_chance * (1 - kappa)) ** 2
    variance = (a + (1 - kappa) ** 2 * b - c) / (N * (1 - by_chance) ** 2)
    assert measured("Cohen's kappa", *example).standard_error == pytest.approx(np.sqrt(variance))


@pytest.mark.parametrize("name", ["F1", "Cohen's kappa"])
def test_errors_are_those_of_the_infinitesimal_jackknife(example, name):
    """Each example's influence, by giving it a little more weight than the others."""
    logits, labels = example
    metric, predicted = METRICS[name], logits.argmax(1)
    value, copies = metric.score(predicted, labels).value, 200
    influence = []
    for i in range(N):
        rows = np.concatenate([np.tile(np.arange(N), copies), [i]])
        influence.append((metric.score(predicted[rows], labels[rows]).value - value) * (N * copies + 1))
    expected = np.sqrt(np.mean(np.square(influence)) / N)
    assert metric.score(predicted, labels).standard_error == pytest.approx(expected, rel=0.02)


def test_perplexity_and_its_error_are_those_of_the_loss(example):
    loss, perplexity = measured("loss", *example), measured("perplexity", *example)
    assert perplexity.value == pytest.approx(np.exp(loss.value))
    assert perplexity.standard_error == pytest.approx(perplexity.value * loss.standard_error)


def test_errors_of_means_are_the_textbooks(example):
    accuracy, loss = measured("accuracy", *example), measured("loss", *example)
    p = (accuracy.per_example.sum() + 1) / (N + 2)
    assert accuracy.standard_error == pytest.approx(np.sqrt(p * (1 - p) / N))
    assert loss.standard_error == pytest.approx(loss.per_example.std(ddof=1) / np.sqrt(N), rel=1e-5)


def test_one_class_alone():
    labels = np.zeros(10, np.int64)
    right, wrong = np.eye(3, dtype=np.float32)[labels], np.eye(3, dtype=np.float32)[labels + 1]
    for name, best, worst in (("balanced accuracy", 1, 0), ("F1", 1, 0), ("Cohen's kappa", 1, 0)):
        assert measured(name, right, labels).value == best
        assert measured(name, wrong, labels).value == worst
    half = np.concatenate([right[:5], wrong[:5]])
    assert measured("balanced accuracy", half, labels).value == 0.5
    assert measured("F1", half, labels).value == pytest.approx(2 / 3)
    assert measured("Cohen's kappa", half, labels).value == 0


def test_a_huge_loss_has_an_infinite_perplexity():
    result = METRICS["perplexity"].score(np.full(3, 1e6, np.float32), np.empty(0))
    assert result.value == np.inf
