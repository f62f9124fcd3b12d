from __future__ import annotations

from threading import Event

import numpy as np
import open_clip
import pytest
import torch

from mapmerge_core.errors import Cancelled, MapMergeError, SettingError
from mapmerge_core.merges import _adamerging as adamerging
from mapmerge_core.merges._adamerging import entropy_and_gradient, learn_coefficients
from mapmerge_core.registries import MERGES
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.merges.helpers import make_evaluator
from tests.tiny import ARCHITECTURE, CLASS_NAMES, plain_head, plain_transform

ALL = 60  # every tiny task's validation images


@pytest.fixture(scope="module")
def evaluator(tiny_zoo):
    return make_evaluator(tiny_zoo)


def adamerge(evaluator, *, layer_wise, vectors=None, cancel=None, progress=None, **settings):
    chosen = MERGES["adamerging"]({"level": "layer" if layer_wise else "task"} | settings).settings
    vectors = evaluator.vectors if vectors is None else vectors
    return learn_coefficients(evaluator, vectors, chosen, cancel=cancel, progress=progress)


@pytest.fixture(scope="module")
def entropy(tiny_zoo, evaluator):
    """The mean entropy of θ_pre + Σ λ_ln v_ln on all validation images, in float64, by open_clip alone."""
    pretrained, *finetuned = (
        {key: tensor.double() for key, tensor in evaluator.vectors.merge(c).items()} for c in [np.zeros(3), *np.eye(3)]
    )
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(pretrained)
    batches = []
    for task, class_names in CLASS_NAMES.items():
        arrays = np.load(tiny_zoo / f"{task}.npz")
        head = plain_head(model, class_names, arrays["templates"].tolist())
        batches.append((plain_transform(arrays["val_images"], model).double(), head.double()))
    model.double()

    @torch.no_grad()
    def mean_entropy(coefficients):
        merged = dict(pretrained)
        table = np.broadcast_to(coefficients, (len(evaluator.vectors.layers), 3))
        for name, row in zip(evaluator.vectors.layers, table, strict=True):
            for c, tuned in zip(row, finetuned, strict=True):
                merged[name] = merged[name] + c * (tuned[name] - pretrained[name])
        model.load_state_dict(merged)
        scale, total = model.logit_scale.exp(), 0
        for images, head in batches:
            p = (scale * model.encode_image(images, normalize=True) @ head).softmax(dim=1)
            total += float(-(p * p.log()).sum(dim=1).mean())
        return total / len(batches)

    return mean_entropy


def slopes_of(entropy, coefficients, h=1e-4):
    """Central differences of the entropy by each coefficient."""
    slopes = np.zeros_like(coefficients)
    for i in np.ndindex(coefficients.shape):
        step = np.zeros_like(coefficients)
        step[i] = h
        slopes[i] = (entropy(coefficients + step) - entropy(coefficients - step)) / (2 * h)
    return slopes


def every_image(evaluator):
    return {name: evaluator.family.images(task, "val") for name, task in evaluator.tasks.items()}


