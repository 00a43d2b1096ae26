"""Which codec the edge between two peers takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from swarm_node.client.hops.edge_codecs import DOUBTED_S, EdgeCodecs, TableDoubts
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.errors import HopFailedError
from swarm_node.swarm.fidelity.row_reader import RowReader
from swarm_node.swarm.links.pool import Offer
from swarm_node.swarm.transport.address_groups import UNKNOWN
from swarm_node.swarm.types import NodeInfo
from tests.doubles.fake_swarm import FakeSwarm
from tests.swarm.codecs.codec_cases import codec_of, table_of

ROUTE = ((None, "a", 0), ("a", "b", 2), ("b", "c", 4), ("c", None, 6))
"""Edges, and where they are."""
SCALED = EdgeCodecs(
    "int8s",
    tables={0: table_of(8, 0), 6: table_of(8, 6)},
    offers={"b": Offer(KINDS, 2, table_of(8, 2).exponents)}.get,
)
"""As by default: the client knows the scales of boundaries 0 and 6, and what b has told it."""


@pytest.fixture
def nodes() -> dict[str, NodeInfo]:
    return FakeSwarm(a="0-1", b="2-3", c="4-5").settings().nodes


def names(
    codecs: EdgeCodecs,
    nodes: dict[str, NodeInfo],
    route: tuple[tuple[str | None, str | None, int], ...] = ROUTE,
) -> list[str]:
    boundaries = Boundaries.alike(12, 8)
    return [codecs.between(*edge, boundaries, nodes).name for edge in route]


def scales(seed: int) -> str:
    return codec_of("int8s", 8, seed).name


def test_each_boundary_has_the_scales_of_who_reads_there(nodes: dict[str, NodeInfo]) -> None:
    assert names(SCALED, nodes) == [scales(0), scales(2), "f8", scales(6)]
    assert names(EdgeCodecs("int8s"), nodes) == ["f8"] * 4
    assert names(replace(SCALED, wanted="int8"), nodes) == ["int8"] * 4


def test_a_node_s_own_scales_are_for_its_first_block(nodes: dict[str, NodeInfo]) -> None:
    """Those of the model come second; b's are not for a boundary in its span."""
    codecs = replace(SCALED, tables={2: table_of(8, 9), 3: table_of(8, 3)})
    inside = ((None, "a", 0), ("a", "b", 3), ("b", None, 6))
    assert names(codecs, nodes, inside) == ["f8", scales(3), "f8"]
    assert names(codecs, nodes) == ["f8", scales(2), "f8", "f8"]


@pytest.mark.parametrize("exponents", [bytes(7), bytes([99] * 8)])
def test_a_table_that_cannot_be_ends_the_hop_that_offers_it(
    nodes: dict[str, NodeInfo], exponents: bytes
) -> None:
    offers = {"b": Offer(KINDS, 2, exponents)}
    with pytest.raises(HopFailedError, match="table of scales") as caught:
        names(replace(SCALED, offers=offers.get), nodes)
    assert caught.value.peer_id == "b"


@pytest.mark.parametrize("by_record", [True, False])
def test_a_node_that_wants_less_is_heard_however_it_says_so(
    nodes: dict[str, NodeInfo], by_record: bool
) -> None:
    """A link's WELCOME may be older than the record, and the other way round."""
    fewer = ("none", "bf16", "f8")
    offers = {"b": Offer(KINDS if by_record else fewer, 2, table_of(8, 2).exponents)}
    nodes["b"] = replace(nodes["b"], codecs=fewer if by_record else KINDS)
    assert names(replace(SCALED, offers=offers.get), nodes) == [scales(0), "f8", "f8", scales(6)]


def test_an_old_peer_gets_16_bits(nodes: dict[str, NodeInfo]) -> None:
    nodes["b"] = replace(nodes["b"], codecs=("none", "bf16", "fp16", "int8"))
    unknown = replace(SCALED, offers=lambda peer_id: None)
    assert names(unknown, nodes) == [scales(0), "bf16", "bf16", scales(6)]


def test_a_node_that_speaks_less_is_spoken_to_so(nodes: dict[str, NodeInfo]) -> None:
    nodes["b"] = replace(nodes["b"], codecs=("none", "bf16"))
    assert names(EdgeCodecs("int8"), nodes) == ["int8", "bf16", "bf16", "int8"]


def test_the_last_edge_has_the_scales_that_this_client_has_learned(nodes: dict[str, NodeInfo]) -> None:
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
        assert names(replace(SCALED, offers=offers.get, reader=reader), nodes)[-1] == expected
    assert names(EdgeCodecs("int8s", reader=reader), nodes)[-1] == "f8"


