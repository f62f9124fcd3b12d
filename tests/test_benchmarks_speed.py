"""The benchmark of speed as a command: what it prints, not how fast anything is."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.speed.__main__ import BAD_INPUT, main, rows


def test_every_row_has_a_name_of_its_own_and_a_target() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names) >= 18
    assert all(row.target > 0 for row in rows())


def test_rows_are_measured_and_written(tmp_path, capsys) -> None:
    code = main(["--device", "cpu", "--rows", "fit_identity", "gpu_point", "--json", "--out", str(tmp_path)])
    fit, gpu = json.loads(capsys.readouterr().out)
    assert {"row", "value", "against", "target", "ok"} <= fit.keys()
    assert (fit["row"], fit["target"], fit["against"]) == ("fit_identity", 20, None)
    assert fit["value"] > 0
    assert fit["ok"] == (fit["value"] <= 20)
    assert code == (0 if fit["ok"] else 1)
    assert (gpu["value"], gpu["ok"], gpu["note"]) == (None, None, "not measured")
    assert "| not measured |" in (tmp_path / "speed.md").read_text()
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert "cores" in kept["machine"] or torch.cuda.is_available()
    assert [row["row"] for row in kept["rows"]] == ["fit_identity", "gpu_point"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--rows", "everything"], "There is no row 'everything': choose from merge_bandwidth, "),
        (["--device", "tpu"], "There is no device 'tpu' here"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(capsys, asked, said) -> None:
    assert main(asked) == BAD_INPUT
    assert said in capsys.readouterr().err
