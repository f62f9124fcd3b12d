"""Contrastive pre-training on the pool, in single-thread processes that average their gradients."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize, one_hot

from . import tasks
from .model import Words, accuracy, create, prepare, shift, text_head, training_attention
from .settings import PRETRAIN_SEED, PRETRAINING, Pretraining

REPORT_STEPS = 100
SCORE_STEPS = 1600
SCORE_IMAGES = 300


def cosine(step: int, steps: int, warmup: int, last: float = 0.0) -> float:
    """Learning-rate factor: a linear rise over `warmup` steps, times a half cosine down to `last`."""
    fall = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * (last + (1 - last) * fall)


def optimizer(module: torch.nn.Module, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on matrices only."""
    groups = [
        {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def vocabulary(work: Path) -> Words:
    """The words of the pool's captions and the tasks' prompts."""
    captions = set(json.loads((work / "pool" / "captions.json").read_text()))
    for name in tasks.NAMES:
        captions |= {prompt for prompts in tasks.load(name, work / "tasks").prompts for prompt in prompts}
    return Words(sorted(captions))


def text_bank(model: CLIP, tokens: Tensor) -> Tensor:
    """Unit text features of every caption, without gradients."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return normalize(torch.cat([model.encode_text(part).float() for part in tokens.split(400)]), dim=-1)


def contrastive_loss(
    model: CLIP,
    visual: Callable[[Tensor], Tensor],
    pixels: Tensor,
    caption: Tensor,
    tokens: Tensor,
    bank: Tensor,
    settings: Pretraining,
) -> tuple[Tensor, Tensor]:
    """CLIP's two losses, adapted to captions that repeat.

    Image -> text is a softmax over every caption of the pool (those outside the batch come from the bank);
    text -> image spreads a caption's weight over all its images in the batch.

    Args:
        model: The model in training.
        visual: Its vision tower, compiled.
        pixels: Prepared images (n, 3, 32, 32).
        caption: Each image's row in `tokens` (n,).
        tokens: All distinct captions (captions, context length).
        bank: Their features (captions, d), a few steps old.
        settings: For the loss's shares and largest scale.

    Returns:
        The weighted loss and the image -> text part.
    """
    present, column = caption.unique(return_inverse=True)
    with torch.autocast("cpu", torch.bfloat16), training_attention():
        image, text = visual(pixels), model.encode_text(tokens[present])
    image, text = normalize(image.float(), dim=-1), normalize(text.float(), dim=-1)
    scale = model.logit_scale.exp().clamp(max=settings.largest_scale)
    every = torch.index_copy(bank, 0, present, text)
    image_loss = cross_entropy(scale * image @ every.T, caption)
    targets = one_hot(column, len(present)).float()
    text_loss = -(targets / targets.sum(0) * log_softmax(scale * image @ text.T, 0)).sum(0).mean()
    return settings.image_share * image_loss + (1 - settings.image_share) * text_loss, image_loss


def average_gradients(parameters: list[Tensor], processes: int, largest: float = 1.0) -> None:
    """Replace every gradient by its mean over the processes, clipped to a total norm."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= processes
    flat *= min(1.0, largest / (float(flat.norm()) + 1e-6))
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


def zero_shot(model: CLIP, words: Words, work: Path, images: int) -> dict[str, float]:
    """Accuracy on the first validation images of every task."""
    scores = {}
    for name in tasks.NAMES:
        task = tasks.load(name, work / "tasks")
        split = task.splits["val"]
        pixels, labels = prepare(split.images[:images]), torch.as_tensor(split.labels[:images])
        scores[name] = accuracy(model.visual, pixels, labels, text_head(model, words, task.prompts))
    model.train()
    return scores


def _train(rank: int, work: Path, settings: Pretraining) -> None:
    torch.set_num_threads(1)
    meeting = work / "pretrain" / "meeting"
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=settings.processes)
    images = torch.from_numpy(np.load(work / "pool" / "images.npy", mmap_mode="c"))
    distinct, caption = np.unique(json.loads((work / "pool" / "captions.json").read_text()), return_inverse=True)
    words, caption = vocabulary(work), torch.from_numpy(caption)
    tokens = words(distinct.tolist())
    model = create(words, PRETRAIN_SEED)
    model.train()
    visual = torch.compile(model.visual, dynamic=False)
    parameters = list(model.parameters())
    adam = optimizer(model, settings.weight_decay, (0.9, 0.98))
    shared = torch.Generator().manual_seed(PRETRAIN_SEED + 1)
    own = torch.Generator().manual_seed(PRETRAIN_SEED + 2 + rank)
    together = settings.batch * settings.processes
    order, at, smooth, started = torch.randperm(len(images), generator=shared), 0, 0.0, time.perf_counter()
    for step in range(settings.steps):
        if at + together > len(images):
            order, at = torch.randperm(len(images), generator=shared), 0
        rows = order[at + rank * settings.batch : at + (rank + 1) * settings.batch]
        at += together
        if step % settings.bank_steps == 0:
            bank = text_bank(model, tokens)
        set_rate(adam, settings.learning_rate * cosine(step, settings.steps, settings.warmup, 0.02))
        pixels = shift(prepare(images[rows]), 2, own)
        loss, image_loss = contrastive_loss(model, visual, pixels, caption[rows], tokens, bank, settings)
        adam.zero_grad()
        loss.backward()
        average_gradients(parameters, settings.processes)
        adam.step()
        smooth = float(image_loss.detach()) if step == 0 else 0.98 * smooth + 0.02 * float(image_loss.detach())
        if rank == 0 and (step + 1) % REPORT_STEPS == 0:
            seconds = time.perf_counter() - started
            rate, scale = (step + 1) * together / seconds, float(model.logit_scale.exp())
            print(f"  {step + 1} loss {smooth:.3f} scale {scale:.1f} {seconds:.0f} s {rate:.0f}/s", flush=True)
        if rank == 0 and (step + 1) % SCORE_STEPS == 0:
            scores = zero_shot(model, words, work, SCORE_IMAGES)
            print("  zero-shot " + " ".join(f"{k} {100 * v:.0f}" for k, v in scores.items()), flush=True)
    if rank == 0:
        torch.save(words.expand(model.state_dict()), work / "pretrain" / "model.pt")
    dist.destroy_process_group()


def pretrain(work: Path, settings: Pretraining = PRETRAINING) -> None:
    """Train and write work/pretrain/model.pt: a full open_clip state dict in float32."""
    folder = work / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meeting").unlink(missing_ok=True)
    mp.spawn(_train, (work, settings), nprocs=settings.processes)
