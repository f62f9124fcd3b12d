"""A point of any merge becomes a file that says where it came from and scores what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mapmerge_core.errors import ExportError, PointError, StudyError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.runs import exporting
from mapmerge_core.studies.runs.exporting import export_merge_state, export_pick, export_point, exported_point
from mapmerge_core.studies.runs.measuring import measure
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.studies.runs.targets import slug, slugs
from mapmerge_core.weights.export.writing import read_recipe
from tests.studies.runs.helpers import CPU, execute, plain, plain_scores
from tests.studies.runs.test_preparing import FAST, TASKS, add

if TYPE_CHECKING:
    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store import Pick, Store, Study

INNER = np.array([0.5, 0.25])


@pytest.fixture
def pick(store: Store, study: Study) -> Pick:
    return store.picks.add(plain(store, study), INNER, {"kind": "point"})


def test_the_recipe_knows_sources_predictions_and_measurements(
    store: Store, study: Study, evaluators: EvaluatorCache, tiny_zoo: Path
):
    run = execute(store, study, evaluators, points=10)
    pick = store.picks.add(run.merge_id, INNER, {"kind": "point"}, name="My best!")
    measured = measure(store, study, evaluators.get(study, CPU), run.merge_id, INNER[None], split="test")[0]
    result = export_pick(store, pick.id)
    folder = store.folder / "exports" / slug(study.name)
    assert result.path == folder / f"my-best-{pick.id}.safetensors"
    assert store.picks.get(pick.id).exported == result.path
    recipe = read_recipe(result.path)
    assert recipe.coefficients == {"Colours": 0.5, "Stripes": 0.25}
    assert recipe.measured == dict(zip(TASKS, measured.tolist(), strict=True))
    predicted = analyse(store, study.id, with_front=False).predict(run.merge_id, INNER)[0]
    assert list(recipe.predicted.values()) == pytest.approx(predicted.tolist())
    hashes = {source.role: source.sha256 for source in study.sources}
    assert recipe.sources["pretrained"]["sha256"] == hashes["pretrained"]
    assert recipe.sources["Colours"]["path"] == str(tiny_zoo / "Colours.safetensors")
    assert recipe.tasks["Stripes"]["test_examples"] == 60
    assert result.mergekit is not None


def test_a_pick_can_be_exported_before_anything_was_measured(store: Store, pick: Pick, tmp_path: Path):
    to_file = export_pick(store, pick.id, tmp_path / "out" / "model.safetensors")
    assert to_file.path == tmp_path / "out" / "model.safetensors"
    to_folder = export_pick(store, pick.id, tmp_path / "folder")
    assert to_folder.path == tmp_path / "folder" / f"merged-{pick.id}.safetensors"
    assert to_file.path.read_bytes()[-1000:] == to_folder.path.read_bytes()[-1000:]
    assert (read_recipe(to_file.path).predicted, read_recipe(to_file.path).measured) == ({}, {})


def test_an_export_replaces_nothing_but_an_export(store: Store, pick: Pick, tmp_path: Path, tiny_zoo: Path):
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


def test_what_was_meant_as_another_kind_of_file_becomes_no_folder(store: Store, pick: Pick, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("model.bin", "model.pth.tar", "notes.txt"):
        with pytest.raises(ExportError, match=f"{name} can't be exported to: name a file that ends in"):
            export_pick(store, pick.id, tmp_path / name)
    assert [path.name for path in tmp_path.glob("*.*")] == ["notes.txt"]
    assert export_pick(store, pick.id, tmp_path / "v1.5").path.parent == tmp_path / "v1.5"


def test_a_file_is_no_place_for_a_model_that_is_a_folder(
    store: Store, pick: Pick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "_like", lambda _: tmp_path)  # as of a study of transformers
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("merged.safetensors", "notes.txt"):
        with pytest.raises(ExportError, match=f"{name} is no folder, and this model is exported to one"):
            export_pick(store, pick.id, tmp_path / name)


@pytest.mark.parametrize(
    ("path", "sentence"), [("~nobody-has-this-name/x", "home"), ("a\0b", "NUL"), ("x" * 300, "too long")]
)
def test_paths_that_no_file_can_have_are_refused(store: Store, pick: Pick, path: str, sentence: str):
    with pytest.raises(StudyError, match=sentence):
        export_pick(store, pick.id, path)


@pytest.mark.parametrize(
    ("name", "settings", "x"),
    [
        ("task_arithmetic", {}, [0.8, 0.5]),
        ("soup", {}, None),
        ("soup", {}, [0.2, 0.8]),
        ("ties", {"keep": 0.3}, None),
        ("dare", {"drop": 0.9, "seed": 3}, [0.8, 0.5]),
        ("dare_ties", {}, [0.7, 1.0]),
        ("breadcrumbs", {}, [0.9, 0.3]),
        ("della", {}, [0.9, 0.3]),
        ("slerp", {}, [0.25, 0.75]),
        ("fisher", {"examples": 20}, [0.7, 0.3]),
        ("regmean", {"examples": 20}, [0.7, 0.3]),
        ("adamerging", FAST["adamerging"], None),
        ("adamerging", {"level": "task", "steps": 4, "lr": 0.1}, None),
        ("pareto_merging", {}, [0.3, 0.7]),
    ],
)
def test_an_exported_model_scores_in_plain_open_clip_what_was_measured(
    store: Store, study: Study, evaluators: EvaluatorCache, tiny_zoo: Path, name: str, settings: dict,
    x: list[float] | None,
):  # fmt: skip
    stored = add(store, study, name, **settings)
    point = stored.space.default if x is None else np.array(x)
    evaluator = evaluators.get(study, CPU)
    measured = measure(store, study, evaluator, stored.id, point[None], split="test")[0]
    result = export_point(store, stored.id, None if x is None else point)
    weights, original = load_file(result.path), load_file(tiny_zoo / "pretrained.safetensors")
    assert {key: (t.shape, t.dtype) for key, t in weights.items()} == {
        key: (t.shape, t.dtype) for key, t in original.items()
    }
    assert plain_scores(weights, tiny_zoo, TASKS, "test") == measured.tolist()
    recipe = read_recipe(result.path)
    assert recipe.measured == dict(zip(TASKS, measured.tolist(), strict=True))
    assert recipe.method == stored.make().title
    assert recipe.settings == dict(stored.settings)
    assert list(recipe.point.values()) == point.tolist()
    assert recipe.sources["Stripes"]["path"] == str(tiny_zoo / "Stripes.safetensors")
    assert exported_point(store, stored.id, point) == result.path
    if coefficients := recipe.layers:
        layer = evaluator.exported_vectors.layers.index("visual.proj")
        expected = prepare_merge(store, stored.id, evaluator).coefficients(point)[layer]
        assert coefficients["visual.proj"] == expected.tolist()


def test_an_exports_files_say_what_it_is(store: Store, study: Study, tmp_path: Path):
    soup, ties = add(store, study, "soup"), store.merges.add(study.id, "ties", {})
    first = export_point(store, soup.id, path=tmp_path / "model.safetensors")
    assert read_recipe(first.path).coefficients == {"Colours": 0.5, "Stripes": 0.5}
    assert first.mergekit.exists()
    second = export_point(store, ties.id, path=tmp_path / "model.safetensors")
    assert (read_recipe(second.path).method, read_recipe(second.path).coefficients) == ("TIES", {})
    assert not first.mergekit.exists(), "it would make another model"
    card = second.card.read_text()
    assert "TIES" in card
    assert "mergekit" not in card
    assert exported_point(store, ties.id) is None
    named = export_point(store, ties.id)
    assert named.path.name == f"ties-{ties.id}.safetensors"
    assert exported_point(store, ties.id) == named.path
    other = export_point(store, ties.id, np.array([0.5, 1.0]))
    assert other.path not in (named.path, second.path)
    with pytest.raises(ExportError, match="one of the study's own files"):
        export_point(store, ties.id, path=study.config.pretrained)
    with pytest.raises(StudyError, match="no merge 99"):
        export_point(store, 99)
    with pytest.raises(PointError):
        export_point(store, ties.id, np.zeros(3))
    with pytest.raises(StudyError, match="is not prepared yet: prepare it first"):
        export_point(store, add(store, study, "regmean").id)


def test_what_a_merge_prepared_can_be_taken_along(
    store: Store, study: Study, evaluators: EvaluatorCache, tmp_path: Path
):
    stored = add(store, study, "pareto_merging")
    with pytest.raises(StudyError, match="is not prepared yet"):
        export_merge_state(store, stored.id, tmp_path)
    evaluator = evaluators.get(study, CPU)
    prepared = prepare_merge(store, stored.id, evaluator)
    source = store.merges.state_file(stored.id)
    target = export_merge_state(store, stored.id, tmp_path / "new" / "mine.safetensors")
    assert target.read_bytes() == source.read_bytes()
    assert export_merge_state(store, stored.id, target) == target
    to_folder = export_merge_state(store, stored.id, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {target.name, to_folder.name}
    read = stored.make().load(target, evaluator.vectors, evaluator.exported_vectors)
    for (name, ours), (_, theirs) in zip(read.tensors([0.2, 0.8]), prepared.tensors([0.2, 0.8]), strict=True):
        assert torch.equal(ours, theirs), name
    model = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, model)
    before = model.read_bytes()
    with pytest.raises(ExportError, match="is no prepared merge, and stays"):
        export_merge_state(store, stored.id, model)
    assert model.read_bytes() == before
    with pytest.raises(ExportError, match="can't be written"):
        export_merge_state(store, stored.id, model / "inside")
    with pytest.raises(StudyError, match="keeps nothing"):
        export_merge_state(store, plain(store, study), tmp_path)


def test_names_become_folders():
    assert slug("Zürich: A + B (2)") == "zurich-a-b-2"
    assert slug("模型") == "study"
    assert slugs(["head-汽车", "head-花", "head", "head-2"]) == ["head", "head-2", "head-3", "head-2-2"]


def test_a_pick_that_is_gone_is_refused(store: Store):
    with pytest.raises(StudyError, match="no pick 7"):
        export_pick(store, 7)
