"""Folders as people have them: checkpoints with images in folders of their classes, and language models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def make_loose_folder(zoo: Path, folder: Path, tasks: tuple[str, ...] = ("Colours", "Stripes")) -> Path:
    """Converts a zoo of the demo zoo's format: no manifest, no .npz."""
    (folder / "models").mkdir(parents=True)
    for name in ("pretrained", *tasks):
        shutil.copy(zoo / f"{name}.safetensors", folder / "models" / f"clip_{name.lower()}.safetensors")
    shutil.copy(zoo / "tiny-clip.json", folder / "tiny-clip.json")
    for task in tasks:
        with np.load(zoo / f"{task}.npz") as data:
            for split in ("val", "test"):
                labels = data[f"{split}_labels"]
                for number, (image, label) in enumerate(zip(data[f"{split}_images"], labels, strict=True)):
                    place = folder / "data" / task.lower() / split / str(data["class_names"][label])
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image).save(place / f"{number:03}.png")
    return folder


WORDS = ("the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "and", "then", "slept")


def make_language_folder(folder: Path) -> Path:
    """A tiny language model with two that differ a little from it, and a text for each."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("<unk>", "</s>", *WORDS))}
    special = {"unk_token": "<unk>", "eos_token": "</s>"}
    plain = Tokenizer(models.WordLevel(words, special["unk_token"]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        pretrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for task in ("cats", "dogs"):
            tensors = {name: t + 0.02 * torch.randn_like(t) for name, t in pretrained.items()}
            model.load_state_dict(tensors)
            model.save_pretrained(folder / task)
            tokenizer.save_pretrained(folder / task)
            documents = [" ".join(rng.choice(WORDS, 12)) for _ in range(60)]
            (folder / f"{task}.txt").write_text("\n\n".join(documents))
    return folder
