"""The chat page in Chromium: questions, answers, and what becomes of those that do not end by themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Error, expect

from swarm_node.swarm.types import NodeState
from tests.client.gateway.gateway_case import Serve, TemplateTokenizer
from tests.client.pages.browser import Browser, picture
from tests.client.pages.chat_case import ChatPage, SureHead
from tests.doubles.fake_swarm import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = """\
# Sailing

Wind **pushes** and *pulls*; see [a page](https://example.org/x?a=b).

1. Set the `jib`
   - loosely
2. Trim

| wind | sail |
|-----:|:-----|
| 3    | full |

> quoted

```python
print("<b>not bold</b>")
```

<img src=x onerror="document.title='owned'"> [bad](javascript:alert(1)) ![seen](https://example.org/i.png)"""

CONTINUES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_chat_by_keyboard(serve: Serve, browser: Browser, tmp_path: Path, scheme: str) -> None:
    served = await serve(head=SureHead(ANSWER))
    chat = await ChatPage.open(browser, served, color_scheme=scheme)
    await expect(chat.field).to_be_focused()
    await chat.page.keyboard.type("How do ships sail?")
    await chat.page.keyboard.press("Shift+Enter")
    await chat.page.keyboard.type("And why?")
    await chat.page.keyboard.press("Enter")
    await chat.done()
    await expect(chat.page.locator(".bubble")).to_have_text("How do ships sail?\nAnd why?")
    text = chat.text
    await expect(text.locator("h3")).to_have_text("Sailing")
    await expect(text.locator("strong")).to_have_text("pushes")
    await expect(text.locator("em")).to_have_text("pulls")
    await expect(text.locator("ol > li")).to_have_count(2)
    await expect(text.locator("ol > li > ul > li")).to_have_text("loosely")
    await expect(text.locator("td.align-right")).to_have_text("3")
    await expect(text.locator("pre code")).to_have_text('print("<b>not bold</b>")')
    await expect(text.locator("pre .code-string")).to_have_text('"<b>not bold</b>"')
    links = await text.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert links == ["https://example.org/x?a=b", "https://example.org/i.png"]
    assert await text.locator("img, b").count() == 0  # what a model writes is text
    await expect(chat.page).to_have_title("Chat · swarm-node")
    with pytest.raises(Error, match="TrustedHTML"):  # the browser itself refuses to read any text as HTML
        await chat.page.locator("#hello").evaluate("element => { element.innerHTML = '<b>'; }")
    browser.complaints.clear()
    await expect(chat.answer.locator(".facts summary")).to_have_text(
        re.compile(rf"^{len(ANSWER) + 1} tokens · [\d.]+ tokens/s · first after [\d.]+ s · 2 nodes")
    )
    assert await chat.answer.locator(".hop").all_inner_texts() == ["…a\n0-2", "…b\n3-5"]
    await expect(chat.field).to_be_focused()
    assert browser.complaints == []
    await chat.page.screenshot(path=picture(f"chat-{scheme}.png", tmp_path))


async def test_thoughts_are_folded(serve: Serve, browser: Browser) -> None:
    thinks = CONTINUES + "{# <think></think> #}"
    head = SureHead("<think>\nHm, **hm**.\n</think>\n\nYes.")
    chat = await ChatPage.open(browser, await serve(head=head, tokenizer=TemplateTokenizer(thinks)))
    await chat.say("Well?")
    await expect(chat.text).to_have_text("Yes.")
    thoughts = chat.answer.locator(".thinking .text")
    await expect(thoughts).to_be_hidden()
    await chat.answer.get_by_text("What it thought").click()
    await expect(thoughts).to_have_text("Hm, hm.")
    await chat.page.reload()
    await chat.answer.get_by_text("What it thought").click()
    await expect(thoughts.locator("strong")).to_have_text("hm")


async def test_code_and_answers_are_copied(serve: Serve, browser: Browser) -> None:
    served = await serve(head=SureHead("So:\n```\na\n  b\n```"))
    chat = await ChatPage.open(browser, served, permissions=["clipboard-read", "clipboard-write"])
    await chat.say("Show me.")
    for button, copied in (("Copy this code", "a\n  b"), ("Copy this answer", "So:\n```\na\n  b\n```")):
        await chat.button(button).click()
        await expect(chat.button("Copied").first).to_be_visible()
        assert await chat.page.evaluate("() => navigator.clipboard.readText()") == copied


async def test_what_was_read_stays_as_it_is_while_an_answer_grows(serve: Serve, browser: Browser) -> None:
    served = await serve(a="0-5", head=SureHead("First **bold**.\n\n" + "word " * 60))
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.005
    chat = await ChatPage.open(browser, served)
    await chat.ask("Go.")
    await expect(chat.text).to_contain_text("word")
    first = await chat.text.locator("strong").element_handle()
    assert first is not None
    await chat.done()
    assert await first.evaluate("element => element.isConnected")
    rate = re.search(r"([\d.]+) tokens/s", await chat.answer.locator(".facts summary").inner_text())
    assert rate
    assert 0 < float(rate[1]) <= 200  # a step takes 5 ms at least


async def test_stopping_frees_the_swarm_keeps_what_was_said_and_goes_on(
    serve: Serve, browser: Browser
) -> None:
    served = await serve(a="0-5", head=SureHead("word " * 60), tokenizer=TemplateTokenizer(CONTINUES))
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.01
    chat = await ChatPage.open(browser, served)
    await chat.ask("Go on.")
    await expect(chat.text).to_contain_text("word word")
    await chat.page.keyboard.press("Escape")
    await chat.done()
    await expect(chat.answer.locator(".note")).to_have_text("Stopped.")
    await until(lambda: not served.swarm.open_sessions)
    said = (await chat.text.inner_text()).strip()
    served.model.local.head._tokens = list(b"and more.")  # type: ignore[attr-defined]
    await chat.button("Continue").click()
    await expect(chat.text).to_have_text(re.compile(rf"^{said} ?and more\.$"))
    await chat.done()
    assert "The answer is complete." in await chat.spoken()
    await expect(chat.button("Continue")).to_have_count(0)
    assert browser.complaints == []


async def test_an_answer_that_is_cut_says_so_and_can_be_continued(serve: Serve, browser: Browser) -> None:
    served = await serve(
        head=SureHead("one two"), tokenizer=TemplateTokenizer(CONTINUES), limits={"default_max_tokens": 4}
    )
    chat = await ChatPage.open(browser, served)
    await chat.say("Count.")
    await expect(chat.text).to_have_text("one")
    await expect(chat.answer.locator(".note")).to_have_text(
        "The answer was cut: 4 tokens is the longest allowed."
    )
    assert "The answer is complete." not in await chat.spoken()
    await chat.button("Continue").click()
    await expect(chat.text).to_have_text("one two")
    await chat.done()
    await expect(chat.answer.locator(".facts summary")).to_have_text(re.compile("^8 tokens"))
    await expect(chat.answer.locator(".note")).to_have_count(0)


async def test_an_answer_is_made_again_and_a_question_edited(serve: Serve, browser: Browser) -> None:
    served = await serve(head=SureHead("one", "two", "three", "four"))
    chat = await ChatPage.open(browser, served)
    await chat.say("First?")
    await chat.button("Answer again").click()
    await expect(chat.text).to_have_text("two")
    await chat.say("Second?")
    await expect(chat.button("Answer again")).to_have_count(1)  # what was said before has been built upon
    await chat.page.locator(".question").first.get_by_role("button", name="Edit this message").click()
    editor = chat.page.get_by_label("Your message")
    await editor.press("Escape")
    await expect(chat.page.locator(".question").first).to_contain_text("First?")
    await chat.page.locator(".question").first.get_by_role("button", name="Edit this message").click()
    await editor.fill("Other?")
    await editor.press("Enter")
    await expect(chat.text).to_have_text("four")
    assert await chat.page.locator(".bubble").all_inner_texts() == ["Other?"]
    await chat.done()
    await chat.field.press("ArrowUp")
    await expect(editor).to_have_value("Other?")


async def test_what_was_said_is_kept_when_an_answer_fails(serve: Serve, browser: Browser) -> None:
    served = await serve(a="0-2", b="3-5", head=SureHead("word " * 60))
    served.swarm.nodes["b"].behaviour.step_delay_s = 0.01
    chat = await ChatPage.open(browser, served)
    await chat.ask("Go.")
    await expect(chat.text).to_contain_text("word word")
    served.gateway.drop_all()
    await expect(chat.answer.get_by_role("alert")).to_have_text(
        "The gateway is shutting down. What was said so far is kept."
    )
    await expect(chat.text).to_contain_text("word word")
    await expect(chat.button("Continue")).to_be_visible()
    await chat.page.reload()
    await expect(chat.text).to_contain_text("word word")


async def test_waiting_and_repairs_are_shown_as_they_happen(
    serve: Serve, browser: Browser, tmp_path: Path
) -> None:
    served = await serve(
        a="0-2", b="3-5", c="3-5", head=SureHead("word " * 40), wait=60.0, limits={"beat_s": 0.05}
    )
    served.swarm.store.remove("c")
    served.swarm.nodes["b"].behaviour.step_delay_s = 0.01
    chat = await ChatPage.open(browser, served)
    await chat.ask("Go.")
    await expect(chat.text).to_contain_text("word word")
    served.swarm.store.remove("b")
    served.swarm.network.kill("b")
    status = chat.answer.locator(".status.waiting")
    await expect(status).to_have_text(re.compile(r"^Waiting for blocks 3-5 \(\d\d s left\)"))
    assert any(text.startswith("Waiting for blocks 3-5") for text in await chat.spoken())
    await chat.page.screenshot(path=picture("chat-waiting.png", tmp_path))
    served.swarm.announce("c")
    await expect(chat.answer.locator(".repair")).to_have_text(
        re.compile(r"^hop …b was lost, …c took over in [\d.]+ s$")
    )
    await chat.done()
    await expect(chat.text).to_have_text(("word " * 40).strip())
    assert await chat.answer.locator(".hop b").all_inner_texts() == ["…a", "…c"]
    await chat.page.screenshot(path=picture("chat-repaired.png", tmp_path))


async def test_a_question_waits_for_nodes_that_load(serve: Serve, browser: Browser) -> None:
    """Whatever the gateway's own patience is."""
    served = await serve(a="0-2", b="3-5", head=SureHead("Here I am."))
    served.swarm.store.remove("b")
    chat = await ChatPage.open(browser, served)
    notice = chat.page.locator("#notice")
    await expect(notice).to_contain_text("Waiting for blocks 3-5, which nobody serves")
    await expect(notice).to_contain_text("swarm-node serve --model toy --blocks 3-5")
    await chat.ask("Are you there?")
    await expect(chat.answer.locator(".status.waiting")).to_contain_text("Waiting for blocks 3-5")
    await expect(notice).to_be_hidden()  # the answer says it
    served.swarm.announce("b", state=NodeState.JOINING)
    await expect(chat.answer.locator(".status.waiting")).to_have_text(
        "Waiting for blocks 3-5; …b is loading 3-5"
    )
    served.swarm.announce("b")
    await expect(chat.text).to_have_text("Here I am.")
    await chat.done()
    await expect(notice).to_be_hidden()
    assert browser.complaints == []


async def test_a_full_context_forgets_the_oldest_and_says_so(serve: Serve, browser: Browser) -> None:
    said = SureHead("x" * 99, "y" * 99, "z")
    served = await serve(a="0-5", head=said, limits={"default_max_tokens": 100})
    chat = await ChatPage.open(browser, served)
    for question in ("a", "b", "c"):
        await chat.say(question * 130)
    await expect(chat.answer.locator(".note")).to_have_text(
        "The context is full: this question went without the 2 oldest messages."
    )
    await expect(chat.page.locator(".question")).to_have_count(3)
    await chat.say("d" * 2000)
    await expect(chat.answer.get_by_role("alert")).to_contain_text("begin a new chat")
