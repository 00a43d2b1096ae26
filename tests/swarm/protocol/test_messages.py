from __future__ import annotations

import re
from dataclasses import MISSING, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import (
    BusyError,
    ErrorCode,
    LocalProtocolError,
    ModelMismatchError,
    PeerError,
    RemoteProtocolError,
    UsageError,
)
from swarm_node.swarm.protocol import fields as wire_fields
from swarm_node.swarm.protocol.error_frames import error_message, error_of
from swarm_node.swarm.protocol.field_types import (
    MAX_PREFIX_PAGES,
    MAX_TEXT,
    MAX_TOKENS,
    Downstream,
    DownstreamField,
    Progress,
    ProgressField,
    RecordField,
    SpentField,
)
from swarm_node.swarm.protocol.messages import (
    GROUP_TYPES,
    MESSAGE_TYPES,
    MESSAGES,
    Attach,
    Attached,
    Busy,
    Close,
    ErrorMessage,
    Hello,
    Kind,
    Message,
    Open,
    Ping,
    Pong,
    Refused,
    Replay,
    Replayed,
    Result,
    Step,
    Void,
    Want,
    Welcome,
    decode,
    encode,
)
from swarm_node.swarm.protocol.wire import Frame, FrameParser, encode_frame
from swarm_node.swarm.types import (
    MAX_BLOCKS,
    MAX_RECORD_BYTES,
    MAX_SCALES,
    NodeState,
    SignedRecord,
    Span,
)

SESSION = bytes(range(16))
DIGEST = "ab" * 32
peer_ids = st.text("123ABCabc", min_size=1, max_size=60)


def valid(field: Any) -> st.SearchStrategy[Any]:
    """Values that a field accepts."""
    match field:
        case SpentField():
            return valid(field.one_by_one)
        case wire_fields.Integer():
            return st.integers(field.low, field.high)
        case wire_fields.Count():
            return st.integers(0, field.high)
        case wire_fields.Boolean():
            return st.booleans()
        case wire_fields.Blob():
            return st.binary(min_size=field.size, max_size=field.size)
        case wire_fields.ShortBytes():
            return st.binary(max_size=min(field.limit, 40))
        case wire_fields.Word():
            return st.from_regex(field.pattern, fullmatch=True)
        case wire_fields.Prose():
            return st.text(max_size=field.limit).filter(str.isprintable)
        case wire_fields.Choice():
            return st.sampled_from(list(field.enum))
        case wire_fields.Sequence():
            most = min(field.high, 4)
            return st.lists(valid(field.item), min_size=field.low, max_size=most).map(tuple)
        case wire_fields.SpanField():
            return st.tuples(st.integers(0, 100), st.integers(1, 100)).map(lambda t: Span(t[0], t[0] + t[1]))
        case wire_fields.Maybe():
            return st.none() | valid(field.item)
        case RecordField():
            return st.builds(
                SignedRecord, st.floats(allow_nan=False, allow_infinity=False), st.binary(max_size=99)
            )
        case DownstreamField():
            return st.builds(Downstream, *(valid(type_) for _, type_ in DownstreamField._types))
        case ProgressField():
            return st.builds(Progress, *(valid(type_) for type_ in ProgressField._types))
    raise AssertionError(f"no strategy for {field}")


