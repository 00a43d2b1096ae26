"""What makes a session part of a chain: the link to its next hop when it opens, and REPLAY."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace

from ...swarm.errors import ErrorCode, PeerError, SwarmError
from ...swarm.protocol.messages import Downstream, ErrorMessage, Opened, Replay
from .forwarder import Forwarder, lost
from .next_hops import NextHops
from .replay import Replayer
from .session import NodeSession


def make_chain(
    session: NodeSession, opened: Opened, target: Downstream, hops: NextHops
) -> Coroutine[None, None, None]:
    """Connect a new session to its next hop, then answer its OPEN; without one, results go to the client."""
    session.opened = opened
    return _connect(session, target, session.forward(), hops)


async def _connect(session: NodeSession, target: Downstream, forwarder: Forwarder, hops: NextHops) -> None:
    try:
        await forwarder.connect(hops, target)
    except SwarmError as error:
        _answer_open(session, chained=False, reason=error.message)
        session.answer_client()
    else:
        _answer_open(session, chained=True, link_us=forwarder.round_trip_us)
        forwarder.go_live()


def _answer_open(session: NodeSession, *, chained: bool, link_us: int = 0, reason: str = "") -> None:
    opened, session.opened = session.opened, None
    if opened is not None:
        session.owner.post(replace(opened, chained=chained, link_us=link_us, reason=reason))


def replay(session: NodeSession, request: Replay, hops: NextHops) -> Coroutine[None, None, None]:
    """Leave the next hop at once; the rest is to be awaited and ends with REPLAYED or ERROR."""
    _answer_open(session, chained=False, reason="REPLAY came before the next hop was connected")
    forwarder = session.forward()
    forwarder.hold_back(request.step)

    def used() -> None:
        session.last_used = hops.now()

    forwarder.replay = Replayer(request, forwarder, session.journal, session.owner, used)
    return _run(session, request, forwarder, forwarder.replay, hops)


async def _run(
    session: NodeSession, request: Replay, forwarder: Forwarder, replayer: Replayer, hops: NextHops
) -> None:
    try:
        replayed = await replayer.run(hops)
    except SwarmError as error:
        forwarder.close()
        if isinstance(error, PeerError) and error.code is ErrorCode.JOURNAL_LOST:
            told = ErrorMessage(session.id, None, error.code, error.message, False, error.hint)
        else:
            told = lost(session.id, error)
        session.owner.post(told)
    else:
        if request.to is None:
            session.answer_client()
        session.owner.post(replayed)
    finally:
        if forwarder.replay is replayer:
            forwarder.replay = None
