"""Announcements to bytes and back; what is out of bounds is refused on both sides."""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.records.bodies import (
    MAX_DIRECT_MADDRS,
    MAX_MADDRS,
    Gone,
    decode,
    encode_gone,
    encode_model,
    encode_node,
)
from swarm_node.dht.records.keys import GROUP_BLOCKS, model_key, node_key, node_keys
from swarm_node.swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm_node.swarm.figures import (
    BYTES_PER_S,
    DECODE_MS,
    MAX_LINE_BYTES_PER_S,
    MAX_SESSIONS,
    PREFILL_TOKENS_PER_S,
    QUEUE_MS,
    TOKENS_PER_S,
    Figure,
)
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.types import (
    MAX_BLOCKS,
    MAX_NODE_NAME,
    MAX_PEER_LINKS,
    MAX_RECORD_BYTES,
    Incarnation,
    ModelRef,
    NodeInfo,
    NodeState,
    PeerLink,
    Span,
)

OWNER = Identity(bytes(32)).peer_id
OTHER = Identity(b"1" * 32).peer_id
DIRECT = (
    "/ip4/192.0.2.1/tcp/5001/direct",
    "/ip6/2001:db8::1/tcp/5001/direct",
    "/dns4/a.example/tcp/1/direct",
)
MODEL = ModelRef("SmolLM2-135M-Instruct", "0123456789abcdef" * 4, 30)
NODE = NodeInfo(
    peer_id=OWNER,
    maddrs=(f"/ip4/192.0.2.1/tcp/4001/p2p/{OWNER}", "/ip6/2001:db8::1/udp/4001/quic-v1"),
    model=MODEL,
    span=Span(10, 20),
    state=NodeState.ONLINE,
    decode_ms_per_block=0.21,
    prefill_tokens_per_s=1234.5,
    free_kv_tokens=1000,
    total_kv_tokens=4096,
    codecs=("int8", "fp16"),
    weights="int4 (Q4_1)",
    version="0.1.0",
    queue_ms=3.25,
    tokens_per_s=420.0,
    sessions=7,
    links=(PeerLink(OTHER, 0.0125, 12_500_000.0), PeerLink("12D3KooWnoBandwidth", 0.000081)),
    journal_bytes=70_000_000,
    total_journal_bytes=256 * 2**20,
    row_check="0123456789ab",
    coarse=("int8s",),
    weights_root="ef" * 32,
    weights_whole=True,
    shares_weights=True,
    max_blocks=24,
)
OPTIONAL = (
    "queue_ms",
    "tps",
    "sessions",
    "links",
    "journal",
    "journal_max",
    "row_check",
    "coarse",
    "max_blocks",
    "weights_root",
    "weights_whole",
    "shares_weights",
)


def claims(figure: Figure) -> st.SearchStrategy[float]:
    """All that a peer may say of a figure, the ends of its bounds among them."""
    return st.just(0.0) | st.floats(figure.low, figure.high)