def invalid(field: Any) -> list[Any]:
    """Wire values that a field must refuse."""
    common: list[Any] = [1.5, float("nan"), [[]], {"x": 1}]
    match field:
        case SpentField():
            return invalid(field.one_by_one)
        case wire_fields.Integer():
            return [*common, None, True, "1", b"1", field.low - 1, field.high + 1]
        case wire_fields.Count():
            return [*common, None, True, "1", b"1", -1, field.high + 1, 2**53 - 1]
        case wire_fields.Boolean():
            return [*common, None, 0, 1, "true"]
        case wire_fields.Blob():
            return [*common, None, "x" * field.size, b"x" * (field.size - 1), b"x" * (field.size + 1), []]
        case wire_fields.ShortBytes():
            return [*common, None, "x", b"x" * (field.limit + 1), []]
        case wire_fields.Word():
            return [*common, None, 1, "\x1b[31m", "x" * 600, "äö", b"none"]
        case wire_fields.Prose():
            return [*common, None, 1, b"text", "x" * (field.limit + 1), "\x1b[31mred", "two\nlines", "\x00"]
        case wire_fields.Choice():
            known = [] if field.unknown is not None else ["no such", 99, -1]
            return [*common, None, True, False, b"x", *known]
        case wire_fields.Sequence():
            wrong_size = [[]] if field.low else []
            return [1.5, None, 1, "abc", b"abc", {}, *wrong_size, *([item] for item in invalid(field.item))]
        case wire_fields.SpanField():
            return [
                *common,
                None,
                [1],
                [1, 2, 3],
                [2, 2],
                [3, 1],
                [-1, 4],
                [0, 5000],
                [0, 1.0],
                [False, True],
            ]
        case wire_fields.Maybe():
            return [value for value in invalid(field.item) if value is not None]
        case RecordField():
            return st.builds(
                SignedRecord, st.floats(allow_nan=False, allow_infinity=False), st.binary(max_size=99)
            )
        case DownstreamField():
            return [
                None,
                1,
                [],
                {},
                {"peer_id": "0OIl", "session": SESSION},
                {"peer_id": "a", "session": b"short"},
                {"peer_id": "a"},
                {"peer_id": "a", "session": SESSION, "record": [1, b""]},
                {"peer_id": "a", "session": SESSION, "record": [1.0, bytes(4097)]},
                {"peer_id": "a", "session": SESSION, "record": [float("nan"), b""]},
                {"session": SESSION, "record": [1.0, b""]},
            ]
        case ProgressField():
            return [
                None,
                [],
                {},
                [SESSION, 1, 1, 1],
                [SESSION, 1, 1, 1, 0],
                [b"short", 1, 1, 1, True],
                [SESSION, -1, 1, 1, True],
                [SESSION, 1, 2**53, 1, True],
            ]
    raise AssertionError(f"no values for {field}")


def fitting(step: dict[str, Any]) -> dict[str, Any]:
    """What has to fit the other fields of a STEP, made to fit."""
    tokens, branches = step["tokens"], []
    for row, count in step["branches"]:
        if tokens > max(1, count) > 0:
            tokens -= max(1, count)
            branches.append((row, max(1, count)))
    return {
        "void": step["void"] % (step["step"] + 1),
        "guess": step["guess"] % (step["tokens"] + 1),
        "branches": tuple((row % (tokens + 1), count) for row, count in branches),
    }


@st.composite
def messages(draw: st.DrawFn) -> Message:
    schema = MESSAGES.schemas[draw(st.sampled_from(sorted(MESSAGES.schemas)))]
    values = {name: draw(valid(field)) for name, (field, _) in schema.fields.items()}
    if schema.has_payload:
        values["payload"] = draw(st.binary(max_size=50))
    if schema.message_type is Open:
        values["hop"] = values["hop"] % values["hops"]
        values["parent_tokens"] %= values["max_tokens"] + 1
        if values["parent"] in (None, values["session"]):
            values |= {"parent": None, "parent_tokens": 0}
    if schema.message_type is Welcome:
        values["n_blocks"] = max(values["n_blocks"], values["span"].end)
    if schema.message_type is Replay:
        values["until"] = max(values["until"], values["from_position"])
    if schema.message_type is Void:
        values["last"] = max(values["first"], values["last"])
    if schema.message_type is Step:
        values |= fitting(values)
    message: Message = schema.message_type(**values)
    return message


def over_the_wire(message: Message) -> Message:
    parser = FrameParser()
    for buffer in encode_frame(encode(message)):
        parser.receive(buffer)
    frame = parser.next_frame()
    assert frame is not None
    parser.end()
    return decode(frame)


