"""Which of the swarm's models a name means, with a reason that a person can judge. It reads the
announcements, asks nodes whether they answer if that matters, and lets ``swarm.naming.model_choice``
decide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import TYPE_CHECKING, Protocol

from ...swarm.errors import UsageError
from ...swarm.names import ModelName, digest_prefix, nearness
from ...swarm.naming.model_choice import Candidate, ModelChoice, Reason, choose, in_order, needs_answers
from ...swarm.transport.address_groups import networks
from ...swarm.types import ModelRef, NodeInfo
from .known_models import KnownModels, UsedModel

if TYPE_CHECKING:
    from ...swarm.naming.witnesses import Witnesses

_HUB_S = 8.0
"""Seconds for the hub to tell its hashes: as long as nodes have to answer."""
_LISTED = 4
"""A message names at most this many models."""


class ModelIndex(Protocol):
    """The part of a directory that names are looked up in."""

    async def models(self) -> list[ModelRef]: ...

    async def nodes_of(self, models: Sequence[ModelRef]) -> list[NodeInfo]: ...


@dataclass(frozen=True, slots=True)
class NameDecision:
    """The model taken for a name that several models may have. ``reason``: of ``model_choice``, or "pinned".
    ``is_change``: this machine has used another model under the name, which no node announces now."""

    name: str
    ref: ModelRef
    reason: str
    sentence: str
    is_change: bool = False

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "model": self.ref.name,
            "digest": self.ref.digest,
            "reason": self.reason,
            "message": self.sentence,
            "is_change": self.is_change,
        }


@dataclass(frozen=True, slots=True)
class SwarmModels:
    """What a swarm has for a name. ``refs``: all that is announced of the model that was taken, the first
    under the name that is nearest; they may differ in the number of blocks, which the files then tell."""

    refs: tuple[ModelRef, ...]
    decision: NameDecision | None = None


async def decide_name(
    wanted: ModelName,
    refs: Sequence[ModelRef],
    index: ModelIndex,
    *,
    witnesses: Witnesses | None = None,
    known: KnownModels | None = None,
    pinned: bool = False,
    hub_digest: Callable[[str], str] | None = None,
) -> SwarmModels | None:
    """The model that is meant among ``refs``, all that the swarm serves; None if none is.

    ``witnesses``: to ask who answers; without, several models are told apart only by what was used before.
    ``hub_digest``: the digest that the hub's own hashes give for one of its names, or ""; it may block for
    long.
    Raises UsageError where a person must say which, and NetworkError.
    """
    meant: dict[str, list[ModelRef]] = {}
    for ref in sorted(refs, key=lambda ref: (nearness(wanted.name, ref.name) or 0, ref.name, -ref.n_blocks)):
        if nearness(wanted.name, ref.name) is not None and wanted.fits(ref.digest):
            meant.setdefault(ref.digest, []).append(ref)
    if not meant:
        return None
    is_open = not (wanted.root or wanted.digest)
    used = None
    if known is not None and is_open:
        used = await asyncio.to_thread(known.used, wanted.name, meant)
        used = used or await asyncio.to_thread(known.used, wanted.name)
    used_digest = "" if used is None else used.digest
    candidates = [Candidate(digest, _near(wanted, meant[digest])) for digest in meant]
    members = witnesses is not None and witnesses.members
    if wanted.root and len(candidates) > 1:
        candidates = await _with_root(candidates, wanted.root, meant, index)
    if used_digest in meant and len(candidates) > 1:  # its nodes are to be dialled in any case
        mine = [each for each in candidates if each.identity == used_digest]
        (mine[0],) = await _asked(mine, meant, index, witnesses)
        candidates = mine + [each for each in candidates if each.identity != used_digest]
    hub = ""
    if needs_answers(candidates, used=used_digest):
        candidates, hub = await asyncio.gather(
            _asked(candidates, meant, index, witnesses), of_hub(hub_digest, wanted.name)
        )
    choice = choose(candidates, used=used_digest, hub=hub, members=members)
    say = _Words(wanted, meant, used, members)
    if choice is None:
        raise say.undecided(candidates)
    found = tuple(meant[choice.taken.identity])
    if pinned:
        return SwarmModels(found, say.pinned(found[0], known))
    return SwarmModels(found, say.decided(choice))


async def _asked(
    candidates: Sequence[Candidate],
    meant: dict[str, list[ModelRef]],
    index: ModelIndex,
    witnesses: Witnesses | None,
) -> list[Candidate]:
    """The candidates with the nodes that announce each, and those that answer."""
    nodes = await index.nodes_of([ref for each in candidates for ref in meant[each.identity]])
    answers = None if witnesses is None else await witnesses.ask(nodes)
    found = []
    for each in candidates:
        peers = {node.peer_id for node in nodes if node.model.digest == each.identity}
        if answers is None:
            found.append(replace(each, nodes=len(peers)))
            continue
        came_from = [answers.came_from[peer] for peer in peers & answers.came_from.keys()]
        found.append(
            replace(
                each,
                nodes=len(peers),
                answered=len(came_from),
                networks=networks(came_from),
                is_silent=peers <= answers.asked and not peers & answers.here,
            )
        )
    return found


async def of_hub(hub_digest: Callable[[str], str] | None, name: str) -> str:
    """What ``hub_digest`` says, if it does so in time."""
    if hub_digest is None:
        return ""
    try:
        async with asyncio.timeout(_HUB_S):
            return await asyncio.to_thread(hub_digest, name)
    except TimeoutError:
        return ""


async def _with_root(
    candidates: Sequence[Candidate], root: str, meant: dict[str, list[ModelRef]], index: ModelIndex
) -> list[Candidate]:
    """The candidates for which a node announces files of this root."""
    nodes = await index.nodes_of([ref for refs in meant.values() for ref in refs])
    said = {node.model.digest for node in nodes if node.weights_root == root}
    return [each for each in candidates if each.identity in said] or list(candidates)


def _near(wanted: ModelName, refs: Sequence[ModelRef]) -> int:
    return nearness(wanted.name, refs[0].name) or 0


@dataclass(frozen=True, slots=True)
class _Words:
    """The sentences for people. ``meant``: what is announced, by digest, the nearest name first."""

    wanted: ModelName
    meant: dict[str, list[ModelRef]]
    used: UsedModel | None
    members: bool

    def decided(self, choice: ModelChoice) -> NameDecision | None:
        """None if there is nothing to tell: there is one model of this name, and always was."""
        taken = choice.taken
        if not choice.others and not choice.before:
            return None
        ref = self.meant[taken.identity][0]
        why = self._why(choice)
        others = in_order(choice.others, members=self.members)
        if others and choice.reason is not Reason.ONLY:
            why += f"; also announced: {self._listed(others)}"
        sentence = f"{self.wanted} is {self._name(taken.identity)} here: {why}."
        if choice.before and self.used is not None:
            sentence = f"{self._before(self.used)}; nobody serves that now. {sentence}"
        return NameDecision(str(self.wanted), ref, str(choice.reason), sentence, bool(choice.before))

    def pinned(self, ref: ModelRef, known: KnownModels | None) -> NameDecision:
        where = "" if known is None else f" in {known.path}"
        sentence = f"{self.wanted.name} is {self._name(ref.digest)} here: pinned{where}."
        return NameDecision(self.wanted.name, ref, "pinned", sentence)

    def undecided(self, candidates: Sequence[Candidate]) -> UsageError:
        ordered = in_order(candidates, members=self.members)
        others = [each for each in ordered if self.used is None or self.used.digest != each.identity]
        first = self._name((others or ordered)[0].identity)
        keep = f"`swarm-node models pin {quote(first)}` keeps that choice"
        if self.used is not None:
            return UsageError(
                f"{self._before(self.used)}; now another model is announced as such: {self._listed(others)}",
                hint=f"If that is right, say --model {first}; {keep}.",
            )
        more = " or others" if len(ordered) > _LISTED else ""
        return UsageError(
            f"{len(candidates)} different models are called {self.wanted} in this swarm, "
            "and none of them is served from more networks than one",
            hint=f"Say which: --model {self._listed(ordered, ' or ')}{more}; {keep}.",
        )

    def _before(self, used: UsedModel) -> str:
        name = f"{used.name}@{self._short(used.digest)}"
        return f"{self.wanted} was {name} when this machine used it last, on {used.last:%Y-%m-%d}"

    def _why(self, choice: ModelChoice) -> str:
        taken = choice.taken
        match choice.reason:
            case Reason.USED if self.used is not None:
                return f"used on this machine since {self.used.first:%Y-%m-%d}"
            case Reason.HUB:
                return "as the HuggingFace hub has it"
            case Reason.ONLY if choice.others:
                return f"nobody answers for {self._listed(choice.others)}"
            case _:
                return _holders(taken)

    def _listed(self, candidates: Sequence[Candidate], between: str = ", ") -> str:
        return between.join(
            self._name(each.identity) + (f" ({told})" if (told := _holders(each)) else "")
            for each in candidates[:_LISTED]
        )

    def _name(self, digest: str) -> str:
        return f"{self.meant[digest][0].name}@{self._short(digest)}"

    def _short(self, digest: str) -> str:
        return digest_prefix(digest, self.meant)


def _holders(candidate: Candidate) -> str:
    """``3 nodes answer from 2 networks``; "" if no node was asked."""
    if candidate.answered:
        nodes = f"{candidate.answered} node{'s answer' if candidate.answered > 1 else ' answers'}"
        return f"{nodes} from {candidate.networks} network{'s' if candidate.networks > 1 else ''}"
    if candidate.nodes:
        return f"{candidate.nodes} node{'s' if candidate.nodes > 1 else ''} announced, none answers"
    return ""
