"""One answer's drafts: where they come from, how much of them is sent, and what became of it.

The text itself is looked into always; a draft model is asked where it promises more. What was found in the
text is compared with the tokens that come even when it was not sent: its chances are learned for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from ...swarm.routing.prediction import Prediction
from ..hops.trace import Speculated
from .draft_length import MAX_DRAFT, NO_DRAFT, Draft, DraftPlan, PassTimes, Speculation
from .prompt_lookup import PromptLookup
from .source import Guess, Kind, Source

logger = logging.getLogger(__name__)

ANY: Kind = ("any", 0)
"""A token that the source has not guessed yet."""
ANY_PRIOR = 0.6
FORCED: Kind = ("guide", 0)
FORCED_PRIOR = 0.97
"""A text may be cut into other tokens than the guide would cut it into."""
READ_AT_ONCE = 4096
"""This many tokens of a prompt are read at once, which takes a millisecond of the event loop."""


class Drafter:
    """``prompt`` is what was fed so far. ``stop_ids`` end an answer. ``source``: guesses by a model; this
    closes it."""

    def __init__(
        self,
        prompt: Sequence[int],
        stop_ids: frozenset[int] = frozenset(),
        source: Source | None = None,
    ) -> None:
        self.speculation = Speculation()
        self._ids = list(prompt)
        self._stop_ids = stop_ids
        self._lookup = PromptLookup()
        self._source = source
        self._guess_times = PassTimes()
        self._offered = NO_DRAFT
        self._sent = 0
        self._of_source = False
        self._draft_s = 0.0
        self._counts = (0, 0, 0)  # passes, drafted, accepted
        self._all_draft_s = 0.0

    @property
    def speculated(self) -> Speculated:
        passes, drafted, accepted = self._counts
        return Speculated(passes, drafted, accepted, self._all_draft_s)

    async def read(self) -> None:
        """Index the prompt, before anything else is asked; a long one in parts, as others wait meanwhile."""
        ids = list(self._ids)
        for start in range(0, len(ids), READ_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._lookup.extend(ids[start : start + READ_AT_ONCE])

    async def draft(self, room: int, forced: Sequence[int] = ()) -> tuple[int, ...]:
        """What to send along with the next token: at most ``room`` tokens, often none. ``forced``: those that
        a guide leaves no choice about."""
        began = perf_counter()
        room = min(room, MAX_DRAFT)
        self._offered, self._sent, self._of_source = NO_DRAFT, 0, False
        if room > 0:
            await self._choose(room, tuple(forced))
        self._draft_s = perf_counter() - began
        self._all_draft_s += self._draft_s
        return self._offered.tokens[: self._sent]

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        """``tokens`` were chosen from the rows ``hidden`` (tokens, hidden)."""
        if self._source is not None:
            self._source.came(tokens, hidden)

    def chosen(self, tokens: Sequence[int], seconds: float | None) -> None:
        """The pass has brought ``tokens``, all but the last as drafted, in ``seconds`` (None: something was
        repaired meanwhile)."""
        offered, sent = self._offered, self._sent
        passes, drafted, accepted = self._counts
        self._counts = (passes + 1, drafted + sent, accepted + len(tokens) - 1)
        right = 0
        while right < min(len(offered), len(tokens)) and offered.tokens[right] == tokens[right]:
            right += 1
        # Nothing is known beyond the tokens that came.
        kinds = offered.kinds[: len(tokens)]
        self.speculation.judged(kinds, right)
        if kinds and self._of_source:
            self.speculation.judged([ANY] * len(kinds), right)
        if seconds is not None:
            self.speculation.passed(1 + sent, len(tokens), seconds, self._draft_s)
        self._ids.extend(tokens)
        self._lookup.extend(tokens)

    def begin(self, token: int, predicted: Prediction | None) -> None:
        """The prompt's pass has brought ``token``; ``predicted`` is what a pass of one token should cost."""
        self.speculation = Speculation(*_guesses(predicted))
        self._ids.append(token)
        self._lookup.extend((token,))

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    async def _choose(self, room: int, forced: tuple[int, ...]) -> None:
        plan = self._offer(self._lookup.draft(room), None)
        if forced:
            known = len(forced[:room])
            plan = self._offer(Draft(forced[:room], (FORCED,) * known, (FORCED_PRIOR,) * known), plan)
        if self._source is None:
            return
        try:
            await self._ask(self._source, room, plan)
        except (RuntimeError, MemoryError) as error:  # the answer can do without
            logger.warning("event=draft_model_failed error=%r", str(error))
            self.close()
            self._source = None

    def _offer(self, draft: Draft, best: DraftPlan | None) -> DraftPlan:
        """Take ``draft`` where it promises more than what is offered already; the better plan."""
        draft = draft.before(self._stop_ids)
        plan = self.speculation.plan(tuple(zip(draft.kinds, draft.priors, strict=True)))
        if best is not None and (plan.rate < best.rate or not plan.length):
            return best
        self._offered, self._sent = draft, plan.length
        return plan

    async def _ask(self, source: Source, room: int, plan: DraftPlan) -> None:
        """Token by token while the next one promises to pay; in the place of the draft at hand, from
        which ``plan`` was made, where the source promises more."""
        asked = self._plan((), room)
        if not asked.length or asked.rate < plan.rate:
            return
        guesses: list[Guess] = []
        while len(guesses) < room:
            began = perf_counter()
            guess = await source.guess([each.token for each in guesses])
            if guess is None or guess.token in self._stop_ids:
                break
            self._guess_times.took(1, perf_counter() - began)
            guesses.append(guess)
            if self._plan(guesses, room).length <= len(guesses):
                break
        if guesses:
            self._of_source = True
            self._offered = Draft(
                tuple(each.token for each in guesses),
                tuple(each.kind for each in guesses),
                tuple(each.chance for each in guesses),
            )
            self._sent = self._plan(guesses, len(guesses)).length

    def _plan(self, guesses: Sequence[Guess], room: int) -> DraftPlan:
        """How much of ``guesses`` and of what else would be asked is worth it."""
        known = [(each.kind, each.chance) for each in guesses]
        more = room - len(known)
        costs = [0.0] * len(known) + [self._guess_times.expected(1)] * more
        return self.speculation.plan([*known, *[(ANY, ANY_PRIOR)] * more], costs)


def _guesses(predicted: Prediction | None) -> tuple[float | None, float | None]:
    """Seconds of a plain pass, and of each token more in one: hops compute those as they do a prompt's."""
    if predicted is None:
        return None, None
    tokens = predicted.prompt_tokens
    prefill_s = sum(hop.prefill_s for hop in predicted.hops)
    return predicted.token_s, prefill_s / tokens if tokens else None
