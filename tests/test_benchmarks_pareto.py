"""The harness that redoes Pareto Merging's experiments, on the tiny zoo with a few steps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.paper.__main__ import main
from benchmarks.paper.bench import Bench, Counter
from benchmarks.paper.models import from_zoo
from benchmarks.pareto_merging import structures
from benchmarks.pareto_merging.experiment import front_line, model_rows, weighted
from benchmarks.pareto_merging.personalisations import (
    STRUCTURES,
    Nothing,
    OuterProduct,
    OuterProducts,
    SingularValues,
    SumOfLoras,
)
from benchmarks.pareto_merging.unseen import splits
from mapmerge_core.errors import MapMergeError
from mapmerge_core.merges._pareto_set import Block
from mapmerge_core.merges._pareto_training import ParetoTraining
from mapmerge_core.studies.runs.preparing import prepare_merge
from mapmerge_core.studies.store import Store

STEPS = "3"


@pytest.fixture(scope="module")
def place(tiny_zoo, tmp_path_factory):
    """A zoo that stays, and a store that this module's tests fill together."""
    return tiny_zoo, tmp_path_factory.mktemp("pareto")


def run(place, out: Path, experiment: str, *more: str) -> int:
    zoo, store = place
    where = ("--zoo", str(zoo), "--store", str(store), "--out", str(out), "--device", "cpu")
    return main([f"pareto_{experiment}", *where, "--steps", STEPS, *more])


def make_bench(place, steps: int = int(STEPS)) -> Bench:
    zoo, store = place
    counter = Counter(1000, lambda *_: None)
    return Bench(from_zoo(str(zoo)), Store(store), counter, device="cpu", steps=steps)


def prepared(bench: Bench, learned):
    return prepare_merge(bench.store, learned.merge.id, bench.evaluator(learned.study))


