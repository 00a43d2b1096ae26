"""Any faults, at any tokens, in any order: the same answer, and nobody is blamed for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.messages import ErrorMessage
from tests.doubles.chain_case import ChainCase, H, S
from tests.doubles.fake_swarm import settle
from tests.doubles.virtual_time import in_virtual_time

KINDS = (
    "kill",
    "die_at_step",
    "freeze",
    "cut",
    "journal",
    "error",
    "nan_at_step",
    "wrong_rows_at_step",
    "garbage_at_step",
    "die_at_open",
    "die_at_hold",
    "die_at_replay",
    "unreachable",
)
GUILTY = frozenset(KINDS) - {"cut", "journal", "unreachable"}

faults = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 3),  # which place in the route
        st.booleans(),  # its spare
        st.integers(1, 22),  # after how many pieces
    ),
    max_size=4,
)


def _fault(case: ChainCase, kind: str, place: int, name: str) -> Callable[[], None]:
    swarm = case.swarm
    node = swarm.nodes[name]

    def happen() -> None:
        last = max((step.step for step in node.steps), default=0)
        if kind == "kill":
            case.kill(name)
        elif kind == "freeze":
            swarm.freeze(name)
        elif kind == "cut":
            swarm.cut(name, H[max(0, place - 1)] if place else H[min(1, len(case.names) - 1)])
        elif kind == "unreachable":
            node.cannot_reach |= set(S)
        elif kind == "journal":
            node.lose_journals()
        elif kind == "error":
            message = ErrorMessage(None, None, ErrorCode.INTERNAL, "cannot", True)
            node.behaviour.error_at_step = (last + 1, message)
        elif kind in ("die_at_open", "die_at_replay"):
            setattr(node.behaviour, kind, True)
        elif kind == "die_at_hold":
            node.behaviour.die_at_hold = node.holds + 2
        else:
            setattr(node.behaviour, kind, last + 1)

    return happen


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hops=st.integers(1, 4), schedule=faults, keeps_states=st.booleans())
@in_virtual_time
async def test_any_schedule_of_faults(
    hops: int, schedule: list[tuple[str, int, bool, int]], keeps_states: bool
) -> None:
    case = await ChainCase(hops, keeps_states=keeps_states).start()
    done: list[tuple[int, Callable[[], None]]] = []
    guilty: set[str] = set()
    spared: set[int] = set()  # places that keep one good node
    for kind, place, spare, at in schedule:
        place %= hops
        name = (S if spare else H)[place]
        if kind in GUILTY:
            if place in spared and name not in guilty:
                continue
            spared.add(place)
            guilty.add(name)
        if kind == "cut" and (hops == 1 or name == H[max(0, place - 1)]):
            continue
        done.append((at, _fault(case, kind, place, name)))
    async with asyncio.timeout(60):
        await case.disturbed(*done)
    assert case.blamed <= guilty
    await settle()
    alive = {name for name in case.swarm.nodes if name not in guilty}
    assert not any(case.swarm.nodes[name].open_sessions for name in alive)
    loads = [case.swarm.nodes[name].engine.load() for name in alive]
    assert not any(load.used_slots or load.used_states or load.reserved_states for load in loads)
