"""Fine-tune the vision tower on each task against the frozen zero-shot head, one thread a task."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from . import tasks
from .model import Words, accuracy, create, prepare, rounded, shift, text_head, training_attention
from .pretrain import cosine, optimizer, set_rate, vocabulary
from .settings import FINETUNE_SEED, FINETUNING, Finetuning

BETAS = (0.9, 0.999)


def l1_ratio(tuned: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    """Sum of absolute changes over the sum of absolute base weights."""
    moved = sum(float((tuned[name] - tensor).abs().sum()) for name, tensor in base.items())
    return moved / sum(float(tensor.abs().sum()) for tensor in base.values())


def finetune(name: str, work: Path, words: Words, settings: Finetuning) -> str:
    """Fine-tune on one task and write work/finetuned/<task>.safetensors (float16, keys `visual.*`).

    Training starts from the published, that is float16-rounded, pre-trained weights.

    Returns:
        One line of figures on the validation split.
    """
    started = time.perf_counter()
    task = tasks.load(name, work / "tasks")
    model = create(words, 0)
    model.load_state_dict(words.shrink(rounded(torch.load(work / "pretrain" / "model.pt"))))
    head = text_head(model, words, task.prompts)
    scale = float(model.logit_scale.detach().exp())
    tower = model.visual
    base = {key: tensor.clone() for key, tensor in tower.state_dict().items()}
    val = task.splits["val"]
    val_pixels, val_labels = prepare(val.images), torch.as_tensor(val.labels)
    before = accuracy(tower, val_pixels, val_labels, head)
    images, labels = (torch.as_tensor(task.splits["train"].images), torch.as_tensor(task.splits["train"].labels))
    generator = torch.Generator().manual_seed(FINETUNE_SEED + tasks.NAMES.index(name))
    adam = optimizer(tower, 0.0, BETAS)
    order, at = torch.randperm(len(images), generator=generator), 0
    tower.train()
    compiled = torch.compile(tower, dynamic=False)
    for step in range(settings.steps):
        if at + settings.batch > len(images):
            order, at = torch.randperm(len(images), generator=generator), 0
        rows = order[at : at + settings.batch]
        at += settings.batch
        set_rate(adam, settings.learning_rate * cosine(step, settings.steps, settings.steps // 10))
        pixels = shift(prepare(images[rows]), 1, generator)
        if settings.flip and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        with torch.autocast("cpu", torch.bfloat16), training_attention():
            found = compiled(pixels)
        loss = cross_entropy(scale * normalize(found.float(), dim=-1) @ head.T, labels[rows])
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        adam.step()
    tuned = {key: tensor.half() for key, tensor in tower.state_dict().items()}
    tower.load_state_dict(tuned)
    after = accuracy(tower, val_pixels, val_labels, head)
    published = {f"visual.{key}": tensor.contiguous() for key, tensor in tuned.items()}
    save_file(published, work / "finetuned" / task.file_name(".safetensors"))
    return (
        f"{name}: validation {100 * before:.1f} -> {100 * after:.1f} %, loss {float(loss.detach()):.3f}, "
        f"L1 ratio {100 * l1_ratio(rounded(tuned), base):.2f} %, {time.perf_counter() - started:.0f} s"
    )


def _finetune_alone(name: str, work: Path, words: Words) -> str:
    torch.set_num_threads(1)
    return finetune(name, work, words, FINETUNING[name])


def finetune_all(work: Path, names: tuple[str, ...] = tasks.NAMES, processes: int = 2) -> None:
    """Fine-tune on every task named, several at a time."""
    (work / "finetuned").mkdir(parents=True, exist_ok=True)
    words = vocabulary(work)
    with ProcessPoolExecutor(processes, get_context("spawn")) as workers:
        runs = [workers.submit(_finetune_alone, name, work, words) for name in names]
        for run in runs:
            print(f"  {run.result()}", flush=True)
