"""What asyncio says of callbacks and tasks that failed, and of errors that nobody looked at."""

from __future__ import annotations

import asyncio
import gc
from typing import Any


class Complaints:
    """Of the running loop, from now on."""

    def __init__(self) -> None:
        self._said: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._said.append(context))

    def heard(self) -> list[dict[str, Any]]:
        gc.collect()  # tasks that are forgotten with an error are told of when they go
        return self._said
