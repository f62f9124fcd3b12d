"""Models of transformers from their folders, built to be merged into; no code from a folder is ever run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from mapmerge_core.errors import CheckpointError, MapMergeError, reason_of
from mapmerge_core.weights.io.checkpoints import open_state_dict
from mapmerge_core.weights.io.checks import Described, describe
from mapmerge_core.weights.io.keys import is_constant

# Its verbosity is the whole process's.
_ONE_AT_A_TIME = RLock()


def read_config(folder: Path) -> PreTrainedConfig:
    """Read a folder's ``config.json``.

    Raises:
        CheckpointError: It is missing or no configuration, or transformers doesn't know such models.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder: choose a model's whole folder, with its config.json and what it reads "
            "its inputs by."
        )
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder / 'config.json'} can't be read ({error.strerror}): choose a folder that transformers wrote."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not a configuration in JSON.") from error
    kind = written.get("model_type") if isinstance(written, dict) else None
    if kind not in CONFIG_MAPPING:
        if isinstance(written, dict) and "auto_map" in written:
            raise CheckpointError(
                f"The model in {folder} needs Python code of its own, which is never run here: choose one of "
                "an architecture that transformers brings."
            )
        raise CheckpointError(
            f"transformers knows no models of the type '{kind}' that {folder / 'config.json'} names: check "
            "it, or update transformers."
        )
    with reading("the configuration", folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # Settings of whoever saved it, not of the model; they may name code on a hub, to be fetched and run.
    config._attn_implementation = None  # noqa: SLF001 - there is no public way
    config._experts_implementation = None  # noqa: SLF001
    return config


@contextmanager
def reading(what: str, folder: Path) -> Iterator[None]:
    """Quieten transformers, and turn whatever a damaged folder makes it raise into one sentence.

    Raises:
        CheckpointError: Instead of transformers' errors.
    """
    with _ONE_AT_A_TIME:
        verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        except (MapMergeError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # tokenizers raises nothing more special
            raise CheckpointError(f"transformers can't read {what} in {folder}: {reason_of(error)}.") from error
        finally:
            logging.set_verbosity(verbosity)
            if has_bars:
                logging.enable_progress_bar()


def read_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """Read a folder's tokenizer.

    Args:
        folder: The folder.
        vocabulary: How many tokens its model knows.

    Raises:
        CheckpointError: There is none, or it is another model's.
    """
    with reading("a tokenizer", folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    # Where files are missing, some of transformers' tokenizers know nothing and don't say so. A few tokens
    # fewer than the model's are usual: embeddings are padded to round sizes.
    if len(tokenizer) < vocabulary / 2:
        raise CheckpointError(
            f"The tokenizer in {folder} has {len(tokenizer):,} tokens where the model knows {vocabulary:,}: "
            "add the model's own tokenizer files to the folder."
        )
    return tokenizer


def check_tokens(tokens: Tensor, folder: Path, vocabulary: int) -> None:
    """Refuse tokens (integers) that a model has no embedding of.

    Raises:
        CheckpointError: There is one.
    """
    if int(tokens.max()) >= vocabulary:
        raise CheckpointError(
            f"The tokenizer in {folder} gives tokens that its model lacks, which knows {vocabulary:,}: "
            "replace its files by those of the model's own tokenizer."
        )


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A model whose checkpoint is known to fit, and that isn't built yet.

    Attributes:
        folder: Holds its ``config.json`` and its checkpoint.
        skeleton: The model without numbers.
        prefix: What its names have in front of the checkpoint's: ``""``, or that of the model's body where
            the checkpoint holds the body alone and all else is tied to it, as GPT-2's does.
        constants: What the checkpoint holds besides, which older versions of transformers stored.
    """

    folder: Path
    skeleton: PreTrainedModel
    prefix: str
    constants: Mapping[str, Described]

    @classmethod
    def draw(cls, folder: Path, make: Callable[[PreTrainedConfig], PreTrainedModel]) -> Blueprint:
        """Compare a folder's checkpoint with its configuration by names and shapes.

        Args:
            folder: The folder.
            make: Makes a model of a configuration.

        Raises:
            CheckpointError: The folder can't be read, or the two don't fit each other.
        """
        config = read_config(folder)
        if getattr(config, "quantization_config", None):
            raise CheckpointError(
                f"The model in {folder} is quantized and can't be merged: choose it in full precision."
            )
        with reading("a model", folder), torch.device("meta"):
            skeleton = make(config)
        stored = describe(open_state_dict(folder))
        expected = skeleton.state_dict(keep_vars=True)
        prefix = max(
            ("", f"{skeleton.base_model_prefix}."), key=lambda start: sum(start + name in expected for name in stored)
        )
        if problem := _problem(expected, stored, prefix):
            raise CheckpointError(f"The checkpoint in {folder} does not fit its config.json: it {problem}.")
        constants = {name: tensor for name, tensor in stored.items() if prefix + name not in expected}
        return cls(folder, skeleton, prefix, constants)

    @property
    def n_parameters(self) -> int:
        """Return how many parameters the model has."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def build(self, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
        """Build the model on the CPU, in eval mode, without gradients.

        Args:
            dtype: Of its parameters.
            weights: The checkpoint's tensors; if None, parameters hold arbitrary numbers until a merge is
                written, which spares reading them.

        Raises:
            CheckpointError: transformers can't build it.
        """
        expected = self.skeleton.state_dict(keep_vars=True)
        if weights is None:
            once = {id(tensor): (name, tensor) for name, tensor in expected.items()}.values()
            tensors = {
                name: torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in once
            }
        else:
            tensors = {self.prefix + name: weights[name] for name in weights if name not in self.constants}
        with reading("a model", self.folder):
            model: PreTrainedModel = type(self.skeleton).from_pretrained(
                None, config=self.skeleton.config, state_dict=tensors, dtype=dtype
            )
        model.eval().requires_grad_(requires_grad=False)
        return model

    def part_of(self, model: PreTrainedModel) -> nn.Module:
        """Return the part of a built model whose names are the checkpoint's."""
        part: nn.Module = model.get_submodule(self.prefix.removesuffix("."))
        return part


def _problem(expected: Mapping[str, Tensor], stored: Mapping[str, Described], prefix: str) -> str:
    """Return what keeps tensors from being those of a model, within a sentence, or ``""``."""
    given = {id(expected[prefix + name]) for name in stored if prefix + name in expected}
    for name, tensor in expected.items():
        if id(tensor) not in given:  # those that are tied to others may be left out
            return f"lacks the tensor '{name}'"
    for name, (shape, _) in stored.items():
        wanted = expected.get(prefix + name)
        if wanted is not None and wanted.shape != shape:
            return f"holds '{name}' with shape {tuple(shape)} where the model has {tuple(wanted.shape)}"
        if wanted is None and not is_constant(name):
            return f"holds the tensor '{name}', which the model lacks"
    return ""
