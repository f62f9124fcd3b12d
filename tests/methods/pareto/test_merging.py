from __future__ import annotations

from threading import Event

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import Cancelled, CheckpointError, MapMergeError
from mapmerge_core.merges._pareto_training import ParetoMerging, pareto_merge
from mapmerge_core.merges._scalarisations import FLOOR
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.tasks.evaluator import Evaluator
from mapmerge_core.tasks.families import make_family
from mapmerge_core.tasks.metric import Metric
from mapmerge_core.tasks.task import Task
from mapmerge_core.weights.vectors.task_vectors import TaskVectors
from tests.tasks.test_evaluator import make_evaluator

SMALL = {"rank": 2, "batch_size": 8, "lr": 1e-2}


@pytest.fixture(scope="module")
def evaluator(tiny_zoo):
    return make_evaluator(tiny_zoo, precision="float32")


class Reference:
    """Pareto Merging written out: θ(γ) by plain sums that autograd sees, one pass for each task."""

    def __init__(self, evaluator, training, seed=0):
        self.evaluator, self.training, self.seed, self.done = evaluator, training, seed, 0
        self.n = n = len(evaluator.vectors)
        self.pretrained = {name: t.float() for name, t in evaluator.vectors.merge(np.zeros(n)).items()}
        self.vectors = []
        for c in np.eye(n):
            tuned = evaluator.vectors.merge(c)
            self.vectors.append({name: tuned[name].float() - self.pretrained[name] for name in tuned})
        start = ParetoMerging(evaluator, training, seed=seed)._personalisation
        self.layers, self.blocks = evaluator.vectors.layers, start.blocks
        self.lambdas = torch.full((len(self.layers), n), training.start, requires_grad=True)
        kinds = (start.A, start.B, start.G)
        self.parts = [[p.detach().clone().requires_grad_() for p in kind] for kind in kinds]
        self.parameters = [self.lambdas, *(p for kind in self.parts for p in kind)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=training.lr, betas=(0.9, 0.999))

    def merged(self, gamma):
        """θ(γ), and the tensors 𝒲 whose slices γ weighs."""
        merged = {}
        for row, name in zip(self.lambdas, self.layers, strict=True):
            merged[name] = self.pretrained[name] + sum(
                c * v[name] for c, v in zip(row, self.vectors, strict=True)
            )
        tensors = []
        for block, A, B, G in zip(self.blocks, *self.parts, strict=True):
            tensor = torch.einsum("ci,ijk,dj->cdk", A, G, B)
            tensors.append(tensor)
            part = torch.zeros_like(merged[block.tensor])
            part[block.row : block.row + block.c, block.column : block.column + block.d] = 1
            place = part.nonzero(as_tuple=True)
            merged[block.tensor] = merged[block.tensor].index_put(
                place, (tensor * gamma).sum(dim=2).flatten(), accumulate=True
            )
        return merged, tensors

    def objectives(self, merged, rng):
        training, found = self.training, []
        if training.data_free:
            long = self.n * training.start
            lengths = [
                sum(float((long * v[name]).square().sum()) for name in self.layers) for v in self.vectors
            ]
            for v in self.vectors:
                gaps = [merged[name] - self.pretrained[name] - long * v[name] for name in self.layers]
                found.append(sum(gap.square().sum() for gap in gaps) / np.mean(lengths))
            return torch.stack(found)
        family = self.evaluator.family
        for task in self.evaluator.tasks.values():
            images = family.images(task, "val")
            some = rng.choice(len(images), min(training.batch_size, len(images)), replace=False)
            p = family.class_logits(images[some], family.head(task), merged).softmax(dim=1)
            entropy = -(p * p.log()).sum(dim=1).mean()
            mean = p.mean(dim=0)
            entropy = entropy + training.balance * (np.log(p.shape[1]) + (mean * mean.log()).sum())
            found.append(entropy)
        return torch.stack(found)

    def step(self):
        training = self.training
        rng = np.random.default_rng([self.seed, self.done])
        gamma = torch.from_numpy(rng.dirichlet(np.full(self.n, training.concentration))).float()
        merged, tensors = self.merged(gamma)
        f = self.objectives(merged, rng)
        if training.scalarisation == "linear":
            loss = (gamma * f).sum()
        elif training.scalarisation == "tchebycheff":
            loss = (gamma * f).max()
        else:
            loss = training.mu * torch.log(torch.exp(gamma * f / training.mu).sum())
        inverse = 1 / gamma.clamp(min=FLOOR)
        loss = loss - training.beta_cos * (inverse @ f) / (inverse.norm() * f.norm())
        norm = torch.sqrt(sum(tensor.square().sum() for tensor in tensors) + 1e-12)
        loss = loss + training.beta_norm * norm
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return f.detach(), loss.detach()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"balance": 1.0, "beta_norm": 0.01, "concentration": 0.5},
        {"scalarisation": "linear", "beta_cos": 0.0},
        {"scalarisation": "tchebycheff"},
        {"data_free": True},
        {"data_free": True, "scalarisation": "linear", "beta_norm": 0.1},
        {"data_free": True, "scalarisation": "tchebycheff", "beta_cos": 0.0},
        {"personalised": ("*.mlp.c_fc.weight", "visual.proj"), "start": 0.4},
    ],
)
def test_training_takes_the_steps_of_the_method_written_out(evaluator, changes):
    training = Training(steps=4, **SMALL | changes)
    merging, reference = ParetoMerging(evaluator, training, seed=5), Reference(evaluator, training, seed=5)
    for _ in range(4):
        (f, loss), (f_expected, loss_expected) = merging.step(), reference.step()
        assert f.numpy() == pytest.approx(f_expected.numpy(), rel=1e-5)
        assert float(loss) == pytest.approx(float(loss_expected), rel=1e-5)
        # Adam divides gradients by their size, so that parameters alone wouldn't show a wrong factor.
        for parameter, expected in zip(merging._parameters, reference.parameters, strict=True):
            gap = (parameter.grad - expected.grad).norm()
            assert float(gap) <= 2e-5 * float(expected.grad.norm())
    learned = merging.pareto_set()
    assert learned.lambdas == pytest.approx(reference.lambdas.detach().double().numpy(), abs=1e-5)
    for kind, expected in zip("ABG", reference.parts, strict=True):
        for found, tensor in zip(getattr(learned.personalisation, kind), expected, strict=True):
            assert found.numpy() == pytest.approx(tensor.detach().numpy(), abs=1e-5)
    assert any(G.abs().max() > 1e-3 for G in learned.personalisation.G)


