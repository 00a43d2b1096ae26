"""What the chat page keeps in its browser, and what it asks a person for."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import expect

from tests.client.gateway.gateway_case import Serve
from tests.client.pages.browser import Browser
from tests.client.pages.chat_case import ChatPage, SureHead
from tests.doubles.fake_swarm import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-0123456789"


async def test_chats_survive_a_reload_and_are_deleted_one_by_one_or_all(
    serve: Serve, browser: Browser
) -> None:
    served = await serve(head=SureHead("one", "two", "three"))
    chat = await ChatPage.open(browser, served)
    page = chat.page
    await chat.say("First chat")
    await chat.button("New chat").click()
    await expect(page.locator(".turn")).to_have_count(0)
    await chat.say("Second chat")
    await page.reload()
    await expect(chat.text).to_have_text("two")
    await expect(chat.answer.locator(".hop")).to_have_count(2)
    titles = page.locator("#list .title")
    assert await titles.all_inner_texts() == ["Second chat", "First chat"]
    await titles.nth(1).click()
    await expect(chat.text).to_have_text("one")
    await chat.say("More")  # with what was said before
    await expect(chat.text).to_have_text("three")
    await chat.button("Delete the chat “First chat”").click()
    await expect(page.locator(".turn")).to_have_count(0)
    assert await titles.all_inner_texts() == ["Second chat"]
    await expect(page.locator("#chats")).to_contain_text("on this computer only")
    await page.evaluate("() => localStorage.setItem('swarm-node.chat.bad', '{')")
    page.on("dialog", lambda dialog: dialog.accept())
    await chat.button("Delete all").click()
    await expect(titles).to_have_count(0)
    assert await page.evaluate("() => Object.keys(localStorage).filter(key => key.includes('chat'))") == []
    assert browser.complaints == []


async def test_a_chat_that_is_deleted_while_it_is_answered_stays_deleted(
    serve: Serve, browser: Browser
) -> None:
    served = await serve(a="0-5", head=SureHead("word " * 60))
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.01
    chat = await ChatPage.open(browser, served)
    await chat.ask("Go.")
    await expect(chat.text).to_contain_text("word")
    await chat.button("New chat").click()
    await expect(chat.page.locator("#elsewhere")).to_be_visible()
    await chat.button("Delete the chat “Go.”").click()
    await chat.done()
    await until(lambda: not served.swarm.open_sessions)
    await chat.page.reload()
    await expect(chat.page.locator("#model")).to_be_enabled()
    await expect(chat.page.locator("#list .title")).to_have_count(0)


async def test_little_room_costs_the_oldest_chats_and_strange_ones_are_passed_over(
    serve: Serve, browser: Browser
) -> None:
    served = await serve(head=SureHead("kept"))
    chat = await ChatPage.open(browser, served)
    await chat.page.evaluate(
        """() => {
          const message = { role: "user", content: "x".repeat(900000) };
          for (let id = 0; id < 5; id++) {
            const old = { id: `old-${id}`, title: `Old ${id}`, updated: id, system: "", messages: [message] };
            localStorage.setItem(`swarm-node.chat.old-${id}`, JSON.stringify(old));
          }
          localStorage.setItem("swarm-node.chat.bad", '{"id":"bad","messages":[{"role":"system"}]}');
          localStorage.setItem("swarm-node.settings", "[");
          let full = "";
          for (let size = 2 ** 20; size >= 1; size /= 2) {
            try { localStorage.setItem("full", full + "x".repeat(size)); full += "x".repeat(size); }
            catch { /* no room for that */ }
          }
        }"""
    )
    await chat.page.reload()
    await chat.say("New")
    await expect(chat.text).to_have_text("kept")
    titles = await chat.page.locator("#list .title").all_inner_texts()
    assert titles[0] == "New"
    assert titles[1:] == [f"Old {number}" for number in range(4, 5 - len(titles), -1)]
    assert "Old 0" not in titles
    await expect(chat.page.locator("#unkept")).to_be_hidden()
    assert browser.complaints == []


async def test_settings_hold_and_reach_the_gateway(serve: Serve, browser: Browser) -> None:
    served = await serve(head=SureHead("one", "two"))
    chat = await ChatPage.open(browser, served)
    page = chat.page
    async with page.expect_request("**/v1/chat/completions") as sent:
        await chat.say("Hi")
    body = json.loads((await sent.value).post_data or "")
    assert (body["temperature"], body["top_p"]) == (0.7, 0.95)  # as a chat in a terminal
    await chat.button("New chat").click()
    await chat.button("Settings").click()
    sheet = page.get_by_role("dialog", name="Settings")
    await expect(sheet.get_by_label("Temperature")).to_have_attribute("placeholder", "0.7")
    await sheet.get_by_label("System prompt of this chat").fill("Be brief.")
    for label, value in (("Temperature", "0.5"), ("Top p", "0.8"), ("Longest answer", "2")):
        await sheet.get_by_label(label).fill(value)
    await sheet.get_by_role("button", name="Close").click()
    await expect(chat.button("Settings")).to_be_focused()
    async with page.expect_request("**/v1/chat/completions") as sent:
        await chat.say("Hi")
    body = json.loads((await sent.value).post_data or "")
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.8, 2)
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    await page.reload()
    await chat.button("Settings").click()
    await expect(sheet.get_by_label("Temperature")).to_have_value("0.5")
    await expect(sheet.get_by_label("System prompt of this chat")).to_have_value("Be brief.")
    await sheet.get_by_label("Temperature").fill("3")  # impossible: not kept
    await sheet.get_by_role("button", name="Close").click()
    await page.reload()
    await expect(page.locator("#temperature")).to_have_value("0.5")


async def test_a_key_is_asked_for_until_it_is_right(serve: Serve, browser: Browser) -> None:
    served = await serve(keys=[KEY], head=SureHead("one"))
    page = await browser.open(served.server.url)
    dialog = page.get_by_role("dialog", name="This gateway needs an API key")
    await dialog.get_by_label("API key").fill("sk-wrong")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("alert")).to_have_text("The gateway does not know this key.")
    await dialog.get_by_label("API key").fill(KEY)
    await dialog.get_by_role("button", name="Go on").click()
    await expect(page.locator("#model")).to_have_value("toy")
    await ChatPage(page).say("Hi")
    await expect(page.locator(".answer > .text")).to_have_text("one")
    assert KEY not in await page.evaluate("() => JSON.stringify(localStorage)")  # for this tab only
    await page.reload()
    await expect(page.locator("#model")).to_have_value("toy")


async def test_without_a_key_the_page_says_what_is_missing(serve: Serve, browser: Browser) -> None:
    served = await serve(keys=[KEY])
    page = await browser.open(served.server.url)
    dialog = page.get_by_role("dialog", name="This gateway needs an API key")
    await dialog.get_by_label("API key").press("Escape")
    await expect(page.locator("#notice")).to_contain_text("API key")
    await expect(page.locator("#send")).to_be_disabled()
    await page.locator("#message").fill("Hi")
    await page.keyboard.press("Enter")
    await expect(dialog).to_be_visible()  # who wants to send is asked again
