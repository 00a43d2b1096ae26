"""Plans of new hops, alone and between hops that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from swarm_node.client.hops.edge_codecs import EdgeCodecs
from swarm_node.client.hops.hop import HopClient
from swarm_node.client.hops.line_up import plan_line
from swarm_node.client.hops.plan import HopPlan, RouteSettings, SessionSettings
from swarm_node.client.routing.prefix import PrefixKey
from swarm_node.client.routing.router import Router
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import BF16, NONE
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.errors import HopFailedError
from swarm_node.swarm.fidelity.row_reader import RowReader
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


def test_each_boundary_has_the_scales_of_who_reads_there(scaled: RouteSettings) -> None:
    plans = plan_line([A, B, C], scaled, IDS, always)
    assert names(plans) == [(scales(0), scales(2)), (scales(2), "f8"), ("f8", scales(6))]
    without = changed(scaled, tables={}, offers=lambda peer_id: None)
    assert names(plan_line([A, B, C], without, IDS, always)) == [("f8", "f8")] * 3
    asked = changed(scaled, wanted="int8")
    assert names(plan_line([A, B, C], asked, IDS, always)) == [("int8", "int8")] * 3


def test_a_node_s_own_scales_are_for_its_first_block(scaled: RouteSettings) -> None:
    """Those of the model come second; b's are not for a boundary in its span."""
    scaled = changed(scaled, tables={2: table_of(8, 9), 3: table_of(8, 3)})
    inside = [Hop("a", Span(0, 3)), Hop("b", Span(3, 6))]
    assert names(plan_line(inside, scaled, IDS, always)) == [("f8", scales(3)), (scales(3), "f8")]
    assert names(plan_line([A, B, C], scaled, IDS, always))[1] == (scales(2), "f8")


def test_a_table_that_cannot_be_ends_the_hop_that_offers_it(scaled: RouteSettings) -> None:
    for exponents in (bytes(7), bytes([99] * 8)):
        offers = {"b": Offer(KINDS, 2, exponents)}
        with pytest.raises(HopFailedError, match="table of scales") as caught:
            plan_line([A, B, C], changed(scaled, offers=offers.get), IDS, always)
        assert caught.value.peer_id == "b"


@pytest.mark.parametrize("by_record", [True, False])
def test_a_node_that_wants_less_is_heard_however_it_says_so(scaled: RouteSettings, by_record: bool) -> None:
    """A link's WELCOME may be older than the record, and the other way round."""
    fewer = ("none", "bf16", "f8")
    offers = {"b": Offer(KINDS if by_record else fewer, 2, table_of(8, 2).exponents)}
    scaled.nodes["b"] = replace(scaled.nodes["b"], codecs=fewer if by_record else KINDS)
    plans = plan_line([A, B, C], changed(scaled, offers=offers.get), IDS, always)
    assert names(plans) == [(scales(0), "f8"), ("f8", "f8"), ("f8", scales(6))]


def test_an_old_peer_gets_16_bits(scaled: RouteSettings) -> None:
    scaled.nodes["b"] = replace(scaled.nodes["b"], codecs=("none", "bf16", "fp16", "int8"))
    plans = plan_line([A, B, C], changed(scaled, offers=lambda peer_id: None), IDS, always)
    assert names(plans) == [(scales(0), "bf16"), ("bf16", "bf16"), ("bf16", scales(6))]


def test_a_replacement_keeps_the_scales_that_rows_are_journalled_in(scaled: RouteSettings) -> None:
    """Whatever it wants itself; boundaries that are new choose anew."""
    a, b, c = old = [opened(plan) for plan in plan_line([A, B, C], scaled, IDS, always).values()]
    offers = {"d": Offer(KINDS, 2, table_of(8, 7).exponents), "e": Offer(KINDS, 3, table_of(8, 8).exponents)}
    now = changed(scaled, offers=offers.get)
    assert names(plan_line([a, D, c], now, IDS, always, old)) == [(scales(2), "f8")]
    halves = [a, Hop("d", Span(2, 3)), Hop("e", Span(3, 4)), c]
    assert names(plan_line(halves, now, IDS, always, old)) == [(scales(2), scales(8)), (scales(8), "f8")]
    assert b.codec == codec_of("int8s", 8, 2)


def test_a_node_that_speaks_less_is_spoken_to_so(settings: RouteSettings) -> None:
    settings.nodes["b"] = replace(settings.nodes["b"], codecs=("none", "bf16"))
    plans = plan_line([A, B, C], settings, IDS, always)
    assert [(plan.codec.name, plan.reply_codec.name) for plan in plans.values()] == [
        ("int8", "bf16"),
        ("bf16", "bf16"),
        ("bf16", "int8"),
    ]


def test_the_last_edge_has_the_scales_that_this_client_has_learned(scaled: RouteSettings) -> None:
    """Of what comes from the network of the last hop; where there are none, those of the model."""
    reader = RowReader(np.ones(8, np.float32), lambda: 0.0)
    rows = np.random.default_rng(0).standard_normal((512, 8)).astype(np.float32) * np.exp2(np.arange(8.0))
    reader.sampler.learn(rows.astype(np.float32), 0, "near")
    reader.look()
    table = reader.table_for("near")
    assert table is not None
    learned = Int8sCodec.of(table).name
    for group, expected in (("near", learned), ("far", scales(6))):
        offers = {"c": Offer(KINDS, 4, b"", group)}
        now = changed(scaled, offers=offers.get, reader=reader)
        assert names(plan_line([A, B, C], now, IDS, always))[-1][1] == expected
    unknown = changed(scaled, tables={}, offers=lambda peer_id: None, reader=reader)
    assert names(plan_line([A, B, C], unknown, IDS, always))[-1][1] == "f8"


def test_a_codec_that_loses_too_much_for_its_reader_is_avoided(scaled: RouteSettings) -> None:
    """The reader of an edge says so, or the model's certificate; what is left is finer."""
    nodes = {**scaled.nodes, "b": replace(scaled.nodes["b"], coarse=("int8s", "none"))}
    reader = RowReader(np.ones(8, np.float32), lambda: 0.0)
    reader.coarse = ("int8s", "f8")
    told = changed(replace(scaled, nodes=nodes), reader=reader)
    assert names(plan_line([A, B, C], told, IDS, always)) == [(scales(0), "f8"), ("f8", "f8"), ("f8", "bf16")]
    failed = changed(scaled, failed={"f8", "bf16", "none"})
    assert names(plan_line([A, B, C], failed, IDS, always)) == [
        (scales(0), scales(2)),
        (scales(2), "bf16"),
        ("bf16", scales(6)),
    ]
    insisting = changed(told, failed={"int8"}, wanted="int8", insists=True)
    assert names(plan_line([A, B, C], insisting, IDS, always)) == [("int8", "int8")] * 3
