"""The messages of the wire protocol, strictly typed, and their translation to frames and back.

A message is a frozen dataclass whose fields carry their wire type and bounds in the annotation. A field with
a default is optional on the wire; fields that we do not know are ignored, so that later versions may add
some.
``session`` is 16 random bytes chosen by the client. Times are relative: peers' clocks are never compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

from ..figures import MAX_JOURNAL_BYTES, MAX_KV_TOKENS, TOKENS_PER_S
from ..types import MAX_BLOCKS, NodeState
from .field_types import (
    _BATCH,
    BATCH_SCALE,
    MAX_ABOUT,
    MAX_BATCH,
    MAX_COUNTER,
    MAX_MEMBERS,
    MAX_PAGE_TOKENS,
    MAX_RETRY_MS,
    Agent,
    AnyDigest,
    Blocks,
    Branches,
    Code,
    CodecName,
    CodecNames,
    Counter,
    Digest,
    Downstream,
    DownstreamField,
    EdgeScales,
    Features,
    Flag,
    FrameSize,
    LineRate,
    Members,
    OptionalPeerId,
    OptionalRoot,
    Parts,
    PrefixHashes,
    Progress,
    ProgressField,
    RoundTripMicroseconds,
    RowWidth,
    Scales,
    SessionId,
    Sessions,
    SomeTokens,
    Spent,
    StepMicroseconds,
    Text,
    Tokens,
    WayName,
)
from .fields import Blob, Boolean, Choice, Count, Integer, Maybe, Sequence
from .schema import MessageSet
from .wire import Frame, Payload

FEATURES = ("void", "branches")
"""What a WELCOME may say besides: VOID and STEP's ``void``; STEP's ``branches``."""


class Kind(IntEnum):
    """A frame's kind byte. Part of the protocol: never renumber one."""

    HELLO = 1
    WELCOME = 2
    OPEN = 3
    OPENED = 4
    BUSY = 5
    REFUSED = 6
    STEP = 7
    RESULT = 8
    REPLAY = 9
    CLOSE = 10
    PING = 11
    PONG = 12
    ERROR = 13
    REPLAYED = 14
    ATTACH = 15
    ATTACHED = 16
    STEPS = 18  # 17 is MEMBER (swarm/membership/transport.py)
    RESULTS = 19
    VOID = 20


class Want(IntEnum):
    """Which tokens' hidden states a STEP asks back."""

    NOTHING = 0
    LAST = 1
    ALL = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """Client to node, first on a stream: what the client speaks, and its model. ``digest`` "" accepts any.
    ``members``: as many results it takes in one RESULTS frame; 0: none.
    ``parts`` and ``root``: as in ``ModelRef``."""

    versions: Annotated[tuple[int, ...], Sequence(Integer(1, 0xFFFF), 1, 16)]
    digest: AnyDigest
    codecs: CodecNames
    max_frame: FrameSize
    agent: Agent
    parts: Parts = ""
    root: OptionalRoot = ""
    members: Members = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    """The node's answer to HELLO: the version it chose and what it serves.

    ``page_tokens``: how many tokens one name in a ``prefix`` stands for; 0 where prefixes are not kept.
    ``root``: as in HELLO. ``members``: as many steps it takes in one STEPS frame; 0: none. ``row_width``
    and ``reply_width``: values of a row that enters at the span's start, and of one that leaves at its end; 0
    where it does not say. ``scales``: the table with which it wants rows that enter at the span's start,
    empty for none. ``line``: bytes a second that its line is limited to, up or down, whichever is less; 0: it
    is not. ``features``: what else it understands, of FEATURES; names that we do not know are ignored.
    """

    version: Annotated[int, Integer(1, 0xFFFF)]
    digest: Digest
    span: Blocks
    codecs: CodecNames
    max_frame: FrameSize
    agent: Agent
    max_step_tokens: SomeTokens
    n_blocks: Annotated[int, Integer(1, MAX_BLOCKS)]
    page_tokens: Annotated[int, Integer(0, MAX_PAGE_TOKENS)] = 0
    root: OptionalRoot = ""
    members: Members = 0
    row_width: RowWidth = 0
    reply_width: RowWidth = 0
    scales: Scales = b""
    line: LineRate = 0
    features: Features = ()

    def problem(self) -> str:
        return f"span {self.span} is outside {self.n_blocks} blocks" if self.span.end > self.n_blocks else ""


