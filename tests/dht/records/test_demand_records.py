"""What peers want: as bytes, in the directory of tests, and in a real DHT."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.kademlia.directory import HivemindDirectory
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.dht.records.bodies import RECORD_VERSION, decode, encode_node, encode_wanted
from swarm_node.dht.records.envelope import seal
from swarm_node.dht.records.keys import MAX_ENTRIES, key_hash, wanted_key, wanted_keys
from swarm_node.swarm.errors import LocalProtocolError, NetworkError, RemoteProtocolError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.placement.demand import MAX_WANTED, Wanted, WantedModel
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

OWNER = Identity(bytes(32)).peer_id
DIGEST = "ab" * 32
ANY, ONE = WantedModel("any"), WantedModel("owner/one", DIGEST)


def record(models: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": RECORD_VERSION, "kind": "wanted", "models": models})
    return packed


def test_round_trip() -> None:
    assert decode(OWNER, encode_wanted((ANY, ONE))) == Wanted(OWNER, (ANY, ONE))
    assert len(encode_wanted((WantedModel("ü" * 128, DIGEST),) * MAX_WANTED)) < 2000


@pytest.mark.parametrize(
    "models",
    [
        None,
        [],
        "demo",
        [["demo"]],
        [["demo", "", 1]],
        [["", ""]],
        [["x" * 129, ""]],
        [["de\x1b[2Jmo", ""]],
        [["de\u202emo", ""]],
        [["demo", "AB" * 32]],
        [["demo", "abcd"]],
        [[b"demo", ""]],
        [{"demo": ""}],
        [["demo", ""]] * (MAX_WANTED + 1),
    ],
)
def test_what_is_out_of_bounds_is_refused(models: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="models"):
        decode(OWNER, record(models))


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary(), lambda inner: st.lists(inner, max_size=5)
    )
)
def test_any_content_is_read_or_refused(models: Any) -> None:
    try:
        body = record(models)
    except (OverflowError, ValueError, UnicodeEncodeError):
        return
    try:
        wanted = decode(OWNER, body)
    except RemoteProtocolError:
        return
    assert isinstance(wanted, Wanted)
    assert 0 < len(wanted.models) <= MAX_WANTED


@pytest.mark.parametrize(
    "models", [(), (ANY,) * (MAX_WANTED + 1), (WantedModel("x\ny"),), (WantedModel("x", "y"),)]
)
def test_ours_obey_the_same_bounds(models: tuple[WantedModel, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        encode_wanted(models)


def test_each_peer_has_one_place() -> None:
    places = {wanted_key(Identity(number.to_bytes(32)).peer_id) for number in range(64)}
    assert places == set(wanted_keys())


async def test_the_directory_of_tests() -> None:
    now = [0.0]
    store = MemoryStore(lambda: now[0], ttl=60)
    first, second = MemoryDirectory(store, "first"), MemoryDirectory(store, "second")
    assert await first.wanted() == []
    await first.want([ANY])
    await second.want([ONE])
    await first.want([ANY, ONE])
    assert await second.wanted() == [Wanted("first", (ANY, ONE)), Wanted("second", (ONE,))]
    await second.want(())
    now[0] = 59
    assert [each.peer_id for each in await second.wanted()] == ["first"]
    now[0] = 60
    assert await second.wanted() == []
    with pytest.raises(LocalProtocolError):
        await first.want([ANY] * (MAX_WANTED + 1))
    store.down = True
    with pytest.raises(NetworkError):
        await first.want([ANY])


@pytest.mark.swarm
async def test_a_real_dht() -> None:
    """Told, replaced, taken back beside an announcement; strangers' words and a flood change nothing."""
    opened: list[Any] = []

    async def join(initial: tuple[str, ...] = (), **options: Any) -> tuple[Identity, HivemindDirectory, Any]:
        identity = Identity.generate()
        transport = await P2pdTransport.create(
            identity, host_maddrs=("/ip4/127.0.0.1/tcp/0",), initial_peers=initial
        )
        opened.append(transport)
        directory = await HivemindDirectory.create(transport, identity, initial, **options)
        opened.append(directory)
        return identity, directory, transport

    try:
        node, keeper, transport = await join()
        client, asking, _ = await join(await transport.maddrs(), client_mode=True)
        me, there = client.peer_id, node.peer_id
        info = NodeInfo(there, (), ModelRef("one", DIGEST, 4), Span(0, 4), NodeState.ONLINE)
        await keeper.want([ONE])
        await keeper.announce(info)
        await asking.want([ANY])
        told = {each.peer_id: each.models for each in await asking.wanted()}
        assert told == {me: (ANY,), there: (ONE,)}, "a node's announcement does not take back what it wants"
        await asking.want([ONE, ANY])
        await keeper.want(())
        assert await keeper.wanted() == [Wanted(me, (ONE, ANY))]
        assert await asking.all_nodes() == [info]

        keep = keeper._node.stores.keep  # type: ignore[attr-defined]
        key = wanted_key(me)
        wrong_key = next(each for each in wanted_keys() if each != key)
        life = time.time() + 60
        body = encode_wanted((WantedModel("spoofed"),))
        for place, writer, content in (
            (wrong_key, client, body),
            (key, Identity(bytes(32)), encode_node(info)),
            (key, Identity(b"1" * 32), record([["bad\n", ""]])),
        ):
            value = seal(writer, key_hash(place), life, content)
            keep(key_hash(place), writer.peer_id, value, life)
        assert await asking.wanted() == [Wanted(me, (ONE, ANY))], (
            "only well-formed entries in their own place"
        )

        flood = 0
        for number in range(10_000):
            liar = Identity(number.to_bytes(32, "little"))
            if wanted_key(liar.peer_id) == key:
                value = seal(liar, key_hash(key), life, body)
                flood += keep(key_hash(key), liar.peer_id, value, life)
                if flood >= MAX_ENTRIES - 4:
                    break
        await asking.want([ANY])
        found = {each.peer_id: each.models for each in await keeper.wanted()}
        assert found[me] == (ANY,), "a flood cannot push out who is in"
        assert MAX_ENTRIES - 8 < len(found) <= MAX_ENTRIES
        await asking.want(())
        assert me not in {each.peer_id for each in await keeper.wanted()}
    finally:
        for each in reversed(opened):
            await each.close()
