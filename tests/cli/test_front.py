"""The command ``front``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Made


def test_the_front_of_a_study(demo: Made):
    printed = demo.command.json("front", 1, "--seed", 1)
    assert list(printed) == ["objectives", "merges", "r2", "front"]
    front = printed["front"]
    assert front["x"] == demo.printed["front"]["x"]
    assert np.shape(front["lower"]) == np.shape(front["upper"]) == (front["size"], 2)
    assert set(front["merge"]) == {1}
    assert demo.command.json("front", 1, "--seed", 1, "--merge", "task_arithmetic")["front"] == front
    text, _ = demo.command("front", "Demo: Colours + Stripes")
    assert "own model" in text
    assert "%" in text


def test_the_front_of_one_run(compared: Made):
    runs = {run.config.method: run for run in compared.command.store.runs.all(1)}
    direct = compared.command.json("front", 1, "--run", runs["direct"].id)
    assert list(direct) == ["objectives", "run", "front"]
    assert direct["run"] == {"id": runs["direct"].id, "merge": "task_arithmetic", "method": "direct"}
    values = np.array(direct["front"]["measured"])
    assert len(values) == direct["front"]["size"]
    for row in values:  # nothing beats a row of a front everywhere
        assert not ((values >= row).all(axis=1) & (values > row).any(axis=1)).any()
    text, _ = compared.command("front", 1, "--run", runs["nested"].id)
    assert "offers 1 models" in text
    assert "predicted" in text


def test_the_front_of_a_learned_set(learned: Made):
    front = learned.command.json("front", 1, "--merge", "pareto_merging")["front"]
    assert front == learned.printed["front"] | {kind: front[kind] for kind in ("lower", "upper")}
    assert np.sum(front["x"], axis=1) == pytest.approx(np.ones(front["size"]))
    text, _ = learned.command("front", 1, "--run", 1)
    assert "Run 1 offers" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["Nothing"], "There is no study 'Nothing'"),
        ([str(2**70)], "There is no study"),
        (["1", "--seed", "-1"], "The seed -1 can't be used"),
        (["1", "--run", "99"], "has no run 99"),
        (["1", "--merge", "99"], "has no merge '99': it has task_arithmetic (1)"),
        ([], "Missing argument 'STUDY'"),
    ],
)
def test_bad_input_is_one_sentence(demo: Made, words: list[str], sentence: str):
    out, err = demo.command("front", *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err
