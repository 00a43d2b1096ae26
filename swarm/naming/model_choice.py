"""Which model is taken if one name may mean several: a rule that no single stranger can decide. Pure.

Every peer can announce anything under any name, and identities cost nothing. What costs something is a
network to answer from. So a model counts by the networks from which its nodes answer
(``address_groups.networks``), and where only members are let in, by the members that answer. In this order:

1. what a trusted third party says it is: the hub, of one of its own names;
2. what this machine has used under the name before, while a node still announces it; if all of these
   were asked and none answers, it is gone;
3. the only one, if nothing else is announced, or if no node answers for anything else;
4. the one for which nodes in ENOUGH networks answer, and in more than for any other name as near to what was
   said; a name that is nearer, but has one network alone, does not stand in front of it;
5. none: a person has to say which.

What a person has pinned is no question for this rule: then there is one candidate. A model that takes the
place of one used before needs ENOUGH too, even as the only one: a stranger could have waited for that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

ENOUGH = 2
"""Nodes must answer from this many networks, or members: one more than a stranger with one network has."""


class Reason(StrEnum):
    HUB = "hub"
    USED = "used"
    ONLY = "only"
    NETWORKS = "networks"
    MEMBERS = "members"


@dataclass(frozen=True, slots=True)
class Candidate:
    """``identity``: a model's digest. ``nearness``: of its name to what was said, 0 the nearest.

    ``nodes`` announce it, and of them ``answered`` did answer, from ``networks`` networks. ``is_silent``:
    every one of them was asked, and none answered."""

    identity: str
    nearness: int = 0
    nodes: int = 0
    answered: int = 0
    networks: int = 0
    is_silent: bool = False

    def weight(self, *, members: bool) -> int:
        return self.answered if members else self.networks


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """``before``: the identity that this machine has used under the name, where it is another one."""

    taken: Candidate
    reason: Reason
    others: tuple[Candidate, ...] = ()
    before: str = ""


def choose(
    candidates: Sequence[Candidate], *, used: str = "", hub: str = "", members: bool = False
) -> ModelChoice | None:
    """The candidate to take; None where a person has to say which. Candidates have different identities.

    ``used``: the identity that this machine has used under the name; ``hub``: the one that the hub's own
    hashes give. Either may be "". ``members``: whether every node was let into the swarm by a member.
    """
    for known, reason in ((hub, Reason.HUB), (used, Reason.USED)):
        for candidate in candidates:
            gone = reason is Reason.USED and candidate.is_silent and len(candidates) > 1
            if known and candidate.identity == known and not gone:
                return _choice(candidate, reason, candidates)
    chosen = _only(candidates) or _most(candidates, members)
    if chosen is None or not used:
        return chosen
    if chosen.taken.weight(members=members) < (1 if members else ENOUGH):
        return None
    return replace(chosen, before=used)


def needs_answers(candidates: Sequence[Candidate], *, used: str = "") -> bool:
    """Whether the choice depends on which nodes answer."""
    if any(each.identity == used and not each.is_silent for each in candidates):
        return False
    return len(candidates) > 1 or (len(candidates) == 1 and bool(used))


def in_order(candidates: Sequence[Candidate], *, members: bool = False) -> list[Candidate]:
    """In the order in which a person should read them: those that most networks confirm first."""
    return sorted(
        candidates,
        key=lambda each: (-each.weight(members=members), -each.answered, each.nearness, each.identity),
    )


def _only(candidates: Sequence[Candidate]) -> ModelChoice | None:
    there = [candidate for candidate in candidates if not candidate.is_silent]
    if len(candidates) != 1 and len(there) != 1:
        return None
    return _choice(there[0] if there else candidates[0], Reason.ONLY, candidates)


def _most(candidates: Sequence[Candidate], members: bool) -> ModelChoice | None:
    strong = [each for each in candidates if each.weight(members=members) >= ENOUGH]
    nearest = min((each.nearness for each in strong), default=0)
    strong = in_order([each for each in strong if each.nearness == nearest], members=members)
    weights = [each.weight(members=members) for each in strong[:2]]
    if not strong or (len(strong) > 1 and weights[0] == weights[1]):
        return None
    return _choice(strong[0], Reason.MEMBERS if members else Reason.NETWORKS, candidates)


def _choice(taken: Candidate, reason: Reason, candidates: Sequence[Candidate]) -> ModelChoice:
    return ModelChoice(taken, reason, tuple(each for each in candidates if each is not taken))
