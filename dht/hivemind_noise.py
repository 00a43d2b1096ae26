"""What hivemind logs about itself that nobody can act on."""

from __future__ import annotations

import logging

_LEAK = "Task was destroyed but it is pending!"


class _LeakedWaits(logging.Filter):
    """Drops asyncio's complaint about one kind of task.

    hivemind 1.1's ``simple_dht.traverse`` starts a task on ``Event.wait()`` for each peer it asks and drops
    it unfinished. Collecting these does no harm, but asyncio reports each as an error.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not (message.startswith(_LEAK) and "coro=<Event.wait()" in message)


_filter = _LeakedWaits()


def hush() -> None:
    """Install the filter. May be called again: a logger holds a filter once."""
    logging.getLogger("asyncio").addFilter(_filter)
