"""What a node has done: each thing is counted once, and what is kept is bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

from swarm_node.node.figures import work
from swarm_node.node.figures.work import Bytes, SessionEnd, StreamSide, WorkDone
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.messages import Busy, ErrorMessage, Refused
from swarm_node.swarm.transport.direct_maddrs import Way

SESSION = b"s" * 16


@dataclass(eq=False)
class Stream:
    way: Way
    traffic: Bytes = field(default_factory=Bytes)

    @property
    def link_class(self):
        return StreamSide.INCOMING, self.way


def test_tokens_are_of_prompts_or_of_answers():
    done = WorkDone()
    done.stepped(100, 0.2, decoding=False)
    done.stepped(1, 0.001, decoding=True)
    totals = done.totals()
    assert (totals.prefill_tokens, totals.decode_tokens, totals.tokens) == (100, 1, 101)
    assert totals.queue_wait_s.count == 2


def test_a_peer_counts_once_however_often_it_comes():
    done = WorkDone()
    for peer in ("a", "b", "a"):
        done.opened_session(peer)
    assert (done.totals().sessions_opened, done.totals().peers_served) == (3, 2)


def test_peers_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(work, "MAX_PEERS", 2)
    done = WorkDone()
    for peer in ("a", "b", "c", "c", "a"):
        done.opened_session(peer)
    assert done.totals().peers_served == 4  # a was forgotten for c
    assert len(done._peers) == 2


def test_refusals_have_the_code_that_was_told():
    done = WorkDone()
    done.refused(ErrorMessage(SESSION, None, ErrorCode.BAD_STEP, "text", False))
    done.refused(Refused(SESSION, ErrorCode.DRAINING, "text", ""))
    done.refused(Busy(SESSION, 100, "text"))
    assert done.totals().refused == {"bad_step": 1, "draining": 1, "busy": 1}


def test_bytes_of_streams_that_ended_and_of_those_that_go_on_are_summed_by_class():
    done = WorkDone()
    first, second, other = Stream(Way.DIRECT), Stream(Way.DIRECT), Stream(Way.RELAY)
    for stream in (first, second, other):
        done.began_stream(stream)
    first.traffic, second.traffic, other.traffic = Bytes(10, 1), Bytes(20, 2), Bytes(5, 5)
    expected = {
        (StreamSide.INCOMING, Way.DIRECT): Bytes(30, 3),
        (StreamSide.INCOMING, Way.RELAY): Bytes(5, 5),
    }
    assert done.totals().traffic == expected
    done.ended_stream(first)
    assert done.totals().traffic == expected


def test_totals_are_of_their_moment():
    done = WorkDone()
    before = done.totals()
    done.ended_session(SessionEnd.CLOSED)
    done.loaded_span(2.5)
    assert (before.sessions_ended, before.loads) == ({}, 0)
    after = done.totals()
    assert (after.sessions_ended, after.loads, after.last_load_s) == ({"closed": 1}, 1, 2.5)
