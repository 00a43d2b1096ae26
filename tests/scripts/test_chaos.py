"""scripts/chaos and scripts/study failure_rates: schedule, arithmetic and command line."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from scripts.lab.bench.figures import percentile
from scripts.lab.chaos import __main__ as chaos
from scripts.lab.chaos.ahead import AheadAnswer
from scripts.lab.chaos.nodes import ChaosNodes, Slot
from scripts.lab.chaos.places import Places
from scripts.lab.chaos.remains import held
from scripts.lab.chaos.report import figures, grouped, problems_of, tables
from scripts.lab.chaos.schedule import KILL, KINDS, chosen, schedule
from scripts.lab.chaos.watch import GIVE_UP_S, GRACE_S, Fault, Watch, difference
from scripts.lab.faulty_transport import KINDS as HOSTILE
from scripts.lab.processes.child import ProcessFailedError
from scripts.studies.failure_rates import main as failure_rates
from tests.doubles.chain_case import GREEDY, PROMPT
from tests.doubles.fake_swarm import FakeSwarm

A, B, C = "peer-a", "peer-b", "peer-c"


def _token(at: float, n: int, peers: list[str], repairs: int = 0) -> dict[str, Any]:
    return {"event": "token", "stream": 0, "n": n, "at": at, "peers": peers, "repairs": repairs}


def _ended(at: float, tokens: list[int], expected: list[int], **more: Any) -> dict[str, Any]:
    ended = {
        "event": "ended",
        "stream": 0,
        "began": 100.0,
        "at": at,
        "token_ids": tokens,
        "drafted": 0,
        "accepted": 0,
    }
    return {**ended, "expected": expected, "text_is_whole": True, "gaps": [0.01], "repairs": [], **more}


def _blamed(peer: str, at: float, cause: str = "StreamClosedError", **more: Any) -> dict[str, Any]:
    return {
        "event": "blamed",
        "peer": peer,
        "cause": cause,
        "code": "",
        "message": "gone",
        "banned": True,
        "at": at,
    } | more


def _streaming() -> Watch:
    """A watch of one client with one stream over A and B, which has had a token."""
    watch = Watch()
    watch.take(0, {"event": "began", "stream": 0, "at": 100.0})
    watch.take(0, _token(100.1, 1, [A, B]))
    return watch


# The schedule.


def test_a_schedule_is_its_seed_s_and_every_kind_comes_equally_often() -> None:
    def first(seed: int) -> list[Any]:
        return list(itertools.islice(schedule(KINDS, (0.5, 2.5), seed), 3 * len(KINDS)))

    planned = first(1)
    assert planned == first(1)
    assert planned != first(2)
    assert set(Counter(each.kind for each in planned).values()) == {3}
    for each in planned:
        assert 0.5 <= each.pause_s <= 2.5
        assert each.kind.hold_s[0] <= each.hold_s <= each.kind.hold_s[1]


def test_kinds_are_chosen_by_how_they_begin() -> None:
    assert chosen("kill") == (KILL,)
    assert {kind.name.split()[1].strip(",") for kind in chosen("hostile")} == set(HOSTILE)
    assert [kind.name for kind in chosen("frozen, SIGTERM")] == ["frozen", "SIGTERM"]
    with pytest.raises(ValueError, match="there are: kill -9"):
        chosen("kill,nothing")


# What is lost.


def test_tokens_are_counted_as_lost_doubled_or_differing() -> None:
    right = list(range(10, 30))
    assert difference(right, right) == {}
    assert difference(right, right[:5] + right[6:]) == {"lost": 1}
    assert difference(right, right[:5] + [right[4]] + right[5:]) == {"doubled": 1}
    assert difference(right, right[:5] + [99] + right[6:]) == {"differing": 1}
    assert difference(right, right[:15]) == {"lost": 5}
    assert difference(right, right[:5] + [98, 99, 97] + right[6:]) == {"differing": 1, "doubled": 2}


def test_an_answer_that_differs_is_a_problem() -> None:
    watch = _streaming()
    watch.take(0, _ended(101.0, [1, 2, 2, 3], [1, 2, 3]))
    assert problems_of(watch) == ["1 tokens doubled"]
    assert figures(watch, 60.0)["doubled"] == 1
    assert problems_of(Watch()) == ["no generation came to its end"]


# Stalls and repairs.


def test_a_stall_lasts_from_the_fault_to_the_first_token_of_the_repaired_route() -> None:
    watch = _streaming()
    watch.begin(Fault("kill -9", 100.2, A))
    assert watch.recovering()
    watch.take(0, _token(100.25, 2, [A, B]))  # was under way already
    watch.take(0, _token(100.9, 3, [C, B], repairs=1))
    assert not watch.recovering()
    assert watch.in_use() == {C: [(0, 0)], B: [(0, 0)]}
    repair = {"kind": "replay", "seconds": 0.5, "at": 100.9, "lost": [A], "replayed_tokens": 7}
    repair |= {"replayed_bytes_nodes": 700, "replayed_bytes_client": 0}
    watch.take(0, _ended(101.0, [1, 2, 3], [1, 2, 3], repairs=[repair]))
    report = figures(watch, 60.0)
    assert report["stalls"] == {"kill -9": {"n": 1, "p50": 0.7, "p99": 0.7, "max": 0.7}}
    assert report["repairs"]["kill -9"]["p50"] == 0.5
    assert report["repairs_by_kind"] == {"kill -9": {"replay": 1}}
    assert report["replayed"] == {"tokens": 7, "bytes_nodes": 700, "bytes_client": 0}
    assert report["faults_per_minute"] == 1.0


def test_a_fault_that_nobody_noticed_is_no_stall() -> None:
    watch = _streaming()
    watch.begin(Fault("clock skew", 100.15, A))
    assert not watch.recovering(), "nobody need notice that one"
    watch.begin(Fault("p2pd of a node", 100.2, A))
    watch.take(0, _token(100.3, 2, [A, B]))
    watch.take(0, _token(100.2 + GIVE_UP_S + 1, 3, [A, B]))
    watch.begin(Fault("SIGTERM", 120.0, B))
    watch.take(0, _ended(121.0, [1], [1]))
    watch.begin(Fault("kill -9", 122.0, B))  # nobody streams
    report = figures(watch, 60.0)
    assert report["stalls"] == {}
    assert report["unharmed"] == {"SIGTERM": 1, "p2pd of a node": 1}


def test_a_client_s_own_fault_concerns_its_own_streams() -> None:
    watch = _streaming()
    watch.take(1, {"event": "began", "stream": 0, "at": 100.0})
    watch.take(1, _token(100.1, 1, [A, B]))
    watch.begin(Fault("p2pd of a client", 100.2, client=0, ended=100.2))
    assert [stream.hit is not None for stream in watch.streams.values()] == [True, False]
    watch.take(0, _token(101.2, 2, [A, B], repairs=1))
    assert watch.stalls == [("p2pd of a client", pytest.approx(1.0))]


def test_a_repair_is_put_down_to_the_last_fault_of_what_it_replaced() -> None:
    watch = _streaming()
    watch.faults.append(Fault("SIGTERM", 90.0, A, ended=95.0))
    watch.begin(Fault("frozen", 100.2, A))
    watch.begin(Fault("kill -9", 100.3, C))
    repairs = [
        {"kind": "replay", "seconds": 1.0, "at": 102.0, "lost": [A]},
        {"kind": "replay", "seconds": 1.0, "at": 102.0, "lost": [B]},
    ]
    watch.take(0, _token(102.0, 2, [A, B], repairs=2))
    watch.take(0, _ended(103.0, [1], [1], repairs=repairs))
    assert [repair["fault"] for repair in watch.repairs] == ["frozen", "frozen"]


# Bans.


def test_a_ban_is_false_unless_a_fault_of_that_peer_explains_it() -> None:
    watch = _streaming()
    watch.begin(Fault("kill -9", 100.2, A, ended=101.0))
    watch.take(0, _blamed(A, 100.3))
    watch.take(0, _blamed(A, 100.31))  # another session on the same link
    watch.take(0, _blamed(A, 101.0 + GRACE_S - 1))
    assert (watch.bans, watch.false_bans) == (2, [])
    watch.take(0, _blamed(A, 101.0 + GRACE_S + 1))
    watch.take(0, _blamed(B, 100.3))
    assert (watch.bans, len(watch.false_bans)) == (4, 2)
    watch.take(0, _blamed(B, 100.3, banned=False))
    watch.take(0, _blamed(C, 100.3, cause="BusyError"))
    assert (watch.bans, len(watch.false_bans)) == (4, 2)
    assert watch.retries == {"StreamClosedError": 5, "BusyError": 1}


def test_only_a_hostile_peer_may_be_distrusted() -> None:
    watch = _streaming()
    watch.begin(Fault("frozen", 100.2, A))
    watch.begin(Fault("hostile nan", 100.2, B))
    watch.take(0, _blamed(B, 100.3, cause="RemoteProtocolError", code="bad_tensor"))
    assert watch.false_bans == []
    watch.take(0, _blamed(A, 100.3, cause="RemoteProtocolError", code="bad_tensor"))
    assert len(watch.false_bans) == 1


# The report.


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([], 0.5) == 0.0
    assert grouped([("b", 1.0), ("a", 2.0), ("b", 3.0)]) == {
        "a": {"n": 1, "p50": 2.0, "p99": 2.0, "max": 2.0},
        "b": {"n": 2, "p50": 1.0, "p99": 3.0, "max": 3.0},
    }


def test_the_tables_can_be_printed() -> None:
    watch = _streaming()
    watch.begin(Fault("frozen", 100.2, A))
    watch.take(0, _token(102.9, 2, [C, B], repairs=1))
    repair = {"kind": "replay", "seconds": 0.5, "at": 102.9, "lost": [A], "replayed_bytes_nodes": 12_000}
    watch.take(0, _ended(103.0, [1, 2], [1, 2], repairs=[repair]))
    console = Console(width=200, record=True, file=None, force_terminal=False, quiet=False, stderr=True)
    for each in tables({**figures(watch, 10.0), "seed": 1, "mode": "float32"}):
        console.print(each)
    text = console.export_text()
    assert "2.70 s" in text
    assert "12.0 KB sent by nodes" in text
    assert "1 generations, 2 tokens: 0 lost" in text


def test_what_a_node_still_holds_is_named() -> None:
    idle = {
        "server": {"sessions": 0, "connections": 0, "queued": 0, "journal": {"sessions": 0, "pages": 9}},
        "engine": dict.fromkeys(
            (
                "sequences",
                *(f"{how}_{what}" for how in ("used", "reserved", "cached") for what in ("slots", "states")),
            ),
            0,
        ),
        "process": {"rss": 1, "fds": 18, "threads": 3},
        "daemon": [{"rss": 1, "fds": 14, "threads": 8}],
        "tasks": {},
    }
    allowed = {"fds": 20, "p2pd_fds": 20}
    assert held(idle, allowed) == []
    idle["server"] |= {"sessions": 1, "journal": {"sessions": 2}}
    idle["process"]["fds"] = 21
    assert len(held(idle, allowed)) == 3


def test_a_process_that_failed_does_not_keep_the_report_from_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that had not come back was asked what it holds, and nothing of the whole run was printed."""
    run = chaos.Chaos(chaos.parse(["--kills", "1"]))
    for method in ("_disturb", "_calm_down"):
        monkeypatch.setattr(run, method, lambda *_, name=method: [name])

    def asked(*_: Any) -> list[str]:
        raise ProcessFailedError("serve: ended with 1 before 'statistics'")

    monkeypatch.setattr(chaos, "what_nodes_hold", asked)
    clients = SimpleNamespace(leave=lambda _: ["one did not leave"])
    found = run._disturb_and_settle(
        cast(Any, SimpleNamespace(nodes=[])), cast(Any, None), cast(Any, clients), {}
    )
    assert found == ["_calm_down", "one did not leave", "serve: ended with 1 before 'statistics'"]


