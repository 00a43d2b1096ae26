"""Errors to messages and back: what we tell a peer, and what its refusal means here."""

from __future__ import annotations

from ..errors import (
    BusyError,
    ErrorCode,
    ModelMismatchError,
    NotAdmittedError,
    PeerError,
    ProtocolError,
    SwarmError,
)
from ..types import short_peer_id
from .messages import Busy, ErrorMessage, Refused


def error_message(
    error: BaseException,
    session: bytes | None = None,
    step: int | None = None,
    *,
    retriable: bool | None = None,
) -> ErrorMessage:
    """The ERROR frame for an error. ``session`` None: it concerns the whole stream.

    Nothing about our insides leaves the process: an error that is not of our tree becomes "internal error".
    """
    if isinstance(error, SwarmError):
        code = getattr(error, "code", ErrorCode.INTERNAL)
        if retriable is None:
            retriable = getattr(error, "retriable", not isinstance(error, ProtocolError))
        return ErrorMessage(session, step, code, error.message, retriable, error.hint)
    return ErrorMessage(session, step, ErrorCode.INTERNAL, "internal error", retriable is not False)


def error_of(message: ErrorMessage | Refused | Busy, peer_id: str) -> SwarmError:
    """The exception for a peer's ERROR, REFUSED or BUSY: a PeerError or ModelMismatchError."""
    name = f"peer {short_peer_id(peer_id)}"
    if isinstance(message, Busy):
        seconds = message.retry_after_ms / 1000
        return BusyError(f"{name} is busy: {message.reason}", retry_after=seconds)
    if message.code is ErrorCode.MODEL_MISMATCH:
        return ModelMismatchError(f"{name}: {message.message}", hint=message.hint)
    if message.code is ErrorCode.NOT_ADMITTED:
        return NotAdmittedError(f"{name}: {message.message}", hint=message.hint)
    retriable, holds = False, None
    if isinstance(message, ErrorMessage):
        retriable, holds = message.retriable, message.holds
    text = f"{name}: {message.message}"
    return PeerError(text, code=message.code, retriable=retriable, hint=message.hint, holds=holds)
