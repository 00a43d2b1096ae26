"""What models a swarm's clients want and cannot get, and which of them an idle node should load.

Everything here is computed from what peers say, and a peer may say anything. So a peer has one vote, divided
among the models it names, and an idle node picks with the chance that the votes give, not the model that has
most: a tenth of the votes moves a tenth of the idle nodes. Identities cost nothing where a swarm has no
membership; what an idle node loads at all is bounded by what its owner allows.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..names import PREFIX, is_same_name
from ..routing.best_route import missing_blocks
from ..types import ModelRef, NodeInfo, NodeState, Span

MAX_WANTED = 4
"""One peer may want at most this many models at a time."""
MAX_DEMAND = 64
"""A reader of the demand looks at this many models at most, those with most votes."""
SPREAD_S = 3.0
"""Idle nodes answer a new demand one after another within this many seconds, so that later ones see what the
first have taken."""
COOL_DOWN_S = 60.0
"""At least this many seconds pass between two models of one node, because loading costs as much as
serving."""
UNUSED_S = 600.0
"""A complete model that was not used for this many seconds may make room for a wanted one."""
PATIENCE_S = 120.0
"""A model counts as short of nodes if it was wanted for this many seconds although all its blocks are served
or being loaded. Its nodes may be too few, or may not work."""


@dataclass(frozen=True, slots=True)
class WantedModel:
    """``digest`` is "" where any model of that name will do."""

    name: str
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:PREFIX]}" if self.digest else self.name


@dataclass(frozen=True, slots=True)
class Wanted:
    """One peer's signed record: it looks for these models, MAX_WANTED at most, and finds no route."""

    peer_id: str
    models: tuple[WantedModel, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """A model that is wanted. ``votes``: of ``peers``, each has one in all. ``ref``: the model that nodes
    announce under this name or digest, None if none does. ``missing``: blocks that no node serves or is
    loading; () as well while no node has begun. ``loading``: nodes that are joining with blocks of it."""

    model: WantedModel
    peers: tuple[str, ...]
    votes: float
    ref: ModelRef | None = None
    missing: tuple[Span, ...] = ()
    loading: tuple[NodeInfo, ...] = ()
    seen_s: float = 0.0
    """Seconds for which the reader has seen the demand."""

    @property
    def covered(self) -> float:
        """Part of the blocks that is served or being loaded."""
        if self.ref is None:
            return 0.0
        return 1.0 - sum(map(len, self.missing)) / self.ref.n_blocks

    @property
    def key(self) -> str:
        """A key that is the same for all that want the same model."""
        return self.model.digest or self.model.name.casefold()


@dataclass(frozen=True, slots=True)
class Idle:
    """A node that may load what others want. ``serving``: digest of the model it holds, "" for none.
    ``in_use``: sessions are open, or its owner chose the model. Times are seconds, since the model was chosen
    and since it was used."""

    serving: str = ""
    in_use: bool = False
    since_change_s: float = math.inf
    unused_s: float = math.inf


def tally(records: Iterable[Wanted], nodes: Sequence[NodeInfo]) -> list[Demand]:
    """The demand, most votes first. A name that exactly one announced model has counts as that model."""
    refs = {node.model.digest: node.model for node in nodes}
    votes: dict[WantedModel, float] = {}
    peers: dict[WantedModel, set[str]] = {}
    names: dict[WantedModel, Counter[str]] = {}
    heard: set[str] = set()
    for record in records:
        if record.peer_id in heard:
            continue
        heard.add(record.peer_id)
        meant = {_known(model, refs): model.name for model in record.models[:MAX_WANTED]}
        for model, name in meant.items():
            votes[model] = votes.get(model, 0.0) + 1 / len(meant)
            peers.setdefault(model, set()).add(record.peer_id)
            names.setdefault(model, Counter())[name] += 1
    ordered = sorted(votes, key=lambda model: (-votes[model], model.digest or model.name))
    return [
        _demand(
            replace(model, name=_name(model, refs, names[model])), sorted(peers[model]), votes[model], nodes
        )
        for model in ordered[:MAX_DEMAND]
    ]


def next_model(
    demand: Sequence[Demand], can_get: Callable[[Demand], bool], idle: Idle, *, peer_id: str
) -> Demand | None:
    """What an idle node should load now; None to stay as it is. ``can_get``: whether its owner allows the
    model and it can have the weights.

    A node never leaves a model that is in use, or complete and used lately. One that holds a part of a model
    that is not completed goes where all such nodes go, so that two of them do not wait for each other.
    """
    if idle.in_use or (idle.serving and idle.since_change_s < COOL_DOWN_S):
        return None
    own = next((each for each in demand if idle.serving and each.model.digest == idle.serving), None)
    open_ = [each for each in demand if is_open(each) and can_get(each)]
    if own is not None and own.missing:
        first = max(open_, key=_common_order, default=None)
        return first if first is not None and first.key != own.key else None
    if idle.serving and idle.unused_s < UNUSED_S:
        return None
    others = [each for each in open_ if each is not own]
    drawn = max(others, key=lambda each: _draw(peer_id, each), default=None)
    return drawn if drawn is not None and drawn.seen_s >= _delay(peer_id, drawn) else None


def is_open(demand: Demand) -> bool:
    """Whether nodes are needed: some block is not being loaded, or all are and it has not helped for
    PATIENCE_S."""
    return demand.ref is None or bool(demand.missing) or demand.seen_s >= PATIENCE_S


def _known(model: WantedModel, refs: dict[str, ModelRef]) -> WantedModel:
    """One value for all that mean the same model; the name is put back later."""
    if not model.digest:
        meant = [digest for digest, ref in refs.items() if is_same_name(model.name, ref.name)]
        if len(meant) != 1:
            return WantedModel(model.name.casefold())
        return WantedModel("", meant[0])
    return WantedModel("", model.digest)


def _name(model: WantedModel, refs: dict[str, ModelRef], said: Counter[str]) -> str:
    if model.digest in refs:
        return refs[model.digest].name
    return min(said, key=lambda name: (-said[name], name))


def _demand(model: WantedModel, peers: Sequence[str], votes: float, nodes: Sequence[NodeInfo]) -> Demand:
    holders = [node for node in nodes if node.model.digest == model.digest]
    coming = [node for node in holders if node.state is not NodeState.DRAINING]
    ref = holders[0].model if holders else None
    return Demand(
        model,
        tuple(peers),
        votes,
        ref,
        missing_blocks(coming, ref.n_blocks) if ref else (),
        tuple(node for node in holders if node.state is NodeState.JOINING),
    )


def _score(demand: Demand) -> float:
    """The votes, and up to as much again for a model that others have begun, because half a model is of no
    use."""
    return demand.votes * (1 + (demand.covered if demand.missing else 0.0))


def _common_order(demand: Demand) -> tuple[float, str]:
    return (_score(demand), hashlib.sha256(demand.key.encode()).hexdigest())


def _uniform(*parts: str) -> float:
    """A number above 0 and below 1 that looks random and is the same at every call."""
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return (int.from_bytes(digest[:8]) + 0.5) / 2**64


def _draw(peer_id: str, demand: Demand) -> float:
    """The largest is each model's with a chance proportional to its score (weighted rendezvous hashing,
    Schindelhauer and Schomaker 2005): over many nodes the shares are the scores', for one node the choice
    stays what it is while the scores do."""
    return -_score(demand) / math.log(_uniform("draw", peer_id, demand.key))


def _delay(peer_id: str, demand: Demand) -> float:
    return SPREAD_S * _uniform("delay", peer_id, demand.key)
