"""Greedy answers over a route of two hops in one process, computed in different ways and compared.

The hops are spans with KV pages of their own, joined by the default wire codec; the client's head sees one
row at a time, as it does for one stream. What the second hop was sent is kept as bytes, as in a journal.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.codecs.kinds import INT8
from swarm_node.swarm.types import Span

from ...lab.prompts import long_prompt, question

TOGETHER = 8
"""Sessions in a batch of the undisturbed run; where batches are drawn, anew each step, 1 to so many."""
REPLAY_TOKENS = 256
"""Tokens of a step of a replay."""


def measure(
    *,
    model: str,
    options: dict[str, Any],
    prompts: int,
    prompt_tokens: int,
    tokens: int,
    threads: int,
    seed: int,
) -> dict[str, Any]:
    """``prompts`` answers of ``tokens`` tokens to prompts of up to ``prompt_tokens``: undisturbed, batched
    and cut otherwise, repaired."""
    with open_checkpoint(model, client=True) as checkpoint:
        route = Route(checkpoint, LoadOptions(**options), threads, prompts, prompt_tokens + tokens)
        asked = _prompts(checkpoint, prompts, prompt_tokens)
        undisturbed, seconds = _timed(lambda: route.answer(asked, tokens))
        rng = random.Random(seed)
        batched, _ = _timed(lambda: route.answer(asked, tokens, shuffle=rng))
        lost_at = [rng.randrange(1, tokens) for _ in asked]
        repaired, _ = _timed(lambda: route.answer(asked, tokens, lost_at=lost_at))
        return {
            "kernels": route.hops[0].model.kernels,
            "weights": route.hops[0].model.weights,
            "kv_dtype": route.kv_dtype,
            "tokens_per_s": prompts * tokens / seconds,
            "batched": _compare(undisturbed, batched, [0] * prompts),
            "repaired": _compare(undisturbed, repaired, lost_at),
        }


@dataclass(slots=True)
class Hop:
    """A span, and what it keeps of all sessions."""

    model: SpanBackend[Any]
    memory: OwnMemory[Any]

    def through(self, parts: Sequence[tuple[int, int, np.ndarray]]) -> list[np.ndarray]:
        """``parts``: (session, position, rows) of one batch; the rows after the span."""
        pieces, row = [], 0
        for session, start, rows in parts:
            pieces.append(self.memory.slice(start, len(rows), row=row, session=session))
            row += len(rows)
        out = self.model.forward(np.concatenate([rows for _, _, rows in parts]), pieces, self.memory.pool)
        return np.split(out, np.cumsum([len(rows) for _, _, rows in parts])[:-1])


@dataclass(slots=True)
class Session:
    """``ids``: the prompt and what was chosen. ``sent``: what the first hop sent on, step by step."""

    ids: list[int]
    fed: int = 0
    sent: list[bytes] = field(default_factory=list)


class Route:
    def __init__(
        self, checkpoint: Checkpoint, options: LoadOptions, threads: int, sessions: int, longest: int
    ) -> None:
        config = checkpoint.config
        middle = config.n_blocks // 2
        self.client = load_client_model(checkpoint, LoadOptions(), threads=threads)
        self.hidden = config.hidden_size
        self.hops: list[Hop] = []
        self.kv_dtype = ""
        for span in (Span(0, middle), Span(middle, config.n_blocks)):
            model = load_backend(checkpoint, span, options, threads=threads)
            self.kv_dtype = model.kv_dtype("auto", exact=options.dtype == "float32")
            self.hops.append(Hop(model, OwnMemory(model, self.kv_dtype, longest, sessions)))

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        shuffle: random.Random | None = None,
        lost_at: Sequence[int] = (),
    ) -> list[list[int]]:
        """The answers, TOGETHER sessions side by side, each prompt in one chunk. ``shuffle``: batches of any
        size and prompts in chunks of any size instead. ``lost_at``: before which token each session's second
        hop is replaced by one that holds nothing, and fed from the journal."""
        sessions = [Session(list(ids)) for ids in prompts]
        everybody = range(len(sessions))
        for index in everybody:
            left = len(sessions[index].ids)
            while left:
                count = left if shuffle is None else shuffle.randint(1, left)
                left -= count
                self._step(sessions, [index], count)
        for token in range(1, tokens):
            for index in everybody:
                if lost_at and lost_at[index] == token:
                    self._replay(sessions[index], index)
            for group in _groups(len(sessions), shuffle):
                self._step(sessions, group, 1)
        return [session.ids[len(ids) :] for session, ids in zip(sessions, prompts, strict=True)]

    def _step(self, sessions: Sequence[Session], group: Sequence[int], count: int) -> None:
        """Feed the next ``count`` tokens of each of ``group``, and choose where a prompt or answer ends."""
        parts = []
        for index in group:
            session = sessions[index]
            ids = session.ids[session.fed : session.fed + count]
            parts.append((index, session.fed, self._over_the_wire(self.client.embed(ids))))
        first = self.hops[0].through(parts)
        second = []
        for (index, start, _), rows in zip(parts, first, strict=True):
            payload = bytes(INT8.encode(rows))
            sessions[index].sent.append(payload)
            second.append((index, start, self._read(payload, len(rows))))
        for (index, _, _), rows in zip(parts, self.hops[1].through(second), strict=True):
            session = sessions[index]
            session.fed += count
            if session.fed == len(session.ids):
                logits = self.client.logits(self._over_the_wire(rows[-1:]))
                session.ids.append(int(logits[0].argmax()))

    def _replay(self, session: Session, index: int) -> None:
        """The second hop's keys and values of this session, made again from what it was sent."""
        hop = self.hops[1]
        hop.memory.pool.data[hop.memory.tables[index].ravel()] = 0
        journal = b"".join(session.sent)
        size = len(journal) // session.fed
        for start in range(0, session.fed, REPLAY_TOKENS):
            count = min(REPLAY_TOKENS, session.fed - start)
            rows = self._read(journal[start * size : (start + count) * size], count)
            hop.through([(index, start, rows)])

    def _over_the_wire(self, rows: np.ndarray) -> np.ndarray:
        return self._read(bytes(INT8.encode(rows)), len(rows))

    def _read(self, payload: bytes, count: int) -> np.ndarray:
        return INT8.decode(payload, count, self.hidden)


