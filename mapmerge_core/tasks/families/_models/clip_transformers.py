"""CLIP models of transformers as zero-shot classifiers: merged vision towers, heads from prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import transformers
from PIL import Image
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoImageProcessor, CLIPConfig, CLIPModel

from mapmerge_core.errors import CheckpointError, MapMergeError
from mapmerge_core.tasks.families.building import narrow_copy
from mapmerge_core.tasks.families.heads import Heads
from mapmerge_core.tasks.families.images import ImageClassifier
from mapmerge_core.tasks.families.transformers_folder import Blueprint, check_tokens, read_tokenizer, reading
from mapmerge_core.weights.io.checkpoints import read_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import BaseImageProcessor, BatchEncoding, PreTrainedConfig

    from mapmerge_core.tasks.task import Task


_OF_IMAGES = ("vision_model.", "visual_projection.")
"""Prefixes of the tensors that see images; all others are the text tower's."""


class TransformersClip(ImageClassifier):
    """A CLIP model of transformers that classifies images by the prompt whose text embedding is nearest.

    The vision tower is merged, without its projection to the common space: that stays the pre-trained
    model's, as do text tower, logit scale and with them the heads, which are computed once per task. Towers
    that were fine-tuned alone (``CLIPVisionModel``) have no projection, and whole models whose projection was
    fine-tuned, too, lose that.

    Images are resized, cropped and normalised as the folder's image processor does it with Pillow. (With
    torchvision, which it prefers where there is one, a resized pixel may differ by a 255th.)

    Args:
        architecture: ``""``: the folder says what the model is.
        pretrained: The folder of a ``CLIPModel``, with its image processor and its tokenizer.

    Attributes:
        model: The model in float32, in eval mode.

    Raises:
        CheckpointError: The folder can't be read, its parts don't fit each other, or it is no CLIP model.
        MapMergeError: An architecture is given.
    """

    part: ClassVar[str] = "vision_model."

    def __init__(self, architecture: str, pretrained: Path) -> None:
        if architecture:
            raise MapMergeError(
                f"The folder of a CLIP model of transformers says what it is: leave the architecture "
                f"'{architecture}' out."
            )
        folder = Path(pretrained)
        built = Blueprint.draw(folder, _make).build(torch.float32, read_state_dict(folder))
        self.model = cast("CLIPModel", built)
        config: Any = self.model.config
        self._folder, self._text_config = folder, config.text_config
        tokenizer = read_tokenizer(folder, config.text_config.vocab_size)
        n_most = config.text_config.max_position_embeddings
        with reading("an image processor", folder):
            processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False, local_files_only=True
            )
            size = config.vision_config.image_size
            found = _resize(processor, Image.new("RGB", (size + 7, size + 3))).size
            settings = processor.to_dict()
            mean, std = _normalisation(settings)
        if found != (size, size):
            raise CheckpointError(
                f"The image processor in {folder} makes images of {found[0]} x {found[1]} pixels, but the "
                f"model wants {size} x {size}: choose a folder where they fit."
            )
        super().__init__(
            (size, size),
            [lambda image: _resize(processor, image)],
            f"transformers {json.dumps(settings, sort_keys=True, default=str)}",
            mean,
            std,
        )
        what = f"transformers {transformers.__version__} {self._text_config.to_json_string()}"

        def tokens(prompts: list[str]) -> BatchEncoding:
            found: BatchEncoding = tokenizer(
                prompts, padding=True, truncation=True, max_length=n_most, return_tensors="pt"
            )
            return found

        self._tokens = tokens
        self._heads = Heads(what, lambda prompts: tokens(prompts)["input_ids"], self.model, _OF_IMAGES)
        self._narrow: CLIPModel | None = None

    @classmethod
    def left_out(cls, architecture: str, pretrained: Path) -> tuple[str, ...]:  # noqa: ARG003
        """Return the names of old constants beside the parameters (see `Family.left_out`).

        Raises:
            CheckpointError: The folder can't be read, or its checkpoint doesn't fit its configuration.
        """
        return tuple(Blueprint.draw(Path(pretrained), _make).constants)

    def to(self, device: torch.device | str) -> None:
        """Moves the model, in place."""
        super().to(device)
        self._heads.clear()
        self._narrow = None

    def model_in(self, dtype: torch.dtype) -> CLIPModel:
        """Return the model to merge into for ``dtype``: `model` for float32, a copy of it for bfloat16."""
        if dtype == torch.float32:
            return self.model
        if self._narrow is None:
            self._narrow = narrow_copy(self.model, dtype, _OF_IMAGES)
        return self._narrow

    @torch.no_grad()
    def head(self, task: Task) -> Tensor:
        """Return the task's head, d x classes, float32: the normalised mean of its normalised prompts."""
        dataset = self.dataset(task)

        def make() -> Tensor:
            columns = []
            for name in dataset.class_names:
                prompts = [template.format(name) for template in dataset.templates]
                features = functional.normalize(self._text_features(prompts), dim=-1)
                columns.append(functional.normalize(features.mean(dim=0), dim=0))
            return torch.stack(columns, dim=1)

        return self._heads.get(dataset, self.device, make)

    def prepare(self, task: Task, split: str) -> None:
        """Reads the split's images and computes the task's head (see `Family.prepare`)."""
        super().prepare(task, split)
        self.head(task)

    def logits(self, batch: Tensor, task: Task, dtype: torch.dtype) -> Tensor:
        """Classifies prepared images with the model as it was last merged for ``dtype``.

        Args:
            batch: Prepared images, n x 3 x height x width.
            task: Whose head to use.
            dtype: float32 or bfloat16; normalisation and the head are in float32 always.

        Returns:
            Cosine similarities times the model's own logit scale, n x classes, float32.
        """
        outputs = self.model_in(dtype).get_image_features(pixel_values=self.normalise(batch).to(dtype))
        return self._compared(outputs.pooler_output, self.head(task))

    def class_logits(self, batch: Tensor, head: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return cosine similarities times the logit scale (see `ImageClassifier.class_logits`)."""
        own = {
            name.removeprefix(self.part): t for name, t in parameters.items() if name.startswith(self.part)
        }
        tower, projection = (self.model.get_submodule(name) for name in ("vision_model", "visual_projection"))
        outputs = functional_call(tower, own, kwargs={"pixel_values": self.normalise(batch)})
        return self._compared(projection(outputs.pooler_output), head)

    def _compared(self, features: Tensor, head: Tensor) -> Tensor:
        scale: Tensor = self.model.logit_scale.exp()
        return scale * (functional.normalize(features.float(), dim=-1) @ head)

    def _text_features(self, prompts: list[str]) -> Tensor:
        tokens = self._tokens(prompts).to(self.device)
        check_tokens(tokens["input_ids"], self._folder, self._text_config.vocab_size)
        features: Tensor = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return features


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
    mean, std = (
        (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else ([0] * 3, [1] * 3)
    )
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise ValueError("its image_mean and image_std are not three numbers each")
    return [value / scale for value in mean], [value / scale for value in std]


def _resize(processor: BaseImageProcessor, image: Image.Image) -> Image.Image:
    """What an image processor does with an image before its numbers are scaled."""
    pixels = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    return Image.fromarray(pixels.transpose(1, 2, 0))
