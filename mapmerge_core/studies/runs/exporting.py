"""From a pick or a baseline to a merged model's file, with all that the store knows about it."""

from __future__ import annotations

import re
import shutil
import unicodedata
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mapmerge_core.errors import CheckpointError, ExportError, StudyError
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.runs.baselines import baseline_values, find_kind, weights_of
from mapmerge_core.studies.inputs.evaluators import load_evaluator, open_clip_tag, read_vectors
from mapmerge_core.studies.analysis.learned import learned_set, measured_at, run_name
from mapmerge_core.studies.runs.learning import load_learned
from mapmerge_core.files import absolute
from mapmerge_core.studies.inputs.sources import check_sources, weights_of_sources
from mapmerge_core.weights.io.folders import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from mapmerge_core.studies.store.rows import BaselineRow, StudyRow
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator
    from mapmerge_core.weights.export.writing import ExportResult, Recipe


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
    pick = store.pick(pick_id)
    study = store.study(pick.study_id)
    name = f"{slug(pick.name) if pick.name else 'merged'}-{pick.id}.safetensors"
    target = _target(store, study, name, path)
    check_sources(study.sources)
    result = _save(target, study, pick.c, make_recipe(store, study, pick.c))
    store.update_pick(pick_id, exported=result.path)
    return result


def export_baseline(store: Store, baseline_id: int, path: Path | str | None = None) -> ExportResult:
    """Writes the model of a baseline, the very weights that are measured.

    Args:
        store: Where the baseline and its measurements are.
        baseline_id: The baseline.
        path: As for `export_pick`.

    Raises:
        StudyError: where there is no such baseline, its model is gone, or a source has changed.
        CheckpointError: where a source or its model can't be read.
        ExportError: where the file can't be written, or would replace one that mapmerge didn't export.
    """
    from mapmerge_core.weights.export.writing import save_model

    baseline = store.baseline(baseline_id)
    study = store.study(baseline.study_id)
    kind = find_kind(baseline.name)
    target = _target(store, study, _file_name(baseline), path)
    check_sources(study.sources)
    measured = zip(study.spec.task_names, baseline_values(store, baseline).tolist(), strict=True)
    recipe = replace(
        make_recipe(store, study, baseline.c),
        method=kind.title,
        settings={**study.spec.options, **baseline.settings},
        measured={task: value for task, value in measured if np.isfinite(value)},
    )
    if baseline.c is not None:
        return _save(target, study, baseline.c, recipe)
    vectors = read_vectors(study)
    if baseline.layers is not None:
        layers = dict(zip(vectors.layers, baseline.layers.tolist(), strict=True))
        recipe = replace(recipe, layers=layers)
    merged = weights_of(store, baseline, vectors)
    replaced, extra = _extras(study, lambda evaluator: evaluator.extras_of(merged))
    return save_model(target, merged | dict(replaced), recipe=recipe, like=_like(study), extra=extra)


def export_learned_pick(store: Store, pick_id: int, path: Path | str | None = None) -> ExportResult:
    """Writes a learned set's model for a preference that a person chose, the very weights measured.

    Args:
        store: Where the pick, its set and its measurements are.
        pick_id: The pick.
        path: As for `export_pick`.

    Raises:
        StudyError: where there is no such pick, its learned set is gone, or a source has changed.
        CheckpointError: where a source or the set can't be read.
        ExportError: where the file can't be written, or would replace one that mapmerge didn't export.
    """
    from mapmerge_core.weights.export.writing import save_model
    from mapmerge_core.weights.vectors.streamed import in_memory

    pick = store.learned_pick(pick_id)
    study = store.study(pick.study_id)
    name = f"{slug(pick.name) if pick.name else 'merged'}-learned-{pick.id}.safetensors"
    target = _target(store, study, name, path)
    check_sources(study.sources)
    learned = learned_set(store, pick.run_id)
    training = asdict(learned.run.settings.training or Training())
    predicted, _, _, _ = learned.predict(pick.gamma)
    measured = measured_at(*store.learned_table(pick.run_id, "test"), pick.gamma[None])[0]
    examples = store.learned_examples(pick.run_id, "test")
    recipe = make_recipe(store, study, None)
    recipe = replace(
        recipe,
        method=run_name(learned.run, study.spec),
        settings={
            **study.spec.options,
            "preference": dict(zip(learned.tasks, pick.gamma.tolist(), strict=True)),
            **{name: value for name, value in training.items() if value is not None},
            "seed": learned.run.settings.seed,
            "run": pick.run_id,
        },
        predicted=dict(zip(learned.tasks, predicted.tolist(), strict=True)),
        measured={
            task: value
            for task, value in zip(learned.tasks, measured.tolist(), strict=True)
            if np.isfinite(value)
        },
        tasks={
            task: {**about, "test_examples": examples.get(task, about["test_examples"])}
            for task, about in recipe.tasks.items()
        },
    )
    merged = load_learned(store, pick.run_id, in_memory(read_vectors(study))).merge(pick.gamma)
    replaced, extra = _extras(study, lambda evaluator: evaluator.extras_of(merged))
    result = save_model(target, merged | dict(replaced), recipe=recipe, like=_like(study), extra=extra)
    store.update_learned_pick(pick_id, exported=result.path)
    return result


