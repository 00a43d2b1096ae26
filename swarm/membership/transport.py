"""A transport whose every stream is between members of one swarm: each side shows its credential first.

Before a protocol's own bytes, each side sends one MEMBER frame. The opener does not wait for the other's:
what it sends next follows at once, and the other's credential is checked before anything of the other is
read, so that this costs no round trip. A peer that opens a stream must not send secrets before it has an
answer. Our protocols send activations only to a session that was opened. The PeerID that a credential must
name is the one that the transport's handshake proved.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated
from weakref import WeakSet

from ..errors import ErrorCode, NetworkError, NotAdmittedError, PeerError, RemoteProtocolError
from ..fairness.shares import Holder, ShareLimits, Shares
from ..links.message_stream import MessageStream
from ..protocol.error_frames import error_message
from ..protocol.fields import ShortBytes, Word
from ..protocol.messages import ErrorMessage, Kind
from ..protocol.schema import MessageSet
from ..protocol.wire import encode_frame
from ..transport.address_groups import address_group
from ..transport.interface import DIAL_TIMEOUT, READ_SIZE, Buffer, Stream, StreamHandler, Transport
from ..types import short_peer_id
from .membership import CLOCK_SLACK_S, MAX_CREDENTIAL_BYTES, KeyedSwarm, Membership

logger = logging.getLogger(__name__)

MEMBER_KIND = 17
HANDSHAKE_S = 5.0
"""Seconds that a peer which opened a stream has to show its credential."""
MAX_HANDSHAKES = 64
"""One peer may have this many streams without a credential shown. More are closed at once."""
MAX_ALL_HANDSHAKES = 512
"""All peers together may have this many. One more ends the oldest of the peer that has most."""
MAX_GREETING_BYTES = 4096
"""Bytes of the MEMBER frame at most. It holds a credential, or an error in its place."""
SWEEP_S = 15.0
"""Seconds between looks for members whose membership has ended."""


@dataclass(frozen=True, slots=True)
class Member:
    """First on a stream, from both sides: the swarm's tag, and what proves that the sender belongs to it."""

    swarm: Annotated[str, Word(re.compile(r"[0-9a-f]{32}"), "a swarm's tag of 32 hex characters")]
    credential: Annotated[bytes, ShortBytes(MAX_CREDENTIAL_BYTES)] = b""


_MESSAGES = MessageSet({MEMBER_KIND: Member, Kind.ERROR: ErrorMessage})


class MembersTransport:
    """``transport``, for members of one swarm only; implements Transport. ``clock``: Unix time."""

    def __init__(
        self, transport: Transport, membership: Membership, clock: Callable[[], float] = time.time
    ) -> None:
        self._transport = transport
        self._membership = membership
        self._clock = clock
        self._handshakes = Shares(ShareLimits(MAX_ALL_HANDSHAKES, per_peer=MAX_HANDSHAKES))
        self._greeted: dict[Stream, Holder] = {}  # that have not shown one yet, the oldest first
        self._bounded: WeakSet[MemberStream] = WeakSet()  # with members whose time will be over
        self._sweeping: asyncio.TimerHandle | None = None
        self.refused = 0  # peers' streams, since the start

    @property
    def peer_id(self) -> str:
        return self._transport.peer_id

    @property
    def is_keyed(self) -> bool:
        """True if the swarm has a key: every member was then let in by a holder of the key."""
        return isinstance(self._membership, KeyedSwarm)

    async def maddrs(self) -> tuple[str, ...]:
        return await self._transport.maddrs()

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        async def accept(stream: Stream) -> None:
            if (admitted := await self._admit(stream)) is not None:
                await handler(admitted)

        await self._transport.serve(protocol_id, accept)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        """As Transport's, or NotAdmittedError if our own membership is over; the stream's ``read`` raises
        NotAdmittedError if the peer is not a member, or refuses us."""
        handshake = self._own_handshake()
        stream = await self._transport.open_stream(peer_id, protocol_id, maddrs, timeout, lazy=lazy)
        try:
            stream.write(handshake)
        except BaseException:
            stream.close()
            raise
        return MemberStream(self, stream)

    async def check(self, remote_maddr: str = "") -> None:
        await self._transport.check(remote_maddr)

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        await self._transport.close()

    # Greeting.

    def _own_handshake(self) -> list[Buffer]:
        credential = self._membership.credential(self._transport.peer_id, self._clock())
        return [*encode_frame(_MESSAGES.encode(Member(self._membership.tag, credential)))]

    async def _admit(self, stream: Stream) -> Stream | None:
        """The stream behind the greetings; None if the peer was told that it is not admitted."""
        peer_id = stream.peer_id
        if not self._begin_greeting(stream):
            return None
        messages: MessageStream[Member | ErrorMessage] = MessageStream(stream, _MESSAGES, MAX_GREETING_BYTES)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                member = await messages.receive()
            until = self.checked(peer_id, member)
            stream.write(self._own_handshake())
        except TimeoutError:
            logger.info("event=not_admitted peer=%s message='it showed no credential in time'", peer_id)
            return None
        except NotAdmittedError as error:
            await self._refuse(messages, error)
            return None
        except RemoteProtocolError:
            await self._refuse(messages, _stranger(peer_id))
            return None
        except NetworkError:
            return None
        finally:
            self._end_greeting(stream)
        admitted = MemberStream(self, stream, messages)
        self.watch(admitted, until)
        return admitted

    def _begin_greeting(self, stream: Stream) -> bool:
        holder = Holder(stream.peer_id, address_group(stream.remote_maddr))
        if self._handshakes.take(holder):
            loser = self._handshakes.loser(holder)
            if loser is None or self._handshakes.of_peer(holder) >= MAX_HANDSHAKES:
                return False
            oldest = next(each for each, whose in self._greeted.items() if whose == loser)
            oldest.close()
            self._end_greeting(oldest)
            self._handshakes.take(holder)
        self._greeted[stream] = holder
        return True

    def _end_greeting(self, stream: Stream) -> None:
        """Idempotent."""
        if (holder := self._greeted.pop(stream, None)) is not None:
            self._handshakes.give_back(holder)

    async def _refuse(self, messages: MessageStream[Member | ErrorMessage], error: NotAdmittedError) -> None:
        self.refused += 1
        logger.info("event=not_admitted peer=%s message=%r", messages.peer_id, error.message)
        await messages.close_with(error_message(error))

    def checked(self, peer_id: str, said: Member | ErrorMessage) -> float:
        """Until when the peer is a member. Raises NotAdmittedError."""
        if isinstance(said, ErrorMessage):
            if said.code is ErrorCode.NOT_ADMITTED:
                why = from_here(said.message, self._transport.peer_id)
                raise NotAdmittedError(
                    f"peer {short_peer_id(peer_id)} does not admit us: {why}", hint=said.hint
                )
            if said.code in (ErrorCode.UNKNOWN_KIND, ErrorCode.BAD_FRAME):
                raise _outsider(peer_id)
            raise PeerError(
                f"peer {short_peer_id(peer_id)}: {said.message}",
                code=said.code,
                retriable=said.retriable,
                hint=said.hint,
            )
        if said.swarm != self._membership.tag:
            raise NotAdmittedError(
                f"peer {short_peer_id(peer_id)} belongs to another swarm",
                hint="Use the same --swarm name and key on both sides, or join by an invite (--join).",
            )
        return self._membership.check(peer_id, said.credential, self._clock())

    # Members whose time is over.

    def watch(self, stream: MemberStream, until: float) -> None:
        """End the stream some time after ``until``."""
        stream.until = until
        if until != math.inf:
            self._bounded.add(stream)
            if self._sweeping is None:
                self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self.sweep)

    def sweep(self) -> None:
        """End the streams with peers whose membership is over. Called every SWEEP_S."""
        now = self._clock()
        for stream in list(self._bounded):
            if stream.until + CLOCK_SLACK_S < now:
                self._bounded.discard(stream)
                logger.info("event=membership_over peer=%s", stream.peer_id)
                stream.close()
        self._sweeping = None
        if self._bounded:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self.sweep)


