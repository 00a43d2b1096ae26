"""One answer's drafts: where they come from, how much of them is sent, and what became of it.

The text itself is looked into always; a draft model is asked where it promises more. What was found in the
text is compared with the tokens that come even when it was not sent: its chances are learned for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter

from ...swarm.routing.prediction import Prediction
from ..hops.trace import Speculated
from .draft_length import MAX_DRAFT, NO_DRAFT, Draft, DraftPlan, Kind, PassTimes, Speculation
from .draft_model import DraftSequence
from .prompt_lookup import PromptLookup

logger = logging.getLogger(__name__)

MODEL = "model"
ANY: Kind = (MODEL, -1)
"""A token that the draft model has not guessed yet."""
ANY_PRIOR = 0.6
FORCED: Kind = ("guide", 0)
FORCED_PRIOR = 0.97
"""A text may be cut into other tokens than the guide would cut it into."""
READ_AT_ONCE = 4096
"""This many tokens of a prompt are read at once, which takes a millisecond of the event loop."""
CONFIDENCES = 8
"""Classes of the draft model's own probabilities."""


class Drafter:
    """``prompt`` is what was fed so far. ``stop_ids`` end an answer. ``sequence``: of the draft model, which
    this closes."""

    def __init__(
        self,
        prompt: Sequence[int],
        stop_ids: frozenset[int] = frozenset(),
        sequence: DraftSequence | None = None,
    ) -> None:
        self.speculation = Speculation()
        self._ids = list(prompt)
        self._stop_ids = stop_ids
        self._lookup = PromptLookup()
        self._sequence = sequence
        self._guess_times = PassTimes()
        self._offered = NO_DRAFT
        self._sent = 0
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
        self._offered, self._sent = NO_DRAFT, 0
        if room > 0:
            await self._choose(room, tuple(forced))
        self._draft_s = perf_counter() - began
        self._all_draft_s += self._draft_s
        return self._offered.tokens[: self._sent]

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
        if kinds and kinds[0][0] == MODEL:
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
        if self._sequence is not None:
            self._sequence.close()

    async def _choose(self, room: int, forced: tuple[int, ...]) -> None:
        plan = self._offer(self._lookup.draft(room), None)
        if forced:
            known = len(forced[:room])
            plan = self._offer(Draft(forced[:room], (FORCED,) * known, (FORCED_PRIOR,) * known), plan)
        if self._sequence is None:
            return
        try:
            await self._ask_model(self._sequence, room, plan)
        except (RuntimeError, MemoryError) as error:  # the answer can do without
            logger.warning("event=draft_model_failed error=%r", str(error))
            self.close()
            self._sequence = None

    def _offer(self, draft: Draft, best: DraftPlan | None) -> DraftPlan:
        """Take ``draft`` where it promises more than what is offered already; the better plan."""
        draft = draft.before(self._stop_ids)
        plan = self.speculation.plan(tuple(zip(draft.kinds, draft.priors, strict=True)))
        if best is not None and (plan.rate < best.rate or not plan.length):
            return best
        self._offered, self._sent = draft, plan.length
        return plan

    async def _ask_model(self, sequence: DraftSequence, room: int, plan: DraftPlan) -> None:
        """Replace the draft at hand, from which ``plan`` was made, where the model promises more."""
        speculation = self.speculation
        if not sequence.ready:
            return
        sequence.settle(self._ids)
        costs = self._guess_costs(sequence, room)
        asked = speculation.plan([(ANY, ANY_PRIOR)] * room, costs)
        if asked.length and asked.rate >= plan.rate:
            guessed = await sequence.run(lambda: self._guess(sequence, room))
            if guessed.tokens:
                self._offered = guessed
                known = tuple(zip(guessed.kinds, guessed.priors, strict=True))
                self._sent = speculation.plan(known).length

    def _guess_costs(self, sequence: DraftSequence, room: int) -> list[float]:
        """Seconds for each token that the draft model would guess now."""
        times = self._guess_times
        behind = min(sequence.behind(self._ids), MAX_DRAFT)
        return [times.expected(max(1, behind)), *[times.expected(1)] * (room - 1)]

    def _guess(self, sequence: DraftSequence, room: int) -> Draft:
        """In the draft model's thread: token by token, for as long as the next one promises to pay."""
        ids = list(self._ids)
        tokens: list[int] = []
        known: list[tuple[Kind, float]] = []
        while len(tokens) < room:
            began = perf_counter()
            behind = sequence.behind(ids)
            guess = sequence.guess(ids)
            self._guess_times.took(min(behind, MAX_DRAFT), perf_counter() - began)
            if guess is None or guess[0] in self._stop_ids:
                break
            token, probability = guess
            ids.append(token)
            tokens.append(token)
            known.append(((MODEL, int(probability * CONFIDENCES)), probability))
            more = room - len(tokens)
            costs = [0.0] * len(known) + self._guess_costs(sequence, more)[:more]
            plan = self.speculation.plan([*known, *[(ANY, ANY_PRIOR)] * more], costs)
            if plan.length <= len(known):
                break
        return Draft(tuple(tokens), tuple(kind for kind, _ in known), tuple(prior for _, prior in known))


def _guesses(predicted: Prediction | None) -> tuple[float | None, float | None]:
    """Seconds of a plain pass, and of each token more in one: hops compute those as they do a prompt's."""
    if predicted is None:
        return None, None
    tokens = predicted.prompt_tokens
    prefill_s = sum(hop.prefill_s for hop in predicted.hops)
    return predicted.token_s, prefill_s / tokens if tokens else None
