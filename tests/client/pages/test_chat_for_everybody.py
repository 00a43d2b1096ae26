"""The chat page on small screens, at 400 % zoom, with a keyboard, a screen reader, and little motion."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.client.gateway.gateway_case import Serve
from tests.client.pages.browser import Browser, picture
from tests.client.pages.chat_case import ChatPage, SureHead

WIDE = (
    "So:\n\n```\n" + "wide " * 25 + "\n```\n\n| " + " | ".join(["column"] * 12) + " |\n" + "|-" * 12 + "|\n"
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
PHONE = {"width": 390, "height": 844}
ZOOMED = {"width": 320, "height": 256}


async def _box(page: Page, selector: str) -> dict[str, float]:
    box = await page.locator(selector).bounding_box()
    assert box is not None
    return dict(box)


@pytest.mark.parametrize("size", [PHONE, ZOOMED, {"width": 768, "height": 1024}])
async def test_nothing_is_wider_than_the_screen(
    serve: Serve, browser: Browser, tmp_path: Path, size: dict[str, int]
) -> None:
    served = await serve(a="0-5", head=SureHead(WIDE))
    chat = await ChatPage.open(browser, served, **size)
    await chat.say("A question that has so many words that it needs more than one line of a small screen")
    await expect(chat.text.locator("table")).to_be_visible()
    assert await chat.page.evaluate("() => document.documentElement.scrollWidth") == size["width"]
    assert await chat.page.evaluate("() => document.querySelector('#scroll').scrollWidth") <= size["width"]
    await chat.page.screenshot(path=picture(f"chat-{size['width']}.png", tmp_path))


async def test_on_a_phone_the_conversation_keeps_its_room_beside_the_settings(
    serve: Serve, browser: Browser
) -> None:
    served = await serve(a="0-5", head=SureHead("word " * 40))
    chat = await ChatPage.open(browser, served, **PHONE)
    await chat.say("Go.")
    before = await _box(chat.page, "#scroll")
    assert before["height"] > 844 * 0.8
    await chat.button("Settings").click()
    await expect(chat.page.get_by_role("dialog", name="Settings")).to_be_visible()
    assert await _box(chat.page, "#scroll") == before
    sheet = await _box(chat.page, "#settings")
    assert sheet["y"] > 844 * 0.35  # the conversation is seen above it
    assert sheet["y"] + sheet["height"] == 844


async def test_at_400_percent_the_conversation_has_most_of_the_screen(serve: Serve, browser: Browser) -> None:
    served = await serve(a="0-5", head=SureHead("word " * 60))
    chat = await ChatPage.open(browser, served, **ZOOMED)
    await chat.say("Go.")
    footer = await _box(chat.page, "footer")
    assert footer["y"] > 256 * 0.7
    assert footer["y"] + footer["height"] <= 256  # the message field stays
    await expect(chat.text).to_be_in_viewport()
    await chat.button("Settings").click()
    await chat.page.get_by_role("button", name="Forget the API key").scroll_into_view_if_needed()
    await expect(chat.page.get_by_role("button", name="Forget the API key")).to_be_in_viewport()


async def test_chats_slide_in_on_a_phone(serve: Serve, browser: Browser) -> None:
    served = await serve(head=SureHead("one"))
    chat = await ChatPage.open(browser, served, **PHONE, reduced_motion="reduce")
    await chat.say("Hello")
    panel, opener = chat.page.locator("#chats"), chat.button("Chats")
    await expect(panel).to_be_hidden()
    await opener.click()
    await expect(panel).to_be_visible()
    await expect(opener).to_have_attribute("aria-expanded", "true")
    await expect(chat.button("New chat")).to_be_focused()
    await chat.page.keyboard.press("Escape")
    await expect(panel).to_be_hidden()
    await expect(opener).to_be_focused()
    await opener.click()
    await chat.button("Hello").click()
    await expect(panel).to_be_hidden()


async def test_a_screen_reader_hears_sentences_and_not_tokens(serve: Serve, browser: Browser) -> None:
    said = "The *first* sentence. A second one!\n\n```\ncode\n```\nThe end"
    served = await serve(a="0-5", head=SureHead(said))
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.003
    chat = await ChatPage.open(browser, served)
    await chat.say("Speak.")
    await expect(chat.page.locator("#speech p").last).to_have_text("The answer is complete.")
    spoken = await chat.spoken()
    assert spoken[-3:] == ["Code.", "The end", "The answer is complete."]
    assert "The first sentence." in " ".join(spoken).replace("  ", " ")
    assert len(spoken) <= 7  # of some sixty tokens
    assert await chat.page.locator("#speech").get_attribute("aria-live") == "polite"
    live = await chat.page.locator("#conversation [aria-live], #conversation [role=log]").count()
    assert live == 0  # nothing is said twice


async def test_every_control_can_be_reached_and_has_a_name(serve: Serve, browser: Browser) -> None:
    served = await serve(head=SureHead("```\ncode\n```"))
    chat = await ChatPage.open(browser, served)
    await chat.say("Show code")
    reached = set()
    await chat.page.locator(".skip").focus()
    for _ in range(40):
        reached.add(
            await chat.page.evaluate(
                "() => document.activeElement.ariaLabel || document.activeElement.innerText.trim()"
                " || document.activeElement.id"
            )
        )
        await chat.page.keyboard.press("Tab")
    assert {"Go to the message field", "New chat", "Show code", "Settings", "Swarm"} <= reached
    assert {"Edit this message", "Answer again", "Code", "message"} <= reached
    assert "" not in reached


async def test_little_motion_where_that_is_asked_for(serve: Serve, browser: Browser) -> None:
    served = await serve(a="0-2")  # it waits
    chat = await ChatPage.open(browser, served, reduced_motion="reduce")
    await chat.ask("Hello")
    status = chat.answer.locator(".status")
    await expect(status).to_be_visible()
    name = await status.evaluate("element => getComputedStyle(element, '::before').animationName")
    assert name == "none"
