"""The model: an open_clip CLIP, trained on a compact vocabulary and published with the full one."""

import copy
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize, pad

CONFIG = Path(__file__).resolve().parents[1] / "mapmerge-zoo.json"
EMBEDDING = "token_embedding.weight"
MEAN = torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1)


class Words:
    """Captions as ids of a compact vocabulary: the tokens in use, in the order of open_clip's own ids.

    The order matters: the text tower reads its output at the largest id, which stays the end-of-text token.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self._tokenizer = SimpleTokenizer(context_length=read_config()["text_cfg"]["context_length"])
        padding = torch.zeros(1, dtype=torch.long)
        self.used = torch.cat([padding, self._tokenizer(list(captions)).flatten()]).unique()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Compact ids (n, context length) of captions made of known words."""
        return torch.searchsorted(self.used, self._tokenizer(list(captions)))

    def expand(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the embedding's rows where open_clip's tokenizer expects them.

        Rows of tokens that no caption uses are zero: they were never trained, carry no noise, and compress.
        """
        compact = state[EMBEDDING]
        full = compact.new_zeros(read_config()["text_cfg"]["vocab_size"], compact.shape[1])
        full[self.used] = compact
        return {**state, EMBEDDING: full}

    def shrink(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `expand`."""
        return {**state, EMBEDDING: state[EMBEDDING][self.used]}


def read_config() -> dict:
    """The published open_clip configuration."""
    return json.loads(CONFIG.read_text())


def create(words: Words, seed: int) -> CLIP:
    """An untrained model over the compact vocabulary, the same for the same seed."""
    config = copy.deepcopy(read_config())
    config["text_cfg"]["vocab_size"] = len(words.used)
    torch.manual_seed(seed)  # open_clip initialises from torch's global generator
    return CLIP(**config)


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is left of a state dict after publishing in float16, in float32."""
    return {name: tensor.half().float() for name, tensor in state.items()}


def prepare(images: np.ndarray | Tensor) -> Tensor:
    """uint8 images (n, 32, 32) or (n, 32, 32, 3) as open_clip's own evaluation transform gives them."""
    pixels = torch.as_tensor(images)
    if pixels.ndim == 3:
        pixels = pixels[..., None].expand(-1, -1, -1, 3)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def shift(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Move each image (n, 3, H, W) by up to `reach` pixels along each axis, repeating its edge."""
    n, channels, height, width = images.shape
    padded = pad(images, (reach,) * 4, mode="replicate")
    rows, columns = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=generator)
    rows, columns = rows + torch.arange(height), columns + torch.arange(width)
    every = torch.arange(n).view(n, 1, 1, 1), torch.arange(channels).view(1, channels, 1, 1)
    return padded[*every, rows[:, None, :, None], columns[:, None, None, :]]


def features(visual: torch.nn.Module, pixels: Tensor, batch: int = 500) -> Tensor:
    """Unit features (n, d) of prepared images, in bfloat16 arithmetic."""
    visual.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return torch.cat([normalize(visual(part).float(), dim=-1) for part in pixels.split(batch)])


def text_head(model: CLIP, words: Words, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Zero-shot weights (classes, d): for each class the mean of its prompts' unit features, made unit."""
    model.eval()
    with torch.no_grad():
        rows = [normalize(model.encode_text(words(group)), dim=-1).mean(0) for group in prompts]
        return normalize(torch.stack(rows), dim=-1)


def accuracy(visual: torch.nn.Module, pixels: Tensor, labels: Tensor, head: Tensor) -> float:
    """Share of images whose most similar class is the right one."""
    return float((features(visual, pixels) @ head.T).argmax(-1).eq(labels).float().mean())


def training_attention() -> AbstractContextManager:
    """Attention by plain matrix products.

    The backward pass of PyTorch's fused bfloat16 kernel is slow on CPU: at 17 tokens it took most of a step.
    """
    return sdpa_kernel(SDPBackend.MATH)
