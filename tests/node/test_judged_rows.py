"""Real nodes and a real client judge the rows that they read: what loses too much is not taken again, and
what a node has learned of its channels is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from swarm_node.client.generation import Generation
from swarm_node.client.hops.route_session import RouteSession
from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.fidelity import error_watch
from swarm_node.swarm.transport.address_groups import UNKNOWN
from swarm_node.swarm.types import Span
from tests.client.session.test_with_real_nodes import OPTIONS, Swarm, swarm, tiny

__all__ = ["swarm", "tiny"]

pytestmark = pytest.mark.slow

LONG = [token * 7 % 300 for token in range(190)]
"""Four of these are more rows than scales need."""


def codecs(answer: Generation) -> list[str]:
    return [hop.codec for hop in answer.hops]


async def test_scales_are_learned_and_taken_by_the_next_client(swarm: Swarm) -> None:
    """They cost the rows less than f8, with which a model without a certificate begins."""
    await swarm.serve(a=Span(0, 2), b=Span(2, 4))
    model = await swarm.client(wire_codec="auto", prefix_cache=False)
    first = await model.generate_detailed(LONG, **OPTIONS)
    assert codecs(first) == ["f8", "f8"]
    for start in (1, 2, 3):
        await model.generate_detailed(LONG[start:], **OPTIONS)
    await model.close()
    for node in swarm.nodes.values():
        assert node.loaded is not None
        assert node.loaded.server.terms.scales(UNKNOWN) is None
        node.loaded.sweep()
        assert node.loaded.server.terms.scales(UNKNOWN) is not None
    later = await swarm.client(wire_codec="auto", prefix_cache=False)
    await later.generate_detailed(LONG, **OPTIONS)  # meets the nodes, which tell their scales
    for start in (1, 2, 3):
        answer = await later.generate_detailed(LONG[start:], **OPTIONS)
        assert codecs(answer) == ["int8s", "int8s"]
    for node in swarm.nodes.values():
        assert node.loaded is not None
        reader = node.loaded.reader
        assert reader is not None
        node.loaded.sweep()
        assert 0 < reader.loss("int8s").mean < 0.8 * reader.loss("f8").mean < 0.01
        assert node.info().coarse == ()


async def test_what_loses_too_much_is_told_and_not_taken_again(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here because the bound is said to be lower than what f8 costs any row."""
    monkeypatch.setattr(error_watch, "LARGEST_ERROR", 1e-4)
    await swarm.serve(a=Span(0, 4))
    (node,) = swarm.nodes.values()
    assert node.loaded is not None
    model = await swarm.client(wire_codec="auto", prefix_cache=False)
    for start in (0, 1, 2):
        assert codecs(await model.generate_detailed(LONG[start:], **OPTIONS)) == ["f8"]
    told: list[dict[str, object]] = []
    monkeypatch.setattr(node, "emit", lambda event, **details: told.append({"event": event, **details}))
    for _ in range(2):
        node._sweep_once(node.loaded)
    (event,) = told
    assert (event["event"], event["codecs"]) == ("coarse_codecs", ["f8"])
    errors = cast(dict[str, float], event["errors"])
    assert set(errors) == {"f8"}
    assert 1e-4 < errors["f8"] < 0.1
    assert node.info().coarse == ("f8",)
    await node.presence.announcer.announce()
    await model.close()
    later = await swarm.client(wire_codec="auto", prefix_cache=False)
    assert codecs(await later.generate_detailed(LONG, **OPTIONS)) == ["bf16"]


async def test_what_a_person_asks_for_is_taken(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 4))
    model = await swarm.client(wire_codec="int8", prefix_cache=False)
    for start in (0, 1, 2):
        await model.generate_detailed(LONG[start:], **OPTIONS)
    (node,) = swarm.nodes.values()
    assert node.loaded is not None
    node.loaded.sweep()
    reader = node.loaded.reader
    assert reader is not None
    assert reader.loss("int8").groups == 1
    reader.coarse = ("int8",)
    await node.presence.announcer.announce()
    assert codecs(await model.generate_detailed(LONG, **OPTIONS)) == ["int8"]


async def test_the_client_judges_what_leaves_the_model(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 4))
    model = await swarm.client(wire_codec="auto", prefix_cache=False)
    reader = model._local.reader
    assert reader is not None
    assert reader.sampler.take() == ([], [])
    for _ in range(10):
        await model.generate_detailed(LONG[:40], max_new_tokens=30, ignore_eos=True)
    reader.look()
    loss = reader.loss("f8")
    assert loss.groups == 1
    assert 0.005 < loss.mean < 0.025