def test_a_node_that_ends_before_it_is_online_is_told_and_started_again() -> None:
    ended, again = (
        SimpleNamespace(take=list, is_running=runs, stderr="", report=lambda what: f"serve: {what}")
        for runs in (False, True)
    )
    nodes = object.__new__(ChaosNodes)
    nodes.problems, nodes.restarts, nodes._places = [], 0, Places(None)
    nodes._swarm = cast(Any, SimpleNamespace(restart_node=lambda *_, **__: again))
    nodes.slots = [Slot("0-1", "first", "node 0", cast(Any, ended), until=float("inf"))]
    nodes.poll()
    nodes.poll()
    assert nodes.slots[0].process is again
    assert nodes.problems == ["serve: ended before it was online"]
    assert (nodes.restarts, nodes.all_up) == (1, False)


# The command lines.


def test_defaults_follow_what_is_asked_for() -> None:
    plain, kills = chaos.parse([]), chaos.parse(["--kills", "1000"])
    assert (plain.replicas, plain.clients, plain.seconds, plain.faults) == (2, 4, 600, KINDS)
    assert plain.model.endswith(".gguf")
    assert (kills.model, kills.kills) == ("tiny", 1000)
    assert chaos.parse(["--seconds", "5"]).seconds == 5
    assert failure_rates.parse(["--rates", "0,1e-3", "--steps", "16"]).rates == (0.0, 1e-3)


def test_a_cell_says_when_no_answer_was_complete() -> None:
    cell = {"steps": 1024, "rate": 1e-2, "policy": "restart", "finished": 0, "longest": 310, "failures": 20}
    assert "none complete in 60 s, the longest had 310" in failure_rates.describe(cell, 60)
    assert failure_rates.shown(cell) == "never (20)"
    done = {**cell, "finished": 2, "attempts": 3, "steps_per_s": 41.26}
    assert failure_rates.shown(done) == "41.3 (20)"
    assert "2 of 3 complete" in failure_rates.describe(done, 60)


@pytest.mark.parametrize("known", [GREEDY, [*GREEDY[:5], 7, *GREEDY[6:]], GREEDY[:1]])
async def test_an_answer_that_is_guessed_far_ahead_is_the_plain_one(known: list[int]) -> None:
    """Whatever was expected."""
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client() as model, AheadAnswer(model, PROMPT, known, seed=4) as answer:
        tokens = [token async for token in answer]
    assert tokens == answer.token_ids == GREEDY[: len(known)]
    assert 0 < answer.accepted < answer.drafted or len(known) == 1
    assert len(swarm.nodes["b"].steps) < len(known) or len(known) == 1
    assert swarm.open_sessions == 0
