"""The harness that redoes the paper's tables, on the tiny zoo with tiny budgets."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.evenly import evenly
from benchmarks.paper import figure2, table2, table3
from benchmarks.paper.__main__ import TABLES, main
from benchmarks.paper.bench import Bench, Counter
from benchmarks.paper.models import Models, from_study, from_zoo, parse_set
from benchmarks.paper.table import mean_std
from mapmerge_core.errors import StudyError
from mapmerge_core.studies.config.demo import DEMO_ZOO, config_from_manifest, demo_tasks
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs import completing
from mapmerge_core.studies.store import Store, Study

BUDGETS = ("--map-points", "14", "--direct-points", "24", "--sample", "5", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tiny_zoo, tmp_path_factory):
    """A zoo that stays, and a store that this module's tests fill together."""
    return tiny_zoo, tmp_path_factory.mktemp("paper")


def arithmetic(store: Store, study: Study) -> int:
    """The id of task arithmetic."""
    return store.merges.all(study.id)[0].id


def run(place, out: Path, table: str, *more: str) -> int:
    zoo, store = place
    return main([table, "--zoo", str(zoo), "--seeds", "0", "--store", str(store), "--out", str(out), *BUDGETS, *more])


@pytest.mark.parametrize(
    ("table", "more", "n_rows"),
    [
        ("table2", ("--tasks", "2", "3:0,1"), 1 + 2),  # a row for each set and seed
        ("figure4", ("--tasks", "2"), 1),  # of the counts, 10 alone is below half of 24 points
        ("bayesian", ("--tasks", "Light,Stripes"), 5),  # MAP with 6, 9 and 12 points, Bayesian with 9 and 12
        ("table5", (), 6),  # two methods, three tasks
        ("budget", ("--tasks", "2"), 2),  # 50 images of the 60 that there are, and all
        ("figure2", ("--thresholds", "30", "40%"), 12),  # two thresholds, two methods, three tasks
    ],
)
def test_every_table_is_written(place, tmp_path, capsys, table, more, n_rows):
    assert run(place, tmp_path, table, *more) == 0
    text = (tmp_path / f"{table}.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    command = next(line for line in text.splitlines() if "benchmarks.paper" in line)
    assert "--seeds 0" in command
    assert "--store" not in command
    assert str(tmp_path) not in command
    assert "Unfinished" not in text
    assert (tmp_path / f"{table}.png").read_bytes()[:4] == b"\x89PNG"
    assert len(pd.read_csv(tmp_path / f"{table}.csv")) == n_rows


def test_table2_compares_what_was_measured(place, tmp_path):
    assert run(place, tmp_path, "table2", "--tasks", "Colours,Light") == 0
    row = pd.read_csv(tmp_path / "table2.csv").iloc[0]
    zoo, folder = place
    store = Store(folder)
    study = next(s for s in store.studies.all() if s.config == config_from_manifest(zoo, ["Colours", "Light"]))
    table = store.evaluations.table(arithmetic(store, study))
    C, Y = table.X, table.Y
    # The design: origin, unit vectors, and NumPy's uniform numbers of the seed.
    expected = np.vstack([np.zeros((1, 2)), np.eye(2), np.random.default_rng(0).random((21, 2))])
    points = [int(np.flatnonzero((c == C).all(axis=1))[0]) for c in expected]
    direct = Y[points]
    dominated = [any((other >= y).all() and (other > y).any() for other in direct) for y in direct]
    assert row["direct front"] == dominated.count(False)
    assert row["sampled"] == min(5, dominated.count(False))
    assert len(C) <= 24 + 5  # direct search's points, and the sampled rows of MAP's front
    assert 0 <= row["win rate"] <= 1
    assert row["worst R2"] <= row["R2"] <= 1


def test_what_was_measured_is_not_measured_again(place, tmp_path, monkeypatch):
    assert run(place, tmp_path / "one", "table2", "--tasks", "2") == 0

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is left to measure")

    monkeypatch.setattr(EvaluatorCache, "get", refuse)
    assert run(place, tmp_path / "two", "table2", "--tasks", "2") == 0
    first, second = ((tmp_path / name / "table2.csv").read_text() for name in ("one", "two"))
    assert first == second


def test_goes_on_where_it_was_interrupted(tiny_zoo, tmp_path, capsys, monkeypatch):
    store, out = tmp_path / "store", tmp_path / "out"
    show, shown = Counter.show, []

    def interrupt(self: Counter, done: int) -> None:
        show(self, done)
        shown.append(done)
        if len(shown) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(Counter, "show", interrupt)
    assert run((tiny_zoo, store), out, "table2", "--tasks", "2") == 130
    assert "the same command goes on" in capsys.readouterr().err
    kept = len(Store(store).evaluations.rows(1))
    assert 5 < kept < 48
    assert run((tiny_zoo, store), out, "table2", "--tasks", "2") == 0
    assert run((tiny_zoo, tmp_path / "other"), tmp_path / "at_once", "table2", "--tasks", "2") == 0
    assert (out / "table2.csv").read_text() == (tmp_path / "at_once" / "table2.csv").read_text()
    evaluations = Store(store).evaluations.rows(1)
    assert [row.id for row in evaluations[:kept]] == list(range(1, kept + 1))


def test_an_interrupted_table_keeps_the_seeds_that_are_done(tiny_zoo, tmp_path, monkeypatch):
    rows = table2.rows

    def second_is_interrupted(bench: Bench, names: tuple[str, ...], seed: int) -> list:
        if seed == 1:
            raise KeyboardInterrupt
        return rows(bench, names, seed)

    monkeypatch.setattr(
        table2, "TABLE", table2.TABLE.__class__(**{**vars(table2.TABLE), "rows": second_is_interrupted})
    )
    assert run((tiny_zoo, tmp_path / "store"), tmp_path, "table2", "--tasks", "2:0,1,2") == 130
    assert "**Unfinished: 2 of 3 sets and seeds are missing.**" in (tmp_path / "table2.md").read_text()
    assert pd.read_csv(tmp_path / "table2.csv")["seed"].tolist() == [0]


def test_table3_has_a_line_for_every_baseline(place, tmp_path, monkeypatch):
    some = partial(completing.complete, merges=["soup", "ties"])  # AdaMerging takes long
    monkeypatch.setattr(table3, "complete", some)
    assert run(place, tmp_path, "table3", "--tasks", "Colours,Stripes") == 0
    frame = pd.read_csv(tmp_path / "table3.csv").set_index("method")
    assert {
        "MAP",
        "Single-task models",
        "Model soup",
        "TIES",
        "Task arithmetic, 0.3",
        "Task arithmetic by preference",
    } == set(frame.index)
    zoo, folder = place
    store = Store(folder)
    study = next(s for s in store.studies.all() if s.config == config_from_manifest(zoo, ["Colours", "Stripes"]))
    weights = 1 - np.random.default_rng(0).uniform(size=(20, 2))
    weights /= weights.sum(axis=1, keepdims=True)
    soup = store.evaluations.measured(store.merges.add(study.id, "soup", {}).id, np.full(2, 0.5), "test")
    sums = weights @ [soup["Colours/accuracy"], soup["Stripes/accuracy"]]
    assert frame.loc["Model soup", "sum"] == pytest.approx(sums.mean(), rel=1e-5)
    assert frame.loc["Model soup", "deviation"] == pytest.approx(sums.std(ddof=1), rel=1e-4)
    assert 0 <= frame.loc["Model soup", "win rate"] <= 1
    assert np.isnan(frame.loc["MAP", "win rate"])


def test_table5_counts_what_nested_merging_asks_for(place, tmp_path):
    assert run(place, tmp_path, "table5") == 0
    frame = pd.read_csv(tmp_path / "table5.csv")
    counts = frame.groupby("method")["evaluations"].first()
    # Two tasks first, 20 points on each; then the pair with the third, 20 points on all three.
    assert counts["Nested merging"] == 20 * 2 + 20 * 3
    assert counts["All at once"] == 14 * 3


def test_figure2_gives_direct_search_the_best_that_it_measured(place, tmp_path):
    assert run(place, tmp_path, "figure2", "--tasks", "2", "--thresholds", "1", "100") == 0
    frame = pd.read_csv(tmp_path / "figure2.csv").set_index(["threshold", "method", "task"])
    zoo, folder = place
    store = Store(folder)
    names = from_zoo(str(zoo)).first(2)
    study = next(s for s in store.studies.all() if s.config == config_from_manifest(zoo, names))
    C = np.vstack([np.zeros((1, 2)), np.eye(2), np.random.default_rng(0).random((11, 2))])
    merge = arithmetic(store, study)
    keys = [objective.key for objective in study.config.objectives]
    Y = np.array([[store.evaluations.measured(merge, c, "val")[key] for key in keys] for c in C])
    for k, name in enumerate(names):
        best = store.evaluations.measured(merge, C[np.argmax(Y[:, k])], "test")
        assert frame.loc[(0.01, "Direct search", name), "metric"] == pytest.approx(best[keys[k]], rel=1e-5)
    single = Y[[1, 2], [0, 1]]
    feasible = (single <= Y).all(axis=1).any()
    assert np.isfinite(frame.loc[(1.0, "Direct search", names[0]), "metric"]) == feasible
    assert figure2.LOOSE < figure2.TIGHT


def test_the_same_models_as_the_dashboard_demo():
    models = from_zoo("demo")
    for n in (2, 5, 8):
        assert models.subset(models.first(n)) == config_from_manifest(DEMO_ZOO, demo_tasks(n))
    assert (models.upper(4), models.upper(5)) == (1.0, 0.6)


def test_a_study_file_names_models_of_ones_own(tiny_zoo, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(tiny_zoo, folder / "models")
    tasks = [
        {"name": name, "checkpoint": f"models/{name}.safetensors", "data": f"models/{name}.npz"}
        for name in ("Stripes", "Light")
    ]
    (folder / "study.yaml").write_text(
        yaml.safe_dump(
            {
                "architecture": "models/tiny-clip.json",
                "pretrained": "models/pretrained.safetensors",
                "tasks": tasks,
                "run": {"high": 0.8},
            }
        )
    )
    models = from_study(folder / "study.yaml")
    assert models.config == config_from_manifest(folder / "models", ["Stripes", "Light"])
    assert (models.name, models.upper(2)) == ("study", 0.8)
    options = ["--seeds", "0", "--store", str(tmp_path / "store"), "--out", str(tmp_path), *BUDGETS]
    assert main(["table2", "--study", str(folder / "study.yaml"), *options]) == 0
    C = Store(tmp_path / "store").evaluations.table(1).X
    free = C[~np.isin(C, (0.0, 1.0)).all(axis=1)]
    assert free.max() <= 0.8


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "can't be read"), ("architecture: ViT-B-32\nseeds: 3\n", "line 2: seeds isn't a field of a study")],
)
def test_a_bad_study_file_is_one_sentence(tmp_path, capsys, text, sentence):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["table2", "--study", str(path), "--store", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "names", "seeds"),
    [
        ("2", ("A", "B"), (0, 1)),
        ("3:7", ("A", "B", "C"), (7,)),
        ("C,A", ("C", "A"), (0, 1)),
        ("C,A:2,5", ("C", "A"), (2, 5)),
    ],
)
def test_task_sets(tmp_path, word, names, seeds):
    assert parse_set(word, lettered(tmp_path), (0, 1)) == (names, seeds)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("1", "2 to 3 tasks to merge, not 1"),
        ("4", "2 to 3 tasks to merge, not 4"),
        ("A,D", "has no task 'D'"),
        ("A", "two tasks or more"),
        ("A,A", "Two tasks are called 'A'"),
    ],
)
def test_bad_task_sets(tmp_path, word, sentence):
    with pytest.raises(StudyError, match=sentence):
        parse_set(word, lettered(tmp_path), (0,))


