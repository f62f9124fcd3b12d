"""From a pick to a merged model's file, with all that the store knows about it."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from mapmerge_core.errors import CheckpointError, ExportError, StudyError
from mapmerge_core.studies.analysis import analyse
from mapmerge_core.studies.paths import absolute
from mapmerge_core.studies.spec import check_sources

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from mapmerge_core.studies.rows import PickRow, StudyRow
    from mapmerge_core.studies.store import Store
    from mapmerge_core.weights.export import ExportResult, Recipe


def export_pick(store: Store, pick_id: int, path: Path | str | None = None) -> ExportResult:
    """Writes the model that a pick stands for, and records where.

    Args:
        store: Where the pick, its predictions and its measurements are.
        pick_id: The pick.
        path: The file to write (ending in .safetensors), or a folder to write it to; by default one for the
            study under the data folder.

    Raises:
        StudyError: where there is no such pick, or a source has changed since the study was created.
        CheckpointError: where a source can't be read.
        ExportError: where the file can't be written, or would replace one that mapmerge didn't export.
    """
    from mapmerge_core.weights.export import save_merged
    from mapmerge_core.weights.task_vectors import TaskVectors

    pick = store.pick(pick_id)
    study = store.study(pick.study_id)
    target = _target(store, study, pick, path)
    if path is not None:  # the data folder holds nothing but exports, perhaps without a model moved elsewhere
        _check_target(target, study)
    check_sources(study.sources)
    vectors = TaskVectors.from_files(
        study.spec.pretrained,
        {task.name: task.checkpoint for task in study.spec.tasks},
        part=_merged_part(),
    )
    result = save_merged(target, vectors, pick.c, recipe=make_recipe(store, study, pick.c))
    store.update_pick(pick_id, exported=result.path)
    return result


def make_recipe(store: Store, study: StudyRow, c: np.ndarray) -> Recipe:
    """What is known about the merge at ``c`` (N,): its sources, and metrics predicted and measured."""
    from mapmerge_core.weights.export import Recipe

    tasks = study.spec.task_names
    by_role = {source.role: source for source in study.sources}
    roles = {"pretrained": "pretrained"} | {name: f"{name} checkpoint" for name in tasks}
    try:
        predicted, _, _ = analyse(store, study.id, with_front=False).predict(c)
    except StudyError:  # too few points for surrogates: coefficients can be exported all the same
        predictions = {}
    else:
        predictions = dict(zip(tasks, predicted.tolist(), strict=True))
    examples = {row.task: row.n_examples for row in store.evaluations(study.id, "test")}
    return Recipe(
        sources={
            name: {"path": str(by_role[role].path), "sha256": by_role[role].sha256}
            for name, role in roles.items()
        },
        predicted=predictions,
        measured=store.measured(study.id, c, "test"),
        tasks={
            name: {
                "metric": metric.name,
                "data_sha256": by_role[f"{name} data"].sha256,
                "test_examples": examples.get(name),
            }
            for name, metric in zip(tasks, study.spec.metrics, strict=True)
        },
        architecture=study.spec.architecture,
    )


def slug(text: str) -> str:
    """A name as files and folders can have it: plain letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "study"


def _merged_part() -> str:
    from mapmerge_core.tasks.families.clip import ClipZeroShot

    part: str = ClipZeroShot.part
    return part


def _target(store: Store, study: StudyRow, pick: PickRow, path: Path | str | None) -> Path:
    name = f"{slug(pick.name) if pick.name else 'merged'}-{pick.id}.safetensors"
    if path is None:
        return store.folder / "exports" / slug(study.name) / name
    path = absolute(path)
    return path if path.suffix == ".safetensors" else path / name


def _check_target(model: Path, study: StudyRow) -> None:
    """Makes sure that exporting to ``model`` replaces nothing but an earlier export."""
    from mapmerge_core.weights.export import read_recipe

    companions = [model.with_suffix(suffix) for suffix in (".README.md", ".mergekit.yaml")]
    if study.spec.architecture.endswith(".json"):
        companions.append(model.with_suffix(".json"))
    try:
        there = [path for path in (model, *companions) if path.exists()]
        sources = [path for path in study.spec.files().values() if path.exists()]
    except OSError as error:
        raise ExportError(f"{model.parent} can't be read: {error.strerror}.") from error
    for path in there:
        if any(path.samefile(source) for source in sources):
            raise ExportError(f"{path} is one of the study's own files: export to another name or folder.")
    if model.is_file():
        try:
            read_recipe(model)
        except CheckpointError as error:
            raise ExportError(
                f"{model} was not exported by mapmerge and is not replaced: export to another name or folder."
            ) from error
    elif there:
        raise ExportError(
            f"{there[0]} is there already and is not replaced: export to another name or folder."
        )
