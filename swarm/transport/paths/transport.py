"""Several transports of one peer as one: each stream takes the best path to its peer.

Paths are, in the order of preference, our own transport from process to process, and what leads through
daemons. A stream stays on its path: if that fails, the stream ends, and what is opened next takes another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import LocalNetworkError, NetworkError
from ...fairness.recent import RecentMap
from ...runtime.tasks import all_of, cancel_all
from ..direct_maddrs import Way, is_direct, mark_direct, without_mark
from ..interface import DIAL_TIMEOUT, NetworkChange, NetworkRestored, Stream, StreamHandler, Transport
from .choice import UNKNOWN, PathRecord, choose
from .stream import PathStream

MAX_PEERS = 4096
"""The paths to at most this many peers are remembered."""


class DirectPath(Transport, Protocol):
    """What PathsTransport needs of our own transport."""

    def is_connected(self, peer_id: str) -> bool:
        """Whether a stream to the peer needs no dial, perhaps since the peer has dialled us."""


@dataclass(slots=True)
class _Known:
    """What is known of the paths to one peer. ``kept``: the one that was used last."""

    records: dict[str, PathRecord] = field(default_factory=dict)
    kept: str = ""

    def record(self, path: str) -> PathRecord:
        return self.records.get(path, UNKNOWN)


class PathsTransport:
    """``direct`` and ``others``: transports with one peer id, the preferred ones first. Our ordinary
    addresses are those of the last. Implements Transport. ``clock``: seconds."""

    def __init__(
        self,
        direct: DirectPath,
        others: Mapping[str, Transport],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``others`` maps a path's name to its transport."""
        self._direct = direct
        self._paths: dict[str, Transport] = {Way.DIRECT: direct, **others}
        self._last = self._paths[[*self._paths][-1]]
        self._clock = clock or asyncio.get_running_loop().time
        self._known: RecentMap[str, _Known] = RecentMap(MAX_PEERS)
        self._tries: set[asyncio.Task[Stream]] = set()

    @property
    def peer_id(self) -> str:
        return self._direct.peer_id

    async def maddrs(self) -> tuple[str, ...]:
        """Where any peer can dial us: the daemon's addresses."""
        return await self._last.maddrs()

    async def direct_maddrs(self) -> tuple[str, ...]:
        """Where a peer can dial us without daemons, each marked as that."""
        return tuple(map(mark_direct, await self._direct.maddrs()))

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        async def accept(stream: Stream) -> None:
            await handler(PathStream(stream, mark_direct(stream.remote_maddr)))

        for name, transport in reversed(self._paths.items()):
            await transport.serve(protocol_id, accept if name == Way.DIRECT else handler)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        """Takes the first path that works. The others that were tried beside it go on, to show whether they
        do. Raises the error of the last path, the daemon's."""
        known = self._known[peer_id] = self._known.get(peer_id) or _Known()
        reachable = [name for name in self._paths if name != Way.DIRECT or self._can_dial(peer_id, maddrs)]
        starts = choose(reachable, known.records, known.kept, self._clock())
        loop = asyncio.get_running_loop()
        began = loop.time()
        tries: dict[asyncio.Task[Stream], str] = {}
        errors: dict[str, NetworkError] = {}
        try:
            while starts or tries:
                now_s = loop.time() - began
                while starts and (starts[0].after_s <= now_s or not tries):
                    name = starts.pop(0).path
                    where = [maddr for maddr in maddrs if is_direct(maddr) == (name == Way.DIRECT)]
                    opening = self._paths[name].open_stream(
                        peer_id, protocol_id, [*map(without_mark, where)], timeout - now_s, lazy=lazy
                    )
                    tries[self._begin(self._noted(known, name, opening))] = name
                wait_s = starts[0].after_s - now_s if starts else None
                done, _ = await asyncio.wait(tries, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda each: reachable.index(tries[each])):
                    name = tries.pop(task)
                    error = task.exception()
                    if error is None:
                        known.kept = name
                        for other in tries:
                            other.add_done_callback(_close_late)
                        return task.result()
                    if not isinstance(error, NetworkError):
                        raise error
                    errors[name] = error
        except BaseException:
            await cancel_all(tries)
            raise
        raise errors[max(errors, key=reachable.index)]

    async def check(self, remote_maddr: str = "") -> None:
        await (self._direct if is_direct(remote_maddr) else self._last).check(remote_maddr)

    async def close(self) -> None:
        await cancel_all(self._tries)
        await all_of(*(transport.close() for transport in self._paths.values()))

    async def on_network(self, change: NetworkChange) -> None:
        """Our network may be another now: every path may be tried again at once."""
        if isinstance(change, NetworkRestored):
            self._known.clear()

    def _can_dial(self, peer_id: str, maddrs: Sequence[str]) -> bool:
        return any(map(is_direct, maddrs)) or self._direct.is_connected(peer_id)

    async def _noted(self, known: _Known, name: str, opening: Awaitable[Stream]) -> Stream:
        """The stream that opens on the path ``name``, and a note of how that went."""
        try:
            stream = await opening
        except LocalNetworkError:
            raise  # which says nothing of the path
        except NetworkError:
            known.records[name] = known.record(name).failed(self._clock())
            raise
        opened = self._clock()
        known.records[name] = known.record(name).worked(opened)

        def on_answer() -> None:
            known.records[name] = known.record(name).answered(self._clock() - opened)

        remote = stream.remote_maddr
        return PathStream(stream, mark_direct(remote) if name == Way.DIRECT else remote, on_answer)

    def _begin(self, opening: Coroutine[Any, Any, Stream]) -> asyncio.Task[Stream]:
        task = asyncio.create_task(opening)
        self._tries.add(task)
        task.add_done_callback(self._tries.discard)
        return task


def _close_late(task: asyncio.Task[Stream]) -> None:
    """Nobody needs the stream any more: another path was faster."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
