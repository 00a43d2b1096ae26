"""When a hop that works, but slowly, should be replaced while a generation runs: a pure decision.

It pays when what the remaining tokens gain is worth more than replaying the context into the replacement.
What a hop took is what the client's own clock says, where that can tell: time that neither the hop nor the
link to it accounts for is the hop's. Of hops that are chained only the sum is known. If an unexplained part
of it would matter, the chain is taken apart, and its hops are timed one by one. Everything here holds back:
measured steps in place of announcements, a margin, a least difference; and the caller leaves some seconds
between two replacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from .prediction import HopPrediction, Prediction

GROSS_STEPS = 8
"""Decode steps that are enough for a hop that is slower by GROSS_RATIO and does not report it."""
GROSS_RATIO = 3.0
ENOUGH_STEPS = 32
"""Every hop of the route must have done this many decode steps since it joined. A pause does not count as
slowness, and one replacement is judged before the next."""
LEAST_RATIO = 1.3
"""A hop is slow when it takes this many times what its replacement should take."""
REPLAY_MARGIN = 1.5
"""A replay counts as this many times its predicted cost, because other sessions wait for the same nodes."""
FIXED_COST_S = 0.5
"""Seconds that any replacement costs besides its replay: the opening, and a pause that the user sees."""
MAX_OPTIMISM = 4.0
"""A replacement is expected to be at most this many times slower than announced."""


@dataclass(frozen=True, slots=True)
class HopSpent:
    """What a decode step took at a hop lately, on average, in seconds, over the last of ``steps`` steps since
    it joined the route. ``tokens``: of a step, on average; above 1 where drafts were checked.

    ``queue_s``, ``compute_s`` and ``codec_s`` are what the hop says. ``wire_s``: the rest of the client's own
    time, where no other hop has a part in it; else None. ``unexplained_s``: the part of it that the link
    there and back does not take.
    """

    steps: int
    queue_s: float
    compute_s: float
    codec_s: float = 0.0
    tokens: float = 1.0
    wire_s: float | None = None
    unexplained_s: float = 0.0

    @property
    def node_s(self) -> float:
        return self.queue_s + self.compute_s + self.codec_s + self.unexplained_s

    def of_one_token(self, hop: HopPrediction, prompt_tokens: int) -> HopSpent:
        """What a step of one token would have taken: more cost what a prompt's do, as ``hop`` announced
        for ``prompt_tokens``; where it did not, as much as the first."""
        more_s = hop.prefill_s / prompt_tokens if prompt_tokens else hop.compute_s
        expected_s = hop.compute_s + (self.tokens - 1) * more_s
        part = hop.compute_s / expected_s if expected_s > 0 else 1 / self.tokens
        return replace(
            self,
            compute_s=self.compute_s * part,
            codec_s=self.codec_s / self.tokens,
            tokens=1.0,
            unexplained_s=self.unexplained_s * part,
        )


@dataclass(frozen=True, slots=True)
class ChainSpent:
    """Hops ``first`` to ``last`` of a route, which pass steps on to each other. ``wire_s`` of a decode step:
    what they do not account for. ``unexplained_s``: the part of it that their links do not take."""

    first: int
    last: int
    steps: int
    wire_s: float
    unexplained_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Replacement:
    """Hops that could stand in for one: ``token_s`` for a decoded token with the links to and from them,
    ``replay_s`` to bring them to where the generation is. ``measured``: by this client."""

    token_s: float
    replay_s: float
    measured: bool = False


def hop_to_replace(
    predicted: Prediction,
    spent: Sequence[HopSpent],
    replacements: Sequence[Replacement | None],
    tokens_to_come: int,
) -> int | None:
    """The hop whose replacement saves most, or None. ``predicted``: of the route in use, whose links count as
    predicted; ``replacements``: the best for each hop, None where there is none."""
    steps = min((hop.steps for hop in spent), default=0)
    if steps < GROSS_STEPS:
        return None
    least_ratio = LEAST_RATIO if steps >= ENOUGH_STEPS else GROSS_RATIO
    tokens_to_come = int(tokens_to_come / max(hop.tokens for hop in spent))  # a step brings several, perhaps
    spent = [
        seen.of_one_token(hop, predicted.prompt_tokens) if seen.tokens > 1 else seen
        for seen, hop in zip(spent, predicted.hops, strict=True)
    ]
    best: tuple[float, int] | None = None
    for number, replacement in enumerate(replacements):
        if replacement is None:
            continue
        hop = predicted.hops[number]
        now_s = spent[number].node_s + predicted.around(number) - hop.queue_s - hop.compute_s
        optimism = 1.0 if replacement.measured else _optimism(predicted, spent, number)
        then_s = replacement.token_s * optimism
        if now_s < least_ratio * then_s:
            continue
        if steps < ENOUGH_STEPS and spent[number].unexplained_s < now_s / 2:
            continue  # it owns up to its time, which may have been one pause
        cost = FIXED_COST_S + REPLAY_MARGIN * replacement.replay_s
        gain = (now_s - then_s) * tokens_to_come - cost
        if gain > 0 and (best is None or gain > best[0]):
            best = (gain, number)
    return None if best is None else best[1]


def chain_to_take_apart(
    predicted: Prediction,
    spent: Sequence[HopSpent],
    chains: Sequence[ChainSpent],
    replacements: Sequence[Replacement | None],
    tokens_to_come: int,
) -> int | None:
    """The chain, by place among ``chains``, in which a hop would be replaced if all unexplained time were its
    own; None if there is none. Arguments as of ``hop_to_replace``."""
    for place, chain in enumerate(chains):
        for number in range(chain.first, chain.last + 1):
            guilty = list(spent)
            unexplained_s = spent[number].unexplained_s + chain.unexplained_s
            guilty[number] = replace(spent[number], unexplained_s=unexplained_s)
            if hop_to_replace(predicted, guilty, replacements, tokens_to_come) == number:
                return place
    return None


def _optimism(predicted: Prediction, spent: Sequence[HopSpent], number: int) -> float:
    """The factor by which the route's other hops are slower than they announced; a new one is expected to be
    so too."""
    ratios = [
        seen.node_s / expected
        for other, (seen, hop) in enumerate(zip(spent, predicted.hops, strict=True))
        if other != number and (expected := hop.queue_s + hop.compute_s) > 0
    ]
    return min(MAX_OPTIMISM, max(1.0, median(ratios))) if ratios else 1.0