def test_it_lowers_the_entropies(evaluator):
    training = Training(steps=80, beta_norm=0.01, beta_cos=0.0, scalarisation="linear", **SMALL)
    merging = ParetoMerging(evaluator, training)
    f = np.array([merging.step()[0].numpy() for _ in range(80)])
    assert f[-20:].mean() < 0.85 * f[:20].mean()


def test_the_same_seed_learns_the_same_bits_and_another_does_not(evaluator):
    training = Training(steps=3, **SMALL)
    first, again, other = (pareto_merge(evaluator, training, seed=seed) for seed in (1, 1, 2))
    assert tensors_of(first) == tensors_of(again)
    assert tensors_of(first) != tensors_of(other)


def test_a_resumed_training_ends_as_one_that_was_never_stopped(evaluator, tmp_path):
    training = Training(steps=7, balance=1.0, **SMALL)
    whole = pareto_merge(evaluator, training, seed=3)
    merging = ParetoMerging(evaluator, training, seed=3)
    for _ in range(4):
        merging.step()
    merging.save(tmp_path / "training.safetensors")
    resumed = ParetoMerging(evaluator, training, seed=3)
    resumed.resume(tmp_path / "training.safetensors")
    assert resumed.steps_done == 4
    while not resumed.is_done:
        resumed.step()
    assert tensors_of(resumed.pareto_set()) == tensors_of(whole)


def test_a_checkpoint_of_no_step_resumes_too(evaluator, tmp_path):
    training = Training(steps=2, **SMALL)
    ParetoMerging(evaluator, training).save(tmp_path / "training.safetensors")
    resumed = ParetoMerging(evaluator, training)
    resumed.resume(tmp_path / "training.safetensors")
    while not resumed.is_done:
        resumed.step()
    assert tensors_of(resumed.pareto_set()) == tensors_of(pareto_merge(evaluator, training))


