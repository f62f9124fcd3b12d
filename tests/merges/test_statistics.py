from __future__ import annotations

from threading import Event

import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from mapmerge_core.errors import Cancelled, MapMergeError
from mapmerge_core.merges import _statistics as statistics
from mapmerge_core.merges._statistics import fisher_diagonals, gram_matrices
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.merges.helpers import make_evaluator
from tests.tiny import ARCHITECTURE, CLASS_NAMES, plain_head, plain_transform

BLOCKS = [f"visual.transformer.resblocks.{i}." for i in range(2)]


@pytest.fixture(scope="module")
def evaluator(tiny_zoo):
    return make_evaluator(tiny_zoo, batch_size=25)


def plain_model(evaluator, zoo, task):
    """A task's own fine-tuned model, its validation images and its head, by open_clip alone."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(evaluator.vectors.merge([name == task for name in CLASS_NAMES]))
    arrays = np.load(zoo / f"{task}.npz")
    head = plain_head(model, CLASS_NAMES[task], arrays["templates"].tolist())
    return model, plain_transform(arrays["val_images"], model), head


class LinearFamily:
    """Softmax regression on two gray pixels, to show what these statistics need of a family."""

    part = ""
    gives_logits = True
    n_classes = 3

    def __init__(self):
        self.model = nn.Linear(2, self.n_classes).requires_grad_(requires_grad=False)

    def use(self, tasks):
        pass

    def to(self, device):
        self.model.to(device)

    def model_in(self, dtype):  # noqa: ARG002
        return self.model

    def head(self, task):  # noqa: ARG002
        return torch.empty(0)

    def images(self, task, split):
        return torch.from_numpy(np.load(task.data.path)[f"{split}_images"])

    def class_logits(self, batch, head, parameters):  # noqa: ARG002
        return functional_call(self.model, parameters, (batch.flatten(1) / 255,))


@pytest.fixture
def linear(tmp_path):
    """A softmax regression on 4,000 images of 1 x 2 pixels, all with the label 0."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (4000, 1, 2), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.zeros(4000, np.int64)
    np.savez(tmp_path / "all.npz", class_names=["a", "b", "c"], templates=["{}"], **arrays)
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.0]])
    finetuned = {"weight": weight, "bias": torch.tensor([0.2, -0.3, 0.0])}
    vectors = TaskVectors.from_state_dicts(
        {key: torch.zeros_like(tensor) for key, tensor in finetuned.items()}, {"all": finetuned}
    )
    return Evaluator(LinearFamily(), vectors, [Task.from_file("all", tmp_path / "all.npz", model="all")], device="cpu")


def test_fisher_of_softmax_regression_is_its_expectation(linear):
    """With p = softmax(Wx), E_y[(∂ log p_y / ∂W_kj)²] is p_k (1 − p_k) x_j², whatever the true labels."""
    X = np.load(linear.tasks["all"].data.path)["val_images"].reshape(-1, 2) / 255
    X = np.column_stack([X, np.ones(len(X))])  # the bias is the weight of a third pixel
    W = np.array([[1.0, -2.0, 0.2], [0.5, 1.0, -0.3], [-1.0, 0.0, 0.0]])
    p = np.exp(X @ W.T)
    p /= p.sum(axis=1, keepdims=True)
    expected = ((p * (1 - p))[:, :, None] * (X**2)[:, None, :]).mean(axis=0)
    # The square is (1 − p_k)² x_j² with probability p_k and p_k² x_j² with 1 − p_k.
    variance = p * (1 - p) ** 4 + (1 - p) * p**4 - (p * (1 - p)) ** 2
    deviation = np.sqrt((variance[:, :, None] * (X**4)[:, None, :]).sum(axis=0)) / len(X)
    assert (deviation < 0.05 * expected).all()
    found = fisher_diagonals(linear, "all", examples=None)
    F = torch.column_stack([found["weight"], found["bias"]]).numpy()
    assert (np.abs(F - expected) < 4 * deviation).all()
    other = fisher_diagonals(linear, "all", examples=None, seed=1)
    assert not torch.equal(other["weight"], found["weight"])