async def test_the_client_learns_the_scales_of_what_leaves_the_model(swarm: Swarm) -> None:
    """From the tokens of its answers, over its sessions; no node is told of them but by OPEN."""
    await swarm.serve(a=Span(0, 2), b=Span(2, 4))
    model = await swarm.client(wire_codec="auto", prefix_cache=False)

    async def reply_codec() -> Codec:
        """Of the last hop, while an answer of many tokens is made."""
        stream = model.stream(LONG[:20], max_new_tokens=200, ignore_eos=True)
        await anext(stream)
        last = swarm.nodes["b"].loaded
        assert last is not None
        (session,) = last.server.sessions._sessions.values()
        await stream.finish()
        return session.sequence.reply_codec

    assert [(await reply_codec()).kind for _ in range(3)] == ["f8", "f8", "f8"]
    reader = model._local.reader
    assert reader is not None
    found = await reply_codec()
    assert found.name == Int8sCodec.of(reader.table_for(UNKNOWN)).name
    for _ in range(3):
        await reply_codec()
    reader.look()
    assert 0 < reader.loss("int8s").mean < 0.01
    assert reader.coarse == ()


def strange(ids: Sequence[int]) -> np.ndarray:
    """Rows with which channels seem to lie 2^60 apart."""
    x = np.random.default_rng(len(ids)).standard_normal((len(ids), 48)) * 1e-12
    x[:, ::2] *= 1e18
    return x.astype(np.float32)


async def test_a_stranger_s_rows_spoil_nobody_s_answers(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """He makes the scales that nodes ask for. The client tries the first node's on its own rows; the first
    node sees what the second's does to its rows, and the client hears it."""
    await swarm.serve(a=Span(0, 2), b=Span(2, 4))
    stranger = await swarm.client(wire_codec="bf16", prefix_cache=False)
    with monkeypatch.context() as patch:
        patch.setattr(type(stranger._local.head), "embed", lambda self, ids: strange(ids))
        for start in range(4):
            await stranger.generate_detailed(LONG[start:], **OPTIONS)
    for node in swarm.nodes.values():
        assert node.loaded is not None
        if node.info().span.start:  # what reaches it has passed blocks, which mend much
            assert node.loaded.reader is not None
            for group in ("s", "t", "u"):
                node.loaded.reader.sampler.learn(strange(LONG), 0, group)
        node.loaded.sweep()
        assert node.loaded.server.terms.scales(UNKNOWN) is not None
    later = await swarm.client(wire_codec="auto", prefix_cache=False)
    expected = await later.generate_detailed(LONG, **OPTIONS)  # meets the nodes, which tell their scales
    assert codecs(expected) == ["f8", "f8"]
    open_route = RouteSession.open

    async def opened_before_another_is_refused(*args: Any) -> RouteSession:
        session = await open_route(*args)
        session.settings.codecs.doubts.add("b")
        return session

    with monkeypatch.context() as patch:
        patch.setattr(RouteSession, "open", opened_before_another_is_refused)
        answer = await later.generate_detailed(LONG, **OPTIONS)
        assert (answer.token_ids, answer.repairs) == (expected.token_ids, 1)
    for _ in range(2):
        answer = await later.generate_detailed(LONG, **OPTIONS)
        assert codecs(answer) == ["f8", "f8"]
        assert answer.token_ids == expected.token_ids
    assert [line for line in caplog.messages if "scales_doubted" in line] == [
        "event=scales_doubted reader=a",
        "event=scales_doubted reader=b",
    ]
    for node in swarm.nodes.values():
        assert later._router.is_proven(node.peer_id)


async def test_scales_that_the_client_was_made_to_learn_are_refused_by_the_last_hop(swarm: Swarm) -> None:
    """By another last hop's rows; it goes on without scales."""
    await swarm.serve(a=Span(0, 4))
    model = await swarm.client(wire_codec="auto", prefix_cache=False)
    expected = await model.generate_detailed(LONG[:20], max_new_tokens=200, ignore_eos=True)
    reader = model._local.reader
    assert reader is not None
    for number in range(3):
        for group in ("s", "t", "u"):
            reader.sampler.learn(strange(range(400 + number)), 0, group)
    reader.look()
    assert reader.table_for("anyone") is not None
    for repairs in (1, 0):
        answer = await model.generate_detailed(LONG[:20], max_new_tokens=200, ignore_eos=True)
        assert answer.repairs == repairs
        assert answer.token_ids == expected.token_ids
