"""From a point of a merge to a merged model's file, with all that the store knows about it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapmerge_core.errors import CheckpointError, ExportError, StudyError
from mapmerge_core.files import absolute, write_atomically
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.config import Compute
from mapmerge_core.studies.inputs.evaluators import load_evaluator, open_study_vectors
from mapmerge_core.studies.inputs.sources import check_sources, weights_of_sources
from mapmerge_core.studies.runs.targets import export_target, slug, slugs
from mapmerge_core.tasks.families import find_family
from mapmerge_core.weights.io.headers import read_header

if TYPE_CHECKING:
    from torch import Tensor

    from mapmerge_core.merges.base import PreparedMerge
    from mapmerge_core.studies.store import Store, StoredMerge, Study
    from mapmerge_core.weights.export.writing import ExportResult, Recipe


def export_pick(store: Store, pick_id: int, path: Path | str | None = None) -> ExportResult:
    """Write the model of a pick, and record where.

    Args:
        store: Where the pick, its predictions and its measurements are.
        pick_id: The pick.
        path: The file to write (ending in .safetensors), or a folder to write it to; by default one for the
            study under the data folder.

    Raises:
        StudyError: There is no such pick, its merge isn't prepared, or a source has changed since the study
            was created.
        CheckpointError: A source or what was prepared can't be read.
        ExportError: The file can't be written, or would replace one that mapmerge didn't export.
    """
    pick = store.picks.get(pick_id)
    name = f"{slug(pick.name) if pick.name else 'merged'}-{pick.id}.safetensors"
    result = _export(store, store.merges.get(pick.merge_id), pick.x, name, path)
    store.picks.update(pick_id, exported=result.path)
    return result


def export_point(
    store: Store, merge_id: int, x: np.ndarray | None = None, path: Path | str | None = None
) -> ExportResult:
    """Write the model of a merge at a point, by default its default point: the very weights measured there.

    Args:
        store: Where the merge and its measurements are.
        merge_id: The merge.
        x: A point of its space.
        path: As for `export_pick`.

    Raises:
        PointError: ``x`` is no point of the merge's space.
        StudyError, CheckpointError, ExportError: As for `export_pick`.
    """
    stored = store.merges.get(merge_id)
    x = stored.space.default if x is None else stored.space.point(x)
    return _export(store, stored, x, _file_name(stored, x), path)


def exported_point(store: Store, merge_id: int, x: np.ndarray | None = None) -> Path | None:
    """Return the file in the data folder that `export_point` wrote; None where it didn't, or it is gone.

    Raises:
        StudyError: There is no such merge.
    """
    stored = store.merges.get(merge_id)
    study = store.studies.get(stored.study_id)
    name = _file_name(stored, stored.space.default if x is None else stored.space.point(x))
    path = export_target(store, study, name, None, _like(study))
    # A file from before the merge belongs to one that was deleted since.
    made = stored.created.replace(tzinfo=UTC).timestamp()
    return path if path.is_file() and path.stat().st_mtime >= made else None


def export_merge_state(store: Store, merge_id: int, path: Path | str) -> Path:
    """Copy the file that a merge's preparation wrote, from which its model at any point can be made.

    Args:
        store: Where it is.
        merge_id: The merge.
        path: The file to write, ending in .safetensors, or a folder to write it to.

    Returns:
        The file.

    Raises:
        StudyError: The merge isn't prepared, or keeps nothing.
        ExportError: The file can't be written, or would replace another kind of file.
    """
    stored = store.merges.get(merge_id)
    source, target = _state(store, stored), absolute(path)
    if source is None:
        raise StudyError(f"{stored.make().title} keeps nothing: export the model of a point instead.")
    if target.suffix != ".safetensors":
        target = target / source.name
    if target.exists() and not _is_state(target):
        raise ExportError(f"{target} is no prepared merge, and stays: choose another file.")
    try:
        with write_atomically(target) as beside:
            shutil.copyfile(source, beside)
    except OSError as error:
        raise ExportError(f"{target} can't be written ({error.strerror}): choose another place.") from error
    return target


def _export(store: Store, stored: StoredMerge, x: np.ndarray, name: str, path: Path | str | None) -> ExportResult:
    from mapmerge_core.weights.export.writing import save_model

    study = store.studies.get(stored.study_id)
    like = _like(study)
    target = export_target(store, study, name, path, like)
    check_sources(study.sources)
    state, merge = _state(store, stored), stored.make()
    # Tensor by tensor, so that no model needs to fit into memory; a transform needs all of them there.
    vectors = open_study_vectors(
        study.config,
        weights_of_sources(study.config, study.sources),
        on_disk=None if merge.needs.whole_models else True,
    )
    prepared = merge.load(state, vectors, vectors)
    replaced, extra = _extras(study, stored, state, x)
    return save_model(
        target,
        vectors.described,
        prepared.tensors(x),
        recipe=_recipe(store, study, stored, prepared, x),
        like=like,
        replaced=replaced,
        extra=extra,
    )


def _file_name(stored: StoredMerge, x: np.ndarray) -> str:
    is_default = np.array_equal(x, stored.space.default)
    where = "" if is_default else f"-{hashlib.sha256(x.tobytes()).hexdigest()[:8]}"
    return f"{slug(stored.make().title)}-{stored.id}{where}.safetensors"


def _state(store: Store, stored: StoredMerge) -> Path | None:
    """Return the file of what a merge's preparation found, None for merges that keep nothing."""
    merge = stored.make()
    if not merge.has_state:
        return None
    if not stored.is_prepared:
        raise StudyError(f"{merge.title} is not prepared yet: prepare it first.")
    return store.merges.state_file(stored.id)


