"""timm models as classifiers: merged backbones, with BatchNorm recalibrated and heads refitted each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mapmerge_core.errors import CheckpointError, DatasetError, MapMergeError
from mapmerge_core.files import read_json
from mapmerge_core.tasks.datasets import open_images
from mapmerge_core.tasks.datasets.splitting import subset
from mapmerge_core.tasks.families._models.building import building, called, load_exactly
from mapmerge_core.tasks.families._models.fitting import fit_head
from mapmerge_core.tasks.families._models.images import ImageClassifier
from mapmerge_core.tasks.families.classifier import Classifier
from mapmerge_core.weights.io.checkpoints import read_state_dict

if TYPE_CHECKING:
    from mapmerge_core.tasks.task import Task


# Of training images at a time, whatever the evaluator's batches are: statistics and heads, and so an
# export, depend on θ(c) alone.
_BATCH = 128
_SEED = 0


class ClassifierWithHeads(ImageClassifier, Classifier):
    """A timm model whose backbone is merged, with a head for each task (MAP, Appendix F.3).

    The fine-tuned models' own heads fit features that no merge has, and have no counterpart in the
    pre-trained model: they are left out. After every merge, before anything is measured:

    1. The running statistics of BatchNorm layers are computed anew (`merged`), as the plain average over
       batches that mix training images of all tasks, since an export has one set of statistics. Sums of the
       models' statistics are not those of the merged model: without this step it loses accuracy, and
       variances become negative, so that it collapses, where coefficients are large.
    2. As a task is first measured, its head is fitted to the backbone's features of its training images:
       multinomial logistic regression on standardised features, in scikit-learn.

    Neither sees a validation or test image, and both depend on θ(c) alone, so that equal coefficients have
    equal outcomes. The fine-tuned models' own figures come about in the same way.

    Everything is computed in float32: in bfloat16 the statistics' sums would be too coarse, and the time goes
    into fitting.

    Args:
        architecture: The name of a timm architecture, with a tag or not, or a folder with a ``config.json``
            as timm writes it; ``""`` for the folder of ``pretrained``, which also counts where it names this
            very architecture: it knows the preprocessing, and an export repeats it.
        pretrained: The checkpoint of the pre-trained model, a file or a folder; its classifier is ignored.
        settings: How heads are fitted and statistics computed.

    Attributes:
        model: The backbone, in eval mode.

    Raises:
        CheckpointError: timm has no such architecture, or the checkpoint can't be read or doesn't fit it.
    """

    def __init__(self, architecture: str, pretrained: Path | str, settings: Classifier.Settings | None = None) -> None:
        settings = settings or self.Settings()
        self._train_examples = settings.train_examples
        self._calibration_examples = settings.calibration_examples
        architecture = _described(architecture, Path(pretrained))
        with _building(architecture):
            self.model, head = _backbone(architecture)
            size = settings.image_size
            own = {} if size is None else {"img_size": size, "crop_pct": 1.0}
            config = resolve_data_config(own, model=self.model)
            # The last two steps turn an image into a tensor and normalise it; `normalise` does them for a
            # whole batch.
            steps = create_transform(**config).transforms[:-2]
            if config["input_size"][0] != 3:
                raise ValueError(f"it takes images of {config['input_size'][0]} channels, not of 3")
            self.model.eval().requires_grad_(requires_grad=False)
            if self.model(torch.zeros(1, *config["input_size"])).ndim != 2:
                raise ValueError("it makes more than one vector of an image")
        weights = {name: tensor for name, tensor in read_state_dict(pretrained).items() if name not in head}
        load_exactly(self.model, weights, pretrained, architecture)
        self._dtypes = {name: tensor.dtype for name, tensor in weights.items()}
        super().__init__(config["input_size"][-2:], steps, f"timm {config}", config["mean"], config["std"])
        self._norms = [
            layer
            for layer in self.model.modules()
            if settings.recalibrate and isinstance(layer, _BatchNorm) and layer.running_mean is not None
        ]
        self._tasks: tuple[Task, ...] = ()
        self._calibration: Tensor | None = None
        self._fitted: dict[str, Tensor] = {}

    def use(self, tasks: Sequence[Task]) -> None:
        """Take note of the tasks: all of them decide the BatchNorm statistics, whichever is measured.

        Raises:
            MapMergeError: A metric can't be measured.
        """
        super().use(tasks)
        self._tasks = tuple(tasks)
        self._calibration = None
        self._fitted.clear()

    def to(self, device: torch.device | str) -> None:
        """Move the model, in place."""
        super().to(device)
        self._calibration = None
        self._fitted.clear()

    def model_in(self, dtype: torch.dtype) -> nn.Module:  # noqa: ARG002 - one model for all
        return self.model

    def prepare(self, task: Task, split: str) -> None:
        """Read and resize the split's images, and training images of all tasks (see `Family.prepare`).

        Raises:
            DatasetError: A dataset can't be read, has no training split, or shows one class only in it.
        """
        super().prepare(task, split)
        self._training(task)
        if self._norms:
            self._calibration_images()

    def merged(self, dtype: torch.dtype) -> None:  # noqa: ARG002 - one model for all
        """Compute BatchNorm statistics of the model as it is now, and drop the heads fitted before.

        Raises:
            DatasetError: A task's training images can't be had.
            MapMergeError: It has not been told the tasks (`use`).
        """
        self._fitted.clear()
        if not self._norms:
            return
        images = self._calibration_images()
        momenta = [layer.momentum for layer in self._norms]
        try:
            for layer in self._norms:
                layer.reset_running_stats()
                layer.momentum = None  # a plain average over batches
                layer.train()
            with torch.no_grad():
                for batch in images.tensor_split(-(-len(images) // _BATCH)):
                    self.model(self.normalise(batch))
        finally:
            for layer, momentum in zip(self._norms, momenta, strict=True):
                layer.momentum = momentum
                layer.eval()
        for name, buffer in self._statistics():  # as an export rounds them
            buffer.copy_(buffer.to(self._dtypes[name]))

    def head(self, task: Task) -> Tensor:
        """Return the task's head for the model as it was last merged, fitted if it hasn't been yet.

        Returns:
            (d + 1) x classes, float32: weights of the backbone's d features, and in the last row the bias.
        """
        if task.name not in self._fitted:
            images, labels = self._training(task)
            head = fit_head(self.features(images), labels.cpu().numpy(), len(self.dataset(task).class_names))
            self._fitted[task.name] = torch.from_numpy(head).to(self.device)
        return self._fitted[task.name]

    @torch.no_grad()
    def features(self, images: Tensor) -> np.ndarray:
        """Return the backbone's features (n x d, float32) of prepared images."""
        return np.concatenate([self.model(self.normalise(batch)).cpu().numpy() for batch in images.split(_BATCH)])

    def logits(self, batch: Tensor, task: Task, dtype: torch.dtype) -> Tensor:  # noqa: ARG002 - one model
        """Classify prepared images with the model as it was last merged (see `ImageClassifier.logits`)."""
        return self.class_logits(batch, self.head(task), {})

    def class_logits(self, batch: Tensor, head: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        features: Tensor = called(self.model, parameters, self.normalise(batch))
        return torch.addmm(head[-1], features, head[:-1])

    def extras(self) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """Return the recalibrated statistics, and each task's head as ``nn.Linear`` names its tensors.

        A head's file is called ``head-<task>``.
        """
        statistics = {name: buffer.cpu().clone() for name, buffer in self._statistics()}
        heads = {task.name: self.head(task).cpu() for task in self._tasks}
        return statistics, {
            f"head-{name}": {"weight": head[:-1].T.contiguous(), "bias": head[-1].clone()}
            for name, head in heads.items()
        }

    def _statistics(self) -> Iterator[tuple[str, Tensor]]:
        """Return the recalibrated layers' buffers, by the model's names."""
        for name, layer in self.model.named_modules():
            if layer in self._norms:
                for buffer, tensor in layer.named_buffers(recurse=False):
                    yield f"{name}.{buffer}", tensor

    def _training(self, task: Task) -> tuple[Tensor, Tensor]:
        """Return a task's training images that heads are fitted to, and their labels."""
        if "train" not in self.dataset(task).sizes:
            raise DatasetError(
                f"The dataset of '{task.name}' has no train split, to which the head of a merged model is "
                "fitted: add one."
            )
        source = task.source
        few = replace(source, limit=min(self._train_examples, source.limit or self._train_examples))
        if few not in self._datasets:
            # Its validation and test splits are of no use, and need no check.
            self._datasets[few] = open_images(few, check=False)
        training = replace(task, data=few)
        labels = self.labels(training, "train")
        if len(labels.unique()) < 2:
            raise DatasetError(
                f"The train split of '{task.name}' shows one class only: a head needs two or more to be fitted."
            )
        return self.images(training, "train"), labels

    def _calibration_images(self) -> Tensor:
        """Training images of all tasks, mixed, so that each batch is like all of them."""
        if self._calibration is None:
            if not self._tasks:
                raise MapMergeError(
                    "The tasks that a merged model is for decide its BatchNorm statistics: name them with "
                    "`use` before it is measured."
                )
            parts = []
            for task in self._tasks:
                images, labels = self._training(task)
                rows = torch.from_numpy(subset(labels.cpu().numpy(), self._calibration_examples, _SEED))
                parts.append(images[rows.to(images.device)].to(self.device))
            mixed = torch.cat(parts)
            order = np.random.default_rng(_SEED).permutation(len(mixed))
            self._calibration = mixed[torch.from_numpy(order).to(self.device)]
        return self._calibration


def head_names(architecture: str, pretrained: Path | str) -> tuple[str, ...]:
    """Return the names of the tensors of an architecture's classifier.

    Raises:
        CheckpointError: timm has no such architecture.
    """
    architecture = _described(architecture, Path(pretrained))
    with _building(architecture):
        return _backbone(architecture)[1]


def _described(architecture: str, pretrained: Path) -> str:
    """Return an architecture, or the pre-trained model's folder if that says what it is."""
    named = read_json(pretrained / "config.json").get("architecture")
    return architecture if architecture and named != architecture else str(pretrained)


def _backbone(architecture: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a model of timm without its classifier, its weights random, and the classifier's names."""
    model: Any = timm.create_model(_timm_name(architecture), num_classes=1)
    names = list(model.state_dict())
    model.reset_classifier(0)
    backbone = model.state_dict()
    return model, tuple(name for name in names if name not in backbone)


def _timm_name(architecture: str) -> str:
    """Return what timm calls an architecture; names that timm would look up on the internet are refused."""
    if Path(architecture).is_dir():
        return f"local-dir:{architecture}"
    if not timm.is_model(architecture.partition(".")[0]):
        raise CheckpointError(
            f"timm has no architecture '{architecture}': give a name, or a folder with timm's config.json."
        )
    return architecture


def _building(architecture: str) -> AbstractContextManager[None]:
    return building(f"timm can't build a classifier of images from {architecture}")
