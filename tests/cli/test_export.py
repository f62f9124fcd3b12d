"""The command ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Made


def test_the_latest_pick_with_its_card_and_recipe(demo: Made, tmp_path: Path):
    exported = demo.command.json("export", 1, "--out", tmp_path / "mine.safetensors")
    assert exported["pick"] == demo.command.store.picks.all(1)[-1].id
    path = Path(exported["export"])
    assert path == tmp_path / "mine.safetensors"
    assert path.stat().st_size == exported["bytes"]
    assert all(Path(exported[kind]).exists() for kind in ("export", "card", "mergekit"))
    text, _ = demo.command("export", 1, "--pick", exported["pick"])
    assert "SHA-256 " in text


def test_every_compared_model(compared: Made, tmp_path: Path):
    for name in ("TIES", "Nested MAP on Task arithmetic", "Pre-trained"):
        out = tmp_path / f"{name}.safetensors"
        exported = compared.command.json("export", 1, "--row", name, "--out", out)
        assert exported["row"] == name
        assert out.stat().st_size == exported["bytes"]
    [pick] = compared.command.store.picks.all(1)
    assert (pick.name, pick.how) == (
        "Nested MAP on Task arithmetic",
        {"kind": "compared", "name": "Nested MAP on Task arithmetic"},
    )


def test_a_learned_set(learned: Made, tmp_path: Path):
    exported = learned.command.json("export", 1, "--merge", "pareto_merging", "--out", tmp_path / "set.safetensors")
    path = Path(exported["export"])
    assert exported == {"merge": "pareto_merging", "export": str(path), "bytes": path.stat().st_size}
    assert path == tmp_path / "set.safetensors"
    text, _ = learned.command("export", 1, "--merge", "pareto_merging")
    path = Path(text.split(" exported to ")[1].strip())
    assert path.parent == learned.command.home / "exports" / "demo-colours-stripes"
    assert path.read_bytes() == (tmp_path / "set.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--pick", "99"], "has no pick 99"),
        (["--pick", str(2**70)], "has no pick"),
        (["--out", "~nobody-has-this-name/x"], "home directory"),
        (["--row", "Salad"], "The comparison has no row 'Salad'"),
        (["--row", "TIES"], "has no TIES yet: make it with `compare 1 --merges ties`"),
        (["--merge", "ties"], "has no merge 'ties'"),
        (["--merge", "task_arithmetic"], "ask arithmetic"),
        (["--merge", "1", "--row", "TIES"], "Export one of --pick, --row and --merge"),
    ],
)
def test_bad_input_is_one_sentence(demo: Made, words: list[str], sentence: str):
    out, err = demo.command("export", 1, *words, code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err


def test_a_study_without_picks(command: Command, tiny_zoo: Path):
    command("run", tiny_zoo, "--tasks", 2, "--points", 5, "--name", "Mine")
    _, err = command("export", "Mine", code=2)
    assert err == "'Mine' has no pick yet: make one with the command `pick`.\n"