def _extras(
    study: Study, stored: StoredMerge, state: Path | None, x: np.ndarray
) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
    """Return what a model's family adds to it; computed on the CPU, as the merge is."""
    if not find_family(study.config.family).has_extras():
        return {}, {}
    evaluator = load_evaluator(study, Compute(device="cpu", precision="float32"))
    prepared = stored.make().load(state, evaluator.vectors, evaluator.exported_vectors)
    replaced, extra = evaluator.extras((prepared, x))
    return replaced, dict(zip(slugs(extra), extra.values(), strict=True))


def _like(study: Study) -> Path | None:
    """Return the pre-trained model's folder or configuration, if a library of models loads such folders."""
    pretrained = weights_of_sources(study.config, study.sources)["pretrained"]
    return find_family(study.config.family).exported_like(study.config.architecture, pretrained)


def _recipe(store: Store, study: Study, stored: StoredMerge, prepared: PreparedMerge, x: np.ndarray) -> Recipe:
    """Gather what is known about a merged model; metrics by the objectives' names."""
    from mapmerge_core.weights.export.writing import Recipe

    config, merge = study.config, stored.make()
    family = find_family(config.family)
    hashes = {source.role: source.sha256 for source in study.sources}
    roles = {"pretrained": "pretrained"} | {name: f"{name} model" for name in config.model_names}
    coefficients, sums, layers = prepared.coefficients(x), {}, {}
    if coefficients is not None and coefficients.ndim == 1:
        sums = dict(zip(config.model_names, coefficients.tolist(), strict=True))
    elif coefficients is not None:
        layers = dict(zip(prepared.exported.layers, coefficients.tolist(), strict=True))
    tested = {row.objective: row for row in store.evaluations.rows(stored.id, "test")}
    measured = store.evaluations.measured(stored.id, x, "test")
    return Recipe(
        method=merge.title,
        point=dict(zip(stored.space.names, x.tolist(), strict=True)),
        coefficients=sums,
        layers=layers,
        settings={**config.options, **stored.settings},
        sources={name: {"path": str(config.weights[role]), "sha256": hashes[role]} for name, role in roles.items()},
        predicted=_predicted(store, study, stored, x),
        measured={o.name: measured[o.key] for o in config.objectives if o.key in measured},
        tasks={
            o.name: {
                "task": o.task,
                "metric": o.metric.name,
                "is_share": o.metric.is_share,
                "test_examples": tested[o.key].n_examples if o.key in tested else None,
            }
            | ({"data_sha256": hashes[data]} if (data := f"{o.task} data") in hashes else {})
            for o in config.objectives
        },
        family=config.family,
        library=family.library,
        architecture=config.architecture if family.needs_architecture else "",
        preprocessing=family.preprocessing(
            config.architecture, {**config.options, **family.options_for(config.pretrained)}
        ),
    )


def _predicted(store: Store, study: Study, stored: StoredMerge, x: np.ndarray) -> dict[str, float]:
    """Return the surrogates' metrics by objective; none where too few points for surrogates were measured."""
    try:
        predicted, _, _ = analyse(store, study.id, merges=[stored.id], with_front=False).predict(stored.id, x)
    except StudyError:  # a model can be exported all the same
        return {}
    return {o.name: value for o, value in zip(study.config.objectives, predicted.tolist(), strict=True)}


def _is_state(path: Path) -> bool:
    """Return whether a file is what a merge's preparation wrote."""
    try:
        header = json.loads(read_header(path).metadata.get("mapmerge", "null"))
    except (CheckpointError, ValueError):
        return False
    return isinstance(header, dict) and {"merge", "models", "layers"} <= header.keys()
