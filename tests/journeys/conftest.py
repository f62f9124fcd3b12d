"""A real server and a real Chromium for the journeys."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.browser import CHROMIUM_ARGUMENTS, find_chromium

ROOT = Path(__file__).parents[2]
RUN_MS = 300_000
"""How long a run may take on a machine that is busy with other tests."""
READY = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def _die_with_parent() -> None:
    # A killed test run must not leave servers behind (PR_SET_PDEATHSIG is Linux's).
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)


@dataclass
class Server:
    """A dashboard on a port of its own with a data folder of its own."""

    home: Path
    zoo: Path | None = None
    port: int = 0
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.home.mkdir(parents=True, exist_ok=True)
        zoo = {} if self.zoo is None else {"MAPMERGE_ZOO": str(self.zoo)}
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "streamlit",
                    "run",
                    "app.py",
                    f"--server.port={self.port}",
                    "--server.headless=true",
                ],
                cwd=ROOT,
                # The browser computes on the same cores: threads that wait must not keep them from it.
                env={**os.environ, **zoo, "MAPMERGE_HOME": str(self.home), "OMP_WAIT_POLICY": "PASSIVE"},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads are started before this
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"The dashboard did not start:\n{(self.home / 'server.log').read_text()}")

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(with_signal)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def serving(server: Server) -> Iterator[Server]:
    """Starts a server, and stops it once its fixture is done."""
    server.start()
    yield server
    server.stop()


def with_demo(server: Server, page: Page) -> Server:
    """The server with its two-task demo evaluated, as study 1."""
    if not query(server.home, "SELECT id FROM runs WHERE id = 1 AND status = 'done'"):
        page.goto(server.url)
        button(page, "demo_2").click()
        expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=RUN_MS)
    return server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from serving(Server(tmp_path / "home"))


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory, tiny_zoo: Path) -> Iterator[Server]:
    """A server whose demos come from the tiny zoo; what journeys build on it is there for those that follow."""
    yield from serving(Server(tmp_path_factory.mktemp("tiny") / "home", tiny_zoo))


@pytest.fixture
def tiny_demo(tiny_server: Server, page: Page) -> Server:
    """The tiny zoo's server with its two-task demo evaluated, as study 1."""
    return with_demo(tiny_server, page)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("There is no Chromium, and CI must run the journeys: see tests/install_browser.sh")
        pytest.skip("SKIPPED LOUDLY: no Chromium on this machine, so no journey was made (see README, Testing)")
    expect.set_options(timeout=30_000)  # the usual 5 s are few on a machine that is busy with other tests
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


def settle(page: Page) -> None:
    """Waits until Streamlit has finished its script run."""
    page.wait_for_selector(READY)


def button(page: Page, key: str) -> Locator:
    """Finds a button by its key."""
    return page.locator(f".st-key-{key} button").first


def fill(page: Page, label: str, value: object) -> None:
    """Types into the field of that label."""
    field = page.get_by_label(label, exact=True).first
    field.fill(str(value))
    field.press("Enter")
    settle(page)


def choose_option(page: Page, label: str, option: str) -> None:
    """Chooses the option that is called so, perhaps with its settings after that, in the select box of that label."""
    page.get_by_role("combobox", name=re.compile(rf"{label}\b")).first.click()
    page.get_by_role("option", name=re.compile(rf"^{option}\b")).first.click()
    settle(page)


def query(home: Path, statement: str) -> list[tuple]:
    """Asks a data folder's database; nothing while it has no tables."""
    if not (home / "mapmerge.db").exists():
        return []
    with closing(sqlite3.connect(f"file:{home / 'mapmerge.db'}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'training_steps'").fetchall()
        return database.execute(statement).fetchall() if tables else []


def wait_until(happened: Callable[[], bool], seconds: float = RUN_MS / 1000) -> None:
    """Waits for something that the page doesn't show."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s"
        time.sleep(0.1)
