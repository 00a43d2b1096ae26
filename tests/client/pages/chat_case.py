"""A chat page that is open in a browser, over a gateway whose model says what a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from playwright.async_api import Locator, Page, expect

from tests.client.gateway.gateway_case import Served
from tests.client.pages.browser import Browser
from tests.doubles.fake_swarm import EOS, ScriptedHead


class SureHead(ScriptedHead):
    """Says texts one after another, however it is sampled."""

    def __init__(self, *texts: str) -> None:
        super().__init__([token for text in texts for token in (*text.encode(), EOS)])

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        return 100 * super().logits(hidden)


class ChatPage:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.answer = page.locator(".answer").last
        self.text = self.answer.locator("> .text")
        self.field = page.locator("#message")

    @classmethod
    async def open(cls, browser: Browser, served: Served, **options: Any) -> ChatPage:
        self = cls(await browser.open(served.server.url, **options))
        await expect(self.page.locator("#model")).to_be_enabled()
        return self

    async def ask(self, text: str) -> None:
        await self.field.fill(text)
        await self.field.press("Enter")

    async def done(self) -> None:
        """The answer that is being made is over."""
        await expect(self.page.locator("#stop")).to_be_hidden()
        await expect(self.page.locator("[aria-busy=true]")).to_have_count(0)

    async def say(self, text: str) -> None:
        await self.ask(text)
        await self.done()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    async def spoken(self) -> Sequence[str]:
        """What a screen reader was told."""
        return await self.page.locator("#speech p").all_inner_texts()
