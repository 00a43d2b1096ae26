"""From a TCP connection to an encrypted, authenticated one that carries streams: Noise, then yamux.

py-libp2p does the cryptography: its keys, PeerIDs and Noise XX handshake are coroutines that only read and
write, so they run on asyncio as they are. Nothing but Noise is offered or taken: never plaintext.
Specification: https://github.com/libp2p/specs/tree/master/noise
"""

from __future__ import annotations

from typing import Any

from ...errors import NetworkError, RemoteProtocolError, StreamClosedError, UsageError
from ...identity import Identity
from ..dial_errors import dial_failure, no_swarm_peer, refused, too_slow, wrong_peer
from .channel import NoiseChannel, RawChannel, RawConnection, TcpChannel
from .imports import load_noise
from .multistream import answer, propose

NOISE = "/noise"
YAMUX = "/yamux/1.0.0"
_WRONG_PEER = "PeerIDMismatchesPubkey"


class Security:
    """Upgrades connections for one identity. Made in a worker thread: it may import py-libp2p."""

    def __init__(self, identity: Identity) -> None:
        """Raises UsageError if py-libp2p is missing."""
        noise = load_noise()
        from libp2p.crypto.ed25519 import create_new_key_pair
        from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
        from libp2p.peer.id import ID

        self._noise = noise.Transport(create_new_key_pair(identity.seed), create_noise_key().private_key)
        self._id = ID.from_base58
        if str(self._noise.local_peer) != identity.peer_id:
            raise UsageError(f"py-libp2p takes {identity} for {self._noise.local_peer}")

    async def dialled(self, tcp: RawChannel, peer_id: str) -> NoiseChannel:
        """The channel to ``peer_id``, which has proven that it is this peer and carries yamux.

        Raises what py-libp2p and the channel raise: see ``dial_problem``.
        """
        if not await propose(tcp, NOISE):
            raise RemoteProtocolError("the peer does not speak Noise")
        session = await self._noise.secure_outbound(RawConnection(tcp, initiator=True), self._id(peer_id))
        channel = NoiseChannel(tcp, session.conn)
        if not await propose(channel, YAMUX):
            raise RemoteProtocolError("the peer does not speak yamux")
        return channel

    async def accepted(self, tcp: TcpChannel) -> tuple[NoiseChannel, str]:
        """The channel to the peer that has dialled us, and its proven peer id. Raises as ``dialled``."""
        await answer(tcp, NOISE.__eq__)
        session: Any = await self._noise.secure_inbound(RawConnection(tcp, initiator=False))
        channel = NoiseChannel(tcp, session.conn)
        await answer(channel, YAMUX.__eq__)
        return channel, str(session.get_remote_peer())


def dial_problem(peer_id: str, maddr: str, error: Exception) -> NetworkError:
    """The error to raise for any exception of a dial.

    ``peer_id`` was to be found at ``maddr``.
    """
    match error:
        case TimeoutError():
            return too_slow(maddr)
        case ConnectionRefusedError():
            return refused(maddr)
        case OSError():
            return dial_failure(peer_id, maddr, error.strerror or str(error) or type(error).__name__)
        case StreamClosedError():
            return dial_failure(peer_id, maddr, "it closed the connection during the handshake")
        case NetworkError():
            return error
    if type(error).__name__ == _WRONG_PEER:
        found = str(error).rpartition("remote_peer_id_from_pubkey=")[2]
        return wrong_peer(maddr, found[:64], peer_id)
    return no_swarm_peer(maddr)  # it talks, but not libp2p, or not by its rules
