"""Rows that no model computes, told from those that one may: for hops that lie or are broken.

Rows that come to this client are looked at, cheaply and with bounds so wide that an honest row never meets
them. This cannot show that a row is right: only computing it again can.

- Magnitude: the root mean square of a row, beside that of the model's embeddings. A model's blocks add to
  what comes in, so that rows grow from block to block; some tokens' rows are thousands of times larger.
- Echo: a row that leaves the blocks as it came in; of a row with a sideband, its residual.
- Repetition: one row for two positions whose inputs differ.

Blame must be certain. So a row is held against a hop only if what it was sent does not explain it, and the
last two are looked at only where the input is this client's own: another hop could send rows in which what
an honest one adds is lost in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ...swarm.boundaries import Boundaries
from ...swarm.codecs.codec import SMALLEST_MAGNITUDE, Codec
from ...swarm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ...swarm.fairness.recent import RecentMap
from ...swarm.protocol.wire import Payload
from ...swarm.types import Span

MOST_GROWTH = 2.0**24
"""A row's root mean square is at most this many times that of the embeddings. Some rows of SmolLM2 reach
2^14, and the largest that are known of other models 2^17."""
LEAST_GROWTH = 2.0**-16
"""A row's root mean square is more than this part of that of the embeddings. Blocks add to a row, which
hardly makes it smaller: the smallest row of SmolLM2 has ten times the root mean square of its embeddings."""
EXPLAINED = 2.0**8
"""A row that is up to this many times as large as the hop's input may not be of its making: of an int8 row
only its magnitude is known, or up to sqrt(hidden) times as much."""
EXPLAINED_SMALL = 2.0**-10
"""A row that is at least this part of the hop's input may not be of its making either."""
ECHO_BLOCKS = 4
"""Fewer blocks than these may honestly have no effect: models are made larger by blocks that do nothing
yet."""
REMEMBERED = 32
"""Later rows are compared with the last this many rows of a session."""
SAMPLED = 256
"""The embeddings of about this many tokens tell what is usual."""
UNLIKE = 0.25
"""Two inputs count as different when they differ by this part of the largest value. Tokens that were never
trained have nearly the same embedding."""


