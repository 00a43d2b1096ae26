"""What is counted for a peer, against a model that keeps every item."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm_node.node.limits.quotas import DialQuota, Ledger, Limits, PeerAccount, WorkRate
from swarm_node.swarm.errors import LocalProtocolError, UsageError
from swarm_node.swarm.fairness.shares import Holder

LIMITS = Limits(max_connections_per_peer=3, queued_tokens_per_peer=100, queued_bytes_per_peer=1000)
PEERS = st.sampled_from(["a", "b", "c"])


def test_limits_are_checked():
    with pytest.raises(UsageError, match="max_sessions"):
        Limits(max_sessions=0)
    with pytest.raises(UsageError, match="kv_share_per_peer"):
        Limits(kv_share_per_peer=1.5)


def test_what_was_not_taken_cannot_be_given_back():
    ledger = Ledger(LIMITS)
    account = ledger.connect(Holder("a"))
    ledger.take(account, 5)
    for wrong in (
        lambda: ledger.give_back(account, 6),
        lambda: ledger.unqueue(account, 1, 0),
        lambda: ledger.unqueue(account, 0, 1),
    ):
        with pytest.raises(LocalProtocolError):
            wrong()
    ledger.give_back(account, 5)
    ledger.disconnect(account)
    for wrong in (lambda: ledger.disconnect(account), lambda: ledger.give_back(account, 0)):
        with pytest.raises(LocalProtocolError):
            wrong()


def test_who_asks_too_much_is_read_more_slowly():
    work = WorkRate(100.0, 20.0)
    assert [work.spend(10, 5.0) for _ in range(3)] == [0.0, 0.0, 0.1]
    assert work.spend(10, 5.1) == pytest.approx(0.1)
    assert work.spend(20, 99.0) == 0.0  # a pause is worth one burst
    assert work.spend(1, 99.0) == pytest.approx(0.01)


def test_what_waits_is_bounded_in_all_and_divided_among_networks_and_their_peers():
    ledger = Ledger(Limits(queued_bytes_per_peer=1000, queued_bytes=1200))
    big, small, other = (ledger.connect(Holder(*who)) for who in (("a", "x"), ("b", "x"), ("c", "y")))
    ledger.queue(big, 1, 900)
    ledger.queue(other, 1, 250)
    assert big.room.is_set()  # as long as there is room in all
    ledger.queue(small, 1, 100)
    ledger.queue(big, 1, 1)
    assert (big.room.is_set(), small.room.is_set(), other.room.is_set()) == (False, True, True)
    ledger.queue(small, 1, 250)  # its network's half is 600, of which 300 are its own
    assert not small.room.is_set()
    ledger.unqueue(other, 1, 250)
    assert not big.room.is_set()
    ledger.unqueue(small, 2, 350)
    assert all(account.room.is_set() for account in (big, small, other))


class LedgerAgainstLists(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(LIMITS)
        self.streams: list[PeerAccount] = []
        self.sessions: list[tuple[PeerAccount, int]] = []
        self.steps: list[tuple[PeerAccount, int, int]] = []

    @rule(peer=PEERS)
    def connect(self, peer: str) -> None:
        account = self.ledger.connect(Holder(peer))
        if sum(stream.peer_id == peer for stream in self.streams) == 3:
            assert account == "one peer may hold 3"
        else:
            assert isinstance(account, PeerAccount)
            self.streams.append(account)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        self.ledger.disconnect(self.streams.pop(data.draw(st.integers(0, len(self.streams) - 1))))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), cells=st.integers(1, 50))
    def take(self, data: st.DataObject, cells: int) -> None:
        account = data.draw(st.sampled_from(self.streams))
        self.ledger.take(account, cells)
        self.sessions.append((account, cells))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.ledger.give_back(*self.sessions.pop(data.draw(st.integers(0, len(self.sessions) - 1))))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), tokens=st.integers(1, 60), size=st.integers(0, 600))
    def queue(self, data: st.DataObject, tokens: int, size: int) -> None:
        account = data.draw(st.sampled_from(self.sessions))[0]
        self.ledger.queue(account, tokens, size)
        self.steps.append((account, tokens, size))

    @precondition(lambda self: self.steps)
    @rule(data=st.data())
    def unqueue(self, data: st.DataObject) -> None:
        self.ledger.unqueue(*self.steps.pop(data.draw(st.integers(0, len(self.steps) - 1))))

    @invariant()
    def agrees(self) -> None:
        ledger = self.ledger
        assert ledger.connections == len(self.streams)
        assert ledger.sessions == len(self.sessions)
        assert ledger.kv_cells == sum(cells for _, cells in self.sessions)
        known = {id(account) for account in self.streams}
        known |= {id(account) for account, *_ in (*self.sessions, *self.steps)}
        assert len(ledger) == len(known)  # nobody is forgotten early, nobody is kept for ever
        holders = {account.peer_id: account.kv_cells for account in ledger.holders()}
        wanted: dict[str, int] = {}
        for account, cells in self.sessions:
            wanted[account.peer_id] = wanted.get(account.peer_id, 0) + cells
        assert holders == wanted
        for account in {*self.streams, *(account for account, _, _ in self.steps)}:
            mine = [(tokens, size) for owner, tokens, size in self.steps if owner is account]
            over = sum(tokens for tokens, _ in mine) > 100 or sum(size for _, size in mine) > 1000
            assert account.room.is_set() is not over  # of this peer only

            beyond = sum(tokens for tokens, _ in mine) > 400 or sum(size for _, size in mine) > 4000
            assert ledger.is_beyond(account) is beyond


LedgerAgainstLists.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerAgainstLists.TestCase


# Dials.

ONE = Holder("one", "net")


def test_dials_are_limited_at_once_and_by_the_minute():
    quota = DialQuota(Limits(dials_per_peer=2, dials_per_minute_per_peer=3))
    assert [quota.begin(ONE, now) for now in (0.0, 1.0)] == ["", ""]
    assert "under way" in quota.begin(ONE, 2.0)
    quota.end(ONE)
    assert quota.begin(ONE, 30.0) == ""
    quota.end(ONE)
    assert "a minute" in quota.begin(ONE, 59.0)
    assert quota.begin(ONE, 60.0) == ""  # the first was a minute ago


def test_identities_of_one_network_share_its_dials_of_a_minute():
    quota = DialQuota(Limits(dials_per_minute_per_group=5))
    for number in range(5):
        holder = Holder(f"sybil{number}", "net")
        assert quota.begin(holder, 0.0) == ""
        quota.end(holder)
    assert "one network" in quota.begin(ONE, 1.0)
    assert quota.begin(Holder("me", "elsewhere"), 1.0) == ""


def test_when_all_are_taken_the_greediest_network_gives_one_up():
    quota = DialQuota(Limits(dials=6))
    crowd = [Holder(f"sybil{number}", "net") for number in range(6)]
    for holder in crowd:
        assert quota.loser(holder, 0.0) is None
        assert quota.begin(holder, 0.0) == ""
    me = Holder("me", "elsewhere")
    assert quota.begin(me, 0.0) == "6 dials are under way"
    loser = quota.loser(me, 0.0)
    assert loser in crowd
    quota.end(loser)
    assert quota.begin(me, 0.0) == ""
    stingy = DialQuota(Limits(dials=1, dials_per_minute_per_peer=1))
    assert stingy.begin(me, 0.0) == ""
    stingy.end(me)
    assert stingy.begin(crowd[0], 0.0) == ""
    assert stingy.loser(me, 0.0) is None  # it would get no dial, so nobody loses one
