"""A gateway that serves the pages, and a browser that looks at them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.client.gateway.conftest import drafting as drafting
from tests.client.gateway.conftest import serve as serve
from tests.client.gateway.conftest import trials as trials
from tests.client.pages.browser import Browser, open_browser


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser
