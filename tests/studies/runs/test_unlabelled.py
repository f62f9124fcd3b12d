"""Which merged model is surest of images that nobody has labelled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from mapmerge_core.errors import Cancelled, DatasetError, MapMergeError, SearchError, StudyError
from mapmerge_core.merges._pareto_set import ParetoSet, Personalisation, find_blocks
from mapmerge_core.merges._training_settings import Training
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.runs.learning import load_learned
from mapmerge_core.studies.config.run import RunSettings
from mapmerge_core.studies.runs.unlabelled import choose_unlabelled
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.families.clip import ClipZeroShot
from mapmerge_core.tasks.metric import Outcome
from mapmerge_core.tasks.unlabelled import entropies
from tests.tiny import ARCHITECTURE, plain_head, plain_transform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store.rows import Run, Study
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator


@pytest.fixture
def evaluator(study: Study, evaluators: EvaluatorCache) -> Evaluator:
    return evaluators.get(study, "cpu", "float32")


@pytest.fixture
def source(tiny_zoo: Path) -> DataSource:
    """A task that neither model was fine-tuned on."""
    return DataSource(path=tiny_zoo / "Light.npz")


@pytest.fixture
def run(store: Store, study: Study, evaluator: Evaluator) -> Run:
    """A run whose learned set is made up."""
    vectors = evaluator.exported_vectors
    personalisation = Personalisation(find_blocks(vectors), 2, 4)
    with torch.no_grad():
        for G in personalisation.G:
            G.copy_(torch.randn(G.shape, generator=torch.Generator().manual_seed(1)))
    run = store.create_run(study.id, RunSettings(points=1, training=Training(rank=4)), "pareto_merging")
    store.learned_file(run.id).parent.mkdir(parents=True, exist_ok=True)
    lambdas = np.full((len(vectors.layers), 2), 0.3)
    ParetoSet(vectors, lambdas, personalisation).save(store.learned_file(run.id), {})
    return run


def plain_entropy(weights: Mapping[str, Tensor], path: Path) -> float:
    """The mean entropy of a model's predictions on validation images, by open_clip and a plain loop."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(weights)
    with np.load(path) as data, torch.inference_mode():
        head = plain_head(model, data["class_names"].tolist(), data["templates"].tolist())
        features = model.encode_image(plain_transform(data["val_images"], model), normalize=True)
        logits = (model.logit_scale.exp() * features @ head).double().numpy()
    total = 0.0
    for row in logits:
        odds = [np.exp(value - max(row)) for value in row]
        shares = [each / sum(odds) for each in odds]
        total -= sum(share * np.log(share) for share in shares)
    return total / len(logits)


def fill(store: Store, study: Study) -> None:
    """Points enough for surrogates, with a trade-off between the two tasks."""
    corners = [[0, 0], [1, 0], [0, 1], [1, 1]]
    for c in np.vstack([corners, np.random.default_rng(0).random((8, 2))]):
        both = 0.3 * c[0] * c[1]
        values = {"Colours": 0.2 + 0.7 * c[0] - 0.2 * c[1] - both, "Stripes": 0.3 + 0.6 * c[1] ** 2 - both}
        for task, value in values.items():
            store.add_evaluation(study.id, c, task, "val", Outcome(float(value), 60, b"", 0.01))


