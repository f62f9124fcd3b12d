"""Pareto Merging in a real browser, on the tiny zoo: trained, killed, resumed, steered and exported."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors import safe_open
from safetensors.torch import load_file

from tests.journeys.conftest import Server, settle
from tests.journeys.test_journeys import button
from tests.tiny import ARCHITECTURE, CLASS_NAMES, plain_head, plain_transform

pytestmark = pytest.mark.journey

TRAINED_MS = 240_000


@pytest.fixture
def tiny_server(tmp_path: Path, tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose demos come from the tiny zoo."""
    monkeypatch.setenv("MAPMERGE_ZOO", str(tiny_zoo))
    server = Server(tmp_path / "home")
    server.start()
    yield server
    server.stop()


def rows(home: Path, query: str) -> list[tuple]:
    with sqlite3.connect(f"file:{home / 'mapmerge.db'}?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()


def fill(page: Page, label: str, value: object) -> None:
    field = page.get_by_label(label, exact=True).first
    field.fill(str(value))
    field.press("Enter")
    settle(page)


def wait_for_steps(home: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while (rows(home, "SELECT max(step) FROM training_steps")[0][0] or 0) < steps:
        assert time.monotonic() < deadline, "training takes no steps"
        time.sleep(0.1)


def accuracy(weights: Path, arrays: np.lib.npyio.NpzFile, class_names: list[str]) -> float:
    """What open_clip alone makes of the exported model."""
    model = open_clip.CLIP(**ARCHITECTURE).eval()
    model.load_state_dict(load_file(weights))
    head = plain_head(model, class_names, arrays["templates"].tolist())
    with torch.no_grad():
        images = plain_transform(arrays["test_images"], model)
        found = (model.encode_image(images, normalize=True) @ head).argmax(dim=1)
    return float((found.numpy() == arrays["test_labels"]).mean())


def test_one_training_run_is_killed_resumed_and_gives_a_model_for_every_slider(
    tiny_server: Server, tiny_zoo: Path, page: Page
) -> None:
    home = tiny_server.home
    page.goto(tiny_server.url)
    button(page, "demo_2").click()
    expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=120_000)

    page.get_by_role("combobox", name=re.compile("Method")).click()
    page.get_by_role("option", name="Pareto Merging").click()
    settle(page)
    fill(page, "Training steps", 400)
    fill(page, "Preferences to measure", 5)
    button(page, "start").click()
    wait_for_steps(home, 100)
    tiny_server.stop(signal.SIGKILL)
    kept = rows(home, "SELECT step, f FROM training_steps ORDER BY step")

    tiny_server.start()
    page.goto(f"{tiny_server.url}/evaluate?study=1")
    button(page, "resume").click(timeout=30_000)
    # Until the page is drawn anew, the button of what was measured before is still there.
    wait_for_steps(home, 400)
    expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=TRAINED_MS)
    assert rows(home, "SELECT step, f FROM training_steps ORDER BY step")[: len(kept)] == kept

    button(page, "see_tradeoffs").click()
    expect(page.get_by_role("heading", name="Trade-offs", exact=True)).to_be_visible()
    expect(page.locator(".st-key-about_set")).to_contain_text("5 preferences")
    settle(page)
    # From equal weights, a measured preference, to one between measured ones.
    [(spec,)] = rows(home, "SELECT spec FROM studies")
    names = [task["name"] for task in json.loads(spec)["tasks"]]
    slider = page.locator(f".st-key-pref_1_{names[0]}").get_by_role("slider")
    slider.focus()
    slider.press("ArrowRight")
    card = page.locator(".st-key-card_pick")
    expect(card).to_contain_text("Interpolated between measured preferences")
    button(page, "measure").click()
    expect(card).to_contain_text("on test", timeout=60_000)
    button(page, "export").click()
    expect(page.get_by_text("SHA-256").first).to_be_visible(timeout=60_000)

    [(gamma_bytes, path)] = rows(home, "SELECT gamma, exported FROM learned_picks")
    gamma = np.frombuffer(gamma_bytes)
    assert gamma == pytest.approx([55 / 105, 50 / 105])
    with safe_open(path, framework="pt") as file:
        recipe = json.loads(file.metadata()["mapmerge"])
    assert recipe["method"] == "Pareto Merging"
    measured = rows(home, "SELECT task, value FROM learned_evaluations WHERE split = 'test'")
    assert {task for task, _ in measured} == set(names)
    for name, value in measured:
        arrays = np.load(tiny_zoo / f"{name}.npz")
        assert accuracy(Path(path), arrays, CLASS_NAMES[name]) == pytest.approx(value)
