"""Rows of activations: payloads of every codec, and tables of scales as they come in OPEN and WELCOME."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

from swarm_node.swarm.codecs.codec import MAX_MAGNITUDE, Codec
from swarm_node.swarm.codecs.kinds import STATELESS, codec_named
from swarm_node.swarm.codecs.scales import MAX_EXPONENT, ScaleTable, scale_digest
from swarm_node.swarm.errors import RemoteProtocolError
from swarm_node.swarm.types import MAX_ROW

from .target import Prepared, Target

_WIDTHS = (1, 7, 16, 64, 96, 97, 576)
_HEAD = struct.Struct("<BHH")
_NAMES = (*STATELESS, "int8s")

_SQUARES_VANISH = 1e-18
"""The squares of values below this are less than float32 holds."""


def prepare() -> Prepared:
    return Prepared(list(_seeds()), run)


def _seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for number, name in enumerate(_NAMES):
        for width in _WIDTHS:
            table = rng.integers(-MAX_EXPONENT, MAX_EXPONENT + 1, width).astype(np.int8).tobytes()
            payload = _codec(number, table, width).encode(rng.standard_normal((2, width), np.float32))
            head = _HEAD.pack(number, 2, width)
            yield head + (table if name == "int8s" else b"") + bytes(payload)


def _codec(number: int, table: bytes, width: int) -> Codec:
    """As a node finds it: by the name that OPEN gives, among the tables that came with it."""
    name = _NAMES[number % len(_NAMES)]
    if name in STATELESS:
        return codec_named(name, width)
    return codec_named(f"{name}.{scale_digest(table)}", width, [table[::-1], table])


def run(data: bytes) -> str:
    """A head (codec, tokens, width), with int8s a table, and a payload."""
    if len(data) < _HEAD.size:
        return "short"
    number, tokens, width = _HEAD.unpack_from(data)
    rest = data[_HEAD.size :]
    if _NAMES[number % len(_NAMES)] == "int8s":
        table, rest = rest[:width], rest[width:]
        if ScaleTable.from_peer(table, width).width != width:
            raise AssertionError("a table of another width is taken")
    else:
        table = b""
    codec = _codec(number, table, min(width, MAX_ROW))
    rows = codec.decode(rest, tokens, width)
    if rows.shape == (0, width):
        return f"{codec.kind}, no rows"
    if rows.shape != (tokens, width) or not np.isfinite(rows).all() or np.abs(rows).max() > MAX_MAGNITUDE:
        raise AssertionError(f"{codec.kind} gives rows that it must refuse")
    _check_rows(codec, rest, rows)
    return codec.kind


def _check_rows(codec: Codec, payload: bytes, rows: np.ndarray) -> None:
    tokens, width = rows.shape
    for limit in (1.0, 65504.0):
        try:
            again = codec.decode(payload, tokens, width, limit)
        except RemoteProtocolError:
            continue  # a scale beyond the limit is enough
        if not np.array_equal(again, rows) or np.abs(rows).max() > limit:
            raise AssertionError(f"{codec.kind} takes rows beyond the limit")
    each = codec.row_bytes(width)
    alone = [codec.decode(payload[at : at + each], 1, width) for at in range(0, len(payload), each)]
    if not np.array_equal(np.concatenate(alone), rows):
        raise AssertionError(f"{codec.kind} gives other rows when they come one by one")
    told = codec.magnitudes(payload, tokens, width)
    for row, magnitude in zip(rows, told, strict=True):
        true = math.sqrt(float(np.mean(np.square(row, dtype=np.float64))))
        if not magnitude >= true * (1 - 1e-3) - _SQUARES_VANISH:
            raise AssertionError(f"{codec.kind} tells a magnitude of {magnitude:g} for {true:g}")
    noise = codec.noise(payload, width)
    if noise is not None and not (
        noise.shape == rows.shape and np.isfinite(noise).all() and (noise >= 0).all()
    ):
        raise AssertionError(f"{codec.kind} tells noise that cannot be")


TARGETS = [Target("codecs", prepare)]