class RowWatch:
    """The rows of one run of hops. ``span``: the blocks they compute; ``own_input``: it is this client that
    feeds them embeddings, and not another hop; ``embedding_rms``: root mean square of the model's usual
    embedding, 0 where it is not known; magnitudes are not looked at then."""

    def __init__(self, boundaries: Boundaries, span: Span, *, own_input: bool, embedding_rms: float) -> None:
        self._width, self._reply_width = boundaries.widths[span.start], boundaries.widths[span.end]
        self._residual = boundaries.residual_width
        self._own_input = own_input
        self._echo = own_input and len(span) >= ECHO_BLOCKS
        known = embedding_rms > 0
        self._least = max(embedding_rms * LEAST_GROWTH, SMALLEST_MAGNITUDE) if known else -math.inf
        self._most = embedding_rms * MOST_GROWTH if known else math.inf
        # By a row's hash: its position, and its input.
        self._seen: RecentMap[int, tuple[int, bytes]] = RecentMap(REMEMBERED)

    def check(
        self,
        name: str,
        codec: Codec,
        sent: Payload,
        tokens: int,
        reply_codec: Codec,
        rows: Payload,
        position: int,
    ) -> None:
        """``rows``: the last of the ``tokens`` that were ``sent``, the first at ``position``; both of the
        right size. Raises RemoteProtocolError for a row that cannot be."""
        size = reply_codec.row_bytes(self._reply_width)
        count = len(rows) // size
        if not count:
            return
        first = tokens - count  # of the inputs
        sizes = reply_codec.magnitudes(rows, count, self._reply_width)
        for index, magnitude in enumerate(sizes):
            if not self._least < magnitude <= self._most:
                self._judge(name, magnitude, codec, self._input(codec, sent, first + index), position + index)
        if self._own_input:
            for index in range(max(0, count - REMEMBERED), count):
                row = bytes(memoryview(rows)[index * size : (index + 1) * size])
                came = bytes(self._input(codec, sent, first + index))
                self._compare(name, codec, came, reply_codec, row, position + index)

    def _input(self, codec: Codec, sent: Payload, index: int) -> memoryview:
        size = codec.row_bytes(self._width)
        return memoryview(sent)[index * size : (index + 1) * size]

    def _judge(self, name: str, magnitude: float, codec: Codec, came: memoryview, position: int) -> None:
        """A row is out of bounds: raises unless the incoming row was so too. A value that is not finite is
        refused when it is decoded, and its sender is certainly the cause."""
        if not math.isfinite(magnitude):
            return
        (before,) = codec.magnitudes(came, 1, self._width)
        if magnitude <= self._least:
            if magnitude >= before * EXPLAINED_SMALL:
                return
            what = "nothing but zeros"
            if magnitude > SMALLEST_MAGNITUDE:
                what = f"next to nothing (rms {magnitude:.3g})"
        elif magnitude <= EXPLAINED * before:
            return
        else:
            what = f"values larger than any model's (rms {magnitude:.3g})"
        raise impossible(f"{name}: the row of position {position} holds {what}")

    def _compare(
        self, name: str, codec: Codec, came: bytes, reply_codec: Codec, row: bytes, position: int
    ) -> None:
        if self._echo and self._is_echo(codec, came, reply_codec, row):
            raise impossible(f"{name}: the row of position {position} is what was sent, not computed")
        key = hash(row)
        known = self._seen.get(key)
        if known is not None and known[0] != position and self._differ(codec, known[1], came):
            raise impossible(f"{name}: the rows of positions {known[0]} and {position} are one and the same")
        self._seen[key] = position, came

    def _is_echo(self, codec: Codec, came: bytes, reply_codec: Codec, row: bytes) -> bool:
        """Whether a row holds what came in, as far as its codec can."""
        if codec == reply_codec and self._width == self._reply_width:
            # Not its scale counts, whose last bit may change when a row is encoded again.
            skipped = codec.scale_bytes
            if memoryview(came)[skipped:] != memoryview(row)[skipped:]:  # honest ones differ at once
                return False
            # Nothing comes of nothing: blocks without biases leave a row of zeros as it is.
            return codec.magnitudes(came, 1, self._width)[0] > SMALLEST_MAGNITUDE
        x = codec.decode(came, 1, self._width)
        passed_on = x[:, self._residual + self._width - self._reply_width :]
        echo = np.concatenate([x[:, : self._residual], passed_on], axis=1)
        try:
            echo = reply_codec.decode(reply_codec.encode(echo), 1, self._reply_width)
        except LocalProtocolError:  # what does not fit into fp16 cannot have come back in it
            return False
        one, other = (
            each[:, : self._residual] for each in (echo, reply_codec.decode(row, 1, self._reply_width))
        )
        return bool(one.any()) and np.allclose(other, one, rtol=1e-6, atol=0)

    def _differ(self, codec: Codec, one: bytes, other: bytes) -> bool:
        if one == other:
            return False
        a, b = (codec.decode(row, 1, self._width) for row in (one, other))
        return bool(np.abs(a - b).max() > UNLIKE * np.abs(a).max())


def impossible(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, code=ErrorCode.BAD_TENSOR)


def usual_embedding_rms(embed: Callable[[Sequence[int]], np.ndarray], vocab_size: int) -> float:
    """The median root mean square of embeddings, of tokens from all over the vocabulary."""
    rows = embed(range(0, vocab_size, max(1, vocab_size // SAMPLED)))  # (tokens, hidden)
    return float(np.median(np.sqrt(np.square(rows).mean(axis=1)))) if len(rows) else 0.0
