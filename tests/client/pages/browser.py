"""Debian's Chromium, driven by playwright, and what a page must not do in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser as Engine
from playwright.async_api import Page, Request, async_playwright, expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu")
PATIENCE_MS = 30_000
"""A busy machine is slow, and nothing is waited for that does not come."""

expect.set_options(timeout=PATIENCE_MS)


class Browser:
    """``complaints``: errors of the pages that were opened, and what they asked of other servers."""

    def __init__(self, engine: Engine) -> None:
        self.complaints: list[str] = []
        self._engine = engine
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Browser:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Closes the pages and their profiles."""
        await self._stack.aclose()

    async def open(self, url: str, *, width: int = 1280, height: int = 800, **options: Any) -> Page:
        """A page of its own profile, so that nothing is left of another one. ``options``: of playwright's
        ``new_page``, such as ``color_scheme``."""
        page = await self._engine.new_page(viewport={"width": width, "height": height}, **options)
        self._stack.push_async_callback(page.context.close)
        server = "/".join(url.split("/")[:3])

        def on_request(request: Request) -> None:
            if not request.url.startswith((f"{server}/", "data:", "blob:")):
                self.complaints.append(f"asked for {request.url}")

        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", on_request)
        page.set_default_timeout(PATIENCE_MS)
        await page.goto(url)
        return page


@asynccontextmanager
async def open_chromium() -> AsyncIterator[Engine]:
    """Skips the test where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    async with async_playwright() as playwright:
        engine = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield engine
        finally:
            await engine.close()


def picture(name: str, tmp_path: Path) -> Path:
    """Where a test puts a screenshot: into the folder that SWARM_NODE_SCREENSHOTS names, to be looked at."""
    return Path(os.environ.get("SWARM_NODE_SCREENSHOTS") or tmp_path) / name
