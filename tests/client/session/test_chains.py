"""Hops that pass activations on to each other: the same tokens, for one write and one read of the client."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from swarm_node.client.generation import Generation
from swarm_node.swarm.errors import CodecRangeError
from tests.doubles.chain_case import GREEDY, PROMPT, ChainCase, H, N, S, answered, check
from tests.doubles.fake_swarm import HIDDEN
from tests.doubles.virtual_time import in_virtual_time
from tests.swarm.codecs.codec_cases import codec_of, table_of


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
@pytest.mark.parametrize("codec", ["none", "int8", "f8", "int8s"])
@in_virtual_time
async def test_chained_equals_relayed(hops: int, codec: str) -> None:
    answers: list[Generation] = []
    for chain in (True, False):
        case = await ChainCase(hops).start()
        async with case.client(chain=chain, wire_codec=codec) as model:
            answers.append(await answered(model))
        assert [len(node.steps) > 0 for name, node in case.swarm.nodes.items() if name[0] == "h"] == [
            True
        ] * hops
    chained, relayed = answers
    assert chained.token_ids == relayed.token_ids
    if codec == "none":
        check(chained)
    assert [chain.peer_ids for chain in chained.chains] == [tuple(H[n] for n in range(hops))]
    assert [chain.peer_ids for chain in relayed.chains] == [(H[n],) for n in range(hops)]
    if hops > 1:
        assert chained.chains[0].decode.bytes_sent * hops == sum(
            chain.decode.bytes_sent for chain in relayed.chains
        )


@in_virtual_time
async def test_a_token_costs_the_client_one_write_and_one_read() -> None:
    case = await ChainCase(3).start()
    async with case.client() as model:
        stream = model.stream(PROMPT, max_new_tokens=10, ignore_eos=True)
        for _ in range(3):
            await anext(stream)
        writes: list[str] = []
        for name in case.names:
            link = await model._links.get(name)
            raw = link._connection.stream.write

            def counting(buffers: list[bytes], raw=raw, name=name) -> None:  # type: ignore[no-untyped-def]
                writes.append(name)
                raw(buffers)

            link._connection.stream.write = counting  # type: ignore[method-assign]
        tasks = len(asyncio.all_tasks())
        for _ in range(5):
            await anext(stream)
        assert writes == ["ha"] * 5
        assert len(asyncio.all_tasks()) <= tasks
        await stream.aclose()


@in_virtual_time
async def test_hops_say_what_a_step_has_cost_them() -> None:
    case = await ChainCase(3, latency=0.002).start()
    answer = await case.disturbed()
    assert [hop.peer_id for hop in answer.hops] == case.names
    for hop in answer.hops:
        assert (hop.decode.steps, hop.decode.tokens, hop.prefill.tokens) == (N - 1, N - 1, len(PROMPT))
        assert hop.decode.queue_s == pytest.approx((N - 1) * 100e-6)
        assert hop.decode.compute_s == pytest.approx((N - 1) * 200e-6)
        assert hop.decode.wire_s == 0  # only the sum of the ways is known
        assert hop.bytes_sent > 0
    (chain,) = answer.chains
    assert chain.wire_ms_per_token == pytest.approx(
        4 * 2 - 3 * 0.35, abs=0.01
    )  # what three hops told is no way's
    report = answer.as_dict()
    assert report["chains"][0]["peer_ids"] == case.names  # type: ignore[index]


@in_virtual_time
async def test_an_edge_that_cannot_be_dialled_goes_through_the_client() -> None:
    case = await ChainCase(4).start()
    case.swarm.nodes["hb"].behaviour.chains = False
    answer = await case.disturbed()
    assert answer.repairs == 0
    assert [chain.peer_ids for chain in answer.chains] == [("ha", "hb"), ("hc", "hd")]
    assert not case.router.may_chain("hb", "hc")
    assert case.router.may_chain("ha", "hb")
    again = await case.disturbed()  # known now: nobody is asked
    assert case.swarm.nodes["hb"].opens[-1].downstream is None or again.route != answer.route
    assert case.blamed == set()


def with_scales(case: ChainCase) -> dict[str, Any]:
    """Options of a client: every node wants scales of its own, and the client has some for its last edge."""
    for seed, node in enumerate(case.swarm.nodes.values()):
        node.behaviour.scales = table_of(HIDDEN, seed).exponents
    local = case.swarm.local(scales={0: table_of(HIDDEN, 50), 6: table_of(HIDDEN, 60)})
    return {"local": local, "wire_codec": "auto"}


@in_virtual_time
async def test_scales_that_nodes_told_are_used_from_the_next_session_on() -> None:
    case = await ChainCase(3, spares=False).start()
    async with case.client(**with_scales(case)) as model:
        await answered(model)
        again = await answered(model)
    first, second = ([case.swarm.nodes[name].opens[at] for name in case.names] for at in (0, 1))
    start, end = codec_of("int8s", HIDDEN, 50).name, codec_of("int8s", HIDDEN, 60).name
    assert [(o.codec, o.reply_codec) for o in first] == [(start, "f8"), ("f8", "f8"), ("f8", end)]
    told = [codec_of("int8s", HIDDEN, seed) for seed in range(3)]
    assert [o.codec for o in second] == [codec.name for codec in told]
    assert [o.reply_codec for o in second] == [told[1].name, told[2].name, end]
    assert second[1].scales == (told[1].exponents, told[2].exponents)
    assert {hop.codec for hop in again.hops} == {"int8s"}


@pytest.mark.parametrize("victim", [0, 1, 2])
@in_virtual_time
async def test_a_kill_with_scales_keeps_the_tokens(victim: int) -> None:
    """The replacement is opened with the tables of the rows that are in journals, not with those it wants."""
    answers = []
    for disturbed in (False, True):
        case = await ChainCase(3).start()
        faults = [(8, partial(case.kill, H[victim]))] if disturbed else []
        async with case.client(**with_scales(case)) as model:
            for name in (*case.names, S[victim]):
                await (await model._links.get(name)).welcome  # met before
            answers.append(await answered(model, *faults))
    undisturbed, repaired = answers
    assert repaired.repairs == 1
    assert repaired.token_ids == undisturbed.token_ids
    (lost,), (replacement,) = case.swarm.nodes[H[victim]].opens, case.swarm.nodes[S[victim]].opens
    if victim:
        assert (replacement.codec, replacement.scales[:1]) == (lost.codec, lost.scales[:1])
    if victim < 2:
        assert replacement.reply_codec == lost.reply_codec
    assert case.blamed <= {H[victim]}


@in_virtual_time
async def test_rows_that_fp16_does_not_hold_end_the_answer_and_blame_nobody() -> None:
    case = await ChainCase(2).start()
    for node in case.swarm.nodes.values():
        node.behaviour.lie = lambda came, rows: rows * 1e6
    with pytest.raises(CodecRangeError, match="fp16 ends at 65,504") as caught:
        await case.disturbed(wire_codec="fp16")
    assert "bf16" in caught.value.hint
    assert caught.value.exit_code == 2, "the codec was chosen by a person"
    assert case.blamed == set()


@in_virtual_time
async def test_an_old_node_in_the_chain_is_spoken_to_in_16_bits() -> None:
    case = ChainCase(3, spares=False)
    case.swarm.nodes["hb"].behaviour.codecs = ("none", "bf16", "fp16", "int8")
    await case.start()
    async with case.client(wire_codec="auto") as model:
        check(await answered(model))
    opens = [case.swarm.nodes[name].opens[0] for name in case.names]
    assert [(o.codec, o.reply_codec) for o in opens] == [("f8", "bf16"), ("bf16", "bf16"), ("bf16", "f8")]
    assert all(o.scales == () for o in opens)


@in_virtual_time
async def test_both_sides_of_an_edge_speak_its_codec() -> None:
    case = ChainCase(3, spares=False)
    case.swarm.nodes["hb"].behaviour.codecs = ("none", "bf16")
    await case.start()
    async with case.client(wire_codec="int8") as model:
        await answered(model)
    opens = [case.swarm.nodes[name].opens[0] for name in case.names]
    assert [(o.codec, o.reply_codec) for o in opens] == [("int8", "bf16"), ("bf16", "bf16"), ("bf16", "int8")]
    assert [o.journal for o in opens] == [True, True, False]
    assert [o.upstream for o in opens] == ["", "ha", "hb"]


@in_virtual_time
async def test_prefill_overlaps_through_a_chain() -> None:
    took = {}
    for hops in (1, 2):
        case = ChainCase(hops)
        for node in case.swarm.nodes.values():
            node.behaviour.step_delay_s = 0.05
        await case.start()
        async with case.client() as model:
            await model.generate(PROMPT[:16], max_new_tokens=1)
            began = asyncio.get_running_loop().time()
            await model.generate(PROMPT * 2, max_new_tokens=1)
            took[hops] = asyncio.get_running_loop().time() - began
    assert took[2] < 2 * took[1] / 1.5  # 12 of 22 if nothing else costs time


@in_virtual_time
async def test_one_answer_after_another_and_side_by_side() -> None:
    case = await ChainCase(3).start()
    async with case.client() as model:
        answers = await asyncio.gather(*(answered(model) for _ in range(4)))
        for answer in answers:
            check(answer)
        await asyncio.sleep(0)
    assert {tuple(hop.peer_id for hop in answer.route.hops) for answer in answers} <= {
        tuple(case.names),
        *((*case.names[:i], S[i], *case.names[i + 1 :]) for i in range(3)),
    }
    assert len(GREEDY) == N
