"""Rows for which routers choose experts as trained routers do.

What others measured of Qwen3-30B-A3B, which has 128 experts in a block and takes 8 of them, as our file does:

- https://github.com/kekzl/imp/pull/1359, three prompts of 512 tokens: 45 % of a token's experts are those of
  the token before, and 80 % are among those of the eight before. A cache of the 40 % that were used last has
  90 to 95 %. Another prompt's hottest experts get 15 to 30 % less than the prompt's own.
- https://github.com/Helldez/BigMoeOnEdge, docs/bench-data/2026-07-15-route-trace, one prompt, 6 experts a
  token: 38 % are those of the token before, 27 % those of the eighth before; the 8 hottest of a block get
  44.5 % of the choices. A cache of the 24 % used last has 80 %.

A row is the sum of a session's topic, of what drifts from token to token, and of what is the token's own. The
parts below give, in one block: 44 % and 78 %, a cache of 40 % has 90 %; 31 % of the eighth before, 44 % to
the 8 hottest, a cache of 24 % has 80 %; another topic's hottest get 22 % less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .made_file import COUNT, HIDDEN, USED

TOPIC, DRIFT, OWN = 0.7, 0.8, 0.7
"""Parts of a row."""
KEPT = 0.8
"""Of what drifts, this part is left after a token."""
SKEW = 0.55
"""An expert's score falls by this times the logarithm of its rank."""


class Rows:
    """Of ``sessions`` that speak of ``topics``, in turn; 0: each row is a new one, as if there were none."""

    def __init__(self, sessions: int, topics: int) -> None:
        self._rng = np.random.default_rng(sessions)
        self._shape = (sessions, HIDDEN)
        self._is_plain = topics == 0
        all_topics = self._rng.standard_normal((max(topics, 1), HIDDEN))
        self._topic = all_topics[np.arange(sessions) % len(all_topics)]
        self._drift = self._rng.standard_normal(self._shape)

    def next(self) -> np.ndarray:
        """float32 (sessions, HIDDEN), for the next token."""
        own = self._rng.standard_normal(self._shape)
        if self._is_plain:
            return own.astype(np.float32)
        new = self._rng.standard_normal(self._shape)
        self._drift = KEPT * self._drift + (1 - KEPT**2) ** 0.5 * new
        return (TOPIC * self._topic + DRIFT * self._drift + OWN * own).astype(np.float32)


class Locality(NamedTuple):
    """Shares of choices. Of a token's: those of the token before, and of the eight before it. ``hottest``:
    those that fall on a session's 8 hottest of a block. ``guessed``: by the block before, with this block's
    router."""

    before: float
    before_8: float
    hottest: float
    guessed: float
    active: float
    """Experts of a block that a step of all sessions takes."""


def choices(x: np.ndarray, router: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The experts of rows ``x`` as bool (rows, COUNT)."""
    normed = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True))
    best = np.argpartition(-(normed @ router.T + bias), USED, axis=1)[:, :USED]
    chosen = np.zeros((len(x), COUNT), bool)
    np.put_along_axis(chosen, best, values=True, axis=1)
    return chosen


def locality(chosen: np.ndarray, guessed: np.ndarray) -> Locality:
    """``chosen``: bool (tokens, blocks, sessions, COUNT); ``guessed``: of all blocks but the first."""
    total = chosen.sum()
    of_8 = [chosen[t] & chosen[t - 8 : t].any(axis=0) for t in range(8, len(chosen))]
    counts = np.sort(chosen.sum(axis=0), axis=-1)
    return Locality(
        before=float((chosen[1:] & chosen[:-1]).sum() / chosen[1:].sum()),
        before_8=float(np.sum(of_8) / chosen[8:].sum()),
        hottest=float(counts[..., -8:].sum() / total),
        guessed=float((guessed & chosen[:, 1:]).sum() / chosen[:, 1:].sum()),
        active=float(chosen.any(axis=2).sum(axis=-1).mean()),
    )
