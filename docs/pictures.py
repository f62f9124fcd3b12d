"""Write the README's picture: run a small demo study, open the dashboard on it, and photograph Trade-offs.

    python docs/pictures.py

Needs Chromium (see tests/install_browser.sh) and the packages for tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from mapmerge_core.studies.config import RunConfig
from mapmerge_core.studies.config.demo import demo_study
from mapmerge_core.studies.inputs.evaluators import EvaluatorCache
from mapmerge_core.studies.runs.runner import execute_run
from mapmerge_core.studies.store import Store

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "assets"
READY = '[data-testid="stApp"][data-test-script-state="notRunning"]'
"""What a page has when its script has ended."""

sys.path.insert(0, str(ROOT))
from tests.browser import CHROMIUM_ARGUMENTS, find_chromium  # noqa: E402


def make_study(home: Path) -> None:
    """Run the demo of four tasks with two merges."""
    store, evaluators = Store(home), EvaluatorCache()
    demo = demo_study(4, points=60)
    study = store.studies.create(demo.name, demo.config)
    for merge in ("task_arithmetic", "regmean"):
        run = store.runs.create(study.id, RunConfig(merge=merge, method_settings={"points": 60}))
        claim = store.runs.claim(run.id)
        try:
            execute_run(store, run.id, evaluators.get)
        finally:
            claim.release()
    store.close()


@contextmanager
def dashboard(home: Path) -> Iterator[str]:
    """Start the dashboard on a data folder, and give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--server.port={port}", "--server.headless=true"]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", *options]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "MAPMERGE_HOME": str(home)}) as server:
        try:
            wait_for(f"{address}/_stcore/health", 60)
            yield address
        finally:
            server.terminate()


def wait_for(address: str, seconds: float) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=1):  # noqa: S310 - our own server
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def settle(page: Page) -> None:
    """Wait until a page is drawn: its figures and tables are, soon after its script has ended."""
    page.wait_for_selector(READY, timeout=120_000)
    page.wait_for_timeout(3_000)


def trade_offs(page: Page, address: str) -> None:
    """Photograph the front, with a pick that was measured."""
    page.goto(f"{address}/trade_offs?study=1")
    settle(page)
    page.locator(".st-key-measure button").click()
    page.locator(".st-key-card_pick .tiles", has_text="on test").wait_for(timeout=120_000)
    settle(page)
    page.screenshot(path=ASSETS / "screenshot.png")


def main() -> None:
    """Write assets/screenshot.png."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder)
        make_study(home)
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1430}, color_scheme="light")
        with dashboard(home) as address:
            trade_offs(page, address)
        browser.close()


if __name__ == "__main__":
    main()