def test_figure3_from_end_to_end(place, tmp_path, capsys, monkeypatch):
    assert run(place, tmp_path, "figure3", "--threads", "1") == 0
    text = (tmp_path / "pareto_figure3.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    command = next(line for line in text.splitlines() if "benchmarks.paper" in line)
    assert "figure3" in command
    assert f"--steps {STEPS}" in command
    assert not any(word in command for word in ("--store", "--out", "--device", "--threads"))
    assert "Unfinished" not in text
    assert (tmp_path / "pareto_figure3.png").read_bytes()[:4] == b"\x89PNG"
    frame = pd.read_csv(tmp_path / "pareto_figure3.csv")
    runs = frame.groupby("method")["runs"].first()
    assert runs["Pareto Merging"] == 1
    assert runs["AdaMerging + preference"] == 11
    assert runs["Task arithmetic + preference"] == 0
    names = from_zoo(str(place[0])).first(2)
    fronts = frame[frame["method"].isin(["Pareto Merging", "AdaMerging + preference"])]
    assert len(fronts) == 2 * 11 * 2
    weights = frame[(frame["method"] == "Pareto Merging") & (frame["task"] == names[0])]["weight"]
    assert weights.to_numpy() == pytest.approx(np.arange(10, -1, -1) / 10)
    # Task arithmetic + preference: 2 * 0.3 of the preferred task vector at the end, task arithmetic between.
    bench = make_bench(place)
    study = bench.study(names)
    arithmetic = frame[frame["method"] == "Task arithmetic + preference"]
    for model, c in ((0, [0.6, 0.0]), (5, [0.3, 0.3])):
        merge = bench.store.merges.all(study.id)[0]
        measured = bench.store.evaluations.measured(merge.id, np.array(c), "test")
        row = arithmetic[arithmetic["model"] == model].set_index("task")["metric"]
        assert [row[name] for name in names] == pytest.approx(
            [measured[f"{name}/accuracy"] for name in names], rel=1e-5
        )

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is left to train or measure")

    monkeypatch.setattr(ParetoTraining, "step", refuse)
    monkeypatch.setattr(ParetoTraining, "__init__", refuse)
    assert run(place, tmp_path / "again", "figure3") == 0
    again = (tmp_path / "again" / "pareto_figure3.csv").read_text()
    assert again == (tmp_path / "pareto_figure3.csv").read_text()


@pytest.mark.parametrize(
    ("experiment", "more", "n_rows"),
    [
        ("figure4", (), 3 * (37 + 3 + 1 + 1 + 2)),  # individual, pre-trained, arithmetic, two AdaMergings
        ("table3", (), 3 * (30 + 1 + 3 + 1 + 1 + 2)),
        ("control", (), 3 * 4),
        ("scalarisations", (), 3 * 3 * (1 + 3)),
        ("ablations", ("--tasks", "3"), 3 * 3 * (1 + 3)),  # three values of balance
        ("structures", ("--tasks", "2"), 2 * (5 * 11 + 2 + 1 + 1 + 2)),
        # Pre-trained, arithmetic, TIES, two of both AdaMergings, both Pareto Mergings, MAP; two splits.
        ("unseen", ("--map-points", "14"), 2 * (3 + 4 + 2 + 1)),
    ],
)
def test_experiments_are_written(place, tmp_path, capsys, monkeypatch, experiment, more, n_rows):
    # Finding MAP's front takes seconds, and is tested elsewhere: its points stand for it.
    monkeypatch.setattr(Bench, "front", lambda _, __, C, *___: SimpleNamespace(x=C))
    assert run(place, tmp_path, experiment, *more) == 0
    assert (tmp_path / f"pareto_{experiment}.png").exists()
    frame = pd.read_csv(tmp_path / f"pareto_{experiment}.csv")
    assert len(frame) == n_rows
    assert frame["metric"].between(0, 1).all()
    assert capsys.readouterr().out.startswith("# ")


def test_ablations_train_the_usual_settings_once(place, tmp_path):
    assert run(place, tmp_path, "ablations", "--tasks", "2") == 0
    frame = pd.read_csv(tmp_path / "pareto_ablations.csv")
    usual = frame[frame["usual"].fillna(0).astype(bool)]
    usual = usual.pivot_table(index=["model", "task"], columns="method", values="metric")
    assert usual.shape == (22, 4)
    assert (usual.max(axis=1) == usual.min(axis=1)).all()
    extra = frame.groupby("method")["extra"].first()
    # Two layers with q, k, v and the projection out, each 32 x 32, two tasks.
    assert extra["rank 8"] == 2 * 4 * (8 * 64 + 8**2 * 2)


def test_table4_gives_each_task_its_priority(place, tmp_path):
    assert run(place, tmp_path, "table4", "--tasks", "Colours,Light") == 0
    frame = pd.read_csv(tmp_path / "pareto_table4.csv")
    own = frame[(frame["method"] == "Pareto Merging") & (frame["preference"] == "priority")]
    assert own.pivot_table(index="model", columns="task", values="weight").to_numpy() == pytest.approx(0.5)
    text = (tmp_path / "pareto_table4.md").read_text()
    for method in ("RegMean", "Fisher merging", "TIES", "AdaMerging++", "Pareto Merging++, equal"):
        assert f"| {method} " in text
    learned = frame[frame["method"].str.startswith("Pareto Merging") & (frame["preference"] == "equal")]
    assert set(learned["method"]) == {
        "Pareto Merging",
        "Pareto Merging++",
        "Pareto Merging, the paper's settings",
        "Pareto Merging, data-free",
    }


def test_what_was_interrupted_goes_on(tiny_zoo, tmp_path, capsys, monkeypatch):
    step, taken = ParetoTraining.step, []

    def interrupt(self):
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(self.steps_done)
        return step(self)

    monkeypatch.setattr("mapmerge_core.merges._pareto_training.SAVED_EVERY", 0.0)
    monkeypatch.setattr(ParetoTraining, "step", interrupt)
    assert run((tiny_zoo, tmp_path / "store"), tmp_path, "control", "--tasks", "2") == 130
    assert "the same command goes on" in capsys.readouterr().err

    def count(self):
        taken.append(self.steps_done)
        return step(self)

    monkeypatch.setattr(ParetoTraining, "step", count)
    assert run((tiny_zoo, tmp_path / "store"), tmp_path, "control", "--tasks", "2") == 0
    assert taken == [0, 1, 2]
    assert run((tiny_zoo, tmp_path / "other"), tmp_path / "at_once", "control", "--tasks", "2") == 0
    gone_on, at_once = (
        pd.read_csv(folder / "pareto_control.csv").drop(columns="seconds")
        for folder in (tmp_path, tmp_path / "at_once")
    )
    pd.testing.assert_frame_equal(gone_on, at_once)


def test_adamerging_is_gradient_descent_on_the_preferred_entropies(place):
    bench = make_bench(place, steps=1)
    names = from_zoo(str(place[0])).first(2)
    evaluator = bench.evaluator(bench.study(names))
    learned = bench.adamerging(bench.study(names), 0, (1.0, 0.0), balance=0.0)
    moved = prepared(bench, learned).lambdas - 0.3
    # Adam's first step has the length of its rate, against the gradient's sign, which differences give here.
    rng = np.random.default_rng([0, 0])
    rng.dirichlet(np.ones(2))
    images = evaluator.family.images(evaluator.tasks[names[0]], "val")
    batch = images[torch.from_numpy(rng.choice(len(images), 32, replace=False))]

    def entropy(coefficients: np.ndarray) -> float:
        weights = evaluator.exported_vectors.merge_layers(coefficients)
        evaluator.exported_vectors.load_into(evaluator.family.model_in(torch.float32), weights)
        with torch.no_grad():
            p = evaluator.family.logits(batch, evaluator.tasks[names[0]], torch.float32).softmax(dim=1)
        return float(-(p.double() * p.double().log()).sum(dim=1).mean())

    for layer, task in ((0, 0), (3, 1), (5, 0)):
        slope = 0.0
        for sign in (1, -1):
            coefficients = np.full(moved.shape, 0.3)
            coefficients[layer, task] += sign * 0.05
            slope += sign * entropy(coefficients)
        assert moved[layer, task] == pytest.approx(-1e-3 * np.sign(slope), rel=0.02)
    assert learned.n_extra == 0


def test_adamerging_stays_between_0_and_1(place):
    bench = make_bench(place, steps=2)
    names = from_zoo(str(place[0])).first(2)
    learned = bench.adamerging(bench.study(names), 0, start=0.9, lr=0.5)
    lambdas = prepared(bench, learned).lambdas
    assert lambdas.min() >= 0
    assert lambdas.max() == 1


BLOCKS = (Block("a", 0, 0, 7, 5), Block("b", 0, 0, 6, 8))
GAMMA = torch.tensor([0.2, 0.5, 0.3])


def filled(structure):
    """With random numbers where zeros would hide what is wrong."""
    made = structure(BLOCKS, 3, 4, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def written_out(made, i, gamma):
    """What γ adds to a block, one rank at a time (c x d), in float64."""
    block = made.blocks[i]
    total = np.zeros((block.c, block.d))
    if isinstance(made, SingularValues):
        A, B, values = (kind[i].detach().double().numpy() for kind in (made.A, made.B, made.values))
        diagonal = [*values[:4], *(values[4] * share for share in gamma)]
        for j, value in enumerate(diagonal):
            total += value * np.outer(A[:, j], B[:, j])
        return total
    A, B = (kind[i].detach().double().numpy() for kind in (made.A, made.B))
    for r in range(A.shape[2]):
        if isinstance(made, OuterProducts):
            left = sum(share * A[k, :, r] for k, share in enumerate(gamma))
            right = sum(share * B[k, :, r] for k, share in enumerate(gamma))
            total += np.outer(left, right)
        else:
            for k, share in enumerate(gamma):
                total += share * np.outer(A[k, :, r], B[k, :, r])
    return total


@pytest.mark.parametrize("structure", [SumOfLoras, SingularValues, OuterProduct, OuterProducts])
def test_structures_are_their_sums_written_out(structure):
    made = filled(structure)
    for i in range(len(BLOCKS)):
        left, right = made.factors(i, GAMMA)
        expected = written_out(made, i, GAMMA.double().tolist())
        assert (left @ right.T).detach().numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    squares = sum((written_out(made, i, row) ** 2).sum() for i in range(2) for row in np.eye(3))
    assert made.squared_norm().item() == pytest.approx(squares, rel=1e-4)


@pytest.mark.parametrize(
    ("structure", "n_parameters"),
    [
        (SumOfLoras, 3 * 4 * (12 + 14)),
        (SingularValues, (4 + 3) * (12 + 14) + 2 * (4 + 1)),
        (OuterProduct, 3 * (12 + 14)),
        (OuterProducts, 3 * 4 * (12 + 14)),
        (Nothing, 0),
    ],
)
def test_structures_start_from_nothing(structure, n_parameters):
    made = structure(BLOCKS, 3, 4, 0)
    assert made.n_parameters == n_parameters
    assert made.squared_norm().item() == 0
    for i, block in enumerate(BLOCKS):
        left, right = made.factors(i, GAMMA)
        assert torch.equal(left @ right.T, torch.zeros(block.c, block.d))


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_learn(place, name):
    bench = make_bench(place)
    names = from_zoo(str(place[0])).first(2)
    learned = bench.pareto(bench.study(names), 0, structure=name, beta_norm=0.0)
    one, other = (dict(prepared(bench, learned).tensors(row)) for row in np.eye(2))
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert set(structures.TITLES) == set(STRUCTURES)


def test_sums_and_volumes_by_hand():
    gammas = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    values = np.array([[0.9, 0.3], [0.7, 0.7], [0.4, 0.8]])
    frame = pd.DataFrame(model_rows(["A", "B"], 0, "ours", values, gammas))
    pretrained = pd.DataFrame(model_rows(["A", "B"], 0, "theirs", np.array([[0.2, 0.2]])))
    assert weighted(frame)[0] == pytest.approx((0.9 + 0.7 + 0.8) / 3)
    # Steps from right to left: 0.7 x 0.1, then 0.5 x 0.4, then 0.2 x 0.1.
    assert front_line(frame, pretrained) == {
        "weighted": "80.00",
        "hypervolume": "29.00",
        "A alone": "90.00",
        "B alone": "80.00",
    }


def test_splits_hold_out_two_tasks_of_eight():
    assert splits(tuple("ABCDEFGH")) == [("A", "E"), ("C", "H")]
    assert splits(tuple("ABC")) == [("A",), ("C",)]
    with pytest.raises(MapMergeError, match="choose three or more, not 2"):
        splits(("A", "B"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("figure3", "--tasks", "3"), "Figure 3 merges 2 models, not 3"),
        (("figure4", "--tasks", "2"), "Figure 4 merges 3 models, not 2"),
        (("unseen", "--tasks", "2"), "choose three or more, not 2"),
        (("table3", "--tasks", "Colours,Flags"), "has no task 'Flags'"),
        (("table3", "--seeds", "-1"), "seed -1"),
    ],
)
def test_bad_input_is_one_sentence(place, tmp_path, capsys, words, sentence):
    assert run(place, tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["pareto_table3", "--steps", "0"], ["table3", "--threads", "none"]])
def test_bad_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err
