"""A name that several models have: who is asked, what is taken, and what a person is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.shards.checkpoint import lookup, name_decision
from swarm_node.shards.checkpoint.known_models import KnownModels
from swarm_node.shards.checkpoint.local_models import LocalModels
from swarm_node.shards.checkpoint.lookup import ModelLocation, ModelNotFoundError, resolve_model
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.errors import ErrorCode, UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.membership.membership import KeyedSwarm, NamedSwarm
from swarm_node.swarm.membership.transport import MembersTransport
from swarm_node.swarm.naming import witnesses as bounds
from swarm_node.swarm.naming.witnesses import Witnesses
from swarm_node.swarm.protocol.messages import ErrorMessage, Hello, Welcome
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

TRUE, LIE = ModelRef("demo", "ab12" * 16, 4), ModelRef("demo", "cd34" * 16, 4)
NOTHING_HERE = LocalModels()
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class World:
    """A swarm whose nodes announce models and answer HELLO, or do not."""

    def __init__(self, path: Path) -> None:
        self.network = MemoryNetwork()
        self.store = MemoryStore()
        self.now = NOW
        self.known = KnownModels(path, lambda: self.now)
        self.dialled: list[str] = []
        self.members = False

    async def add(
        self,
        ref: ModelRef,
        *hosts: str,
        name: str = "",
        state: NodeState = NodeState.ONLINE,
        mute: bool = False,
    ) -> None:
        """A node for each host."""
        for host in hosts:
            peer_id = f"{name or ref.name}-{ref.digest[:4]}-{len(self.store.live())}"
            where = f"/ip4/{host}/tcp/1"
            self.store.put(NodeInfo(peer_id, (where,), ref, Span(0, 4), state))
            if not mute:
                self.network.hosts[peer_id] = where
                await self.network.transport(peer_id).serve(PROTOCOL_ID, self._handler(peer_id, ref, state))

    def _handler(self, peer_id: str, ref: ModelRef, state: NodeState) -> Callable[[Stream], Awaitable[None]]:
        async def handle(stream: Stream) -> None:
            self.dialled.append(peer_id)
            connection = Connection(stream)
            hello = await connection.receive()
            assert isinstance(hello, Hello)
            if state is not NodeState.ONLINE:
                await connection.close_with(ErrorMessage(None, None, ErrorCode.DRAINING, "not yet", True))
                return
            welcome = Welcome(1, ref.digest, Span(0, 4), KINDS, DEFAULT_MAX_FRAME, "", 64, ref.n_blocks, 0)
            await connection.send(welcome)
            await asyncio.Event().wait()

        return handle

    async def find(self, text: str | None = "demo", *, ask: bool = True, hub: bool = False) -> ModelLocation:
        witnesses = Witnesses(self.network.transport("client")) if ask else None
        if witnesses is not None:
            witnesses.members = self.members
        index = MemoryDirectory(self.store, "client")
        return await resolve_model(text, index, NOTHING_HERE, hub=hub, witnesses=witnesses, known=self.known)

    async def refusal(self, text: str | None = "demo") -> UsageError:
        with pytest.raises(UsageError) as caught:
            await self.find(text)
        return caught.value


@pytest.fixture
def world(known_models: Path) -> World:
    return World(known_models)


async def test_one_model_is_asked_about_with_nobody(world: World) -> None:
    await world.add(TRUE, "8.8.8.1", mute=True)
    found = await world.find()
    assert (found.ref, found.called, found.decision) == (TRUE, "demo", None)
    assert world.dialled == []


async def test_500_names_in_one_network_do_not_get_a_name(world: World) -> None:
    """Neither do they keep anybody from it, though they were there first."""
    await world.add(LIE, *(f"9.9.9.{number % 250}" for number in range(500)))
    await world.add(TRUE, "8.8.8.1", "7.7.7.1")
    found = await world.find()
    assert found.ref == TRUE
    assert found.decision is not None
    assert (found.decision.reason, found.decision.is_change) == ("networks", False)
    assert found.decision.sentence.startswith(
        "demo is demo@ab12ab12ab12 here: 2 nodes answer from 2 networks; also announced: demo@cd34cd34cd34 ("
    )
    assert found.decision.as_dict()["digest"] == TRUE.digest
    assert len(world.dialled) <= bounds.MOST_ASKED


async def test_a_name_that_only_looks_nearer_does_not_stand_in_front(world: World) -> None:
    """The base name, the owner's name and other letters, from one network each time."""
    honest = ModelRef("SmolLM2-135M-Instruct.Q4_1", TRUE.digest, 4)
    await world.add(honest, "8.8.8.1", "7.7.7.1")
    for name in ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"):
        await world.add(ModelRef(name, LIE.digest, 4), "9.9.9.9", "9.9.9.10")
        for said in ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
            assert (await world.find(said)).ref == honest


