"""A family of one's own: small networks for regression, measured on arrays."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from sklearn.metrics import r2_score
from torch import nn

from mapmerge_core.tasks.families.base import Family, Scores
from mapmerge_core.tasks.metric import LOSS, Metric

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.tasks.task import Task

R2 = Metric("R²", maximize=True, high=1.0)


class Regression(Family):
    """Networks of linear layers, measured on ``val_x`` and ``val_y``, ``test_x`` and ``test_y`` of a file.

    Args:
        architecture: Widths of the layers, such as ``"8-32-1"``.
        pretrained: Not needed: each merge brings all numbers.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, R2)

    def __init__(self, architecture: str, pretrained: Path) -> None:  # noqa: ARG002
        widths = [int(width) for width in architecture.split("-")]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1]).eval()
        self._arrays: dict[tuple[str, str], tuple[torch.Tensor, np.ndarray]] = {}

    def model_in(self, dtype: torch.dtype) -> nn.Module:  # noqa: ARG002 - so small that float32 is fast enough
        return self.model

    def prepare(self, task: Task, split: str) -> None:
        if (task.name, split) not in self._arrays:
            with np.load(task.source.path) as arrays:
                x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
            self._arrays[task.name, split] = torch.from_numpy(x).to(self.device), y

    @torch.inference_mode()
    def measure(self, task: Task, split: str, dtype: torch.dtype, batch_size: int) -> Scores:  # noqa: ARG002
        x, y = self._arrays[task.name, split]
        found = torch.cat([self.model(batch)[:, 0] for batch in x.split(batch_size)]).cpu().numpy()
        errors = (found - y) ** 2
        return Scores(float(errors.mean()) if task.metric == LOSS else r2_score(y, found), errors)
