"""Compare in a real browser, on the tiny zoo: from a run to every baseline, Export and Trade-offs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file

from mapmerge_core.studies.analysis.comparing import baselines
from mapmerge_core.studies.config.demo import config_from_manifest
from tests.journeys.conftest import RUN_MS, Server, button, settle

pytestmark = pytest.mark.journey


def choose(page: Page, rows: list[dict[str, str]], model: str) -> None:
    """Ticks a model's row in the table, which is drawn on a canvas."""
    table = page.locator('[class*="st-key-compare_table_"] .dvn-scroller').first
    table.scroll_into_view_if_needed()
    height = table.bounding_box()["height"] / (len(rows) + 1)
    number = [row["model"] for row in rows].index(model) + 1
    table.click(position={"x": 18, "y": (number + 0.5) * height})
    settle(page)


def read_table(page: Page) -> list[dict[str, str]]:
    """The table's rows, as the downloaded CSV has them."""
    with page.expect_download() as download:
        button(page, "compare_csv").click()
    with Path(download.value.path()).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_baseline_is_made_compared_and_exported(tiny_demo: Server, tiny_zoo: Path, page: Page) -> None:
    page.goto(f"{tiny_demo.url}/compare?study=1")
    expect(page.get_by_role("heading", name="Compare", exact=True)).to_be_visible()

    button(page, "run_baselines").click()
    expect(page.get_by_role("progressbar").first).to_be_visible()
    page.reload()
    expect(button(page, "compare_stop")).to_be_visible()
    expect(page.get_by_text("Every row is measured")).to_be_visible(timeout=RUN_MS)

    rows = read_table(page)
    names = [row["model"] for row in rows]
    assert names[0].startswith("MAP on Task arithmetic")
    kinds = [row["kind"] for row in rows]
    every = baselines(config_from_manifest(tiny_zoo, ["Colours", "Stripes"]))
    assert {merge.title for merge in every if not merge.variants[1:]} <= set(names) | {"Task arithmetic"}
    assert kinds.count("baseline") >= len(every) + 1, "all of them, and task arithmetic by preference"
    assert names[-3:] == ["Colours's own model", "Stripes's own model", "Pre-trained"]
    assert all(0 <= float(row[task]) <= 1 for row in rows for task in ("Colours", "Stripes", "mean", "worst"))
    assert float(rows[0]["worst"]) == min(float(rows[0]["Colours"]), float(rows[0]["Stripes"]))

    page.get_by_text("Relative to single models").click()
    expect(page.locator(".st-key-compare_chart").get_by_text("Colours, % of the single model")).to_be_visible()
    own = float(rows[-3]["Colours"])
    shares = read_table(page)
    assert float(shares[0]["Colours"]) == pytest.approx(float(rows[0]["Colours"]) / own)

    choose(page, rows, "TIES")
    expect(button(page, "compare_export")).to_be_enabled()
    expect(button(page, "compare_open")).to_be_disabled()
    button(page, "compare_export").click()
    expect(page.get_by_text("SHA-256").first).to_be_visible(timeout=RUN_MS)
    (file,) = tiny_demo.home.rglob("ties-*.safetensors")
    assert load_file(file).keys() == load_file(tiny_zoo / "pretrained.safetensors").keys()
    with page.expect_download() as download:
        page.locator(".st-key-download a, .st-key-download button").first.click()
    assert Path(download.value.path()).read_bytes() == file.read_bytes()

    page.get_by_role("link", name=re.compile("Compare")).click()
    expect(page.get_by_text("Every row is measured")).to_be_visible()
    settle(page)
    choose(page, rows, names[0])
    button(page, "compare_open").click()
    expect(page.get_by_role("heading", name="Trade-offs", exact=True)).to_be_visible()
    expect(page.locator(".st-key-card_pick")).to_contain_text("From Compare")
    assert "Traceback" not in page.inner_text("body")