def test_a_codec_that_loses_too_much_for_its_reader_is_avoided(nodes: dict[str, NodeInfo]) -> None:
    """The reader of an edge says so, or the model's certificate; what is left is finer."""
    failed = replace(SCALED, failed={"f8", "bf16", "none"})
    assert names(failed, nodes) == [scales(0), scales(2), "bf16", scales(6)]
    nodes["b"] = replace(nodes["b"], coarse=("int8s", "none"))
    reader = RowReader(np.ones(8, np.float32), lambda: 0.0)
    reader.coarse = ("int8s", "f8")
    told = replace(SCALED, reader=reader)
    assert names(told, nodes) == [scales(0), "f8", "f8", "bf16"]
    assert names(replace(told, failed={"int8"}, wanted="int8", insists=True), nodes) == ["int8"] * 4


HARMFUL = ScaleTable(bytes([0] * 5 + [30] * 3))


def spread(ids: Sequence[int]) -> np.ndarray:
    """Rows of 8 channels alike, but for token 0, whose row is 0."""
    x = np.stack([np.random.default_rng(token).standard_normal(8) * (token > 0) for token in ids])
    return x.astype(np.float32)


@pytest.mark.parametrize(
    ("ids", "taken"), [([5], False), ([0] * 500 + [5] * 500, False), ([0] * 9, True), ([], True)]
)
def test_a_table_is_tried_on_what_is_going_to_be_sent(
    nodes: dict[str, NodeInfo], ids: list[int], taken: bool
) -> None:
    """And is not believed again for an hour, even where nothing can be tried."""
    now = 0.0
    wide = Boundaries.alike(12, 8)
    offers = {"a": Offer(KINDS, 0, HARMFUL.exponents), "b": Offer(KINDS, 2, HARMFUL.exponents)}
    codecs = EdgeCodecs(
        "int8s", offers=offers.get, embed=spread, doubts=TableDoubts(lambda: now), failed={"f8"}
    )
    name = Int8sCodec.of(HARMFUL).name
    assert codecs.between(None, "a", 0, wide, nodes, ids).name == (name if taken else "bf16")
    assert ("a" in codecs.doubts) is not taken
    assert names(codecs, nodes)[:2] == [name if taken else "bf16", name]
    now = DOUBTED_S
    assert names(codecs, nodes)[:2] == [name, name]


def test_a_good_table_is_taken_after_it_was_tried(nodes: dict[str, NodeInfo]) -> None:
    offers = {"a": Offer(KINDS, 0, bytes(8))}
    codecs = EdgeCodecs("int8s", offers=offers.get, embed=spread)
    name = Int8sCodec.of(ScaleTable(bytes(8))).name
    assert codecs.between(None, "a", 0, Boundaries.alike(12, 8), nodes, range(1, 400)).name == name


def test_rows_for_who_is_doubted_have_no_scales(nodes: dict[str, NodeInfo]) -> None:
    """Nor those of a certificate, which may be the very ones that were found to do harm; this client's own
    learned ones neither."""
    reader = RowReader(np.ones(8, np.float32), lambda: 0.0)
    rows = np.random.default_rng(0).standard_normal((512, 8)).astype(np.float32)
    reader.sampler.learn(rows, 0, UNKNOWN)
    reader.look()
    codecs = replace(SCALED, reader=reader, doubts=TableDoubts())
    assert names(codecs, nodes)[1::2] == [scales(2), Int8sCodec.of(ScaleTable(bytes(8))).name]
    codecs.doubts.add("b")
    codecs.doubts.add(None)
    assert names(codecs, nodes)[1::2] == ["f8", "f8"]


def test_a_kind_without_scales_that_a_person_asked_for_gives_way_to_none_that_failed(
    nodes: dict[str, NodeInfo], caplog: pytest.LogCaptureFixture
) -> None:
    """As without the wish, and one line says so."""
    asked = EdgeCodecs("int8s", insists=True, failed=("int8", "f8"), tables={6: table_of(8, 6)})
    assert names(asked, nodes) == ["bf16", "bf16", "bf16", scales(6)]
    (line,) = caplog.messages
    assert "wanted=int8s taken=bf16" in line
    assert "no scales are known" in line
    assert names(replace(asked, wanted="f8"), nodes) == ["f8"] * 4  # what was asked for, though it failed
    assert len(caplog.messages) == 1
