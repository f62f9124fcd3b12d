"""Causal language models of transformers, measured by their loss on text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from mapmerge_core.errors import DatasetError, MapMergeError
from mapmerge_core.tasks.datasets import open_texts
from mapmerge_core.tasks.families._models.transformers_folder import Blueprint, check_tokens, read_tokenizer
from mapmerge_core.tasks.families.language import Language
from mapmerge_core.tasks.metrics.base import Metric, Observer, Predictions, Score

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.task import Task

_BLOCK = 1024

# A batch has at most so many tokens, and fewer where their logits (float32, as wide as the vocabulary) would
# take more than so many bytes; losses are computed from pieces of the logits.
_BATCH_TOKENS = 8192
_LOGITS_BYTES, _PIECE_BYTES = 1 << 30, 1 << 27

# Models of up to so many parameters are held in both dtypes at once, larger ones in the last one asked for.
_HELD_TWICE = 500_000_000

_TEXTS_AT_A_TIME = 64


class CausalLanguageModel(Language):
    """A causal language model of transformers, with its tokenizer; all its parameters are merged.

    The texts of a split are tokenized without special tokens, in their order; each is followed by the
    tokenizer's end-of-text token if it has one. The tokens are packed into blocks, across texts, up to a
    budget, and the last block is dropped if it is not full, unless it is the only one. No block sees
    another's tokens, and the first token of each is not predicted.

    An example is a block, and its loss is the mean negative log-likelihood, in nats, of its predicted tokens;
    so every token counts the same, whatever text it is in.

    Models are built when they are first merged into. Of those with more than 500 million parameters only the
    one in the dtype that was last asked for is held, so that a bfloat16 model leaves before its float32
    version comes; building one again takes seconds.

    Args:
        architecture: "": the folder says what the model is.
        pretrained: The model's folder, with ``config.json``, its checkpoint and its tokenizer. Python code in
            it is never run.
        settings: How many tokens are measured at once, and in all.

    Raises:
        CheckpointError: The folder can't be read, or its checkpoint doesn't fit its configuration.
        MapMergeError: An architecture is given, or the blocks are longer than the model's context.
    """

    def __init__(self, architecture: str, pretrained: Path, settings: Language.Settings | None = None) -> None:
        if architecture:
            raise MapMergeError(
                f"A language model's folder says what it is: leave the architecture '{architecture}' out."
            )
        settings = settings or self.Settings()
        self._folder = Path(pretrained)
        self._blueprint = blueprint(self._folder)
        config = self._blueprint.skeleton.config.get_text_config()
        self._vocabulary: int = config.vocab_size
        self._tokenizer = read_tokenizer(self._folder, self._vocabulary)
        context: int | None = getattr(config, "max_position_embeddings", None)
        self._block = settings.block or min(_BLOCK, context or _BLOCK)
        if context and self._block > context:
            raise MapMergeError(
                f"Blocks of {self._block} tokens are longer than the {context} that this model can see: "
                "choose a smaller 'block'."
            )
        self._tokens = settings.tokens
        self._models: dict[torch.dtype, PreTrainedModel] = {}
        self._blocks: dict[tuple[DataSource, str], Tensor] = {}

    def to(self, device: torch.device | str) -> None:
        """Build models on ``device`` from now on."""
        self.device = torch.device(device)
        self._models.clear()

    def model_in(self, dtype: torch.dtype) -> nn.Module:
        """Return the module to merge into for ``dtype``, float32 or bfloat16, on `device`.

        Raises:
            CheckpointError: transformers can't build it.
        """
        return self._blueprint.part_of(self._model(dtype))

    def prepare(self, task: Task, split: str) -> None:
        """Read the split and tokenize it (see `Family.prepare`).

        Raises:
            DatasetError: It can't be read, or holds no two tokens.
        """
        self._tokenized(task, split)

    def n_examples(self, task: Task, split: str) -> int:
        return len(self._tokenized(task, split))

    def at_once(self, task: Task, split: str, batch_size: int) -> int:
        """Return how many blocks pass together: fewer where they are long or the vocabulary is large."""
        tokens = min(_BATCH_TOKENS, _LOGITS_BYTES // (4 * self._vocabulary))
        return max(1, min(batch_size, tokens // self._tokenized(task, split).shape[1]))

    @torch.inference_mode()
    def measure(
        self, task: Task, split: str, dtype: torch.dtype, batch_size: int, examples: NDArray[np.intp] | None = None
    ) -> Mapping[Metric, Score]:
        """Measure a split's blocks (see `Family.measure`); losses are computed in float32 always."""
        blocks, model = self._tokenized(task, split), self._model(dtype)
        if examples is not None:
            blocks = blocks[torch.from_numpy(examples)]
        observer, start = Observer(task.metrics, len(blocks)), 0
        for batch in blocks.split(self.at_once(task, split, batch_size)):
            losses = _losses(model, batch.to(self.device)).mean(dim=1)
            observer.add(start, Predictions(losses=losses))
            start += len(batch)
        return observer.scores(np.empty(0, np.int64))

    def _model(self, dtype: torch.dtype) -> PreTrainedModel:
        if dtype not in self._models:
            if self._blueprint.n_parameters > _HELD_TWICE:
                self._models.clear()
            model = self._blueprint.build(dtype)
            nn.Module.to(model, self.device)
            self._models[dtype] = model
        return self._models[dtype]

    def _tokenized(self, task: Task, split: str) -> Tensor:
        """Return a split's tokens, int64, blocks x tokens of a block, on the CPU."""
        key = (task.source, split)
        if key not in self._blocks:
            stream = self._stream(open_texts(task.source).texts(split))
            if len(stream) < 2:
                raise DatasetError(
                    f"The split '{split}' of {task.source.path} holds no two tokens: a language model's loss "
                    "needs some text."
                )
            check_tokens(stream, self._folder, self._vocabulary)
            n, block = len(stream) // self._block, self._block
            self._blocks[key] = stream[: n * block].view(n, block) if n else stream[None]
        return self._blocks[key]

    def _stream(self, texts: Iterable[str]) -> Tensor:
        """Return the first tokens of all texts, int64, as many as may be measured."""
        end = self._tokenizer.eos_token_id
        stream: list[int] = []
        rest = iter(texts)
        while len(stream) < self._tokens and (batch := list(islice(rest, _TEXTS_AT_A_TIME))):
            rows = self._tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]
            for row in rows:
                stream += [*row, end] if row and end is not None else row
        return torch.tensor(stream[: self._tokens], dtype=torch.int64)


def blueprint(folder: Path) -> Blueprint:
    """Return the causal language model of a folder, not built yet.

    Raises:
        CheckpointError: The folder can't be read, or its checkpoint doesn't fit its configuration.
    """
    return Blueprint.draw(
        Path(folder), lambda config: AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    )


def _losses(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    """Return each token's negative log-likelihood given those before it, float32, n x (tokens - 1)."""
    logits = model(input_ids=blocks, use_cache=False).logits
    rows = max(1, _PIECE_BYTES // (4 * logits.shape[-1]))
    losses = torch.empty(blocks[:, 1:].shape, dtype=torch.float32, device=blocks.device)
    for own, targets, of_block in zip(logits[:, :-1], blocks[:, 1:], losses, strict=True):
        for start in range(0, len(targets), rows):
            piece = slice(start, start + rows)
            of_block[piece] = functional.cross_entropy(own[piece].float(), targets[piece], reduction="none")
    return losses