EXAMPLES: list[Message] = [
    Hello((1,), "", ("int8",), 1 << 20, "test"),
    Welcome(1, DIGEST, Span(0, 3), ("int8",), 1 << 20, "test", 512, 30),
    Welcome(1, DIGEST, Span(0, 3), ("int8s",), 1 << 20, "test", 512, 30, scales=b"\0\1\xff"),
    Welcome(1, DIGEST, Span(0, 3), ("int8",), 1 << 20, "test", 512, 30, line=250_000),
    Welcome(1, DIGEST, Span(0, 3), ("int8",), 1 << 20, "test", 512, 30, features=("void", "flight")),
    Open(SESSION, Span(3, 9), 100, "int8s.0123456789abcdef", "f8", scales=(b"\0\1\xff", b"")),
    Open(
        SESSION,
        Span(3, 9),
        100,
        "int8",
        "none",
        downstream=Downstream("abc", SESSION, SignedRecord(1.5, b"signed")),
    ),
    Open(SESSION, Span(3, 9), 100, "int8", "none", upstream="abc", journal=True),
    Open(SESSION, Span(3, 9), 100, "int8", "none", prefix=(b"h" * 32,), parent=b"p" * 16, parent_tokens=64),
    Busy(SESSION, 100, "full"),
    Refused(SESSION, ErrorCode.DRAINING, "leaving"),
    Step(SESSION, 1, 0, 1, Want.LAST, payload=b"xy"),
    Step(SESSION, 1, 0, 1, Want.LAST, hold=True, spent=((1, 2, 3, 4), (5, 6, 7, 8)), payload=b"xy"),
    Step(SESSION, 5, 0, 1, Want.ALL, void=2, payload=b"xy"),
    Step(SESSION, 5, 0, 8, Want.ALL, guess=7, branches=((1, 2), (0, 3)), payload=b"xy" * 8),
    Void(SESSION, 2, 4),
    Result(SESSION, 1, 0, 1, b"xy"),
    Result(SESSION, 1, 0, 1, b"xy", row_us=400),
    Replay(SESSION, 3, 9, 17, Downstream("abc", SESSION)),
    Replayed(SESSION, 6, 3600),
    Attach(SESSION, "abc"),
    Attached(SESSION, 9),
    Close(SESSION),
    Close(SESSION, (b"h" * 32, b"i" * 32)),
    Ping(7),
    Ping(7, (SESSION, b"t" * 16)),
    Pong(7, 1, 2, 3, NodeState.ONLINE),
    Pong(7, 1, 2, 3, NodeState.ONLINE, running=4, batch=375, tokens_per_s=512, queue_us=900),
    Pong(7, 1, 2, 3, NodeState.ONLINE, tells=(Progress(SESSION, 9, 8, 7, True),)),
    ErrorMessage(None, None, ErrorCode.INTERNAL, "oops", True),
]


@given(messages())
def test_messages_round_trip(message: Message) -> None:
    assert over_the_wire(message) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_unknown_fields_are_ignored(message: Message) -> None:
    frame = encode(message)
    frame.header["added_in_version_9"] = {"any": [1, 2, 3]}
    assert decode(frame) == message


def test_every_kind_has_its_number_for_ever() -> None:
    numbers = {
        "HELLO": 1,
        "WELCOME": 2,
        "OPEN": 3,
        "OPENED": 4,
        "BUSY": 5,
        "REFUSED": 6,
        "STEP": 7,
        "RESULT": 8,
        "REPLAY": 9,
        "CLOSE": 10,
        "PING": 11,
        "PONG": 12,
        "ERROR": 13,
        "REPLAYED": 14,
        "ATTACH": 15,
        "ATTACHED": 16,
        "STEPS": 18,
        "RESULTS": 19,
        "VOID": 20,
    }
    assert {kind.name: int(kind) for kind in (*MESSAGE_TYPES, *GROUP_TYPES)} == numbers
    assert [int(want) for want in (Want.NOTHING, Want.LAST, Want.ALL)] == [0, 1, 2]