def test_checkpoints_of_others_are_refused(evaluator, tmp_path):
    file = tmp_path / "training.safetensors"
    ParetoMerging(evaluator, Training(steps=2, **SMALL)).save(file)
    for training, seed in ((Training(steps=3, **SMALL), 0), (Training(steps=2, **SMALL), 1)):
        with pytest.raises(CheckpointError, match="was written by another training"):
            ParetoMerging(evaluator, training, seed=seed).resume(file)
    other_rank = Training(steps=2, **SMALL | {"rank": 3})
    with pytest.raises(CheckpointError, match="was written by another training"):
        ParetoMerging(evaluator, other_rank).resume(file)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (None, "was written by another training"),
        ("{}", "was written by another training"),
        ("[1]", "was written by another training"),
        ("{", "can't be read"),
    ],
)
def test_checkpoints_with_another_header_are_refused(evaluator, tmp_path, said, sentence):
    file = tmp_path / "training.safetensors"
    merging = ParetoMerging(evaluator, Training(steps=2, **SMALL))
    merging.save(file)
    save_file(load_file(file), file, None if said is None else {"mapmerge-training": said})
    with pytest.raises(CheckpointError, match=sentence):
        merging.resume(file)


def test_damaged_checkpoints_are_refused(evaluator, tmp_path):
    file = tmp_path / "training.safetensors"
    merging = ParetoMerging(evaluator, Training(steps=2, **SMALL))
    with pytest.raises(CheckpointError, match="can't be read"):
        merging.resume(file)
    merging.save(file)
    for content in (file.read_bytes()[:-10], b"\x00" * 20, b""):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be read"):
            merging.resume(file)


def test_labels_are_never_read(tiny_zoo, tmp_path):
    def learned(folder):
        return tensors_of(
            pareto_merge(make_evaluator(folder, precision="float32"), Training(steps=2, **SMALL))
        )

    for file in tiny_zoo.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in tmp_path.glob("*.npz"):
        arrays = dict(np.load(file))
        for split in ("val", "test"):
            arrays[f"{split}_labels"] = np.zeros_like(arrays[f"{split}_labels"])
        np.savez(file, **arrays)
    assert learned(tmp_path) == learned(tiny_zoo)


def test_the_evaluator_measures_as_before(evaluator):
    def measured():
        return [
            (outcome.value, outcome.per_example)
            for split in ("val", "test")
            for outcome in evaluator.evaluate(np.full(3, 0.4), split=split).values()
        ]

    before = measured()
    pareto_merge(evaluator, Training(steps=2, **SMALL))
    assert measured() == before
    assert not any(p.requires_grad or p.grad is not None for p in evaluator.family.model.parameters())


def test_bfloat16_sees_nearly_the_same(tiny_zoo, evaluator):
    narrow = make_evaluator(tiny_zoo, precision="bfloat16")
    training = Training(steps=2, **SMALL)
    found = [
        [merging.step()[0].numpy() for _ in range(2)]
        for merging in (ParetoMerging(narrow, training), ParetoMerging(evaluator, training))
    ]
    assert np.array(found[0]) == pytest.approx(np.array(found[1]), abs=0.05)
    assert found[0][0].tolist() != found[1][0].tolist()


def test_data_free_training_tends_to_task_arithmetic_with_the_preference(evaluator):
    """Σ γ_k ‖θ − (θ_pre + K λ V_k)‖² is least at θ = θ_pre + K λ Σ γ_k V_k, which full rank can reach."""
    training = Training(
        steps=200, rank=32, lr=1.5e-2, data_free=True, scalarisation="linear", beta_cos=0.0, beta_norm=0.0
    )
    merging = ParetoMerging(evaluator, training)
    with torch.no_grad():  # far from where it tends to
        merging._lambdas.copy_(
            torch.from_numpy(np.random.default_rng(0).uniform(size=merging._lambdas.shape))
        )
    pretrained = evaluator.vectors.merge(np.zeros(3))

    def away(gamma, c, layers):
        merged, wanted = merging.pareto_set().merge(gamma), evaluator.vectors.merge(c)
        gap = sum(float((merged[n].double() - wanted[n].double()).square().sum()) for n in layers)
        length = sum(float((pretrained[n].double() - wanted[n].double()).square().sum()) for n in layers)
        return np.sqrt(gap / length)

    everything = evaluator.vectors.layers
    assert away(np.ones(3), np.full(3, 0.3), everything) > 0.8
    while not merging.is_done:
        merging.step()
    assert away(np.ones(3), np.full(3, 0.3), everything) < 0.12
    personalised = {block.tensor for block in merging.pareto_set().personalisation.blocks}
    for vertex in np.eye(3):
        assert away(vertex, 0.9 * vertex, personalised) < 0.25
        assert away(vertex, 0.9 * vertex, everything) < away(np.ones(3), 0.9 * vertex, everything)


