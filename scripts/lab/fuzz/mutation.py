"""Inputs made from inputs: bytes, msgpack, JSON and frames, spoilt where it may hurt. All of it is seeded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack

from swarm_node.swarm.protocol.wire import FIXED_HEADER, MAGIC

INTERESTING_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xC1, 0xDC, 0xDF, 0xFE, 0xFF)
INTERESTING_INTEGERS = (
    *(0, 1, -1, 2, 15, 16, 31, 32, 127, 128, 255, 256, 511, 512, 4095, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1),
)
INTERESTING_NUMBERS = (
    *(5e-324, 2.2e-308, 1e-300, 1e-9, -0.0, 0.5, 1e6, 1e9, 1e12, 1e15, 1e300, 1.7976931348623157e308),
    *(float("nan"), float("inf"), float("-inf")),
)
INTERESTING_TEXTS = (
    *("", "\x00", "\x1b[2J\x1b]0;x\x07", "\u202e", "\ud7ff\uffff", "../../etc/passwd", "a" * 5000),
    *("{{ 9**(9**9) }}", "(a+)+$", "<|im_end|>", "é" * 300, "1e999", "-" * 300),
)
MOST_DEPTH = 12
"""Levels below which a tree is not mutated further."""
MOST_NODES = 20_000
"""Values of a tree: lists are repeated, and lists in lists, which multiplies."""


def havoc(rng: Random, data: bytes) -> bytes:
    """Some changes of bytes that know nothing of their meaning."""
    out = bytearray(data)
    for _ in range(1 << rng.randrange(5)):
        match rng.randrange(8):
            case 0 if out:
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[rng.randrange(len(out))] = rng.choice(INTERESTING_BYTES)
            case 2 if out:
                start = rng.randrange(len(out))
                del out[start : start + rng.randrange(1, 64)]
            case 3:
                at = rng.randrange(len(out) + 1)
                out[at:at] = rng.randbytes(rng.randrange(1, 64))
            case 4 if out:
                start = rng.randrange(len(out))
                piece = out[start : start + rng.randrange(1, 256)]
                at = rng.randrange(len(out) + 1)
                out[at:at] = piece * rng.choice((1, 1, 1, 2, 30))
            case 5 if len(out) >= 8:
                form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
                value = rng.choice(INTERESTING_INTEGERS) & (256 ** struct.calcsize(form) - 1)
                struct.pack_into(form, out, rng.randrange(len(out) - 7), value)
            case 6 if len(out) >= 8:
                form = rng.choice(("<d", ">d"))
                struct.pack_into(form, out, rng.randrange(len(out) - 7), rng.choice(INTERESTING_NUMBERS))
            case 7 if rng.random() < 0.2:
                del out[rng.randrange(len(out) + 1) :]
    return bytes(out)


def msgpack_tree(rng: Random, data: bytes) -> bytes:
    """A change inside what the msgpack says; of bytes that are none, ``havoc``."""
    if rng.random() < 0.2:
        return havoc(rng, data)
    try:
        tree = msgpack.unpackb(data, strict_map_key=False)
        return bytes(msgpack.packb(mutated(rng, tree), use_bin_type=True))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return havoc(rng, data)


def json_tree(rng: Random, data: bytes) -> bytes:
    """The same for JSON. NaN and numbers of thousands of digits come too."""
    if rng.random() < 0.15:
        return havoc(rng, data)
    try:
        text = json.dumps(mutated(rng, json.loads(data)), default=repr)
    except (ValueError, TypeError, RecursionError):
        return havoc(rng, data)
    if rng.random() < 0.03:
        text = text.replace("1", "1" * rng.choice((400, 5000)), 1)
    return text.encode(errors="surrogatepass")


def mutated(rng: Random, tree: Any) -> Any:
    """The tree with one to four of its nodes changed; it does not grow beyond MOST_NODES."""
    for _ in range(rng.randrange(1, 5)):
        changed = _changed(rng, tree, 0)
        if _nodes(changed) > MOST_NODES:
            break
        tree = changed
    return tree


def _nodes(tree: Any) -> int:
    """How many values it holds; counted a little beyond MOST_NODES at most."""
    count, pending = 0, [tree]
    while pending and count <= MOST_NODES:
        node = pending.pop()
        count += 1
        if isinstance(node, dict):
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
    return count


def frames_of(mutate_payload: Callable[[Random, bytes], bytes] = havoc) -> Callable[[Random, bytes], bytes]:
    """A mutation of a stream of frames, which stay frames most of the time: headers are changed as trees, and
    frames are dropped, doubled and put in another order."""

    def mutate(rng: Random, data: bytes) -> bytes:
        if rng.random() < 0.15:
            return havoc(rng, data)
        frames = split_frames(data)
        for _ in range(rng.randrange(1, 4)):
            if not frames:
                return havoc(rng, data)
            at = rng.randrange(len(frames))
            kind, flags, header, payload = frames[at]
            match rng.randrange(8):
                case 0:
                    del frames[at]
                case 1:
                    frames.insert(rng.randrange(len(frames) + 1), frames[at])
                case 2:
                    frames.insert(0, frames.pop(at))
                case 3:
                    frames[at] = (kind, flags, header, mutate_payload(rng, payload))
                case 4:
                    frames[at] = (rng.randrange(24), flags, header, payload)
                case _:
                    frames[at] = (kind, flags, msgpack_tree(rng, header), payload)
        return b"".join(
            FIXED_HEADER.pack(MAGIC, kind, flags, len(header) & 0xFFFF, len(payload)) + header + payload
            for kind, flags, header, payload in frames
        )

    return mutate


def split_frames(data: bytes) -> list[tuple[int, int, bytes, bytes]]:
    """(kind, flags, header, payload) of each whole frame at the beginning of the data."""
    frames, at = [], 0
    while len(data) - at >= FIXED_HEADER.size:
        magic, kind, flags, header_size, payload_size = FIXED_HEADER.unpack_from(data, at)
        body = at + FIXED_HEADER.size
        end = body + header_size + payload_size
        if magic != MAGIC or end > len(data):
            break
        frames.append((kind, flags, data[body : body + header_size], data[body + header_size : end]))
        at = end
    return frames


def _changed(rng: Random, node: Any, depth: int) -> Any:
    deeper = depth < MOST_DEPTH and rng.random() < 0.85
    if isinstance(node, dict) and node:
        key = rng.choice(list(node))
        if deeper:
            return {**node, key: _changed(rng, node[key], depth + 1)}
        if rng.random() < 0.5:
            return {name: value for name, value in node.items() if name != key}
        return {**node, rng.choice((key, "extra", "")): any_value(rng)}
    if isinstance(node, list) and node:
        at = rng.randrange(len(node))
        if deeper:
            return [*node[:at], _changed(rng, node[at], depth + 1), *node[at + 1 :]]
        if rng.random() < 0.5:
            return node * rng.choice((2, 3, 50)) if _nodes(node) < 400 else node[:1]
        return [*node[:at], *node[at + 1 :]]
    return _leaf(rng, node)


def _leaf(rng: Random, node: Any) -> Any:
    if isinstance(node, bytes) and rng.random() < 0.7:
        return havoc(rng, node)
    if isinstance(node, str) and rng.random() < 0.5:
        at = rng.randrange(len(node) + 1)
        return node[:at] + rng.choice(INTERESTING_TEXTS) + node[at:]
    if isinstance(node, int | float) and not isinstance(node, bool) and rng.random() < 0.7:
        return rng.choice((node + 1, -node, node * 2, *INTERESTING_INTEGERS, *INTERESTING_NUMBERS))
    return any_value(rng)


def any_value(rng: Random) -> Any:
    """A value of any type."""
    match rng.randrange(7):
        case 0:
            return rng.choice(INTERESTING_INTEGERS)
        case 1:
            return rng.choice(INTERESTING_NUMBERS)
        case 2:
            return rng.choice(INTERESTING_TEXTS)
        case 3:
            return rng.choice((None, True, False, [], {}, "", b""))
        case 4:
            return rng.randbytes(rng.choice((0, 16, 32, 64)))
        case 5:
            nest: Any = 0
            for _ in range(rng.choice((3, 40, 600))):
                nest = [nest] if rng.random() < 0.5 else {"a": nest}
            return nest
        case _:
            return [any_value(rng) for _ in range(rng.randrange(4))]
