"""Streams of peers: frames of every protocol."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

from swarm_node.dht.delegated.messages import (
    DELEGATED_MESSAGES,
    MAX_FRAME,
    Entries,
    Get,
    PackedEntry,
    Put,
    Slower,
    Stored,
    pack_entries,
    unpack_entries,
)
from swarm_node.shards.transfer import messages as pieces
from swarm_node.swarm.errors import ErrorCode, RemoteProtocolError
from swarm_node.swarm.protocol import messages as m
from swarm_node.swarm.protocol.schema import MessageSet
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, FrameParser, encode_frame
from swarm_node.swarm.types import NodeState, SignedRecord, Span

from .mutation import frames_of
from .target import Prepared, Target

SESSION = bytes(range(16))
PEER = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
MADDR = "/ip4/192.0.2.1/tcp/31330"
DIGEST = "ab" * 32


def peer_messages() -> list[m.Message]:
    """One of each that a client or node says."""
    row = bytes(64 * 4)

    def step(session: bytes, number: int, tokens: int) -> m.Step:
        spent = ((number, 2, 3, 3),)
        return m.Step(session, number, 9, tokens, m.Want.LAST, 900, spent=spent, payload=row * tokens)

    down = m.Downstream(PEER, SESSION, SignedRecord(1.8e9, b"record"))
    return [
        m.Hello((1,), DIGEST, ("none", "int8"), 1 << 20, "fuzz"),
        m.Welcome(1, DIGEST, Span(0, 4), ("none", "int8"), 1 << 20, "fuzz", 512, 4, 32),
        m.Welcome(1, DIGEST, Span(0, 4), ("int8s",), 1 << 20, "fuzz", 512, 4, 32, scales=bytes(64)),
        m.Welcome(1, DIGEST, Span(0, 4), ("none",), 1 << 20, "fuzz", 512, 4, features=m.FEATURES),
        m.Open(SESSION, Span(0, 4), 64, "none", "none", downstream=down),
        m.Open(SESSION, Span(0, 4), 64, "int8s.af5570f5a1810b7a", "f8", scales=(bytes(64), bytes(range(32)))),
        m.Opened(SESSION, 0, 512, chained=True, link_us=900),
        m.Busy(SESSION, 250, "full"),
        m.Refused(SESSION, ErrorCode.SPAN_NOT_SERVED, "no", "ask another"),
        m.Step(SESSION, 1, 0, 2, m.Want.ALL, deadline_ms=1000, payload=bytes(2 * 64 * 4)),
        m.Step(SESSION, 9, 4, 3, m.Want.ALL, void=3, guess=2, branches=((1, 2),), payload=row * 3),
        m.Step(SESSION, 10, 7, 6, m.Want.ALL, branches=((0, 1), (2, 2), (1, 1)), payload=row * 6),
        m.Step(SESSION, 11, 9, 9, m.Want.ALL, branches=((1, 8),), payload=row * 9),
        m.Void(SESSION, 3, 8),
        m.Result(SESSION, 1, 0, 1, row_us=400, payload=row),
        m.Result(SESSION, 1, 0, 1, queue_us=5, compute_us=9, payload=bytes(64 * 4)),
        m.Replay(SESSION, 0, 4, 7, down),
        m.Close(SESSION),
        m.Ping(7, (SESSION,)),
        m.Pong(7, 1, 0, 4096, NodeState.ONLINE, 1, 100, 90, 3, (m.Progress(SESSION, 3, 2, 5, False),)),
        m.ErrorMessage(SESSION, 3, ErrorCode.BAD_STEP, "no", True, "again"),
        m.Replayed(SESSION, 4, 1024, 100, 100),
        m.Attach(SESSION, PEER),
        m.Attached(SESSION, 4),
        m.Steps(tuple(step(bytes([n]) * 16, 5 + n, n) for n in (1, 2, 3))),
        m.Results(tuple(m.Result(bytes([n]) * 16, 5 + n, 9, 1, row, n, 2, 3, 3) for n in range(3))),
    ]


def delegated_messages() -> list[Any]:
    packed = b"".join(pack_entries([PackedEntry(0, 1.8e9, PEER.encode(), b"value")]))
    return [
        Get(("swarm-node/1/models/0", f"swarm-node/1/nodes/{DIGEST}/0")),
        Entries(1.8e9, True, packed),
        Put("swarm-node/1/models/0", 1.8e9, b"value"),
        Stored("no room"),
        Slower(500),
    ]


def piece_messages() -> list[Any]:
    return [
        pieces.Ask(bytes(32), True, (MADDR,)),
        pieces.Holds(12, b"\xff\xf0"),
        pieces.GetManifest(),
        pieces.Manifest(b"manifest"),
        pieces.Get(3, True),
        pieces.Piece(3, b"bytes"),
        pieces.Elsewhere(3, PEER, (MADDR,)),
        pieces.Have((1, 2, 3)),
        pieces.PieceError(ErrorCode.OVERLOADED, "no", 3),
    ]


def stream_of(messages: list[Any], set_: MessageSet) -> bytes:
    return b"".join(bytes(part) for message in messages for part in encode_frame(set_.encode(message)))


def _frames(name: str, set_: MessageSet, messages: list[Any], max_frame: int) -> Target:
    def prepare() -> Prepared:
        seeds = [stream_of([message], set_) for message in messages]
        return Prepared([*seeds, b"".join(seeds)], run)

    def run(data: bytes) -> str:
        whole = _decoded(set_, data, [data], max_frame)
        rng = Random(hashlib.sha256(data).digest())
        cuts, at = [], 0
        while at < len(data):
            cuts.append(data[at : at + rng.choice((1, 3, 17, 200, 5000))])
            at += len(cuts[-1])
        if _decoded(set_, data, cuts, max_frame) != whole:
            raise AssertionError("the same bytes in other pieces say something else")
        for message in whole[0]:
            (frame,) = _frames_in(stream_of([message], set_), max_frame)
            if set_.decode(frame) != message:
                raise AssertionError(f"{type(message).__name__} is not what it was after one trip")
            if isinstance(message, Entries):
                list(unpack_entries(("a", "b"), message.payload))
        return ",".join(sorted({type(message).__name__ for message in whole[0]}))[:80]

    return Target(name, prepare, mutate=frames_of())


def _decoded(set_: MessageSet, data: bytes, parts: list[bytes], max_frame: int) -> tuple[list[Any], str, int]:
    """(messages, the error that ended them, unknown kinds passed over)"""
    parser, found, unknown = FrameParser(max_frame), [], 0
    try:
        for part in parts:
            parser.receive(part)
            while (frame := parser.next_frame()) is not None:
                try:
                    found.append(set_.decode(frame))
                except RemoteProtocolError as error:
                    if error.code is not ErrorCode.UNKNOWN_KIND:
                        raise
                    unknown += 1
        parser.end()
    except RemoteProtocolError as error:
        # How a broken beginning is told depends on how much of it is there.
        return found, "" if "not a frame" in error.message else error.message, unknown
    return found, "", unknown


def _frames_in(data: bytes, max_frame: int) -> list[Any]:
    parser = FrameParser(max_frame)
    parser.receive(data)
    frames = []
    while (frame := parser.next_frame()) is not None:
        frames.append(frame)
    return frames


TARGETS = [
    _frames("frames", m.MESSAGES, peer_messages(), DEFAULT_MAX_FRAME),
    _frames("delegated-frames", DELEGATED_MESSAGES, delegated_messages(), MAX_FRAME),
    _frames("piece-frames", pieces.PIECE_MESSAGES, piece_messages(), pieces.ASKER_MAX_FRAME),
]
