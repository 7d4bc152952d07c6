"""The page's picture to start from, and the mask that is painted over it, in a real browser."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from browser import CHROMIUM, EDGES, opened_page, pictures, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from gateways import GatewayThread

ALL, PART = "All of it changes. Paint over a part to change only that.", "Only what is painted over changes."
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH (apt-get install chromium)")


@pytest.fixture
def page(gateway: GatewayThread) -> Iterator[Page]:
    with opened_page(gateway) as opened:
        opened.fill("#prompt", "a red circle above a blue square")
        opened.fill("#steps", "10")
        yield opened


def choose(page: Page) -> None:
    page.set_input_files("#edit-file", EDGES)
    page.wait_for_selector("#edit-chosen:not([hidden])")


def where(page: Page) -> str:
    return page.locator("#edit-where").inner_text()


def stroke(page: Page, height: float = 0.3) -> None:
    """From left to right."""
    page.locator("#edit-mask").scroll_into_view_if_needed()
    box = page.locator("#edit-mask").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * height)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * height, steps=8)
    page.mouse.up()


def generate(page: Page) -> dict[str, Any]:
    """INFO of the picture that is made, whose details are open then."""
    before = pictures(page).count()
    page.click("#generate")
    wait(page, lambda: pictures(page).count() == before + 1, "no picture")
    page.locator("#gallery .tile button").first.click()
    page.click("#details summary")
    report: dict[str, Any] = json.loads(page.locator("#details pre").inner_text())
    return report


def test_a_part_of_a_picture_is_painted_anew(page: Page) -> None:
    choose(page)
    assert page.input_value("#width") == page.input_value("#height") == "128"
    assert where(page) == ALL
    stroke(page)
    assert where(page) == PART
    page.check("#edit-composite")
    report = generate(page)
    assert (report["kind"], report["composite"], report["strength"]) == ("inpaint", True, 0.75)
    page.click("#same-again")
    page.wait_for_timeout(2000)  # the form is kept a moment after it changed
    page.reload()
    page.wait_for_selector("#generate:enabled")
    page.wait_for_selector("#edit-chosen:not([hidden])")
    assert where(page) == PART and page.is_checked("#edit-composite")
    page.click("#edit-remove")
    assert page.locator("#edit-chosen").is_hidden()
    assert generate(page)["kind"] == "text_to_image"


def test_same_again_brings_back_what_was_changed_since(page: Page) -> None:
    choose(page)
    stroke(page)
    page.locator("#edit-strength").fill("0.5")
    first = generate(page)
    page.keyboard.press("Escape")
    page.click("#edit-remove")
    page.locator("#gallery .tile button").first.click()
    page.click("#same-again")
    page.keyboard.press("Control+Enter")  # at once
    wait(page, lambda: pictures(page).count() == 2, "no second picture")
    page.locator("#gallery .tile button").first.click()
    page.click("#details summary")
    second = json.loads(page.locator("#details pre").inner_text())
    assert (second["kind"], second["strength"], second["seed"]) == ("inpaint", 0.5, first["seed"])
    sources = page.locator("#gallery .tile img").evaluate_all(
        "async all => Promise.all(all.map(async each => { const c = document.createElement('canvas');"
        "c.width = each.naturalWidth; c.height = each.naturalHeight; c.getContext('2d').drawImage(each, 0, 0);"
        "return c.toDataURL() }))"
    )
    assert sources[0] == sources[1]


def test_strokes_are_undone_and_erased(page: Page) -> None:
    choose(page)
    assert page.is_disabled("#edit-undo") and page.is_disabled("#edit-clear") and page.is_disabled("#edit-composite")
    stroke(page)
    stroke(page, 0.7)
    page.click("#edit-undo")
    assert where(page) == PART
    page.click("#edit-undo")
    assert where(page) == ALL and page.is_disabled("#edit-undo")
    stroke(page)
    page.locator("#edit-brush").fill("60")
    page.click("#edit-erase")
    stroke(page)
    assert where(page) == ALL, "all of it is erased"
    page.click("#edit-undo")
    page.click("#edit-clear")
    assert where(page) == ALL
    page.click("#edit-undo")
    assert where(page) == PART, "clearing is undone too"


def test_a_picture_is_dropped_and_a_wrong_one_named(page: Page) -> None:
    def drop(content: bytes, kind: str) -> None:
        page.evaluate(
            """([text, type]) => {
                const bytes = Uint8Array.from(atob(text), each => each.charCodeAt(0))
                const transfer = new DataTransfer()
                transfer.items.add(new File([bytes], "dropped", { type }))
                document.getElementById("edit-drop").dispatchEvent(
                    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }))
            }""",
            [base64.b64encode(content).decode(), kind],
        )

    drop(b"no picture", "image/png")
    page.wait_for_selector("#status[data-kind=error]")
    assert "dropped is no picture that the browser can read" in page.locator("#status").inner_text()
    assert page.locator("#edit-chosen").is_hidden()
    drop(EDGES.read_bytes(), "image/png")
    page.wait_for_selector("#edit-chosen:not([hidden])")
    assert page.locator("#controlnets .controlnet").count() == 0
    assert generate(page)["kind"] == "image_to_image"


def test_a_finished_picture_is_the_next_one_to_start_from(page: Page) -> None:
    page.fill("#seed", "11")
    assert generate(page)["kind"] == "text_to_image"
    page.click("#start-from")
    page.wait_for_selector("#edit-chosen:not([hidden])")
    assert page.input_value("#seed") == "11"
    stroke(page)
    assert generate(page)["kind"] == "inpaint"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_brush_and_its_words_are_seen_in_both_themes(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    choose(page)
    colours = page.evaluate(
        """() => ["#edit-where", "#edit-paint", "#form"].map(each => {
            const style = getComputedStyle(document.querySelector(each))
            return [style.color, style.backgroundColor]
        })"""
    )
    assert len({colour for colour, _ in colours}) == 3
    assert colours[0][0] != colours[2][1] and colours[1][0] != colours[1][1]
    assert page.locator("#edit-mask").evaluate("each => each.style.cursor").startswith('url("data:image/svg+xml')