def lettered(folder: Path) -> Models:
    path = folder / "abc.yaml"
    tasks = [{"name": name, "checkpoint": "c", "data": "d"} for name in "ABC"]
    path.write_text(yaml.safe_dump({"architecture": "ViT-B-32", "pretrained": "p", "tasks": tasks}))
    return from_study(path)


@pytest.mark.parametrize("words", [["table9"], ["table2", "--sample", "0"], ["figure2", "--thresholds", "40", "101"]])
def test_bad_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err


def test_a_negative_seed_is_refused(place, tmp_path, capsys):
    assert run(place, tmp_path, "table2", "--tasks", "2", "--seeds", "-1") == 2
    assert "seed -1" in capsys.readouterr().err


def test_help_lists_every_table(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in TABLES)


def test_means_and_deviations():
    values = pd.Series([0.1, 0.3, np.nan])
    assert mean_std(values, 100) == "20.00 ± 14.14"  # √((10² + 10²) / 1)
    assert mean_std(values[:1], digits=3) == "0.100"
    assert mean_std(values[2:]) == "-"


def test_rows_are_evenly_chosen():
    assert evenly(9, 3).tolist() == [0, 4, 8]
    assert evenly(2, 15).tolist() == [0, 1]


def test_progress_without_a_terminal(capsys):
    counter = Counter(10, None)
    counter.part(4)(1, 2)
    counter.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "2 of 10 evaluations"
    assert lines[1].startswith("10 of 10 evaluations, 0 min left")
