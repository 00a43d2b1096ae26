"""The parent as its child sees it: events go to it on standard output, and orders come on standard input.

Each is one line of JSON. The end of the input means that the parent is gone.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any


def tell(event: str, **details: Any) -> None:
    """Print an event; what an ``EventProcess`` waits for."""
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


async def next_order() -> dict[str, Any] | None:
    """The fields of ``EventProcess.order``. None when the parent is gone."""
    line = await asyncio.to_thread(sys.stdin.readline)
    return json.loads(line) if line else None
