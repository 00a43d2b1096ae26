from __future__ import annotations

from collections.abc import Sequence

import pytest

from swarm_node.node.auto.blocks import LONGEST_SETTLE_S, SETTLE_S
from swarm_node.node.resources import MemoryShortError
from swarm_node.swarm.errors import CheckpointError, NetworkError
from swarm_node.swarm.placement.types import Gain, ModelShape, NodeOffer, Serve, StandBy, Stay, Verdict
from swarm_node.swarm.types import NodeInfo, NodeState, Span
from tests.node.auto_swarm import MODEL, ROOM, SHAPE, FakeSwarm, machine


def serve(start: int, end: int) -> Serve:
    return Serve(Span(start, end), Gain.COVER, f"serve {start}-{end - 1}", 1000, 0.01, 0.02, 100.0, 50.0)


class Script:
    """A planner that says what it is told to: how nodes carry it out is looked at here."""

    def __init__(self, **joins: Verdict) -> None:
        self.joins: dict[str, Verdict] = joins
        self.moves: dict[str, Serve] = {}
        self.asked: list[tuple[str, int]] = []

    def plan_join(self, snapshot: Sequence[NodeInfo], offer: NodeOffer, shape: ModelShape) -> Verdict:
        self.asked.append((offer.peer_id, offer.memory_bytes // shape.room_of(1)))
        return self.joins.get(offer.peer_id, StandBy("nothing to do"))

    def plan_move(self, snapshot, offer, shape, *, now, last_move_at=None) -> Serve | Stay:
        assert last_move_at is not None
        if any(node.state is not NodeState.ONLINE for node in snapshot):
            return Stay("somebody joins or drains")
        return self.moves.get(offer.peer_id, Stay("well placed"))

    def why_not_leave(self, snapshot: Sequence[NodeInfo], peer_id: str, n_blocks: int) -> str:
        others = [node.peer_id for node in snapshot if node.state is NodeState.DRAINING]
        return "another goes first" if min(others) < peer_id else ""


async def test_a_node_alone_settles_loads_and_goes_online():
    async with FakeSwarm(Script(a=serve(0, 12))) as swarm:
        host = swarm.start("a", machine(12))
        took = await swarm.covered(within=60)
        assert host.names == ["planned", "online"]
        assert host.events[0][1]["blocks"] == "0-11"
        assert SETTLE_S <= took - 12 * host.load_s < SETTLE_S + 0.6
        assert host.announced.max_blocks == 12


async def test_what_is_being_loaded_is_not_up_for_change():
    async with FakeSwarm(Script(a=serve(0, 12))) as swarm:
        host = swarm.start("a", machine(12))
        await swarm.time.until(lambda: host.announced is not None, within=5)
        assert (host.announced.state, host.announced.max_blocks) == (NodeState.JOINING, 12)
        await swarm.time.until(lambda: host.announced.max_blocks == 0, within=5)
        assert not host.is_serving
        await swarm.covered(within=60)


async def test_the_plan_is_made_again_while_others_join():
    script = Script(a=serve(0, 12), b=serve(6, 12))
    async with FakeSwarm(script) as swarm:
        host = swarm.start("a", machine(12))
        await swarm.time.pass_by(SETTLE_S * 0.8)
        swarm.start("b", machine(6))
        script.joins["a"] = serve(0, 6)
        swarm.news()
        await swarm.covered(within=60)
        assert swarm.spans == {"a": Span(0, 6), "b": Span(6, 12)}
        assert [details["blocks"] for name, details in host.events if name == "planned"] == ["0-11", "0-5"]


async def test_a_plan_that_never_settles_is_carried_out_in_the_end():
    class Restless(Script):
        def plan_join(self, snapshot, offer, shape) -> Verdict:
            super().plan_join(snapshot, offer, shape)
            return serve(0, 11 + len(self.asked) % 2)

    async with FakeSwarm(Restless()) as swarm:
        host = swarm.start("a", machine(12), load_s=0.0)
        took = await swarm.time.until(lambda: host.is_online, within=60)
        assert LONGEST_SETTLE_S <= took < LONGEST_SETTLE_S + 2


async def test_a_node_that_would_not_help_stands_by_and_joins_when_it_would():
    script = Script(a=serve(0, 12), b=StandBy("all blocks have two servers"))
    async with FakeSwarm(script) as swarm:
        swarm.start("a", machine(12))
        host = swarm.start("b", machine(3))
        await swarm.covered(within=60)
        await swarm.time.pass_by(30)
        assert host.events == [("standing_by", {"why": "all blocks have two servers"})]  # said once
        assert host.announced is None
        script.joins["b"] = serve(0, 3)
        swarm.news()
        assert await swarm.time.until(lambda: host.is_online, within=60) < 10
        assert host.names == ["standing_by", "planned", "online"]


async def test_a_machine_without_room_for_a_block_says_so():
    async with FakeSwarm(Script()) as swarm:
        host = swarm.start("a", machine(0))
        await swarm.time.until(lambda: bool(host.events), within=5)
        assert host.names == ["standing_by"]
        assert "KV cache" in host.events[0][1]["why"]
        host.set_free(2)
        swarm._planner.joins["a"] = serve(3, 5)
        swarm.news()
        await swarm.time.until(lambda: host.is_online, within=20)


async def test_memory_that_runs_short_makes_a_smaller_offer():
    class Greedy(Script):
        def plan_join(self, snapshot, offer, shape) -> Verdict:
            super().plan_join(snapshot, offer, shape)
            return serve(0, min(shape.n_blocks, offer.memory_bytes // shape.room_of(1)))

    planner = Greedy()
    async with FakeSwarm(planner) as swarm:
        host = swarm.start("a", machine(9), fails=[MemoryShortError("full"), MemoryShortError("full")])
        await swarm.time.until(lambda: host.is_online, within=60)
        assert host.loaded == Span(0, 7)
        assert [details["max_blocks"] for name, details in host.events if name == "memory_short"] == [8, 7]
        assert host.names[-1] == "online"


async def test_a_source_of_weights_that_fails_is_tried_again():
    async with FakeSwarm(Script(a=serve(0, 12))) as swarm:
        host = swarm.start("a", machine(12), fails=[NetworkError("nobody has the weights")])
        await swarm.covered(within=90)
        assert host.names == ["planned", "standing_by", "planned", "online"]
        assert host.events[1][1]["why"] == "nobody has the weights"


async def test_a_directory_that_is_away_is_waited_for():
    async with FakeSwarm(Script(a=serve(0, 12))) as swarm:
        swarm.store.down = True
        host = swarm.start("a", machine(12))
        await swarm.time.pass_by(1)
        assert not host.is_serving
        swarm.store.down = False
        await swarm.covered(within=60)
        swarm.store.down = True
        await swarm.time.pass_by(15)
        swarm.store.down = False
        assert host.is_serving


async def test_other_errors_end_the_node():
    async with FakeSwarm(Script(a=serve(0, 12))) as swarm:
        host = swarm.start("a", machine(12), fails=[CheckpointError("damaged")])
        error = await swarm.end_of("a", within=60)
        assert isinstance(error, CheckpointError)
        assert not host.is_serving


async def test_a_move_drains_unloads_and_loads():
    script = Script(a=serve(0, 12), b=serve(0, 6))
    async with FakeSwarm(script) as swarm:
        swarm.start("a", machine(12))
        host = swarm.start("b", machine(6))
        await swarm.time.until(lambda: all(swarm.spans.values()), within=60)
        swarm.never_uncovered = True
        script.moves["b"] = serve(6, 12)
        swarm.news()
        await swarm.time.until(lambda: host.loaded == Span(6, 12), within=60)
        del script.moves["b"]
        assert host.names == ["planned", "online", "moving"]
        assert (host.events[2][1]["blocks"], host.events[2][1]["to"]) == ("0-5", "6-11")
        await swarm.time.until(lambda: host.names[-1] == "online", within=5)
        assert (host.announced.state, host.announced.max_blocks) == (NodeState.ONLINE, 6)
        assert not swarm.holes


@pytest.mark.parametrize("later_s", [0.0, 0.01, 0.3, 0.9, 1.1, 3.0])
async def test_of_two_that_want_to_move_one_goes_first(later_s):
    script = Script(a=serve(0, 12), b=serve(0, 12))
    async with FakeSwarm(script) as swarm:
        hosts = [swarm.start(peer, machine(12), load_s=0.01) for peer in "ab"]
        await swarm.time.until(lambda: all(swarm.spans.values()), within=60)
        swarm.never_uncovered = True
        script.moves["a"] = serve(0, 6)
        swarm.news()
        await swarm.time.pass_by(later_s)
        script.moves["b"] = serve(6, 12)
        swarm.news()
        await swarm.time.until(lambda: any("moving" in host.names for host in hosts), within=30)
        await swarm.time.until(lambda: any(len(span or []) == 6 for span in swarm.spans.values()), within=60)
        script.moves.clear()
        await swarm.time.until(lambda: all(swarm.spans.values()), within=60)
        await swarm.time.pass_by(20)
        assert sorted(len(span) for span in swarm.spans.values()) == [6, 12]
        assert swarm.most_moving <= 1
        assert not swarm.holes


async def test_a_mover_that_must_not_leave_comes_back():
    class Wanted(Script):
        def why_not_leave(self, snapshot, peer_id, n_blocks) -> str:
            return "blocks 0-11 would be served by nobody"

    script = Wanted(a=serve(0, 12))
    async with FakeSwarm(script) as swarm:
        host = swarm.start("a", machine(12))
        await swarm.covered(within=60)
        swarm.never_uncovered = True
        script.moves["a"] = serve(0, 6)
        swarm.news()
        await swarm.time.until(lambda: "staying" in host.names, within=60)
        script.moves.clear()
        await swarm.time.pass_by(10)
        assert host.announced.state is NodeState.ONLINE
        assert host.loaded == Span(0, 12)
        assert not swarm.holes


async def test_memory_short_after_a_move_finds_another_span():
    script = Script(a=serve(0, 12), b=serve(0, 6))
    async with FakeSwarm(script) as swarm:
        swarm.start("a", machine(12))
        host = swarm.start("b", machine(6))
        await swarm.time.until(lambda: all(swarm.spans.values()), within=60)
        script.moves["b"] = serve(6, 12)
        swarm.news()
        script.joins["b"] = serve(9, 12)
        swarm.news()
        host.fails.append(MemoryShortError("full"))
        await swarm.time.until(lambda: host.loaded == Span(9, 12), within=60)
        script.moves.clear()
        assert "memory_short" in host.names


def test_the_scale_of_these_tests():
    assert SHAPE.max_blocks(5 * ROOM) == 5


async def test_a_peer_whose_words_the_planner_fails_over_is_left_out(caplog):
    class Fragile(Script):
        def plan_join(self, snapshot, offer, shape) -> Verdict:
            if any(node.peer_id == "odd" for node in snapshot):
                raise OverflowError("cannot convert float infinity to integer")
            return super().plan_join(snapshot, offer, shape)

    async with FakeSwarm(Fragile(a=serve(0, 12))) as swarm:
        swarm.store.put(NodeInfo("odd", (), MODEL, Span(0, 1), NodeState.ONLINE))
        host = swarm.start("a", machine(12))
        await swarm.time.until(lambda: host.is_online, within=60)
    assert "event=fault where='planning blocks' peer=odd" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_planner_that_always_fails_ends_no_node():
    class Broken(Script):
        broken = True

        def plan_join(self, snapshot, offer, shape) -> Verdict:
            if self.broken:
                raise OverflowError("cannot convert float infinity to integer")
            return super().plan_join(snapshot, offer, shape)

    planner = Broken(a=serve(0, 12))
    async with FakeSwarm(planner) as swarm:
        host = swarm.start("a", machine(12))
        await swarm.time.pass_by(60)
        assert host.names == ["standing_by"]
        planner.broken = False
        await swarm.time.until(lambda: host.is_online, within=60)
