"""open_clip models as zero-shot classifiers: merged vision towers, heads from prompts."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.zero_shot_classifier import build_zero_shot_classifier

from mapmerge_core.errors import CheckpointError
from mapmerge_core.files import DAMAGED
from mapmerge_core.tasks.families._models.building import building, called, load_exactly
from mapmerge_core.tasks.families._models.zero_shot import ZeroShot
from mapmerge_core.tasks.families.clip import Clip
from mapmerge_core.weights.io.checkpoints import read_state_dict

if TYPE_CHECKING:
    from torch import Tensor


class ClipZeroShot(ZeroShot, Clip):
    """An open_clip model that classifies images by the prompt whose text embedding is nearest.

    Args:
        architecture: The path of an open_clip configuration file (``.json``, either the model's configuration
            alone or an ``open_clip_config.json`` with ``model_cfg`` and ``preprocess_cfg``), or the name of
            an open_clip architecture, then with open_clip's default preprocessing.
        pretrained: The checkpoint of the whole pre-trained model.
        settings: Which of open_clip's own weights these are.

    Raises:
        CheckpointError: The configuration or the checkpoint can't be read, nothing can be built from the
            configuration, or they don't fit each other.
    """

    vision: ClassVar[tuple[str, ...]] = (Clip.part,)

    def __init__(self, architecture: Path | str, pretrained: Path | str, settings: Clip.Settings | None = None) -> None:
        architecture, tag = str(architecture), settings.tag if settings else None
        model_config, preprocess_config = _read_architecture(architecture)
        if tag is not None:
            preprocess_config = preprocess_config or preprocessing_of(tag)
            if _trained(tag).get("quick_gelu") and not model_config.get("quick_gelu"):
                raise CheckpointError(
                    f"The weights {tag} were trained with QuickGELU, which the architecture {architecture} "
                    f"doesn't use: choose {architecture}-quickgelu."
                )
        with _building("a CLIP model", architecture):
            self.model = _build(model_config)
        weights = read_state_dict(pretrained)
        if not any("token_embedding" in name or name.startswith("text.") for name in weights):
            raise CheckpointError(
                f"{pretrained} lacks the text tower, without which there are no heads: choose the whole "
                "pre-trained model, such as openclip://ViT-B-32-quickgelu/openai."
            )
        load_exactly(self.model, weights, pretrained, architecture)
        self.model.eval().requires_grad_(requires_grad=False)
        with _building("a tokenizer", architecture):
            self._tokenizer = _tokenizer(model_config["text_cfg"], self.model.context_length)
        size = self.model.visual.image_size
        image_size = (size, size) if isinstance(size, int) else tuple(size)
        with _building("the preprocessing", architecture):
            preprocess = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(size=image_size), preprocess_config))
            # The last two steps turn an image into a tensor and normalise it; `normalise` does them for a
            # whole batch.
            steps = image_transform_v2(preprocess, is_train=False).transforms[:-2]
            super().__init__(image_size, steps, f"open_clip {asdict(preprocess)}", preprocess.mean, preprocess.std)
        text_config = {name: value for name, value in model_config.items() if name != "vision_cfg"}
        self._text_key = f"open_clip {open_clip.__version__} {json.dumps(text_config, sort_keys=True)}"
        self.to("cpu")

    def _tokens(self, prompts: list[str]) -> Tensor:
        tokens: Tensor = self._tokenizer(prompts)
        return tokens

    def _text_head(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        head: Tensor = build_zero_shot_classifier(
            self.model, self._tokenizer, class_names, templates, device=self.device
        )
        return head

    def _features(self, model: Any, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        features: Tensor = called(model.visual, parameters, images)
        return features


def preprocessing_of(tag: str) -> dict[str, Any]:
    """Return how images are prepared for open_clip's own weights ``ARCHITECTURE/TAG``, where not as usual."""
    usual = asdict(PreprocessCfg())
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in _trained(tag).items()
        if name in ("mean", "std", "interpolation", "resize_mode") and value != usual[name]
    }


def _trained(tag: str) -> dict[str, Any]:
    """Return what open_clip says of its own weights ``ARCHITECTURE/TAG``."""
    architecture, _, name = tag.partition("/")
    return dict(open_clip.get_pretrained_cfg(architecture, name) or {})


def _read_architecture(architecture: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an architecture's model and preprocessing configurations."""
    if not architecture.endswith(".json"):
        # Only open_clip's own names: it would look up others in folders or on the internet.
        if architecture not in open_clip.list_models():
            raise CheckpointError(
                f"open_clip has no architecture '{architecture}': give a name or a .json configuration file."
            )
        config: dict[str, Any] = open_clip.get_model_config(architecture)
        return config, {}
    try:
        config = json.loads(Path(architecture).read_text(encoding="utf-8"))
        return dict(config.get("model_cfg", config)), dict(config.get("preprocess_cfg", {}))
    except OSError as error:
        raise CheckpointError(f"The configuration {architecture} can't be read: {error.strerror}.") from error
    except DAMAGED as error:
        raise CheckpointError(f"{architecture} is not an open_clip configuration in JSON.") from error


def _building(what: str, architecture: str) -> AbstractContextManager[None]:
    return building(f"open_clip can't build {what} from the configuration {architecture}")


def _build(config: dict[str, Any]) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    # Built directly: open_clip's registry of configurations is global, and two folders may use one name.
    config = copy.deepcopy(config)
    custom_text = config.pop("custom_text", False)
    # The checkpoint brings the weights: nothing is downloaded.
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        custom_text = True
        config["text_cfg"]["hf_model_pretrained"] = False
    return open_clip.CustomTextCLIP(**config) if custom_text else open_clip.CLIP(**config)


def _tokenizer(text_config: dict[str, Any], context_length: int) -> SimpleTokenizer | HFTokenizer:
    options = text_config.get("tokenizer_kwargs", {})
    if name := text_config.get("hf_tokenizer_name"):
        mode = text_config.get("tokenizer_mode")
        options = {**options, "trust_remote_code": False}  # a configuration may not have code run
        return HFTokenizer(name, context_length=context_length, tokenizer_mode=mode, **options)
    return SimpleTokenizer(context_length=context_length, **options)
