"""CLIP models of transformers as zero-shot classifiers: merged vision towers, heads from prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, BaseImageProcessor, BatchEncoding, CLIPConfig, CLIPModel, PreTrainedConfig

from mapmerge_core.errors import CheckpointError, MapMergeError
from mapmerge_core.tasks.families._models.building import called
from mapmerge_core.tasks.families._models.transformers_folder import Blueprint, check_tokens, read_tokenizer, reading
from mapmerge_core.tasks.families._models.zero_shot import ZeroShot
from mapmerge_core.tasks.families.clip_transformers import ClipOfTransformers
from mapmerge_core.weights.io.checkpoints import read_state_dict


class TransformersClip(ZeroShot, ClipOfTransformers):
    """A CLIP model of transformers that classifies images by the prompt whose text embedding is nearest.

    The vision tower is merged, without its projection to the common space: that stays the pre-trained
    model's, as do text tower, logit scale and with them the heads. Towers that were fine-tuned alone
    (``CLIPVisionModel``) have no projection; whole models whose projection was fine-tuned, too, lose that.

    Images are resized, cropped and normalised as the folder's image processor does it with Pillow. (With
    torchvision, which it prefers where there is one, a resized pixel may differ by a 255th.)

    Args:
        architecture: "": the folder says what the model is.
        pretrained: The folder of a ``CLIPModel``, with its image processor and its tokenizer.

    Raises:
        CheckpointError: The folder can't be read, its parts don't fit each other, or it is no CLIP model.
        MapMergeError: An architecture is given.
    """

    vision: ClassVar[tuple[str, ...]] = ("vision_model.", "visual_projection.")

    def __init__(self, architecture: str, pretrained: Path) -> None:
        if architecture:
            raise MapMergeError(
                f"The folder of a CLIP model of transformers says what it is: leave the architecture "
                f"'{architecture}' out."
            )
        folder = Path(pretrained)
        self.model = blueprint(folder).build(torch.float32, read_state_dict(folder))
        config: Any = self.model.config
        self._folder, self._text_config = folder, config.text_config
        self._tokenizer = read_tokenizer(folder, config.text_config.vocab_size)
        with reading("an image processor", folder):
            processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False, local_files_only=True
            )
            size = config.vision_config.image_size
            made = _resize(processor, Image.new("RGB", (size + 7, size + 3))).size
            settings = processor.to_dict()
            mean, std = _normalisation(settings)
        if made != (size, size):
            raise CheckpointError(
                f"The image processor in {folder} makes images of {made[0]} x {made[1]} pixels, but the "
                f"model wants {size} x {size}: choose a folder where they fit."
            )
        super().__init__(
            (size, size),
            [lambda image: _resize(processor, image)],
            f"transformers {json.dumps(settings, sort_keys=True, default=str)}",
            mean,
            std,
        )
        self._text_key = f"transformers {transformers.__version__} {self._text_config.to_json_string()}"
        self.to("cpu")

    def _encoded(self, prompts: list[str]) -> BatchEncoding:
        encoded: BatchEncoding = self._tokenizer(
            prompts,
            padding=True,
            truncation=True,
            max_length=self._text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return encoded

    def _tokens(self, prompts: list[str]) -> Tensor:
        tokens: Tensor = self._encoded(prompts)["input_ids"]
        return tokens

    def _text_head(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        columns = []
        for name in class_names:
            encoded = self._encoded([template.format(name) for template in templates]).to(self.device)
            check_tokens(encoded["input_ids"], self._folder, self._text_config.vocab_size)
            output = self.model.get_text_features(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
            )
            prompts = functional.normalize(output.pooler_output, dim=-1)
            columns.append(functional.normalize(prompts.mean(dim=0), dim=0))
        return torch.stack(columns, dim=1)

    def _features(self, model: Any, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        output = called(model.vision_model, parameters, pixel_values=images)
        features: Tensor = model.visual_projection(output.pooler_output)
        return features


def blueprint(folder: Path) -> Blueprint:
    """Return the CLIP model of a folder, not built yet.

    Raises:
        CheckpointError: The folder can't be read, is no CLIP model, or its checkpoint doesn't fit its configuration.
    """
    return Blueprint.draw(Path(folder), _make)


def _make(config: PreTrainedConfig) -> CLIPModel:
    if not isinstance(config, CLIPConfig):
        raise CheckpointError(
            f"A '{config.model_type}' is not a whole CLIP model with both its towers: choose a folder that "
            "was saved from a CLIPModel."
        )
    return CLIPModel(config)


def _normalisation(settings: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of three channels, of numbers from 0 to 1, that a processor's come to."""
    scale = 255 * (settings["rescale_factor"] if settings["do_rescale"] else 1)
    mean, std = (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else ([0] * 3, [1] * 3)
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise ValueError("its image_mean and image_std are not three numbers each")
    return [value / scale for value in mean], [value / scale for value in std]


def _resize(processor: BaseImageProcessor, image: Image.Image) -> Image.Image:
    """Return what an image processor does with an image before its numbers are scaled."""
    pixels = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    return Image.fromarray(pixels.transpose(1, 2, 0))
