"""The models of the rows about speed: a ViT-B/32 vision tower with random weights, and eight beside it."""

from __future__ import annotations

from functools import cache

import open_clip
import torch
from torch import Tensor, nn

from mapmerge_core.weights.vectors.task_vectors import TaskVectors

N_MODELS = 8
ARCHITECTURE = "ViT-B-32"
STEP = 1e-2
"""How far "fine-tuned" weights are from the pre-trained ones, in their standard deviations."""


def tower() -> nn.Module:
    """A new tower of 88 million parameters, by its seed always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE)).visual
    return made.eval().requires_grad_(requires_grad=False)


def finetuned(pretrained: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights beside the pre-trained ones."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: tensor + STEP * torch.randn(tensor.shape, generator=draw) * (tensor.std() if tensor.ndim > 1 else 1)
        for name, tensor in pretrained.items()
    }


@cache
def vectors(*, rounded: bool = False) -> TaskVectors:
    """The task vectors of eight models, in float32 or in bfloat16; made once for all rows."""
    pretrained = dict(tower().state_dict())
    models = {f"model {n}": finetuned(pretrained, n) for n in range(1, N_MODELS + 1)}
    return TaskVectors.from_state_dicts(pretrained, models, rounded=rounded)
