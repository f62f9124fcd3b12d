"""From a folder as people have it to a front, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mapmerge_core.studies.config.study_file import read_study_file
from tests.journeys.conftest import RUN_MS, Server, button, choose_option, fill, query, settle, wait_until
from tests.pages.loose import make_loose_folder

pytestmark = pytest.mark.journey


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
    expect(page.get_by_text("All 2 models fit the pre-trained one")).to_be_visible(timeout=RUN_MS)
    images = page.locator(".strip.labelled img")
    expect(images).to_have_count(16)
    assert images.first.evaluate("image => image.complete && image.naturalWidth > 0")

    button(page, "save_study").click()
    button(page, "save").click()
    expect(page.get_by_text("Saved as study.yaml")).to_be_visible()
    kept = read_study_file(folder / "study.yaml").config
    assert kept.model_names == ("colours", "stripes")
    assert [task.model for task in kept.tasks] == ["colours", "stripes"]
    expect(page.locator(".st-key-study_text textarea")).to_have_value(re.compile("colours: models/"))

    expect(page.get_by_text("All 2 models fit the pre-trained one")).to_be_visible()
    button(page, "create_study").click()
    expect(page.get_by_role("heading", name="Evaluate", exact=True)).to_be_visible()
    fill(page, "Points", 10)
    button(page, "start").click()
    expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=RUN_MS)
    assert query(server.home, "SELECT count(*) FROM evaluations WHERE split = 'val'") == [(20,)]
    button(page, "see_tradeoffs").click()
    expect(page.locator(".st-key-card_pick .tiles")).to_contain_text("%")
    assert "Traceback" not in page.inner_text("body")


def test_two_models_are_merged_in_two_ways_for_four_objectives(
    tiny_server: Server, page: Page, tiny_zoo: Path, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"""\
name: Four objectives
architecture: {tiny_zoo / "tiny-clip.json"}
pretrained: {tiny_zoo / "pretrained.safetensors"}
models: {{Colours: {tiny_zoo / "Colours.safetensors"}, Stripes: {tiny_zoo / "Stripes.safetensors"}}}
tasks:
  - {{name: Colours, model: Colours, data: {tiny_zoo / "Colours.npz"}, metrics: [accuracy, loss]}}
  - {{name: Stripes, model: Stripes, data: {tiny_zoo / "Stripes.npz"}}}
  - {{name: Light, data: {tiny_zoo / "Light.npz"}}}
""")
    page.goto(f"{tiny_server.url}/models")
    field = page.locator(".st-key-folder input")
    field.fill(str(file))
    field.press("Enter")
    settle(page)
    button(page, "check").click()
    expect(page.get_by_text("All 2 models fit the pre-trained one")).to_be_visible(timeout=RUN_MS)
    button(page, "create_study").click()
    expect(page.get_by_role("heading", name="Evaluate", exact=True)).to_be_visible()
    done = (
        "SELECT merges.name FROM runs JOIN merges ON merges.id = merge_id JOIN studies ON studies.id = runs.study_id"
        " WHERE runs.status = 'done' AND studies.name = 'Four objectives' ORDER BY runs.id"
    )
    for number, merge in enumerate(["Task arithmetic", "RegMean"]):
        choose_option(page, "Merge", merge)
        fill(page, "Points", 10)
        button(page, "start").click()
        wait_until(lambda n=number: len(query(tiny_server.home, done)) > n)
        expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=RUN_MS)
    assert query(tiny_server.home, done) == [("task_arithmetic",), ("regmean",)]

    button(page, "see_tradeoffs").click()
    tiles = page.locator(".st-key-card_pick .tiles")
    for objective in ("Colours accuracy", "Colours loss", "Stripes", "Light"):
        expect(tiles).to_contain_text(objective)
    choose_option(page, "Front of", "RegMean")
    expect(page.locator(".st-key-card_pick")).to_contain_text("RegMean")
    assert "merge=" in page.url
    button(page, "export").click()
    expect(page.get_by_text("SHA-256").first).to_be_visible(timeout=RUN_MS)
    expect(page.locator(".st-key-card_point")).to_contain_text("RegMean")
    assert "Traceback" not in page.inner_text("body")
