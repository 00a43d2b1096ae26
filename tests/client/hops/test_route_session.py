"""One session over fake hops: numbers, chunks, what goes over the wire, and whose failure it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from swarm_node.client.hops.route_session import RouteSession
from swarm_node.swarm.errors import (
    BusyError,
    EdgeFailedError,
    ErrorCode,
    HopFailedError,
    LocalProtocolError,
    ModelMismatchError,
    PeerError,
    PeerTimeoutError,
    PeerUnreachableError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.messages import ErrorMessage, Refused, Want
from swarm_node.swarm.timeouts import Patience
from swarm_node.swarm.types import Hop, Route, Span
from tests.doubles.fake_swarm import FAST, HIDDEN, MODEL, N_BLOCKS, FakeSwarm, ToyHead, run_block, settle
from tests.doubles.virtual_time import in_virtual_time, now

X = ToyHead().embed(list(b"a prompt of some length, long enough for more than one chunk of tokens"))


def _through(x: np.ndarray) -> np.ndarray:
    for block in range(N_BLOCKS):
        x = run_block(block, x, [])
    return x


def _links(swarm: FakeSwarm, patience: Patience = FAST) -> LinkPool:
    return LinkPool(swarm.network.transport("client"), MODEL, patience=patience)


async def _open(swarm: FakeSwarm, codec: str = "none", *, chain: bool = True, **hops: str) -> RouteSession:
    await swarm.start()
    route = Route(tuple(Hop(peer, Span.parse(text)) for peer, text in hops.items()))
    return await RouteSession.open(_links(swarm), route, swarm.settings(codec, chain=chain))


@pytest.mark.parametrize("limit", [1, 7, 64, 500])
async def test_prefill_in_chunks_equals_one_piece(limit: int) -> None:
    swarm = FakeSwarm(a="0-3", b="0-5")
    for node in swarm.nodes.values():
        node.behaviour.max_step_tokens = limit
    session = await _open(swarm, a="0-2", b="3-5")
    assert np.array_equal(await session.forward(X, 0, Want.ALL), _through(X))
    assert max(step.tokens for node in swarm.nodes.values() for step in node.steps) <= limit
    session.close()


async def test_prefill_then_decode_then_rollback() -> None:
    swarm = FakeSwarm(a="0-1", b="2-3", c="4-5")
    session = await _open(swarm, a="0-1", b="2-3", c="4-5")
    expected = _through(X)
    assert np.array_equal(await session.forward(X[:40], 0), expected[39:40])
    for position in range(40, 45):
        assert np.array_equal(
            await session.forward(X[position : position + 1], position), expected[[position]]
        )
    assert np.array_equal(await session.forward(X[20:], 20), expected[-1:])
    assert (await session.forward(X[:3], 0, Want.NOTHING)).shape == (0, HIDDEN)
    assert (await session.forward(X[3:4], 3, Want.NOTHING)).shape == (0, HIDDEN)
    session.close()


async def test_only_the_last_row_comes_back_from_the_last_hop() -> None:
    swarm = FakeSwarm(a="0-2", b="3-5")
    for node in swarm.nodes.values():
        node.behaviour.max_step_tokens = 16
    session = await _open(swarm, a="0-2", b="3-5")
    await session.forward(X, 0)
    wants = [step.want for step in swarm.nodes["b"].steps]
    assert wants == [Want.NOTHING] * (len(wants) - 1) + [Want.LAST]
    assert [step.want for step in swarm.nodes["a"].steps] == wants  # passed on; every row goes to b
    first, last = (hop.trace.timings() for hop in session.hops)
    assert first.prefill.bytes_sent == first.prefill.bytes_received == len(X) * HIDDEN * 4
    assert last.prefill.bytes_received == HIDDEN * 4
    assert last.prefill.tokens == len(X)
    session.close()


@in_virtual_time
async def test_hops_work_at_the_same_time_in_a_prefill() -> None:
    swarm = FakeSwarm(a="0-1", b="2-3", c="4-5")
    for node in swarm.nodes.values():
        node.behaviour.max_step_tokens = 10
        node.behaviour.step_delay_s = 0.05
    session = await _open(swarm, a="0-1", b="2-3", c="4-5")
    began = now()
    await session.forward(X, 0)
    steps = len(swarm.nodes["a"].steps)
    assert steps == 7
    # The last hop begins two steps after the first; one after the other would take 0.05 * 7 * 3.
    assert now() - began == pytest.approx(0.05 * (steps + 2), rel=0.01)
    session.close()


async def test_trace_separates_where_time_went() -> None:
    swarm = FakeSwarm(latency=0.005, a="0-5")
    session = await _open(swarm, a="0-5")
    await session.forward(X[:2], 0)
    for position in (2, 3):
        await session.forward(X[position : position + 1], position)
    timings = session.hops[0].trace.timings()
    assert (timings.decode.steps, timings.decode.tokens, timings.prefill.steps) == (2, 2, 1)
    assert timings.decode.queue_s == pytest.approx(2 * 100e-6)
    assert timings.decode.compute_s == pytest.approx(2 * 200e-6)
    assert timings.decode.codec_s > 2 * 50e-6
    assert timings.decode.wire_s > 2 * 2 * 0.004
    assert timings.as_dict()["wire_ms"] > 8  # type: ignore[operator]
    session.close()


async def test_payloads_pass_between_hops_as_they_came() -> None:
    swarm = FakeSwarm(a="0-2", b="3-5")
    session = await _open(swarm, "int8", a="0-2", b="3-5")
    hidden = await session.forward(X[:1], 0)
    assert [opened.codec for node in swarm.nodes.values() for opened in node.opens] == ["int8", "int8"]
    assert np.allclose(hidden, _through(X[:1]), atol=0.2)
    assert session.hops[0].trace.decode.codec_s < 0.05
    session.close()


async def test_each_hop_gets_a_codec_that_it_speaks() -> None:
    swarm = FakeSwarm(a="0-2", b="3-5")
    swarm.nodes["b"].behaviour.codecs = ("none", "bf16")
    session = await _open(swarm, "int8", a="0-2", b="3-5")
    assert [hop.codec.name for hop in session.hops] == ["int8", "bf16"]
    assert np.allclose(await session.forward(X[:5], 0), _through(X[:5])[-1:], atol=0.2)
    session.close()


async def test_closing_frees_every_hop_at_once() -> None:
    swarm = FakeSwarm(a="0-2", b="3-5")
    session = await _open(swarm, a="0-2", b="3-5")
    assert swarm.open_sessions == 2
    session.close()
    session.close()
    await settle()
    assert swarm.open_sessions == 0


async def _failure(swarm: FakeSwarm, *, decode: bool, chain: bool) -> HopFailedError | EdgeFailedError:
    session = await _open(swarm, chain=chain, a="0-2", b="3-5")

    async def run() -> None:
        await session.forward(X[:20], 0)
        if decode:
            await session.forward(X[20:21], 20)
            await session.forward(X[21:22], 21)

    with pytest.raises((HopFailedError, EdgeFailedError)) as caught:
        await run()
    session.close()
    return caught.value


def _error(code: ErrorCode) -> ErrorMessage:
    return ErrorMessage(None, None, code, "no", False)


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    ("peer", "change", "kind"),
    [
        ("a", {"die_at_step": 0}, StreamClosedError),
        ("b", {"die_at_step": 0}, StreamClosedError),
        ("a", {"mute_at_step": 0}, PeerTimeoutError),
        ("b", {"mute_at_step": 0}, PeerTimeoutError),
        ("b", {"error_at_step": ErrorCode.INTERNAL}, PeerError),
        ("b", {"wrong_rows_at_step": 0}, RemoteProtocolError),
        ("a", {"nan_at_step": 0}, RemoteProtocolError),
        ("b", {"nan_at_step": 0}, RemoteProtocolError),
    ],
)
@in_virtual_time
async def test_whose_failure_it_is(
    peer: str, change: dict, kind: type[SwarmError], decode: bool, chain: bool
) -> None:
    swarm = FakeSwarm(a="0-2", b="3-5")
    step = 2 if decode else 1
    ((name, code),) = change.items()
    setattr(swarm.nodes[peer].behaviour, name, (step, _error(code)) if code else step)
    failure = await _failure(swarm, decode=decode, chain=chain)
    if chain and change == {"nan_at_step": 0} and peer == "a":
        assert isinstance(failure, EdgeFailedError)  # b complains: who is right, the client has not seen
        assert failure.number == 1
    else:
        assert isinstance(failure, HopFailedError)
        assert failure.peer_id == peer
        assert isinstance(failure.cause, kind)


async def test_activations_refused_for_no_reason_blame_who_refused() -> None:
    swarm = FakeSwarm(a="0-2", b="3-5")
    swarm.nodes["b"].behaviour.error_at_step = (2, _error(ErrorCode.BAD_TENSOR))
    failure = await _failure(swarm, decode=True, chain=False)
    assert isinstance(failure, HopFailedError)
    assert failure.peer_id == "b"


@in_virtual_time
async def test_a_peer_that_computes_for_long_is_not_gone() -> None:
    swarm = FakeSwarm(a="0-5")
    session = await _open(swarm, a="0-5")
    swarm.nodes["a"].behaviour.step_delay_s = 0.3  # longer than silence may last
    await session.forward(X[:1], 0)
    assert swarm.nodes["a"].pings >= 2
    session.close()


@in_virtual_time
async def test_a_quick_answer_needs_no_ping() -> None:
    swarm = FakeSwarm(a="0-5")
    session = await _open(swarm, a="0-5")
    await session.forward(X[:1], 0)
    assert swarm.nodes["a"].pings == 0
    session.close()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"busy_times": 1}, BusyError),
        ({"digest": "cd" * 32}, ModelMismatchError),
        ({"refuse": Refused(bytes(16), ErrorCode.DRAINING, "leaving")}, PeerError),
        ({"codecs": ("fp16",)}, RemoteProtocolError),
    ],
)
async def test_a_hop_that_does_not_open_closes_the_others(change: dict, kind: type[SwarmError]) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    for name, value in change.items():
        setattr(swarm.nodes["b"].behaviour, name, value)
    route = Route((Hop("a", Span(0, 3)), Hop("b", Span(3, 6))))
    with pytest.raises(HopFailedError) as caught:
        await RouteSession.open(_links(swarm), route, swarm.settings())
    assert (caught.value.peer_id, type(caught.value.cause)) == ("b", kind)
    await settle()
    assert swarm.open_sessions == 0


async def test_peers_that_cannot_be_reached_or_moved() -> None:
    swarm = await FakeSwarm(a="0-2").start()
    links = _links(swarm)
    with pytest.raises(HopFailedError) as caught:
        await RouteSession.open(links, Route((Hop("x", Span(0, 6)),)), swarm.settings())
    assert isinstance(caught.value.cause, PeerUnreachableError)
    with pytest.raises(HopFailedError, match="0-2") as caught:
        await RouteSession.open(links, Route((Hop("a", Span(0, 6)),)), swarm.settings())
    assert isinstance(caught.value.cause, PeerError)
    swarm.network.partition("client", "a")
    with pytest.raises(HopFailedError) as caught:
        await RouteSession.open(links, Route((Hop("a", Span(0, 3)),)), swarm.settings())
    assert isinstance(caught.value.cause, PeerTimeoutError)


@in_virtual_time
async def test_a_step_that_is_never_answered_ends() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    links = _links(swarm, replace(FAST, step_s=0.1))
    route = Route((Hop("a", Span(0, 6)),))
    session = await RouteSession.open(links, route, swarm.settings())
    swarm.nodes["a"].behaviour.step_delay_s = 60
    with pytest.raises(HopFailedError, match="no step"):
        await session.forward(X[:1], 0)
    session.close()


async def test_our_own_nonsense_is_nobodys_failure() -> None:
    swarm = FakeSwarm(a="0-5")
    session = await _open(swarm, a="0-5")
    for rows in (1, 30):
        with pytest.raises(LocalProtocolError, match="not finite"):
            await session.forward(np.full((rows, HIDDEN), np.nan, np.float32), 0)
    session.close()
