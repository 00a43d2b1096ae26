"""Plans of new hops, alone and between hops that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from swarm_node.client.hops.edge_codecs import EdgeCodecs
from swarm_node.client.hops.hop import HopClient
from swarm_node.client.hops.line_up import plan_line
from swarm_node.client.hops.plan import HopPlan, RouteSettings, SessionSettings
from swarm_node.client.routing.prefix import PrefixKey
from swarm_node.client.routing.router import Router
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.kinds import BF16, NONE
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.links.link import NodeLink
from swarm_node.swarm.links.pool import Offer
from swarm_node.swarm.types import Hop, Span
from tests.doubles.fake_swarm import FakeSwarm
from tests.swarm.codecs.codec_cases import codec_of, table_of

IDS = list(range(100))
A, B, C, D = Hop("a", Span(0, 2)), Hop("b", Span(2, 4)), Hop("c", Span(4, 6)), Hop("d", Span(2, 4))


def always(before: str, after: str) -> bool:
    return True


@pytest.fixture
def settings() -> RouteSettings:
    nodes = FakeSwarm(a="0-1", b="2-3", c="4-5", d="2-3").settings().nodes
    session = SessionSettings(Boundaries.alike(12, 8), 256)
    return RouteSettings(
        session, EdgeCodecs("int8"), cast(Router, None), nodes, PrefixKey(bytes(32), "ab" * 32)
    )


def opened(plan: HopPlan) -> HopClient:
    return HopClient(plan, cast(NodeLink, None), SessionSettings(Boundaries.alike(12, 8), 256), 1000)


def test_a_new_route_names_every_hop_s_pages(settings: RouteSettings) -> None:
    plans = plan_line([A, B, C], settings, IDS, always)
    assert [plan.ids for plan in plans.values()] == [IDS] * 3
    assert all(plan.names is not None for plan in plans.values())
    assert [plan.upstream for plan in plans.values()] == ["", "a", "b"]
    for number in (0, 1):
        downstream = plans[number].downstream
        assert downstream is not None
        assert downstream.session == plans[number + 1].session


def test_a_hop_that_must_feed_another_new_one_computes_everything(settings: RouteSettings) -> None:
    """Also where none of the old hops stays: what it held already would not be in its journal."""
    old = [opened(plan) for plan in plan_line([Hop("a", Span(0, 6))], settings, IDS, always).values()]
    plans = plan_line([A, B, C], settings, IDS, always, old)
    assert [plan.ids for plan in plans.values()] == [(), (), IDS]


def test_between_hops_that_stay(settings: RouteSettings) -> None:
    a, b, c = old = [opened(plan) for plan in plan_line([A, B, C], settings, IDS, always).values()]
    for hop, codec in ((a, BF16), (c, NONE)):
        hop.codec = hop.reply_codec = codec
    (plan,) = plan_line([a, D, c], settings, IDS, lambda before, after: after != "c", old).values()
    assert (plan.number, plan.hops, plan.codec, plan.reply_codec) == (1, 3, BF16, NONE)
    assert (plan.upstream, plan.downstream) == ("a", None)
    assert plan.names is not None
    assert b.session != plan.session
    c.lacks(64)
    (plan,) = plan_line([a, D, c], settings, IDS, always, old).values()
    assert plan.ids == (), "it has to feed c from its journal"
    a.forget_names()
    (plan,) = plan_line([a, D, c], settings, IDS, always, old).values()
    assert plan.names is None, "what comes to it is not what names would say"


@pytest.fixture
def scaled(settings: RouteSettings) -> RouteSettings:
    """The default. The client knows the scales of boundaries 0 and 6, and what b has told it."""
    offers = {"b": Offer(KINDS, 2, table_of(8, 2).exponents)}
    tables = {0: table_of(8, 0), 6: table_of(8, 6)}
    return changed(settings, wanted="int8s", tables=tables, offers=offers.get)


def changed(settings: RouteSettings, **changes: Any) -> RouteSettings:
    """With other fields of its codecs."""
    return replace(settings, codecs=replace(settings.codecs, **changes))


def names(plans: dict[int, HopPlan]) -> list[tuple[str, str]]:
    return [(plan.codec.name, plan.reply_codec.name) for plan in plans.values()]


def scales(seed: int) -> str:
    return codec_of("int8s", 8, seed).name


def test_a_replacement_keeps_the_scales_that_rows_are_journalled_in(scaled: RouteSettings) -> None:
    """Whatever it wants itself; boundaries that are new choose anew."""
    a, b, c = old = [opened(plan) for plan in plan_line([A, B, C], scaled, IDS, always).values()]
    offers = {"d": Offer(KINDS, 2, table_of(8, 7).exponents), "e": Offer(KINDS, 3, table_of(8, 8).exponents)}
    now = changed(scaled, offers=offers.get)
    assert names(plan_line([a, D, c], now, IDS, always, old)) == [(scales(2), "f8")]
    halves = [a, Hop("d", Span(2, 3)), Hop("e", Span(3, 4)), c]
    assert names(plan_line(halves, now, IDS, always, old)) == [(scales(2), scales(8)), (scales(8), "f8")]
    assert b.codec == codec_of("int8s", 8, 2)
