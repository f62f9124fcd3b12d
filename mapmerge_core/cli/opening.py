"""The study that a command works on: one that is kept, or one that a folder or a file says."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mapmerge_core.cli.reports import say_check
from mapmerge_core.errors import StudyError
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.inputs.checking import check_spec
from mapmerge_core.studies.inputs.downloading import download_text, downloads
from mapmerge_core.studies.config.manifest import demo_training, is_demo, spec_from_manifest
from mapmerge_core.studies.discovery.proposing import propose
from mapmerge_core.studies.inputs.sources import check_files, read_sources
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.studies.config.study_file import STUDY_FILE, read_study_file

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from mapmerge_core.methods.catalogue import MethodName
    from mapmerge_core.studies.store.rows import RunRow, StudyRow
    from mapmerge_core.studies.config.run import RunSettings
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.studies.config.study_file import StudyFile


@dataclass(frozen=True)
class Place:
    """A study as a folder or a file says it, with what was typed.

    Attributes:
        name: Its name; "" for one made from its tasks.
        spec: What it is made of.
        file: What its study file says; None for a folder with a manifest.
    """

    name: str
    spec: StudySpec
    file: StudyFile | None


def read_place(options: Namespace) -> Place:
    """Reads the folder or file ``options.place``, for its ``tasks``, ``name`` and ``transform``.

    Raises:
        StudyError: Something is wrong with it, or a person must say more.
    """
    transform, tasks = given_transform(options), given_tasks(options)
    if (options.place / "manifest.json").exists():
        spec = replace(spec_from_manifest(options.place, tasks), transform=transform)
        return Place(options.name or "", spec, None)
    file = _study_file(options.place)
    spec = replace(file.spec, transform=transform) if transform else file.spec
    if tasks is not None:
        offered = {task.name: task for task in spec.tasks}
        for name in tasks:
            if name not in offered:
                raise StudyError(f"{options.place} has no task '{name}': choose among {', '.join(offered)}.")
        spec = replace(spec, tasks=tuple(offered[name] for name in tasks))
    return Place(" ".join((options.name or file.name).split()), spec, file)


def new_study(store: Store, place: Place) -> StudyRow:
    """Checks a study's models and data, says what was guessed, and keeps it."""
    check_files(place.spec)
    for download in downloads(place.spec):
        if not download.cached:
            sys.stderr.write(f"To download: {download_text(download)}\n")
    say_check(check_spec(place.spec))
    return store.create_study(place.name, place.spec)


def kept_study(store: Store, place: Place) -> StudyRow | None:
    """The latest study of the same by that name, whose files haven't changed since."""
    name, spec = place.name, place.spec
    for study in store.studies():
        named = not name or study.name == name or study.name.startswith(f"{name} (")
        if named and study.spec == spec and study.sources == read_sources(spec):
            return study
    return None


def find_run(store: Store, study: StudyRow, method: MethodName, settings: RunSettings) -> RunRow | None:
    """The run that asks for the same, wherever it evaluates, if there is one; a done one first."""
    computing = {name: getattr(settings, name) for name in ("device", "precision", "vectors")}
    alike = [
        run
        for run in store.runs(study.id)
        if run.method == method and replace(run.settings, **computing) == settings
    ]
    return max(alike, key=lambda run: (run.status == "done", run.id), default=None)


def usual_training(spec: StudySpec) -> Training:
    """How Pareto Merging learns from a study's models unless a person says otherwise."""
    return demo_training(len(spec.tasks)) if is_demo(spec) else Training()


def given_tasks(options: Namespace) -> list[str] | None:
    """The tasks that were typed."""
    return None if options.tasks is None else [name.strip() for name in options.tasks.split(",")]


def given_transform(options: Namespace) -> Transform | None:
    """The transform that was typed."""
    shares = {name: getattr(options, name) for name in ("keep", "drop") if getattr(options, name) is not None}
    used = {None: set(), "dare": {"drop"}}.get(options.transform, {"keep"})
    for name in shares.keys() - used:
        raise StudyError(
            f"--{name} goes with --transform {'dare' if name == 'drop' else 'ties_trim or ties'}."
        )
    return None if options.transform is None else Transform(options.transform, **shares)


def _study_file(place: Path) -> StudyFile:
    """The study that a file says, or that a folder without a manifest suggests.

    Raises:
        StudyError: Something is wrong with it, or a person must say more.
    """
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
