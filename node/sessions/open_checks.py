"""Whether a session can be opened as asked at all: a function of the request and what the node offers."""

from __future__ import annotations

from ...swarm.boundaries import may_serve, span_around
from ...swarm.codecs.codec import Codec
from ...swarm.codecs.kinds import codec_named
from ...swarm.errors import ErrorCode, RemoteProtocolError
from ...swarm.protocol.messages import Open, Refused
from .handshake import Terms
from .session import NodeSession


def checked_open(
    request: Open, parent: NodeSession | None, *, terms: Terms, draining: bool, context_tokens: int
) -> tuple[Codec, Codec] | Refused:
    """The codecs of what comes in and of what goes out, or why not, however long one waits. ``parent``: the
    session to fork, if it is open."""

    def refused(code: ErrorCode, message: str, hint: str = "") -> Refused:
        return Refused(request.session, code, message, hint)

    if draining:
        return refused(
            ErrorCode.DRAINING, "this node is leaving and takes no new sessions", "Use another peer."
        )
    if not terms.span.covers(request.span):
        return refused(
            ErrorCode.SPAN_NOT_SERVED,
            f"blocks {request.span} are not served here; this node has {terms.span}",
        )
    if not may_serve(request.span, cuts := terms.boundaries.cuts):
        return refused(
            ErrorCode.SPAN_NOT_SERVED,
            f"blocks {request.span} cannot be computed alone: some blocks read the keys and values of others",
            f"The nearest blocks that can: {span_around(request.span, cuts)}.",
        )
    try:
        codecs = _codecs_of(request, terms)
    except RemoteProtocolError as error:
        return refused(error.code, error.message, error.hint)
    if request.batch != 1:
        return refused(
            ErrorCode.UNSUPPORTED,
            f"a batch of {request.batch} sequences in one session is not offered",
            "Open one session for each sequence; a fork shares what they have in common.",
        )
    if request.max_tokens > context_tokens:
        return refused(
            ErrorCode.CONTEXT_EXCEEDED,
            f"{request.max_tokens} tokens asked for, but the model holds {context_tokens}",
        )
    if request.parent is not None:
        code, problem, hint = _fork_problem(request, parent)
        if problem:
            return refused(code, f"cannot fork session {request.parent.hex()}: {problem}", hint)
    return codecs


def _codecs_of(request: Open, terms: Terms) -> tuple[Codec, Codec]:
    """Of what comes in and of what goes out: all that we speak, also if we have told the client of fewer, as
    its link may be older than that. Raises RemoteProtocolError (UNSUPPORTED_CODEC)."""

    def named(name: str, boundary: int) -> Codec:
        return codec_named(name, terms.boundaries.widths[boundary], request.scales)

    return named(request.codec, request.span.start), named(request.reply_codec, request.span.end)


def _fork_problem(request: Open, parent: NodeSession | None) -> tuple[ErrorCode, str, str]:
    """Code, what is wrong ("" if nothing), and what to do."""
    if parent is None:
        return ErrorCode.UNKNOWN_SESSION, "it is not open on this stream", "Fork it where it was opened."
    origin = parent.request
    if request.span != origin.span:
        return ErrorCode.UNSUPPORTED, f"it has blocks {origin.span}, not {request.span}", ""
    if (request.codec, request.reply_codec) != (origin.codec, origin.reply_codec):
        return ErrorCode.UNSUPPORTED, f"it speaks codecs {origin.codec} and {origin.reply_codec}", ""
    if request.parent_tokens > parent.sequence.settled:
        return (
            ErrorCode.BAD_STEP,
            f"{parent.sequence.settled} of {request.parent_tokens} tokens are there and answered",
            "Await the answers to its steps first.",
        )
    if not parent.sequence.keeps(request.parent_tokens, request.max_tokens):
        return (
            ErrorCode.CACHE_LOST,
            f"what a session of {request.max_tokens} tokens sees of its first {request.parent_tokens} is not "
            "there",
            "Feed the tokens to a new session.",
        )
    return ErrorCode.BAD_STEP, "", ""