FIELDS = [(schema, name) for schema in MESSAGES.schemas.values() for name in schema.fields]


@pytest.mark.parametrize(("schema", "name"), FIELDS, ids=lambda value: getattr(value, "name", value))
def test_each_violation_of_a_field_is_refused_with_its_name(schema: Any, name: str) -> None:
    good = {other: field.write(_some(field)) for other, (field, _) in schema.fields.items() if other != name}
    if "parent" in good:
        good["parent"] = b"p" * 16  # another session than the first blob
    if "branches" in good:
        good["branches"] = [[0, 1]]  # of a row, not of none
    field, default = schema.fields[name]
    for value in invalid(field):
        with pytest.raises(RemoteProtocolError) as caught:
            decode(Frame(schema.kind, {**good, name: value}))
        assert re.match(rf"{schema.name}: {name}[\[. ]", str(caught.value)), value
        assert caught.value.code is ErrorCode.BAD_FRAME
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600
    if default is MISSING:
        with pytest.raises(RemoteProtocolError, match=rf"{schema.name}: {name} is missing"):
            decode(Frame(schema.kind, good))
    else:
        assert getattr(decode(Frame(schema.kind, good)), name) == default


def _some(field: Any) -> Any:
    """A small valid value."""
    match field:
        case SpentField():
            return _some(field.one_by_one)
        case wire_fields.ShortBytes():
            return b"\1"
        case wire_fields.Integer():
            return min(max(1024, field.low), field.high) if field.low else 0
        case wire_fields.Count():
            return 0
        case wire_fields.Boolean():
            return True
        case wire_fields.Blob():
            return b"s" * field.size
        case wire_fields.Word():
            return next(
                text
                for text in ("int8", "direct", DIGEST, "/ip4/1.2.3.4/tcp/1")
                if field.pattern.fullmatch(text)
            )
        case wire_fields.Prose():
            return "text"
        case wire_fields.Choice():
            return next(iter(field.enum))
        case wire_fields.Sequence():
            return (_some(field.item),) * max(1, field.low)
        case wire_fields.SpanField():
            return Span(0, 1)
        case wire_fields.Maybe():
            return _some(field.item)
        case ProgressField():
            return Progress(b"s" * 16, 2, 1, 0, False)
    return Downstream("abc", b"s" * 16)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"session": SESSION, "span": [0, 1], "hop": 2, "hops": 2}, "hop 2 is outside a route of 2 hops"),
        ({"session": SESSION, "span": [0, "1"]}, "OPEN: span is list of 2, not a span of blocks"),
        (
            {"session": SESSION, "span": [0, 1], "prefix": [b"short"]},
            r"OPEN: prefix\[0\] is 5 bytes, not 32 bytes",
        ),
        (
            {"session": SESSION, "span": [0, 1], "parent_tokens": 3},
            "OPEN: parent_tokens is 3 without a parent",
        ),
        ({"session": SESSION, "span": [0, 1], "parent": SESSION}, "OPEN: a session cannot be its own parent"),
        (
            {"session": SESSION, "span": [0, 1], "parent": b"p" * 16, "parent_tokens": 11},
            "OPEN: parent_tokens is 11, but max_tokens is 10",
        ),
        (
            {"downstream": {"peer_id": "a", "session": SESSION, "record": [1]}},
            r"OPEN: downstream.record is list of 1, not a record",
        ),
    ],
)
def test_complaints_name_the_place_the_value_and_the_bound(header: dict[str, object], complaint: str) -> None:
    good = encode(Open(SESSION, Span(0, 1), 10, "int8", "int8")).header
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode(Frame(Kind.OPEN, {**good, **header}))


def test_a_replay_ends_behind_its_beginning() -> None:
    with pytest.raises(LocalProtocolError, match="until is 3, before from_position 4"):
        encode(Replay(SESSION, 4, 3, 1, Downstream("abc", SESSION)))


