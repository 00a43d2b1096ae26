"""A small model on this machine that guesses what the swarm's large one will say.

All its blocks run here, in one thread of their own, one sequence after the other; each sequence has a KV
cache that is rolled back with the answer. It is loaded with the code of a node's blocks and a client's head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...swarm.errors import UsageError
from ...swarm.types import Span

if TYPE_CHECKING:
    from ...shards.checkpoint.checkpoint import Checkpoint
    from ...shards.models.backend import SpanBackend
    from ...shards.models.client_part import ClientModel
    from ...shards.tokenizer.tokenizer import Tokenizer

PREFILL_TOKENS = 256
"""One call takes at most this many tokens, so that an answer that ends early does not keep the others waiting
for its prompt."""

STATES = 3
"""A sequence holds the states of three pages in each block that keeps one: a wrong guess is at most a page of
tokens back, and often on the page before."""

_T = TypeVar("_T")


class DraftModel:
    """Made by ``load_draft_model``. ``context``: the longest sequence that it drafts for, in tokens.
    ``vocab_size``: ids that both models know are below it."""

    def __init__(
        self, checkpoint: Checkpoint, blocks: SpanBackend[Any], client: ClientModel, vocab_size: int
    ) -> None:
        self.context: int = checkpoint.config.max_position_embeddings
        self.vocab_size = vocab_size
        self.blocks = blocks
        self.client = client
        self._checkpoint = checkpoint
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="swarm-draft")

    def begin(self, prompt: Sequence[int], max_tokens: int) -> DraftSequence | None:
        """A sequence of up to ``max_tokens``, its prompt being read from now on; None where that is more than
        this model can hold."""
        if max_tokens > self.context or max(prompt) >= self.vocab_size:
            return None
        return DraftSequence(self, prompt, max_tokens)

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """Run ``work`` in the model's thread."""
        return self._worker.submit(work)

    def close(self) -> None:
        """Waits for what is computed now. Idempotent."""
        self._worker.shutdown(cancel_futures=True)
        self._checkpoint.close()


class DraftSequence:
    """One answer's draft. ``guess`` is called in the model's thread, the rest in the event loop's."""

    def __init__(self, model: DraftModel, prompt: Sequence[int], max_tokens: int) -> None:
        from ...shards.models.own_memory import OwnMemory

        blocks = model.blocks
        self._model = model
        self._memory = OwnMemory(blocks, blocks.kv_dtype("auto", exact=True), max_tokens, states=STATES)
        self._ids: list[int] = []  # in the cache
        self._settled = 0  # of them, for good
        self._closed = False
        self._reading = model.submit(lambda: self._read(list(prompt)))

    @property
    def ready(self) -> bool:
        """The prompt is read. Raises what the reading raised."""
        if not self._reading.done():
            return False
        self._reading.result()
        return True

    async def run(self, work: Callable[[], _T]) -> _T:
        """``work`` in the model's thread. Raises RuntimeError where the model is closed."""
        future = self._model.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and (task is None or not task.cancelling()):
                raise RuntimeError("the draft model is closed") from None  # not the caller's task
            raise

    def settle(self, ids: Sequence[int]) -> None:
        """The sequence is ``ids`` now, of which all that was settled before is the beginning: what was fed of
        another continuation is rolled back."""
        known, common = self._ids, self._settled
        while common < min(len(known), len(ids)) and known[common] == ids[common]:
            common += 1
        self._settled = common
        del known[common:]

    def behind(self, ids: Sequence[int]) -> int:
        """How many tokens of ``ids``, settled or guessed since, are to be fed before the next is guessed."""
        return len(ids) - len(self._ids)

    def guess(self, ids: Sequence[int]) -> tuple[int, float] | None:
        """The most likely token after ``ids``, settled or guessed since, and its probability; None where one
        of the two models does not know it."""
        if ids[-1] >= self._model.vocab_size:
            return None
        del self._ids[len(ids) - 1 :]  # the last is fed in any case
        hidden = self._feed(ids[len(self._ids) :])
        logits = self._model.client.logits(hidden[-1:])[0]
        token = int(logits.argmax())
        if token >= self._model.vocab_size:
            return None
        return token, float(1 / np.exp(logits - logits[token]).sum())

    def close(self) -> None:
        """Stop reading, if it still does."""
        self._closed = True
        self._reading.cancel()

    def _read(self, prompt: list[int]) -> None:
        for start in range(0, len(prompt), PREFILL_TOKENS):
            if self._closed:
                return
            self._feed(prompt[start : start + PREFILL_TOKENS])

    def _feed(self, ids: Sequence[int]) -> np.ndarray:
        """The last rows, at least one, after all blocks: (tokens, hidden)."""
        model, memory = self._model, self._memory
        start = memory.start(len(self._ids))
        fed = [*self._ids[start:], *ids]
        hidden = np.empty((0, 0), np.float32)
        for first in range(0, len(fed), PREFILL_TOKENS):
            part = fed[first : first + PREFILL_TOKENS]
            piece = memory.slice(start + first, len(part))
            hidden = model.blocks.forward(model.client.embed(part), [piece], memory.pool)
        self._ids.extend(ids)
        return hidden


def load_draft_model(
    path_or_name: str | PathLike[str],
    tokenizer: Tokenizer,
    vocab_size: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> DraftModel:
    """Read all of a small model, to draft for one with this tokenizer and vocabulary. Blocks for as long as
    that takes.

    Raises UsageError for another vocabulary, CheckpointError, UnsupportedModelError, and NetworkError for a
    hub model.
    """
    from ...shards.checkpoint.opening import open_checkpoint
    from ...shards.loading import load_backend, load_client_model
    from ...shards.models.load_plan import LoadOptions

    checkpoint = open_checkpoint(fspath(path_or_name), progress=progress)
    try:
        if not tokenizer.has_vocabulary_of(checkpoint.tokenizer()):
            raise UsageError(
                f"the draft model {checkpoint.ref.name} has another vocabulary than the model",
                hint="Take a small model of the same family: its token ids must mean the same.",
            )
        options = LoadOptions(device=device)
        blocks = load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), options, threads=threads)
        client = load_client_model(checkpoint, options, threads=threads)
    except BaseException:
        checkpoint.close()
        raise
    return DraftModel(checkpoint, blocks, client, min(vocab_size, checkpoint.config.vocab_size))
