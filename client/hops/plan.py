"""A hop before it is open: its place in a route, and what all sessions of the route are opened with."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...swarm.boundaries import Boundaries
from ...swarm.codecs.codec import Codec
from ...swarm.figures import MOST_AHEAD, MOST_AHEAD_OF_STATES
from ...swarm.protocol.field_types import Downstream
from ...swarm.types import Hop, NodeInfo
from ..routing.prefix import HopPlace, PageNames, PrefixKey, page_names
from ..routing.router import Router
from .edge_codecs import EdgeCodecs


class Patient(Protocol):
    """Decides how long to wait for a hop that says it works: ``session.doubts.Doubts``."""

    def within_s(self, expected_s: float, queue_s: float) -> float:
        """Seconds for which a hop may show no progress before ``leave`` is asked."""

    def leave(self, hop: Hop) -> bool:
        """Whether to go elsewhere."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all hops of a session share. ``boundaries``: of the model. ``max_tokens``: KV cache to reserve, in
    tokens. ``embedding_rms``: root mean square of the model's usual embedding, 0 where it is not known.
    ``keeps_states``: blocks of the model do, so that a hop that knows a prompt up to the end of a page cannot
    be asked for its last token once more."""

    boundaries: Boundaries
    max_tokens: int
    embedding_rms: float = 0.0
    keeps_states: bool = False


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What a route's session is opened with. ``codecs``: of its edges. ``router`` says which hops may be
    chained; without one the client carries every activation itself. ``nodes``: the announcements of its hops,
    by peer id. With ``prefix`` hops are asked for pages that they may hold. ``doubts``: when one is left that
    may only be slow. ``on_progress`` is told how many tokens went through all hops, while a prompt is fed."""

    session: SessionSettings
    codecs: EdgeCodecs
    router: Router | None
    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    prefix: PrefixKey | None = None
    doubts: Patient | None = None
    on_progress: Callable[[int], None] | None = None

    def may_chain(self, before: str, after: str) -> bool:
        return self.router is not None and self.router.may_chain(before, after)

    def codec_between(
        self, before: str | None, after: str | None, boundary: int, ids: Sequence[int] = ()
    ) -> Codec:
        """See ``EdgeCodecs.between``."""
        return self.codecs.between(before, after, boundary, self.session.boundaries, self.nodes, ids)


@dataclass(frozen=True, slots=True)
class HopPlan:
    """A hop's place in a route, before it is open.

    ``session`` is chosen before any OPEN, so that each can name the next. ``codec`` is of what comes in,
    ``reply_codec`` of what goes out. ``announced``: the node's announcement, if it is known. ``upstream`` and
    ``downstream`` as in OPEN. ``names`` are of the pages of ``ids`` that the node may hold already.
    ``parent``: the session on that node whose first ``parent_tokens`` tokens it begins with.
    """

    hop: Hop
    number: int
    hops: int
    session: bytes
    codec: Codec
    reply_codec: Codec
    announced: NodeInfo | None = None
    upstream: str = ""
    downstream: Downstream | None = None
    names: PageNames | None = None
    ids: Sequence[int] = ()
    parent: bytes | None = None
    parent_tokens: int = 0


def most_ahead(settings: SessionSettings) -> int:
    """Tokens by which every hop can go back, from anywhere."""
    return MOST_AHEAD_OF_STATES if settings.keeps_states else MOST_AHEAD


def new_session() -> bytes:
    return secrets.token_bytes(16)


def places(plans: Sequence[HopPlan]) -> list[HopPlace]:
    """What determines the input of each hop, and of those after it."""
    return [
        HopPlace(
            plan.hop.peer_id, plan.hop.span, plan.announced.weights if plan.announced else "", plan.codec.name
        )
        for plan in plans
    ]


def names_for(plans: Sequence[HopPlan], settings: RouteSettings) -> Sequence[PageNames | None]:
    """The names of each hop's pages, where the session has any."""
    if settings.prefix is None:
        return [None] * len(plans)
    return page_names(settings.prefix, places(plans))
