"""Studies of the tiny zoo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mapmerge_core.studies.config import Compute, StudyConfig
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.store import Store, Study

if TYPE_CHECKING:
    from mapmerge_core.tasks.evaluator import Evaluator


def tiny_config(zoo: Path, tasks: Sequence[str] = ("Colours", "Stripes")) -> StudyConfig:
    """A study of some of the tiny zoo's tasks, each with the model that was fine-tuned for it."""
    values = {
        "family": "clip",
        "architecture": "tiny-clip.json",
        "pretrained": "pretrained.safetensors",
        "models": {task: f"{task}.safetensors" for task in tasks},
        "tasks": [{"name": task, "data": f"{task}.npz", "model": task} for task in tasks],
    }
    return StudyConfig.from_dict(values, zoo)


class Evaluators(EvaluatorCache):
    """A cache for the studies of many stores, whose ids may be the same."""

    _config: StudyConfig | None = None

    def get(self, study: Study, compute: Compute | None = None) -> Evaluator:
        if study.config != self._config:
            self.clear()
        self._config = study.config
        return super().get(study, compute)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "home")
    yield store
    store.close()


@pytest.fixture
def config(tiny_zoo: Path) -> StudyConfig:
    return tiny_config(tiny_zoo)


@pytest.fixture
def study(store: Store, config: StudyConfig) -> Study:
    return store.studies.create("Tiny", config)


@pytest.fixture(scope="session")
def evaluators() -> Evaluators:
    return Evaluators()
