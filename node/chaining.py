"""What makes a session part of a chain: the link to its next hop when it opens, and REPLAY."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

from ..swarm.errors import ErrorCode, PeerError, SwarmError
from ..swarm.messages import Downstream, ErrorMessage, Opened, Replay
from .forwarder import Forwarder, lost
from .next_hops import NextHops
from .node_session import NodeSession
from .replayer import Replayer


async def make_chain(session: NodeSession, opened: Opened, target: Downstream, hops: NextHops) -> None:
    """Connect a new session to its next hop, then answer its OPEN; without one, results go to the client."""
    forwarder = session.forward()
    try:
        await forwarder.connect(hops, target)
    except SwarmError as error:
        session.owner.post(replace(opened, reason=error.message))
        session.answer_client()
    except asyncio.CancelledError:
        if not session.closed:
            session.owner.post(replace(opened, reason="REPLAY came before the next hop was connected"))
        raise
    else:
        session.owner.post(replace(opened, chained=True, link_us=forwarder.round_trip_us))
        forwarder.go_live()


def replay(session: NodeSession, request: Replay, hops: NextHops) -> Coroutine[None, None, None]:
    """Leave the next hop at once; the rest is to be awaited and ends with REPLAYED or ERROR."""
    forwarder = session.forward()
    forwarder.hold_back(request.step)
    forwarder.replay = Replayer(request, forwarder, session.journal, session.owner)
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
