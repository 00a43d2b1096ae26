"""Answers whose tokens are guessed far ahead: the most that a session ever has under way, whatever it costs.

The guesses are those of an answer that is known, and some are wrong. A client decides how far it guesses by
what that brings; here it always goes as far as it may, so that every fault meets many steps under way.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

AHEAD = 64
"""Guesses behind a certain token."""
RIGHT = 0.74
STEP_TOKENS = 8


class AheadAnswer:
    """An answer of ``model``, an AsyncSwarmModel, to the token ids ``prompt``, of as many tokens as
    ``known``, which it should be. ``token_ids``: those chosen so far. Use as an async context manager, and
    iterate once."""

    def __init__(self, model: Any, prompt: Sequence[int], known: Sequence[int], seed: int) -> None:
        self.token_ids: list[int] = []
        self.drafted = self.accepted = 0
        self.session = model.session(len(prompt) + len(known), prompt_tokens=len(prompt))
        self._heads = model._heads
        self._prompt = list(prompt)
        self._known = known
        self._rng = random.Random(seed)

    async def __aenter__(self) -> AheadAnswer:
        self._heads.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._heads.end()
        self.session.close()

    async def __aiter__(self) -> AsyncIterator[int]:
        """The tokens."""
        from swarm_node.client.decoding.sampling import Sampler, SamplingParams

        sampler = Sampler(SamplingParams(), self._prompt)
        hidden = await self.session.append(self._prompt)
        for choice in (await self._heads.choose(hidden, sampler)).choices:
            self.token_ids.append(choice.token)
            yield choice.token
        while len(self.token_ids) < len(self._known):
            async for token in self._round(sampler):
                self.token_ids.append(token)
                yield token

    async def _round(self, sampler: Any) -> AsyncIterator[int]:
        """The tokens up to the first that was not guessed."""
        session, begin = self.session, self.session.length
        sent = [self.token_ids[-1], *self._guesses(min(AHEAD, session.most_ahead - 1))]
        self.drafted += len(sent) - 1
        for start in range(0, len(sent), STEP_TOKENS):
            session.send(sent[start : start + STEP_TOKENS])
        at = 0
        while at < len(sent):
            hidden = await session.receive()
            following = sent[at + 1 : at + 1 + len(hidden)]
            choices = (await self._heads.choose(hidden, sampler, following)).choices
            at += len(choices)
            right = choices[-1].token == sent[at] if at < len(sent) else True
            self.accepted += len(choices) - 1 + (right and at < len(sent))
            if not right:
                session.rollback(begin + at)
            for choice in choices:
                yield choice.token
            if not right:
                return

    def _guesses(self, most: int) -> list[int]:
        """Of the tokens that come next, but the last of all."""
        come = self._known[len(self.token_ids) : len(self._known) - 1][:most]
        return [token if self._rng.random() < RIGHT else token ^ 1 for token in come]
