"""Pareto Merging in a real browser, on the tiny zoo: trained, killed, resumed, steered and exported."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors import safe_open
from safetensors.torch import load_file

from tests.journeys.conftest import RUN_MS, Server, button, choose_option, fill, query, settle, wait_until
from tests.tiny import ARCHITECTURE, CLASS_NAMES, plain_head, plain_transform

pytestmark = pytest.mark.journey

STEPS = "SELECT step, f FROM training_steps ORDER BY step"


def last_step(home: Path) -> int:
    steps = query(home, STEPS)
    return steps[-1][0] if steps else 0


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
    tiny_demo: Server, tiny_zoo: Path, page: Page
) -> None:
    home = tiny_demo.home
    page.goto(f"{tiny_demo.url}/evaluate?study=1")
    choose_option(page, "Merge", "Pareto Merging")
    fill(page, "Steps", 250)
    fill(page, "Points", 7)
    button(page, "start").click()
    wait_until(lambda: last_step(home) >= 50)
    tiny_demo.stop(signal.SIGKILL)
    kept = query(home, STEPS)

    tiny_demo.start()
    page.goto(f"{tiny_demo.url}/evaluate?study=1")
    button(page, "resume").click(timeout=RUN_MS)
    # Until the page is drawn anew, the button of what was measured before is still there.
    wait_until(lambda: query(home, "SELECT status FROM runs ORDER BY id")[-1] == ("done",))
    expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=RUN_MS)
    assert last_step(home) == 250
    assert query(home, STEPS)[: len(kept)] == kept

    button(page, "see_tradeoffs").click()
    expect(page.get_by_role("heading", name="Trade-offs", exact=True)).to_be_visible()
    choose_option(page, "Front of", "Pareto Merging")
    expect(page.get_by_role("link", name=re.compile("Download what was prepared"))).to_be_visible()
    names = ("Colours", "Stripes")
    slider = page.locator(f".st-key-pref_1_{names[0]}").get_by_role("slider")
    slider.focus()
    slider.press("End")
    settle(page)
    card = page.locator(".st-key-card_pick")
    expect(card).to_contain_text("Pareto Merging")
    button(page, "measure").click()
    expect(card.locator(".tiles")).to_contain_text("on test", timeout=RUN_MS)
    button(page, "export").click()
    expect(page.get_by_text("SHA-256").first).to_be_visible(timeout=RUN_MS)

    [(merge_id, x, path)] = query(
        home,
        "SELECT merge_id, x, exported FROM picks JOIN merges ON merges.id = merge_id WHERE merges.name = 'pareto_merging'",
    )
    gamma = np.frombuffer(x)
    assert gamma.sum() == pytest.approx(1)
    with safe_open(path, framework="pt") as file:
        recipe = json.loads(file.metadata()["mapmerge"])
    assert recipe["method"] == "Pareto Merging"
    assert list(recipe["point"].values()) == pytest.approx(gamma)
    measured = {
        objective: value
        for where, of, objective, value in query(
            home, "SELECT merge_id, x, objective, value FROM evaluations WHERE split = 'test'"
        )
        if (where, of) == (merge_id, x)
    }
    assert {key.split("/")[0] for key in measured} == set(names)
    for key, value in measured.items():
        name = key.split("/")[0]
        arrays = np.load(tiny_zoo / f"{name}.npz")
        assert accuracy(Path(path), arrays, CLASS_NAMES[name]) == pytest.approx(value)