@dataclass(frozen=True, slots=True)
class Open:
    """Open a session on a hop: reserve KV cache for ``max_tokens`` in ``span``.

    ``codec`` is of the STEP payloads that come, ``reply_codec`` of what is sent on or back. ``hop`` of
    ``hops`` is the place in the route, ``prefix`` the client's names of leading KV pages that the node may
    hold for it already. ``parent`` is a session of this stream, of the same span and codecs, whose first
    ``parent_tokens`` tokens the new session begins with: a fork.

    A chain: results go as STEPs to ``downstream`` (None: back on this stream, as RESULTs), STEPs come from
    the peer ``upstream`` ("": on this stream). Everything else, such as errors, CLOSE and the RESULTs of the
    last hop, is between this stream's client and the node.
    ``journal``: keep what is sent, for REPLAY. ``scales``: the tables that the codecs name.
    """

    session: SessionId
    span: Blocks
    max_tokens: SomeTokens
    codec: CodecName
    reply_codec: CodecName
    batch: Annotated[int, Integer(1, 4096)] = 1
    hop: Annotated[int, Integer(0, MAX_BLOCKS - 1)] = 0
    hops: Annotated[int, Integer(1, MAX_BLOCKS)] = 1
    downstream: Annotated[Downstream | None, Maybe(DownstreamField())] = None
    prefix: PrefixHashes = ()
    parent: Annotated[bytes | None, Maybe(Blob(16))] = None
    parent_tokens: Tokens = 0
    upstream: OptionalPeerId = ""
    journal: Flag = False
    scales: EdgeScales = ()

    def problem(self) -> str:
        if self.hop >= self.hops:
            return f"hop {self.hop} is outside a route of {self.hops} hops"
        if self.parent is None:
            return f"parent_tokens is {self.parent_tokens} without a parent" if self.parent_tokens else ""
        if self.parent == self.session:
            return "a session cannot be its own parent"
        if self.parent_tokens > self.max_tokens:
            return f"parent_tokens is {self.parent_tokens}, but max_tokens is {self.max_tokens}"
        return ""


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is open; ``length`` tokens, of its prefix or parent, are in the KV cache already.

    ``chained``: the peer ``downstream`` is connected and gets the results; ``link_us`` is the round trip to
    it, and ``way`` how its streams go there (``transport.direct_maddrs.Way``). Where one was asked for and it
    is not, ``reason`` says why, and results come back on this stream."""

    session: SessionId
    length: Tokens
    max_step_tokens: SomeTokens
    chained: Flag = False
    link_us: RoundTripMicroseconds = 0
    reason: Text = ""
    way: WayName = ""


@dataclass(frozen=True, slots=True)
class Busy:
    """No room for the session now; ``retry_after_ms`` is when the node expects to have some."""

    session: SessionId
    retry_after_ms: Annotated[int, Integer(0, MAX_RETRY_MS)]
    reason: Text


@dataclass(frozen=True, slots=True)
class Refused:
    """The session will not be opened here, now or later."""

    session: SessionId
    code: Code
    message: Text
    hint: Text = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Hidden states of ``tokens`` tokens, the first at ``position``, in the session's codec.

    A ``position`` below the session's length rolls its KV cache back to it. ``deadline_ms``: drop the step if
    it cannot start within this time of its arrival; 0 for none.

    ``want`` is what the last hop of a chain answers; the hops before it send every row on. ``hold``: compute
    and journal, send nothing on; the answer, a RESULT without rows, goes where the step came from. ``spent``:
    (queue_us, compute_us, codec_us, batch) of each hop that the step has passed.

    ``void``: as in VOID, the steps from that number on to this one; 0: none. ``guess``: so many rows at the
    end, branches included, are guesses: they may wait for others' certain rows.
    ``branches``: the last rows, as many as the counts say, are not part of the sequence. Each (row, count) is
    computed as if its ``count`` rows came behind the step's first ``row`` rows, and is forgotten. ``tokens``
    counts them, and ``want`` ALL gives their rows, behind the others. A hop without room for branches leaves
    them out of what it sends on.
    """

    session: SessionId
    step: Counter
    position: Tokens
    tokens: SomeTokens
    want: Annotated[Want, Choice(Want)]
    deadline_ms: Annotated[int, Integer(0, MAX_RETRY_MS)] = 0
    hold: Flag = False
    spent: Spent = ()
    void: Counter = 0
    guess: Tokens = 0
    branches: Branches = ()
    payload: Payload = b""

    def problem(self) -> str:
        if self.void > self.step:
            return f"void is {self.void}, behind step {self.step}"
        if self.guess > self.tokens:
            return f"{self.guess} of {self.tokens} rows are guesses"
        if not self.branches:
            return ""
        chain = self.tokens - sum(count for _, count in self.branches)
        if chain < 1 or any(not count or row > chain for row, count in self.branches):
            return f"branches do not fit {self.tokens} rows"
        return ""


