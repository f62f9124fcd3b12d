"""The command ``compare``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Made

RUNS = [f"{method} on Task arithmetic" for method in ("MAP", "Bayesian MAP", "Nested MAP", "Direct search")]


def short(name: str) -> str:
    return name.partition(" (points")[0]


def test_it_prints_the_documented_object(compared: Made):
    printed = compared.printed
    assert list(printed) == ["objectives", "rows", "preferences"]
    assert printed["objectives"] == ["Colours", "Stripes"]
    rows = {short(row["name"]): row for row in printed["rows"]}
    assert len(rows) == len(printed["rows"])
    for row in printed["rows"]:
        assert list(row) == ["name", "kind", "x", "metrics", "evaluations", "seconds"]
        assert all(0 <= row["metrics"][task] <= 1 for task in printed["objectives"])
    kinds: dict[str, list[str]] = {}
    for name, row in rows.items():
        kinds.setdefault(row["kind"], []).append(name)
    assert kinds["run"] == RUNS
    assert {"Task arithmetic by preference", "Model soup", "TIES", "SLERP"} <= set(kinds["baseline"])
    assert kinds["single"] == ["Colours's own model", "Stripes's own model"]
    assert kinds["pretrained"] == ["Pre-trained"]
    # MAP's points times tasks; the paper's 12 for Bayesian MAP and 20 a pair for nested MAP, two tasks each.
    assert [rows[name]["evaluations"] for name in RUNS] == [24, 24, 40, 50]
    assert rows["Model soup"]["x"] == [0.5, 0.5]
    assert rows["Pre-trained"]["x"] == [0.0, 0.0]
    wins = printed["preferences"]["wins"]
    assert printed["preferences"]["winner"] == RUNS[1]  # the latest with a front of surrogates
    assert {short(name) for name in wins} == set(rows) - {RUNS[1]}
    assert all(0 <= rate <= 1 for rate in wins.values())
    assert wins["Pre-trained"] > 0.5


def test_comparing_again_measures_nothing_and_says_the_same(compared: Made):
    store = compared.command.store
    counted = store.studies.get(1).n_evaluations
    assert compared.command.json(*compared.words) == compared.printed
    assert (len(store.studies.all()), store.studies.get(1).n_evaluations) == (1, counted)


def test_a_table_and_a_file(compared: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["compare", 1, "--no-merges", "--normalise", "--preference", "Colours=1"]
    text, _ = compared.command(*words, "--csv", tmp_path / "table.csv")
    assert "the preference is Colours 100%" in text
    assert "RegMean (regmean)" in text.partition("Not made yet")[2]
    for name in ("Nested MAP", "SLERP", "Pre-trained"):
        assert name in text
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0].startswith("model,kind,Colours,Stripes,mean,worst,hypervolume,preference,")
    assert len(lines) == 1 + len(compared.printed["rows"])
    own = next(line for line in lines if line.startswith("Colours's own model"))
    assert float(own.split(",")[2]) == 1.0
    for nowhere in (tmp_path / "nowhere" / "table.csv", tmp_path):
        with monkeypatch.context() as patched:  # refused before anything is made
            patched.setattr("mapmerge_core.studies.runs.completing.complete", None)
            _, err = compared.command(*words, "--csv", nowhere, code=2)
        assert f"{nowhere} can't be written" in err


def test_an_interrupted_comparison_goes_on(command: Command, tiny_zoo: Path, request: pytest.FixtureRequest):
    words = ("compare", "--demo", "--zoo", tiny_zoo, "--points", 12, "--direct-points", 60, "--no-merges")
    process = command.start_until(
        lambda store: store.studies.all() and len(store.runs.all(store.studies.all()[0].id)) == 4, *words
    )
    request.addfinalizer(process.kill)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "everything measured is kept" in err
    assert "goes on" in err
    store = command.store
    kept = [row.id for row in store.evaluations.rows(1)]
    rows = command.json(*words)["rows"]
    assert [row["evaluations"] for row in rows if row["kind"] == "run"] == [24, 24, 40, 120]
    assert [row.id for row in store.evaluations.rows(1)][: len(kept)] == kept
    assert {run.status for run in store.runs.all(1)} == {"done"}


def test_a_learned_set_is_a_row(learned: Made):
    rows = learned.command.json("compare", 1, "--no-merges")["rows"]
    assert [row["name"].partition(" (")[0] for row in rows if row["kind"] == "run"] == ["MAP on Pareto Merging"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Name either a study"),
        (["1", "--demo"], "Name either a study"),
        (["1", "--points", "30"], "--points is for --demo"),
        (["1", "--direct-points", "30"], "--direct-points is for --demo"),
        (["1", "--tasks", "2"], "--tasks is for --demo"),
        (["Nothing"], "There is no study 'Nothing'"),
        (["1", "--preference", "Flags=1"], "There is no objective 'Flags'"),
        (["1", "--preference", "Colours=0"], "zero"),
        (["1", "--merges", "salad"], "'salad'"),
        (["1", "--merges", "soup", "--no-merges"], "give one of them"),
        (["1", "--seed", "-1"], "-1"),
        (["1", "--device", "cuda:99"], "There is no device 'cuda:99'"),
        (["--demo", "--tasks", "1"], "merges 2 to 8 tasks, not 1"),
        (["--demo", "--tasks", "3", "--merges", "slerp"], "SLERP merges 2 models, not 3"),
        (["--demo", "--preference", "MNIST=-1"], "negative or not finite"),
        (["--demo", "--points", "5"], "too few to see the trade-offs of 2 tasks"),
        (["--demo", "--direct-points", "2"], "2 points are too few"),
        (["--demo", "--seed", "-1"], "-1"),
    ],
)
def test_bad_input_is_one_sentence(demo: Made, words: list[str], sentence: str):
    out, err = demo.command("compare", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err
    assert len(demo.command.store.studies.all()) == 1
