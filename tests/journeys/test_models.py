"""From a folder as people have it to a front, in a real browser."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mapmerge_core.studies.config.study_file import read_study_file
from tests.journeys.conftest import Server, settle
from tests.pages.loose import make_loose_folder

pytestmark = pytest.mark.journey


def button(page: Page, key: str):
    return page.locator(f".st-key-{key} button").first


def test_a_folder_without_a_manifest_is_proposed_checked_saved_and_evaluated(
    server: Server, page: Page, tiny_zoo: Path, tmp_path: Path
) -> None:
    folder = make_loose_folder(tiny_zoo, tmp_path / "models")
    page.goto(f"{server.url}/models")
    field = page.locator(".st-key-folder input")
    field.fill(str(folder))
    field.press("Enter")
    expect(page.get_by_text("taken for the pre-trained model")).to_be_visible()
    settle(page)

    button(page, "check").click()
    expect(page.get_by_text("All 2 models fit the pre-trained one")).to_be_visible(timeout=60_000)
    images = page.locator(".strip.labelled img")
    expect(images).to_have_count(16)
    assert images.first.evaluate("image => image.complete && image.naturalWidth > 0")

    button(page, "save_study").click()
    button(page, "save").click()
    expect(page.get_by_text("Saved as study.yaml")).to_be_visible()
    kept = read_study_file(folder / "study.yaml").spec
    assert kept.task_names == ("colours", "stripes")
    expect(page.locator(".st-key-study_text textarea")).to_have_value(re.compile("checkpoint: models/"))

    expect(page.get_by_text("All 2 models fit the pre-trained one")).to_be_visible()
    button(page, "create_study").click()
    expect(page.get_by_role("heading", name="Evaluate", exact=True)).to_be_visible()
    points = page.locator('[class*="st-key-points_map_"] input')
    points.fill("10")
    points.press("Enter")
    settle(page)
    button(page, "start").click()
    expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=120_000)
    with sqlite3.connect(f"file:{server.home / 'mapmerge.db'}?mode=ro", uri=True) as database:
        measured = database.execute("SELECT count(*) FROM evaluations WHERE split = 'val'").fetchone()
    assert measured == (20,)
    button(page, "see_tradeoffs").click()
    expect(page.locator(".st-key-card_pick .tiles")).to_contain_text("%")
    assert "Traceback" not in page.inner_text("body")
