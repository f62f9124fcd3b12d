"""A pick or a baseline becomes a file that says where it came from and scores what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from mapmerge_core.errors import ExportError, StudyError
from mapmerge_core.studies.runs import exporting
from mapmerge_core.studies.runs.baselines import make_baseline, measure_baseline
from mapmerge_core.studies.config.demo import create_demo_study
from mapmerge_core.studies.runs.exporting import export_baseline, export_pick, exported_baseline, slug, slugs
from mapmerge_core.studies.jobs.jobs import Jobs
from mapmerge_core.studies.config.manifest import read_manifest
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.config.study import TaskSpec, Transform
from mapmerge_core.studies.store.store import Store, home
from mapmerge_core.weights.export.writing import read_recipe
from tests.tiny import ARCHITECTURE, plain_head, plain_transform

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store.rows import Study


def plain_scores(model_file: Path, zoo: Path, tasks: tuple[str, ...]) -> dict[str, float]:
    """Test accuracies by way of open_clip, PIL and NumPy alone."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(load_file(model_file))
    scores = {}
    for task in tasks:
        arrays = np.load(zoo / f"{task}.npz")
        head = plain_head(model, arrays["class_names"].tolist(), arrays["templates"].tolist())
        with torch.inference_mode():
            logits = model.encode_image(plain_transform(arrays["test_images"], model), normalize=True) @ head
        scores[task] = float((logits.argmax(1).numpy() == arrays["test_labels"]).mean())
    return scores


def test_the_recipe_knows_sources_predictions_and_measurements(
    store: Store, tiny_zoo: Path, evaluators: EvaluatorCache
):
    run = create_demo_study(store, 2, points=10, zoo=tiny_zoo)
    execute_run(store, run.id, evaluators.get)
    study = store.studies.get(run.study_id)
    assert study.name == "Demo: Colours + Stripes"
    c = np.array([0.5, 0.25])
    pick = store.add_pick(study.id, c, {"kind": "point"}, name="My best!")
    measured = measure(store, study, evaluators.get(study), c[None], split="test")[0]
    result = export_pick(store, pick.id)
    assert result.path == store.folder / "exports" / "demo-colours-stripes" / f"my-best-{pick.id}.safetensors"
    assert store.pick(pick.id).exported == result.path
    recipe = read_recipe(result.path)
    assert recipe.coefficients == {"Colours": 0.5, "Stripes": 0.25}
    assert recipe.measured == dict(zip(study.config.task_names, measured.tolist(), strict=True))
    assert set(recipe.predicted) == {"Colours", "Stripes"}
    assert recipe.sources["pretrained"]["sha256"] == study.sources[0].sha256
    assert recipe.sources["Colours"]["path"] == str(tiny_zoo / "Colours.safetensors")
    assert recipe.tasks["Stripes"]["test_examples"] == 60


def test_a_pick_can_be_exported_before_anything_was_measured(store: Store, study: Study, tmp_path: Path):
    pick = store.add_pick(study.id, np.array([0.5, 0.25]), {"kind": "point"})
    to_file = export_pick(store, pick.id, tmp_path / "out" / "model.safetensors")
    assert to_file.path == tmp_path / "out" / "model.safetensors"
    to_folder = export_pick(store, pick.id, tmp_path / "folder")
    assert to_folder.path == tmp_path / "folder" / f"merged-{pick.id}.safetensors"
    assert to_file.path.read_bytes()[-1000:] == to_folder.path.read_bytes()[-1000:]
    assert (read_recipe(to_file.path).predicted, read_recipe(to_file.path).measured) == ({}, {})


