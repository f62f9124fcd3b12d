from __future__ import annotations

from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import Cancelled, CheckpointError, MapMergeError
from mapmerge_core.merges import _pareto_training
from mapmerge_core.merges._pareto_training import ParetoTraining
from mapmerge_core.merges._scalarisations import FLOOR
from mapmerge_core.registries import MERGES
from mapmerge_core.settings import to_dict
from mapmerge_core.tasks.evaluator import Evaluator
from tests.merges.helpers import TASKS, make_evaluator

SMALL = {"rank": 2, "batch_size": 8, "lr": 1e-2}


@pytest.fixture(scope="module")
def evaluator(tiny_zoo):
    return make_evaluator(tiny_zoo)


def merge(**settings):
    return MERGES["pareto_merging"](SMALL | settings)


def train(evaluator, **settings):
    return ParetoTraining(evaluator, evaluator.vectors, merge(**settings))


def learn(evaluator, **settings):
    return merge(**settings).prepare(evaluator)


class Reference:
    """Pareto Merging written out: θ(γ) by plain sums that autograd sees, one pass for each task."""

    def __init__(self, evaluator, training):
        self.evaluator, self.training, self.seed, self.done = evaluator, training, training.seed, 0
        self.n = n = len(evaluator.vectors)
        self.pretrained = {name: t.float() for name, t in evaluator.vectors.merge(np.zeros(n)).items()}
        self.vectors = []
        for c in np.eye(n):
            tuned = evaluator.vectors.merge(c)
            self.vectors.append({name: tuned[name].float() - self.pretrained[name] for name in tuned})
        start = train(evaluator, **to_dict(training))._personalisation
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
            merged[name] = self.pretrained[name] + sum(c * v[name] for c, v in zip(row, self.vectors, strict=True))
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
            lengths = [sum(float((long * v[name]).square().sum()) for name in self.layers) for v in self.vectors]
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
    merging = train(evaluator, steps=4, seed=5, **changes)
    reference = Reference(evaluator, merging.settings)
    for _ in range(4):
        (f, loss), (f_expected, loss_expected) = merging.step(), reference.step()
        assert f.numpy() == pytest.approx(f_expected.numpy(), rel=1e-5)
        assert float(loss) == pytest.approx(float(loss_expected), rel=1e-5)
        # Adam divides gradients by their size, so that parameters alone wouldn't show a wrong factor.
        for parameter, expected in zip(merging._parameters, reference.parameters, strict=True):
            gap = (parameter.grad - expected.grad).norm()
            assert float(gap) <= 2e-5 * float(expected.grad.norm())
    learned = merging
    assert learned.lambdas == pytest.approx(reference.lambdas.detach().double().numpy(), abs=1e-5)
    for kind, expected in zip("ABG", reference.parts, strict=True):
        for found, tensor in zip(getattr(learned.personalisation, kind), expected, strict=True):
            assert found.numpy() == pytest.approx(tensor.detach().numpy(), abs=1e-5)
    assert any(G.abs().max() > 1e-3 for G in learned.personalisation.G)


def test_it_lowers_the_entropies(evaluator):
    merging = train(evaluator, steps=80, beta_norm=0.01, beta_cos=0.0, scalarisation="linear")
    f = np.array([merging.step()[0].numpy() for _ in range(80)])
    assert f[-20:].mean() < 0.85 * f[:20].mean()


