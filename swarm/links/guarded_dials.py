"""Dials at addresses that peers announce themselves: only where ``dial_guard`` allows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from ..errors import LocalNetworkError, NetworkError, PeerUnreachableError, StreamClosedError
from ..transport.dial_guard import (
    DialGuard,
    Reach,
    choose,
    for_client,
    public_of,
    reach_of,
    reaches,
    socket_of,
)
from ..transport.interface import Transport
from ..transport.resolve import resolve_all

OWN_ADDRESSES_S = 30.0
"""Our own addresses count as known for this many seconds: a computer seldom moves to another network."""
MAX_NAMES = 2
"""At most this many names among one peer's addresses are looked up."""


class _Dialled(Protocol):
    @property
    def remote_maddr(self) -> str: ...


T = TypeVar("T", bound=_Dialled)


class HiddenDialError(PeerUnreachableError):
    """A node's dial failed at an address that is not public. What is there, and how soon it refuses, must not
    be told to strangers."""


class GuardedDials:
    """``for_client``: by the rules of a process that dials for itself alone. ``clock`` gives seconds."""

    def __init__(
        self, transport: Transport, *, for_client: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._for_client = for_client
        self._guard = DialGuard(for_client=for_client)
        self._clock = clock
        self._allowed: tuple[float, frozenset[Reach]] | None = None

    async def dial(self, peer_id: str, maddrs: Sequence[str], dial: Callable[[list[str]], Awaitable[T]]) -> T:
        """What ``dial`` opens at those of the addresses that may be dialled now. ``maddrs``: from the peer's
        own signed record. A peer that is connected already needs none.

        Raises NetworkError's subclasses: HiddenDialError if a node tried an address that only it can reach.
        """
        meant = await self._meant(peer_id, maddrs)
        counted = public_of(meant) if self._for_client else meant
        begun = self._guard.begin(peer_id, counted, self._clock())
        chosen = [maddr for maddr in meant if maddr in begun or maddr not in counted]
        if meant and not chosen:
            raise PeerUnreachableError(
                f"peer {peer_id} did not answer lately, or too many dials go to its addresses"
            )
        try:
            opened = await dial(chosen)
        except (LocalNetworkError, StreamClosedError):
            self._guard.not_dialled(peer_id, begun)
            raise
        except asyncio.CancelledError:  # the caller gave it up
            self._guard.failed(peer_id, begun, self._clock())
            raise
        except NetworkError as error:
            self._guard.failed(peer_id, begun, self._clock())
            if not self._for_client and is_hidden(chosen):
                raise HiddenDialError(error.message, hint=error.hint) from error
            raise
        self._guard.met(peer_id, begun, opened.remote_maddr)
        return opened

    async def _meant(self, peer_id: str, maddrs: Sequence[str]) -> list[str]:
        """Names are looked up here, as their owner may change the answer; what has a name after that is left
        out."""
        found = await resolve_all(_few_names([maddr.removesuffix(f"/p2p/{peer_id}") for maddr in maddrs]))
        if not self._for_client:
            return choose(found, await self._reaches())
        return for_client(maddr for maddr in found if not maddr.startswith("/dns"))

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
