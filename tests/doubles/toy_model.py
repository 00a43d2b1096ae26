"""A model small enough to check by hand, and exact.

A block adds to each token a fixed function of the mean of all tokens so far, row by row in float32, so every
way of cutting a sequence into steps gives the same numbers. ``expected`` computes greedy tokens without any
network.
"""

from __future__ import annotations

import codecs as text_codecs
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from swarm_node.client.model_facts import ModelFacts
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.types import ModelRef

HIDDEN = 24
N_BLOCKS = 6
VOCAB = 258
BOS, EOS = 256, 257
SPECIAL = {BOS: "<s>", EOS: "</s>"}
CONTEXT = 512
MODEL = ModelRef("toy", "ab" * 32, N_BLOCKS)
FACTS = ModelFacts("toys", "F32", HIDDEN, 1234, 4936)
BOUNDARIES = Boundaries.alike(N_BLOCKS, HIDDEN)

_random = np.random.default_rng(5)
_EMBEDDING = _random.standard_normal((VOCAB, HIDDEN), np.float32)
_MIXES = _random.standard_normal((N_BLOCKS, HIDDEN, HIDDEN), np.float32) / np.float32(HIDDEN**0.5)


@lru_cache(20_000)
def _added(block: int, position: int, total: bytes) -> np.ndarray:
    """What a block adds to a row; most tests feed the same tokens again and again."""
    return np.tanh(_MIXES[block] @ (np.frombuffer(total, np.float32) / np.float32(position + 1)))


def block_row(
    block: int, row: np.ndarray, total: np.ndarray | None, position: int
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the block's inputs up to this token, and the token's row. ``total``: the sum before it."""
    total = row if total is None else total + row
    return total, row + _added(block, position, total.tobytes())


def run_block(block: int, x: np.ndarray, history: list[np.ndarray]) -> np.ndarray:
    """x (tokens, hidden); ``history`` holds the sums of the block's inputs up to each token, like a KV
    cache."""
    rows = []
    for row in x:
        total, out = block_row(block, row, history[-1] if history else None, len(history))
        history.append(total)
        rows.append(out)
    return np.stack(rows)


class ToyHead:
    def embed(self, ids: Sequence[int]) -> np.ndarray:
        return _EMBEDDING[np.asarray(ids, np.int64)]

    def final_norm(self, hidden: np.ndarray) -> np.ndarray:
        return np.tanh(hidden)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        return self.final_norm(hidden) @ _EMBEDDING.T * np.float32(0.3)


class ScriptedHead(ToyHead):
    """Says the same whatever it is asked: the given tokens, one a row, then end-of-text. It is so sure of
    them that no sampling chooses others."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        return one_hot([self._tokens.pop(0) if self._tokens else EOS for _ in hidden]) * np.float32(100)


def one_hot(tokens: Sequence[int]) -> np.ndarray:
    """Logits (tokens, vocab) that say them."""
    return np.eye(VOCAB, dtype=np.float32)[np.asarray(tokens, np.int64)]


class ToyDetokenizer:
    def __init__(self, skip_special: bool = True) -> None:
        self._decoder = text_codecs.getincrementaldecoder("utf-8")("replace")
        self._skip_special = skip_special

    def push(self, token: int) -> str:
        if token in SPECIAL and not self._skip_special:
            return SPECIAL[token]
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def hidden(self, token: int) -> str:
        return SPECIAL.get(token, "") if self._skip_special else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ToyTokenizer:
    """Bytes; a chat template that writes ``<role>content`` for each message."""

    eos_ids = frozenset({EOS})
    has_chat_template = True
    is_confined = False
    chat_variables = frozenset({"messages", "add_generation_prompt"})
    chat_template = "<assistant>"
    hidden_texts = SPECIAL

    def encode(
        self,
        text: str,
        add_special: bool = True,
        *,
        literal: Sequence[tuple[int, int]] = (),
        most: int | None = None,
    ) -> list[int]:
        return [BOS] * add_special + list(text.encode())

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return b"".join(self.token_bytes(token) for token in ids if token < 256).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else {BOS: b"<s>", EOS: b"</s>"}[token]

    def special_ids(self) -> frozenset[int]:
        return frozenset({BOS, EOS})

    def stream(self, skip_special: bool = True, *, after: Sequence[int] = ()) -> ToyDetokenizer:
        return ToyDetokenizer(skip_special)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        most: int | None = None,
        **more: Any,
    ) -> list[int]:
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return [BOS, *(text + "<assistant>" * add_generation_prompt).encode()]


def expected(prompt: Sequence[int], n: int) -> list[int]:
    """Greedy tokens of the toy model, computed in one place."""
    histories: list[list[np.ndarray]] = [[] for _ in range(N_BLOCKS)]
    head = ToyHead()
    tokens: list[int] = []
    fed = list(prompt)
    while len(tokens) < n:
        x = head.embed(fed)
        for block in range(N_BLOCKS):
            x = run_block(block, x, histories[block])
        tokens.append(int(head.logits(x[-1:])[0].argmax()))
        fed = tokens[-1:]
    return tokens
