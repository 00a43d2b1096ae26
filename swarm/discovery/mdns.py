"""Peers of one LAN find each other: libp2p's mDNS, by python-zeroconf.

It shares UDP port 5353 with the system's own responder (avahi, mDNSResponder) and needs no other process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import LocalProtocolError
from ..faults import Faults
from ..runtime.tasks import cancel_all
from .local_networks import dialable_maddrs, fours_apart, lan_addresses
from .mdns_records import LanPeer, peer_name, read_txt, service_type, txt_record

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between looks whether this computer's addresses have changed."""
ASK_AGAIN_S = 30.0
"""Seconds between questions who is there. zeroconf asks ever more rarely, and a network that is back does not
tell."""
TTL_S = 120
"""Others remember us for this many seconds if we leave without a good-bye."""
ASK_S = 3.0
"""Seconds that a peer has to tell its addresses, if it did not tell them at once."""
MAX_PEERS = 256
"""At most this many names are followed at once, because every machine on the network can invent names."""
DISCOVERY_PORT = 4001
"""The port in the SRV record, which DNS-SD requires and libp2p does not read."""


class LanDiscovery:
    """Finds the swarm's peers on this computer's private networks, and announces us to them.

    ``own_id`` and ``listen_maddrs`` (with real ports): who we are and where we listen; nothing is told of a
    process that does not listen. ``on_found`` is called for each peer, and again when its addresses change;
    ``on_lost`` when it says good-bye, or nothing any more; ``on_namesake``, now and then, for one that says
    it is us, elsewhere. All in the event loop; they must not block.
    ``interfaces``: this computer's addresses to speak on.
    """

    def __init__(
        self,
        tag: str,
        on_found: Callable[[LanPeer], None],
        on_lost: Callable[[str], None],
        *,
        own_id: str = "",
        listen_maddrs: tuple[str, ...] = (),
        interfaces: Callable[[], list[str]] = lan_addresses,
        on_namesake: Callable[[LanPeer], None] = lambda peer: None,
    ) -> None:
        self.problem = ""
        self._on_namesake = on_namesake
        self._own_maddrs: set[str] = set()
        self._type = service_type(tag)
        self._on_found = on_found
        self._on_lost = on_lost
        self._own_id = own_id
        self._listen_maddrs = listen_maddrs
        self._interfaces = interfaces
        self._addresses: list[str] = []  # that the responder in use speaks on
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._asked_at = 0.0
        self._names: dict[
            str, LanPeer | None
        ] = {}  # by instance name; None: not known yet, or no peer of ours
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._faults = Faults("mDNS")

    @property
    def remark(self) -> str:
        """Why peers of this network may not be found, for people; "" where nothing is known to be in the
        way."""
        if self.problem or not self._addresses or not all(":" in address for address in self._addresses):
            return self.problem
        apart = fours_apart()
        return f"over IPv6 alone: {' and '.join(apart)} is on no private network" if apart else ""

    @property
    def peers(self) -> list[LanPeer]:
        """The peers that are there now."""
        return [peer for peer in self._names.values() if peer is not None]

    async def start(self) -> None:
        """Begin; returns once others are asked. Without a private network, begins when there is one."""
        if self._watching is not None:
            raise LocalProtocolError("the discovery was started before")
        await self._adapt()
        self._watching = asyncio.create_task(self._watch(), name="mDNS")

    async def close(self) -> None:
        """Say good-bye and end. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        self._names.clear()  # our leaving loses no peer
        await self._stop()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with self._faults.survived():
                await self._adapt()
                if self._zeroconf is not None and self._loop_time() - self._asked_at >= ASK_AGAIN_S:
                    await self._browse(self._zeroconf)

    async def _adapt(self) -> None:
        """Speak on the networks that this computer is on now."""
        addresses = self._interfaces()
        if addresses == self._addresses and (self._zeroconf is not None or not addresses):
            if not addresses:
                self._say("this computer is on no private network")
            return
        await self._stop()
        self._addresses = addresses
        if addresses:
            try:
                await self._start(addresses)
            except (OSError, RuntimeError, ImportError) as error:
                await self._stop()
                self._say(f"cannot use mDNS: {error}")
                return
        self.problem = "" if addresses else "this computer is on no private network"

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            logger.info("event=mdns_unavailable message=%r", problem)

    async def _start(self, addresses: list[str]) -> None:
        # Costs a tenth of a second to import: not for processes with given addresses.
        from zeroconf import IPVersion, ServiceInfo
        from zeroconf.asyncio import AsyncZeroconf

        logging.getLogger("zeroconf").setLevel(logging.ERROR)  # what a network refuses is in ``problem``
        fours = [address for address in addresses if ":" not in address]
        versions = {0: IPVersion.V6Only, len(addresses): IPVersion.V4Only}
        try:
            self._zeroconf = AsyncZeroconf(
                interfaces=[*addresses], ip_version=versions.get(len(fours), IPVersion.All)
            )
        except OSError:
            if not fours:
                raise
            # IPv4 is where all implementations are.
            self._zeroconf = AsyncZeroconf(interfaces=[*fours], ip_version=IPVersion.V4Only)
        await self._zeroconf.zeroconf.async_wait_for_start()
        maddrs = dialable_maddrs(self._listen_maddrs, addresses)
        self._own_maddrs = set(maddrs)
        if self._own_id and maddrs:
            name = peer_name()
            info = ServiceInfo(
                self._type,
                f"{name}.{self._type}",
                port=DISCOVERY_PORT,
                properties=txt_record(self._own_id, maddrs),
                server=f"{name}.local.",
                parsed_addresses=fours or addresses,
                host_ttl=TTL_S,
                other_ttl=TTL_S,
            )
            # The name is random: it need not be checked for a clash.
            await self._zeroconf.async_register_service(info, cooperating_responders=True, strict=False)
        await self._browse(self._zeroconf)

    async def _browse(self, zeroconf: AsyncZeroconf) -> None:
        """Ask which peers are there, except those that were heard lately, and listen."""
        from zeroconf import DNSQuestionType
        from zeroconf.asyncio import AsyncServiceBrowser

        former, self._asked_at = self._browser, self._loop_time()
        self._browser = AsyncServiceBrowser(
            zeroconf.zeroconf, self._type, handlers=[self._on_change], question_type=DNSQuestionType.QM
        )
        if former is not None:
            await former.async_cancel()

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    async def _stop(self) -> None:
        asking = list(self._asking.values())
        await cancel_all(asking)
        zeroconf, self._zeroconf, self._browser = self._zeroconf, None, None
        if zeroconf is not None:
            with suppress(OSError, TimeoutError):
                await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()
        for name in list(self._names):
            self._forget(name)

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            self._forget(name)
        elif name in self._names or len(self._names) < MAX_PEERS:
            self._names.setdefault(name, None)
            if name not in self._asking:
                task = self._asking[name] = asyncio.create_task(self._ask_safely(zeroconf, name))
                task.add_done_callback(lambda _: self._asking.pop(name, None))

    async def _ask_safely(self, zeroconf: Zeroconf, name: str) -> None:
        with self._faults.survived():
            await self._ask(zeroconf, name)

    async def _ask(self, zeroconf: Zeroconf, name: str) -> None:
        """Read what a name stands for, which usually came with it, and tell of it."""
        from zeroconf.asyncio import AsyncServiceInfo

        loopback = any(address.startswith("127.") for address in self._addresses)
        peer = read_txt(_texts(zeroconf, name), loopback=loopback, own=self._addresses)
        if peer is None:
            with suppress(OSError):
                await AsyncServiceInfo(self._type, name).async_request(zeroconf, ASK_S * 1000)
            peer = read_txt(_texts(zeroconf, name), loopback=loopback, own=self._addresses)
        former = self._names.get(name)
        if peer is not None and peer.peer_id == self._own_id and self._own_maddrs.isdisjoint(peer.maddrs):
            self._on_namesake(peer)
        if peer is None or peer.peer_id == self._own_id or peer == former or name not in self._names:
            return
        self._names[name] = peer
        if former is not None and former.peer_id != peer.peer_id:
            self._on_lost(former.peer_id)
        logger.info("event=lan_peer_found peer=%s maddrs=%s", peer.peer_id, ",".join(peer.maddrs))
        self._on_found(peer)

    def _forget(self, name: str) -> None:
        peer = self._names.pop(name, None)
        if peer is not None and all(other.peer_id != peer.peer_id for other in self.peers):
            logger.info("event=lan_peer_lost peer=%s", peer.peer_id)
            self._on_lost(peer.peer_id)


def _texts(zeroconf: Zeroconf, name: str) -> list[bytes]:
    """The TXT records that are known of a name: some implementations send one for each address."""
    from zeroconf import DNSText

    entries = zeroconf.cache.async_entries_with_name(name)
    return [entry.text for entry in entries if isinstance(entry, DNSText)]