async def test_what_cannot_be_told_apart_is_for_a_person_to_say(world: World) -> None:
    await world.add(TRUE, "192.168.1.1", "192.168.1.2", "192.168.1.3")
    await world.add(LIE, "192.168.1.4")
    error = await world.refusal()
    assert error.message.startswith("2 different models are called demo in this swarm")
    assert "--model demo@ab12ab12ab12 (3 nodes answer from 1 network) or demo@cd34cd34cd34 (" in error.hint
    assert "swarm-node models pin demo@ab12ab12ab12" in error.hint
    assert (await world.find("demo@ab12")).ref == TRUE
    world.members = True
    found = await world.find()
    assert found.ref == TRUE, "each of the three was let in by somebody"
    assert found.decision is not None
    assert found.decision.reason == "members"


async def test_what_begins_alike_is_told_with_more_characters(world: World) -> None:
    twin = ModelRef("demo", TRUE.digest[:40] + "0" * 24, 4)
    await world.add(TRUE, "192.168.1.1")
    await world.add(twin, "192.168.1.2")
    said = (await world.refusal()).hint.split("--model ")[1].split(" ")[0]
    assert (await world.find(said)).ref in (TRUE, twin)


async def test_what_was_used_stays_and_its_successor_needs_two_networks(world: World) -> None:
    world.known.note_used("demo", TRUE.digest)
    world.now += timedelta(days=9)
    await world.add(LIE, "9.9.9.1", "9.9.9.2")
    error = await world.refusal()
    assert error.message == (
        "demo was demo@ab12ab12ab12 when this machine used it last, on 2026-11-20; now another model is "
        "announced as such: demo@cd34cd34cd34 (2 nodes answer from 1 network)"
    )
    assert "--model demo@cd34cd34cd34; " in error.hint
    await world.add(TRUE, "8.8.8.1")
    found = await world.find()
    assert found.ref == TRUE
    assert found.decision is not None
    assert (
        "used on this machine since 2026-11-20; also announced: demo@cd34cd34cd34" in found.decision.sentence
    )
    world.known.note_used("demo", LIE.digest)
    assert (await world.find()).ref == LIE, "a person said so, and it answered"


async def test_a_record_that_keeps_a_model_alive_which_nobody_serves_hides_no_successor(world: World) -> None:
    world.known.note_used("demo", TRUE.digest)
    await world.add(TRUE, "9.9.9.1", mute=True)
    await world.add(LIE, "8.8.8.1")
    assert "when this machine used it last" in (await world.refusal()).message, "one network is not enough"
    await world.add(LIE, "7.7.7.1")
    found = await world.find()
    assert found.ref == LIE
    assert found.decision is not None
    assert found.decision.is_change


async def test_a_hundred_models_of_one_network_keep_nobody_from_being_asked(world: World) -> None:
    for number in range(300):
        await world.add(ModelRef("demo", f"{number:064x}", 4), f"9.9.9.{number % 250}")
    await world.add(TRUE, "8.8.8.1", "7.7.7.1")
    assert (await world.find()).ref == TRUE
    assert len(world.dialled) <= bounds.MOST_ASKED


async def test_a_change_is_said_loudly(world: World) -> None:
    world.known.note_used("demo", TRUE.digest)
    await world.add(LIE, "9.9.9.1", "8.8.8.1")
    decision = (await world.find()).decision
    assert decision is not None
    assert decision.is_change
    assert decision.sentence == (
        "demo was demo@ab12ab12ab12 when this machine used it last, on 2026-11-20; nobody serves that "
        "now. demo is demo@cd34cd34cd34 here: 2 nodes answer from 2 networks."
    )


async def test_a_pin_is_all_that_counts(world: World) -> None:
    from swarm_node.swarm.names import ModelName

    world.known.add_pin(ModelName("Demo.gguf", TRUE.digest))
    world.known.note_used("demo", LIE.digest)
    await world.add(LIE, "9.9.9.1", "8.8.8.1", "7.7.7.1")
    with pytest.raises(ModelNotFoundError) as caught:
        await world.find()
    assert "which you have pinned," in caught.value.message
    assert caught.value.hint == "`swarm-node models unpin demo` takes the pin back."
    await world.add(TRUE, "192.168.1.1", mute=True)
    found = await world.find()
    assert found.ref == TRUE
    assert found.decision is not None
    assert found.decision.reason == "pinned"
    assert (await world.find("demo@cd34")).ref == LIE, "what is said here and now comes first"


