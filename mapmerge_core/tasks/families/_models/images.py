"""What families that classify images share: prepared images and batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mapmerge_core.tasks.datasets import ImageDataset, cached_inputs, open_images
from mapmerge_core.tasks.families.base import Family
from mapmerge_core.tasks.metrics.base import Metric, Observer, Predictions, Score

if TYPE_CHECKING:
    from mapmerge_core.tasks.data_source import DataSource
    from mapmerge_core.tasks.task import Task

# Images move to the device once if they take less of its free memory than this, else batch by batch.
_SHARE_OF_MEMORY = 0.25


class ImageClassifier(Family):
    """A family that classifies images by logits.

    Images are brought to the model's size once and kept as uint8, a quarter of float32's memory; each batch
    is normalised as it is used, which costs about a hundredth of the model's forward pass.

    Args:
        image_size: Height and width of the model's input.
        steps: Transforms of a PIL image to one of that size.
        steps_key: Tells these transforms from others.
        mean: Of the model's input, one for each of three channels.
        std: Likewise.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        steps: Sequence[Callable[[Image.Image], Image.Image]],
        steps_key: str,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.image_size = image_size
        self._steps, self._steps_key = tuple(steps), steps_key
        self._mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)
        self._datasets: dict[DataSource, ImageDataset] = {}
        self._images: dict[tuple[DataSource, str], Tensor] = {}
        self._labels: dict[tuple[DataSource, str], Tensor] = {}

    @abstractmethod
    def head(self, task: Task) -> Tensor:
        """Return the task's head, d x classes, float32."""

    @abstractmethod
    def logits(self, batch: Tensor, task: Task, dtype: torch.dtype) -> Tensor:
        """Return logits (n x classes, float32) of prepared images on `device`."""

    @abstractmethod
    def class_logits(self, batch: Tensor, head: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return logits whose softmax is the model's distribution over classes; gradients flow through them.

        Args:
            batch: Prepared images, n x 3 x height x width, on `device`.
            head: From `head`, d x classes.
            parameters: Tensors to use in the place of the float32 model's parameters, by name; may be empty.

        Returns:
            n x classes, float32.
        """

    def to(self, device: torch.device | str) -> None:
        """Move the model, in place."""
        super().to(device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        self._images.clear()
        self._labels.clear()

    def dataset(self, task: Task) -> ImageDataset:
        """Return the task's dataset, opened once.

        Raises:
            DatasetError: It can't be read, or the task has none.
        """
        source = task.source
        if source not in self._datasets:
            self._datasets[source] = open_images(source)
        return self._datasets[source]

    def prepare(self, task: Task, split: str) -> None:
        """Read and resize the split's images (see `Family.prepare`)."""
        self.images(task, split)
        self.labels(task, split)

    def images(self, task: Task, split: str) -> Tensor:
        """Return a split's images at the model's size: uint8, n x 3 x height x width.

        They lie on `device` if there is room for them, else in a memory-mapped file.

        Raises:
            DatasetError: The dataset can't be read.
        """
        key = (task.source, split)
        if key not in self._images:
            self._images[key] = self._held(self._prepared(self.dataset(task), split))
        return self._images[key]

    def labels(self, task: Task, split: str) -> Tensor:
        """Return a split's labels, int64, n, on `device`.

        Raises:
            DatasetError: The dataset can't be read.
        """
        key = (task.source, split)
        if key not in self._labels:
            self._labels[key] = torch.from_numpy(self.dataset(task).labels(split)).to(self.device)
        return self._labels[key]

    def normalise(self, batch: Tensor) -> Tensor:
        """Turn prepared images into the model's input, float32, by the very operations of torchvision."""
        if self.device.type == "cuda" and batch.device.type == "cpu":
            # A copy from pageable memory would wait for all that the GPU has still to do.
            batch = batch.pin_memory()
        # As bytes, and turned into numbers there.
        sent = batch.to(self.device, non_blocking=True).to(torch.float32)
        return sent.div_(255).sub_(self._mean).div_(self._std)

    def n_examples(self, task: Task, split: str) -> int:
        return len(self.labels(task, split))

    def strata(self, task: Task, split: str) -> NDArray[np.intp]:
        return self.labels(task, split).cpu().numpy()

    @torch.inference_mode()
    def measure(
        self, task: Task, split: str, dtype: torch.dtype, batch_size: int, examples: NDArray[np.intp] | None = None
    ) -> Mapping[Metric, Score]:
        """Classify a split (see `Family.measure`); results are collected on the device and fetched once."""
        images, labels = self.images(task, split), self.labels(task, split)
        rows = None if examples is None else torch.from_numpy(examples)
        if rows is not None:
            labels = labels[rows.to(labels.device)]
        observer = Observer(task.metrics, len(labels))
        for start in range(0, len(labels), batch_size):
            piece = slice(start, start + batch_size)
            batch = images[piece] if rows is None else images[rows[piece].to(images.device)]
            observer.add(start, Predictions(self.logits(batch, task, dtype), labels[piece]))
        return observer.scores(labels.cpu().numpy())

    def _prepared(self, dataset: ImageDataset, split: str) -> np.ndarray:
        stack = dataset.array(split) if self._leaves_alone() else None
        if stack is not None and stack.shape[1:3] == self.image_size:
            if stack.ndim == 3:
                stack = np.broadcast_to(stack[..., None], (*stack.shape, 3))
            return np.ascontiguousarray(stack.transpose(0, 3, 1, 2))
        return cached_inputs(dataset, split, self._resized, self._steps_key, (3, *self.image_size))

    def _leaves_alone(self) -> bool:
        """Return whether images that have the model's size stay as they are; a crop may come with a margin."""
        probe = np.random.default_rng(0).integers(0, 256, (*self.image_size, 3), np.uint8)
        return np.array_equal(self._resized(probe), probe.transpose(2, 0, 1))

    def _resized(self, image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image)
        for step in self._steps:
            picture = step(picture)
        pixels: np.ndarray = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        return pixels

    def _held(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return tensor.to(self.device) if array.nbytes < _SHARE_OF_MEMORY * free else tensor
        return tensor.to(self.device)
