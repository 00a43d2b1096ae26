"""What goes wrong in a chain, hop by hop and moment by moment: the answer is always the undisturbed one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from swarm_node.client.routing.slow_search import SlowHop
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.messages import ErrorMessage, Step
from tests.doubles.chain_case import CHUNK, OPTIONS, PATIENCE, PROMPT, ChainCase, H, N, S, check
from tests.doubles.fake_swarm import HIDDEN, settle
from tests.doubles.virtual_time import in_virtual_time

pytestmark = pytest.mark.slow

EVERY_HOP = [(hops, victim) for hops in (1, 2, 3, 4) for victim in range(hops)]
ROW = 4 * HIDDEN


@pytest.mark.parametrize(("hops", "victim"), EVERY_HOP)
@pytest.mark.parametrize("step", [1, 3, 6, 7, 15])
@in_virtual_time
async def test_a_hop_that_dies(hops: int, victim: int, step: int) -> None:
    """Chunks of the prefill are steps 1 to 6, then come tokens."""
    case = await ChainCase(hops).start()
    case.swarm.nodes[H[victim]].behaviour.die_at_step = step
    answer = await case.disturbed()
    (repair,) = answer.repaired
    assert repair.kind == ("reopen" if hops == 1 else "replay")
    assert case.blamed <= {H[victim]}
    assert [hop.peer_id for hop in answer.route.hops][victim] == S[victim]
    for number in range(hops):
        if number != victim:
            assert len(case.swarm.nodes[H[number]].opens) == 1  # it kept what it had computed
    if repair.kind == "replay":
        assert repair.lost == (H[victim],)
        fed = repair.replayed_tokens * ROW
        assert (repair.replayed_bytes_client, repair.replayed_bytes_nodes) == (
            (fed, 0) if victim == 0 else (0, fed)
        )
        if step == 15:
            assert repair.replayed_tokens >= len(PROMPT)


@in_virtual_time
async def test_after_a_repair_nobody_knows_the_next_step_s_number() -> None:
    """Who fed a hop, and is replaced, could have sent it a step under that number as his last word."""
    gaps = set()
    for _ in range(2):
        case = await ChainCase(3).start()
        await case.disturbed((5, lambda case=case: case.kill("ha")))
        numbers = [step.step for step in case.swarm.nodes["hb"].steps]
        gaps.add(max(b - a for a, b in pairwise(numbers)))
    assert len(gaps) == 2
    assert min(gaps) > 1


@pytest.mark.parametrize(("hops", "victim"), EVERY_HOP)
@in_virtual_time
async def test_a_hop_that_dies_while_it_opens(hops: int, victim: int) -> None:
    case = await ChainCase(hops).start()
    case.swarm.nodes[H[victim]].behaviour.die_at_open = True
    answer = await case.disturbed()
    assert answer.repairs == 0
    assert case.blamed <= {H[victim]}


@pytest.mark.parametrize(("hops", "victim"), EVERY_HOP)
@in_virtual_time
async def test_a_frozen_hop(hops: int, victim: int) -> None:
    case = await ChainCase(hops).start()
    answer = await case.disturbed((5, lambda: case.swarm.freeze(H[victim])))
    (repair,) = answer.repaired
    assert H[victim] in repair.lost
    assert case.blamed <= {H[victim]}
    assert repair.seconds < 2


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("after", [1, 9])
@in_virtual_time
async def test_two_neighbours_at_once(first: int, after: int) -> None:
    case = await ChainCase(4).start()

    def kill() -> None:
        case.kill(H[first])
        case.kill(H[first + 1])

    answer = await case.disturbed((after, kill))
    (repair,) = answer.repaired
    assert (repair.kind, set(repair.lost)) == ("replay", {H[first], H[first + 1]})
    assert case.blamed <= {H[first], H[first + 1]}


@in_virtual_time
async def test_all_at_once() -> None:
    case = await ChainCase(3).start()

    def kill() -> None:
        for name in case.names:
            case.kill(name)

    answer = await case.disturbed((5, kill))
    assert [repair.kind for repair in answer.repaired] == ["reopen"]


@in_virtual_time
async def test_one_after_another() -> None:
    case = await ChainCase(4).start()
    answer = await case.disturbed(*((3 + 4 * n, lambda n=n: case.kill(H[n])) for n in range(4)))  # type: ignore[misc]
    assert [repair.lost for repair in answer.repaired] == [(H[n],) for n in range(4)]


@pytest.mark.parametrize("victim", [1, 2])
@in_virtual_time
async def test_a_lost_journal_makes_its_hop_join_the_gap(victim: int) -> None:
    case = await ChainCase(3).start()
    before = case.swarm.nodes[H[victim - 1]]

    def kill() -> None:
        before.lose_journals()
        case.kill(H[victim])

    answer = await case.disturbed((6, kill))
    (repair,) = answer.repaired
    assert (repair.kind, repair.lost) == ("replay", (H[victim], before.peer_id))
    assert case.blamed <= {H[victim]}
    assert repair.replayed_tokens == 2 * (len(PROMPT) + 5)  # the sixth token was not fed yet


@in_virtual_time
async def test_nodes_without_any_journal() -> None:
    case = await ChainCase(3).start()
    for node in case.swarm.nodes.values():
        node.behaviour.journal = False
    answer = await case.disturbed((6, lambda: case.kill("hc")))
    (repair,) = answer.repaired
    assert repair.kind == "reopen"
    assert repair.replayed_bytes_client > 0
    assert case.blamed <= {"hc"}


@pytest.mark.parametrize("edge", [1, 2])
@in_virtual_time
async def test_a_broken_edge_is_nobodys_fault(edge: int) -> None:
    case = await ChainCase(3).start()
    answer = await case.disturbed((6, lambda: case.swarm.cut(H[edge - 1], H[edge])))
    (repair,) = answer.repaired
    assert (repair.kind, repair.lost, repair.replayed_tokens) == ("relay", (), 0)
    assert case.blamed == set()
    assert not case.router.may_chain(H[edge - 1], H[edge])
    assert {len(case.swarm.nodes[name].opens) for name in case.names} == {1}
    assert len([chain for chain in answer.chains if chain.decode.tokens]) == 3


@pytest.mark.parametrize("replayer", ["ha", "hb"])
@in_virtual_time
async def test_a_replacement_that_the_hop_before_cannot_reach(replayer: str) -> None:
    case = await ChainCase(3).start()
    number = H.index(replayer) + 1
    case.swarm.nodes[replayer].cannot_reach.add(S[number])
    answer = await case.disturbed((6, lambda: case.kill(H[number])))
    (repair,) = answer.repaired
    assert repair.kind == "replay"
    assert repair.replayed_bytes_client >= len(PROMPT) * ROW  # what the journal held came this way
    assert case.blamed <= {H[number]}


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("fault", ["garbage_at_step", "wrong_rows_at_step", "nan_at_step"])
@pytest.mark.parametrize("step", [3, 15])
@in_virtual_time
async def test_nonsense_once(fault: str, victim: int, step: int) -> None:
    case = await ChainCase(3).start()
    setattr(case.swarm.nodes[H[victim]].behaviour, fault, step)
    answer = await case.disturbed()
    if fault == "nan_at_step" and (victim, step) == (2, 3):
        assert answer.repairs == 0  # rows that nobody asked for
        return
    (repair,) = answer.repaired
    # Only the last hop's nonsense is seen by the client; that of others may be the edge's.
    assert repair.kind == ("reopen" if victim == 2 else "relay")
    assert case.blamed <= {H[victim]}
    assert (H[victim] in case.blamed) == (repair.kind == "reopen")


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 15])
@in_virtual_time
async def test_nonsense_for_ever_is_blamed_on_its_source(victim: int, step: int) -> None:
    case = await ChainCase(3).start()
    case.swarm.nodes[H[victim]].behaviour.nan_from_step = step
    answer = await case.disturbed()
    assert case.blamed == {H[victim]}
    assert [hop.peer_id for hop in answer.route.hops][victim] == S[victim]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda came, rows: np.zeros_like(rows), "nothing but zeros"),
        (lambda came, rows: rows * 1e-12, "next to nothing"),
        (lambda came, rows: came, "what was sent"),
        (lambda came, rows: rows * 1e9, "larger than any model's"),
        (lambda came, rows: rows * 1e30, "larg"),
    ],
    ids=["zeros", "tiny", "echo", "large", "huge"],
)
@pytest.mark.parametrize("codec", ["none", "int8"])
@in_virtual_time
async def test_rows_that_no_model_computes_end_the_hop(lie: Any, reason: str, codec: str) -> None:
    case = await ChainCase(1).start()
    behaviour = case.swarm.nodes["ha"].behaviour
    behaviour.lie, behaviour.lie_from_step = lie, 10
    async with case.client(wire_codec=codec) as model:
        answer = await model.generate_detailed(PROMPT, **OPTIONS)
    if codec == "none":
        check(answer)
    (repair,) = answer.repaired
    assert reason in repair.cause
    assert case.blamed == {"ha"}
    assert [hop.peer_id for hop in answer.route.hops] == ["sa"]


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("factor", [1e9, 1e30])
@in_virtual_time
async def test_too_large_rows_are_blamed_on_who_made_them_not_on_who_was_fed_them(
    victim: int, factor: float
) -> None:
    case = await ChainCase(3).start()
    behaviour = case.swarm.nodes[H[victim]].behaviour
    behaviour.lie, behaviour.lie_from_step = lambda came, rows: rows * factor, 10
    answer = await case.disturbed()
    assert case.blamed == {H[victim]}
    assert [hop.peer_id for hop in answer.route.hops][victim] == S[victim]


@pytest.mark.parametrize("hops", [2, 4])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("step", [1, 15])
@in_virtual_time
async def test_a_hop_that_makes_up_tokens_is_found_behind_those_that_believe_it(
    hops: int, victim: int, step: int
) -> None:
    """The hops behind it answer wrongly, and are not blamed for it."""
    case = await ChainCase(hops).start()
    case.swarm.nodes[H[victim]].behaviour.more_rows_from_step = step
    answer = await case.disturbed()
    assert case.blamed == {H[victim]}
    assert [hop.peer_id for hop in answer.route.hops][victim] == S[victim]
    await settle()
    assert case.swarm.open_sessions == 0


def back(step: Step, number: int) -> Step:
    """To the beginning of the session, of which nothing is left."""
    row = step.payload[: len(step.payload) // step.tokens]
    return replace(step, step=number, position=0, tokens=1, payload=row)


MADE_UP: dict[str, Callable[[Step], Step]] = {
    "back": lambda step: back(step, step.step + 1),
    "back for good": lambda step: back(step, 2**53 - 1),
    "the last number": lambda step: replace(step, step=2**53 - 1),
    "far ahead": lambda step: replace(step, step=step.step + 1, position=step.position + 500),
    "too many": lambda step: replace(
        step, step=step.step + 1, tokens=step.tokens * CHUNK, payload=bytes(step.payload) * CHUNK
    ),
    "void": lambda step: replace(step, step=step.step + 1, void=1),
    "all void": lambda step: replace(step, step=2**53 - 1, void=1),
    "void and too far": lambda step: replace(step, step=2**53 - 1, position=step.position + 500, void=1),
}


@pytest.mark.parametrize(("hops", "liar"), [(2, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("made_up", MADE_UP.values(), ids=MADE_UP.keys())
@pytest.mark.parametrize("step", [3, 15, 30])
@in_virtual_time
async def test_what_a_hop_did_to_the_sessions_behind_it_is_not_their_fault(
    hops: int, liar: int, made_up: Callable[[Step], Step], step: int
) -> None:
    """The hops behind it hold and count what it made them."""
    case = await ChainCase(hops).start()
    behaviour = case.swarm.nodes[H[liar]].behaviour
    behaviour.made_up, behaviour.made_up_at_step = made_up, step
    answer = await case.disturbed()
    assert case.blamed <= {H[liar]}
    assert answer.timings.repair_s < 2
    await settle()
    assert case.swarm.open_sessions == 0


@pytest.mark.parametrize("made_up", [MADE_UP["back"], MADE_UP["the last number"]], ids=["back", "number"])
@in_virtual_time
async def test_nor_is_it_when_the_hop_has_gone(made_up: Callable[[Step], Step]) -> None:
    case = await ChainCase(3).start()
    behaviour = case.swarm.nodes["ha"].behaviour

    def last_words() -> None:
        behaviour.made_up = made_up

    answer = await case.disturbed((3, last_words), (5, lambda: case.kill("ha")))
    assert case.blamed <= {"ha"}
    assert answer.timings.repair_s < 2


@in_virtual_time
async def test_a_hop_that_refuses_what_fits_is_blamed_in_a_session_that_only_the_client_fed() -> None:
    case = await ChainCase(3).start()
    node = case.swarm.nodes["hb"]
    refusal = ErrorMessage(None, None, ErrorCode.BAD_STEP, "do not like it", False)
    node.behaviour.error_at_step = (9, refusal)

    def again() -> None:
        last = max(step.step for step in node.steps)
        node.behaviour.error_at_step = (last + 1, refusal)

    answer = await case.disturbed((5, again), (8, again))
    assert answer.repaired[-1].lost == ("hb",)
    assert case.blamed == {"hb"}


@in_virtual_time
async def test_input_refused_for_no_reason_is_blamed_on_who_refuses() -> None:
    case = await ChainCase(3).start()
    node = case.swarm.nodes["hb"]
    refusal = ErrorMessage(None, None, ErrorCode.BAD_TENSOR, "do not like it", False)
    node.behaviour.error_at_step = (9, refusal)

    def again() -> None:
        last = max(step.step for step in node.steps)
        node.behaviour.error_at_step = (last + 1, refusal)

    answer = await case.disturbed((5, again))
    assert [repair.kind for repair in answer.repaired] == ["relay", "replay"]
    assert answer.repaired[1].lost == ("hb",)
    assert case.blamed == {"hb"}


@pytest.mark.parametrize("code", [ErrorCode.DEADLINE, ErrorCode.OVERLOADED])
@in_virtual_time
async def test_what_the_hop_before_may_have_caused_is_looked_at(code: ErrorCode) -> None:
    """It may send too much, or say that it is urgent; a hop that fails where the client feeds it is left."""
    case = await ChainCase(3).start()
    node = case.swarm.nodes["hb"]
    refusal = ErrorMessage(None, None, code, "no", True)
    node.behaviour.error_at_step = (12, refusal)

    def again() -> None:
        assert case.blamed == set()
        last = max(step.step for step in node.steps)
        node.behaviour.error_at_step = (last + 1, refusal)

    answer = await case.disturbed((9, again))
    assert [repair.kind for repair in answer.repaired] == ["relay", "replay"]
    assert answer.repaired[1].lost == ("hb",)
    assert case.blamed <= {"hb"}


@pytest.mark.parametrize("code", [ErrorCode.INTERNAL, ErrorCode.DRAINING])
@in_virtual_time
async def test_typed_errors_replace_one_hop(code: ErrorCode) -> None:
    case = await ChainCase(3).start()
    case.swarm.nodes["hb"].behaviour.error_at_step = (12, ErrorMessage(None, None, code, "no", True))
    answer = await case.disturbed()
    (repair,) = answer.repaired
    assert (repair.kind, repair.lost) == ("replay", ("hb",))
    assert case.blamed <= {"hb"}


@pytest.mark.parametrize("number", [0, 1, 2])
@in_virtual_time
async def test_a_hop_that_says_where_it_can_go_on_keeps_its_session(number: int) -> None:
    """It is fed from there by the hop before it, or by us, and no more than that."""
    case = await ChainCase(3).start()
    node, holds = case.swarm.nodes[H[number]], len(PROMPT) // 2
    refusal = ErrorMessage(None, None, ErrorCode.CACHE_LOST, "no state there", True, holds=holds)
    node.behaviour.error_at_step = (12, refusal)
    answer = await case.disturbed()
    (repair,) = answer.repaired
    assert (repair.kind, repair.lost) == ("replay", ())
    assert repair.replayed_tokens < N + len(PROMPT) - holds
    assert min(step.position for step in node.steps if step.step > 12) == holds
    assert all(len(case.swarm.nodes[name].opens) == 1 for name in case.names)
    assert case.blamed == set()


@in_virtual_time
async def test_a_hop_that_could_go_on_there_a_moment_later_is_asked_again() -> None:
    case = await ChainCase(3).start()
    node = case.swarm.nodes["hb"]
    holds = len(PROMPT) + 5  # what came out of the route by then
    node.behaviour.error_at_step = (12, ErrorMessage(None, None, ErrorCode.CACHE_LOST, "", True, holds=holds))
    answer = await case.disturbed()
    (repair,) = answer.repaired
    assert (repair.lost, repair.replayed_tokens) == ((), 0)
    assert len(node.opens) == 1


@pytest.mark.parametrize("holds", [10_000, None])
@in_virtual_time
async def test_a_hop_that_can_go_on_nowhere_is_replaced(holds: int | None) -> None:
    case = await ChainCase(3).start()
    refusal = ErrorMessage(None, None, ErrorCode.CACHE_LOST, "no state there", True, holds=holds)
    case.swarm.nodes["hb"].behaviour.error_at_step = (12, refusal)
    answer = await case.disturbed()
    (repair,) = answer.repaired
    assert (repair.kind, repair.lost) == ("replay", ("hb",))


@in_virtual_time
async def test_a_hop_that_goes_back_for_ever_is_replaced() -> None:
    case = await ChainCase(3).start()
    refusal = ErrorMessage(None, None, ErrorCode.CACHE_LOST, "no state there", True, holds=3)
    case.swarm.nodes["hb"].behaviour.error_from_step = (12, refusal)
    answer = await case.disturbed()
    assert [repair.lost for repair in answer.repaired] == [("hb",)]
    assert [hop.peer_id for hop in answer.route.hops] == ["ha", "sb", "hc"]


@pytest.mark.parametrize("holds", [3, None])
@in_virtual_time
async def test_a_hop_that_lets_a_token_pass_and_loses_its_state_again_is_replaced(holds: int | None) -> None:
    """Each time all tokens have to be fed again: a token must not cost that."""
    case = await ChainCase(3).start()
    node = case.swarm.nodes["hb"]
    refusal = ErrorMessage(None, None, ErrorCode.CACHE_LOST, "no state there", True, holds=holds)

    def again() -> None:
        node.behaviour.error_at_step = (max(step.step for step in node.steps) + 1, refusal)

    answer = await case.disturbed(*((token, again) for token in range(4, 20)))
    assert [hop.peer_id for hop in answer.route.hops] == ["ha", "sb", "hc"]
    assert sum(repair.kind == "replay" for repair in answer.repaired) <= 2


@pytest.mark.parametrize("code", [ErrorCode.CACHE_LOST, ErrorCode.DOWNSTREAM_LOST, ErrorCode.UPSTREAM_LOST])
@in_virtual_time
async def test_what_a_healthy_peer_may_say_is_no_excuse_for_ever(code: ErrorCode) -> None:
    case = await ChainCase(3).start()
    refusal = ErrorMessage(None, None, code, "sorry", True)
    case.swarm.nodes["hb"].behaviour.error_from_step = (12, refusal)
    answer = await case.disturbed()
    assert [hop.peer_id for hop in answer.route.hops] == ["ha", "sb", "hc"]


@pytest.mark.parametrize("fault", ["die_at_open", "die_at_hold", "die_at_replay"])
@in_virtual_time
async def test_a_death_during_a_repair(fault: str) -> None:
    case = await ChainCase(3).start()
    if fault == "die_at_replay":
        case.swarm.nodes["ha"].behaviour.die_at_replay = True
    else:
        setattr(case.swarm.nodes["sb"].behaviour, fault, True if fault == "die_at_open" else 3)
    answer = await case.disturbed((6, lambda: case.kill("hb")))
    assert answer.repairs == 1
    assert case.blamed <= {"hb", "ha", "sb"}


@in_virtual_time
async def test_a_busy_replacement_is_asked_again() -> None:
    case = await ChainCase(2).start()
    case.swarm.nodes["sb"].behaviour.busy_times = 2
    answer = await case.disturbed((6, lambda: case.kill("hb")))
    assert len(case.swarm.nodes["sb"].opens) == 3
    assert len(case.swarm.nodes["ha"].opens) == 1
    assert answer.repairs == 1


@pytest.mark.parametrize("victim", [0, 1, 2])
@in_virtual_time
async def test_without_a_replica_the_others_are_kept_until_it_is_back(victim: int) -> None:
    case = await ChainCase(3, spares=False).start()
    name = H[victim]
    lines: list[str] = []
    back: list[asyncio.Task[None]] = []

    def on_progress(line: str) -> None:
        lines.append(line)
        if not back:
            back.append(asyncio.create_task(case.revive(name)))

    def kill() -> None:
        case.kill(name)
        case.swarm.store.remove(name)

    answer = await case.disturbed((6, kill), on_progress=on_progress)
    assert lines
    assert "blocks" in lines[0]
    assert [repair.kind for repair in answer.repaired] == ["replay"]
    assert [len(case.swarm.nodes[other].opens) for other in case.names if other != name] == [1, 1]


@in_virtual_time
async def test_without_a_replica_and_without_hope() -> None:
    from swarm_node.swarm.routing.best_route import NoRouteError

    case = await ChainCase(2, spares=False).start()

    def kill() -> None:
        case.kill("hb")
        case.swarm.store.remove("hb")

    with pytest.raises(NoRouteError):
        await case.disturbed((6, kill))
    await settle()
    assert case.swarm.open_sessions == 0


async def _own_loss(case: ChainCase, seconds: float) -> None:
    for name in case.swarm.nodes:
        case.swarm.network.partition("client", name)
    asyncio.get_running_loop().call_later(seconds, case.swarm.network.heal)


@in_virtual_time
async def test_an_own_loss_is_sat_out() -> None:
    case = await ChainCase(3).start()
    answer = await case.disturbed((6, lambda: _own_loss(case, 1.0)))
    assert answer.repairs == 0
    assert {len(case.swarm.nodes[name].opens) for name in case.names} == {1}
    assert case.blamed == set()


@in_virtual_time
async def test_an_own_loss_that_lasts_ends_in_new_sessions() -> None:
    case = await ChainCase(3).start()
    patience = replace(PATIENCE, own_loss_s=0.5)
    answer = await case.disturbed((6, lambda: _own_loss(case, 1.5)), patience=patience)
    assert answer.repairs >= 1


@in_virtual_time
async def test_a_silent_edge_between_two_hops_is_found_by_the_nodes() -> None:
    """Their links end; here as if the one behind noticed first."""
    case = await ChainCase(3).start()

    def cut() -> None:
        case.swarm.nodes["hb"].cannot_reach.add("hc")
        case.swarm.nodes["hb"].drop_link("hc")

    answer = await case.disturbed((6, cut))
    assert [repair.kind for repair in answer.repaired] == ["relay"]
    assert case.blamed == set()


@pytest.mark.parametrize("number", [0, 1, 2])
@in_virtual_time
async def test_a_planned_move(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_node.client.hops.step_times.LOOK_S", 0.0)
    case = await ChainCase(3).start()
    asked: list[int] = []

    def find_slow(route: object, spent: list[object], chains: list[object], *tokens: int) -> SlowHop | None:
        asked.append(tokens[1])
        assert len(spent) == 3
        return SlowHop(number) if len(asked) == 1 else None

    monkeypatch.setattr(case.router, "find_slow", find_slow)
    answer = await case.disturbed()
    (repair,) = answer.repaired
    assert (repair.kind, repair.lost) == ("planned", (H[number],))
    assert [hop.peer_id for hop in answer.route.hops][number] == S[number]
    assert case.blamed == set()
    await settle()
    assert case.swarm.open_sessions == 0
    assert asked[0] >= 8


@in_virtual_time
async def test_a_planned_move_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_node.client.hops.step_times.LOOK_S", 0.0)
    case = await ChainCase(3).start()
    monkeypatch.setattr(case.router, "find_slow", lambda *_: SlowHop(1))
    case.swarm.nodes["sb"].behaviour.die_at_open = True
    answer = await case.disturbed()
    assert answer.repairs == 0
    assert [hop.peer_id for hop in answer.route.hops] == case.names


@in_virtual_time
async def test_what_repairs_have_cost_is_json() -> None:
    case = await ChainCase(2).start()
    answer = await case.disturbed((6, lambda: case.kill("hb")))
    (repair,) = answer.as_dict()["repaired"]  # type: ignore[misc]
    assert repair["kind"] == "replay"
    assert repair["lost"] == ["hb"]
    assert repair["replayed_bytes_client"] == 0
    assert repair["replayed_bytes_nodes"] > 0
    assert answer.timings.repair_s == pytest.approx(repair["seconds"], abs=1e-5)
    check(answer)
