"""Proof, on a loaded span, that a row's result is the same bits however it is batched and cut.

One sequence is computed token by token. Then again: as one chunk behind another session's rows; in ragged
chunks before them, over pages full of another try's keys and values, one half of the blocks after the other,
as a route with other hops would enter it. Every row must come out with the same bits.
Where blocks see only so far back, or so many tokens, others come before it, so that the end of what they
see lies within them or moves over their first ones; pages that no token of the sequence sees are not there.
Blocks that keep a state go on from that after the tokens before, and go back to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from ...swarm.errors import UsageError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.types import Span
from .backend import SpanBackend
from .own_memory import OwnMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TOKENS = 44
"""The sequence has this many tokens: more than a page, and more than several tiles of rows."""
OTHER_TOKENS = 3
"""The session beside it has this many tokens, which shifts the sequence's rows to other places in their
tiles."""
MOST_BEFORE = 512
"""Up to this many tokens come before the sequence. Blocks that see farther are checked as those that see all,
since a node must not take minutes for this."""
CHUNKS = (1, 19, 2, 17)
"""The tokens of each chunk when the sequence is cut; the rest is the last one."""


def check_determinism(model: SpanBackend[Any], kv_dtype: str) -> str:
    """A digest of the results, in hexadecimal: nodes that serve the same blocks and have the same digest
    compute alike. Takes the time of some fifty decode steps. Call it in the thread that computes.

    Raises UsageError if the property does not hold.
    """
    tokens = max(1, min(TOKENS, model.config.max_position_embeddings - _before(model)))
    x = _rows(tokens, model, seed=1)
    alone = _Sessions(model, kv_dtype).feed(x, [1] * tokens)
    trials = {
        "in one chunk beside another session": _Sessions(model, kv_dtype).feed(x, [tokens], before=True),
        "in chunks over a step that was taken back": _Sessions(model, kv_dtype)
        .after_rollback(tokens)
        .feed(x, CHUNKS),
    }
    for how, rows in trials.items():
        wrong = np.flatnonzero((rows != alone).any(1))
        if len(wrong):
            raise UsageError(
                f"--deterministic does not hold here with {model.kernels} kernels and {model.weights} weights"
                f": token {int(wrong[0])} has other bits {how} than alone",
                hint="Try --kernels native, another --dtype or --quantize, or serve without --deterministic.",
            )
    return blake2b(alone.tobytes(), digest_size=6).hexdigest()


class _Sessions:
    """The checked session and the one beside it, with KV memory of their own."""

    def __init__(self, model: SpanBackend[Any], kv_dtype: str) -> None:
        self._model, self._before = model, _before(model)
        tokens = self._before + TOKENS
        self._memory = OwnMemory(model, kv_dtype, tokens, 2, states=-(-tokens // PAGE_TOKENS))
        if self._before:
            self._forward(_rows(self._before, model, seed=4), 0)
            self._forget()

    def _forget(self) -> None:
        """What no token of the sequence sees, of those before it."""
        blocks = self._model.config.blocks[self._model.span.start : self._model.span.end]
        for row, block in zip(self._memory.tables[0], blocks, strict=True):
            if block.attention and (reach := block.attention.reach):
                row[: max(0, self._before - reach + 1) // PAGE_TOKENS] = -1
        if (states := self._memory.states) is not None:
            states[0, :, : self._before // PAGE_TOKENS - 1] = -1

    def after_rollback(self, tokens: int) -> _Sessions:
        """Another sequence was computed in the same pages and taken back."""
        self.feed(_rows(tokens, self._model, seed=3), [tokens])
        return self

    def feed(self, x: Floats, chunks: Sequence[int], *, before: bool = False) -> Floats:
        """The results of all rows of ``x`` (T, hidden). ``before``: the other session's rows come first."""
        alone = len(chunks) == len(x)
        out: list[Floats] = []
        at = 0
        while at < len(x):
            count = chunks[len(out)] if len(out) < len(chunks) else len(x) - at
            count = min(count, len(x) - at)
            rows = x[at : at + count]
            start = self._before + at
            out.append(self._forward(rows, start) if alone else self._beside(rows, start, before))
            at += count
        return np.concatenate(out)

    def _forward(self, rows: Floats, start: int) -> Floats:
        return self._model.forward(rows, [self._memory.slice(start, len(rows))], self._memory.pool)

    def _beside(self, rows: Floats, start: int, before: bool) -> Floats:
        model, count = self._model, len(rows)
        others = _rows(min(OTHER_TOKENS, model.config.max_position_embeddings), model, seed=2)
        own = len(others) if before else 0
        other = 0 if before else count
        slices = [
            self._memory.slice(start, count, row=own),
            self._memory.slice(0, len(others), row=other, session=1),
        ]
        batch = np.concatenate([others, rows] if before else [rows, others])
        slices.sort(key=lambda part: part.row)
        for span in [model.span] if before else _halves(model.span, model.config.cuts):
            batch = model.forward(batch, slices, self._memory.pool, span)
        return batch[own : own + count]


def _before(model: SpanBackend[Any]) -> int:
    """Tokens before the sequence, in whole pages: its middle, or one before, is the first token that does not
    see all, in the block that sees farthest of those within MOST_BEFORE."""
    config, numbers = model.config, range(model.span.start, model.span.end)
    most = min(MOST_BEFORE, config.max_position_embeddings - TOKENS)
    attentions = (config.blocks[number].attention for number in numbers)
    reaches = [attention.reach for attention in attentions if attention]
    seen = [*reaches, *map(config.seen_tokens, numbers)]
    reach = max((each for each in seen if each - TOKENS // 2 <= most), default=0)
    return -(-max(0, reach - TOKENS // 2) // PAGE_TOKENS) * PAGE_TOKENS


def _halves(span: Span, cuts: Sequence[int]) -> list[Span]:
    """``span``, cut near its middle where it may be cut."""
    inside = [cut for cut in cuts if span.start < cut < span.end]
    middle = (span.start + span.end) // 2
    cut = min(inside, key=lambda each: abs(each - middle), default=None)
    return [span] if cut is None else [Span(span.start, cut), Span(cut, span.end)]


def _rows(tokens: int, model: SpanBackend[Any], seed: int) -> Floats:
    """(tokens, width): whole numbers over a power of two, so the same on every machine; one channel is
    large, as in real hidden states."""
    shape = (tokens, model.config.row_width(model.span.start))
    bits = np.random.RandomState(seed).randint(0, 2**32, shape, dtype=np.uint32)
    values: Floats = ((bits % np.uint32(511)).astype(np.float32) - 255) / np.float32(128)
    values[:, seed % shape[1]] *= 64
    return values