async def test_who_is_not_there_does_not_count(world: World) -> None:
    await world.add(LIE, "9.9.9.1", "8.8.8.1", mute=True)
    await world.add(TRUE, "192.168.1.1")
    found = await world.find()
    assert found.ref == TRUE
    assert found.decision is not None
    assert "nobody answers for demo@cd34cd34cd34 (2 nodes announced, none answers)" in found.decision.sentence
    await world.add(LIE, "9.9.9.2", state=NodeState.JOINING)
    await world.refusal()


async def test_nobody_serves_what_he_only_announces(world: World) -> None:
    """Nodes of another model are no witnesses, wherever they are."""
    await world.add(TRUE, "192.168.1.1")
    for host in ("8.8.8.1", "7.7.7.1"):
        await world.add(LIE, host)
        peer_id = f"demo-cd34-{len(world.store.live()) - 1}"
        other = world._handler(peer_id, TRUE, NodeState.ONLINE)
        await world.network.transport(peer_id).serve(PROTOCOL_ID, other)
    assert (await world.find()).ref == TRUE


async def test_a_false_number_of_blocks_does_not_hide_a_model(world: World) -> None:
    await world.add(TRUE, "192.168.1.1")
    for blocks in (3, 5, 4096):
        await world.add(ModelRef("demo", TRUE.digest, blocks), "9.9.9.9", mute=True)
    found = await world.find()
    assert found.ref is not None
    assert found.ref.digest == TRUE.digest
    assert found.decision is None
    nodes = await MemoryDirectory(world.store).nodes_of(found.refs)
    assert any(node.model == TRUE for node in nodes)


async def test_the_one_model_of_a_swarm_is_found_by_the_same_rule(world: World) -> None:
    await world.add(TRUE, "8.8.8.1", "7.7.7.1")
    assert (await world.find(None)).decision is None
    await world.add(LIE, "9.9.9.1")
    assert (await world.find(None)).ref == TRUE
    await world.add(ModelRef("other", "99" * 32, 4), "9.9.9.1")
    assert "serves 3 models" in (await world.refusal(None)).message


async def test_without_a_way_to_ask_nothing_is_guessed(world: World) -> None:
    await world.add(TRUE, "8.8.8.1", "7.7.7.1")
    await world.add(LIE, "9.9.9.1")
    with pytest.raises(UsageError):
        await world.find(ask=False)


async def test_the_mute_hold_up_nobody_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ANSWER_S", 0.05)
    await world.add(TRUE, "8.8.8.1", "7.7.7.1")
    await world.add(LIE, "9.9.9.9")
    frozen = [f"demo-cd34-{number}" for number in range(3, 40)]
    for _ in frozen:
        await world.add(LIE, "9.9.9.9")
    for peer_id in frozen:
        world.network.partition("client", peer_id)
    async with asyncio.timeout(2):
        assert (await world.find()).ref == TRUE


async def test_the_hubs_own_hashes_come_before_everything_that_peers_say(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "owner/demo"
    true, lie = replace(TRUE, name=name), replace(LIE, name=name)
    await world.add(true, "192.168.1.1", mute=True)
    await world.add(lie, "9.9.9.1", "8.8.8.1", "7.7.7.1")
    asked: list[str] = []

    def hub_digest(text: str) -> str:
        asked.append(text)
        return TRUE.digest

    monkeypatch.setattr(lookup, "hub_digest", hub_digest)
    found = await world.find(name, hub=True)
    assert found.ref == true
    assert found.decision is not None
    assert found.decision.reason == "hub"
    assert asked == [name]
    assert (await world.find(name)).ref == lie, "where the hub is not to be asked"
    monkeypatch.setattr(lookup, "hub_digest", lambda text: time.sleep(0.3) or TRUE.digest)
    monkeypatch.setattr(name_decision, "_HUB_S", 0.01)
    assert (await world.find(name, hub=True)).ref == lie, "nor waited for"


def test_a_hub_that_cannot_be_asked_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert lookup.hub_digest("nobody/has-such-a-model") == ""


def test_only_a_key_makes_members() -> None:
    transport = MemoryNetwork().transport("client")
    assert not Witnesses(transport).members
    assert not Witnesses(MembersTransport(transport, NamedSwarm("den"))).members
    keyed = KeyedSwarm("den", Identity.generate().public_bytes)
    assert Witnesses(MembersTransport(transport, keyed)).members