def export_learned_set(store: Store, run_id: int, path: Path | str) -> Path:
    """Copies a learned set's file, from which a model for any preference can be made.

    Args:
        store: Where it is.
        run_id: The run that learned it.
        path: The file to write, ending in .safetensors, or a folder to write it to.

    Returns:
        The file.

    Raises:
        StudyError: where there is no learned set.
        ExportError: where the file can't be written, or would replace one that is no learned set.
    """
    from mapmerge_core.merges._pareto_set import read_header

    learned_set(store, run_id)
    source, target = store.learned_file(run_id), absolute(path)
    if target.suffix != ".safetensors":
        target = target / source.name
    try:
        if target.exists():
            read_header(target)
    except CheckpointError:
        raise ExportError(f"{target} is no learned set, and stays: choose another file.") from None
    beside = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, beside)
        beside.replace(target)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise ExportError(f"{target} can't be written ({error.strerror}): choose another place.") from error
    return target


def _save(target: Path, study: StudyRow, c: np.ndarray, recipe: Recipe) -> ExportResult:
    """Writes θ(c) in the pre-trained model's form, with what its family adds to a merge."""
    from mapmerge_core.weights.export.writing import save_merged

    replaced, extra = _extras(study, lambda evaluator: evaluator.extras(c))
    # Tensor by tensor, so that no model needs to fit into memory; a transform needs all of them there.
    vectors = read_vectors(study, on_disk=True if study.spec.transform is None else None)
    return save_merged(target, vectors, c, recipe=recipe, like=_like(study), replaced=replaced, extra=extra)


def _extras(
    study: StudyRow,
    ask: Callable[[Evaluator], tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]],
) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
    """What a merge's family adds to it; computed on the CPU, as the merge is, where it adds anything."""
    from mapmerge_core.tasks.families import family_class
    from mapmerge_core.tasks.families.base import Family

    if family_class(study.spec.family).extras is Family.extras:
        return {}, {}
    replaced, extra = ask(load_evaluator(study, "cpu", "float32"))
    return replaced, dict(zip(slugs(extra), extra.values(), strict=True))


def _like(study: StudyRow) -> Path | None:
    """The pre-trained model's folder, or its configuration, if a library of models loads such folders."""
    if study.spec.family == "clip":
        config = Path(study.spec.architecture)
        return config if config.name == "open_clip_config.json" else None
    folder = weights_of_sources(study.spec, study.sources)["pretrained"]
    return folder if (folder / "config.json").is_file() else None


def exported_baseline(store: Store, baseline_id: int) -> Path | None:
    """The file in the data folder that a baseline was exported to, None where it wasn't or the file is gone.

    Raises:
        StudyError: where there is no such baseline.
    """
    baseline = store.baseline(baseline_id)
    path = _target(store, store.study(baseline.study_id), _file_name(baseline), None)
    # A file from before the baseline belongs to one that was deleted since.
    made = baseline.created.replace(tzinfo=UTC).timestamp()
    return path if path.is_file() and path.stat().st_mtime >= made else None