def test_it_stops_between_two_steps(evaluator):
    cancel, seen = Event(), []

    def progress(done, total):
        seen.append((done, total))
        if done == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        pareto_merge(evaluator, Training(steps=9, **SMALL), cancel=cancel, progress=progress)
    assert seen == [(1, 9), (2, 9)]


def test_a_task_without_images_is_refused_unless_data_free(tiny_zoo):
    whole = make_evaluator(tiny_zoo, precision="float32")
    tasks = [whole.tasks["Colours"], whole.tasks["Light"]]
    lacking = Evaluator(whole.family, whole.vectors, tasks, device="cpu", precision="float32")
    with pytest.raises(
        MapMergeError, match="needs unlabelled images of 'Stripes': add its dataset, or train"
    ):
        ParetoMerging(lacking, Training(**SMALL))
    assert ParetoMerging(lacking, Training(data_free=True, **SMALL)).step()[0].shape == (3,)


def test_models_without_logits_learn_from_their_weights_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in ("pretrained", "One", "Two"):
        weight = torch.randn(6, 5, generator=generator)
        save_file({"attn.proj.weight": weight}, tmp_path / f"{name}.safetensors")
    tasks = [Task(name, None, Metric("norm", maximize=False, low=0.0)) for name in ("One", "Two")]
    pretrained = tmp_path / "pretrained.safetensors"
    family = make_family("tests.methods.pareto.test_merging:norms", "", pretrained, {}, tasks)
    vectors = TaskVectors.from_files(pretrained, {t.name: tmp_path / f"{t.name}.safetensors" for t in tasks})
    evaluator = Evaluator(family, vectors, tasks, device="cpu")
    with pytest.raises(MapMergeError, match="learns from the logits of image classifiers: train data-free"):
        pareto_merge(evaluator, Training(**SMALL))
    learned = pareto_merge(evaluator, Training(steps=3, data_free=True, **SMALL))
    assert not torch.equal(*(learned.merge(gamma)["attn.proj.weight"] for gamma in np.eye(2)))


def test_what_can_not_be_personalised_is_refused(evaluator):
    with pytest.raises(MapMergeError, match="rank must be from 1 to 32 for these models, not 33"):
        ParetoMerging(evaluator, Training(rank=33))
    with pytest.raises(CheckpointError, match=r"'text\.\*' names no weight matrix that is merged"):
        ParetoMerging(evaluator, Training(personalised=("text.*",)))


def test_a_full_device_is_one_sentence(tiny_zoo):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    full = make_evaluator(tiny_zoo, precision="float32")
    merging = ParetoMerging(full, Training(steps=1, **SMALL))
    full.family.model.visual.register_forward_hook(run_out)
    with pytest.raises(MapMergeError, match="ran out of memory with 8 images in a batch"):
        merging.step()


def test_it_says_how_many_parameters_it_adds(evaluator):
    # Two layers, each with q, k, v and the output projection of 32 x 32.
    assert ParetoMerging(evaluator, Training(**SMALL)).n_extra == 8 * (2 * (32 + 32) + 2**2 * 3)


def norms(state_dict):
    return {name: float(state_dict["attn.proj.weight"].norm()) for name in ("One", "Two")}


def tensors_of(learned):
    """Everything learned, as bytes."""
    parts = [learned.lambdas.tobytes()]
    return parts + [tensor.numpy().tobytes() for tensor in learned.personalisation.state_dict().values()]
