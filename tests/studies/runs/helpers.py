"""What tests of runs share: short runs, and plain references by way of open_clip, PIL and NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import torch
from torch import Tensor

from mapmerge_core.studies.config import Compute, RunConfig
from mapmerge_core.studies.runs.measuring import reference_points
from mapmerge_core.studies.runs.runner import execute_run
from tests.tiny import ARCHITECTURE, plain_head, plain_transform

if TYPE_CHECKING:
    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store import Run, Split, Store, Study

CPU = Compute(device="cpu", precision="float32")
_FIELDS = {field.name for field in fields(RunConfig)}


def run_config(**settings: object) -> RunConfig:
    """A run of 6 points in float32; whatever is no field of a run is a setting of its method."""
    given = {"compute": CPU, "points": 6} | settings
    method_settings = {name: value for name, value in given.items() if name not in _FIELDS}
    return RunConfig(
        **{name: value for name, value in given.items() if name in _FIELDS}, method_settings=method_settings
    )


def execute(store: Store, study: Study, evaluators: EvaluatorCache, **settings: object) -> Run:
    """Claim and execute a new run."""
    run = store.runs.create(study.id, run_config(**settings))
    claim = store.runs.claim(run.id)
    try:
        return execute_run(store, run.id, evaluators.get)
    finally:
        claim.release()


def plain(store: Store, study: Study) -> int:
    """The id of plain task arithmetic."""
    return reference_points(store, study)[0]


def table(store: Store, merge_id: int, split: Split = "val") -> tuple[np.ndarray, np.ndarray]:
    """The points and values that were measured."""
    measured = store.evaluations.table(merge_id, split)
    return measured.X, measured.Y


def plain_scores(weights: Mapping[str, Tensor], zoo: Path, tasks: Sequence[str], split: str) -> list[float]:
    """Accuracies of a CLIP model's state dict."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(weights)
    scores = []
    for task in tasks:
        with np.load(zoo / f"{task}.npz") as data, torch.inference_mode():
            head = plain_head(model, data["class_names"].tolist(), data["templates"].tolist())
            images = plain_transform(data[f"{split}_images"], model)
            guesses = (model.encode_image(images, normalize=True) @ head).argmax(dim=1).numpy()
            scores.append(float((guesses == data[f"{split}_labels"]).mean()))
    return scores
