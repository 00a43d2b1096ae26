"""``swarm-node plan``: what this machine would do in a swarm, in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.auto import plan
from swarm_node.node.auto.plan import look_ahead
from swarm_node.node.cli.models.plan import lines
from swarm_node.node.config import NodeConfig
from swarm_node.node.engine.memory.span_memory import SessionBytes
from swarm_node.node.presence import roll_call
from swarm_node.shards.catalogue.catalogue import find_in_catalogue
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.swarm.errors import PeerUnreachableError
from swarm_node.swarm.membership.entry import SwarmEntry
from swarm_node.swarm.placement.types import Gain, Serve, StandBy, gigabytes
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

pytestmark = pytest.mark.slow

HERE = SwarmEntry(initial_peers=("/memory/a",), mdns=False)
ALONE = SwarmEntry(mdns=False)


class Links:
    """Links to the nodes of a swarm; those that are ``silent`` refuse."""

    def __init__(self, silent: set[str]) -> None:
        self._silent = silent

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> Links:
        if peer_id in self._silent:
            raise PeerUnreachableError(f"{peer_id} refuses")
        return self

    async def ping(self) -> float:
        return 0.001

    async def close(self) -> None:
        pass


class Swarm:
    def __init__(self, model: str) -> None:
        self.silent: set[str] = set()
        self.config = NodeConfig(
            model, auto=True, dtype="float32", quantize="none", kernels="torch", threads=1
        )
        with open_checkpoint(model) as checkpoint:
            self.ref = checkpoint.ref
        self.store = MemoryStore()

    def serve(self, peer_id: str, span: Span, decode_ms: float) -> None:
        self.store.put(
            NodeInfo(
                peer_id,
                (),
                self.ref,
                span,
                NodeState.ONLINE,
                decode_ms_per_block=decode_ms,
                prefill_tokens_per_s=1000.0,
                free_kv_tokens=1000,
                total_kv_tokens=1000,
            )
        )


@pytest.fixture
def swarm(tiny_dir, monkeypatch):
    found = Swarm(str(tiny_dir))

    async def network(entry: SwarmEntry, on_progress: object) -> GivenNetwork:
        return GivenNetwork(MemoryNetwork().transport("me"), MemoryDirectory(found.store))

    monkeypatch.setattr("swarm_node.dht.joining.client.join_as_client", network)
    monkeypatch.setattr(roll_call, "LinkPool", lambda *_, **__: Links(found.silent))
    monkeypatch.setattr("swarm_node.node.engine.self_bench.DECODE_SECONDS", 0.02)
    monkeypatch.setattr("swarm_node.node.engine.self_bench.PREFILL_SECONDS", 0.02)
    threads = torch.get_num_threads()
    yield found
    torch.set_num_threads(threads)


async def test_a_missing_span_is_what_it_would_serve(swarm):
    swarm.serve("a", Span(0, 2), 1.0)
    stages: list[str] = []
    outlook = await look_ahead(HERE, swarm.config, on_stage=stages.append)
    assert isinstance(outlook.verdict, Serve)
    assert outlook.verdict.gain is Gain.COVER
    assert outlook.verdict.span.covers(Span(2, 4))
    assert (outlook.swarm_found, outlook.missing) == (True, (Span(2, 4),))
    assert len(stages) >= 3
    told = json.loads(json.dumps(outlook.as_dict()))
    assert (told["verdict"], told["nodes"], told["missing"]) == ("serve", 1, ["2-3"])
    assert told["machine"]["max_blocks"] == 4
    text = "\n".join(lines(outlook))
    assert "blocks 2-3 are missing" in text
    assert "This machine would serve" in text
    weights, token = told["machine"]["weight_bytes"], 4 * 2 * 2 * 16 * 4  # four blocks, float32
    assert told["machine"]["bytes_per_1000_tokens"] == 1000 * token
    assert told["machine"]["session_bytes"] == told["machine"]["planned_sessions"] == 0
    sizes = f"4 blocks, {gigabytes(weights)} for weights as float32, 1 MB per 1000 tokens of a session"
    assert sizes in text
    hybrid = replace(outlook.machine, session=SessionBytes(65_000_000, 20_480))
    assert ", 65 MB a session + 20 MB per 1000 tokens\n" in "\n".join(lines(replace(outlook, machine=hybrid)))
    slower = replace(outlook.machine, decode_ms_per_block=1.5, context_ms_per_block=0.25)
    text = "\n".join(lines(replace(outlook, machine=slower)))
    assert "; 1.500 ms per block and token (and 0.250 for each 1000 tokens before it), " in text
    states = replace(outlook.machine, session=SessionBytes(65_000_000, 0))
    assert ", 65 MB a session\n" in "\n".join(lines(replace(outlook, machine=states)))
    assert [info.peer_id for info in swarm.store.live()] == ["a"]  # nothing is announced


async def test_a_stranger_who_claims_a_hole_and_does_not_answer_does_not_fill_it(swarm):
    swarm.serve("a", Span(0, 2), 1.0)
    swarm.serve("stranger", Span(2, 4), 1e-3)
    swarm.silent.add("stranger")
    outlook = await look_ahead(HERE, swarm.config)
    assert isinstance(outlook.verdict, Serve)
    assert outlook.verdict.gain is Gain.COVER
    assert outlook.missing == (Span(2, 4),)
    assert outlook.as_dict()["silent"] == ["stranger"]
    assert "…ranger" in lines(outlook)[-2]


@pytest.mark.parametrize(
    ("gain", "end"),
    [
        (Gain.FASTER, "it helps: from 4.0 to 3.0 ms per token"),
        (Gain.THROUGHPUT, "it helps: from 250 to 500 tokens/s; a token takes 3.0 ms"),
        (Gain.SPARE, "it helps; a token takes 3.0 ms"),
    ],
)
async def test_what_gets_better_is_told_in_its_own_unit(swarm, gain, end):
    swarm.serve("a", Span(0, 4), 1.0)
    outlook = await look_ahead(HERE, swarm.config)
    verdict = Serve(Span(0, 4), gain, "it helps", 1, 0.003, 0.004, 500.0, 250.0)
    assert lines(replace(outlook, verdict=verdict))[-1].endswith(end.replace("it helps", "it helps[/]"))


async def test_a_machine_that_is_far_too_slow_would_stand_by(swarm, monkeypatch):
    measure = plan.measure_machine
    monkeypatch.setattr(plan, "measure_machine", lambda *a: replace(measure(*a), decode_ms_per_block=1e4))
    for peer in "ab":
        swarm.serve(peer, Span(0, 4), 1.0)
    outlook = await look_ahead(HERE, swarm.config)
    assert isinstance(outlook.verdict, StandBy)
    assert outlook.as_dict()["verdict"] == "stand_by"
    assert "would stand by" in lines(outlook)[-1]
    assert "every block is served" in lines(outlook)[-2]


async def test_without_room_for_a_block_it_says_so(swarm):
    config = NodeConfig(swarm.config.model, auto=True, kernels="torch", threads=1, memory=50_000)
    outlook = await look_ahead(ALONE, config)
    assert isinstance(outlook.verdict, StandBy)
    assert "one block takes" in lines(outlook)[-1]
    assert "No swarm was found" in lines(outlook)[-2]


async def test_what_would_still_be_missing(swarm):
    config = NodeConfig(
        swarm.config.model, auto=True, kernels="torch", dtype="float32", threads=1, memory=400_000
    )
    outlook = await look_ahead(ALONE, config)
    assert isinstance(outlook.verdict, Serve)
    assert len(outlook.verdict.span) == 2
    assert "would still be missing" in lines(outlook)[-1]


async def test_a_swarm_that_was_named_must_be_there(swarm, monkeypatch):
    async def nobody(entry: SwarmEntry, on_progress: object) -> None:
        raise PeerUnreachableError("nobody answers")

    monkeypatch.setattr("swarm_node.dht.joining.client.join_as_client", nobody)
    with pytest.raises(PeerUnreachableError):
        await look_ahead(HERE, swarm.config)
    outlook = await look_ahead(SwarmEntry(mdns=True), swarm.config)
    assert not outlook.swarm_found


async def test_a_model_of_the_catalogue_is_planned_before_a_byte_of_it_is_here(swarm, monkeypatch):
    """By its figures alone; the hub is not asked."""
    monkeypatch.setattr(plan, "open_checkpoint", None)
    config = replace(swarm.config, model="smollm2-135m", kv_cache_tokens=256, memory=20_000_000)
    known = ModelRef("unsloth/Qwen3-0.6B-GGUF:Q4_K_M", "ab" * 32, 28)
    for peer, ref in (("a", known), ("b", known), ("?", ModelRef("my own", "cd" * 32, 28))):
        swarm.store.put(NodeInfo(peer, (), ref, Span(0, 4), NodeState.ONLINE, max_blocks=28))
    outlook = await look_ahead(HERE, config)
    assert (outlook.model.name, outlook.model.n_blocks) == ("bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M", 30)
    shape = outlook.machine.shape
    block = find_in_catalogue("qwen3-0.6b").block_bytes
    holds = shape.max_blocks(28 * min(block))
    assert {each.node.peer_id: each.blocks for each in outlook.others} == {"a": holds, "b": holds, "?": None}
    assert outlook.known_room == outlook.machine.max_blocks() + 2 * holds
    spans = outlook.alike.spans
    assert (spans[0].start, spans[-1].end) == (0, 30)
    assert len(spans) > 1
    assert max(map(shape.room, spans)) <= 20_000_000
    assert outlook.alike.token_s > 30 * outlook.machine.decode_ms_per_block / 1000
    told = json.loads(json.dumps(outlook.as_dict()))
    assert told["machines_like_this"] == len(spans)
    assert told["files"]["hub_name"] == outlook.model.name
    assert [each["could_hold"] for each in told["others"]] == [holds, holds, None]
    text = "\n".join(lines(outlook))
    assert "swarm-node pull bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M" in text
    assert f"{len(spans)} machines like this one carry it" in text
    assert "Not counted: 1 node " in text
    assert "room for all of it" in text


async def test_of_a_model_whose_blocks_are_too_large_nothing_is_made(swarm, monkeypatch):
    monkeypatch.setattr("swarm_node.node.auto.machine.random_checkpoint", None)
    monkeypatch.setattr("swarm_node.node.auto.machine.usable_memory", lambda device, limit: 10**9)
    config = replace(swarm.config, model="kimi-k2", kv_cache_tokens=256)
    outlook = await look_ahead(ALONE, config)
    assert isinstance(outlook.verdict, StandBy)
    assert outlook.alike is None
    assert outlook.machine.decode_ms_per_block == 0
    text = "\n".join(lines(outlook))
    assert "room for 0 blocks; not measured" in text
    assert "one block takes 11.1 GB" in text