def test_a_learned_sets_surest_model_is_chosen(
    store: Store, study: Study, run: Run, evaluator: Evaluator, source: DataSource
):
    calls: list[tuple[int, int]] = []
    choice = choose_unlabelled(
        store, study.id, source, evaluator, run_id=run.id, n=5, seed=3,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert choice.points.shape == (5, 2)
    assert len(np.unique(choice.points, axis=0)) == 5
    np.testing.assert_allclose(choice.points.sum(axis=1), 1)
    learned = load_learned(store, run.id, evaluator.exported_vectors)
    expected = [plain_entropy(learned.merge(gamma), source.path) for gamma in choice.points]
    np.testing.assert_allclose(choice.entropies, expected, rtol=1e-5)
    assert np.ptp(expected) > 1e-3
    assert choice.best == int(np.argsort(expected)[0])
    assert choice.n_images == 60
    assert calls == [(i, 5) for i in range(1, 6)]
    again = choose_unlabelled(store, study.id, source, evaluator, run_id=run.id, n=5, seed=3)
    assert np.array_equal(again.points, choice.points)
    assert np.array_equal(again.entropies, choice.entropies)
    other = choose_unlabelled(store, study.id, source, evaluator, run_id=run.id, n=5, seed=4)
    assert not np.array_equal(other.points, choice.points)


def test_a_fronts_surest_model_is_chosen(
    store: Store,
    study: Study,
    evaluator: Evaluator,
    source: DataSource,
    monkeypatch: pytest.MonkeyPatch,
):
    fast = partial(analyse, generations=20)
    monkeypatch.setattr("mapmerge_core.studies.runs.unlabelled.analyse", fast)
    fill(store, study)
    front = fast(store, study.id).fitted_front.c
    assert len(front) > 6
    choice = choose_unlabelled(store, study.id, source, evaluator, n=6)
    assert choice.points.shape == (6, 2)
    assert len(np.unique(choice.points, axis=0)) == 6
    assert all((front == c).all(axis=1).any() for c in choice.points)
    expected = [plain_entropy(evaluator.vectors.merge(c), source.path) for c in choice.points]
    np.testing.assert_allclose(choice.entropies, expected, rtol=1e-5)
    assert choice.best == int(np.argsort(expected)[0])
    every = choose_unlabelled(store, study.id, replace(source, limit=2), evaluator, n=10 * len(front))
    assert np.array_equal(every.points, front)


def test_of_models_alike_the_first_is_taken(
    store: Store, study: Study, evaluator: Evaluator, source: DataSource, run: Run
):
    lambdas = np.full((len(evaluator.exported_vectors.layers), 2), 0.3)
    same = Personalisation(find_blocks(evaluator.exported_vectors), 2, 4)  # its G is zero
    ParetoSet(evaluator.exported_vectors, lambdas, same).save(store.learned_file(run.id), {})
    choice = choose_unlabelled(store, study.id, source, evaluator, run_id=run.id, n=3)
    assert len(set(choice.entropies.tolist())) == 1
    assert choice.best == 0


def test_batches_and_measuring_in_between_change_nothing(evaluator: Evaluator, source: DataSource):
    models = [np.array([0.3, 0.5]), lambda: evaluator.vectors.merge([0.3, 0.5]), np.array([1.0, 0.0])]
    before = evaluator.evaluate([0.3, 0.5])
    found, _ = entropies(evaluator, source, models)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    assert [outcome.per_example for outcome in before.values()] == [
        outcome.per_example for outcome in evaluator.evaluate([0.3, 0.5]).values()
    ]
    size = evaluator.batch_size
    try:
        evaluator.batch_size = 7  # 60 images are no multiple of it
        calls: list[tuple[int, int]] = []
        batched, n = entropies(evaluator, source, models, progress=lambda *at: calls.append(at))
    finally:
        evaluator.batch_size = size
    np.testing.assert_allclose(batched, found, rtol=1e-5)
    assert n == 60
    assert calls == [(i, 27) for i in range(1, 28)]


def test_labels_are_never_read(
    store: Store, study: Study, evaluator: Evaluator, source: DataSource, run: Run, tmp_path: Path
):
    with np.load(source.path) as data:
        arrays = dict(data)
    for split in ("val", "test"):
        arrays[f"{split}_labels"] = np.full(60, 77)
    np.savez(tmp_path / "wrong.npz", **arrays)
    right, wrong = (
        choose_unlabelled(store, study.id, each, evaluator, run_id=run.id, n=3)
        for each in (source, DataSource(path=tmp_path / "wrong.npz"))
    )
    assert np.array_equal(right.entropies, wrong.entropies)
    assert right.n_images == wrong.n_images == 60


def test_loose_images_in_a_folder(
    store: Store, study: Study, evaluator: Evaluator, source: DataSource, run: Run, tmp_path: Path
):
    with np.load(source.path) as data:
        for i, image in enumerate(data["val_images"]):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        names, templates = tuple(data["class_names"].tolist()), tuple(data["templates"].tolist())
    loose = DataSource(path=tmp_path, class_names=names, templates=templates)
    found = choose_unlabelled(store, study.id, loose, evaluator, run_id=run.id, n=3)
    expected = choose_unlabelled(store, study.id, source, evaluator, run_id=run.id, n=3)
    np.testing.assert_allclose(found.entropies, expected.entropies, rtol=1e-6)
    assert found.n_images == 60
    with pytest.raises(DatasetError, match="doesn't name its classes"):
        choose_unlabelled(store, study.id, replace(loose, class_names=None), evaluator, run_id=run.id)


def test_bfloat16_is_close(study: Study, evaluators: EvaluatorCache, source: DataSource):
    narrow, _ = entropies(evaluators.get(study, "cpu", "bfloat16"), source, [np.array([0.4, 0.4])])
    wide, _ = entropies(evaluators.get(study, "cpu", "float32"), source, [np.array([0.4, 0.4])])
    assert narrow[0] != wide[0]
    np.testing.assert_allclose(narrow, wide, rtol=0.05)


def test_it_can_be_stopped_between_two_batches(evaluator: Evaluator, source: DataSource):
    cancel = Event()
    calls: list[int] = []

    def stop(done: int, _: int) -> None:
        calls.append(done)
        cancel.set()

    with pytest.raises(Cancelled):
        entropies(evaluator, source, [np.zeros(2), np.ones(2)], cancel=cancel, progress=stop)
    assert calls == [1]


def test_what_cannot_be_done_is_said_in_one_sentence(
    store: Store, study: Study, run: Run, evaluator: Evaluator, source: DataSource, tiny_zoo: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    searched = store.create_run(study.id, RunSettings(points=9)).id
    elsewhere = store.studies.create("Other", replace(study.config, tasks=study.config.tasks[::-1]))
    unfinished = store.create_run(study.id, RunSettings(points=1), "pareto_merging").id
    nameless = tmp_path / "nameless.npz"
    with np.load(tiny_zoo / "Light.npz") as data:
        np.savez(nameless, **{name: data[name] for name in data if name != "class_names"})
    for said, error, says in (
        ({"run_id": None}, StudyError, "6 more points are needed"),
        ({"run_id": searched}, StudyError, "has no run 2 of Pareto Merging"),
        ({"study_id": elsewhere.id}, StudyError, "'Other' has no run 1 of Pareto Merging"),
        ({"run_id": unfinished}, StudyError, "has learned no set yet"),
        ({"n": 0}, SearchError, "at least one model"),
        ({"seed": -1}, SearchError, "seed -1 can't be used"),
        ({"source": DataSource(path=nameless)}, DatasetError, "doesn't name its classes"),
    ):
        given = {"study_id": study.id, "source": source, "run_id": run.id, "n": 2} | said
        with pytest.raises(error, match=says) as raised:
            choose_unlabelled(store, evaluator=evaluator, **given)
        assert str(raised.value).count(". ") == 0
    monkeypatch.setattr(ClipZeroShot, "gives_logits", False)
    with pytest.raises(MapMergeError, match="classify by the names of classes alone"):
        choose_unlabelled(store, study.id, source, evaluator, run_id=run.id, n=2)


def test_a_model_that_answers_nothing_is_refused(evaluator: Evaluator, source: DataSource):
    with pytest.raises(MapMergeError, match="sample a smaller box"):
        entropies(evaluator, source, [np.full(2, 1e30)])