def test_an_export_replaces_nothing_but_an_export(
    store: Store, study: Study, tmp_path: Path, tiny_zoo: Path
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


def test_what_was_meant_as_another_kind_of_file_becomes_no_folder(
    store: Store, study: Study, tmp_path: Path
):
    pick = store.add_pick(study.id, np.array([0.5, 0.25]), {"kind": "point"})
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("model.bin", "model.pth.tar", "notes.txt"):
        with pytest.raises(ExportError, match=f"{name} can't be exported to: name a file that ends in"):
            export_pick(store, pick.id, tmp_path / name)
    assert [path.name for path in tmp_path.glob("*.*")] == ["notes.txt"]
    assert export_pick(store, pick.id, tmp_path / "v1.5").path.parent == tmp_path / "v1.5"


def test_a_file_is_no_place_for_a_model_that_is_a_folder(
    store: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pick = store.add_pick(study.id, np.array([0.5, 0.25]), {"kind": "point"})
    monkeypatch.setattr(exporting, "_like", lambda _: tmp_path)  # as of a study of transformers
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("merged.safetensors", "notes.txt"):
        with pytest.raises(ExportError, match=f"{name} is no folder, and this model is exported to one"):
            export_pick(store, pick.id, tmp_path / name)


@pytest.mark.parametrize(
    ("path", "sentence"), [("~nobody-has-this-name/x", "home"), ("a\0b", "NUL"), ("x" * 300, "too long")]
)
def test_paths_that_no_file_can_have_are_refused(
    store: Store, study: Study, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str
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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("soup", {}),
        ("ties", {"keep": 0.3}),
        ("dare", {"scale": 0.4}),
        ("slerp", {}),
        ("fisher", {"examples": 20}),
        ("adamerging_ties", {"steps": 4, "lr": 0.1}),
    ],
)
def test_an_exported_baseline_scores_in_plain_open_clip_what_was_measured(
    store: Store, study: Study, evaluators: EvaluatorCache, tiny_zoo: Path, name: str, settings: dict
):
    evaluator = evaluators.get(study, "cpu")
    baseline = make_baseline(store, study, name, evaluator, settings=settings)
    measured = measure_baseline(store, baseline.id, evaluator)
    result = export_baseline(store, baseline.id)
    assert plain_scores(result.path, tiny_zoo, study.config.task_names) == measured
    recipe = read_recipe(result.path)
    assert recipe.measured == measured
    assert recipe.settings == baseline.settings
    assert recipe.sources["Stripes"]["path"] == str(tiny_zoo / "Stripes.safetensors")
    assert (result.mergekit is not None) == (name == "soup")
    if name == "adamerging_ties":
        layer = evaluator.vectors.layers.index("visual.proj")
        assert recipe.layers["visual.proj"] == baseline.layers[layer].tolist()


def test_a_baselines_files_say_what_it_is(
    store: Store, study: Study, evaluators: EvaluatorCache, tmp_path: Path
):
    evaluator = evaluators.get(study, "cpu")
    soup = make_baseline(store, study, "soup", evaluator)
    ties = make_baseline(store, study, "ties", evaluator)
    first = export_baseline(store, soup.id, tmp_path / "model.safetensors")
    assert read_recipe(first.path).coefficients == {"Colours": 0.5, "Stripes": 0.5}
    assert first.mergekit.exists()
    second = export_baseline(store, ties.id, tmp_path / "model.safetensors")
    assert (read_recipe(second.path).method, read_recipe(second.path).coefficients) == ("TIES", {})
    assert not first.mergekit.exists(), "it would make another model"
    card = second.card.read_text()
    assert "into one by TIES." in card
    assert "Settings: keep 0.2, scale 1.0." in card
    assert "mergekit" not in card
    assert export_baseline(store, ties.id).path.name == f"ties-{ties.id}.safetensors"
    with pytest.raises(ExportError, match="one of the study's own files"):
        export_baseline(store, ties.id, study.config.pretrained)
    with pytest.raises(StudyError, match="no baseline 99"):
        export_baseline(store, 99)


def test_a_baseline_is_exported_in_the_background(store: Store, study: Study, evaluators: EvaluatorCache):
    baseline = make_baseline(store, study, "ties", evaluators.get(study, "cpu"))
    jobs = Jobs(store)
    try:
        ended = jobs.wait(jobs.export_baseline(baseline.id), timeout=60)
        assert (ended.status, ended.study_id) == ("done", study.id)
        assert ended.result.path == exported_baseline(store, baseline.id)
        with pytest.raises(StudyError, match="no baseline 99"):
            jobs.export_baseline(99)
    finally:
        jobs.close()


def test_a_study_of_other_task_vectors_measures_and_exports_those(
    store: Store, study: Study, evaluators: EvaluatorCache, tiny_zoo: Path
):
    spec = replace(study.config, transform=Transform("dare", drop=0.9, seed=3))
    dropped = store.studies.create("Dropped", spec)
    c = np.array([0.8, 0.5])
    paths = []
    for each in (study, dropped):
        measured = measure(store, each, evaluators.get(each, "cpu"), c[None], split="test")[0]
        result = export_pick(store, store.add_pick(each.id, c, {"kind": "point"}).id)
        assert list(plain_scores(result.path, tiny_zoo, spec.task_names).values()) == measured.tolist()
        paths.append(result.path)
    plain, sparse = (load_file(path) for path in paths)
    base = load_file(tiny_zoo / "pretrained.safetensors")
    weight = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    unchanged = (sparse[weight] == base[weight]).float().mean().item()
    assert unchanged == pytest.approx(0.81, abs=0.05), "both vectors drop nine in ten"
    assert (plain[weight] == base[weight]).float().mean() < 0.5
    assert read_recipe(paths[1]).transform == {"kind": "dare", "drop": 0.9, "seed": 3}
    assert read_recipe(paths[0]).transform == {}
    assert "transformed first (kind dare, drop 0.9, seed 3)" in result.card.read_text()
    assert result.mergekit is None


def test_names_become_folders():
    assert slug("Zürich: A + B (2)") == "zurich-a-b-2"
    assert slug("模型") == "study"
    assert slugs(["head-汽车", "head-花", "head", "head-2"]) == ["head", "head-2", "head-3", "head-2-2"]


def test_a_pick_that_is_gone_is_refused(store: Store):
    with pytest.raises(StudyError, match="no pick 7"):
        export_pick(store, 7)
