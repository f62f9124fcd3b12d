"""The study that a command works on: one that is kept, or one that a folder or a file says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.demo import config_from_manifest, demo_study, demo_tasks
from mapmerge_core.studies.config.study import StudyConfig
from mapmerge_core.studies.config.study_file import STUDY_FILE, StudyFile, read_study_file
from mapmerge_core.studies.discovery.proposing import propose
from mapmerge_core.studies.inputs.downloading import download_text, downloads
from mapmerge_core.studies.inputs.sources import check_files, read_sources

if TYPE_CHECKING:
    from mapmerge_core.studies.inputs.checking import StudyCheck
    from mapmerge_core.studies.store import Store, StoredMerge, Study


def read_place(place: Path, tasks: str | None, name: str) -> StudyFile:
    """Read the study that a folder or a file says.

    Args:
        place: A study file, or a folder with a manifest, a study file or models.
        tasks: Which of its tasks, see `chosen_tasks`.
        name: Another name for it, "" for its own.

    Raises:
        StudyError: Something is wrong with it, or a person must say more.
    """
    if (place / "manifest.json").exists():
        offered = [task.name for task in config_from_manifest(place).tasks]
        return StudyFile(name=name, config=config_from_manifest(place, chosen_tasks(tasks, offered, place)))
    file = _study_file(place)
    config = file.config
    chosen = chosen_tasks(tasks, [task.name for task in config.tasks], place)
    if chosen is not None:
        config = config.with_tasks(chosen)
    return replace(file, name=" ".join((name or file.name).split()), config=config)


def demo_of(tasks: str | None, points: int | None, seed: int, device: str, zoo: Path | None) -> StudyFile:
    """Return the demo with the tasks that were typed: how many, or their names; two by default.

    Raises:
        StudyError: The zoo doesn't have such tasks, or the points are too few.
        SearchError, SettingError: The points or the seed can't be used.
    """
    where = {} if zoo is None else {"zoo": zoo}
    if tasks is None or tasks.strip().lstrip("-").isdecimal():
        wanted: int | Sequence[str] = 2 if tasks is None else int(tasks)
    else:
        wanted = [name.strip() for name in tasks.split(",")]
    return demo_study(wanted, points=points, seed=seed, device=device, **where)


def chosen_tasks(typed: str | None, offered: Sequence[str], place: Path) -> list[str] | None:
    """Return the tasks that were typed: how many of the first, or their names; None for all.

    Raises:
        StudyError: There is no such task.
    """
    if typed is None:
        return None
    if typed.strip().isdecimal():
        number = int(typed)
        if not 1 <= number <= len(offered):
            raise StudyError(f"{place} has {len(offered)} tasks: choose from 1 to {len(offered)}, not {number}.")
        return (
            list(demo_tasks(number, place))
            if (place / "manifest.json").exists() and 1 < number < len(offered)
            else list(offered[:number])
        )
    names = [name.strip() for name in typed.split(",")]
    for name in names:
        if name not in offered:
            raise StudyError(f"{place} has no task '{name}': choose among {', '.join(offered)}.")
    return names


def open_study(store: Store, file: StudyFile) -> Study:
    """Return the latest study of the same by that name whose files haven't changed, or keep a new one.

    A new one's models and data are checked first, and what was guessed and will be downloaded is said.

    Raises:
        MapMergeError: Its models or data don't fit.
    """
    return kept_study(store, file.name, file.config) or new_study(store, file)


def kept_study(store: Store, name: str, config: StudyConfig) -> Study | None:
    """Return the latest study of the same by that name, whose files haven't changed since."""
    for study in store.studies.all():
        is_named = not name or study.name == name or study.name.startswith(f"{name} (")
        if is_named and study.config == config and study.sources == read_sources(config):
            return study
    return None


def new_study(store: Store, file: StudyFile) -> Study:
    """Check a study's models and data, say what was guessed, and keep it."""
    from mapmerge_core.studies.inputs.checking import check_study

    check_files(file.config)
    for download in downloads(file.config):
        if not download.cached:
            sys.stderr.write(f"To download: {download_text(download)}\n")
    _say_check(check_study(file.config))
    return store.studies.create(file.name, file.config)


def find_merge(store: Store, study: Study, text: str) -> StoredMerge:
    """Return a study's merge by its number, or by its name if there is one of it.

    Raises:
        StudyError: There is none, or several.
    """
    merges = store.merges.all(study.id)
    fitting = [merge for merge in merges if str(merge.id) == text] or [merge for merge in merges if merge.name == text]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{merge.name} ({merge.id})" for merge in merges)
    if fitting:
        raise StudyError(f"'{study.name}' has several merges '{text}': say which by its number: {listed}.")
    raise StudyError(f"'{study.name}' has no merge '{text}': it has {listed}.")


def _study_file(place: Path) -> StudyFile:
    """Read the study that a file says, or that a folder without a manifest suggests."""
    if place.suffix in {".yaml", ".yml"} or place.is_file():
        return read_study_file(place)
    if (place / STUDY_FILE).is_file():
        return read_study_file(place / STUDY_FILE)
    proposal = propose(place)
    for note in proposal.notes:
        sys.stderr.write(f"{note}\n")
    if proposal.missing:
        raise StudyError(
            f"{place} doesn't say all that a study needs: {proposal.missing[0]} Write it into a {STUDY_FILE} "
            "there, or open the folder on the Models page."
        )
    return proposal.study_file()


def _say_check(check: StudyCheck) -> None:
    """Say what was guessed of a new study's models and datasets, on standard error."""
    for model in check.models:
        if model.warning:
            sys.stderr.write(f"{model.warning}\n")
    for task, data in check.data.items():
        if data is None:
            continue
        notes = list(data.notes)
        if data.columns:
            columns = ", ".join(f"'{column}' as the {what}" for what, column in data.columns.items())
            notes.insert(0, f"The columns are {columns}.")
        if data.corrupt:
            notes.append(f"Images left out as unreadable: {len(data.corrupt)}.")
        for note in notes:
            sys.stderr.write(f"{task}: {note}\n")
