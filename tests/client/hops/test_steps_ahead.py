"""Rounds of many short steps ahead of their results, over any route, while hops are killed, frozen, cut off,
slow or talk nonsense: the rows are those of plain decoding, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.hops.hop import HopClient
from swarm_node.client.routing.bans import is_fault
from swarm_node.client.routing.slow_search import SlowHop
from swarm_node.client.session.slow_watch import Rewire
from swarm_node.client.session.swarm_session import SwarmSession
from swarm_node.swarm.errors import ErrorCode, HopFailedError, PeerLateError, SwarmError
from swarm_node.swarm.figures import MOST_AHEAD, MOST_AHEAD_OF_STATES
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.protocol.messages import ErrorMessage, Void
from swarm_node.swarm.timeouts import Patience
from tests.doubles.chain_case import ChainCase, H, S
from tests.doubles.fake_swarm import BOS, N_BLOCKS, ToyHead, run_block
from tests.doubles.virtual_time import in_virtual_time, now

PROMPT = [BOS, *b"Tell me something."]
LENGTH = len(PROMPT) + 150
FAULTS = (
    "kill",
    "freeze",
    "cut",
    "mute",
    "slow",
    "error",
    "nan",
    "rows",
    "garbage",
    "journal",
    "dies at open",
)
HARMLESS = frozenset({"cut", "slow", "journal"})
PATIENCE = Patience(dial_s=2.0, step_s=20.0, own_loss_s=5.0)


Branches = Sequence[tuple[int, Sequence[int]]]


class Plain:
    """Rows of the toy model, computed in one place."""

    def __init__(self) -> None:
        self._histories: list[list[np.ndarray]] = [[] for _ in range(N_BLOCKS)]

    def rows(self, ids: Sequence[int], position: int) -> np.ndarray:
        """(tokens, hidden) of ``ids``, the first at ``position``."""
        x = ToyHead().embed(ids)
        for block, history in enumerate(self._histories):
            del history[position:]
            x = run_block(block, x, history)
        return x

    def branched(self, ids: Sequence[int], position: int, branches: Branches) -> np.ndarray:
        """The same, and then the rows of ``branches``."""
        others = [self.rows([*ids[:row], *branch], position)[row:] for row, branch in branches]
        return np.concatenate([self.rows(ids, position), *others])


class Speaker:
    """What a generation does with its session: rounds of guesses of which some are wrong, at random."""

    def __init__(self, session: SwarmSession, rng: random.Random) -> None:
        self.session = session
        self.sent = 0  # rows
        self._rng = rng
        self._plain = Plain()
        self._truth = PROMPT + [rng.randrange(256) for _ in range(LENGTH + 200)]
        self._ids: list[int] = []  # as the session was given them
        self._steps: list[int] = []  # tokens of those under way
        self._branches: list[Branches] = []  # of each of them

    @property
    def _judged(self) -> int:
        return len(self._ids) - sum(self._steps)

    async def speak(self) -> None:
        hidden = await self.session.append(PROMPT)
        self._ids = list(PROMPT)
        np.testing.assert_array_equal(hidden, self._plain.rows(PROMPT, 0)[-1:])
        while self._judged < LENGTH:
            if not self._steps and self._rng.random() < 0.3:
                await self.session.look_around()
            if not self._steps and self._rng.random() < 0.1:
                await self._append()
            self._send_some()
            await self._receive()

    async def _append(self) -> None:
        ids = self._truth[len(self._ids) :][: self._rng.randint(1, 20)]
        hidden = await self.session.append(ids)
        np.testing.assert_array_equal(hidden, self._plain.rows(ids, len(self._ids))[-1:])
        self._ids += ids

    def _send_some(self) -> None:
        """Up to 16 steps, of which one may have a wrong guess."""
        rng, most = self._rng, self.session.most_ahead
        for _ in range(rng.choice((1, 1, 2, 4, 8, 16)) if not self._steps or rng.random() < 0.5 else 0):
            room = min(8, most - sum(self._steps))
            if room < 1 or len(self._steps) >= 16:
                return
            begin, tokens = len(self._ids), rng.randint(1, room)
            ids = self._truth[begin : begin + tokens]
            if (self._steps or tokens > 1) and rng.random() < 0.25:
                wrong = rng.randrange(0 if self._steps else 1, tokens)
                ids[wrong] = (ids[wrong] + 1 + rng.randrange(200)) % 256
            branches = self._some_branches(tokens) if rng.random() < 0.2 else ()
            self.session.send(ids, branches=branches)
            self.sent += tokens
            self._ids += ids
            self._steps.append(tokens)
            self._branches.append(branches)

    def _some_branches(self, tokens: int) -> Branches:
        rng = self._rng
        return [
            (rng.randint(0, tokens), [rng.randrange(256) for _ in range(rng.randint(1, 4))])
            for _ in range(rng.randint(1, 4))
        ]

    async def _receive(self) -> None:
        begin, tokens = self._judged, self._steps[0]
        ids = self._ids[begin : begin + tokens]
        hidden = await self.session.receive()
        branches = self._branches[0] if len(hidden) > tokens else ()
        np.testing.assert_array_equal(hidden, self._plain.branched(ids, begin, branches))
        del self._steps[0], self._branches[0]
        right = 0
        while right < tokens and ids[right] == self._truth[begin + right]:
            right += 1
        # The row of the last right token shows that the guess behind it is wrong.
        behind = begin + right
        known = behind < len(self._ids) and self._ids[behind] != self._truth[behind]
        if right < tokens or known or self._rng.random() < 0.05:
            self.session.rollback(behind)
            del self._ids[behind:]
            self._steps.clear()
            self._branches.clear()


class Trouble:
    """Faults at random moments, that leave one sound node for each place. ``guilty``: who may be blamed."""

    def __init__(self, case: ChainCase, rng: random.Random) -> None:
        self.case = case
        self.guilty: set[str] = set()
        self.plan: list[tuple[float, str, str, str]] = []  # when, what, to whom; and a neighbour
        spared: dict[int, str] = {}
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            kind, place = rng.choice(FAULTS), rng.randrange(len(case.names))
            name, other = (S if rng.random() < 0.2 else H)[place], H[max(0, place - 1)]
            if kind == "cut" and (name == other or place == 0):
                continue
            if kind not in HARMLESS:
                if spared.setdefault(place, S[place] if name == H[place] else H[place]) == name:
                    continue
                self.guilty.add(name)
            self.plan.append((rng.uniform(0.0, 3.0), kind, name, other))
        self.plan.sort()

    async def happen(self) -> None:
        began = asyncio.get_running_loop().time()
        for at, kind, name, other in self.plan:
            await asyncio.sleep(max(0.0, began + at - asyncio.get_running_loop().time()))
            self._happens(kind, name, other)

    def _happens(self, kind: str, name: str, other: str) -> None:
        node = self.case.swarm.nodes[name]
        how, soon = node.behaviour, max((step.step for step in node.steps), default=0) + 1
        match kind:
            case "kill":
                self.case.kill(name)
            case "freeze":
                self.case.swarm.freeze(name)
            case "cut":
                self.case.swarm.cut(name, other)
            case "mute":
                how.mute_at_step = soon
            case "slow":
                how.step_delay_s = 0.3
            case "error":
                how.error_at_step = (soon, ErrorMessage(None, None, ErrorCode.INTERNAL, "cannot", True))
            case "journal":
                node.lose_journals()
            case "dies at open":
                how.die_at_open = True
            case _:
                names = {"nan": "nan_at_step", "rows": "wrong_rows_at_step", "garbage": "garbage_at_step"}
                setattr(how, names[kind], soon)


def _blamed(case: ChainCase) -> dict[str, SwarmError]:
    """Fills with what is held against peers from now on; that one may only be slow is not."""
    blamed: dict[str, SwarmError] = {}
    note = case.router.failed

    def failed(failure: HopFailedError) -> None:
        note(failure)
        if is_fault(failure.cause) and not isinstance(failure.cause, PeerLateError):
            blamed[failure.peer_id] = failure.cause

    case.router.failed = failed  # type: ignore[method-assign]
    return blamed


async def _speaks_through(seed: int) -> SwarmSession:
    rng = random.Random(seed)
    states = rng.random() < 0.3
    case = ChainCase(rng.randint(1, 4), latency=rng.choice((0.0, 0.005, 0.05)), keeps_states=states)
    case.swarm.network.loss, case.swarm.network._rng = rng.choice((0.0, 0.0, 0.1)), rng
    loop = asyncio.get_running_loop()
    case.router = case.swarm.router(clock=loop.time)
    blamed = _blamed(case)
    for node in case.swarm.nodes.values():
        node.behaviour.step_delay_s = rng.choice((0.0, 0.002, 0.02))
        node.behaviour.chains = rng.random() < 0.8
        node.behaviour.features = rng.choice((None, None, None, (), ("void",), ("branches", "unheard")))
        if rng.random() < 0.1:
            node.behaviour.swallows = frozenset({Void})
    await case.start()
    trouble = Trouble(case, rng)
    local = case.swarm.local(keeps_states=states)
    async with (
        asyncio.timeout(600),
        case.client(
            local=local, chain=rng.random() < 0.8, prefix_cache=rng.random() < 0.5, patience=PATIENCE
        ) as model,
    ):
        session = model.session(LENGTH + 200, prompt_tokens=len(PROMPT))
        happening = asyncio.create_task(trouble.happen())
        try:
            await Speaker(session, rng).speak()
        finally:
            session.close()
            await happening
        assert blamed.keys() <= trouble.guilty, (blamed, trouble.plan)
    await asyncio.sleep(1)
    for name, node in case.swarm.nodes.items():
        if name not in trouble.guilty:
            assert not node.open_sessions, (name, trouble.plan)
            load = node.engine.load()
            assert (load.queued, load.used_slots, load.used_states, load.reserved_states) == (0, 0, 0, 0)
    return session


@pytest.mark.parametrize("seed", range(16))
@in_virtual_time
async def test_rounds_of_many_steps(seed: int) -> None:
    before = asyncio.all_tasks()
    await _speaks_through(seed)
    left = asyncio.all_tasks() - before
    assert not [task for task in left if "client" in str(task.get_coro())]


TRUTH = PROMPT + [3 * number % 250 for number in range(300)]


async def _opened(case: ChainCase, **options: Any) -> tuple[AsyncSwarmModel, SwarmSession]:
    """A session that was fed the prompt."""
    case.router = case.swarm.router(clock=asyncio.get_running_loop().time)
    await case.start()
    model = await case.client(patience=PATIENCE, **options).__aenter__()
    session = model.session(400, prompt_tokens=len(PROMPT))
    await session.append(PROMPT)
    return model, session


def _send(session: SwarmSession, tokens: int) -> None:
    """What is true, in steps of 8."""
    begin = session.length
    for start in range(begin, begin + tokens, 8):
        session.send(TRUTH[start : min(start + 8, begin + tokens)])


async def _receive(session: SwarmSession, tokens: int) -> None:
    """Rows behind ``tokens`` true ones, of all steps under way."""
    plain = Plain()
    plain.rows(TRUTH[:tokens], 0)
    while tokens < session.length:
        hidden = await session.receive()
        ids = TRUTH[tokens : tokens + len(hidden)]
        np.testing.assert_array_equal(hidden, plain.rows(ids, tokens))
        tokens += len(ids)


@pytest.mark.parametrize("chain", [True, False])
@in_virtual_time
async def test_pages_keep_names_only_of_what_all_hops_hold(chain: bool) -> None:
    """CLOSE comes to the second hop before the steps that are under way, and before those that take the place
    of others there."""
    case = ChainCase(2, latency=0.01, spares=False)
    model, session = await _opened(case, chain=chain, prefix_cache=True)
    _send(session, 80 - len(PROMPT))
    await _receive(session, len(PROMPT))
    session.rollback(40)
    session.send([9] * 8)  # in place of tokens that the hops hold
    session.send([9] * 40)
    session.close()
    await asyncio.sleep(1)
    for name in case.names:
        (closed,) = case.swarm.nodes[name].closes
        assert len(closed.prefix) == 40 // PAGE_TOKENS
    again = model.session(400, prompt_tokens=88)
    ids = TRUTH[:40] + [9] * 48
    np.testing.assert_array_equal(await again.append(ids), Plain().rows(ids, 0)[-1:])
    await model.close()


@in_virtual_time
async def test_a_late_error_of_a_void_step_breaks_nothing() -> None:
    model, session = await _opened(ChainCase(2, latency=0.01, spares=False))
    _send(session, 16)
    session.rollback(len(PROMPT))
    _send(session, 16)
    for hop in session._session.hops:
        hop.deliver(ErrorMessage(hop.session, hop.first_step - 1, ErrorCode.DEADLINE, "late", True))
    await _receive(session, len(PROMPT))
    assert session.repaired == []
    await model.close()


@pytest.mark.parametrize("chain", [True, False])
@in_virtual_time
async def test_what_steps_cost_that_are_under_way_together(chain: bool) -> None:
    """All took as long as they were waited for; and a link is judged by those that went alone."""
    case = ChainCase(2, latency=0.05, spares=False)
    for node in case.swarm.nodes.values():
        node.behaviour.step_delay_s = 0.01
    model, session = await _opened(case, chain=chain)
    for _ in range(3):
        began = now()
        _send(session, 64)
        await _receive(session, session.length - 64)
        took = now() - began
    assert took < 0.4  # and not eight times a round trip
    for chained in session.chains:
        assert (chained.decode.steps, chained.decode.tokens) == (24, 192)
        trip_s = 0.15 if chain else 0.1
        assert chained.alone.wire_s / chained.alone.steps == pytest.approx(trip_s, rel=0.2)
    for hop in session.hops:
        assert hop.decode.seconds <= 3 * took + 0.01
    if not chain:
        assert sum(hop.ms_per_token for hop in session.hops) < 2 * took / 64 * 1000
        session.close()
        for name in case.names:  # its link is as it is
            assert case.router._link_table.edges({}, now()).one_way_s("", name, 0) == pytest.approx(
                0.05, rel=0.3
            )
    await model.close()


@in_virtual_time
async def test_a_slow_hop_is_left_while_steps_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, session = await _opened(ChainCase(2, latency=0.01))
    _send(session, 64)
    monkeypatch.setattr(session._slow.step_times, "is_time", lambda tokens: True)
    monkeypatch.setattr(session._slow, "look", lambda *_: SlowHop(1))
    looking = asyncio.create_task(session.look_around())
    await asyncio.sleep(0.001)
    _send(session, 8)  # meanwhile
    await looking
    await _receive(session, len(PROMPT))
    assert [repair.kind for repair in session.repaired] == ["planned"]
    assert [hop.peer_id for hop in session.route.hops] == ["ha", "sb"]
    await model.close()


@in_virtual_time
async def test_a_hop_that_dies_while_a_route_is_rewired_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for another while the route seems to work; but then somebody does."""
    case = ChainCase(2, latency=0.01, spares=False)
    model, session = await _opened(case)
    monkeypatch.setattr(session._slow.step_times, "is_time", lambda tokens: True)
    monkeypatch.setattr(session._slow, "look", lambda *_: Rewire(apart=frozenset({("ha", "hb")})))
    asyncio.get_running_loop().call_later(0.005, case.kill, "hb")
    await session.look_around()
    monkeypatch.undo()
    await case.revive("hb")
    async with asyncio.timeout(60):
        _send(session, 16)
        await _receive(session, len(PROMPT))
    assert len(session.repaired) == 1
    await model.close()