def test_two_tables_fit_into_a_header_beside_all_else() -> None:
    """The largest OPEN that there is."""
    record = SignedRecord(1.5, bytes(MAX_RECORD_BYTES))
    opening = Open(
        SESSION,
        Span(0, MAX_BLOCKS),
        MAX_TOKENS,
        "x" * 32,
        "y" * 32,
        4096,
        MAX_BLOCKS - 2,
        MAX_BLOCKS,
        Downstream("z" * 128, SESSION, record),
        tuple(bytes([number % 251] * 32) for number in range(MAX_PREFIX_PAGES)),
        b"p" * 16,
        MAX_TOKENS,
        "z" * 128,
        True,
        (bytes(MAX_SCALES), bytes([1] * MAX_SCALES)),
    )
    assert over_the_wire(opening) == opening


def test_a_welcome_must_fit_its_model() -> None:
    with pytest.raises(LocalProtocolError, match="outside 30 blocks"):
        encode(Welcome(1, DIGEST, Span(0, 31), ("int8",), 1 << 20, "", 1, 30))


STEP_OF_EIGHT = Step(SESSION, 5, 40, 8, Want.ALL, payload=bytes(8))
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"void": 6}, "void is 6, behind step 5"),
    ({"guess": 9}, "9 of 8 rows are guesses"),
    ({"branches": ((0, 0),)}, "branches do not fit 8 rows"),
    ({"branches": ((0, 8),)}, "branches do not fit 8 rows"),
    ({"branches": ((0, 4), (0, 4))}, "branches do not fit 8 rows"),
    ({"branches": ((2, 3), (3, 4))}, "branches do not fit 8 rows"),
]
"""Fields of a STEP that do not fit each other, each alone a good one."""


@pytest.mark.parametrize(("fields", "problem"), IMPOSSIBLE)
def test_a_step_whose_fields_do_not_fit_each_other(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(LocalProtocolError, match=rf"STEP: {problem}"):
        encode(replace(STEP_OF_EIGHT, **fields))
    header = {**encode(STEP_OF_EIGHT).header, **fields}
    header["branches"] = [*map(list, fields.get("branches", ()))]
    with pytest.raises(RemoteProtocolError, match=rf"STEP: {problem}") as caught:
        decode(Frame(Kind.STEP, header, bytes(8)))
    assert caught.value.code is ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    "fields",
    [{"void": 5}, {"guess": 8}, {"branches": ((1, 7),)}, {"branches": ((2, 3), (0, 3)), "guess": 7}],
)
def test_a_step_whose_fields_just_fit(fields: dict[str, Any]) -> None:
    step = replace(STEP_OF_EIGHT, **fields)
    assert over_the_wire(step) == step


def test_a_range_of_void_steps_is_one() -> None:
    with pytest.raises(LocalProtocolError, match="VOID: last is 3, before first 4"):
        encode(Void(SESSION, 4, 3))
    assert over_the_wire(Void(SESSION, 4, 4)) == Void(SESSION, 4, 4)


@pytest.mark.parametrize("kind", [0, 17, 21, 255])
def test_an_unknown_kind_has_its_own_code(kind: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"unknown kind of message: {kind}") as caught:
        decode(Frame(kind, {}))
    assert caught.value.code is ErrorCode.UNKNOWN_KIND


def test_payload_and_flags_only_where_they_belong() -> None:
    with pytest.raises(RemoteProtocolError, match="PING: payload is 1 bytes, but it may have none"):
        decode(Frame(Kind.PING, {"nonce": 1}, b"x"))
    with pytest.raises(RemoteProtocolError, match="PING: flags are 0x80"):
        decode(Frame(Kind.PING, {"nonce": 1}, flags=0x80))