def _groups(count: int, shuffle: random.Random | None) -> list[list[int]]:
    order = list(range(count))
    if shuffle is None:
        return [order[start : start + TOGETHER] for start in range(0, count, TOGETHER)]
    shuffle.shuffle(order)
    groups = []
    while order:
        size = shuffle.randint(1, TOGETHER)
        groups.append(order[:size])
        order = order[size:]
    return groups


def _prompts(checkpoint: Checkpoint, count: int, longest: int) -> list[list[int]]:
    """Questions as the model's chat has them, and every other one behind some text."""
    tokenizer = checkpoint.tokenizer()
    found = []
    for number in range(count):
        ids = tokenizer.apply_chat_template([{"role": "user", "content": question(number)}])
        if number % 2:
            ids = [*long_prompt(tokenizer.encode, longest - len(ids), number), *ids]
        found.append(ids[-longest:])
    return found


def _compare(
    expected: Sequence[Sequence[int]], got: Sequence[Sequence[int]], since: Sequence[int]
) -> dict[str, Any]:
    """``diverged``: answers that differ anywhere. ``choices``: tokens chosen after the same tokens, since the
    runs were treated differently (``since``): each could have been the one that differs."""
    diverged = choices = 0
    for want, have, first in zip(expected, got, since, strict=True):
        same = next((i for i, pair in enumerate(zip(want, have, strict=True)) if pair[0] != pair[1]), None)
        diverged += same is not None
        choices += (len(want) if same is None else same + 1) - first
    return {"answers": len(expected), "diverged": diverged, "choices": choices}


def _timed(run: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float]:
    began = time.perf_counter()
    return run(), time.perf_counter() - began
