"""Every error the project raises, in one tree.

    SwarmError                      anything we can explain to a person
    ├── UsageError                  an option, argument or call is wrong            exit 2
    │   ├── PromptTooLongError      a prompt does not fit the model's context
    │   └── MemoryShortError        what was to be loaded does not fit (node/resources)
    ├── ModelError                  the model itself is the problem                 exit 3
    │   ├── CheckpointError         file missing, damaged, or not what it says
    │   │   ├── ChatTemplateError   the chat template is damaged, or takes more than it may
    │   │   ├── AbsentError         bytes of it were never fetched (shards/formats/files/mapped_file)
    │   │   ├── IncompleteError     pieces have to be fetched first (shards/checkpoint/stored)
    │   │   ├── ForgedError         its pieces are of another file (shards/checkpoint/stored)
    │   │   ├── MissingFileError    the hub's repository has no such file (shards/checkpoint/hub_repo)
    │   │   └── DamagedError        a file of the hub's cache is another (shards/checkpoint/hub_weights)
    │   ├── ModelNotFoundError      no model of this name (shards/checkpoint/lookup)
    │   ├── UnsupportedModelError   a family, tensor type or option we cannot run
    │   └── ModelMismatchError      a peer serves another model under this name
    ├── NetworkError                the network is the problem                      exit 4
    │   ├── ListenError             cannot listen (port in use, address not ours)
    │   ├── PeerUnreachableError    a peer cannot be dialled
    │   │   ├── NotSpokenError      it is there, and does not speak what it was asked in
    │   │   ├── PeerSparedError     nor was it: too many peers say that they are where it is
    │   │   └── HiddenDialError     nor is it public why (swarm/links/guarded_dials)
    │   ├── StreamClosedError       the peer closed the stream
    │   │   └── LocalNetworkError   our own end of it is gone (p2pd died or hung): no peer's fault
    │   ├── PeerTimeoutError        the peer did not answer in time
    │   │   ├── PeerLateError       others were there before: it may only be slow
    │   │   ├── PeerMuteError       it answers PING, and not what it was asked
    │   │   └── TrialLostError      it took too long for a trial
    │   ├── OpenFilesError          this process has no descriptor left: ask again later
    │   ├── HubBusyError            the hub asks us to wait (shards/checkpoint/hub_answers)
    │   ├── HopFailedError          a hop of a route cannot go on, or begin
    │   ├── EdgeFailedError         two living hops of a route do not work together
    │   ├── ReplayRefusedError      a hop cannot replay its journal
    │   └── BrokenError             a route is broken, and it is not known yet where
    ├── RouteError                  no route covers the model now                   exit 5
    │   └── NoRouteError            which blocks are missing (swarm/routing/best_route)
    ├── ProtocolError               somebody broke the wire protocol                exit 6
    │   ├── RemoteProtocolError     the peer did (never trust it further)
    │   └── LocalProtocolError      we did (a bug of ours)
    │       └── CodecRangeError     sound values do not fit into the chosen wire codec  exit 2
    ├── PeerError                   a peer answered with a typed error frame        exit 6
    │   ├── NotAdmittedError        it or we are not a member of this swarm
    │   ├── BusyError               it has no room now; ``retry_after`` seconds
    │   └── NotAsAnnouncedError     it serves something else than it announced (swarm/links/link)
    ├── OutputError                 standard output cannot be written               exit 7
    │   └── ReaderGoneError         nobody reads it any more: nothing is said       exit 141
    │       └── HungUpError         it is a terminal that was closed                exit 129
    ├── CopiedIdentityError         another machine runs under our identity         exit 8
    ├── OwnNodeError                the node that `run` has started did not begin (node/cli/run/own_node)
    └── ServiceManagerError         systemd or launchd refused (node/cli/service/calls)

A class with a module in brackets is defined there: it carries that room's types, or is raised only there.
Exceptions that never leave their room, such as those inside a repair, are not in the tree.

A message says what was wrong; ``hint`` says what to do about it. Both are shown to people as they are,
so they are whole sentences without a traceback, and at most two lines together.
"""

from __future__ import annotations

import re
from enum import StrEnum


class ErrorCode(StrEnum):
    """The ``code`` of an ERROR or REFUSED frame. Part of the protocol: never rename one."""

    BAD_FRAME = "bad_frame"  # bytes that are no frame, or a header that is not of its message's form
    UNKNOWN_KIND = "unknown_kind"  # a frame kind this version does not know
    UNSUPPORTED_VERSION = "unsupported_version"
    UNSUPPORTED_CODEC = "unsupported_codec"
    UNSUPPORTED = "unsupported"  # a known request that this node does not offer
    MODEL_MISMATCH = "model_mismatch"
    SPAN_NOT_SERVED = "span_not_served"
    UNKNOWN_SESSION = "unknown_session"
    DUPLICATE_SESSION = "duplicate_session"
    SESSION_EXPIRED = "session_expired"  # closed by the node: idle for too long, or its room was needed
    TOO_MANY_SESSIONS = "too_many_sessions"
    OVERLOADED = "overloaded"  # no memory or no place in the queue for a step now
    CONTEXT_EXCEEDED = "context_exceeded"  # more tokens than the session reserved or the model can hold
    BAD_STEP = "bad_step"  # a step number or position that does not fit the session
    BAD_TENSOR = "bad_tensor"  # wrong size, shape, dtype or codec, or values that are not finite
    DRAINING = "draining"
    DOWNSTREAM_LOST = "downstream_lost"  # the hop after this one cannot be reached from here (any more)
    UPSTREAM_LOST = "upstream_lost"  # the hop before this one has gone, or broke the protocol
    JOURNAL_LOST = "journal_lost"  # the journal does not reach back as far as a replay needs
    CACHE_LOST = "cache_lost"  # what a step or a fork needs of earlier tokens was let go: feed a new session
    DEADLINE = "deadline"
    NOT_ADMITTED = "not_admitted"  # the peer is not a member of this swarm, or not any more
    INTERNAL = "internal"