@dataclass(frozen=True, slots=True)
class Void:
    """Client to each hop of a chain, on its own stream: the results of the steps from ``first`` to ``last``
    are not wanted any more. Those not begun are dropped, now and as they come; none is answered or sent on.
    Tokens that they were to feed are fed again, from a position that the hop holds."""

    session: SessionId
    first: Counter
    last: Counter

    def problem(self) -> str:
        return f"last is {self.last}, before first {self.first}" if self.first > self.last else ""


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to STEP: ``tokens`` rows of hidden states, the first at ``position``; branches' come last.

    ``queue_us``, ``compute_us`` and ``codec_us`` say where the time went, ``batch`` with how many sessions
    the step was computed. ``spent``: the same four numbers of each hop before this one, in a chain.
    ``row_us``: what one row more in a step takes here, as measured lately; 0: not known.
    """

    session: SessionId
    step: Counter
    position: Tokens
    tokens: Tokens
    payload: Payload = b""
    queue_us: StepMicroseconds = 0
    compute_us: StepMicroseconds = 0
    codec_us: StepMicroseconds = 0
    batch: Annotated[int, _BATCH] = 1
    spent: Spent = ()
    row_us: StepMicroseconds = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """From now on send results to ``to``, and first of all the journal's rows from ``from_position`` up to
    ``until``, as STEPs with ``hold`` numbered from ``step`` on. ``to`` None: on this stream, as RESULTs.

    Rows that are not computed yet are sent when they are. Answered by REPLAYED, when all are computed over
    there (or sent here), or by ERROR without a step: JOURNAL_LOST or DOWNSTREAM_LOST, the session as it was.
    """

    session: SessionId
    from_position: Tokens
    until: Tokens
    step: Counter
    to: Annotated[Downstream | None, Maybe(DownstreamField())] = None

    def problem(self) -> str:
        if self.from_position > self.until:
            return f"until is {self.until}, before from_position {self.from_position}"
        return ""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The replay asked for is done: ``tokens`` rows in ``payload_bytes`` bytes, in ``took_us`` microseconds.
    ``link_us``, ``way``: of the new downstream."""

    session: SessionId
    tokens: Tokens
    payload_bytes: Annotated[int, Count(MAX_JOURNAL_BYTES)]
    took_us: StepMicroseconds = 0
    link_us: RoundTripMicroseconds = 0
    way: WayName = ""


@dataclass(frozen=True, slots=True)
class Attach:
    """From now on take the session's STEPs only from the peer ``upstream`` ("": from this stream).
    ``unnamed``: others compute them than before, so the names that OPEN gave end with the pages that are
    computed."""

    session: SessionId
    upstream: OptionalPeerId
    unnamed: Flag = False


@dataclass(frozen=True, slots=True)
class Attached:
    """The answer to ATTACH; ``length`` tokens are in the session's KV cache, or on their way into it."""

    session: SessionId
    length: Tokens