def make_recipe(store: Store, study: StudyRow, c: np.ndarray | None) -> Recipe:
    """What is known about a merge: its sources and, where it is a ``c`` (N,), its metrics."""
    from mapmerge_core.weights.export.writing import Recipe

    tasks = study.spec.task_names
    by_role = {source.role: source for source in study.sources}
    roles = {"pretrained": "pretrained"} | {name: f"{name} checkpoint" for name in tasks}
    examples = {row.task: row.n_examples for row in store.evaluations(study.id, "test")}
    return Recipe(
        sources={
            name: {"path": str(study.spec.weights[role]), "sha256": by_role[role].sha256}
            for name, role in roles.items()
        },
        transform=_transform(study),
        predicted={} if c is None else _predict(store, study, c),
        measured={} if c is None else store.measured(study.id, c, "test"),
        tasks={
            name: {
                "metric": metric.name,
                "test_examples": examples.get(name),
            }
            | ({"data_sha256": by_role[data].sha256} if (data := f"{name} data") in by_role else {})
            for name, metric in zip(tasks, study.spec.metrics, strict=True)
        },
        family=study.spec.family,
        architecture=study.spec.architecture if study.spec.family in ("clip", "classifier") else "",
        settings=study.spec.options,
        preprocessing=_preprocessing(study.spec),
    )


def _preprocessing(spec: StudySpec) -> dict[str, Any]:
    """How a study's weights want their images, where a program that loads an export must say so."""
    if not (tag := open_clip_tag(spec)) or spec.architecture.endswith(".json"):
        return {}
    from mapmerge_core.tasks.families.clip import preprocessing_of

    return preprocessing_of(tag)


def slug(text: str) -> str:
    """A name as files and folders can have it: plain letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "study"


def slugs(names: Iterable[str]) -> list[str]:
    """Each name's `slug`, numbered where others have the same: such as those in scripts of other letters."""
    found: list[str] = []
    for name in names:
        plain, n = slug(name), 1
        while (numbered := plain if n == 1 else f"{plain}-{n}") in found:
            n += 1
        found.append(numbered)
    return found


def _predict(store: Store, study: StudyRow, c: np.ndarray) -> dict[str, float]:
    """The surrogates' metrics at ``c`` by task; none where too few points for surrogates were measured."""
    try:
        predicted, _, _ = analyse(store, study.id, with_front=False).predict(c)
    except StudyError:  # coefficients can be exported all the same
        return {}
    return dict(zip(study.spec.task_names, predicted.tolist(), strict=True))


def _transform(study: StudyRow) -> dict[str, Any]:
    """What was done to the task vectors, without the settings that don't matter for it."""
    if study.spec.transform is None:
        return {}
    idle = ("keep",) if study.spec.transform.kind == "dare" else ("drop", "seed")
    return {name: value for name, value in asdict(study.spec.transform).items() if name not in idle}


def _file_name(baseline: BaselineRow) -> str:
    return f"{slug(find_kind(baseline.name).title)}-{baseline.id}.safetensors"


def _target(store: Store, study: StudyRow, name: str, path: Path | str | None) -> Path:
    """The file to write: ``path``, or the file ``name`` in it, or that in the study's folder of exports."""
    if _like(study):
        name = f"{name.removesuffix('.safetensors')}/model.safetensors"
    if path is None:  # the data folder holds nothing but exports, perhaps without a model moved elsewhere
        return store.folder / "exports" / slug(study.name) / name
    path = absolute(path)
    _check_name(path, study)
    target = path if path.suffix == ".safetensors" else path / name
    _check_target(target, study)
    return target


def _check_name(path: Path, study: StudyRow) -> None:
    """Refuses what was typed as a file's name and isn't one of a merged model."""
    is_model = path.suffix == ".safetensors"
    if _like(study):
        if path.is_file() or (is_model and path.name != "model.safetensors"):
            raise ExportError(f"{path} is no folder, and this model is exported to one: name a folder.")
    elif not is_model and (path.is_file() or (path.name.endswith(SUFFIXES) and not path.is_dir())):
        raise ExportError(f"{path} can't be exported to: name a file that ends in .safetensors, or a folder.")


def _check_target(model: Path, study: StudyRow) -> None:
    """Makes sure that exporting to ``model`` replaces nothing but an earlier export."""
    from mapmerge_core.weights.export.writing import read_recipe

    try:
        if _like(study):
            there = sorted(model.parent.iterdir()) if model.parent.is_dir() else []
        else:
            companions = [model.with_suffix(suffix) for suffix in (".README.md", ".mergekit.yaml")]
            if study.spec.architecture.endswith(".json"):
                companions.append(model.with_suffix(".json"))
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
