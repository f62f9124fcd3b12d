"""Baselines are made once, kept, measured once, and made again bit by bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mapmerge_core.errors import Cancelled, MapMergeError, StudyError
from mapmerge_core.studies.runs.baselines import (
    BASELINES,
    baseline_values,
    estimate_baselines,
    find_kind,
    find_made,
    label,
    make_baseline,
    measure_baseline,
    missing,
    offered,
    weights_of,
)
from mapmerge_core.studies.config.manifest import spec_from_manifest
from mapmerge_core.studies.config.study import Transform
from mapmerge_core.tasks.metric import Outcome
from mapmerge_core.weights.export.writing import save_tensors
from mapmerge_core.merges._one_shot import dare_ties, slerp, ties
from mapmerge_core.weights.vectors.task_vectors import TaskVectors

if TYPE_CHECKING:
    from pathlib import Path

    from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
    from mapmerge_core.studies.store.rows import Study
    from mapmerge_core.studies.config.study import StudySpec
    from mapmerge_core.studies.store.store import Store
    from mapmerge_core.tasks.evaluator import Evaluator

FAST = {
    "fisher": {"examples": 8},
    "regmean": {"examples": 8},
    "adamerging": {"steps": 3, "lr": 0.05},
    "adamerging_layers": {"steps": 3, "lr": 0.05},
    "adamerging_ties": {"steps": 3, "lr": 0.05, "keep": 0.3},
}


@pytest.fixture
def evaluator(study: Study, evaluators: EvaluatorCache) -> Evaluator:
    return evaluators.get(study, "cpu", "float32")


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("Something was measured or made twice")


def test_a_study_is_offered_what_suits_it(config: StudyConfig, tiny_zoo: Path):
    assert offered(spec) == BASELINES
    names = [kind.name for kind in offered(spec_from_manifest(tiny_zoo))]
    assert "slerp" not in names
    assert len(names) == len(BASELINES) - 1 == 11
    assert offered(replace(spec, transform=Transform("dare"))) == ()


def test_pages_can_list_baselines_without_torch():
    program = "import mapmerge_core.studies.runs.baselines, sys; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_every_baseline_is_made_once_and_measured_once(
    store: Store, study: Study, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
):
    made = {}
    for kind in offered(study.config):
        row = make_baseline(store, study, kind.name, evaluator, settings=FAST.get(kind.name))
        values = measure_baseline(store, row.id, evaluator)
        assert list(values) == ["Colours", "Stripes"]
        np.testing.assert_array_equal(baseline_values(store, row), list(values.values()))
        assert row.seconds > 0
        made[kind.name] = row
    assert {name for name, row in made.items() if row.c is not None} == {
        "soup",
        "scalar",
        "scalar_03",
        "adamerging",
    }
    assert {name for name, row in made.items() if row.layers is not None} == {
        "adamerging_layers",
        "adamerging_ties",
    }
    assert {kind.name for kind in missing(store, study)} == set(FAST), "those with other settings"
    # Everything is known from now on.
    monkeypatch.setattr(evaluator, "_measured", refuse)
    monkeypatch.setattr("mapmerge_core.studies.runs.baselines.make_weights", refuse)
    for name, row in made.items():
        again = make_baseline(store, study, name, evaluator, settings=FAST.get(name))
        assert again.id == row.id
        assert measure_baseline(store, row.id, evaluator) == dict(
            zip(study.config.task_names, baseline_values(store, row).tolist(), strict=True)
        )
    files = {store.baseline_file(made[name].id) for name in ("fisher", "regmean")}
    assert set((store.folder / "baselines").iterdir()) == files, "nothing temporary is left"


def test_baselines_that_are_coefficients(store: Store, study: Study, evaluator: Evaluator):
    soup = make_baseline(store, study, "soup", evaluator)
    fixed = make_baseline(store, study, "scalar_03", evaluator)
    np.testing.assert_array_equal(soup.c, [0.5, 0.5])
    np.testing.assert_array_equal(fixed.c, [0.3, 0.3])
    store.add_evaluation(study.id, np.array([0.5, 0.5]), "Colours", "test", Outcome(0.125, 8, b"\1", 0.1))
    assert measure_baseline(store, soup.id, evaluator)["Colours"] == 0.125, "what a run measured is shared"
    assert np.isnan(baseline_values(store, fixed)).all()


def test_the_scalar_with_the_best_mean_is_found(store: Store, study: Study, evaluator: Evaluator):
    seen = []
    found = make_baseline(
        store, study, "scalar", evaluator, progress=lambda done, total: seen.append((done, total))
    )
    means = [
        np.mean([outcome.value for outcome in evaluator.evaluate([tenths / 10] * 2).values()])
        for tenths in range(11)
    ]
    best = means.index(max(means)) / 10
    assert best > 0
    np.testing.assert_array_equal(found.c, [best, best])
    assert found.evaluations == 22
    rows = store.evaluations(study.id)
    assert len(rows) == 22
    assert found.seconds == pytest.approx(sum(row.seconds for row in rows))
    assert (seen[0], seen[-1]) == ((0, 22), (22, 22))


def test_dare_takes_the_searched_scalar_or_a_given_one(store: Store, study: Study, evaluator: Evaluator):
    assert find_made(store, study, "dare") is None
    dare = make_baseline(store, study, "dare", evaluator)
    search = find_made(store, study, "scalar")
    assert search is not None
    assert dare.settings == {"drop": 0.5, "seed": 0, "scale": search.c[0]}
    assert dare.evaluations == 22
    assert find_made(store, study, "dare").id == dare.id
    given = make_baseline(store, study, "dare", evaluator, settings={"scale": 0.25, "drop": 0.8})
    assert given.evaluations == 0
    assert label(given) == "DARE + task arithmetic (drop 0.8, scale 0.25)"
    # Nothing dropped is plain task arithmetic.
    plain = make_baseline(store, study, "dare", evaluator, settings={"scale": 0.25, "drop": 0})
    expected = evaluator.vectors.merge([0.25, 0.25])
    for name, tensor in weights_of(store, plain, evaluator.vectors).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-6)


def test_layer_wise_coefficients_scale_trimmed_vectors(
    store: Store, study: Study, evaluator: Evaluator, tiny_zoo: Path
):
    row = make_baseline(store, study, "adamerging_ties", evaluator, settings=FAST["adamerging_ties"])
    weights = weights_of(store, row, evaluator.vectors)
    base = {k: t.double().numpy() for k, t in load_file(tiny_zoo / "pretrained.safetensors").items()}
    trimmed = []
    for task in study.config.task_names:
        tower = load_file(tiny_zoo / f"{task}.safetensors")
        v = {name: tower[name].double().numpy() - base[name] for name in evaluator.vectors.layers}
        every = np.sort(np.abs(np.concatenate([entry.ravel() for entry in v.values()])))
        least = every[len(every) - round(0.3 * len(every))]
        trimmed.append({name: entry * (np.abs(entry) >= least) for name, entry in v.items()})
    for name, (a, b) in zip(evaluator.vectors.layers, row.layers, strict=True):
        expected = base[name] + a * trimmed[0][name] + b * trimmed[1][name]
        np.testing.assert_allclose(weights[name].double().numpy(), expected, rtol=1e-3, atol=1e-6)
    assert weights.keys() == base.keys()
    assert len({tuple(pair) for pair in row.layers.tolist()}) > 1


@pytest.mark.parametrize("name", ["ties", "dare_ties", "slerp", "adamerging_layers", "fisher"])
def test_the_weights_are_the_same_each_time(store: Store, study: Study, evaluator: Evaluator, name: str):
    row = make_baseline(store, study, name, evaluator, settings=FAST.get(name))
    first, second = (weights_of(store, row, evaluator.vectors) for _ in range(2))
    pretrained = evaluator.vectors.merge([0, 0])
    assert first.keys() == pretrained.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {key: t.dtype for key, t in first.items()} == {key: t.dtype for key, t in pretrained.items()}
    changed = {key for key in first if not torch.equal(first[key], pretrained[key])}
    assert changed
    assert changed <= set(evaluator.vectors.layers)


@pytest.mark.parametrize("merge", [ties, dare_ties, slerp])
def test_merges_do_not_depend_on_the_number_of_threads(merge):
    generator = torch.Generator().manual_seed(0)
    base, *changes = (torch.randn(200_000, generator=generator) for _ in range(3))
    vectors = TaskVectors.from_state_dicts(
        {"w": base}, {f"{i}": {"w": base + v} for i, v in enumerate(changes)}
    )
    threads, merged = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            merged.append(merge(vectors)["w"])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(merged[0], merged[1])
    assert torch.equal(merged[0], merged[2])


def test_a_lost_model_is_made_and_measured_again(store: Store, study: Study, evaluator: Evaluator):
    settings = FAST["regmean"]
    row = make_baseline(store, study, "regmean", evaluator, settings=settings)
    store.add_baseline_evaluation(row.id, "Colours", "test", Outcome(2.0, 8, b"\1", 0.1))
    store.baseline_file(row.id).unlink()
    with pytest.raises(StudyError, match=r"RegMean \(examples 8\) is gone from .* make it again"):
        measure_baseline(store, row.id, evaluator)
    again = make_baseline(store, study, "regmean", evaluator, settings=settings)
    assert store.baseline_file(again.id).exists()
    assert [row.id for row in store.baselines(study.id)] == [again.id]
    assert measure_baseline(store, again.id, evaluator)["Colours"] <= 1


def test_the_first_of_two_processes_keeps_its_model(store: Store, study: Study):
    new = store.folder / "baselines" / ".new.safetensors"
    for number in (1.0, 2.0):
        save_tensors(new, {"w": torch.tensor([number])})
        row = store.add_baseline(study.id, "fisher", {}, file=new)
    assert load_file(store.baseline_file(row.id))["w"].item() == 1.0


def test_stopping_keeps_what_was_measured(store: Store, study: Study, evaluator: Evaluator):
    cancel = Event()

    def stop_at(number: int):
        return lambda done, _: cancel.set() if done == number else None

    with pytest.raises(Cancelled):
        make_baseline(store, study, "scalar", evaluator, cancel=cancel, progress=stop_at(5))
    assert len(store.evaluations(study.id)) == 5
    assert store.baselines(study.id) == []
    cancel.clear()
    ties = make_baseline(store, study, "ties", evaluator)
    with pytest.raises(Cancelled):
        measure_baseline(store, ties.id, evaluator, cancel=cancel, progress=stop_at(1))
    assert list(store.baseline_measured(ties.id, "test")) == ["Colours"]
    with pytest.raises(Cancelled):
        measure_baseline(store, ties.id, evaluator, cancel=cancel)
    for name in ("fisher", "adamerging", "slerp"):
        with pytest.raises(Cancelled):
            make_baseline(store, study, name, evaluator, cancel=cancel)
    seen = []
    measure_baseline(store, ties.id, evaluator, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("name", "unit"), [("fisher", 200), ("regmean", 200), ("adamerging", 3), ("adamerging_ties", 3)]
)
def test_data_merges_report_how_far_they_are(
    store: Store, study: Study, evaluator: Evaluator, name: str, unit: int
):
    seen: list[tuple[int, int]] = []
    make_baseline(store, study, name, evaluator, settings=FAST[name], progress=lambda *now: seen.append(now))
    assert seen[-1] == (unit, unit)
    assert {total for _, total in seen} == {unit}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("tise", {}, "baseline 'tise' is unknown: use one of soup, scalar,"),
        ("ties", {"density": 0.2}, "TIES has no setting 'density': it has keep, scale"),
        ("soup", {"keep": 0.2}, "Model soup has no setting 'keep': there is nothing to set"),
        ("ties", {"keep": "most"}, "keep = 'most': give a number"),
        ("ties", {"scale": float("nan")}, "scale = nan: give a number"),
        ("ties", {"scale": None}, "scale = None: give a number"),
        ("adamerging", {"steps": 2.5}, "steps = 2.5: give a whole number"),
        ("ties", {"keep": 0}, "above 0 and at most 1"),
        ("dare_ties", {"drop": 1}, "below 1"),
        ("dare", {"scale": 0.3, "seed": -1}, "seed -1 can't be used"),
        ("fisher", {"seed": 2**31}, "seed 2147483648 can't be used"),
        ("fisher", {"examples": 0}, "At least 1 example is needed, not 0"),
        ("fisher", {"floor": 0}, "floor of Fisher merging must be above 0, not 0"),
        ("regmean", {"seed": -1}, "seed -1 can't be used"),
        ("regmean", {"off_diagonal": 1.5}, "from 0 to 1, not 1.5"),
        ("adamerging", {"seed": -1}, "seed -1 can't be used"),
        ("adamerging_layers", {"lr": -0.1}, "learning rate must be above 0, not -0.1"),
        ("adamerging_ties", {"start": 1.5}, "must start from 0 to 1, not 1.5"),
    ],
)
def test_what_can_not_be_made_leaves_nothing(
    store: Store,
    study: Study,
    evaluator: Evaluator,
    name: str,
    settings: dict,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(evaluator.family, "class_logits", refuse)  # it is refused before any image is used
    with pytest.raises(MapMergeError, match=sentence):
        make_baseline(store, study, name, evaluator, settings=settings)
    assert store.baselines(study.id) == []


def test_baselines_of_other_studies_are_refused(
    store: Store, config: StudyConfig, tiny_zoo: Path, evaluator: Evaluator
):
    three = store.studies.create("Three", spec_from_manifest(tiny_zoo))
    with pytest.raises(StudyError, match="SLERP merges two models, not 3"):
        make_baseline(store, three, "slerp", evaluator)
    transformed = store.studies.create("Dropped", replace(spec, transform=Transform("dare", drop=0.9)))
    with pytest.raises(StudyError, match="without DARE 90 %"):
        make_baseline(store, transformed, "soup", evaluator)
    with pytest.raises(StudyError, match="no baseline 99"):
        measure_baseline(store, 99, evaluator)


def test_settings_are_numbers_of_one_type(store: Store, study: Study, evaluator: Evaluator):
    whole = make_baseline(store, study, "ties", evaluator, settings={"scale": 1})
    assert whole.id == make_baseline(store, study, "ties", evaluator).id
    assert label(whole) == "TIES"


def test_the_estimate_counts_what_is_missing(store: Store, study: Study):
    assert estimate_baselines(store, study) is None
    c = np.array([0.9, 0.1])
    for task in study.config.task_names:  # 60 examples in 0.6 and 0.2 seconds on validation
        seconds = {"Colours": 0.6, "Stripes": 0.2}[task]
        store.add_evaluation(study.id, c, task, "val", Outcome(0.5, 60, b"\0" * 8, seconds))
    # Images through the model: fisher 4 x 2 x 60, regmean 2 x 2 x 60, three AdaMergings of 500 steps with
    # 2 x 16 images three times, and 12 baselines tested on 2 x 60; the search validates 11 points.
    images = 480 + 240 + 3 * 3 * 500 * 32 + 12 * 120
    assert estimate_baselines(store, study) == pytest.approx(2.5 * images * 0.8 / 120 + 11 * 0.8)
    assert estimate_baselines(store, study, 8.0) == pytest.approx(2.5 * images * 8 / 120 + 11 * 8)
    # A test split of 30 images shows float32's time: 0.8 s for 60 images.
    for task in study.config.task_names:
        store.add_evaluation(study.id, c, task, "test", Outcome(0.5, 30, b"\0" * 4, 0.4))
    images -= 12 * 60
    assert estimate_baselines(store, study) == pytest.approx(images * 0.8 / 60 + 11 * 0.8)
    store.add_baseline(study.id, "adamerging", find_kind("adamerging").settings, c=c)  # measured above
    store.add_evaluation(study.id, np.zeros(2), "Colours", "val", Outcome(0.5, 60, b"\0" * 8, 0.6))
    images -= 3 * 500 * 32 + 60
    assert estimate_baselines(store, study) == pytest.approx(images * 0.8 / 60 + 10.5 * 0.8)
