"""A node that others do not tell of says so, and announces itself again."""

from __future__ import annotations

from swarm_node.dht.memory import MemoryDirectory
from swarm_node.node.presence.read_back import ReadBack
from swarm_node.swarm.errors import NetworkError


class Mirror(MemoryDirectory):
    """``told``: what the others say."""

    def __init__(self) -> None:
        super().__init__()
        self.told: bool | Exception | None = None

    async def is_announced(self) -> bool | None:
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


async def test_it_is_said_when_it_changes_and_tried_again_until_it_does() -> None:
    directory, events, tries = Mirror(), [], []
    read_back = ReadBack(directory, lambda event, **details: events.append(event), lambda: tries.append(1))
    for told, seen in (
        (None, True),
        (True, True),
        (NetworkError("nobody answers"), True),
        (False, False),
        (False, False),
        (None, False),
        (True, True),
    ):
        directory.told = told
        await read_back.look()
        assert read_back.seen is seen
    assert events == ["unseen", "seen"]
    assert len(tries) == 2
