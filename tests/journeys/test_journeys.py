"""What people do with the dashboard, done in a real browser on the bundled demo zoo."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from safetensors import safe_open

from tests.journeys.conftest import RUN_MS, Server, button, query, serving, settle, wait_until, with_demo

pytestmark = pytest.mark.journey


def text_of_pick(page: Page) -> str:
    return page.locator(".st-key-card_pick .tiles").inner_text()


def evaluations(home: Path) -> list[tuple]:
    return query(home, "SELECT id, merge_id, x, objective, split, value FROM evaluations ORDER BY id")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose two-task demo the first journey runs and the others use."""
    yield from serving(Server(tmp_path_factory.mktemp("shared") / "home"))


@pytest.fixture
def evaluated(shared: Server, page: Page) -> Server:
    """The shared server with the two-task demo evaluated."""
    return with_demo(shared, page)


def test_from_home_to_an_exported_file_in_three_clicks(shared: Server, page: Page) -> None:
    page.goto(shared.url)
    button(page, "demo_2").click()
    expect(button(page, "see_tradeoffs")).to_be_enabled(timeout=RUN_MS)
    button(page, "see_tradeoffs").click()
    expect(page.get_by_role("heading", name="Trade-offs", exact=True)).to_be_visible()
    button(page, "export").click()
    expect(page.get_by_role("heading", name="Export", exact=True)).to_be_visible()
    expect(page.get_by_text("SHA-256").first).to_be_visible(timeout=RUN_MS)
    files = list(shared.home.rglob("*.safetensors"))
    assert len(files) == 1
    with safe_open(files[0], "pt") as file:
        assert "visual.conv1.weight" in set(file.keys())
        recipe = json.loads(file.metadata()["mapmerge"])
    assert recipe["method"] == "Task arithmetic"
    assert set(recipe["coefficients"]) == {"MNIST", "Emoji"}

    with page.expect_download() as download:
        page.locator(".st-key-download a, .st-key-download button").first.click()
    assert Path(download.value.path()).read_bytes() == files[0].read_bytes()


def test_a_slider_moved_by_keyboard_updates_the_pick(evaluated: Server, page: Page) -> None:
    page.goto(f"{evaluated.url}/trade_offs?study=1")
    page.wait_for_selector(".st-key-card_pick .tiles")
    settle(page)
    slider = page.locator(".st-key-pref_1_MNIST").get_by_role("slider")
    slider.focus()
    for key in ["End", "Home", "End", "Home", "End", "Home"]:
        before = text_of_pick(page)
        page.keyboard.press(key)
        wait_until(lambda before=before: text_of_pick(page) != before)
        settle(page)


def test_a_rule_typed_wrongly_points_at_the_word_and_then_works(evaluated: Server, page: Page) -> None:
    page.goto(f"{evaluated.url}/trade_offs?study=1")
    page.get_by_text("Rule", exact=True).click()
    field = page.locator(".st-key-rule_text_1").locator("input, textarea").first
    field.fill("MNIST >= 60%, maximise Emojy")
    field.press("Enter")
    alert = page.get_by_test_id("stAlert").first
    expect(alert).to_contain_text(re.compile("maximise|Emojy"))
    expect(page.get_by_test_id("stCode").filter(has_text="^")).to_be_visible()
    assert "Traceback" not in page.inner_text("body")
    field = page.locator(".st-key-rule_text_1").locator("input, textarea").first
    field.fill("MNIST >= 60%, maximize Emoji")
    field.press("Enter")
    expect(page.locator(".st-key-card_pick")).to_contain_text("By rule")
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def test_a_deep_link_works_on_a_cold_server(evaluated: Server, browser: Browser) -> None:
    evaluated.stop()
    evaluated.start()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{evaluated.url}/trade_offs?study=1")
    expect(page.get_by_role("heading", name="Trade-offs", exact=True)).to_be_visible(timeout=RUN_MS)
    page.wait_for_selector(".st-key-card_pick .tiles", timeout=RUN_MS)
    expect(page.get_by_role("link", name=re.compile("Evaluate"))).to_be_visible()
    context.close()


def test_a_run_outlives_a_refresh_a_second_browser_stops_it_and_a_kill_loses_nothing(
    server: Server, browser: Browser
) -> None:
    first, second = (browser.new_context(viewport={"width": 1280, "height": 900}) for _ in range(2))
    page = first.new_page()
    page.goto(server.url)
    button(page, "demo_4").click()
    expect(page.get_by_role("progressbar").first).to_be_visible(timeout=RUN_MS)
    wait_for_evaluations(server.home, 6)

    page.reload()
    expect(page.get_by_role("progressbar").first).to_be_visible(timeout=RUN_MS)
    wait_for_evaluations(server.home, len(evaluations(server.home)) + 4)

    other = second.new_page()
    other.goto(f"{server.url}/evaluate?study=1")
    button(other, "stop").click(timeout=RUN_MS)
    expect(button(other, "resume")).to_be_visible(timeout=RUN_MS)
    expect(button(page, "resume")).to_be_visible(timeout=RUN_MS)

    button(page, "resume").click()
    wait_for_evaluations(server.home, len(evaluations(server.home)) + 4)
    server.stop(signal.SIGKILL)
    before = evaluations(server.home)

    server.start()
    page.goto(f"{server.url}/evaluate?study=1")
    button(page, "resume").click(timeout=RUN_MS)
    wait_for_evaluations(server.home, len(before) + 4)
    after = evaluations(server.home)
    assert after[: len(before)] == before
    keys = [row[1:5] for row in after]
    assert len(set(keys)) == len(keys)
    first.close()
    second.close()


def wait_for_evaluations(home: Path, count: int) -> None:
    wait_until(lambda: len(evaluations(home)) >= count)