@st.composite
def node_infos(draw: st.DrawFn) -> NodeInfo:
    printable = st.characters(categories=("L", "N", "P", "S"), include_characters=" ")
    n_blocks = draw(st.integers(1, MAX_BLOCKS))
    start = draw(st.integers(0, n_blocks - 1))
    total = draw(st.integers(0, 2**40))
    most = draw(st.integers(0, 2**50))
    return NodeInfo(
        peer_id=OWNER,
        maddrs=tuple(
            f"/ip4/10.0.0.{n}/tcp/{n}" for n in draw(st.lists(st.integers(1, 255), max_size=MAX_MADDRS))
        ),
        model=ModelRef(
            draw(st.text(printable, min_size=1, max_size=128)),
            draw(st.binary(min_size=32, max_size=32)).hex(),
            n_blocks,
        ),
        span=Span(start, draw(st.integers(start + 1, n_blocks))),
        state=draw(st.sampled_from(NodeState)),
        decode_ms_per_block=draw(claims(DECODE_MS)),
        prefill_tokens_per_s=draw(claims(PREFILL_TOKENS_PER_S)),
        free_kv_tokens=draw(st.integers(0, total)),
        total_kv_tokens=total,
        codecs=tuple(draw(st.lists(st.sampled_from(("none", "bf16", "fp16", "int8")), max_size=4))),
        weights=draw(st.text(printable, max_size=64)),
        version=draw(st.text(printable, max_size=64)),
        queue_ms=draw(claims(QUEUE_MS)),
        tokens_per_s=draw(claims(TOKENS_PER_S)),
        sessions=draw(st.integers(0, MAX_SESSIONS)),
        links=tuple(
            PeerLink(OTHER, rtt_us / 1e6, float(rate))
            for rtt_us, rate in draw(
                st.lists(
                    st.tuples(st.integers(0, 60_000_000), st.sampled_from([0, 100, 10**6, 10**12])),
                    max_size=16,
                )
            )
        ),
        journal_bytes=draw(st.integers(0, most)),
        total_journal_bytes=most,
        row_check=draw(st.binary(max_size=16)).hex(),
        weights_root=draw(st.sampled_from(["", "0a" * 32])),
        weights_whole=draw(st.booleans()),
        shares_weights=draw(st.booleans()),
        max_blocks=draw(st.integers(0, MAX_BLOCKS)),
        direct_maddrs=tuple(draw(st.lists(st.sampled_from(DIRECT), max_size=MAX_DIRECT_MADDRS))),
        up_bytes_per_s=draw(st.integers(0, MAX_LINE_BYTES_PER_S)),
        down_bytes_per_s=draw(st.integers(0, MAX_LINE_BYTES_PER_S)),
        name=draw(st.text(printable, max_size=MAX_NODE_NAME)),
        incarnation=draw(
            st.none()
            | st.builds(
                Incarnation, st.floats(0, 1e11), st.text("0123456789abcdef", min_size=16, max_size=16)
            )
        ),
    )


@given(node_infos())
def test_node_round_trip(info: NodeInfo) -> None:
    body = encode_node(info)
    assert len(body) < MAX_RECORD_BYTES
    told = decode(OWNER, body)
    assert isinstance(told, NodeInfo)
    assert (told, told.incarnation) == (info, info.incarnation)


def test_model_and_gone_round_trip() -> None:
    assert decode(OWNER, encode_model(MODEL)) == MODEL
    told = decode(OWNER, encode_model(dataclasses.replace(MODEL, parts="ab" * 16, root="cd" * 32)))
    assert isinstance(told, ModelRef)
    assert (told.parts, told.root) == ("ab" * 16, "")
    with pytest.raises(RemoteProtocolError, match="parts"):
        decode(
            OWNER,
            encode_model(dataclasses.replace(MODEL, parts="a")).replace(b"\xa5parts\xa1a", b"\xa5parts\xa1x"),
        )
    assert decode(OWNER, encode_gone()) == Gone()


@pytest.mark.parametrize("name", ["x" * (MAX_NODE_NAME + 1), "a\nb", "\x1b[2J", "\u202egnp", 7, None])
def test_a_name_that_no_line_can_show_is_refused(name: object) -> None:
    record = msgpack.unpackb(encode_node(dataclasses.replace(NODE, name="kitchen")))
    assert cast(NodeInfo, decode(OWNER, msgpack.packb(record))).name == "kitchen"
    with pytest.raises(RemoteProtocolError, match="label"):
        decode(OWNER, msgpack.packb({**record, "label": name}))
    del record["label"]
    assert cast(NodeInfo, decode(OWNER, msgpack.packb(record))).name == ""


def test_what_is_not_there_to_tell_takes_no_room() -> None:
    """So records of nodes without states are what they were before there were any."""
    states = {"states_free", "states_total", "context_ms"}
    assert not states & set(msgpack.unpackb(encode_node(NODE)))
    hybrid = dataclasses.replace(NODE, free_states=3, total_states=8, context_ms_per_block=0.25)
    record = msgpack.unpackb(encode_node(hybrid))
    assert states <= set(record)
    assert decode(OWNER, msgpack.packb(record)) == hybrid
    for name in states:
        del record[name]
    assert decode(OWNER, msgpack.packb(record)) == NODE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("states_free", 9),
        ("states_free", -1),
        ("states_total", 10**6 + 1),
        ("context_ms", -0.1),
        ("context_ms", 1e6),
    ],
)
def test_states_and_context_are_bounded(name: str, value: float) -> None:
    hybrid = dataclasses.replace(NODE, free_states=3, total_states=8, context_ms_per_block=0.25)
    record = msgpack.unpackb(encode_node(hybrid))
    with pytest.raises(RemoteProtocolError):
        decode(OWNER, msgpack.packb({**record, name: value}))
    with pytest.raises(LocalProtocolError, match="states"):
        encode_node(dataclasses.replace(hybrid, free_states=9))


