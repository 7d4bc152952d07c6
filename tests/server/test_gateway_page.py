"""The gateway's page in a real browser, in front of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from browser import CHROMIUM, EDGES, opened_page, pictures, says, wait
from gateways import GatewayThread

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH (apt-get install chromium)")


@pytest.fixture
def page(gateway: GatewayThread) -> Iterator[Page]:
    """A new browser at the page, whose errors fail the test."""
    with opened_page(gateway) as opened:
        yield opened


def take_lora(page: Page, name: str) -> None:
    page.fill("#lora-search", name)
    page.press("#lora-search", "Enter")
    page.wait_for_selector(f'#loras .lora[data-name="{name}"]')


def test_a_picture_with_a_lora_is_seen_to_grow(page: Page) -> None:
    page.fill("#prompt", "a red circle above a blue square")
    page.fill("#seed", "7")
    page.fill("#steps", "120")
    take_lora(page, "night")
    page.click("#generate")
    bars: set[float] = set()
    previews: set[str] = set()

    def is_done() -> bool:
        bars.update(page.evaluate("() => [...document.querySelectorAll('#runs progress')].map(each => each.value)"))
        previews.update(page.evaluate("() => [...document.querySelectorAll('#runs .preview')].map(each => each.src)"))
        return pictures(page).count() == 1

    wait(page, is_done, "no picture")
    assert len(bars) > 3
    assert len(previews) > 2
    size = page.evaluate("() => { const i = document.querySelector('#gallery .tile img'); return i.naturalWidth }")
    assert size == 128
    page.click("#gallery .tile button")
    words = page.locator("#details").inner_text()
    assert "night" in words
    assert "red circle" in words


def test_a_cancelled_picture_ends_on_the_server_too(page: Page, gateway: GatewayThread) -> None:
    page.fill("#prompt", "a green star on a grey background")
    page.fill("#steps", "200")
    for side in ("#width", "#height"):
        page.fill(side, "512")
    page.click("#generate")
    wait(page, lambda: page.locator("#runs .run img.preview").count() == 1, "no preview")
    assert gateway.runs() == 1
    page.keyboard.press("Escape")
    page.wait_for_selector("#runs .run.cancelled")
    wait(page, lambda: gateway.runs() == 0, "it goes on")
    assert pictures(page).count() == 0


def test_pictures_survive_a_reload_and_are_made_again(page: Page) -> None:
    page.fill("#prompt", "a blue ring above an orange star")
    page.fill("#seed", "11")
    page.click("#controlnet-add")
    page.set_input_files("#controlnets input.controlnet-file", EDGES)
    page.wait_for_selector("#controlnets img.thumbnail")
    page.click("#generate")
    says(page, "Picture done in")
    assert pictures(page).count() == 1
    page.reload()
    page.wait_for_selector("#generate:enabled")
    wait(page, lambda: pictures(page).count() == 1, "the picture is gone")
    page.fill("#prompt", "something else")
    page.click("#gallery .tile button")
    page.click("#same-again")
    assert page.input_value("#prompt") == "a blue ring above an orange star"
    assert page.input_value("#seed") == "11"
    assert page.locator("#controlnets .controlnet").count() == 1
    page.keyboard.press("Control+Enter")
    wait(page, lambda: pictures(page).count() == 2, "no second picture")


def test_the_servers_own_sentence_is_shown(page: Page) -> None:
    page.fill("#prompt", "<img src=x onerror=alert(1)>")
    page.fill("#steps", "999")
    page.click("#generate")
    page.wait_for_selector("#runs .run.failed")
    assert "STEPS is 999; allowed: 1 to 200" in page.locator("#runs .run .reason").inner_text()
    assert page.locator("#runs img[src=x]").count() == 0


def test_a_contact_sheet_is_seen_and_saved(page: Page, tmp_path: Path) -> None:
    page.fill("#prompt", "a red circle above a blue square")
    page.fill("#steps", "4")
    page.fill("#count", "2")
    page.click("#generate")
    wait(page, lambda: pictures(page).count() == 2, "no pictures")
    page.click("#sheet-toggle")
    assert page.get_attribute("#sheet-toggle", "aria-pressed") == "true"
    assert page.locator("#form").is_hidden() and page.locator("#sheet-save").is_visible()
    with page.expect_download() as saved:
        page.click("#sheet-save")
    saved.value.save_as(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 2 * 400 and len(sheet.getcolors(sheet.width * sheet.height) or ()) > 100
    page.keyboard.press("Escape")
    assert page.locator("#form").is_visible()


def test_pictures_are_gone_through_and_deleted_by_keys(page: Page) -> None:
    page.fill("#prompt", "a green star")
    page.fill("#steps", "4")
    page.fill("#count", "2")
    page.click("#generate")
    says(page, "2 of 2 pictures are done.")
    assert pictures(page).count() == 2
    page.locator("#gallery .tile button").first.click()
    seen = [page.get_attribute("#details .stage img", "src")]
    page.keyboard.press("ArrowRight")
    seen.append(page.get_attribute("#details .stage img", "src"))
    assert len(set(seen)) == 2
    page.keyboard.press("Delete")
    says(page, "Picture deleted.")
    assert pictures(page).count() == 1
    page.reload()
    page.wait_for_selector("#generate:enabled")
    wait(page, lambda: pictures(page).count() == 1, "it came back")


def test_dark_and_light_are_remembered(page: Page) -> None:
    before = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert after != before
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == after
