"""Zero-shot heads, each computed once: in memory, and on disk where many prompts make it."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mapmerge_core.tasks.datasets import cache_folder
from mapmerge_core.tasks.datasets.base import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from mapmerge_core.tasks.datasets import ImageDataset

WORTH_KEEPING = 32
"""Prompts from which on a head is kept on disk: for fewer, telling text towers apart takes as long."""


class Heads:
    """The heads that one text tower makes.

    Args:
        what: Tells the library and the text tower's settings from others.
        tokens: Turns prompts into the numbers that the text tower gets for them.
        model: The model that it is part of.
        others: Prefixes of all other tensors' names; the text tower's never change.
    """

    def __init__(
        self,
        what: str,
        tokens: Callable[[list[str]], Tensor],
        model: nn.Module,
        others: tuple[str, ...],
    ) -> None:
        # Not the model itself, which heads shall not keep in memory.
        self._what, self._tokens, self._model, self._others = what, tokens, weakref.ref(model), others
        self._digest = ""
        self._heads: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    def get(self, dataset: ImageDataset, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """Return the head of a dataset's class names and templates, d x classes, float32.

        Args:
            dataset: The dataset.
            device: Where the head is used; what is kept on disk was computed on a device of its kind.
            make: Computes the head on that device.
        """
        key = (dataset.class_names, dataset.templates)
        if key not in self._heads:
            if len(dataset.class_names) * len(dataset.templates) < WORTH_KEEPING:
                self._heads[key] = make()
            else:
                self._heads[key] = self._kept(key, device, make)
        return self._heads[key]

    def clear(self) -> None:
        """Forgets those in memory."""
        self._heads.clear()

    def _kept(
        self, key: tuple[tuple[str, ...], tuple[str, ...]], device: torch.device, make: Callable[[], Tensor]
    ) -> Tensor:
        names, templates = key
        tokens = self._tokens([template.format(name) for name in names for template in templates])
        counts, told = f"{len(names)} x {len(templates)}", tokens.numpy().tobytes()
        file_key = key_of(self._what, self._told_tower(), counts, told, device.type, torch.__version__)
        path = cache_folder() / "heads" / f"{file_key}.npy"
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            kept = np.load(path, allow_pickle=False)
            if kept.dtype == np.float32 and kept.ndim == 2 and kept.shape[1] == len(names):
                return torch.from_numpy(kept).to(device)
        head = make()
        # Where it can't be written it is computed anew next time.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
                part = Path(file.name)
                try:
                    np.save(file, head.cpu().numpy())
                    file.close()
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
        return head

    def _told_tower(self) -> str:
        """The digest of the text tower's tensors."""
        if not self._digest:
            model, digest = self._model(), hashlib.sha256()
            assert model is not None  # noqa: S101 - somebody asks for its head
            for name, tensor in sorted(model.state_dict().items()):
                if not name.startswith(self._others):
                    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                    digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._digest = digest.hexdigest()
        return self._digest