def test_usual_record_is_small() -> None:
    marked = dataclasses.replace(NODE, coarse=(), incarnation=Incarnation(1.8e9, "0123456789abcdef"))
    assert len(encode_node(marked)) < 780


@given(st.binary(max_size=300))
def test_garbage_is_one_kind_of_error(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(OWNER, body)


_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(sorted(msgpack.unpackb(encode_node(NODE)))), _JUNK)
def test_any_value_in_any_field_parses_or_is_refused(field: str, value: object) -> None:
    record = msgpack.unpackb(encode_node(NODE)) | {field: value}
    try:
        parsed = decode(OWNER, msgpack.packb(record))
    except RemoteProtocolError:
        return
    if isinstance(parsed, NodeInfo):
        assert decode(OWNER, encode_node(parsed)) == parsed  # what is accepted, we could have sent


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("digest", "0123"),
        ("digest", "0123456789ABCDEF" * 4),
        ("name", ""),
        ("name", "x" * 129),
        ("name", "red\x1b[31m"),
        ("name", "right\u202eleft"),
        ("n_blocks", 0),
        ("n_blocks", 10),
        ("n_blocks", MAX_BLOCKS + 1),
        ("n_blocks", True),
        ("span", [20, 10]),
        ("span", [-1, 10]),
        ("span", [10, 31]),
        ("span", [10]),
        ("state", "sleeping"),
        ("maddrs", ["/ip4/1.2.3.4/tcp/1"] * (MAX_MADDRS + 1)),
        ("maddrs", ["/dns/" + "x" * 400]),
        ("maddrs", "/ip4/1.2.3.4/tcp/1"),
        ("decode_ms", math.nan),
        ("decode_ms", math.inf),
        ("decode_ms", -1),
        ("decode_ms", True),
        ("decode_ms", 5e-324),
        ("decode_ms", DECODE_MS.low * 0.99),
        ("decode_ms", DECODE_MS.high * 1.01),
        ("prefill_tps", 1e300),
        ("prefill_tps", 5e-324),
        ("prefill_tps", PREFILL_TOKENS_PER_S.low * 0.99),
        ("prefill_tps", PREFILL_TOKENS_PER_S.high * 1.01),
        ("kv_free", 4097),
        ("kv_free", -1),
        ("kv_total", 2**41),
        ("codecs", ["a b"]),
        ("codecs", ["x"] * 17),
        ("weights", "x" * 65),
        ("agent", "new\nline"),
        ("queue_ms", -1.0),
        ("queue_ms", math.nan),
        ("queue_ms", QUEUE_MS.high + 1),
        ("queue_ms", "3"),
        ("queue_ms", None),
        ("tps", math.inf),
        ("tps", 1e10),
        ("sessions", -1),
        ("sessions", MAX_SESSIONS + 1),
        ("sessions", 1.5),
        ("links", "near"),
        ("links", [[OTHER, 5, 0]] * (MAX_PEER_LINKS + 1)),
        ("links", [[OTHER, 5]]),
        ("links", [["no such peer", 5, 0]]),
        ("links", [["1" * 129, 5, 0]]),
        ("links", [[OTHER, -1, 0]]),
        ("links", [[OTHER, 60_000_001, 0]]),
        ("links", [[OTHER, 0.5, 0]]),
        ("links", [[OTHER, 5, True]]),
        ("links", [[OTHER, 5, 10**12 + 1]]),
        ("links", [[OTHER, 5, 99]]),
        ("links", [[OTHER, 5, 5e-324]]),
        ("links", [[OTHER, 5, math.nan]]),
        ("journal", -1),
        ("journal", 256 * 2**20 + 1),
        ("journal", 1.5),
        ("journal_max", 69_999_999),
        ("journal_max", 2**50 + 1),
        ("journal_max", None),
        ("row_check", "0" * 33),
        ("row_check", "red\x1b"),
        ("row_check", True),
        ("coarse", ["a\nb"]),
        ("coarse", "int8"),
        ("weights_root", "0a" * 31),
        ("weights_root", "0A" * 32),
        ("weights_root", None),
        ("weights_whole", 1),
        ("shares_weights", "yes"),
        ("shares_weights", None),
        ("max_blocks", -1),
        ("max_blocks", MAX_BLOCKS + 1),
        ("v", 2),
        ("v", True),
        ("kind", "other"),
    ],
)
def test_out_of_bounds_is_refused(field: str, value: object) -> None:
    record = msgpack.unpackb(encode_node(NODE))
    assert field in record
    with pytest.raises(RemoteProtocolError):
        decode(OWNER, msgpack.packb(record | {field: value}))
    if field not in ("v", "kind", *OPTIONAL):
        del record[field]
        with pytest.raises(RemoteProtocolError, match=field):
            decode(OWNER, msgpack.packb(record))


