"""A small model on this machine that guesses what the swarm's large one will say.

All its blocks run here, in one thread of their own, one sequence after the other; each sequence has a KV
cache that is rolled back with the answer. It is loaded with the code of a node's blocks and a client's head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np

from ...swarm.errors import CheckpointError, ModelError, NetworkError, UsageError
from ...swarm.types import Span
from .drafting_thread import DraftingThread
from .source import Guess, two_likeliest

if TYPE_CHECKING:
    from ...shards.checkpoint.checkpoint import Checkpoint
    from ...shards.models.backend import SpanBackend
    from ...shards.models.client_part import ClientModel
    from ...shards.tokenizer.tokenizer import Tokenizer

WHAT_TO_GIVE = "Give a .gguf file, a HuggingFace directory, the name of a model here or on the hub, or off."

PREFILL_TOKENS = 256
"""One call takes at most this many tokens, so that an answer that ends early does not keep the others waiting
for its prompt."""

SOURCE = "model"
CONFIDENCES = 8
"""Classes of the model's own probabilities, by which chances are learned."""

STATES = 3
"""A sequence holds the states of three pages in each block that keeps one: a wrong guess is at most a page of
tokens back, and often on the page before."""


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
        self.thread = DraftingThread("swarm-draft")

    def begin(self, prompt: Sequence[int], max_tokens: int) -> DraftSequence | None:
        """A sequence of up to ``max_tokens``, its prompt being read from now on; None where that is more than
        this model can hold."""
        if max_tokens > self.context or max(prompt) >= self.vocab_size:
            return None
        return DraftSequence(self, prompt, max_tokens)

    def close(self) -> None:
        """Waits for what is computed now. Idempotent."""
        self.thread.close()
        self._checkpoint.close()


class DraftSequence:
    """One answer's guesses (see ``Source``). ``prompt``: what was fed before it."""

    def __init__(self, model: DraftModel, prompt: Sequence[int], max_tokens: int) -> None:
        from ...shards.models.own_memory import OwnMemory

        blocks = model.blocks
        self._model = model
        self._memory = OwnMemory(blocks, blocks.kv_dtype("auto", exact=True), max_tokens, states=STATES)
        self._ids = list(prompt)
        self._fed: list[int] = []  # in the cache; the model's thread alone touches it
        self._settled = 0  # of them, for good
        self._closed = False
        self._reading = model.thread.submit(lambda: self._read(list(prompt)))

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        self._ids.extend(tokens)

    async def guess(self, after: Sequence[int]) -> Guess | None:
        """The most likely token; None while the prompt is read, and where one of the two models does not know
        it. Raises what the reading raised, RuntimeError where the model is closed."""
        if not self._reading.done():
            return None
        if self._reading.cancelled():  # which is no RuntimeError
            raise RuntimeError("the model that drafts is closed")
        self._reading.result()
        ids, certain = [*self._ids, *after], len(self._ids)
        return await self._model.thread.run(lambda: self._guess(ids, certain))

    def close(self) -> None:
        """Stop reading, if it still does."""
        self._closed = True
        self._reading.cancel()

    def _read(self, prompt: list[int]) -> None:
        for start in range(0, len(prompt), PREFILL_TOKENS):
            if self._closed:
                return
            self._feed(prompt[start : start + PREFILL_TOKENS])

    def _guess(self, ids: Sequence[int], certain: int) -> Guess | None:
        """In the model's thread. The first ``certain`` of ``ids`` stay as they are."""
        if ids[-1] >= self._model.vocab_size:
            return None
        self._go_back(ids, certain)
        logits = self._model.client.logits(self._feed(ids[len(self._fed) :])[-1:])[0]
        likely = two_likeliest(logits)
        if likely is None or likely[0][0] >= self._model.vocab_size:
            return None
        (token, chance), other = likely
        second = other if other[0] < self._model.vocab_size else None
        return Guess(token, chance, (SOURCE, int(chance * CONFIDENCES)), second)

    def _go_back(self, ids: Sequence[int], certain: int) -> None:
        """To what the cache has in common with ``ids``, whose last token is fed in any case."""
        fed, common = self._fed, min(self._settled, len(ids) - 1)
        while common < min(len(fed), len(ids) - 1) and fed[common] == ids[common]:
            common += 1
        del fed[common:]
        self._settled = min(common, certain)

    def _feed(self, ids: Sequence[int]) -> np.ndarray:
        """The last rows, at least one, after all blocks: (tokens, hidden)."""
        model, memory = self._model, self._memory
        start = memory.start(len(self._fed))
        fed = [*self._fed[start:], *ids]
        hidden = np.empty((0, 0), np.float32)
        for first in range(0, len(fed), PREFILL_TOKENS):
            part = fed[first : first + PREFILL_TOKENS]
            piece = memory.slice(start + first, len(part))
            hidden = model.blocks.forward(model.client.embed(part), [piece], memory.pool)
        self._fed.extend(ids)
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
    """Read all of a small model, to draft for one with this tokenizer and vocabulary: a path, or a name on
    this machine or on the hub. Blocks for as long as that takes.

    Raises UsageError for another vocabulary, CheckpointError, UnsupportedModelError, and NetworkError for a
    hub model.
    """
    from ...shards.loading import load_backend, load_client_model
    from ...shards.models.load_plan import LoadOptions

    checkpoint = _opened(fspath(path_or_name), progress)
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


def _opened(path_or_name: str, progress: Callable[[int, int, str], None] | None) -> Checkpoint:
    """Errors say that it is not the swarm's model that they are about."""
    from ...shards.checkpoint.lookup import find_local
    from ...shards.checkpoint.opening import open_checkpoint

    kind: type[ModelError | NetworkError | UsageError]
    try:
        here = find_local(path_or_name)
        return open_checkpoint(path_or_name if here is None else here.path, progress=progress)
    except UsageError as error:  # that is no name
        kind, cause = UsageError, error.message
    except ModelError as error:
        kind, cause = CheckpointError, error.message
    except NetworkError as error:
        kind, cause = NetworkError, error.message
    raise kind(f"the draft model cannot be used: {cause}", hint=WHAT_TO_GIVE)
