"""A node's links to other nodes, dialled at addresses that those announce: only where ``dial_guard`` allows
it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from ..errors import LocalNetworkError, NetworkError, PeerUnreachableError, StreamClosedError
from ..protocol.wire import FIXED_HEADER, MAX_HEADER
from ..timeouts import Patience
from ..transport.dial_guard import DialGuard, Reach, choose, reach_of, reaches, socket_of
from ..transport.interface import Transport
from ..transport.resolve import resolve_all
from ..types import ModelRef
from .link import NodeLink
from .pool import LinkPool

OWN_ADDRESSES_S = 30.0
"""Our own addresses count as known for this many seconds: a computer seldom moves to another network."""
MAX_NAMES = 2
"""At most this many names among one peer's addresses are looked up."""
MAX_ANSWER_FRAME = FIXED_HEADER.size + MAX_HEADER
"""Bytes of a frame that another node may send us at most. It answers without rows, which go to the client."""


class HiddenDialError(PeerUnreachableError):
    """A dial failed at an address that is not public. What is there, and how soon it refuses, must not be
    told to strangers."""


class Dialler:
    """The links of one model. Implements ``link_probe.Links``. ``clock`` gives seconds."""

    def __init__(
        self,
        transport: Transport,
        model: ModelRef,
        agent: str,
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._pool = LinkPool(transport, model, agent=agent, patience=patience, max_frame=MAX_ANSWER_FRAME)
        self._guard = DialGuard()
        self._clock = clock
        self._allowed: tuple[float, frozenset[Reach]] | None = None

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> NodeLink:
        """The live link to a node; dials it where there is none. ``maddrs``: from its own signed record.

        Raises NetworkError's subclasses: HiddenDialError if an address was tried that only we can reach. A
        peer that is connected already needs no address.
        """
        if self._pool.has(peer_id):
            return await self._pool.get(peer_id)
        meant = choose(await resolve_all(_few_names(maddrs)), await self._reaches())
        chosen = self._guard.begin(peer_id, meant, self._clock())
        if meant and not chosen:
            raise PeerUnreachableError(
                f"peer {peer_id} did not answer lately, or too many dials go to its addresses"
            )
        try:
            link = await self._pool.get(peer_id, chosen)
        except (LocalNetworkError, StreamClosedError):
            self._guard.not_dialled(peer_id, chosen)
            raise
        except asyncio.CancelledError:  # the caller gave it up
            self._guard.failed(peer_id, chosen, self._clock())
            raise
        except NetworkError as error:
            self._guard.failed(peer_id, chosen, self._clock())
            if is_hidden(chosen):
                raise HiddenDialError(error.message, hint=error.hint) from error
            raise
        self._guard.met(peer_id, chosen, link.remote_maddr)
        return link

    async def close(self) -> None:
        """End the links. Idempotent."""
        await self._pool.close()

    async def _reaches(self) -> frozenset[Reach]:
        now = self._clock()
        if self._allowed is None or now - self._allowed[0] >= OWN_ADDRESSES_S:
            self._allowed = now, reaches(await self._transport.maddrs())
        return self._allowed[1]


def _few_names(maddrs: Sequence[str]) -> list[str]:
    """The addresses, of names only the first MAX_NAMES: each name is a question to a server that its owner
    chooses."""
    names = [maddr for maddr in maddrs if maddr.startswith("/dns")]
    return [maddr for maddr in maddrs if maddr not in names[MAX_NAMES:]]


def is_hidden(maddrs: Sequence[str]) -> bool:
    """True if a stranger outside could not find out what answers at one of them."""
    sockets = map(socket_of, maddrs)
    return any(socket is not None and reach_of(socket.host) is not Reach.PUBLIC for socket in sockets)
