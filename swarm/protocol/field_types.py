"""The fields of the wire protocol's messages: their types, their bounds, and the values that have parts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import ErrorCode
from ..figures import MAX_LINE_BYTES_PER_S, MAX_RTT_US, MAX_SESSIONS, MAX_STEP_US
from ..types import MAX_RECORD_BYTES, MAX_SCALES, SignedRecord, Span
from .fields import (
    Blob,
    Boolean,
    Choice,
    Count,
    FieldError,
    FieldType,
    Integer,
    Maybe,
    Prose,
    Sequence,
    ShortBytes,
    SpanField,
    Word,
)

MAX_TOKENS = 2**31 - 1
"""The largest count of tokens, position or length in tokens."""
MAX_COUNTER = 2**53 - 1
"""The largest step number or nonce: it is exact in every language's numbers."""
MIN_MAX_FRAME = 1024
MAX_HELLO_FRAME = 4096
"""Bytes of a whole HELLO at most: a peer that has not said what it wants may send no larger frame."""
MAX_TEXT = 500
"""Characters of a message or hint for people at most."""
MAX_RETRY_MS = 3_600_000
MAX_PREFIX_PAGES = 1024
"""OPEN and CLOSE may name at most this many KV pages. They fit into a header, and cover any usual context."""
PAGE_TOKENS = 32
"""One name of a prefix stands for this many tokens, at every node and client that keeps prefixes."""
MAX_PAGE_TOKENS = 4096
MAX_ROW = 2**20
"""A peer may say that a row has this many values: more than any model hands over."""
MAX_CHAIN = 256
"""At most this many hops of a chain say what a step has cost them."""
BATCH_SCALE = 100
"""PONG counts its mean batch size in hundredths."""
MAX_ABOUT = 64
"""One PING asks about at most this many sessions. Those that wait longest come first."""
MAX_BRANCHES = 48
"""Branches of one step, and rows of one branch, at most."""
MAX_MEMBERS = 64
"""At most this many steps or results go in one frame: as many sessions as a batch has."""

_PEER_ID = Word(re.compile(r"[1-9A-HJ-NP-Za-km-z]{1,128}"), "a peer id in base58")
_CODEC = Word(re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}"), "a codec's name")

SessionId = Annotated[bytes, Blob(16)]
Tokens = Annotated[int, Integer(0, MAX_TOKENS)]
SomeTokens = Annotated[int, Integer(1, MAX_TOKENS)]
Counter = Annotated[int, Integer(0, MAX_COUNTER)]
MAX_BATCH = 0xFFFF
_STEP_US = Count(MAX_STEP_US)
_BATCH = Count(MAX_BATCH)
StepMicroseconds = Annotated[int, _STEP_US]
RoundTripMicroseconds = Annotated[int, Count(MAX_RTT_US)]
Sessions = Annotated[int, Count(MAX_SESSIONS)]
Text = Annotated[str, Prose(MAX_TEXT)]
Agent = Annotated[str, Prose(128)]
CodecName = Annotated[str, _CODEC]
CodecNames = Annotated[tuple[str, ...], Sequence(_CODEC, 1, 16)]
WayName = Annotated[str, Word(re.compile(r"[a-z]{0,16}"), "a way's name, or empty")]
Digest = Annotated[str, Word(re.compile(r"[0-9a-f]{64}"), "a digest of 64 hex characters")]
AnyDigest = Annotated[str, Word(re.compile(r"([0-9a-f]{64})?"), "a digest of 64 hex characters, or empty")]
OptionalRoot = Annotated[str, Word(re.compile(r"([0-9a-f]{64})?"), "a root of 64 hex characters, or empty")]
Parts = Annotated[str, Word(re.compile(r"[0-9a-f]{0,64}"), "up to 64 hex characters")]
FrameSize = Annotated[int, Integer(MIN_MAX_FRAME, 2**32 + 2**17)]
Blocks = Annotated[Span, SpanField()]
OptionalPeerId = Annotated[
    str, Word(re.compile(r"[1-9A-HJ-NP-Za-km-z]{0,128}"), "a peer id in base58, or empty")
]
LineRate = Annotated[int, Count(MAX_LINE_BYTES_PER_S)]
RowWidth = Annotated[int, Integer(0, MAX_ROW)]
Members = Annotated[int, Integer(0, 0xFFFF)]
Flag = Annotated[bool, Boolean()]
Features = Annotated[tuple[str, ...], Sequence(Word(re.compile(r"[a-z]{1,16}"), "a feature's name"), 0, 16)]
Branches = Annotated[
    tuple[tuple[int, int], ...], Sequence(Sequence(Integer(0, MAX_BRANCHES), 2, 2), 0, MAX_BRANCHES)
]
"""(row, count) of each branch of a step: see ``Step``."""
Scales = Annotated[bytes, ShortBytes(MAX_SCALES)]
"""A table of scales, an int8 for each channel; empty: none."""
EdgeScales = Annotated[tuple[bytes, ...], Sequence(ShortBytes(MAX_SCALES), 0, 2)]
PrefixHashes = Annotated[tuple[bytes, ...], Sequence(Blob(32), 0, MAX_PREFIX_PAGES)]
Code = Annotated[ErrorCode, Choice(ErrorCode, unknown=ErrorCode.INTERNAL)]


