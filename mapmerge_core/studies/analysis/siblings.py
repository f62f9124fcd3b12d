"""Studies of the same models and data that differ by what is done to the task vectors first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapmerge_core.studies.store.rows import StudyRow
    from mapmerge_core.studies.config.study import Transform
    from mapmerge_core.studies.store.store import Store


def family_of(store: Store, study: StudyRow) -> list[StudyRow]:
    """The study and its siblings, which have other transforms; first the one without, if there is one."""
    siblings = [other for other in _alike(store, study) if other.spec.transform != study.spec.transform]
    return sorted([study, *siblings], key=lambda member: member.spec.transform is not None)


def sibling(store: Store, study: StudyRow, transform: Transform | None) -> StudyRow:
    """The study of the same models and data with ``transform``, made where there is none.

    MAP on TIES or DARE (MAP, Figure 3) is a run of it.

    Raises:
        StudyError: where one of the files can't be read.
    """
    if study.spec.transform == transform:
        return study
    for other in _alike(store, study):
        if other.spec.transform == transform:
            return other
    plain = study.name
    if study.spec.transform:
        plain = plain.removesuffix(f" on {study.spec.transform.label}")
    name = f"{plain} on {transform.label}" if transform else plain
    return store.create_study(name, replace(study.spec, transform=transform))


def _alike(store: Store, study: StudyRow) -> list[StudyRow]:
    """All studies of the same models and data, the oldest first."""
    plain = replace(study.spec, transform=None)
    return [
        other
        for other in sorted(store.studies(), key=lambda row: row.id)
        if replace(other.spec, transform=None) == plain and other.sources == study.sources
    ]