@dataclass(frozen=True, slots=True)
class Close:
    """The session is over: free its KV cache.

    ``prefix`` names all whole pages that the session holds, so that the client's next session which begins
    with the same tokens finds them.
    """

    session: SessionId
    prefix: PrefixHashes = ()


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there, and where are the requests of the sessions ``about``? Answered by PONG with the same
    nonce."""

    nonce: Counter
    about: Annotated[tuple[bytes, ...], Sequence(Blob(16), 0, MAX_ABOUT)] = ()


@dataclass(frozen=True, slots=True)
class Pong:
    """Alive, and how busy: open sessions, steps not answered, free KV cache in tokens of the whole span.

    ``running``: sessions in the last batch. ``batch``: the lately usual number of them, in hundredths.
    ``tokens_per_s``: computed over the last seconds. ``queue_us``: how long decode steps lately waited before
    they were computed. ``row_us`` as in RESULT. ``tells``: of the sessions asked about those that were opened
    on this stream, or that its opener may feed.
    """

    nonce: Counter
    sessions: Sessions
    queued: Sessions
    free_kv_tokens: Annotated[int, Count(MAX_KV_TOKENS)]
    state: Annotated[NodeState, Choice(NodeState)]
    running: Sessions = 0
    batch: Annotated[int, Count(BATCH_SCALE * MAX_BATCH)] = 0
    tokens_per_s: Annotated[int, Count(int(TOKENS_PER_S.high))] = 0
    queue_us: StepMicroseconds = 0
    tells: Annotated[tuple[Progress, ...], Sequence(ProgressField(), 0, MAX_ABOUT)] = ()
    row_us: StepMicroseconds = 0


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """What went wrong, for one step, one session (``step`` None) or the whole stream (both None). ``holds``:
    where the session can go on instead of at the step's position; None: nowhere."""

    session: Annotated[bytes | None, Maybe(Blob(16))]
    step: Annotated[int | None, Maybe(Integer(0, MAX_COUNTER))]
    code: Code
    message: Text
    retriable: Annotated[bool, Boolean()]
    hint: Text = ""
    holds: Annotated[int | None, Maybe(Integer(0, MAX_COUNTER))] = None


@dataclass(frozen=True, slots=True)
class Steps:
    """STEPs of several sessions, each of another, whose rows are of one size. Each counts as if it had come
    alone."""

    members: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """RESULTs of several sessions, each of another, whose rows are of one size. Each counts as if it had come
    alone."""

    members: tuple[Result, ...]


Message = (
    Hello
    | Welcome
    | Open
    | Opened
    | Busy
    | Refused
    | Step
    | Result
    | Replay
    | Close
    | Ping
    | Pong
    | ErrorMessage
    | Replayed
    | Attach
    | Attached
    | Steps
    | Results
    | Void
)

MESSAGE_TYPES: dict[Kind, type[Any]] = {
    Kind.HELLO: Hello,
    Kind.WELCOME: Welcome,
    Kind.OPEN: Open,
    Kind.OPENED: Opened,
    Kind.BUSY: Busy,
    Kind.REFUSED: Refused,
    Kind.STEP: Step,
    Kind.RESULT: Result,
    Kind.REPLAY: Replay,
    Kind.CLOSE: Close,
    Kind.PING: Ping,
    Kind.PONG: Pong,
    Kind.ERROR: ErrorMessage,
    Kind.REPLAYED: Replayed,
    Kind.ATTACH: Attach,
    Kind.ATTACHED: Attached,
    Kind.VOID: Void,
}

GROUP_TYPES: dict[Kind, tuple[type[Any], type[Any], int]] = {
    Kind.STEPS: (Steps, Step, MAX_MEMBERS),
    Kind.RESULTS: (Results, Result, MAX_MEMBERS),
}

MESSAGES = MessageSet(MESSAGE_TYPES, GROUP_TYPES)
encode: Callable[[Message], Frame] = MESSAGES.encode
decode: Callable[[Frame], Message] = MESSAGES.decode


def singles(message: Message) -> tuple[Message, ...]:
    """The members of a group one by one; any other message itself."""
    return message.members if isinstance(message, Steps | Results) else (message,)
