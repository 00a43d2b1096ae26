"""Other nodes take over while an answer streams, with the same tokens: a tiny model, real processes.

The undisturbed answer comes first; then the same one is made while nodes leave in different ways.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from scripts.lab.local_swarm import LocalSwarm, NodeProcess
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import VOCAB
from swarm_node.client import Generation, SwarmModel
from swarm_node.client.routing.route_wait import Waiting, WaitLimits
from swarm_node.client.session import gap_search
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.types import Route
from tests.swarms.harness import EXACT, ONE_THREAD, freeze

pytestmark = [pytest.mark.swarm]

PROMPT = [1 + 7 * n % (VOCAB - 1) for n in range(70)]
TOKENS = 400
"""Some seconds of an answer."""
SOON = 30
"""Tokens that have come when something happens."""
STILL_S = 0.45
"""Half as long as a neighbour may be silent."""
BLAMED_S = 1.1
"""Seconds within which a neighbour that seems silent is left."""


@dataclass
class Swarm:
    """A swarm and a client of it. ``said``: what the client told of its waiting."""

    local: LocalSwarm
    model: SwarmModel
    said: list[str]
    undisturbed: Generation

    def hops(self, route: Route | None = None) -> list[NodeProcess]:
        """The nodes of a route, in order; of the undisturbed answer's by default."""
        by_peer = {node.events[-1]["peer_id"]: node for node in self.local.nodes}
        return [by_peer[hop.peer_id] for hop in (route or self.undisturbed.route).hops]

    def disturbed(self, disturb: Callable[[list[NodeProcess]], None]) -> tuple[Generation, float]:
        """The answer once more, disturbed when a few tokens have come; and its longest pause in seconds."""
        pieces: list[str] = []
        longest, last = 0.0, time.monotonic()
        with self.model.stream(PROMPT, max_new_tokens=TOKENS, ignore_eos=True) as stream:
            for piece in stream:
                pieces.append(piece)
                if len(pieces) == SOON:
                    disturb(self.hops(stream.route))
                    last = time.monotonic()
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert stream.result.token_ids == self.undisturbed.token_ids
        assert "".join(pieces) == self.undisturbed.text
        return stream.result, longest


@pytest.fixture
def swarm_of(tiny: Path, fork_server: ForkServer) -> Callable[..., object]:
    @contextmanager
    def swarm_of(*spans: str, options: Sequence[str] = (), wait: float = 20.0) -> Iterator[Swarm]:
        said: list[str] = []
        with ExitStack() as stack:
            local = stack.enter_context(
                LocalSwarm(
                    tiny,
                    spans,
                    serve_options=[*ONE_THREAD, *EXACT, *options],
                    overrides={},
                    launch=fork_server.launch,
                )
            )
            model = stack.enter_context(
                SwarmModel.connect(
                    model=local.model,
                    initial_peers=local.initial_peers,
                    wire_codec="none",
                    dtype="float32",
                    threads=1,
                    wait=wait,
                    prefix_cache=False,
                    on_progress=said.append,
                )
            )
            undisturbed = model.generate_detailed(PROMPT, max_new_tokens=TOKENS, ignore_eos=True)
            assert undisturbed.repaired == ()
            said.clear()
            yield Swarm(local, model, said, undisturbed)

    return swarm_of


@pytest.mark.parametrize("lost", [(1, 2), (0, 1, 2)])
def test_whichever_hops_die_at_once_the_answer_goes_on(
    swarm_of: Callable[..., object], lost: tuple[int, ...]
) -> None:
    """Neighbours whose predecessor has the journal, and all."""
    with swarm_of("0-0", "1-2", "3-3", "0-0", "1-2", "3-3") as swarm:
        gone: set[str] = set()

        def kill(hops: list[NodeProcess]) -> None:
            for number in lost:
                hops[number].process.send_signal(signal.SIGKILL)
                gone.add(hops[number].events[-1]["peer_id"])

        answer, _ = swarm.disturbed(kill)
        assert answer.repairs >= 1
        assert gone <= {peer for repair in answer.repaired for peer in repair.lost}
        assert not gone & {hop.peer_id for hop in answer.route.hops}
        if 0 not in lost:  # somebody upstream had kept what it sent
            assert sum(repair.replayed_bytes_client for repair in answer.repaired) == 0
            assert sum(repair.replayed_bytes_nodes for repair in answer.repaired) > 0


