"""Which family and architecture a folder's models have, by configurations and headers of weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.errors import CheckpointError
from mapmerge_core.weights.io.headers import read_header

if TYPE_CHECKING:
    from mapmerge_core.studies.discovery.folder_contents import FolderContents, Model

_VIT = re.compile(r"vit[-_ ]?(?P<size>b|l|h|g|base|large|huge)[-_ /]?(patch)?[-_ ]?(?P<patch>32|16|14)", re.IGNORECASE)
_VITS = {(768, 32): "ViT-B-32", (768, 16): "ViT-B-16", (1024, 14): "ViT-L-14", (1280, 14): "ViT-H-14"}
# How many blocks each stage of a ResNet has, and whether these are bottlenecks.
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_QUICK = "OpenAI's own weights need the variant '{}-quickgelu'."


@dataclass(frozen=True)
class Guess:
    """A family and an architecture, "" where they can't be told, and sentences that say why."""

    family: str
    architecture: str
    notes: tuple[str, ...]


def guess_family(folder: Path, contents: FolderContents, base: Model | None, finetuned: Sequence[Model]) -> Guess:
    """Guess what a folder's models are: from the pre-trained one first, then from the others, then from names."""
    models = ([base] if base else []) + [model for model in finetuned if not model.is_adapter]
    if contents.architectures:
        path = contents.architectures[0]
        return Guess("clip", str(path), (f"The architecture is the one that {path.name} describes.",))
    for model in models:
        if guess := _of_config(model):
            return guess
    for model in models:
        if guess := _of_header(model):
            return guess
    adapters = [model for model in finetuned if model.is_adapter]
    if adapters and all(model.config.get("task_type") == "CAUSAL_LM" for model in adapters):
        return Guess("language", "", ("The adapters are for causal language models.",))
    if adapters and all("clip" in model.base.lower() for model in adapters):
        return Guess("clip_transformers", "", ("The adapters' model is a CLIP model, by its name.",))
    return _of_names(folder, contents, models)


def _of_config(model: Model) -> Guess | None:
    config = model.config
    if "model_cfg" in config:
        path = model.path / "open_clip_config.json"
        return Guess("clip", str(path), (f"{model.name} is a model of open_clip.",))
    if isinstance(config.get("architecture"), str) and "model_type" not in config:
        return Guess("classifier", config["architecture"], (f"{model.name} is a model of timm.",))
    kind = str(config.get("model_type", ""))
    classes = config.get("architectures") or [""]
    if kind in {"clip", "clip_vision_model"}:
        return Guess("clip_transformers", "", (f"{model.name} is a CLIP model of transformers.",))
    if any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in classes):
        return Guess("language", "", (f"{model.name} is a language model of the kind '{kind}'.",))
    return None


def _of_header(model: Model) -> Guess | None:
    """Guess from the names and shapes of a safetensors file's tensors."""
    shapes = _header(model.path)
    plain = {name.removeprefix("module.").removeprefix("model."): shape for name, shape in shapes.items()}
    vision = {name.removeprefix("visual."): shape for name, shape in plain.items() if name.startswith("visual.")}
    if vision:
        first = vision.get("conv1.weight", (0, 0, 0, 0))
        name = _VITS.get((first[0], first[-1]), "")
        if name == "ViT-L-14" and vision.get("positional_embedding", (0,))[0] == 24 * 24 + 1:
            name = "ViT-L-14-336"
        why = f"{model.name} has the tensors of a CLIP model of open_clip"
        return Guess("clip", name, (f"{why}, {name}: {_QUICK.format(name)}" if name else f"{why}.",))
    if any(".self_attn.q_proj.weight" in name and name.startswith("layers.") for name in plain):
        return Guess("language", "", (f"{model.name} has the tensors of a language model.",))
    if "layer1.0.conv1.weight" in plain:
        stages = tuple(len({n.split(".")[1] for n in plain if n.startswith(f"layer{k}.")}) for k in (1, 2, 3, 4))
        name = _RESNETS.get((stages, "layer1.0.conv3.weight" in plain), "")
        return Guess("classifier", name, (f"{model.name} has the tensors of a ResNet{f', {name}' if name else ''}.",))
    if "blocks.0.attn.qkv.weight" in plain:
        return Guess("classifier", "", (f"{model.name} has the tensors of a vision transformer of timm.",))
    return None


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors; {} of anything else."""
    if path.suffix == ".safetensors":
        with suppress(CheckpointError):
            return {name: shape for name, (_, shape) in read_header(path).tensors.items()}
    return {}


def _of_names(folder: Path, contents: FolderContents, models: Sequence[Model]) -> Guess:
    """Guess from names such as "ViT-B-32", where no header can be read (pickles)."""
    if any(kind == "texts" for kind in contents.kinds.values()):
        return Guess("", "", ())
    for model in models:
        match = _VIT.search(str(model.path.relative_to(folder.parent)))
        if match:
            size = match["size"][0].upper()
            name = f"ViT-{size}-{match['patch']}"
            return Guess("clip", name, (f"By their names the models are CLIP {name}: {_QUICK.format(name)}",))
    return Guess("", "", ())
