"""Studies of the tiny zoo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.config.study import StudySpec
from mapmerge_core.studies.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mapmerge_core.studies.store.rows import StudyRow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "home")
    yield store
    store.close()


@pytest.fixture
def spec(tiny_zoo: Path) -> StudySpec:
    return spec_from_manifest(tiny_zoo, ["Colours", "Stripes"])


@pytest.fixture
def study(store: Store, spec: StudySpec) -> StudyRow:
    return store.create_study("Tiny", spec)


@pytest.fixture(scope="session")
def evaluators() -> EvaluatorCache:
    return EvaluatorCache()
