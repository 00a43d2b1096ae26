"""The chat page in Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.client.gateway.gateway_case import Serve
from tests.client.pages.browser import Browser, picture
from tests.doubles.fake_swarm import EOS, ScriptedHead

ANSWER = """\
# Sailing

Wind **pushes** and *pulls*; see [a page](https://example.org/x?a=b).

1. Set the `jib`
2. Trim

- a
- b

> quoted

```python
print("<b>not bold</b>")
```

<img src=x onerror="document.title='owned'"> [bad](javascript:alert(1))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_chat_by_keyboard(serve: Serve, browser: Browser, tmp_path: Path, scheme: str) -> None:
    served = await serve(head=ScriptedHead([*ANSWER.encode(), EOS]), limits={"default_max_tokens": 480})
    page = await browser.open(served.server.url, color_scheme=scheme)
    await page.wait_for_function("document.activeElement.id === 'message'")
    assert await page.locator("#model").input_value() == "toy"
    await page.locator("summary").click()
    await page.locator("#tokens").fill("420")
    await page.locator("#temperature").fill("0")
    await page.locator("#message").focus()
    await page.keyboard.type("How do ships sail?")
    await page.keyboard.press("Enter")
    await page.get_by_text("The answer is complete.").wait_for()
    text = page.locator(".turn.assistant .text")
    assert await text.locator("h2").inner_text() == "Sailing"
    assert await text.locator("strong").inner_text() == "pushes"
    assert await text.locator("em").inner_text() == "pulls"
    assert await text.locator("ol > li").count() == await text.locator("ul > li").count() == 2
    assert await text.locator("pre code").inner_text() == 'print("<b>not bold</b>")'
    assert await text.locator("a").evaluate_all("links => links.map(link => link.href)") == [
        "https://example.org/x?a=b"
    ]
    assert await text.locator("img, b").count() == 0  # what a model writes is text
    assert await page.title() == "swarm-node chat"
    facts = await page.locator(".facts").inner_text()
    assert re.search(
        rf"{len(ANSWER) + 1} tokens · [\d.]+ tokens/s · first token after .* · route …a \[0-2\]", facts
    )
    assert await page.locator("#chat").get_attribute("aria-busy") == "false"
    assert await page.evaluate("document.activeElement.id") == "message"
    assert browser.complaints == []
    await page.locator("summary").click()
    await page.screenshot(path=picture(f"chat-{scheme}.png", tmp_path))


async def test_stopping_an_answer_frees_the_swarm_and_keeps_what_was_said(
    serve: Serve, browser: Browser
) -> None:
    served = await serve(a="0-5", head=ScriptedHead(list(b"word " * 90)))
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.02
    page = await browser.open(served.server.url)
    await page.locator("#message").fill("Go on.")
    await page.locator("#temperature").evaluate("field => { field.value = 0; }")
    await page.locator("#send:enabled").click()
    await page.get_by_text("word word").wait_for()
    await page.keyboard.press("Escape")
    await page.get_by_text("Stopped.").wait_for()
    assert "stopped · " in await page.locator(".facts").inner_text()
    for _ in range(100):
        if not served.swarm.open_sessions:
            break
        await page.wait_for_timeout(10)
    assert not served.swarm.open_sessions
    assert await page.locator("#send").is_enabled()
    assert browser.complaints == []


async def test_errors_are_told(serve: Serve, browser: Browser) -> None:
    served = await serve(a="0-2")
    page = await browser.open(served.server.url)
    alert = page.get_by_role("alert")
    await alert.wait_for()
    assert "Nobody serves blocks 3-5 of toy" in await alert.inner_text()
    assert "swarm-node serve --model toy --blocks 3-5" in await alert.inner_text()
    assert await page.locator("#send").is_disabled()


async def test_a_key_is_asked_for(serve: Serve, browser: Browser) -> None:
    served = await serve(keys=["sk-0123456789"])
    page = await browser.open(served.server.url)
    await page.get_by_text("This gateway needs an API key").wait_for()
    assert await page.locator("#settings").get_attribute("open") is not None
    await page.locator("#key").fill("sk-0123456789")
    await page.locator("#key").press("Tab")
    await page.wait_for_function("document.getElementById('model').value === 'toy'")
    assert await page.locator("#send").is_enabled()