@given(
    st.sampled_from(list(MESSAGE_TYPES)),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=3),
    st.data(),
)
def test_any_header_gives_a_message_or_a_remote_protocol_error(
    kind: Kind, extra: dict[str, object], data: st.DataObject
) -> None:
    anything = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.binary(max_size=16),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=2),
        max_leaves=5,
    )
    header = {name: data.draw(anything) for name in MESSAGES.schemas[kind].fields if data.draw(st.booleans())}
    try:
        message = decode(Frame(kind, {**extra, **header}))
    except RemoteProtocolError:
        return
    assert type(message) is MESSAGE_TYPES[kind]


def test_what_a_peer_would_refuse_is_our_fault_when_we_send_it() -> None:
    with pytest.raises(LocalProtocolError, match="STEP: position is -1, not an integer from 0 to"):
        encode(Step(SESSION, 1, -1, 1, Want.ALL))
    with pytest.raises(LocalProtocolError, match="CLOSE: session is 3 bytes, not 16 bytes"):
        encode(Close(b"abc"))
    with pytest.raises(LocalProtocolError, match="not a message"):
        encode("hello")  # type: ignore[arg-type]


def test_our_own_prose_is_made_to_fit() -> None:
    message = over_the_wire(
        ErrorMessage(None, None, ErrorCode.INTERNAL, "two\nlines \x1b[31m", False, "x" * 900)
    )
    assert isinstance(message, ErrorMessage)
    assert message.message == "two lines  [31m"
    assert len(message.hint) == MAX_TEXT


def test_an_error_code_of_a_later_version_reads_as_internal() -> None:
    header = encode(Refused(SESSION, ErrorCode.DRAINING, "no")).header
    message = decode(Frame(Kind.REFUSED, {**header, "code": "out_of_cheese"}))
    assert isinstance(message, Refused)
    assert message.code is ErrorCode.INTERNAL


def test_the_longest_prefix_fits_into_a_frame() -> None:
    chain = tuple(page.to_bytes(32, "big") for page in range(MAX_PREFIX_PAGES))
    opening = Open(SESSION, Span(0, 1), 10, "int8", "int8", prefix=chain)
    assert over_the_wire(opening) == opening
    header = encode(Close(SESSION, chain)).header
    with pytest.raises(RemoteProtocolError, match="CLOSE: prefix is list of 1025, not a list of 0 to 1024"):
        decode(Frame(Kind.CLOSE, {**header, "prefix": [b"h" * 32] * 1025}))


def test_a_step_costs_little_beside_its_tensor() -> None:
    frame = encode(Step(SESSION, 12, 300, 1, Want.LAST, payload=b"x" * 592))
    assert len(msgpack.packb(frame.header)) < 80


def test_errors_travel_without_our_insides() -> None:
    told = error_message(
        RemoteProtocolError("bad", code=ErrorCode.BAD_TENSOR, hint="send better"), SESSION, 4
    )
    assert told == ErrorMessage(SESSION, 4, ErrorCode.BAD_TENSOR, "bad", False, "send better")
    told = error_message(KeyError("/home/me/secret"))
    assert told == ErrorMessage(None, None, ErrorCode.INTERNAL, "internal error", True)
    assert error_message(UsageError("x"), retriable=False).retriable is False


def test_refusals_become_exceptions() -> None:
    busy = error_of(Busy(SESSION, 1500, "cache full"), "12D3KooWabcdefgh")
    assert isinstance(busy, BusyError)
    assert busy.retry_after == 1.5
    assert "peer …cdefgh is busy: cache full" in str(busy)
    mismatch = error_of(Refused(SESSION, ErrorCode.MODEL_MISMATCH, "other", "use it"), "p")
    assert isinstance(mismatch, ModelMismatchError)
    assert mismatch.hint == "use it"
    failed = error_of(ErrorMessage(SESSION, 1, ErrorCode.BAD_STEP, "no", True), "p")
    assert isinstance(failed, PeerError)
    assert (failed.code, failed.retriable) == (ErrorCode.BAD_STEP, True)
