"""The command line on data folders of their own, and studies of the tiny zoo that were made with it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mapmerge_core.__main__ import main
from mapmerge_core.studies.store import Store

ROOT = Path(__file__).parents[2]
LEARN = ("--merge", "pareto_merging", "--steps", "30", "--rank", "4", "--lr", "0.03", "--beta-norm", "0")


@dataclass(frozen=True)
class Command:
    """Commands on a data folder of their own."""

    home: Path

    @property
    def store(self) -> Store:
        return Store(self.home)

    def __call__(self, *words: object, code: int = 0) -> tuple[str, str]:
        """Run a command in this process, which needn't import everything again; return what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setenv("MAPMERGE_HOME", str(self.home))
            assert main([str(word) for word in words]) == code, err.getvalue()
        assert "Traceback" not in err.getvalue()
        return out.getvalue(), err.getvalue()

    def json(self, *words: object, code: int = 0) -> Any:
        out, _ = self(*words, "--json", code=code)
        assert out.count("\n") == 1
        return json.loads(out)

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mapmerge_core", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "MAPMERGE_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_until(self, reached: Callable[[Store], object], *words: object) -> subprocess.Popen[str]:
        """Start a command in its own process, and return it once the store tells that it has come so far."""
        process = self.start(*words)
        store, deadline = self.store, time.monotonic() + 600
        while not reached(store):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(process.communicate()[1])
            time.sleep(0.01)
        return process


@dataclass(frozen=True)
class Made:
    """A data folder with a study 1, and what the command that made it printed."""

    command: Command
    words: tuple[object, ...]
    printed: dict[str, Any]

    def copied_to(self, folder: Path) -> Made:
        shutil.copytree(self.command.home, folder)
        return Made(Command(folder), self.words, self.printed)


def make(home: Path, *words: object) -> Made:
    command = Command(home)
    return Made(command, words, command.json(*words))


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "home")


@pytest.fixture
def store(command: Command) -> Store:
    """The store that the commands use."""
    return command.store


@pytest.fixture(scope="session")
def _demo(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Made:
    home = tmp_path_factory.mktemp("demo-home")
    words = ("demo", "--tasks", 2, "--points", 14, "--seed", 1, "--zoo", tiny_zoo, "--out", home / "out")
    return make(home, *words)


@pytest.fixture
def demo(_demo: Made, tmp_path: Path) -> Made:
    """The demo of the tiny zoo's first two tasks, with a pick that is exported."""
    return _demo.copied_to(tmp_path / "demo")


@pytest.fixture(scope="session")
def _compared(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Made:
    words = ("compare", "--demo", "--zoo", tiny_zoo, "--points", 12, "--direct-points", 25)
    return make(tmp_path_factory.mktemp("compare-home"), *words, "--merges", "soup,ties,slerp")


@pytest.fixture
def compared(_compared: Made, tmp_path: Path) -> Made:
    """The comparison of every method on the tiny zoo's first two tasks, with three merges."""
    return _compared.copied_to(tmp_path / "compared")


@pytest.fixture(scope="session")
def _learned(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Made:
    words = ("run", "--demo", "--zoo", tiny_zoo, "--tasks", 2, *LEARN, "--points", 5)
    return make(tmp_path_factory.mktemp("pareto-home"), *words)


@pytest.fixture
def learned(_learned: Made, tmp_path: Path) -> Made:
    """A learned set of the tiny zoo's first two tasks, by Pareto Merging."""
    return _learned.copied_to(tmp_path / "learned")