def test_the_same_seed_learns_the_same_bits_and_another_does_not(evaluator):
    first, again, other = (tensors_of(learn(evaluator, steps=3, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("done", [0, 4])
def test_a_resumed_training_ends_as_one_that_was_never_stopped(evaluator, tmp_path, done):
    settings = {"steps": 7, "balance": 1.0, "seed": 3}
    merging, file = train(evaluator, **settings), tmp_path / "new" / "training.safetensors"
    for _ in range(done):
        merging.step()
    merging.save(file)
    resumed = train(evaluator, **settings)
    resumed.resume(file)
    assert resumed.steps_done == done
    resumed = merge(**settings).prepare(evaluator, checkpoint=file)
    assert tensors_of(resumed) == tensors_of(learn(evaluator, **settings))


def test_a_stop_keeps_all_and_a_checkpoint_is_written_every_few_seconds(evaluator, tmp_path, monkeypatch):
    file, cancel, points, steps = tmp_path / "training.safetensors", Event(), [], []

    def progress(done, total):
        steps.append((done, total))
        if done == 5:
            cancel.set()

    with pytest.raises(Cancelled):
        merge(steps=210).prepare(evaluator, progress=progress, cancel=cancel, checkpoint=file, report=points.append)
    assert steps == [(i, 210) for i in range(1, 6)]
    assert [point.step for point in points] == [2, 4, 5]
    for point in points:
        assert point.f.shape == (3,)
        assert np.isfinite([point.objective, *point.f]).all()
        assert point.seconds > 0
    resumed = train(evaluator, steps=210)
    resumed.resume(file)
    assert resumed.steps_done == 5
    monkeypatch.setattr(_pareto_training, "SAVED_EVERY", 0)
    kept, saved = [], ParetoTraining.save

    def save(training, path):
        saved(training, path)
        kept.append(training.steps_done)

    monkeypatch.setattr(ParetoTraining, "save", save)
    merge(steps=4, seed=1).prepare(evaluator, checkpoint=tmp_path / "other.safetensors")
    assert kept == [0, 1, 2, 3]


def test_points_are_means_since_the_one_before(evaluator):
    points = []
    merge(steps=4, seed=2).prepare(evaluator, report=points.append)
    taken = train(evaluator, steps=4, seed=2)
    expected = [taken.step() for _ in range(4)]
    assert [point.step for point in points] == [1, 2, 3, 4]
    for point, (f, objective) in zip(points, expected, strict=True):
        assert point.f == pytest.approx(f.numpy(), rel=1e-6)
        assert point.objective == pytest.approx(float(objective), rel=1e-6)


def test_checkpoints_of_others_are_refused(evaluator, tmp_path):
    file = tmp_path / "training.safetensors"
    train(evaluator, steps=2).save(file)
    for changes in ({"steps": 3}, {"steps": 2, "seed": 1}, {"steps": 2, "rank": 3}):
        with pytest.raises(CheckpointError, match="was prepared with other settings: delete it to start the training"):
            train(evaluator, **changes).resume(file)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (None, "is no file that a merge prepared"),
        ("{}", "is no file that a merge prepared"),
        ("[1]", "is no file that a merge prepared"),
        ("{", "can't be read"),
    ],
)
def test_checkpoints_with_another_header_are_refused(evaluator, tmp_path, header, sentence):
    file = tmp_path / "training.safetensors"
    merging = train(evaluator, steps=2)
    merging.save(file)
    save_file(load_file(file), file, None if header is None else {"mapmerge": header})
    with pytest.raises(CheckpointError, match=sentence):
        merging.resume(file)


def test_a_finished_set_is_no_checkpoint(evaluator, tmp_path):
    learn(evaluator, steps=2).save(tmp_path / "set.safetensors")
    with pytest.raises(CheckpointError, match="was written by another training: delete it to start"):
        train(evaluator, steps=2).resume(tmp_path / "set.safetensors")


def test_damaged_checkpoints_are_refused(evaluator, tmp_path):
    file = tmp_path / "training.safetensors"
    merging = train(evaluator, steps=2)
    with pytest.raises(CheckpointError, match="can't be read"):
        merging.resume(file)
    merging.save(file)
    for content in (file.read_bytes()[:-10], b"\x00" * 20, b""):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be read"):
            merging.resume(file)


def test_labels_are_never_read(tiny_zoo, tmp_path):
    def learned(folder):
        return tensors_of(learn(make_evaluator(folder), steps=2))

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
    learn(evaluator, steps=2)
    assert measured() == before
    assert not any(p.requires_grad or p.grad is not None for p in evaluator.family.model.parameters())


def test_bfloat16_sees_nearly_the_same(tiny_zoo, evaluator):
    narrow = make_evaluator(tiny_zoo, precision="bfloat16")
    found = [
        [merging.step()[0].numpy() for _ in range(2)] for merging in (train(narrow, steps=2), train(evaluator, steps=2))
    ]
    assert np.array(found[0]) == pytest.approx(np.array(found[1]), abs=0.05)
    assert found[0][0].tolist() != found[1][0].tolist()


def test_data_free_training_tends_to_task_arithmetic_with_the_preference(evaluator):
    """Σ γ_k ‖θ − (θ_pre + K λ V_k)‖² is least at θ = θ_pre + K λ Σ γ_k V_k, which full rank can reach."""
    settings = {"scalarisation": "linear", "beta_cos": 0.0, "beta_norm": 0.0}
    merging = train(evaluator, steps=200, rank=32, lr=1.5e-2, data_free=True, **settings)
    with torch.no_grad():  # far from where it tends to
        merging._lambdas.copy_(torch.from_numpy(np.random.default_rng(0).uniform(size=merging._lambdas.shape)))
    pretrained = evaluator.vectors.merge(np.zeros(3))

    def away(gamma, c, layers):
        merged, wanted = dict(prepared(merging).tensors(gamma)), evaluator.vectors.merge(c)
        gap = sum(float((merged[n].double() - wanted[n].double()).square().sum()) for n in layers)
        length = sum(float((pretrained[n].double() - wanted[n].double()).square().sum()) for n in layers)
        return np.sqrt(gap / length)

    everything = evaluator.vectors.layers
    assert away(np.ones(3), np.full(3, 0.3), everything) > 0.8
    while not merging.is_done:
        merging.step()
    assert away(np.ones(3), np.full(3, 0.3), everything) < 0.12
    personalised = {block.tensor for block in merging.personalisation.blocks}
    for vertex in np.eye(3):
        assert away(vertex, 0.9 * vertex, personalised) < 0.25
        assert away(vertex, 0.9 * vertex, everything) < away(np.ones(3), 0.9 * vertex, everything)


def prepared(merging):
    from mapmerge_core.merges._pareto_set import PreparedParetoMerging

    vectors = merging._vectors
    return PreparedParetoMerging(merge(), vectors, vectors, merging.lambdas, merging.personalisation)


def test_a_model_without_a_task_of_its_own_is_refused_unless_data_free(tiny_zoo):
    whole = make_evaluator(tiny_zoo)
    tasks = [whole.tasks["Colours"], whole.tasks["Light"]]
    lacking = Evaluator(whole.family, whole.vectors, tasks, device="cpu", precision="float32")
    with pytest.raises(MapMergeError, match="The model 'Stripes' has no task of its own with examples"):
        train(lacking)
    assert train(lacking, data_free=True).step()[0].shape == (3,)


def test_tasks_without_a_model_take_no_part(tiny_zoo, evaluator):
    other = make_evaluator(tiny_zoo)
    held_out = replace(other.tasks["Light"], name="Held out", model=None)
    tasks = [held_out, *(other.tasks[name] for name in reversed(TASKS))]
    other = Evaluator(other.family, other.vectors, tasks, device="cpu", precision="float32")
    assert tensors_of(learn(other, steps=2)) == tensors_of(learn(evaluator, steps=2))


def test_models_without_logits_learn_from_their_weights_alone(evaluator):
    class Measured:
        """A family that only measures."""

        gives_logits = False

    class OfWeights:
        family, vectors, exported_vectors = Measured(), evaluator.vectors, evaluator.exported_vectors
        device, tasks = evaluator.device, evaluator.tasks

    with pytest.raises(MapMergeError, match="needs the logits of image classifiers"):
        learn(OfWeights(), steps=3)
    prepared = learn(OfWeights(), steps=3, data_free=True)
    first, second = (dict(prepared.tensors(gamma)) for gamma in np.eye(3)[:2])
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_trimmed_task_vectors(evaluator):
    """Pareto Merging++ is Pareto Merging of what TIES keeps."""
    learned = learn(evaluator, steps=2, keep=0.3)
    vectors = MERGES["ties_trim"]({"keep": 0.3}).transform_vectors(evaluator.vectors)
    training = ParetoTraining(evaluator, vectors, merge(steps=2))
    training.run()
    assert tensors_of(learned) == tensors_of(training)
    expected = prepared(training)
    assert all(torch.equal(t, dict(expected.tensors([1, 0, 0]))[n]) for n, t in learned.tensors([1, 0, 0]))


def test_what_can_not_be_personalised_is_refused(evaluator):
    with pytest.raises(MapMergeError, match="rank must be from 1 to 32 for these models, not 33"):
        train(evaluator, rank=33)
    with pytest.raises(CheckpointError, match=r"'text\.\*' names no weight matrix that is merged"):
        train(evaluator, personalised=["text.*"])


def test_a_full_device_is_one_sentence(tiny_zoo):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    full = make_evaluator(tiny_zoo)
    merging = train(full, steps=1)
    full.family.model.visual.register_forward_hook(run_out)
    with pytest.raises(MapMergeError, match="ran out of memory with 8 images in a batch"):
        merging.step()


def test_it_says_how_many_parameters_it_adds(evaluator):
    # Two layers, each with q, k, v and the output projection of 32 x 32.
    assert learn(evaluator, steps=1).n_extra == 8 * (2 * (32 + 32) + 2**2 * 3)


def tensors_of(learned):
    """Everything learned, as bytes."""
    parts = [learned.lambdas.tobytes()]
    return parts + [tensor.numpy().tobytes() for tensor in learned.personalisation.state_dict().values()]
