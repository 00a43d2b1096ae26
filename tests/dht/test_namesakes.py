"""Two processes with one identity see each other; one that was started again sees nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.dht.namesakes import LATER_S, Namesakes
from swarm_node.dht.records.bodies import decode, encode_node
from swarm_node.dht.records.directory import RecordDirectory
from swarm_node.dht.records.entry_check import Entry, EntryCheck
from swarm_node.dht.records.envelope import subkey_of
from swarm_node.dht.records.keys import key_hash
from swarm_node.swarm.errors import NetworkError, RemoteProtocolError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.types import Incarnation, ModelRef, NodeInfo, NodeState, Span

TTL_S = 60.0
OURS, STRANGER = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
MODEL, OTHER = ModelRef("tiny", "ab" * 32, 30), ModelRef("other", "cd" * 32, 30)


@dataclass
class Keeper:
    """What everybody stores at: the latest entry of each owner under each key."""

    now: float = 1_000_000.0
    entries: dict[str, dict[str, Entry]] = field(default_factory=dict)


@dataclass
class Found:
    entries: dict[str, dict[str, Entry]]
    is_alone: bool = False


class KeptDirectory(RecordDirectory[Found]):
    """``skew``: by how much this machine's clock is wrong."""

    def __init__(self, keeper: Keeper, identity: Identity = OURS, skew: float = 0.0) -> None:
        super().__init__(identity, TTL_S, lambda: keeper.now + skew)
        self._keeper = keeper
        self._check = EntryCheck(TTL_S, lambda: keeper.now)
        self.refuses = False

    async def _lookup(self, keys: Sequence[str]) -> Found:
        now = self._keeper.now
        return Found(
            {
                key: {
                    own: entry
                    for own, entry in self._keeper.entries.get(key, {}).items()
                    if entry.expiration > now
                }
                for key in keys
            }
        )

    async def _store(self, key: str, expiration: float, value: bytes, found: Found) -> NetworkError | None:
        if self.refuses:
            return NetworkError("nobody answers")
        owner = self._identity.peer_id
        try:
            entry = self._check.check(key_hash(key), subkey_of(owner.encode()), expiration, value)
        except RemoteProtocolError as error:
            return NetworkError(error.message)
        kept = self._keeper.entries.setdefault(key, {})
        if owner not in kept or kept[owner].expiration < expiration:
            kept[owner] = entry
        return None


def info(
    where: str, *, model: ModelRef = MODEL, start: int = 0, state: NodeState = NodeState.ONLINE
) -> NodeInfo:
    maddrs = (f"/ip4/{where}/tcp/1",)
    return NodeInfo(OURS.peer_id, maddrs, model, Span(start, start + 10), state)


HERE, THERE = info("8.8.8.1"), info("9.9.9.1")


@pytest.mark.parametrize(
    "there",
    [THERE, info("9.9.9.1", start=17), info("9.9.9.1", model=OTHER)],
    ids=["same blocks", "other blocks", "another model"],
)
async def test_two_machines_with_one_identity_see_each_other_and_agree_who_was_first(there: NodeInfo) -> None:
    keeper = Keeper()
    first, later = KeptDirectory(keeper), KeptDirectory(keeper)
    await first.announce(HERE)
    keeper.now += 7
    for _ in range(3):
        await later.announce(there)
        keeper.now += 10
        await first.announce(HERE)
        keeper.now += 10
    for directory in (first, later):
        await directory.look_for_namesakes()
    (seen_by_first,), (seen_by_later,) = first.namesakes, later.namesakes
    assert seen_by_first.maddrs == there.maddrs
    assert seen_by_later.maddrs == HERE.maddrs
    assert first.incarnation is not None
    assert later.incarnation is not None
    assert seen_by_later.incarnation == first.incarnation < later.incarnation == seen_by_first.incarnation
    keeper.now += TTL_S
    assert first.namesakes == [], "it has stopped"


@pytest.mark.slow
@given(
    st.floats(0, 70),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.lists(st.floats(0.1, 20), min_size=1, max_size=12),
    st.booleans(),
)
async def test_a_node_that_starts_again_is_no_copy(
    pause: float, skew_before: float, skew: float, refreshes: list[float], moved: bool
) -> None:
    """However soon after the crash, at another address, with another clock: within what keepers accept."""
    keeper = Keeper()
    await KeptDirectory(keeper, skew=skew_before).announce(HERE)
    keeper.now += pause
    again = KeptDirectory(keeper, skew=skew)
    for seconds in refreshes:
        await again.announce(THERE if moved else HERE)
        await again.look_for_namesakes()
        assert again.namesakes == []
        keeper.now += seconds


