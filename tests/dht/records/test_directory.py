"""What a reader believes of the signed entries that it finds, wherever they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgpack
import pytest

from swarm_node.dht.records import directory as record_directory
from swarm_node.dht.records.bodies import Content, decode, encode_node
from swarm_node.dht.records.directory import RecordDirectory
from swarm_node.dht.records.entry_check import Entry
from swarm_node.dht.records.keys import node_key
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("tiny", "ab" * 32, 30)
OWNERS = [Identity(bytes([number]) * 32) for number in range(4)]


@dataclass
class Shelf:
    """What is kept: entries by key and owner, whose signatures somebody else has checked."""

    entries: dict[str, dict[str, Entry]] = field(default_factory=dict)
    is_alone: bool = False

    def put(self, info: NodeInfo, **odd: object) -> None:
        body = msgpack.packb(msgpack.unpackb(encode_node(info)) | odd)
        key = node_key(info.model, info.span)
        self.entries.setdefault(key, {})[info.peer_id] = Entry(info.peer_id, 2000.0, body, b"")


class ShelfDirectory(RecordDirectory[Shelf]):
    def __init__(self, shelf: Shelf) -> None:
        super().__init__(OWNERS[0], 60.0, lambda: 1000.0)
        self._shelf = shelf

    async def _lookup(self, keys: Sequence[str]) -> Shelf:
        found: Mapping[str, Mapping[str, Entry]] = {key: self._shelf.entries.get(key, {}) for key in keys}
        return Shelf({key: dict(entries) for key, entries in found.items()})

    async def _store(self, key: str, expiration: float, value: bytes, found: Shelf) -> NetworkError | None:
        return None


def node(owner: Identity) -> NodeInfo:
    return NodeInfo(owner.peer_id, (), MODEL, Span(0, 30), NodeState.ONLINE, 1.0, 1000.0)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"prefill_tps": 5e-324}, "prefill_tps is 5e-324, not 0 or a number from 0.001 to 1e+08"),
        ({"decode_ms": 1e300}, "decode_ms is 1e+300, not"),
        ({"kv_free": 7}, "claims more free KV cache than it has"),
    ],
)
async def test_a_peer_whose_numbers_cannot_be_is_left_out_and_shown(
    odd: dict[str, object], reason: str
) -> None:
    shelf = Shelf()
    shelf.put(node(OWNERS[1]))
    shelf.put(node(OWNERS[2]), **odd)
    directory = ShelfDirectory(shelf)
    assert [info.peer_id for info in await directory.nodes(MODEL)] == [OWNERS[1].peer_id]
    (left_out,) = directory.left_out
    assert left_out.peer_id == OWNERS[2].peer_id
    assert left_out.reason.startswith(reason)


async def test_our_own_failure_over_one_announcement_costs_only_its_owner(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fragile(owner: str, body: bytes) -> Content:
        if owner == OWNERS[2].peer_id:
            raise ZeroDivisionError
        return decode(owner, body)

    monkeypatch.setattr(record_directory, "decode", fragile)
    shelf = Shelf()
    for owner in OWNERS[1:]:
        shelf.put(replace(node(owner), span=Span(0, 30)))
    directory = ShelfDirectory(shelf)
    for _ in range(2):
        found = {info.peer_id for info in await directory.nodes(MODEL)}
        assert found == {OWNERS[1].peer_id, OWNERS[3].peer_id}
    assert [each.peer_id for each in directory.left_out] == [OWNERS[2].peer_id]
    assert caplog.text.count("Traceback") == 1
