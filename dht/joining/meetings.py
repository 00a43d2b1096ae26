"""Joining with the peers of this LAN: those that mDNS finds are met in the directory, as long as we run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from ...swarm.discovery.local_networks import lan_addresses
from ...swarm.discovery.mdns import LanDiscovery
from ...swarm.discovery.mdns_records import LanPeer
from ...swarm.errors import NotAdmittedError, PeerUnreachableError
from ...swarm.runtime.tasks import cancel_all
from ...swarm.transport.addresses import PeerAddress

JOIN_S = 1.5
"""A node that is alone looks for others for this many seconds before it begins. It meets later ones when they
come."""
FIND_S = 5.0
"""A client, which needs a peer, looks for one for this many seconds. mDNS asks again after one second, and
after three."""
AT_ONCE = 4
"""At most this many meetings are under way; the others wait. Peers that are met already name the rest."""

logger = logging.getLogger(__name__)


class MeetingDirectory(Protocol):
    """The part of a directory of peers that joining uses."""

    async def meet(self, peer_id: str, maddrs: Sequence[str]) -> bool: ...

    def forget(self, peer_id: str) -> None: ...

    @property
    def refusals(self) -> list[NotAdmittedError]: ...


class Meetings:
    """Meets peers in ``directory``. ``begin`` starts it.

    ``on_met`` is called with the PeerID of each that was met for the first time, or again after it was lost;
    ``on_namesake`` with what mDNS tells of one that says it is us.
    """

    def __init__(
        self,
        directory: MeetingDirectory,
        *,
        tag: str = "",
        own_id: str = "",
        listen_maddrs: tuple[str, ...] = (),
        on_met: Callable[[str], None] = lambda peer_id: None,
        interfaces: Callable[[], list[str]] = lan_addresses,
        on_namesake: Callable[[LanPeer], None] = lambda peer: None,
    ) -> None:
        self.met: set[str] = set()
        self._directory = directory
        self._on_met = on_met
        self._changed = asyncio.Event()  # a peer was met, or a meeting failed
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._discovery = LanDiscovery(
            tag,
            self._found,
            self._lost,
            own_id=own_id,
            listen_maddrs=listen_maddrs,
            interfaces=interfaces,
            on_namesake=on_namesake,
        )
        self._open = True

    async def begin(self, may_meet: Sequence[str] = (), *, mdns: bool, joined: bool, needed: bool) -> None:
        """Try ``may_meet``, addresses of peers that need not be there, and with ``mdns`` those of the LAN;
        return when a peer is met or time is over. ``joined``: a peer is there already.

        ``needed``: raise NotAdmittedError or PeerUnreachableError if there is no peer.
        """
        peers: dict[str, list[str]] = {}
        for address in map(PeerAddress.parse, may_meet):
            peers.setdefault(address.peer_id, []).append(address.maddr)
        for peer_id, maddrs in peers.items():
            self._run(self._meet(LanPeer(peer_id, tuple(maddrs))))
        if mdns:
            await self._discovery.start()
        if joined or not (peers or mdns):
            return
        if not await self.wait(FIND_S if needed else JOIN_S) and needed:
            raise self._nobody(bool(peers), mdns)

    def _nobody(self, tried: bool, mdns: bool) -> NotAdmittedError | PeerUnreachableError:
        for refusal in self._directory.refusals:
            return refusal
        where = " and ".join(["at the invite's addresses"] * tried + ["on this network"] * mdns)
        why = self._discovery.remark if mdns else ""
        return PeerUnreachableError(
            f"no peer of the swarm was found {where}{f' ({why})' if why else ''}",
            hint="Give --initial-peers with an address that swarm-node serve prints where it runs, or --join "
            "with an invite."
            if why
            else "Start one (swarm-node serve), check --swarm and its key (or --join), or give "
            "--initial-peers where multicast is blocked.",
        )

    async def wait(self, seconds: float) -> bool:
        """Wait ``seconds`` at most until a peer is met; whether one is."""
        try:
            async with asyncio.timeout(seconds):
                while not self.met:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return bool(self.met)

    async def close(self) -> None:
        """Take leave of the LAN. Idempotent."""
        self._open = False
        await self._discovery.close()
        tasks = list(self._tasks)
        await cancel_all(tasks)

    def _found(self, peer: LanPeer) -> None:
        self._run(self._meet(peer))

    def _lost(self, peer_id: str) -> None:
        self.met.discard(peer_id)
        self._directory.forget(peer_id)

    async def _meet(self, peer: LanPeer) -> None:
        async with self._slots:
            met = await self._directory.meet(peer.peer_id, peer.maddrs)
        if met and peer.peer_id not in self.met:
            self.met.add(peer.peer_id)
            self._on_met(peer.peer_id)
        self._changed.set()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._open:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a peer of this network could not be met: %s", error)
