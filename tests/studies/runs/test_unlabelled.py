"""Which merged model is surest of images that nobody has labelled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mapmerge_core.errors import Cancelled, DatasetError, MapMergeError, SearchError, SettingError, StudyError
from mapmerge_core.studies.analysis.analysis import analyse
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.studies.runs.unlabelled import choose_unlabelled
from mapmerge_core.tasks.data_source import DataSource
from mapmerge_core.tasks.outcome import Outcome
from tests.studies.runs.helpers import CPU, plain
from tests.studies.runs.test_preparing import add
from tests.studies.runs.test_runner import KEYS
from tests.tiny import plain_entropy

if TYPE_CHECKING:
    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store import Store, StoredMerge, Study
    from mapmerge_core.tasks.evaluator import Evaluator


@pytest.fixture
def evaluator(study: Study, evaluators: EvaluatorCache) -> Evaluator:
    return evaluators.get(study, CPU)


@pytest.fixture
def source(tiny_zoo: Path) -> DataSource:
    """A task that neither model was fine-tuned on."""
    return DataSource(path=tiny_zoo / "Light.npz")


@pytest.fixture
def learned(store: Store, study: Study, evaluator: Evaluator) -> StoredMerge:
    """Pareto Merging, trained for a few steps."""
    stored = add(store, study, "pareto_merging")
    prepare_merge(store, stored.id, evaluator)
    return stored


def fill(store: Store, merge_id: int, better: float = 0.0) -> None:
    """Points enough for surrogates, with a trade-off between the two tasks."""
    corners = [[0, 0], [1, 0], [0, 1], [1, 1]]
    for c in np.vstack([corners, np.random.default_rng(0).random((8, 2))]):
        both = 0.3 * c[0] * c[1] - better
        values = (0.2 + 0.7 * c[0] - 0.2 * c[1] - both, 0.3 + 0.6 * c[1] ** 2 - both)
        for key, value in zip(KEYS, values, strict=True):
            store.evaluations.add(merge_id, c, key, "val", Outcome(float(value), 60, b"", 0.01))


def test_a_simplex_merges_surest_model_is_chosen(
    store: Store, study: Study, learned: StoredMerge, evaluator: Evaluator, source: DataSource
):
    calls: list[tuple[int, int]] = []
    choice = choose_unlabelled(
        store, study.id, source, evaluator, merge_id=learned.id, n=5, seed=3,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert choice.merge_ids == (learned.id,) * 5
    points = np.array(choice.points)
    assert len(np.unique(points, axis=0)) == 5
    np.testing.assert_allclose(points.sum(axis=1), 1)
    prepared = prepare_merge(store, learned.id, evaluator)
    expected = [plain_entropy(dict(prepared.tensors(x)), source.path) for x in points]
    np.testing.assert_allclose(choice.entropies, expected, rtol=1e-5)
    assert np.ptp(expected) > 1e-4
    assert choice.best == int(np.argsort(expected)[0])
    assert choice.n_images == 60
    assert calls == [(i, 5) for i in range(1, 6)]
    again = choose_unlabelled(store, study.id, source, evaluator, merge_id=learned.id, n=5, seed=3)
    assert np.array_equal(again.points, choice.points)
    assert np.array_equal(again.entropies, choice.entropies)
    other = choose_unlabelled(store, study.id, source, evaluator, merge_id=learned.id, n=5, seed=4)
    assert not np.array_equal(other.points, choice.points)


def test_a_fronts_surest_model_is_chosen_whatever_its_merge(
    store: Store, study: Study, evaluator: Evaluator, source: DataSource, monkeypatch: pytest.MonkeyPatch
):
    fast = partial(analyse, generations=20)
    monkeypatch.setattr("mapmerge_core.studies.runs.unlabelled.analyse", fast)
    merge_id = plain(store, study)
    fill(store, merge_id)
    front = fast(store, study.id).front
    assert len(front.x) > 6
    choice = choose_unlabelled(store, study.id, source, evaluator, n=6)
    assert choice.merge_ids == (merge_id,) * 6
    on_front = {x.tobytes() for x in front.x}
    assert len({x.tobytes() for x in choice.points} & on_front) == 6
    expected = [plain_entropy(dict(evaluator.vectors.tensors(x)), source.path) for x in choice.points]
    np.testing.assert_allclose(choice.entropies, expected, rtol=1e-5)
    assert choice.best == int(np.argsort(expected)[0])
    every = choose_unlabelled(store, study.id, replace(source, limit=2), evaluator, n=10 * len(front.x))
    assert {x.tobytes() for x in every.points} == on_front
    # Another merge's better models join the front.
    breadcrumbs = add(store, study, "breadcrumbs")
    fill(store, breadcrumbs.id, better=0.05)
    calls: list[tuple[int, int]] = []
    joined = choose_unlabelled(store, study.id, source, evaluator, n=4, progress=lambda *at: calls.append(at))
    assert breadcrumbs.id in joined.merge_ids
    prepared = prepare_merge(store, joined.merge_ids[-1], evaluator)
    last = plain_entropy(dict(prepared.tensors(joined.points[-1])), source.path)
    assert joined.entropies[-1] == pytest.approx(last, rel=1e-5)
    assert calls == [(i, 4) for i in range(1, 5)]


def test_of_equal_models_the_first_is_taken(
    store: Store, study: Study, evaluator: Evaluator, source: DataSource, monkeypatch: pytest.MonkeyPatch
):
    stored = add(store, study, "soup")
    monkeypatch.setattr(type(stored.space), "sample", lambda self, n, _: np.tile(self.default, (n, 1)))
    choice = choose_unlabelled(store, study.id, source, evaluator, merge_id=stored.id, n=3)
    assert len(set(choice.entropies.tolist())) == 1
    assert choice.best == 0


def test_labels_are_never_read(store: Store, study: Study, evaluator: Evaluator, source: DataSource, tmp_path: Path):
    with np.load(source.path) as data:
        arrays = dict(data)
    for split in ("val", "test"):
        arrays[f"{split}_labels"] = np.full(60, 77)
    np.savez(tmp_path / "wrong.npz", **arrays)
    soup = add(store, study, "soup").id
    right, wrong = (
        choose_unlabelled(store, study.id, each, evaluator, merge_id=soup, n=3)
        for each in (source, DataSource(path=tmp_path / "wrong.npz"))
    )
    assert np.array_equal(right.entropies, wrong.entropies)
    assert right.n_images == wrong.n_images == 60


def test_loose_images_in_a_folder(store: Store, study: Study, evaluator: Evaluator, source: DataSource, tmp_path: Path):
    with np.load(source.path) as data:
        for i, image in enumerate(data["val_images"]):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        names, templates = tuple(data["class_names"].tolist()), tuple(data["templates"].tolist())
    loose = DataSource(path=tmp_path, class_names=names, templates=templates)
    soup = add(store, study, "soup").id
    choice = choose_unlabelled(store, study.id, loose, evaluator, merge_id=soup, n=3)
    expected = choose_unlabelled(store, study.id, source, evaluator, merge_id=soup, n=3)
    np.testing.assert_allclose(choice.entropies, expected.entropies, rtol=1e-6)
    assert choice.n_images == 60
    with pytest.raises(DatasetError, match="doesn't name its classes"):
        choose_unlabelled(store, study.id, replace(loose, class_names=None), evaluator, merge_id=soup)


def test_it_can_be_stopped_between_two_batches(store: Store, study: Study, evaluator: Evaluator, source: DataSource):
    cancel = Event()
    calls: list[int] = []

    def stop(done: int, _: int) -> None:
        calls.append(done)
        cancel.set()

    with pytest.raises(Cancelled):
        choose_unlabelled(
            store, study.id, source, evaluator, merge_id=add(store, study, "soup").id, n=2, cancel=cancel,
            progress=stop,
        )  # fmt: skip
    assert calls == [1]


def test_what_cannot_be_done_is_said_in_one_sentence(
    store: Store, study: Study, evaluator: Evaluator, source: DataSource, tiny_zoo: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    soup = add(store, study, "soup").id
    elsewhere = store.studies.create("Other", study.config)
    unprepared = add(store, study, "regmean").id
    nameless = tmp_path / "nameless.npz"
    with np.load(tiny_zoo / "Light.npz") as data:
        np.savez(nameless, **{name: data[name] for name in data if name != "class_names"})
    for changes, error, sentence in (
        ({"merge_id": None}, StudyError, "point"),
        ({"merge_id": 99}, StudyError, "has no merge 99"),
        ({"study_id": elsewhere.id}, StudyError, f"'Other' has no merge {soup}"),
        ({"merge_id": unprepared}, StudyError, "is not prepared yet"),
        ({"n": 0}, SearchError, "at least one model"),
        ({"seed": -1}, SettingError, "seed -1 can't be used"),
        ({"source": DataSource(path=nameless)}, DatasetError, "doesn't name its classes"),
    ):
        given = {"study_id": study.id, "source": source, "merge_id": soup, "n": 2} | changes
        with pytest.raises(error, match=sentence) as raised:
            choose_unlabelled(store, evaluator=evaluator, **given)
        assert str(raised.value).count(". ") == 0
    monkeypatch.setattr(type(evaluator.family), "gives_logits", False)
    with pytest.raises(MapMergeError, match="classify by the names of classes alone"):
        choose_unlabelled(store, study.id, source, evaluator, merge_id=soup, n=2)
