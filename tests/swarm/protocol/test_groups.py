"""Steps and results of many sessions in one frame: the same messages as one by one, and the same bounds."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from swarm_node.swarm.protocol.field_types import MAX_COUNTER, MAX_MEMBERS, MAX_TOKENS
from swarm_node.swarm.protocol.messages import (
    GROUP_TYPES,
    Kind,
    Result,
    Results,
    Step,
    Steps,
    Want,
    decode,
    encode,
)
from swarm_node.swarm.protocol.wire import Frame, FrameParser, encode_frame

from .test_messages import IMPOSSIBLE, STEP_OF_EIGHT, fitting, invalid, valid

ROW = bytes(range(40))


def session(number: int) -> bytes:
    return number.to_bytes(16)


def steps(count: int, **fields: Any) -> Steps:
    return Steps(
        tuple(Step(session(n), 7 + n, 40 + n, 1, Want.LAST, payload=ROW, **fields) for n in range(count))
    )


def through_bytes(message: Any) -> Any:
    parser = FrameParser()
    parser.receive(b"".join(encode_frame(encode(message))))
    frame = parser.next_frame()
    assert frame is not None
    return decode(frame)


@st.composite
def groups(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(list(GROUP_TYPES)))
    group, member, _ = GROUP_TYPES[kind]
    sessions = draw(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=6, unique=True))
    size = draw(st.integers(0, 9))
    fields = {
        name: type_
        for name, (type_, _) in _member_fields(member).items()
        if name not in ("session", "tokens")
    }
    same = {name: draw(valid(type_)) for name, type_ in fields.items() if draw(st.booleans())}
    members = []
    for each in sessions:
        tokens = draw(st.integers(1 if member is Step else 0, 4))
        own = {name: same[name] if name in same else draw(valid(type_)) for name, type_ in fields.items()}
        if member is Step:
            own |= fitting({**own, "tokens": tokens})
        members.append(
            member(
                session=each,
                tokens=tokens,
                payload=draw(st.binary(min_size=size * tokens, max_size=size * tokens)),
                **own,
            )
        )
    return group(tuple(members))


def _member_fields(member: type[Any]) -> dict[str, Any]:
    from swarm_node.swarm.protocol.messages import MESSAGES

    return next(schema.fields for schema in MESSAGES.schemas.values() if schema.message_type is member)


@given(groups())
def test_a_group_is_its_members_one_by_one(group: Any) -> None:
    got = through_bytes(group)
    assert got == group
    assert got.members == tuple(map(through_bytes, group.members))


def test_what_is_the_same_in_all_is_said_once() -> None:
    header = encode(steps(3, deadline_ms=500)).header
    assert header == {
        "session": [session(0), session(1), session(2)],
        "step": [7, 8, 9],
        "position": [40, 41, 42],
        "tokens": [1],
        "want": [int(Want.LAST)],
        "deadline_ms": [500],
    }


HEADERS = {
    Kind.STEPS: encode(steps(3, deadline_ms=500, spent=((1, 2, 3, 4),))),
    Kind.RESULTS: encode(
        Results(tuple(Result(session(n), n, 40, 1, ROW, 5 * n, 6, 7, 8, ((1, 2, 3, n),)) for n in range(3)))
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("at", [0, 2])
def test_each_value_that_a_single_one_may_not_have_is_refused_with_its_name(kind: Kind, at: int) -> None:
    frame = HEADERS[kind]
    for name, (type_, _) in _member_fields(GROUP_TYPES[kind][1]).items():
        for value in invalid(type_):
            column = list(frame.header.get(name, [type_]))  # type: ignore[call-overload]
            column = (column * 3)[:3]
            column[at] = value
            with pytest.raises(RemoteProtocolError) as caught:
                decode(Frame(kind, {**frame.header, name: column}, frame.payload))
            assert re.match(rf"{kind.name}: {name}[\[. ]", str(caught.value)), (
                name,
                value,
                str(caught.value),
            )
            assert caught.value.code is ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    ("change", "payload", "complaint"),
    [
        ({"session": []}, ROW * 3, "session is not a list of 1 to 64"),
        ({"session": session(1)}, ROW * 3, "session is not a list of 1 to 64"),
        ({"session": [session(n) for n in range(65)]}, ROW * 3, "session is not a list of 1 to 64"),
        ({"session": [session(1), session(2), session(1)]}, ROW * 3, "a session is there twice"),
        ({"session": [session(1), session(2)]}, ROW * 3, "step is not a list of 1 or 2 values"),
        ({"step": []}, ROW * 3, "step is not a list of 1 or 3 values"),
        ({"step": [1, 2]}, ROW * 3, "step is not a list of 1 or 3 values"),
        ({"step": [1, 2, 3, 4]}, ROW * 3, "step is not a list of 1 or 3 values"),
        ({"step": 5}, ROW * 3, "step is not a list of 1 or 3 values"),
        ({"step": {0: 1, 1: 2, 2: 3}}, ROW * 3, "step is not a list of 1 or 3 values"),
        ({"tokens": None}, ROW * 3, "tokens is missing"),
        ({"want": None}, ROW * 3, "want is missing"),
        ({}, ROW * 3 + b"x", "payload is 121 bytes, not 3 equal rows"),
        ({"tokens": [2, 2, MAX_TOKENS]}, ROW * 3, "payload is 120 bytes, not 2147483651 equal rows"),
        ({"step": [1, 2, MAX_COUNTER + 1]}, ROW * 3, "step is 9007199254740992, not"),
        ({"step": [True]}, ROW * 3, "step is True, not an integer"),
    ],
)
def test_groups_that_cannot_be(change: dict[str, object], payload: bytes, complaint: str) -> None:
    header = {**HEADERS[Kind.STEPS].header, **change}
    header = {name: value for name, value in header.items() if value is not None}
    with pytest.raises(RemoteProtocolError, match=re.escape(complaint)) as caught:
        decode(Frame(Kind.STEPS, header, payload))
    assert caught.value.code is ErrorCode.BAD_FRAME


@pytest.mark.parametrize(("fields", "problem"), IMPOSSIBLE)
def test_a_member_whose_fields_do_not_fit_each_other(fields: dict[str, Any], problem: str) -> None:
    good = replace(STEP_OF_EIGHT, session=session(1)), replace(STEP_OF_EIGHT, session=session(2))
    bad = replace(good[1], **fields)
    with pytest.raises(LocalProtocolError, match=f"STEPS: {problem}"):
        encode(Steps((good[0], bad)))
    frame = encode(Steps(good))
    columns = {name: [0, value] for name, value in fields.items()}
    if "branches" in fields:
        columns["branches"] = [[], [*map(list, fields["branches"])]]
    with pytest.raises(RemoteProtocolError, match=f"STEPS: {problem}") as caught:
        decode(Frame(Kind.STEPS, {**frame.header, **columns}, frame.payload))
    assert caught.value.code is ErrorCode.BAD_FRAME


def test_results_without_rows_have_no_payload() -> None:
    none = Results(tuple(Result(session(n), n, 4, 0) for n in range(2)))
    assert through_bytes(none) == none
    with pytest.raises(RemoteProtocolError, match="payload is 4 bytes, not 0 equal rows"):
        decode(Frame(Kind.RESULTS, encode(none).header, b"rows"))


def test_a_member_that_is_kept_keeps_no_other() -> None:
    (first, *_) = through_bytes(steps(3)).members
    assert type(first.payload) is bytes
    assert len(first.payload) == len(ROW)


@pytest.mark.parametrize(
    "members",
    [
        (),
        steps(MAX_MEMBERS + 1).members,
        steps(1).members * 2,
        (*steps(2).members, Step(session(9), 1, 1, 1, Want.ALL, payload=b"another size")),
        (
            Step(session(9), 1, 1, 1, Want.ALL, payload=b"abc"),
            Step(session(8), 1, 1, 2, Want.ALL, payload=b"abc"),
        ),
    ],
)
def test_what_does_not_go_together_is_our_fault_when_we_send_it(members: tuple[Step, ...]) -> None:
    with pytest.raises(LocalProtocolError, match="members that do not go together"):
        encode(Steps(members))


def test_a_bad_field_is_our_fault_when_we_send_it() -> None:
    bad = Step(session(9), -1, 1, 1, Want.ALL, payload=ROW)
    with pytest.raises(LocalProtocolError, match="STEPS: step is -1, not an integer"):
        encode(Steps((*steps(2).members, bad)))