@pytest.mark.parametrize("chunk_bytes", [0, 10**6, 10**9])
def test_fisher_of_a_vision_tower_squares_each_examples_gradient(evaluator, tiny_zoo, monkeypatch, chunk_bytes):
    monkeypatch.setattr(statistics, "_GRADIENT_BYTES", chunk_bytes)
    found = fisher_diagonals(evaluator, "Stripes", examples=60, seed=5)
    model, images, head = plain_model(evaluator, tiny_zoo, "Stripes")
    images = images[torch.from_numpy(np.random.default_rng(5).permutation(60))]
    logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ head
    generator = torch.Generator().manual_seed(5)
    labels = torch.multinomial(logits.softmax(dim=1).detach(), 1, generator=generator).squeeze(1)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters() if "visual" in name}
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        logits = model.logit_scale.exp() * model.encode_image(image[None], normalize=True) @ head
        functional.nll_loss(logits.log_softmax(dim=1), label[None]).backward()
        for name in expected:
            expected[name] += model.get_parameter(name).grad ** 2 / 60
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-6)


def test_examples_and_seed_decide_what_is_drawn(evaluator):
    few = fisher_diagonals(evaluator, "Light", examples=10)
    assert all(torch.equal(t, few[n]) for n, t in fisher_diagonals(evaluator, "Light", examples=10).items())
    for other in (
        fisher_diagonals(evaluator, "Light", examples=20),
        fisher_diagonals(evaluator, "Light", examples=10, seed=1),
    ):
        assert not torch.equal(other["visual.proj"], few["visual.proj"])
    every, more = (gram_matrices(evaluator, "Light", examples=examples) for examples in (None, 1000))
    assert all(torch.equal(gram.matrix, more[name].matrix) for name, gram in every.items())


