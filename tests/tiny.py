"""A zoo of the demo zoo's format, small enough to be built by the tests in seconds.

One open_clip model (16 x 16 images, two layers) and three really fine-tuned vision towers on three synthetic
tasks, so that metrics rise and fall with the coefficients as they do for real models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

SIZE = 16
ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CLASS_NAMES = {
    "Colours": ["red", "green", "blue", "yellow", "purple"],
    "Stripes": ["horizontal stripes", "vertical stripes", "squares", "diagonal stripes"],
    "Light": ["dark", "dim", "bright"],
}
TEMPLATES = ["a picture of {}", "{}"]
TRAIN_SIZE, SPLIT_SIZE = 600, 60

Labels = np.ndarray
Images = np.ndarray


def _colours(labels: Labels, rng: np.random.Generator) -> Images:
    hues = np.array([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.2, 0.2, 1], [1, 1, 0.2], [0.8, 0.2, 0.9]])
    strength = rng.uniform(0.15, 1, (len(labels), 1, 1, 1))
    return 0.5 + strength * (hues[labels][:, None, None] - 0.5)


def _stripes(labels: Labels, rng: np.random.Generator) -> Images:
    y, x = np.mgrid[:SIZE, :SIZE]
    patterns = np.stack([y // 2 % 2, x // 2 % 2, (x // 4 + y // 4) % 2, (x + y) // 3 % 2])
    contrast = rng.uniform(0.1, 0.6, (len(labels), 1, 1, 1)) * rng.choice([-1, 1], (len(labels), 1, 1, 1))
    return rng.uniform(0.3, 0.7, (len(labels), 1, 1, 3)) + contrast * (patterns[labels][..., None] - 0.5)


def _light(labels: Labels, rng: np.random.Generator) -> Images:
    level = np.array([0.3, 0.5, 0.7])[labels] + rng.normal(0, 0.05, len(labels))
    return level[:, None, None, None] + rng.normal(0, 0.08, (len(labels), 1, 1, 3))


DRAW: dict[str, Callable[[Labels, np.random.Generator], Images]] = {
    "Colours": _colours,
    "Stripes": _stripes,
    "Light": _light,
}


def draw_images(task: str, n: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    """Draws ``n`` noisy images (n x 16 x 16 x 3, uint8) of a tiny task and their labels (int64)."""
    labels = np.arange(n) % len(CLASS_NAMES[task])
    rng.shuffle(labels)
    pixels = np.broadcast_to(DRAW[task](labels, rng), (n, SIZE, SIZE, 3)) + rng.normal(0, 0.2, (n, SIZE, SIZE, 3))
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8), labels


def plain_transform(images: Images, model: open_clip.CLIP) -> Tensor:
    """open_clip's own eval transform, one PIL image at a time."""
    transform = image_transform_v2(PreprocessCfg(size=model.visual.image_size), is_train=False)
    return torch.stack([transform(Image.fromarray(image)) for image in images])


def plain_head(model: open_clip.CLIP, class_names: list[str], templates: list[str]) -> Tensor:
    """open_clip's own zero-shot head, d x classes."""
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    return build_zero_shot_classifier(model, tokenizer, class_names, templates)


def plain_entropy(weights: Mapping[str, Tensor], path: Path) -> float:
    """The mean entropy of a model's predictions on validation images, by open_clip and a plain loop."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(weights)
    with np.load(path) as data, torch.inference_mode():
        head = plain_head(model, data["class_names"].tolist(), data["templates"].tolist())
        features = model.encode_image(plain_transform(data["val_images"], model), normalize=True)
        logits = (model.logit_scale.exp() * features @ head).double().numpy()
    total = 0.0
    for row in logits:
        odds = [np.exp(value - max(row)) for value in row]
        shares = [each / sum(odds) for each in odds]
        total -= sum(share * np.log(share) for share in shares)
    return total / len(logits)


def _train(model: open_clip.CLIP, batches: list[tuple[Tensor, Tensor, Tensor]], steps: int, lr: float) -> None:
    """Trains the vision tower on frozen heads, one step for each (images, labels, head) in turn."""
    optimizer = torch.optim.AdamW(model.visual.parameters(), lr=lr, weight_decay=0)
    for step in range(steps):
        images, labels, head = batches[step % len(batches)]
        rows = torch.randint(len(images), (64,))
        features = functional.normalize(model.visual(images[rows]), dim=-1)
        loss = functional.cross_entropy(15 * features @ head, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.visual.parameters(), 1.0)
        optimizer.step()


def build_tiny_zoo(folder: Path | str) -> Path:
    """Builds the tiny zoo in ``folder`` (made if missing) and returns its path; the same every time."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny-clip.json").write_text(json.dumps(ARCHITECTURE))
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**ARCHITECTURE)
        batches = {}
        for task, class_names in CLASS_NAMES.items():
            splits = {}
            for split in ("val", "test"):
                splits[f"{split}_images"], splits[f"{split}_labels"] = draw_images(task, SPLIT_SIZE, rng)
            np.savez_compressed(folder / f"{task}.npz", class_names=class_names, templates=TEMPLATES, **splits)
            images, labels = draw_images(task, TRAIN_SIZE, rng)
            head = plain_head(model, class_names, TEMPLATES)
            batches[task] = (plain_transform(images, model), torch.from_numpy(labels), head)
        _train(model, list(batches.values()), steps=18, lr=1e-3)
        pretrained = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
        save_file(pretrained, folder / "pretrained.safetensors")
        for task, batch in batches.items():
            model.load_state_dict(pretrained)
            _train(model, [batch], steps=80, lr=1e-3)
            tower = {f"visual.{name}": t.detach().half() for name, t in model.visual.state_dict().items()}
            save_file(tower, folder / f"{task}.safetensors")
    manifest = {
        "name": "tiny",
        "title": "Tiny zoo",
        "family": "clip",
        "architecture": "tiny-clip.json",
        "pretrained": "pretrained.safetensors",
        "tasks": [{"name": t, "checkpoint": f"{t}.safetensors", "data": f"{t}.npz"} for t in CLASS_NAMES],
        "results": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return folder