class MemberStream:
    """A stream after the greeting; implements Stream. It adds no cost once the other's greeting is read.

    ``admitted``: the other's greeting was read by these, whose unread bytes come first.
    """

    def __init__(
        self,
        transport: MembersTransport,
        stream: Stream,
        admitted: MessageStream[Member | ErrorMessage] | None = None,
    ) -> None:
        self._transport = transport
        self._stream = stream
        self._messages = admitted or MessageStream(stream, _MESSAGES, MAX_GREETING_BYTES)
        self._rest = b"" if admitted is None else admitted.unread()
        self._greeted = admitted is not None
        self.until = math.inf  # Unix time at which the other's membership ends
        self.peer_id = stream.peer_id
        self.drain = stream.drain
        self.close = stream.close
        self._step_aside()

    @property
    def remote_maddr(self) -> str:
        return self._stream.remote_maddr

    def write(self, buffers: Iterable[Buffer]) -> None:
        self._stream.write(buffers)

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        if not self._greeted:
            await self._greet()
        if self._rest:
            data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
            self._step_aside()
            return data
        return await self._stream.read(max_bytes)

    async def _greet(self) -> None:
        """Read the other's greeting. Raises NotAdmittedError, or as ``read``."""
        try:
            said = await self._messages.receive()
            until = self._transport.checked(self.peer_id, said)
        except RemoteProtocolError:
            self.close()
            raise _outsider(self.peer_id) from None
        except PeerError:
            self.close()
            raise
        self._greeted = True
        self._rest = self._messages.unread()
        self._transport.watch(self, until)
        self._step_aside()

    def _step_aside(self) -> None:
        if self._greeted and not self._rest:
            self.read = self._stream.read  # type: ignore[method-assign]
        self.write = self._stream.write  # type: ignore[method-assign]


def from_here(message: str, own_id: str) -> str:
    """What another peer says, who calls us by our id: people here do not know it."""
    own = f"peer {short_peer_id(own_id)}"
    return message.replace(own, f"{own} (this process)", 1)


def _stranger(peer_id: str) -> NotAdmittedError:
    return NotAdmittedError(
        f"peer {short_peer_id(peer_id)} showed no credential, and this swarm admits members only",
        hint="Join it by an invite of one of its members: --join INVITE.",
    )


def _outsider(peer_id: str) -> NotAdmittedError:
    return NotAdmittedError(
        f"peer {short_peer_id(peer_id)} is not a member of this swarm",
        hint="It runs without --swarm, or speaks something else; check the addresses given.",
    )
