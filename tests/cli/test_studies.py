"""The command ``studies``, and what holds for all commands: help, exit codes, what is imported."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from mapmerge_core.__main__ import main
from tests.cli.conftest import ROOT, Command, Made

if TYPE_CHECKING:
    import pytest


def test_studies_are_listed_renamed_and_deleted(demo: Made):
    text, _ = demo.command("studies", "--rename", 1, "  Another  name ")
    assert "Another name" in text
    _, err = demo.command("studies", "--rename", 9, "Mine", code=2)
    assert err.startswith("There is no study '9'")
    _, err = demo.command("studies", "--delete", "Demo", code=2)
    assert err.startswith("There is no study 'Demo'")
    text, _ = demo.command("studies", "--delete", "Another name")
    assert "There are no studies yet" in text
    assert demo.command.json("studies") == {"studies": []}


def test_help_documents_the_commands_and_the_exit_codes(command: Command):
    text, _ = command("--help")
    words = " ".join(text.split())
    for part in ("0 done", "1 something", "2 something", "3 no model", "130 interrupted", "pick", "merges"):
        assert part in words
    text, _ = command("run", "--help")
    for option in ("--data-free", "--personalised", "--balance", "--concentration", "--points", "--keep"):
        assert option in text
    for words in (["salad"], ["demo", "salad"], ["run", "--mergee", "soup"]):
        _, err = command(*words, code=2)
        assert err.count("\n") == 1


def test_what_nobody_expected_exits_1_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAPMERGE_HOME", str(tmp_path))
    closed, err = io.StringIO(), io.StringIO()
    closed.close()
    with redirect_stdout(closed), redirect_stderr(err):
        assert main(["studies"]) == 1
    assert err.getvalue() == "Unexpected error: ValueError: I/O operation on closed file\n"


def test_neither_help_nor_lists_load_torch():
    words = [["--help"], ["run", "--help"], ["merges"], ["methods"], ["metrics"], ["families"], ["studies"]]
    program = (
        "import sys; from mapmerge_core.__main__ import main\n"
        f"codes = [main(words) for words in {words}]\n"
        "sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
