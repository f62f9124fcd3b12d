"""Fixtures that every folder of tests may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import build_tiny_zoo


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the demo zoo's format with one tiny CLIP and three fine-tuned towers."""
    return build_tiny_zoo(tmp_path_factory.mktemp("tiny-zoo"))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches a person's data folder or cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAPMERGE_HOME", str(tmp_path_factory.mktemp("home")))
        yield
