"""Plans of new hops, alone and between hops that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from swarm_node.client.hops.hop import HopClient
from swarm_node.client.hops.line_up import plan_line
from swarm_node.client.hops.plan import HopPlan, RouteSettings, SessionSettings
from swarm_node.client.routing.prefix import PrefixKey
from swarm_node.client.routing.router import Router
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.kinds import BF16, NONE
from swarm_node.swarm.links.link import NodeLink
from swarm_node.swarm.types import Hop, Span
from tests.doubles.fake_swarm import FakeSwarm

IDS = list(range(100))
A, B, C, D = Hop("a", Span(0, 2)), Hop("b", Span(2, 4)), Hop("c", Span(4, 6)), Hop("d", Span(2, 4))


def always(before: str, after: str) -> bool:
    return True


@pytest.fixture
def settings() -> RouteSettings:
    nodes = FakeSwarm(a="0-1", b="2-3", c="4-5", d="2-3").settings().nodes
    session = SessionSettings(Boundaries.alike(12, 8), 256)
    return RouteSettings(session, "int8", cast(Router, None), nodes, PrefixKey(bytes(32), "ab" * 32))


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


def test_a_node_that_speaks_less_is_spoken_to_so(settings: RouteSettings) -> None:
    settings.nodes["b"] = replace(settings.nodes["b"], codecs=("none", "bf16"))
    plans = plan_line([A, B, C], settings, IDS, always)
    assert [(plan.codec.name, plan.reply_codec.name) for plan in plans.values()] == [
        ("int8", "bf16"),
        ("bf16", "bf16"),
        ("bf16", "int8"),
    ]
