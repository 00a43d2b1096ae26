"""Streams of bytes that no client of ours sends."""

from __future__ import annotations

import random
from collections.abc import Iterator

from swarm_node.swarm.protocol.messages import Hello, Message, Open, encode
from swarm_node.swarm.protocol.wire import encode_frame
from swarm_node.swarm.types import Span

HELLO = Hello(versions=(1,), digest="", codecs=("none", "int8"), max_frame=1 << 20, agent="fuzz")
OVERSIZE = b"SW" + bytes([7, 0]) + b"\xff\xff" + b"\xff\xff\xff\xff"
"""The beginning of a frame that claims to be larger than anything allowed."""


def to_bytes(*messages: Message) -> bytes:
    return b"".join(bytes(part) for message in messages for part in encode_frame(encode(message)))


def valid_opening(rng: random.Random, span: Span) -> bytes:
    """HELLO and OPEN as a client sends them."""
    return to_bytes(
        HELLO, Open(session=rng.randbytes(16), span=span, max_tokens=64, codec="none", reply_codec="none")
    )


def hostile_streams(rng: random.Random, span: Span) -> Iterator[bytes]:
    """Endless streams: noise, damaged openings, cut frames, and valid openings with noise behind them."""
    while True:
        opening = valid_opening(rng, span)
        match rng.randrange(5):
            case 0:
                yield rng.randbytes(rng.randrange(1, 4096))
            case 1:
                position = rng.randrange(len(opening))
                yield opening[:position] + rng.randbytes(1) + opening[position + 1 :]
            case 2:
                yield opening[: rng.randrange(1, len(opening))]
            case 3:
                yield opening + rng.randbytes(rng.randrange(1, 1024))
            case _:
                yield OVERSIZE + rng.randbytes(64)