def test_a_node_that_drains_hands_over_without_an_error(swarm_of: Callable[..., object]) -> None:
    with swarm_of("0-1", "2-3", "2-3", options=["--drain-seconds", "0.1"]) as swarm:
        asked: list[NodeProcess] = []

        def ask(hops: list[NodeProcess]) -> None:
            asked.append(hops[1])
            hops[1].ask_to_stop()

        answer, _ = swarm.disturbed(ask)
        (leaving,) = asked
        left = leaving.events[-1]["peer_id"]
        assert answer.repairs >= 1
        assert swarm.said == [], "nobody had to wait"
        leaving.wait_for("stopped", timeout=20)
        assert leaving.stop() == 0
        assert left not in {hop.peer_id for hop in answer.route.hops}


def test_a_frozen_node_is_noticed_and_replaced(swarm_of: Callable[..., object]) -> None:
    with swarm_of("0-1", "2-3", "2-3") as swarm:
        frozen = swarm.hops()[1]

        def freeze_one(hops: list[NodeProcess]) -> None:
            nonlocal frozen
            frozen = hops[1]
            os.kill(frozen.pid, signal.SIGSTOP)

        try:
            answer, longest = swarm.disturbed(freeze_one)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        assert answer.repairs >= 1
        assert frozen.events[-1]["peer_id"] in {peer for repair in answer.repaired for peer in repair.lost}
        assert longest < 8, "silence is noticed in two seconds, also by a busy machine"


def test_a_node_that_stands_still_for_a_moment_blames_no_neighbour(swarm_of: Callable[..., object]) -> None:
    """As a busy machine makes it do. Several moments, as not in each is a link looked at."""

    def stand_still(node: psutil.Process) -> None:
        for _ in range(4):
            freeze(node)
            time.sleep(STILL_S)
            node.resume()
            time.sleep(BLAMED_S)

    with swarm_of("0-1", "2-3") as swarm, ThreadPoolExecutor(1) as beside:
        standing = beside.submit(stand_still, psutil.Process(swarm.hops()[0].pid))
        while not standing.done():
            answer = swarm.model.generate_detailed(PROMPT, max_new_tokens=TOKENS, ignore_eos=True)
            assert answer.repaired == ()
            assert answer.token_ids == swarm.undisturbed.token_ids
        standing.result()


def test_where_the_last_replica_died_the_client_waits_for_a_new_one(swarm_of: Callable[..., object]) -> None:
    with swarm_of("0-1", "2-3") as swarm:

        def until_it_waits() -> None:
            deadline = time.monotonic() + 20
            while not swarm.said and time.monotonic() < deadline:
                time.sleep(0.05)

        pieces: list[str] = []
        with swarm.model.stream(PROMPT, max_new_tokens=TOKENS, ignore_eos=True) as stream:
            for piece in stream:
                pieces.append(piece)
                if len(pieces) == SOON:
                    swarm.hops()[1].kill()
                    until_it_waits()
                    assert swarm.said, "it tells that it waits"
                    assert "2-3" in swarm.said[0]
                    assert "s left" in swarm.said[0]
                    swarm.local.start_node("2-3", wait=False)
        assert stream.result.token_ids == swarm.undisturbed.token_ids
        assert "".join(pieces) == swarm.undisturbed.text
        assert stream.result.repairs >= 1


def test_where_nobody_comes_the_wait_ends_in_time_and_keeps_what_there_is(
    swarm_of: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead node stays announced for longer than that."""
    limit_s = 5.0
    monkeypatch.setattr(gap_search, "REPAIR_LIMITS", WaitLimits(missing_s=limit_s))
    told: list[Waiting | None] = []
    with swarm_of("0-1", "2-3", wait=limit_s) as swarm:
        dead = swarm.hops()[1]
        options = {"max_new_tokens": TOKENS, "ignore_eos": True, "on_wait": told.append}
        with swarm.model.stream(PROMPT, **options) as stream:
            pieces = []
            with pytest.raises(NoRouteError) as caught:  # noqa: PT012
                for piece in stream:
                    pieces.append(piece)
                    if len(pieces) == SOON:
                        dead.kill()
                        began = time.monotonic()
            seconds = time.monotonic() - began
    assert limit_s - 1 < seconds < limit_s + 3, "and the time in which the loss is noticed"
    left = [waiting.seconds_left for waiting in told if waiting is not None]
    assert left == sorted(left, reverse=True)
    assert max(left) <= limit_s
    assert str(caught.value).count("failed lately") == 1
    assert f"{dead.events[-1]['peer_id'][-6:]} has 2-3 (failed lately)" in str(caught.value)
    assert stream.so_far is not None
    assert stream.so_far.text == "".join(pieces)
    assert stream.so_far.token_ids == swarm.undisturbed.token_ids[: len(stream.so_far.token_ids)]
