"""Small causal language models: one pre-trained on all languages, and one fine-tuned for each translation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.language.corpus import END, ENGLISH, LANGUAGES, Language, documents

VOCABULARY = 3072
BLOCK = 128
"""Tokens of a sequence, in training and in the study."""
TEST_TOKENS = 32_768
"""Tokens of a language that a loss is measured on, in the table and in the study."""
_BATCH = 8
_WARM_UP = 50
_PRE_TRAINING = {ENGLISH.code: 0.4}
"""Shares of the languages in pre-training; the others divide the rest equally."""
_PRE_TRAINING_RATE, _FINE_TUNING_RATE = 3e-3, 4e-4
"""Peak learning rates; the further fine-tuning moves, the worse merges of several languages are."""


def stream(file: Path, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """A file's documents as one row of tokens, each followed by the end token, int64 (n,)."""
    end = tokenizer.vocab[END]
    rows = tokenizer(documents(file), add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array([*row, end], dtype=np.int64) for row in rows])


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A Llama of 2.4 million parameters, at random."""
    torch.manual_seed(seed)
    end = tokenizer.vocab[END]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=2 * BLOCK,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def pre_train(
    model: PreTrainedModel,
    texts: Mapping[str, np.ndarray],
    steps: int,
    seed: int,
    report: Callable[[int, int], object] | None = None,
) -> float:
    """Trains a model on English and a little of each other language.

    Args:
        model: The model; it is changed.
        texts: The tokens of each language's training text, by code.
        steps: How many steps of 1,024 tokens.
        seed: Decides which sequences are drawn.
        report: Called with the steps done and all.

    Returns:
        Mean loss over the last tenth of the steps.
    """
    rest = (1 - sum(_PRE_TRAINING.values())) / (len(texts) - len(_PRE_TRAINING))
    shares = [_PRE_TRAINING.get(code, rest) for code in texts]
    return _train(model, list(texts.values()), shares, _PRE_TRAINING_RATE, steps, seed, report)


def fine_tune(
    model: PreTrainedModel, text: np.ndarray, steps: int, seed: int, report: Callable[[int, int], object] | None = None
) -> float:
    """Trains a pre-trained model on one language; the arguments and the result are those of ``pre_train``."""
    return _train(model, [text], [1.0], _FINE_TUNING_RATE, steps, seed, report)


@torch.inference_mode()
def loss(model: PreTrainedModel, tokens: np.ndarray) -> float:
    """Mean loss a token, in nats, over sequences of ``BLOCK`` tokens from the start of a text.

    Args:
        model: The model.
        tokens: The text's tokens, (n,); at most the first ``TEST_TOKENS`` count.
    """
    model.eval()
    n = min(len(tokens), TEST_TOKENS) // BLOCK
    blocks = torch.from_numpy(tokens[: n * BLOCK].reshape(n, BLOCK))
    total = sum(float(model(input_ids=part, labels=part).loss) * len(part) for part in blocks.split(32))
    return total / n


def losses(folder: Path, models: Sequence[str], tests: Mapping[str, np.ndarray]) -> list[list[float]]:
    """Loss of each model on each test text, models x languages.

    Args:
        folder: Folder of the models' folders.
        models: Their names.
        tests: The tokens of each language's test text.
    """
    table = []
    for name in models:
        model = load(folder / name)
        table.append([loss(model, tokens) for tokens in tests.values()])
    return table


def load(folder: Path) -> PreTrainedModel:
    """A saved model, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def streams(text: Path, split: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, np.ndarray]:
    """The tokens of a split of every language, by the language's code."""
    return {one.code: stream(_file(text, one, split), tokenizer) for one in LANGUAGES}


def _file(text: Path, language: Language, split: str) -> Path:
    return text / language.code / f"{split}.txt"


def _train(
    model: PreTrainedModel,
    texts: Sequence[np.ndarray],
    shares: Sequence[float],
    rate: float,
    steps: int,
    seed: int,
    report: Callable[[int, int], object] | None,
) -> float:
    """AdamW with a warm-up and a cosine down to nothing, on sequences from random places of the texts."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    model.train()
    last = []
    for step in range(steps):
        drawn = [texts[k] for k in rng.choice(len(texts), _BATCH, p=shares)]
        starts = [int(rng.integers(len(text) - BLOCK)) for text in drawn]
        rows = [text[start : start + BLOCK] for text, start in zip(drawn, starts, strict=True)]
        batch = torch.from_numpy(np.stack(rows))
        value = model(input_ids=batch, labels=batch).loss
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step >= steps - max(1, steps // 10):
            last.append(float(value.detach()))
        if report is not None:
            report(step + 1, steps)
    return float(np.mean(last))
