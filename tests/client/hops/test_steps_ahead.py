"""Rounds of many short steps ahead of their results, over any route, while hops are killed, frozen, cut off,
slow or talk nonsense: the rows are those of plain decoding, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest

from swarm_node.client.routing.bans import is_fault
from swarm_node.client.session.swarm_session import SwarmSession
from swarm_node.swarm.errors import ErrorCode, HopFailedError, PeerLateError, SwarmError
from swarm_node.swarm.protocol.messages import ErrorMessage
from swarm_node.swarm.timeouts import Patience
from tests.doubles.chain_case import ChainCase, H, S
from tests.doubles.fake_swarm import BOS, N_BLOCKS, ToyHead, run_block
from tests.doubles.virtual_time import in_virtual_time

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
            self.session.send(ids)
            self.sent += tokens
            self._ids += ids
            self._steps.append(tokens)

    async def _receive(self) -> None:
        begin, tokens = self._judged, self._steps[0]
        ids = self._ids[begin : begin + tokens]
        hidden = await self.session.receive()
        np.testing.assert_array_equal(hidden, self._plain.rows(ids, begin))
        del self._steps[0]
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


@pytest.mark.parametrize("seed", range(40))
@in_virtual_time
async def test_rounds_of_many_steps(seed: int) -> None:
    before = asyncio.all_tasks()
    await _speaks_through(seed)
    left = asyncio.all_tasks() - before
    assert not [task for task in left if "client" in str(task.get_coro())]
