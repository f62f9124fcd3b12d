"""Starting: from the command to the first page drawn."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.speed.row import ROUNDS, Measured, Row
from mapmerge_core.errors import MapMergeError
from tests.browser import CHROMIUM_ARGUMENTS, find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
APP = "app.py"
HEADING = "Merge fine-tuned models with every trade-off in view"
"""The first page's."""
LAST = "Nothing here yet"
"""What the first page says last while there are no studies: it stands once all else does."""
TIMEOUT = 60
"""Seconds after which a server that hasn't started never will."""
SHOWN_IMPORTS = 40
EMPTY_APP = f"import streamlit as st\nst.title({HEADING!r})\nst.subheader({LAST!r})\n"


@contextlib.contextmanager
def _browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        raise MapMergeError("There is no Chromium to draw the first page: see tests/install_browser.sh.")
    # Those who measure other rows need no browser.
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _seconds_to_first_page(browser: Browser, app: Path) -> float:
    """From the command, in a data folder that doesn't exist yet, to the first page drawn in the browser."""
    port = _free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(app)]
    options = ["--server.headless", "true", "--server.port", str(port)]
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MAPMERGE_HOME": str(Path(folder) / "home")}
        environment.pop("MAPMERGE_DATABASE", None)
        started = time.perf_counter()
        server = subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            _wait_for(port, server)
            page.goto(f"http://127.0.0.1:{port}")
            for text in (HEADING, LAST):
                page.get_by_text(text).wait_for(timeout=TIMEOUT * 1000)
            return time.perf_counter() - started
        finally:
            context.close()
            server.terminate()
            try:
                server.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise MapMergeError("The dashboard did not start: its own message stands above.")


def measure_start(_device: str) -> Measured:
    """The first page's seconds, beside those of an app that has nothing but two headings."""
    with _browser() as browser, tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / APP
        empty.write_text(EMPTY_APP, encoding="utf-8")
        # The first server reads everything from the disk, as none does after it.
        _seconds_to_first_page(browser, empty)
        _seconds_to_first_page(browser, ROOT / APP)
        rounds = [[_seconds_to_first_page(browser, app) for app in (ROOT / APP, empty)] for _ in range(ROUNDS)]
    seconds, floor = (float(median) for median in np.median(rounds, axis=0))
    note = f"in Chromium, started before the clock; an app of two headings takes {floor:.2f} s in the same run"
    return Measured(seconds, None, "s", seconds, note)


def profile_start(_device: str) -> None:
    """What ``app.py`` imports until its first page is drawn, the slowest packages first."""
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", FIRST_PAGE],
            cwd=ROOT,
            env={**os.environ, "MAPMERGE_HOME": folder},
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
    lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    head, *imports = lines
    imports.sort(key=lambda line: -int(line.split("|")[1]))
    sys.stderr.write("\n".join([head, *imports[:SHOWN_IMPORTS], ""]))


FIRST_PAGE = f"""
from pages.parts.shared import shell
from streamlit.testing.v1 import AppTest

shell.warm_up = lambda: None
page = AppTest.from_file({str(ROOT / APP)!r}, default_timeout={TIMEOUT}).run()
assert not page.exception, page.exception
"""
"""Draws the first page and imports nothing that comes after it."""


ROWS = (
    Row(
        "start",
        "`streamlit run app.py` to the first page drawn",
        "a bound",
        4,
        at_most=True,
        measure=measure_start,
        unit="s",
        profile=profile_start,
    ),
)
