"""A pick becomes a file that says where it came from and scores what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapmerge_core.errors import ExportError, StudyError
from mapmerge_core.studies.demo import create_demo_study
from mapmerge_core.studies.exporting import export_pick, slug
from mapmerge_core.studies.runner import execute_run, measure
from mapmerge_core.studies.spec import TaskSpec, read_manifest
from mapmerge_core.studies.store import Store, home
from mapmerge_core.weights.export import read_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.evaluators import EvaluatorCache
    from mapmerge_core.studies.rows import StudyRow


def test_the_recipe_knows_sources_predictions_and_measurements(
    store: Store, tiny_zoo: Path, evaluators: EvaluatorCache
):
    run = create_demo_study(store, 2, points=10, zoo=tiny_zoo)
    execute_run(store, run.id, evaluators.get)
    study = store.study(run.study_id)
    assert study.name == "Demo: Colours + Stripes"
    c = np.array([0.5, 0.25])
    pick = store.add_pick(study.id, c, {"kind": "point"}, name="My best!")
    measured = measure(store, study, evaluators.get(study), c[None], split="test")[0]
    result = export_pick(store, pick.id)
    assert result.path == store.folder / "exports" / "demo-colours-stripes" / f"my-best-{pick.id}.safetensors"
    assert store.pick(pick.id).exported == result.path
    recipe = read_recipe(result.path)
    assert recipe.coefficients == {"Colours": 0.5, "Stripes": 0.25}
    assert recipe.measured == dict(zip(study.spec.task_names, measured.tolist(), strict=True))
    assert set(recipe.predicted) == {"Colours", "Stripes"}
    assert recipe.sources["pretrained"]["sha256"] == study.sources[0].sha256
    assert recipe.sources["Colours"]["path"] == str(tiny_zoo / "Colours.safetensors")
    assert recipe.tasks["Stripes"]["test_examples"] == 60


def test_a_pick_can_be_exported_before_anything_was_measured(store: Store, study: StudyRow, tmp_path: Path):
    pick = store.add_pick(study.id, np.array([0.5, 0.25]), {"kind": "point"})
    to_file = export_pick(store, pick.id, tmp_path / "out" / "model.safetensors")
    assert to_file.path == tmp_path / "out" / "model.safetensors"
    to_folder = export_pick(store, pick.id, tmp_path / "folder")
    assert to_folder.path == tmp_path / "folder" / f"merged-{pick.id}.safetensors"
    assert to_file.path.read_bytes()[-1000:] == to_folder.path.read_bytes()[-1000:]
    assert (read_recipe(to_file.path).predicted, read_recipe(to_file.path).measured) == ({}, {})


def test_an_export_replaces_nothing_but_an_export(
    store: Store, study: StudyRow, tmp_path: Path, tiny_zoo: Path
):
    pick = store.add_pick(study.id, np.array([0.5, 0.25]), {"kind": "point"})
    before = (tiny_zoo / "Colours.safetensors").read_bytes()
    with pytest.raises(ExportError, match="one of the study's own files"):
        export_pick(store, pick.id, tiny_zoo / "Colours.safetensors")
    with pytest.raises(ExportError, match=r"tiny-clip\.json is one of the study's own files"):
        export_pick(store, pick.id, tiny_zoo / "tiny-clip.safetensors")
    assert (tiny_zoo / "Colours.safetensors").read_bytes() == before
    with pytest.raises(ExportError, match="was not exported by mapmerge"):
        export_pick(store, pick.id, tiny_zoo / "Light.safetensors")
    notes = tmp_path / "model.README.md"
    notes.write_text("mine")
    with pytest.raises(ExportError, match=r"model\.README\.md is there already"):
        export_pick(store, pick.id, tmp_path / "model.safetensors")
    assert notes.read_text() == "mine"
    assert [path.name for path in tmp_path.glob("model*")] == ["model.README.md"]
    notes.unlink()
    for _ in range(2):  # the second replaces the first
        export_pick(store, pick.id, tmp_path / "model.safetensors")
    export_pick(store, pick.id).path.unlink()  # as if it had been moved elsewhere
    assert export_pick(store, pick.id).path.exists()


@pytest.mark.parametrize(
    ("path", "sentence"), [("~nobody-has-this-name/x", "home"), ("a\0b", "NUL"), ("x" * 300, "too long")]
)
def test_paths_that_no_file_can_have_are_refused(
    store: Store, study: StudyRow, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str
):
    pick = store.add_pick(study.id, np.zeros(2), {"kind": "point"})
    for call in (
        lambda: export_pick(store, pick.id, path),
        lambda: TaskSpec("A", path, path),
        lambda: read_manifest(path),
        lambda: Store(path),
        lambda: Store(url=f"sqlite:///{path}"),
    ):
        with pytest.raises(StudyError, match=sentence):
            call()
    if "\0" not in path:
        monkeypatch.setenv("MAPMERGE_HOME", path)
        with pytest.raises(StudyError, match=sentence):
            home()


def test_names_become_folders():
    assert slug("Zürich: A + B (2)") == "zurich-a-b-2"
    assert slug("模型") == "study"


def test_a_pick_that_is_gone_is_refused(store: Store):
    with pytest.raises(StudyError, match="no pick 7"):
        export_pick(store, 7)