class SwarmError(Exception):
    """Base of all. ``str(error)`` is the message; ``hint`` (may be empty) says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def reason_of(error: SwarmError) -> str:
    """One of a few words for what went wrong, to count by: the code that a peer told, or the error's name."""
    if isinstance(cause := getattr(error, "cause", None), SwarmError):
        return reason_of(cause)
    if isinstance(code := getattr(error, "code", None), ErrorCode):
        return code.value
    name = type(error).__name__.removesuffix("Error")
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()


class UsageError(SwarmError):
    exit_code = 2


class PromptTooLongError(UsageError):
    pass


class CopiedIdentityError(SwarmError):
    """Another process uses this process's identity, and began earlier. Starting again does not help."""

    exit_code = 8


class ModelError(SwarmError):
    exit_code = 3


class CheckpointError(ModelError):
    pass


class ChatTemplateError(CheckpointError):
    pass


class UnsupportedModelError(ModelError):
    pass


def other_root_hint(name: str, root: str) -> str:
    """The hint for a process whose files have the same digest as a node's, but not the node's ``root``."""
    return f"One of the two came from a peer that lied. If you trust the node: --model {name}@sha256:{root}"


class ModelMismatchError(ModelError):
    pass


class NetworkError(SwarmError):
    exit_code = 4


class ListenError(NetworkError):
    pass


class PeerUnreachableError(NetworkError):
    pass


class NotSpokenError(PeerUnreachableError):
    pass


class PeerSparedError(PeerUnreachableError):
    pass


class StreamClosedError(NetworkError):
    pass


class LocalNetworkError(StreamClosedError):
    """All streams of this process ended at once, because of this process or its computer. Unless the message
    says that it was given up, the network comes back by itself: what needs it may be tried again at once."""


class OpenFilesError(NetworkError):
    """Says nothing of those who were to be asked."""

    def __init__(
        self,
        message: str = "this process has too many open files",
        *,
        hint: str = "Allow more: ulimit -n 4096, or LimitNOFILE=4096.",
    ) -> None:
        super().__init__(message, hint=hint)


class PeerTimeoutError(NetworkError):
    pass


class PeerLateError(PeerTimeoutError):
    """The peer has not answered yet, and others answered before it. It may only be slow."""


class PeerMuteError(PeerTimeoutError):
    """The peer answers PING, and does not do what it was asked. By its own account it never got the request,
    or it sent an answer that never came."""


class TrialLostError(PeerTimeoutError):
    """A peer took too long for a trial (see ``client.session.trial``)."""


class HopFailedError(NetworkError):
    """A hop cannot go on (or begin); another may. ``cause`` is what happened."""

    def __init__(self, peer_id: str, cause: SwarmError) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.peer_id = peer_id
        self.cause = cause


class EdgeFailedError(NetworkError):
    """Two living hops of a chain, ``number - 1`` and ``number`` of the route, do not work together."""

    def __init__(self, number: int, cause: SwarmError) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.number = number
        self.cause = cause


class ReplayRefusedError(NetworkError):
    """A hop cannot replay its journal; its session is as it was. ``journal_lost``: the rows are not there;
    otherwise it does not reach the next hop."""

    def __init__(self, cause: SwarmError, *, journal_lost: bool) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.cause = cause
        self.journal_lost = journal_lost


class BrokenError(NetworkError):
    """A hop of a route has failed. Look at all of them to see which one, and why."""

    def __init__(self) -> None:
        super().__init__("the route is broken")


class RouteError(SwarmError):
    exit_code = 5


class ProtocolError(SwarmError):
    exit_code = 6


class RemoteProtocolError(ProtocolError):
    """The peer's bytes break the protocol. ``code`` is what to tell it before the stream is closed."""

    def __init__(self, message: str, *, hint: str = "", code: ErrorCode = ErrorCode.BAD_FRAME) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class LocalProtocolError(ProtocolError):
    pass


class CodecRangeError(LocalProtocolError):
    """Sound values do not fit into the wire codec that a person chose."""

    exit_code = 2


class PeerError(SwarmError):
    """A peer's ERROR or REFUSED frame. ``retriable``: the same request may succeed elsewhere or later.
    ``holds``: the position at which the session can go on; None: at none that is known."""

    exit_code = 6

    def __init__(
        self, message: str, *, code: ErrorCode, retriable: bool, hint: str = "", holds: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retriable = retriable
        self.holds = holds


class NotAdmittedError(PeerError):
    """A peer that is not a member of our swarm, or a swarm that does not count us as one."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, code=ErrorCode.NOT_ADMITTED, retriable=False, hint=hint)


class BusyError(PeerError):
    """A peer's BUSY frame: no KV cache or session slot is free now."""

    def __init__(self, message: str, *, retry_after: float, hint: str = "") -> None:
        super().__init__(message, code=ErrorCode.TOO_MANY_SESSIONS, retriable=True, hint=hint)
        self.retry_after = retry_after


class OutputError(SwarmError):
    """The result cannot be written to standard output, for example because the disk is full."""

    exit_code = 7


class ReaderGoneError(OutputError):
    """The reader of standard output has left (``| head``). The exit code is the one that a shell shows for a
    program that SIGPIPE ended."""

    exit_code = 141


class HungUpError(ReaderGoneError):
    """Standard output is a terminal that was closed. The exit code is that of a program that SIGHUP ended,
    which comes at the same time: a write may fail before the signal is heard."""

    exit_code = 129
