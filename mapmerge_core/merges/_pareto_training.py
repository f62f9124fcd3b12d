"""Pareto Merging: learns from unlabelled images, or from weights alone, a model for every preference."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mapmerge_core.errors import Cancelled, CheckpointError
from mapmerge_core.merges._merged_gradients import (
    contract,
    imbalance,
    logits_of_tasks,
    merge_unrounded,
    mixed_precision,
)
from mapmerge_core.merges._pareto_set import Block, Personalisation, find_blocks
from mapmerge_core.merges._scalarisations import alignment, scalarise
from mapmerge_core.merges._state import read_state, write_state
from mapmerge_core.merges._statistics import classifier_of, own_task, running_out_of_memory
from mapmerge_core.merges.base import Progress, Report, TrainingPoint
from mapmerge_core.tasks.unlabelled import mean_entropy

if TYPE_CHECKING:
    from mapmerge_core.merges.pareto_merging import ParetoMerging
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

POINTS = 100
"""How often training reports how it goes."""
SAVED_EVERY = 10.0
"""Seconds between two checkpoints: what a killed process loses at most."""
# Steps that are timed, after a first one that prepares much.
_TIMED = 3
# Added to ‖𝒲‖² under the root, whose slope is infinite at 0, where training starts.
_TINY = 1e-12


class ParetoTraining:
    """A training run, step by step; it can be kept and resumed, to the same end (Algorithm 1).

    A step merges θ(γ) into the family's own model, passes each task's images forward and the objective
    backward once, and contracts the gradient by the merged parameters to those by λ, A, B and G: besides the
    task vectors it needs memory for that one model, its gradient and the activations. What is drawn in a step
    depends on the seed and the step's number alone. Images are those of the validation split; labels are
    never read.

    Args:
        evaluator: Whose family and tasks to use; it measures as before afterwards.
        vectors: N task vectors on the evaluator's device.
        merge: Whose settings tell how.
        structure: Makes what a preference adds to the base model, from blocks, N, rank and seed.

    Attributes:
        steps_done: Steps that were taken.

    Raises:
        CheckpointError: There is nothing to personalise (see `find_blocks`).
        DatasetError: A dataset can't be read.
        MapMergeError: The family gives no logits or a model has no task of its own and the training isn't
            data-free, the rank is too large, or the device runs out of memory.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        vectors: TaskVectors,
        merge: ParetoMerging,
        *,
        structure: Callable[[Sequence[Block], int, int, int], Personalisation] = Personalisation,
    ) -> None:
        self.settings, self.steps_done = merge.settings, 0
        self._merge, self._evaluator, self._vectors = merge, evaluator, vectors
        settings, n = merge.settings, len(vectors)
        self._personalisation = structure(
            find_blocks(vectors, settings.personalised), n, settings.rank, settings.seed
        ).to(evaluator.device)
        self._lambdas = nn.Parameter(torch.full((len(vectors.layers), n), settings.start, device=evaluator.device))
        self._parameters = [self._lambdas, *self._personalisation.parameters()]
        self._optimizer = torch.optim.Adam(self._parameters, lr=settings.lr, betas=(0.9, 0.999))
        self._objectives = (_Distances if settings.data_free else _Entropies)(
            evaluator, vectors, self._personalisation.blocks, settings
        )

    @property
    def is_done(self) -> bool:
        """Whether all steps have been taken."""
        return bool(self.steps_done >= self.settings.steps)

    @property
    def lambdas(self) -> np.ndarray:
        """λ as learned so far, `L x N`."""
        lambdas: np.ndarray = self._lambdas.detach().cpu().double().numpy()
        return lambdas

    @property
    def personalisation(self) -> Personalisation:
        """A, B and G as learned so far, copied to the CPU."""
        return copy.deepcopy(self._personalisation).cpu().requires_grad_(requires_grad=False)

    def run(
        self,
        *,
        progress: Progress | None = None,
        cancel: Event | None = None,
        checkpoint: Path | None = None,
        report: Report | None = None,
    ) -> None:
        """Take all steps, going on from a checkpoint if there is one.

        Args:
            progress: Called with the number of steps done and their total after each.
            cancel: Set it to stop between two steps.
            checkpoint: Where all that resuming needs is kept every `SAVED_EVERY` seconds and at a stop.
            report: Called about `POINTS` times with how it goes, and before each checkpoint.

        Raises:
            Cancelled: Once ``cancel`` is set.
            CheckpointError: The checkpoint can't be read, or another training wrote it.
            MapMergeError: The device runs out of memory.
        """
        if checkpoint is not None and checkpoint.exists():
            self.resume(checkpoint)
        total = self.settings.steps
        meter, saved = _Meter(report), time.monotonic()
        while not self.is_done:
            stopped = cancel is not None and cancel.is_set()
            if stopped or (checkpoint is not None and time.monotonic() - saved >= SAVED_EVERY):
                # Reported first: points of steps that a kill takes back are reported again.
                meter.report(self.steps_done)
                if checkpoint is not None:
                    self.save(checkpoint)
                saved = time.monotonic()
            if stopped:
                raise Cancelled
            meter.add(*self.step())
            if self.steps_done % max(1, total // POINTS) == 0 or self.is_done:
                meter.report(self.steps_done)
            if progress:
                progress(self.steps_done, total)

    def seconds_per_step(self) -> float:
        """Return what a step takes, by taking a few; the first one, which prepares much, aside."""
        self.step()
        started = time.perf_counter()
        for _ in range(_TIMED):
            _, objective = self.step()
        float(objective)  # waits for the device
        return (time.perf_counter() - started) / _TIMED

    def step(self) -> tuple[Tensor, Tensor]:
        """Take one step.

        Returns:
            The N objectives before it, and the scalarised objective with its regularisers; both on the
            device, so that nobody waits for it.

        Raises:
            MapMergeError: The device runs out of memory.
        """
        settings = self.settings
        rng = np.random.default_rng([settings.seed, self.steps_done])
        concentration = np.full(len(self._vectors), settings.concentration)
        gamma = torch.from_numpy(rng.dirichlet(concentration)).float().to(self._evaluator.device)
        factors = [self._personalisation.factors(i, gamma) for i in range(len(self._personalisation.blocks))]
        with running_out_of_memory(self._evaluator, settings.batch_size):
            f, by_weights = self._objectives.of(self._lambdas, factors, lambda f: self._scalarised(f, gamma), rng)
            norm = (self._personalisation.squared_norm() + _TINY).sqrt()
            self._optimizer.zero_grad()
            (by_weights + settings.beta_norm * norm).backward()
            self._optimizer.step()
        self.steps_done += 1
        with torch.no_grad():
            return f, self._scalarised(f, gamma) + settings.beta_norm * norm

    def save(self, path: Path) -> None:
        """Write all that resuming needs, replacing the file as a whole.

        Raises:
            ExportError: It can't be written.
        """
        tensors = {f"parameter.{i}": parameter for i, parameter in enumerate(self._parameters)}
        for i, parameter in enumerate(self._parameters):
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        write_state(path, self._merge, self._vectors, tensors, steps_done=self.steps_done)

    def resume(self, path: Path) -> None:
        """Go on where `save` was called.

        Raises:
            CheckpointError: The file can't be read, or another training wrote it.
        """
        remedy = "delete it to start the training anew"
        header, tensors = read_state(path, self._merge, self._vectors, remedy=remedy)
        steps_done = header.get("steps_done")
        shapes = {f"parameter.{i}": parameter.shape for i, parameter in enumerate(self._parameters)}
        if not isinstance(steps_done, int) or any(
            name not in tensors or tensors[name].shape != shape for name, shape in shapes.items()
        ):
            raise CheckpointError(f"{path} was written by another training: {remedy}.")
        adam: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, i, what = name.split(".")
                adam.setdefault(int(i), {})[what] = tensor
        with torch.no_grad():
            for name, parameter in zip(shapes, self._parameters, strict=True):
                parameter.copy_(tensors[name])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": adam, "param_groups": groups})
        self.steps_done = steps_done

    def _scalarised(self, f: Tensor, gamma: Tensor) -> Tensor:
        s = self.settings
        aligned = s.beta_cos * alignment(f, gamma) if s.beta_cos else 0.0
        return scalarise(s.scalarisation, f, gamma, s.mu) - aligned


class _Meter:
    """Collects how steps go, on the device until somebody asks."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._started = time.perf_counter()

    def add(self, f: Tensor, objective: Tensor) -> None:
        if self._report:
            self._steps.append((f, objective))

    def report(self, step: int) -> None:
        """Report the means since the last time; waits for the device."""
        if not self._report or not self._steps:
            return
        f, objectives = (torch.stack(values).double() for values in zip(*self._steps, strict=True))
        mean_f, objective = f.mean(dim=0).cpu().numpy(), float(objectives.mean())
        now = time.perf_counter()
        self._report(TrainingPoint(step, objective, mean_f, now - self._started))
        self._steps, self._started = [], now


Factors = list[tuple[Tensor, Tensor]]


class _Entropies:
    """Mean entropies of the merged model's predictions on batches of each task's images."""

    def __init__(
        self, evaluator: Evaluator, vectors: TaskVectors, blocks: Sequence[Block], settings: ParetoMerging.Settings
    ) -> None:
        self._evaluator, self._vectors, self._blocks = evaluator, vectors, blocks
        self._batch_size, self._balance = settings.batch_size, settings.balance
        self._family = classifier_of(evaluator)
        tasks = [own_task(evaluator, model) for model in vectors.names]
        self._images = [self._family.images(task, "val") for task in tasks]
        # Once, for the tensors that are not merged; from then on the merged ones are written in place.
        vectors.merge_into(self._family.model_in(torch.float32), np.full(len(vectors), settings.start))
        self._family.merged(torch.float32)
        self._heads = [self._family.head(task) for task in tasks]

    def of(
        self, lambdas: Tensor, factors: Factors, scalarised: Callable[[Tensor], Tensor], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the N objectives, and a scalar with the gradients of ``scalarised`` of them."""
        model = self._family.model_in(torch.float32)
        leaves = merge_unrounded(model, self._vectors, lambdas)
        with torch.no_grad():
            for block, (left, right) in zip(self._blocks, factors, strict=True):
                block.of(leaves[block.tensor]).addmm_(left, right.T)
        batches = [self._batch(images, rng) for images in self._images]
        with mixed_precision(self._evaluator):
            logits = logits_of_tasks(self._family, self._heads, batches, leaves)
        f = torch.stack([self._objective(own) for own in logits])
        gradients = torch.autograd.grad(scalarised(f), list(leaves.values()), allow_unused=True)
        slopes = dict(zip(leaves, gradients, strict=True))
        by_weights = (lambdas * contract(self._vectors, slopes)).sum()
        return f.detach(), by_weights + _by_factors(self._blocks, factors, slopes)

    def _objective(self, logits: Tensor) -> Tensor:
        entropy = mean_entropy(logits)
        return entropy + self._balance * imbalance(logits) if self._balance else entropy

    def _batch(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        n = min(self._batch_size, len(images))
        drawn = torch.from_numpy(rng.choice(len(images), n, replace=False))
        return images[drawn.to(images.device)].to(self._evaluator.device)


def _by_factors(blocks: Sequence[Block], factors: Factors, slopes: Mapping[str, Tensor | None]) -> Tensor:
    """Return Σ <∂f/∂W, L Rᵀ>, whose gradients by what L and R are made of are f's, without a c x d matrix."""
    terms = []
    for block, (left, right) in zip(blocks, factors, strict=True):
        slope = slopes[block.tensor]
        if slope is not None:
            # The slope is a constant here, so that this holds also where both factors depend on parameters.
            terms.append(((block.of(slope) @ right) * left).sum())
    return torch.stack(terms).sum() if terms else torch.zeros(())


class _Distances:
    """Squared distances f_k = ‖θ − (θ_pre + K λ₀ V_k)‖² of the merged weights, in shares.

    Their equally weighted sum is what task arithmetic with the coefficient λ₀ minimises. They are divided by
    their mean at θ_pre, so that μ, β_cos and β_norm mean the same for models of every size. Gram matrices of
    the task vectors, computed once, spare making θ.
    """

    def __init__(
        self, evaluator: Evaluator, vectors: TaskVectors, blocks: Sequence[Block], settings: ParetoMerging.Settings
    ) -> None:
        del evaluator
        slots = [(slot, group) for group in vectors.groups for slot in group.slots]
        columns = [slot.columns(group.V).float() for slot, group in slots]
        self._grams = torch.stack([V @ V.T for V in columns])
        rows = {slot.name: i for i, (slot, _) in enumerate(slots)}
        self._rows = [rows[block.tensor] for block in blocks]
        self._V = [
            block.of(columns[i].view(len(vectors), *slots[i][0].shape))
            for block, i in zip(blocks, self._rows, strict=True)
        ]
        n = len(vectors)
        self._aims = n * settings.start * torch.eye(n, device=vectors.device)  # K λ₀ e_k, as coefficients
        total = self._grams.sum(dim=0).diagonal()
        self._scale = ((n * settings.start) ** 2 * total.mean()).clamp(min=torch.finfo(total.dtype).tiny)

    def of(
        self, lambdas: Tensor, factors: Factors, scalarised: Callable[[Tensor], Tensor], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the N objectives, and ``scalarised`` of them."""
        del rng
        away = lambdas[:, None] - self._aims  # L x K x N: θ − aim_k, in coefficients
        squares = torch.einsum("lkn,lnm,lkm->k", away, self._grams, away)
        for i, V, (left, right) in zip(self._rows, self._V, factors, strict=True):
            products = ((V @ right) * left).sum(dim=(-2, -1))  # <L Rᵀ, V_n>
            squares = squares + 2 * away[i] @ products + ((left.T @ left) * (right.T @ right)).sum()
        f = squares / self._scale
        return f.detach(), scalarised(f)