def test_what_older_nodes_do_not_announce_may_be_left_out() -> None:
    record = msgpack.unpackb(encode_node(NODE))
    for field in OPTIONAL:
        del record[field]
    idle = dataclasses.replace(
        NODE,
        queue_ms=0.0,
        tokens_per_s=0.0,
        sessions=0,
        links=(),
        journal_bytes=0,
        total_journal_bytes=0,
        row_check="",
        coarse=(),
        weights_root="",
        weights_whole=False,
        shares_weights=False,
        max_blocks=0,
    )
    assert decode(OWNER, msgpack.packb(record)) == idle


def test_links_give_way_before_addresses() -> None:
    maddrs = tuple(f"/dns4/{'a' * 60}.{'b' * 60}.{n}.example/tcp/4001" for n in range(MAX_MADDRS))
    links = tuple(PeerLink(OTHER, n / 1e6, 1e9) for n in range(MAX_PEER_LINKS + 5))
    full = dataclasses.replace(NODE, maddrs=maddrs, links=links)
    parsed = decode(OWNER, encode_node(full))
    assert isinstance(parsed, NodeInfo)
    assert parsed == dataclasses.replace(full, links=links[:MAX_PEER_LINKS])
    longer = tuple(f"/dns4/{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 40}.{n}/tcp/4001" for n in range(12))
    full = dataclasses.replace(full, maddrs=longer, model=ModelRef("x" * 128, MODEL.digest, 30))
    body = encode_node(full)
    assert len(body) < MAX_RECORD_BYTES
    parsed = decode(OWNER, body)
    assert isinstance(parsed, NodeInfo)
    assert parsed.maddrs == longer
    assert 0 < len(parsed.links) < MAX_PEER_LINKS
    assert parsed.links == links[: len(parsed.links)]  # the first are kept


def test_direct_addresses_give_way_after_links() -> None:
    maddrs = tuple(f"/dns4/{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 40}.{n}/tcp/4001" for n in range(12))
    links = tuple(PeerLink(OTHER, n / 1e6, 1e9) for n in range(MAX_PEER_LINKS))
    direct = tuple(f"{maddr[:-4]}5001/direct" for maddr in maddrs[:MAX_DIRECT_MADDRS])
    full = dataclasses.replace(NODE, maddrs=maddrs, links=links, direct_maddrs=direct)
    parsed = decode(OWNER, encode_node(full))
    assert isinstance(parsed, NodeInfo)
    assert parsed.maddrs == maddrs
    assert 0 < len(parsed.direct_maddrs) < MAX_DIRECT_MADDRS
    assert parsed.direct_maddrs == direct[: len(parsed.direct_maddrs)]
    assert parsed.links == ()


def test_older_peers_read_the_record_of_a_node_with_direct_addresses() -> None:
    """They ignore the field, and find no such address among those that they give to their daemons."""
    info = dataclasses.replace(NODE, direct_maddrs=DIRECT)
    record = msgpack.unpackb(encode_node(info))
    assert record["direct"] == [maddr.removesuffix("/direct") for maddr in DIRECT]
    assert record.pop("direct") not in record["maddrs"]
    assert decode(OWNER, msgpack.packb(record)) == NODE


def test_only_addresses_of_plain_tcp_are_dialled_directly() -> None:
    maddrs = ["/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/8.8.8.8/tcp/1/ws", "/ip4/8.8.8.8/tcp/1/direct", "nowhere"]
    record = msgpack.unpackb(encode_node(NODE))
    told = decode(OWNER, msgpack.packb(record | {"direct": maddrs}))
    assert isinstance(told, NodeInfo)
    assert told.direct_maddrs == ()
    named = decode(
        OWNER,
        msgpack.packb(record | {"direct": ["/dns4/a.example/tcp/1", f"/ip4/8.8.8.8/tcp/1/p2p/{OWNER}"]}),
    )
    assert isinstance(named, NodeInfo)
    assert named.dial_maddrs == ("/dns4/a.example/tcp/1/direct", *NODE.maddrs)


