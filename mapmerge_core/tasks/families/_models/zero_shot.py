"""What CLIP models of all libraries share: heads made of prompts, and cosine similarities as logits."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mapmerge_core.files import write_atomically
from mapmerge_core.tasks.datasets import cache_folder
from mapmerge_core.tasks.datasets.base import key_of
from mapmerge_core.tasks.families._models.building import narrow_copy
from mapmerge_core.tasks.families._models.images import ImageClassifier

if TYPE_CHECKING:
    from mapmerge_core.tasks.task import Task

WORTH_KEEPING = 32
"""Prompts from which on a head is kept on disk: for fewer, telling text towers apart takes as long."""


class ZeroShot(ImageClassifier):
    """A model that classifies images by the prompt whose text embedding is nearest.

    Heads come from the text tower, which is never merged, so that each is computed once: in memory, and on
    disk where it is made of many prompts.

    Attributes:
        model: The model in float32, in eval mode.
        vision: Prefixes of the names of all tensors that see images; the others are the text tower's.
    """

    model: Any
    vision: ClassVar[tuple[str, ...]]
    _text_key: str
    """Tells the library and the text tower's settings from others."""

    @abstractmethod
    def _tokens(self, prompts: list[str]) -> Tensor:
        """Return the token numbers of prompts, n x length."""

    @abstractmethod
    def _text_head(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return the normalised mean of the normalised prompts of each class, d x classes, float32."""

    @abstractmethod
    def _features(self, model: Any, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        """Return the embeddings (n x d) of normalised images.

        Args:
            model: `model`, or its narrow copy.
            images: n x 3 x height x width, in the model's dtype.
            parameters: Tensors to use in the place of its own, by their names within `part`; may be empty.
        """

    def to(self, device: torch.device | str) -> None:
        super().to(device)
        self._heads: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}
        self._narrow: nn.Module | None = None

    def model_in(self, dtype: torch.dtype) -> nn.Module:
        """Return the model to merge into for ``dtype``: `model` for float32, a copy of it for bfloat16."""
        if dtype == torch.float32:
            model: nn.Module = self.model
            return model
        if self._narrow is None:
            self._narrow = narrow_copy(self.model, dtype, self.vision)
        return self._narrow

    def prepare(self, task: Task, split: str) -> None:
        super().prepare(task, split)
        self.head(task)

    @torch.no_grad()
    def head(self, task: Task) -> Tensor:
        """Return the task's head, d x classes, float32: the normalised mean of its normalised prompts."""
        dataset = self.dataset(task)
        names, templates = dataset.class_names, dataset.templates
        if (names, templates) not in self._heads:
            is_large = len(names) * len(templates) >= WORTH_KEEPING
            self._heads[names, templates] = (self._kept_head if is_large else self._text_head)(names, templates)
        return self._heads[names, templates]

    def logits(self, batch: Tensor, task: Task, dtype: torch.dtype) -> Tensor:
        """Classify prepared images with the model as it was last merged for ``dtype``.

        Args:
            batch: Prepared images, n x 3 x height x width.
            task: Whose head to use.
            dtype: float32 or bfloat16; normalisation and the head are in float32 always.

        Returns:
            Cosine similarities times the model's own logit scale, n x classes, float32.
        """
        features = self._features(self.model_in(dtype), self.normalise(batch).to(dtype), {})
        return self._scaled_cosines(features, self.head(task))

    def class_logits(self, batch: Tensor, head: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        own = {
            name.removeprefix(self.part): tensor for name, tensor in parameters.items() if name.startswith(self.part)
        }
        return self._scaled_cosines(self._features(self.model, self.normalise(batch), own), head)

    def _scaled_cosines(self, features: Tensor, head: Tensor) -> Tensor:
        scale: Tensor = self.model.logit_scale.exp()
        return scale * (functional.normalize(features.float(), dim=-1) @ head)

    def _kept_head(self, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        """Return a head from disk, or compute it and keep it there for models with the same text tower."""
        tokens = self._tokens([template.format(name) for name in names for template in templates])
        counts, device = f"{len(names)} x {len(templates)}", self.device.type
        text_tower = self._text_digest()
        key = key_of(self._text_key, text_tower, counts, tokens.numpy().tobytes(), device, torch.__version__)
        path = cache_folder() / "heads" / f"{key}.npy"
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            kept = np.load(path, allow_pickle=False)
            if kept.dtype == np.float32 and kept.ndim == 2 and kept.shape[1] == len(names):
                return torch.from_numpy(kept).to(self.device)
        head = self._text_head(names, templates)
        # Where it can't be written it is computed anew next time.
        with suppress(OSError), write_atomically(path) as part, part.open("wb") as file:
            np.save(file, head.cpu().numpy())
        return head

    def _text_digest(self) -> str:
        """Return the digest of the text tower's tensors."""
        if not hasattr(self, "_digest"):
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.state_dict().items()):
                if not name.startswith(self.vision):
                    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                    digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._digest = digest.hexdigest()
        return self._digest