@in_virtual_time
async def test_a_fault_of_this_process_is_raised_where_rows_are_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, session = await _opened(ChainCase(2, latency=0.01, spares=False), chain=False)

    def post(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(session._session.segments[1], "post", post)
    _send(session, 16)
    async with asyncio.timeout(5):
        with pytest.raises(ValueError, match="a bug"):
            await session.receive()
    await model.close()


@pytest.mark.parametrize("ahead", [True, False])
@in_virtual_time
async def test_a_session_that_was_left_alone_goes_on(ahead: bool) -> None:
    """Whoever waited was cancelled, and comes back."""
    model, session = await _opened(ChainCase(2, latency=0.05, spares=False))
    if ahead:
        _send(session, 40)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await (session.receive() if ahead else session.append(TRUTH[len(PROMPT) : 100]))
    session.rollback(len(PROMPT))
    _send(session, 24)
    await _receive(session, len(PROMPT))
    assert session.repaired == []
    await model.close()


@in_virtual_time
async def test_wide_rows_bound_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ChainCase(2, spares=False)
    model, session = await _opened(case)
    states = model.session(400)
    states._settings = replace(states._settings, session=replace(states._settings.session, keeps_states=True))
    assert (session.most_ahead, states.most_ahead) == (MOST_AHEAD, MOST_AHEAD_OF_STATES)
    monkeypatch.setattr(HopClient, "row_bytes", 8192 * 4)
    session._session.resume()
    assert session.most_ahead == 32
    await model.close()