def test_unknown_fields_are_ignored() -> None:
    record = msgpack.unpackb(encode_node(NODE)) | {"later": [1, {"a": 2}]}
    assert decode(OWNER, msgpack.packb(record)) == NODE


def test_owner_is_the_signer_not_a_field() -> None:
    other = Identity(b"1" * 32).peer_id
    info = decode(other, encode_node(dataclasses.replace(NODE, maddrs=())))
    assert isinstance(info, NodeInfo)
    assert info.peer_id == other


@pytest.mark.parametrize(
    "change",
    [
        {"span": Span(10, 31)},
        {"journal_bytes": NODE.total_journal_bytes + 1},
        {"row_check": "not hexadecimal"},
        {"links": (PeerLink("", 0.1),)},
        {"free_kv_tokens": NODE.total_kv_tokens + 1},
        {"codecs": ("No Such",)},
        {"model": ModelRef("a\nb", MODEL.digest, 30)},
        {"model": ModelRef("a", "short", 30)},
    ],
)
def test_we_do_not_announce_what_others_refuse(change: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        encode_node(dataclasses.replace(NODE, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "measured", "told"),
    [
        ("decode_ms_per_block", math.nan, 0.0),
        ("decode_ms_per_block", -1.0, 0.0),
        ("decode_ms_per_block", 5e-324, DECODE_MS.low),
        ("decode_ms_per_block", math.inf, DECODE_MS.high),
        ("prefill_tokens_per_s", 1e300, PREFILL_TOKENS_PER_S.high),
        ("prefill_tokens_per_s", 5e-324, PREFILL_TOKENS_PER_S.low),
        ("queue_ms", -1.0, 0.0),
        ("queue_ms", 1e9, QUEUE_MS.high),
        ("tokens_per_s", math.inf, TOKENS_PER_S.high),
        ("sessions", -1, 0),
        ("sessions", 2**62, MAX_SESSIONS),
        ("free_kv_tokens", -1, 0),
        ("links", (PeerLink(OTHER, math.nan),), (PeerLink(OTHER, 0.0),)),
        ("links", (PeerLink(OTHER, 1e300),), (PeerLink(OTHER, 60.0),)),
        ("links", (PeerLink(OTHER, 0.1, math.inf),), (PeerLink(OTHER, 0.1, BYTES_PER_S.high),)),
        ("links", (PeerLink(OTHER, 0.1, 3.0),), (PeerLink(OTHER, 0.1, BYTES_PER_S.low),)),
    ],
)
def test_what_we_measured_never_keeps_us_from_announcing(field: str, measured: object, told: object) -> None:
    parsed = decode(OWNER, encode_node(dataclasses.replace(NODE, **{field: measured})))  # type: ignore[arg-type]
    assert getattr(parsed, field) == told


def test_addresses_that_nobody_can_dial_are_left_out() -> None:
    good = f"/dns4/{'a' * 60}.{'b' * 60}.{'c' * 60}.example/tcp/4001"
    maddrs = ("/unix/tmp/x", "/ip4/0.0.0.0/tcp/1", *(f"{good}/p2p/{OWNER}" for _ in range(20)))
    name = "\N{GRINNING FACE}" * 128
    body = encode_node(dataclasses.replace(NODE, maddrs=maddrs, model=ModelRef(name, MODEL.digest, 30)))
    parsed = decode(OWNER, body)
    assert isinstance(parsed, NodeInfo)
    assert 0 < len(parsed.maddrs) <= MAX_MADDRS
    assert set(parsed.maddrs) == {f"{good}/p2p/{OWNER}"}
    assert len(body) + 128 <= MAX_RECORD_BYTES


def test_keys_of_a_model_hold_every_span() -> None:
    keys = node_keys(MODEL)
    assert len(keys) == -(-MODEL.n_blocks // GROUP_BLOCKS)
    for start in range(MODEL.n_blocks):
        assert node_key(MODEL, Span(start, MODEL.n_blocks)) in keys
    assert len(node_keys(ModelRef("x", MODEL.digest, 10**9))) == MAX_BLOCKS // GROUP_BLOCKS
    assert model_key("a") == model_key("a")