def test_the_gradient_is_that_of_finite_differences(evaluator, entropy):
    L = len(evaluator.vectors.layers)
    coefficients = np.random.default_rng(0).uniform(0, 0.6, (L, 3))
    value, gradient = entropy_and_gradient(
        evaluator, evaluator.vectors, torch.from_numpy(coefficients), every_image(evaluator)
    )
    assert value == pytest.approx(entropy(coefficients), rel=1e-4)
    slopes = slopes_of(entropy, coefficients)
    assert np.abs(slopes).max() > 0.05
    np.testing.assert_allclose(gradient.numpy(), slopes, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("layer_wise", [False, True])
def test_the_first_two_steps_are_adams(evaluator, entropy, layer_wise):
    shape = (len(evaluator.vectors.layers), 3) if layer_wise else (3,)
    expected, m, v = np.full(shape, 0.3), np.zeros(shape), np.zeros(shape)
    for t in (1, 2):
        g = slopes_of(entropy, expected)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected = expected - 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        found = adamerge(evaluator, layer_wise=layer_wise, steps=t, batch_size=ALL, lr=0.02)
        assert found.shape == shape
        assert found.dtype == np.float64
        # Adam's first steps are ± lr: entries whose slope drowns in rounding may go either way.
        clear = np.abs(g) > 1e-3
        assert clear.mean() > 0.5
        np.testing.assert_allclose(found[clear], expected[clear], atol=4e-4)


@pytest.mark.parametrize("layer_wise", [False, True])
def test_entropy_falls(evaluator, entropy, layer_wise):
    found = adamerge(evaluator, layer_wise=layer_wise, steps=40, lr=0.01)
    assert entropy(found) < entropy(np.full(3, 0.3)) - 0.02
    first, again, other = (
        adamerge(evaluator, layer_wise=layer_wise, steps=4, lr=0.01, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_allclose(again, first, atol=1e-6)
    assert np.abs(other - first).max() > 1e-3


def test_coefficients_are_clipped_as_in_the_authors_code(evaluator, monkeypatch):
    merged = []

    def record(*args):
        merged.append(args[2].numpy().copy())
        return entropy_and_gradient(*args)

    monkeypatch.setattr(adamerging, "entropy_and_gradient", record)
    found = adamerge(evaluator, layer_wise=True, steps=3, lr=1.0)
    # Adam's first step of 1 from 0.3 leads out of [0, 1] on either side.
    for coefficients in (*merged[1:], found):
        assert (coefficients.min(), coefficients.max()) == (0, 1)


def test_other_task_vectors(evaluator, tiny_zoo):
    """With θ_n in another order the coefficients come in that order, and the evaluator keeps its own."""
    c = [0.3, 0.4, 0.2]
    before = {task: outcome.per_example for task, outcome in evaluator.evaluate(c).items()}
    names = ["Light", "Colours", "Stripes"]
    vectors = TaskVectors.from_files(
        tiny_zoo / "pretrained.safetensors", {name: tiny_zoo / f"{name}.safetensors" for name in names}, part="visual."
    )
    found = adamerge(evaluator, layer_wise=False, vectors=vectors, steps=10, lr=0.01)
    own = adamerge(evaluator, layer_wise=False, steps=10, lr=0.01)
    np.testing.assert_allclose(found, own[[2, 0, 1]], atol=1e-5)
    assert np.ptp(own) > 0.01
    assert {task: outcome.per_example for task, outcome in evaluator.evaluate(c).items()} == before


def test_the_evaluator_is_unharmed(evaluator):
    c = [0.3, 0.4, 0.2]
    outcomes = {
        split: {t: o.per_example for t, o in evaluator.evaluate(c, split=split).items()} for split in ("val", "test")
    }
    seen, cancel = [], Event()

    def report(done, total):
        seen.append((done, total))
        if done == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        adamerge(evaluator, layer_wise=True, steps=5, lr=0.1, cancel=cancel, progress=report)
    assert seen == [(1, 5), (2, 5)]
    model = evaluator.family.model
    assert not any(
        p.requires_grad or p.grad is not None or module.training
        for module in model.modules()
        for p in module.parameters(recurse=False)
    )
    for split, correct in outcomes.items():
        assert {t: o.per_example for t, o in evaluator.evaluate(c, split=split).items()} == correct
    exported = evaluator.vectors.merge(c)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, exported[name].float()), name


def test_what_can_not_be_adamerged(evaluator, tiny_zoo):
    for name, value in (("steps", 0), ("batch_size", 0), ("start", 1.2), ("lr", 0), ("keep", 0)):
        with pytest.raises(SettingError, match=f"AdaMerging can't have {name} = {value}: give a"):
            adamerge(evaluator, layer_wise=True, **{name: value})

    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    full = make_evaluator(tiny_zoo)
    full.family.model.visual.register_forward_hook(run_out)  # whatever the number of images
    with pytest.raises(MapMergeError, match="ran out of memory with 16 images in a batch"):
        adamerge(full, layer_wise=False)


def test_the_gradient_in_bfloat16_is_close(evaluator, tiny_zoo):
    narrow = make_evaluator(tiny_zoo, precision="bfloat16")
    coefficients = torch.from_numpy(np.random.default_rng(0).uniform(0, 0.6, (len(narrow.vectors.layers), 3)))
    (value, gradient), (exact, slopes) = (
        entropy_and_gradient(each, each.vectors, coefficients, every_image(each)) for each in (narrow, evaluator)
    )
    assert value == pytest.approx(exact, rel=0.02)
    assert value != exact
    assert float((gradient - slopes).norm() / slopes.norm()) < 0.1


def test_tasks_take_turns_when_the_memory_is_too_small_for_all(evaluator, tiny_zoo):
    small, seen = make_evaluator(tiny_zoo), []

    def run_out(_, inputs, __):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    small.family.model.visual.register_forward_hook(run_out)
    found = adamerge(small, layer_wise=True, steps=3, lr=0.02)
    np.testing.assert_allclose(found, adamerge(evaluator, layer_wise=True, steps=3, lr=0.02), atol=1e-4)
    assert set(seen) == {48, 16}