async def test_a_clock_that_was_wrong_at_the_start_does_not_make_a_node_the_first() -> None:
    """A small computer wakes in 1970: until the directory takes an announcement its clock says nothing."""
    keeper = Keeper()
    directory = KeptDirectory(keeper, skew=-keeper.now)
    directory.refuses = True
    with pytest.raises(NetworkError):
        await directory.announce(HERE)
    assert directory.incarnation is None
    assert directory.namesakes == []
    directory.refuses, directory._clock = False, lambda: keeper.now
    await directory.announce(HERE)
    assert directory.incarnation is not None
    assert directory.incarnation.since == keeper.now
    keeper.now += 500
    await directory.announce(HERE)
    assert directory.incarnation.since == keeper.now - 500


async def test_one_that_drains_is_a_predecessor() -> None:
    keeper = Keeper()
    before, after = KeptDirectory(keeper), KeptDirectory(keeper)
    await before.announce(HERE)
    await after.announce(HERE)
    keeper.now += 2 * LATER_S
    await before.announce(info("8.8.8.1", state=NodeState.DRAINING))
    await after.announce(HERE)
    assert after.namesakes == []
    await before.withdraw()
    await after.announce(HERE)
    assert after.namesakes == []


async def test_strangers_cannot_feign_a_copy() -> None:
    """Neither by naming our PeerID, nor by giving back what we have said under another time or nonce."""
    keeper = Keeper()
    directory = KeptDirectory(keeper)
    await directory.announce(HERE)
    keeper.now += 30
    with pytest.raises(Exception, match="cannot announce"):
        await KeptDirectory(keeper, STRANGER).announce(THERE)
    (key,) = (key for key in keeper.entries if "nodes" in key)
    entry = keeper.entries[key][OURS.peer_id]
    check = EntryCheck(TTL_S, lambda: keeper.now)
    with pytest.raises(RemoteProtocolError, match="without a valid signature"):
        check.check(key_hash(key), subkey_of(OURS.peer_id.encode()), entry.expiration + 9, entry.value)
    await directory.announce(HERE)
    await directory.look_for_namesakes()
    assert directory.namesakes == []


async def test_one_that_has_just_answered_elsewhere_is_a_copy_however_old_its_words() -> None:
    """As of two machines that share a LAN and no directory."""
    first, later = KeptDirectory(keeper := Keeper()), KeptDirectory(Keeper())
    await first.announce(HERE)
    later._keeper.now = keeper.now + 1
    there = ("/ip4/8.8.8.1/tcp/1",)
    later.met_namesake(there, await KeptDirectory(keeper, STRANGER).nodes(MODEL))
    assert later.namesakes == [], "nothing is announced yet"
    await later.announce(THERE)
    assert [each.maddrs for each in later.namesakes] == [HERE.maddrs]
    first.met_namesake(there, await first.nodes(MODEL))
    first.met_namesake(("/ip4/10.0.0.1/tcp/1",), await first.nodes(MODEL))  # an address that we had before
    assert first.namesakes == [], "nobody is his own copy"
    first.met_namesake(("/ip4/9.9.9.1/tcp/1",), [])
    (silent,) = first.namesakes
    assert (silent.maddrs, silent.incarnation) == (("/ip4/9.9.9.1/tcp/1",), None)
    first._keeper.now += TTL_S
    assert first.namesakes == []


def test_incarnations_travel() -> None:
    mark = Incarnation(1.5e9, "0123456789abcdef")
    told = decode(OURS.peer_id, encode_node(NodeInfo(**{**_fields(HERE), "incarnation": mark})))
    assert isinstance(told, NodeInfo)
    assert told.incarnation == mark
    without = decode(OURS.peer_id, encode_node(HERE))
    assert isinstance(without, NodeInfo)
    assert without.incarnation is None


def _fields(node: NodeInfo) -> dict[str, object]:
    return {name: getattr(node, name) for name in node.__slots__}


def test_only_so_many_are_remembered() -> None:
    namesakes = Namesakes(TTL_S)
    namesakes.announced(namesakes.mark(0.0))
    for number in range(100):
        mark = Incarnation(float(number), f"{number:016x}")
        namesakes.saw(NodeInfo(**{**_fields(HERE), "incarnation": mark}), 100.0)
    assert 0 < len(namesakes.live(50.0)) <= 16
