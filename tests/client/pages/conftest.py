"""A gateway that serves the pages, and a browser that looks at them.

Chromium starts once a module, so the modules' tests share an event loop: each has the mark
``asyncio(loop_scope="module")``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser as Engine

from tests.client.gateway.conftest import drafting as drafting
from tests.client.gateway.conftest import serving
from tests.client.gateway.conftest import trials as trials
from tests.client.gateway.gateway_case import Serve
from tests.client.pages.browser import Browser, open_chromium


@pytest_asyncio.fixture(loop_scope="module")
async def serve() -> AsyncIterator[Serve]:
    async with serving() as serve:
        yield serve


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Engine]:
    async with open_chromium() as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chromium: Engine) -> AsyncIterator[Browser]:
    async with Browser(chromium) as browser:
        yield browser
