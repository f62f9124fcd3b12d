"""Pareto Merging: learns from unlabelled images, or from weights alone, a model for every preference."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mapmerge_core.errors import Cancelled, CheckpointError, MapMergeError
from mapmerge_core.merges._pareto_set import ParetoSet, Personalisation, find_blocks
from mapmerge_core.merges._scalarisations import alignment, scalarise
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.merges._merged_gradients import (
    contract,
    imbalance,
    logits_of_tasks,
    mean_entropy,
    merge_unrounded,
    mixed_precision,
)
from mapmerge_core.merges._statistics import classifier_of, running_out_of_memory
from mapmerge_core.weights.export.writing import save_tensors
from mapmerge_core.weights.vectors.streamed import in_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from threading import Event

    from mapmerge_core.merges._pareto_set import Block
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.vectors.task_vectors import TaskVectors

# Added to ‖𝒲‖² under the root, whose slope is infinite at 0, where training starts.
_TINY = 1e-12
_STATE = "mapmerge-training"


def pareto_merge(
    evaluator: Evaluator,
    training: Training | None = None,
    *,
    seed: int = 0,
    cancel: Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ParetoSet:
    """Learns a Pareto set from start to end (Pareto Merging, Algorithm 1).

    With an evaluator on TIES-trimmed task vectors it is their Pareto Merging++.

    Args:
        evaluator: Whose task vectors, family and tasks to use; it measures as before afterwards. Images are
            those of the validation split; labels are never read.
        training: How, by default as in the paper.
        seed: Decides preferences, images and the start of A and B.
        cancel: Set it to stop between two steps.
        progress: Called with the number of steps done and their total after each.

    Raises:
        Cancelled: Once ``cancel`` is set.
        CheckpointError: There is nothing to personalise (see `find_blocks`).
        DatasetError: A dataset can't be read.
        MapMergeError: The family gives no logits and the training isn't data-free, the rank is too large,
            task vectors aren't in memory, or the device runs out of memory.
    """
    merging = ParetoMerging(evaluator, training, seed=seed)
    while not merging.is_done:
        if cancel and cancel.is_set():
            raise Cancelled
        merging.step()
        if progress:
            progress(merging.steps_done, merging.training.steps)
    return merging.pareto_set()


class ParetoMerging:
    """A training run, step by step; it can be kept and resumed, to the same end.

    A step merges θ(γ) into the family's own model, passes each task's images forward and the objective
    backward once, and contracts the gradient by the merged parameters to those by λ, A, B and G: besides the
    task vectors it needs memory for that one model, its gradient and the activations. What is drawn in a step
    depends on the seed and the step's number alone.

    Args:
        evaluator: As for `pareto_merge`.
        training: How.
        seed: Decides preferences, images and the start of A and B.
        structure: Makes what a preference adds to the base model, from blocks, K, rank and seed.

    Attributes:
        training: How it is trained.
        steps_done: Steps that were taken.

    Raises:
        CheckpointError, DatasetError, MapMergeError: As for `pareto_merge`.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        training: Training | None = None,
        *,
        seed: int = 0,
        structure: Callable[[Sequence[Block], int, int, int], Personalisation] = Personalisation,
    ) -> None:
        self.training = training = training or Training()
        self.seed, self.steps_done = seed, 0
        self._evaluator = evaluator
        self._vectors = vectors = in_memory(evaluator.vectors)
        n_tasks = len(vectors)
        self._personalisation = structure(
            find_blocks(vectors, training.personalised), n_tasks, training.rank, seed
        ).to(evaluator.device)
        self._lambdas = nn.Parameter(
            torch.full((len(vectors.layers), n_tasks), training.start, device=evaluator.device)
        )
        self._parameters = [self._lambdas, *self._personalisation.parameters()]
        self._optimizer = torch.optim.Adam(self._parameters, lr=training.lr, betas=(0.9, 0.999))
        self._objectives = (_Distances if training.data_free else _Entropies)(
            evaluator, vectors, self._personalisation.blocks, training
        )

    @property
    def is_done(self) -> bool:
        """Whether all steps have been taken."""
        return self.steps_done >= self.training.steps

    @property
    def n_extra(self) -> int:
        """Parameters that the low-rank tensors add."""
        return self._personalisation.n_parameters

    def step(self) -> tuple[Tensor, Tensor]:
        """Takes one step.

        Returns:
            The tasks' objectives (K,) before it, and the scalarised objective with its regularisers; both on
            the device, so that nobody waits for it.

        Raises:
            MapMergeError: The device runs out of memory.
        """
        training = self.training
        rng = np.random.default_rng([self.seed, self.steps_done])
        concentration = np.full(len(self._vectors), training.concentration)
        gamma = torch.from_numpy(rng.dirichlet(concentration)).float().to(self._evaluator.device)
        factors = [self._personalisation.factors(i, gamma) for i in range(len(self._personalisation.blocks))]
        with running_out_of_memory(self._evaluator, training.batch_size):
            f, by_weights = self._objectives.of(
                self._lambdas, factors, lambda f: self._scalarised(f, gamma), rng
            )
            norm = (self._personalisation.squared_norm() + _TINY).sqrt()
            self._optimizer.zero_grad()
            (by_weights + training.beta_norm * norm).backward()
            self._optimizer.step()
        self.steps_done += 1
        with torch.no_grad():
            return f, self._scalarised(f, gamma) + training.beta_norm * norm

    def pareto_set(self) -> ParetoSet:
        """What has been learned so far."""
        learned = copy.deepcopy(self._personalisation).cpu().requires_grad_(requires_grad=False)
        return ParetoSet(self._vectors, self._lambdas.detach().cpu().double().numpy(), learned)

    def save(self, path: Path) -> None:
        """Writes all that resuming needs, replacing the file as a whole.

        Raises:
            ExportError: It can't be written.
        """
        tensors = {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(self._parameters)}
        for i, parameter in enumerate(self._parameters):
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        beside = path.with_name(f".{path.name}.part")
        said = {"steps_done": self.steps_done, "seed": self.seed, "training": asdict(self.training)}
        save_tensors(
            beside, {name: tensor.cpu() for name, tensor in tensors.items()}, {_STATE: json.dumps(said)}
        )
        beside.replace(path)

    def resume(self, path: Path) -> None:
        """Goes on where `save` was called.

        Raises:
            CheckpointError: The file can't be read, or another training wrote it.
        """
        try:
            with safe_open(path, framework="pt") as file:
                said = json.loads((file.metadata() or {}).get(_STATE, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} can't be read ({error}): start the run anew.") from error
        steps_done = said.pop("steps_done", None) if isinstance(said, dict) else None
        mine = json.loads(json.dumps({"seed": self.seed, "training": asdict(self.training)}))
        shapes = [parameter.shape for parameter in self._parameters]
        found = [getattr(tensors.get(f"parameter.{i}"), "shape", None) for i in range(len(shapes))]
        if not isinstance(steps_done, int) or said != mine or found != shapes:
            raise CheckpointError(f"{path} was written by another training: start the run anew.")
        adam: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, i, what = name.split(".")
                adam.setdefault(int(i), {})[what] = tensor
        with torch.no_grad():
            for i, parameter in enumerate(self._parameters):
                parameter.copy_(tensors[f"parameter.{i}"])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": adam, "param_groups": groups})
        self.steps_done = steps_done

    def _scalarised(self, f: Tensor, gamma: Tensor) -> Tensor:
        training = self.training
        aligned = training.beta_cos * alignment(f, gamma) if training.beta_cos else 0.0
        return scalarise(training.scalarisation, f, gamma, training.mu) - aligned


Factors = list[tuple[Tensor, Tensor]]


class _Entropies:
    """Mean entropies of the merged model's predictions on batches of each task's images."""

    def __init__(
        self, evaluator: Evaluator, vectors: TaskVectors, blocks: Sequence[Block], training: Training
    ) -> None:
        self._evaluator, self._vectors, self._blocks = evaluator, vectors, blocks
        self._batch_size, self._balance = training.batch_size, training.balance
        if not evaluator.family.gives_logits:
            raise MapMergeError(
                "Pareto Merging learns from the logits of image classifiers: train data-free, or choose MAP."
            )
        missing = [name for name in vectors.names if name not in evaluator.tasks]
        if missing:
            raise MapMergeError(
                f"Pareto Merging needs unlabelled images of '{missing[0]}': add its dataset, or train "
                "data-free."
            )
        self._family = classifier_of(evaluator)
        self._images = {name: self._family.images(evaluator.tasks[name], "val") for name in vectors.names}
        # Once, for the tensors that are not merged; from then on the merged ones are written in place.
        vectors.merge_into(self._family.model_in(torch.float32), np.full(len(vectors), training.start))
        self._family.merged(torch.float32)
        self._heads = [self._family.head(evaluator.tasks[name]) for name in vectors.names]

    def of(
        self,
        lambdas: Tensor,
        factors: Factors,
        scalarised: Callable[[Tensor], Tensor],
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The objectives (K,), and a scalar with the gradients of ``scalarised`` of them."""
        model = self._family.model_in(torch.float32)
        leaves = merge_unrounded(model, self._vectors, lambdas)
        with torch.no_grad():
            for block, (left, right) in zip(self._blocks, factors, strict=True):
                block.of(leaves[block.tensor]).addmm_(left, right.T)
        batches = [self._batch(self._images[name], rng) for name in self._vectors.names]
        with mixed_precision(self._evaluator):
            logits = logits_of_tasks(self._family, self._heads, batches, leaves)
        f = torch.stack([self._objective(some) for some in logits])
        found = torch.autograd.grad(scalarised(f), list(leaves.values()), allow_unused=True)
        slopes = dict(zip(leaves, found, strict=True))
        by_weights = (lambdas * contract(self._vectors, slopes)).sum()
        return f.detach(), by_weights + _by_factors(self._blocks, factors, slopes)

    def _objective(self, logits: Tensor) -> Tensor:
        entropy = mean_entropy(logits)
        return entropy + self._balance * imbalance(logits) if self._balance else entropy

    def _batch(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        n = min(self._batch_size, len(images))
        some = torch.from_numpy(rng.choice(len(images), n, replace=False))
        return images[some.to(images.device)].to(self._evaluator.device)


def _by_factors(blocks: Sequence[Block], factors: Factors, slopes: Mapping[str, Tensor | None]) -> Tensor:
    """Σ <∂f/∂W, L Rᵀ>, whose gradients by what L and R are made of are f's own; no c x d matrix is made."""
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
        self, evaluator: Evaluator, vectors: TaskVectors, blocks: Sequence[Block], training: Training
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
        self._aims = n * training.start * torch.eye(n, device=vectors.device)  # K λ₀ e_k, as coefficients
        total = self._grams.sum(dim=0).diagonal()
        self._scale = ((n * training.start) ** 2 * total.mean()).clamp(min=torch.finfo(total.dtype).tiny)

    def of(
        self,
        lambdas: Tensor,
        factors: Factors,
        scalarised: Callable[[Tensor], Tensor],
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The objectives (K,), and ``scalarised`` of them."""
        del rng
        away = lambdas[:, None] - self._aims  # L x K x N: θ − aim_k, in coefficients
        squares = torch.einsum("lkn,lnm,lkm->k", away, self._grams, away)
        for i, V, (left, right) in zip(self._rows, self._V, factors, strict=True):
            products = ((V @ right) * left).sum(dim=(-2, -1))  # <L Rᵀ, V_n>
            squares = squares + 2 * away[i] @ products + ((left.T @ left) * (right.T @ right)).sum()
        f = squares / self._scale
        return f.detach(), scalarised(f)
