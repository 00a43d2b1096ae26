"""The DHT between members of one swarm: every request and every answer carries its sender's credential.

libp2p proves the PeerID of either side of a call, so a credential needs no signature of its own here. It
travels in the field ``auth`` that hivemind's messages have for this use. A peer that is not a member gets an
error and learns nothing. The answer of a peer that is not a member is ignored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto.auth_pb2 import AccessToken

from ...swarm.errors import NotAdmittedError
from ...swarm.membership.membership import Membership
from ...swarm.membership.transport import from_here
from ...swarm.terminal_text import one_line
from ...swarm.types import short_peer_id

logger = logging.getLogger(__name__)

REFUSAL = "not admitted: "
"""A refusal begins with this text, by which a caller that sees only the text knows it."""


class MembersP2P:
    """A ``P2P`` whose protobuf calls are between members; everything else is the daemon's own."""

    def __init__(
        self, p2p: P2P, membership: Membership, own_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._p2p = p2p
        self._membership = membership
        self._own_id = own_id
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._p2p, name)

    async def add_protobuf_handler(
        self, name: str, handler: Callable[..., Any], input_protobuf_type: Any, **options: Any
    ) -> None:
        async def admit(request: Any, context: P2PContext) -> Any:
            peer_id = str(context.remote_id)
            try:
                self._check(peer_id, request.auth.client_access_token)
                credential = self._own_token()
            except NotAdmittedError as error:
                logger.info("event=not_admitted peer=%s message=%r", peer_id, error.message)
                raise PermissionError(REFUSAL + error.message) from None
            response = await handler(request, context)
            response.auth.service_access_token.CopyFrom(credential)
            return response

        await self._p2p.add_protobuf_handler(name, admit, input_protobuf_type, **options)

    async def call_protobuf_handler(
        self, peer_id: PeerID, name: str, input: Any, output_protobuf_type: Any
    ) -> Any:
        """Raises NotAdmittedError if either side is not a member; else as the daemon's."""
        input.auth.client_access_token.CopyFrom(self._own_token())
        response = await self._p2p.call_protobuf_handler(peer_id, name, input, output_protobuf_type)
        self._check(str(peer_id), response.auth.service_access_token)
        return response

    def _own_token(self) -> Any:
        credential = self._membership.credential(self._own_id, self._clock())
        return AccessToken(username=self._membership.tag, signature=credential)

    def _check(self, peer_id: str, token: Any) -> None:
        if token.username != self._membership.tag:
            raise NotAdmittedError(
                f"peer {short_peer_id(peer_id)} is not in this swarm",
                hint="Use the same --swarm name and key on both sides, or join by an invite.",
            )
        self._membership.check(peer_id, token.signature, self._clock())


def refusal_of(error: BaseException, own_id: str) -> NotAdmittedError | None:
    """What an error of a call says about membership, whichever side raised it; None if it is about something
    else. ``own_id``: by which the other side calls us."""
    if isinstance(error, NotAdmittedError):
        return error
    _, found, text = str(error).partition(REFUSAL)
    if not found:
        return None
    said = from_here(one_line(text)[:300].rstrip("')\""), own_id)
    return NotAdmittedError(
        f"the swarm does not admit us: {said}",
        hint="Use the swarm's --swarm name and key, or join by an invite (--join).",
    )
