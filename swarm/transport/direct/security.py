"""From a TCP connection to an encrypted, authenticated one that carries streams: Noise, then yamux.

Nothing but Noise is offered or taken: never plaintext. Who dials asks for Noise and begins it in one message,
and names its muxer inside of it, as the peer does: so there are two round trips, TCP's and this one.

     →  /multistream/1.0.0  /noise  e
    ←   /multistream/1.0.0  /noise  e, ee, s, es, who and "/yamux/1.0.0"
     →  s, se, who and "/yamux/1.0.0"; streams may begin at once
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ...errors import NetworkError, RemoteProtocolError, StreamClosedError
from ...identity import Identity
from ..dial_errors import dial_failure, no_swarm_peer, refused, too_slow, wrong_peer
from ..protocols.multistream import agreed, answer, proposal, propose
from ..protocols.noise import KEY_BYTES, XXHandshake
from ..protocols.noise_payload import read_payload, write_payload
from .channel import NoiseChannel, RawChannel

NOISE = "/noise"
NOISE_APART = "/swarm-node/noise/1"
"""The same Noise by a name that go-libp2p does not know. A listener beside a daemon, under the same PeerID,
takes no other: a p2pd that was led there by somebody's lie would think that the peer has left the DHT."""
YAMUX = "/yamux/1.0.0"
MAX_HANDSHAKE_MESSAGE = 2048
"""A message of a handshake may have this many bytes: a key, a signature and the names of some muxers."""


class _WrongPeerError(RemoteProtocolError):
    """The peer has proven to be another one: its message is that one's peer id."""


class Security:
    """Upgrades connections for one identity, under one Noise key that it has signed. ``apart``: with peers
    alone that say NOISE_APART; else with those that say NOISE, and who dials us may say either."""

    def __init__(self, identity: Identity, *, apart: bool = False) -> None:
        self._asks = NOISE_APART if apart else NOISE
        self._takes = {NOISE_APART} if apart else {NOISE, NOISE_APART}
        self._static = X25519PrivateKey.generate()
        self._payload = write_payload(identity, self._static.public_key().public_bytes_raw(), (YAMUX,))

    async def dialled(self, tcp: RawChannel, peer_id: str) -> NoiseChannel:
        """The channel to ``peer_id``, which has proven that it is this peer and carries yamux.

        Raises RemoteProtocolError, or what the channel raises: see ``dial_problem``.
        """
        handshake = XXHandshake(self._static, initiator=True)
        tcp.write(proposal(self._asks) + _framed(handshake.write_message()))
        if not await agreed(tcp, self._asks):
            raise RemoteProtocolError("the peer does not speak Noise")
        payload = handshake.read_message(await _read_message(tcp, MAX_HANDSHAKE_MESSAGE))
        proof = read_payload(payload, handshake.remote_static)
        if proof.peer_id != peer_id:
            raise _WrongPeerError(proof.peer_id)
        tcp.write(_framed(handshake.write_message(self._payload)))
        channel = NoiseChannel(tcp, *handshake.split())
        if YAMUX not in proof.muxers and not await propose(channel, YAMUX):
            raise RemoteProtocolError("the peer does not speak yamux")
        return channel

    async def accepted(
        self, tcp: RawChannel, turn: Callable[[], Awaitable[None]]
    ) -> tuple[NoiseChannel, str]:
        """The channel to the peer that has dialled us, and its proven peer id. ``turn`` is awaited before
        the costly part. Raises as ``dialled``, or what ``turn`` raises."""
        await answer(tcp, self._takes.__contains__)
        first = await _read_message(tcp, KEY_BYTES)
        await turn()
        handshake = XXHandshake(self._static, initiator=False)
        handshake.read_message(first)
        tcp.write(_framed(handshake.write_message(self._payload)))
        payload = handshake.read_message(await _read_message(tcp, MAX_HANDSHAKE_MESSAGE))
        proof = read_payload(payload, handshake.remote_static)
        channel = NoiseChannel(tcp, *handshake.split())
        if YAMUX not in proof.muxers:
            await answer(channel, YAMUX.__eq__)
        return channel, proof.peer_id


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
        case _WrongPeerError():
            return wrong_peer(maddr, error.message, peer_id)
    return no_swarm_peer(maddr)  # it talks, but not libp2p, or not by its rules


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2) + message


async def _read_message(tcp: RawChannel, most: int) -> bytes:
    size = int.from_bytes(await tcp.read_exactly(2))
    if size > most:
        raise RemoteProtocolError(f"a message of {size} bytes in a Noise handshake")
    return await tcp.read_exactly(size)