def inputs_by_hand(model, images):
    """The inputs of each linear layer: by module hooks, and attention's by its formula."""
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "mlp" in name:
            module.register_forward_hook(lambda _, args, __, name=name: inputs.update({f"{name}.weight": args[0]}))
        elif name.startswith("visual") and name.endswith("ln_1"):
            module.register_forward_hook(lambda _, __, out, name=name: inputs.update({name: out}))
    model.visual.ln_post.register_forward_hook(lambda _, __, out: inputs.update({"ln_post": out}))
    model.encode_image(images)
    inputs["visual.proj"] = inputs.pop("ln_post")[:, 0]  # the class token
    for block in BLOCKS:
        attention = model.get_submodule(f"{block}attn")
        x = inputs[f"{block}attn.in_proj_weight"] = inputs.pop(f"{block}ln_1")
        n, tokens, width = x.shape
        q, k, v = (
            part.view(n, tokens, 2, width // 2).transpose(1, 2)
            for part in (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
        )
        heads = (q @ k.transpose(-1, -2) / (width // 2) ** 0.5).softmax(dim=-1) @ v
        inputs[f"{block}attn.out_proj.weight"] = heads.transpose(1, 2).reshape(n, tokens, width)
    return inputs


def test_gram_matrices_of_every_linear_layer(evaluator, tiny_zoo):
    found = gram_matrices(evaluator, "Colours")
    model, images, _ = plain_model(evaluator, tiny_zoo, "Colours")
    with torch.no_grad():
        inputs = inputs_by_hand(model, images)
    weights = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert set(found) == {block + name for block in BLOCKS for name in weights} | {"visual.proj"}
    for name, (matrix, axis) in found.items():
        X = inputs[name].flatten(0, -2).double()
        assert len(X) == 60 * (1 if name == "visual.proj" else 5)
        torch.testing.assert_close(matrix.double(), X.T @ X / len(X), rtol=1e-4, atol=1e-5)
        assert axis == (0 if name == "visual.proj" else 1)


def test_counting_inputs_changes_no_output():
    torch.manual_seed(0)
    x, y, z = torch.randn(4, 5, 8), torch.randn(4, 7, 6), torch.randn(4, 7, 3)
    for attention, args in (
        (nn.MultiheadAttention(8, 2, batch_first=True), (x, x, x)),
        (nn.MultiheadAttention(8, 2), (x, x.flip(0), x)),
        (nn.MultiheadAttention(8, 2, kdim=6, vdim=3, batch_first=True), (x, y, z)),
    ):
        inputs = statistics._LinearInputs(dict(attention.named_parameters()))
        expected = attention(*args)
        with inputs:
            found = attention(*args)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        grams = inputs.grams()
        for name, given in (("q", x), ("k", y), ("v", z)):
            if f"{name}_proj_weight" in dict(attention.named_parameters()):
                X = given.flatten(0, 1)
                torch.testing.assert_close(grams[f"{name}_proj_weight"].matrix, X.T @ X / len(X))
        # A packed projection of different inputs has no one Gram matrix.
        assert ("in_proj_weight" in grams) == (args[0] is args[1])
        assert grams["out_proj.weight"].matrix.shape == (8, 8)


def test_calls_with_keywords_are_counted_and_others_are_not():
    layer, x = nn.Linear(3, 3, bias=False), torch.randn(5, 3)
    inputs = statistics._LinearInputs({"w": layer.weight})
    with inputs:
        functional.linear(weight=layer.weight, input=x)
        functional.linear(x, weight=layer.weight)
        functional.linear(10 * x, torch.eye(3))
    torch.testing.assert_close(inputs.grams()["w"].matrix, x.T @ x / 5)
    inputs = statistics._LinearInputs({"w": layer.weight})
    with inputs:
        torch.matmul(x, other=layer.weight)
        _ = layer.weight @ x.T
    assert inputs.grams()["w"].axis == 0
    torch.testing.assert_close(inputs.grams()["w"].matrix, x.T @ x / 5)


@pytest.mark.parametrize("collect", [fisher_diagonals, gram_matrices])
def test_progress_stopping_and_measuring_afterwards(evaluator, collect):
    c = [0.3, 0.4, 0.2]
    before = {task: outcome.per_example for task, outcome in evaluator.evaluate(c).items()}
    seen = []
    collect(evaluator, "Light", progress=lambda *args: seen.append(args))
    assert seen == [(25, 60), (50, 60), (60, 60)]
    cancel = Event()
    with pytest.raises(Cancelled):
        collect(evaluator, "Light", cancel=cancel, progress=lambda *_: cancel.set())
    assert not any(p.requires_grad for p in evaluator.family.model.parameters())
    assert {task: outcome.per_example for task, outcome in evaluator.evaluate(c).items()} == before


@pytest.mark.parametrize("collect", [fisher_diagonals, gram_matrices])
def test_what_has_no_statistics(tiny_zoo, evaluator, collect):
    held_out = [Task.from_file("Colours", tiny_zoo / "Colours.npz"), Task("Light", None, model="Light")]
    other = Evaluator(evaluator.family, evaluator.vectors, held_out, device="cpu")
    for model in ("Colours", "Light"):
        with pytest.raises(MapMergeError, match=f"model '{model}' has no task of its own with examples: add"):
            collect(other, model)


@pytest.mark.parametrize("collect", [fisher_diagonals, gram_matrices])
def test_running_out_of_memory_says_to_choose_a_smaller_batch(tiny_zoo, collect):
    evaluator = make_evaluator(tiny_zoo, batch_size=50)

    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    evaluator.family.model.visual.register_forward_hook(run_out)
    with pytest.raises(MapMergeError, match="ran out of memory with 50 images in a batch: choose a smaller"):
        collect(evaluator, "Light")
    evaluator.family.prepare = run_out  # the images alone are too many
    with pytest.raises(MapMergeError, match="ran out of memory"):
        collect(evaluator, "Light")
