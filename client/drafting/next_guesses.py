"""Guesses by a block that the model has behind its last: see ``NextPart``.

A row after all blocks and the token that was chosen from it are a *pair*. The block reads pairs, and behind
the last of them goes on from its own rows, one a guess. The next pairs are written over those, so nothing of
a wrong guess stays. The first pair is that of the prompt's last row: no other row of a prompt comes to the
client. Positions are counted from there, which changes nothing, since blocks look at distances.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...swarm.errors import SwarmError, UnsupportedModelError
from .drafting_thread import DraftingThread
from .source import Guess, Kind, two_likeliest

if TYPE_CHECKING:
    from ...shards.checkpoint.checkpoint import Checkpoint
    from ...shards.models.client_part import ClientModel
    from ...shards.models.load_plan import LoadOptions
    from ...shards.models.next_part import NextPart

NEXT = "next"
"""The source's name in kinds of guesses."""
MOST_DEPTH = 8
"""A chain has at most this many guesses: each is made from the block's own row, and less often right than the
one before."""
DEPTHS = 4
"""Guesses of this depth and of any deeper are of the same kinds."""
SURE = (0.4, 0.7, 0.9)
"""The chances at which the kinds of a depth begin, after the first of them."""
ROOM = 2048
"""Positions that an answer's keys and values have at most."""
KEPT_PAIRS = 256
"""The latest pairs, which are read again where the room is full: what was before them is forgotten."""
PAIRS_AT_ONCE = 64
"""The block reads at most this many pairs in one go."""


NEXT_BYTES = 1 << 30
"""Bytes of the block in the model's files up to which a client fetches it: every dense one, and those with
some hundred small experts where they are in four bits."""
MEMORY_PART = 4
"""The block may take 1/MEMORY_PART of the free memory."""

logger = logging.getLogger(__name__)


class NextModel:
    """The block, and the thread that computes it for all answers of a client, one after the other."""

    def __init__(self, part: NextPart[Any], client: ClientModel) -> None:
        self.part, self.client = part, client
        self.thread = DraftingThread("swarm-next")

    def begin(self, prompt: Sequence[int], max_tokens: int) -> NextGuesses:
        """For an answer to ``prompt``, both together of up to ``max_tokens``."""
        return NextGuesses(self, min(ROOM, max_tokens - len(prompt) + MOST_DEPTH))

    def close(self) -> None:
        """Waits for what is computed now. Idempotent."""
        self.thread.close()


def load_next_model(
    checkpoint: Checkpoint,
    client: ClientModel,
    options: LoadOptions,
    *,
    threads: int = 1,
    tell: Callable[[str], None] | None = None,
) -> NextModel | None:
    """The block of an open ``checkpoint``, beside the ``client`` of the same. None where the files have none
    or it is not here, damaged, or too large: an answer can do without. ``tell``: one line for people."""
    import psutil

    from ...shards.formats.tensors import next_names
    from ...shards.loading import load_next_part

    name = checkpoint.ref.name
    try:
        manifest = checkpoint.with_next().manifest
        names = next_names(checkpoint.config)
        size = sum(manifest[each].nbytes for each in names if each in manifest)
        room = psutil.virtual_memory().available // MEMORY_PART
        if size > room:
            logger.info("event=next_block_too_large model=%s bytes=%d room=%d", name, size, room)
            return None
        if tell is not None:
            tell(f"Loading the block that guesses ahead ({size / 1e6:.0f} MB)")
        return NextModel(load_next_part(checkpoint, client, options, threads=threads), client)
    except UnsupportedModelError as error:
        logger.debug("event=no_next_block model=%s reason=%r", name, error.message)
    except (SwarmError, MemoryError) as error:
        logger.warning("event=next_block_left_out model=%s error=%r", name, str(error))
    return None


class NextGuesses:
    """One answer's guesses: a ``Source``. ``room``: positions that it may fill."""

    def __init__(self, model: NextModel, room: int) -> None:
        self._thread = model.thread
        self._chain = _Chain(model, room)  # the thread's
        self._pairs: list[tuple[int, np.ndarray]] = []  # the latest: token, row
        self._came = 0  # pairs in all
        self._closed = False

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        self._pairs += zip(tokens, hidden, strict=True)
        self._came += len(tokens)
        del self._pairs[:-KEPT_PAIRS]

    async def guess(self, after: Sequence[int]) -> Guess | None:
        if self._closed or not self._pairs or len(after) >= MOST_DEPTH:
            return None
        pairs, came, behind = tuple(self._pairs), self._came, tuple(after)
        return await self._thread.run(lambda: self._chain.guess(pairs, came, behind))

    def close(self) -> None:
        self._closed = True
        self._pairs.clear()


class _Chain:
    """The block's memory of one answer: ``_read`` pairs in all, of which those from ``_first`` on are in it,
    and behind them guesses, each with the row that the block made of it."""

    def __init__(self, model: NextModel, room: int) -> None:
        from ...shards.models.own_memory import OwnMemory

        self._part, self._client, self._room = model.part, model.client, room
        blocks = model.part.blocks
        self._new_memory = lambda: OwnMemory(blocks, blocks.kv_dtype("auto", exact=True), room)
        self._memory: OwnMemory[Any] | None = None  # made in the thread that computes
        self._first = self._read = 0
        self._guesses: list[int] = []
        self._made: list[np.ndarray] = []  # (1, hidden): of the last pair, and of each guess

    def guess(self, pairs: Sequence[tuple[int, np.ndarray]], came: int, after: Sequence[int]) -> Guess | None:
        """``pairs``: the latest of ``came`` in all."""
        self._read_pairs(pairs, came)
        known = self._guesses
        common = 0
        while common < min(len(known), len(after)) and known[common] == after[common]:
            common += 1
        del known[common:], self._made[common + 1 :]
        for token in after[common:]:
            hidden = self._part.hidden(self._made[-1])
            self._made.append(self._forward(hidden, [token], self._read + len(known)))
            known.append(token)
        return _guess(self._part.logits(self._made[-1])[0], len(after))

    def _read_pairs(self, pairs: Sequence[tuple[int, np.ndarray]], came: int) -> None:
        if self._read == came:
            return
        self._guesses.clear()
        oldest = came - len(pairs)
        if self._read < oldest or came + MOST_DEPTH - self._first > self._room:
            self._first = self._read = oldest
        for start in range(self._read, came, PAIRS_AT_ONCE):
            part = pairs[start - oldest : start - oldest + PAIRS_AT_ONCE]
            hidden = self._client.final_norm(np.stack([row for _, row in part]))
            made = self._forward(hidden, [token for token, _ in part], start)
            self._made = [made[-1:].copy()]
        self._read = came

    def _forward(self, hidden: np.ndarray, tokens: Sequence[int], pair: int) -> np.ndarray:
        """``pair``: the first one's number, of those that came; guesses count on."""
        if self._memory is None:
            self._memory = self._new_memory()
        memory = self._memory
        where = [memory.slice(pair - self._first, len(tokens))]
        return self._part.forward(hidden, tokens, where, memory.pool)


def _guess(logits: np.ndarray, depth: int) -> Guess | None:
    """``logits`` (vocab,); ``depth``: of guesses before it."""
    likely = two_likeliest(logits)
    if likely is None:
        return None
    (token, chance), second = likely
    return Guess(token, chance, _kind(depth, chance), second)


def _kind(depth: int, chance: float) -> Kind:
    sure = sum(chance >= least for least in SURE)
    return NEXT, min(depth, DEPTHS - 1) * (len(SURE) + 1) + sure