class SpentField:
    """What each hop has spent on a step: an array of arrays of four on the wire. It is in every step of a
    chain, so what fits as it is does not go through the fields' types one by one."""

    one_by_one = Sequence(Sequence(_STEP_US, 4, 4), 0, MAX_CHAIN)

    def read(self, value: Any) -> tuple[object, ...]:
        return tuple(map(tuple, value)) if self._fits(value, list) else self.one_by_one.read(value)

    def write(self, value: Any) -> list[object]:
        return [*map(list, value)] if self._fits(value, tuple) else self.one_by_one.write(value)

    @staticmethod
    def _fits(value: Any, kind: type[Any]) -> bool:
        if type(value) is not kind or not 0 < len(value) <= MAX_CHAIN:
            return False
        numbers: list[Any] = []
        for hop in value:
            if type(hop) is not kind or len(hop) != 4:
                return False
            numbers += hop
        high = _STEP_US.high
        return set(map(type, numbers)) == {int} and min(numbers) >= 0 and max(numbers) <= high


Spent = Annotated[tuple[tuple[int, int, int, int], ...], SpentField()]
"""(queue_us, compute_us, codec_us, batch) of each hop that a step has passed."""


@dataclass(frozen=True, slots=True)
class Downstream:
    """A session at a peer that the receiver may have to dial: the peer's id, and its own record, which says
    where it listens."""

    peer_id: str
    session: bytes
    record: SignedRecord | None = None


class RecordField:
    """A SignedRecord: an array of its expiration, a float, and its value."""

    _expected = f"a record: a time, and at most {MAX_RECORD_BYTES} bytes"

    def read(self, value: object) -> SignedRecord:
        if isinstance(value, list) and len(value) == 2:
            expiration, record = value
            timed = type(expiration) is float and math.isfinite(expiration)
            if timed and type(record) is bytes and len(record) <= MAX_RECORD_BYTES:
                return SignedRecord(expiration, record)
        raise FieldError(self._expected, value)

    def write(self, value: object) -> list[object]:
        if not isinstance(value, SignedRecord) or len(value.value) > MAX_RECORD_BYTES:
            raise FieldError(self._expected, value)
        return [value.expiration, value.value]


class DownstreamField:
    """A Downstream: a map with ``peer_id``, ``session`` and ``record`` on the wire."""

    _types: tuple[tuple[str, FieldType], ...] = (
        ("peer_id", _PEER_ID),
        ("session", Blob(16)),
        ("record", Maybe(RecordField())),
    )

    def read(self, value: object) -> Downstream:
        if not isinstance(value, dict):
            raise FieldError("a map with peer_id, session and record", value)
        return Downstream(**{name: _inside(name, type_.read, value.get(name)) for name, type_ in self._types})

    def write(self, value: object) -> dict[str, object]:
        if not isinstance(value, Downstream):
            raise FieldError("a Downstream", value)
        return {name: _inside(name, type_.write, getattr(value, name)) for name, type_ in self._types}


def _inside(name: str, convert: Callable[[object], Any], value: object) -> Any:
    try:
        return convert(value)
    except FieldError as error:
        raise error.inside(f".{name}") from None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a node has of one session: the numbers of the last step that it ``received`` and of the last that
    is ``done``, that is answered, sent on or refused (0: none). ``work`` changes whenever something was
    computed or replayed for the session. ``busy``: OPEN or REPLAY is not answered yet."""

    session: bytes
    received: int
    done: int
    work: int
    busy: bool


class ProgressField:
    """A Progress: an array of its fields, in their order, on the wire."""

    _types: tuple[FieldType, ...] = (Blob(16), *(Integer(0, MAX_COUNTER),) * 3, Boolean())

    def read(self, value: object) -> Progress:
        if not isinstance(value, list) or len(value) != len(self._types):
            raise FieldError("an array [session, received, done, work, busy]", value)
        items = zip(self._types, value, strict=True)
        return Progress(*(_inside(f"[{n}]", type_.read, item) for n, (type_, item) in enumerate(items)))

    def write(self, value: object) -> list[object]:
        if not isinstance(value, Progress):
            raise FieldError("a Progress", value)
        fields = (value.session, value.received, value.done, value.work, value.busy)
        items = zip(self._types, fields, strict=True)
        return [_inside(f"[{n}]", type_.write, item) for n, (type_, item) in enumerate(items)]
