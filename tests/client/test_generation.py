"""Whole answers through fake hops: tokens, text, ends, repair, cancellation."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from swarm_node.client.routing.reserves import TRIAL_TOKENS
from swarm_node.client.routing.route_wait import Waiting, WaitLimits
from swarm_node.client.session.attempts import MAX_STRANGE_FAILURES
from swarm_node.swarm.errors import (
    BusyError,
    ErrorCode,
    ModelMismatchError,
    RemoteProtocolError,
    SwarmError,
    UsageError,
)
from swarm_node.swarm.protocol.messages import ErrorMessage, Refused
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.types import Span
from tests.doubles.fake_swarm import (
    BOS,
    CONTEXT,
    EOS,
    MODEL,
    FakeSwarm,
    ScriptedHead,
    ToyHead,
    expected,
    settle,
    until,
)

PROMPT = [BOS, *b"Tell me something long enough to be cut into several chunks of a prefill, please."]
N = 24
GREEDY = expected(PROMPT, N)


async def test_greedy_tokens_are_those_of_one_machine() -> None:
    swarm = await FakeSwarm(a="0-1", b="1-4", c="4-5").start()
    async with swarm.client() as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
    assert list(answer.token_ids) == GREEDY
    assert list(answer.prompt_token_ids) == PROMPT
    assert (answer.finish_reason, answer.repairs) == ("length", 0)
    assert [hop.peer_id for hop in answer.route.hops] == [hop.peer_id for hop in answer.hops]
    assert answer.timings.new_tokens == N
    assert answer.timings.tokens_per_s > 0
    assert all(hop.decode.steps == N - 1 for hop in answer.hops)


async def test_a_prompt_is_embedded_as_it_is_fed() -> None:
    """A whole long one would hold up everybody's answers, and take gigabytes."""

    class Counting(ToyHead):
        def embed(self, ids: Sequence[int]) -> np.ndarray:
            sizes.append(len(ids))
            return super().embed(ids)

    sizes: list[int] = []
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    for node in swarm.nodes.values():
        node.behaviour.max_step_tokens = 16
    async with swarm.client(Counting()) as model:
        sizes.clear()
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
    assert list(answer.token_ids) == GREEDY
    assert max(sizes) <= 16
    assert sum(sizes) == len(PROMPT) + N


async def test_the_result_is_json() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=3)
    report = json.loads(json.dumps(answer.as_dict()))
    assert report["model"] == str(MODEL)
    assert report["route"][0]["blocks"] == "0-5"
    assert {"queue_ms", "compute_ms", "codec_ms", "wire_ms", "ms_per_token"} < set(report["route"][0])
    assert {"prefill_s", "decode_s", "route_s", "tokens_per_s", "first_token_s"} < set(report["timings"])


async def test_kv_cache_is_reserved_for_prompt_and_answer() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        await model.generate(PROMPT, max_new_tokens=7)
        await model.generate(PROMPT, max_new_tokens=100_000, stop="\0", temperature=0.1, seed=0)
    assert [opened.max_tokens for opened in swarm.nodes["a"].opens] == [len(PROMPT) + 7, CONTEXT]


async def _scripted(tokens: bytes | list[int], **options: object) -> tuple[list[str], object]:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client(ScriptedHead(list(tokens))) as model:
        stream = model.stream("hi", **options)  # type: ignore[arg-type]
        pieces = [piece async for piece in stream]
        return pieces, stream.result


async def test_end_of_text_ends() -> None:
    pieces, result = await _scripted([*b"abc", EOS, *b"d"])
    assert (pieces, result.text, result.finish_reason) == (["a", "b", "c"], "abc", "stop")
    assert result.token_ids[-1] == EOS


async def test_ignore_eos_goes_on() -> None:
    pieces, result = await _scripted([*b"ab", EOS, *b"c"], ignore_eos=True, max_new_tokens=4)
    assert ("".join(pieces), result.finish_reason) == ("abc", "length")


async def test_characters_of_several_tokens_come_whole() -> None:
    text = "naïve 🎉 日本"
    pieces, result = await _scripted(text.encode())
    assert "".join(pieces) == result.text == text
    assert "🎉" in pieces
    assert "�" not in "".join(pieces)


async def test_a_character_cut_by_the_end_shows_as_such() -> None:
    pieces, result = await _scripted("é".encode()[:1] + b"", max_new_tokens=1)
    assert pieces == ["�"] == [result.text]


async def test_a_stop_string_over_several_tokens_never_leaks() -> None:
    pieces, result = await _scripted(b"go on: STOP here", stop=["STOP", "nope"])
    assert "".join(pieces) == result.text == "go on: "
    assert result.finish_reason == "stop_string"
    assert bytes(result.token_ids) == b"go on: STOP"
    pieces, result = await _scripted(b"it is S", stop="STOP")
    assert "".join(pieces) == result.text == "it is S"


async def test_a_stop_string_that_ends_with_the_last_token() -> None:
    _, result = await _scripted(b"abcd", stop="cd", max_new_tokens=4)
    assert (result.text, result.finish_reason) == ("ab", "stop_string")


async def test_sampling_repeats_by_seed() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        options = {"temperature": 1.0, "max_new_tokens": 12, "ignore_eos": True}
        first, again, other = [
            (await model.generate_detailed(PROMPT, seed=seed, **options)).token_ids for seed in (1, 1, 2)
        ]
    assert first == again != other


async def test_a_prompt_longer_than_the_context() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        with pytest.raises(UsageError, match=f"{CONTEXT + 1} tokens.*{CONTEXT}"):
            await model.generate([1] * (CONTEXT + 1))
        answer = await model.generate_detailed([1] * (CONTEXT - 2), ignore_eos=True)
    assert (len(answer.token_ids), answer.finish_reason) == (2, "length")


# Repair


def _error(code: ErrorCode, *, retriable: bool = True) -> ErrorMessage:
    return ErrorMessage(None, None, code, "cannot go on", retriable)


@pytest.mark.parametrize(("step", "sampled"), [(1, False), (9, False), (9, True)])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("die_at_step", None),
        ("mute_at_step", None),
        ("nan_at_step", None),
        ("error_at_step", _error(ErrorCode.INTERNAL)),
        ("error_at_step", _error(ErrorCode.DRAINING)),
        ("error_at_step", _error(ErrorCode.BAD_STEP, retriable=False)),
    ],
)
async def test_a_hop_that_fails_costs_no_token(
    name: str, value: ErrorMessage | None, step: int, sampled: bool
) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5", spare="3-5").start()
    options = {"max_new_tokens": N, "ignore_eos": True, "temperature": float(sampled), "seed": 3}
    async with swarm.client() as model:
        undisturbed = await model.generate_detailed(PROMPT, **options)
        used = undisturbed.route.hops[1].peer_id
        setattr(swarm.nodes[used].behaviour, name, step if value is None else (step, value))
        answer = await model.generate_detailed(PROMPT, **options)
    assert answer.token_ids == undisturbed.token_ids
    assert answer.text == undisturbed.text
    assert (undisturbed.repairs, answer.repairs) == (0, 1)
    (repair,) = answer.repaired
    if isinstance(value, ErrorMessage) and value.code is ErrorCode.BAD_STEP:
        assert repair.kind == "relay"  # perhaps what it was sent was wrong: carry it, and see
        assert answer.route == undisturbed.route
    else:
        assert {answer.route.hops[1].peer_id, used} == {"b", "spare"}
        assert (repair.kind, repair.lost) == ("replay", (used,)) or name == "nan_at_step"
        assert used in {hop.peer_id for hop in answer.replaced}
    assert answer.timings.repair_s > 0
    await settle()
    assert swarm.open_sessions <= 1  # a mute node holds its session until its stream ends


async def test_a_killed_peer_mid_stream() -> None:
    swarm = await FakeSwarm(a="0-5", b="0-5").start()
    async with swarm.client() as model:
        stream = model.stream(PROMPT, max_new_tokens=N, ignore_eos=True)
        await anext(stream)
        (used,) = [peer for peer, node in swarm.nodes.items() if node.open_sessions]
        swarm.network.kill(used)
        result = await stream.finish()
    assert list(result.token_ids) == GREEDY
    assert result.repairs == 1


async def test_the_only_peer_that_comes_back_is_waited_for() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    swarm.nodes["a"].behaviour.die_at_step = 4
    async with swarm.client(router=_quick_router(swarm)) as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
    assert list(answer.token_ids) == GREEDY
    assert [hop.peer_id for hop in answer.route.hops] == ["a"]


async def test_a_prompt_that_brings_every_peer_down_ends() -> None:
    swarm = await FakeSwarm(**dict.fromkeys("abcdefghijkmnopqrstu", "0-5")).start()
    for node in swarm.nodes.values():
        node.behaviour.once = lambda name, step: name == "die_at_step"  # type: ignore[method-assign]
    async with swarm.client() as model:
        with pytest.raises(SwarmError):
            await model.generate(PROMPT)
    opens = [opened for node in swarm.nodes.values() for opened in node.opens]
    prompts = [opened for opened in opens if opened.max_tokens != TRIAL_TOKENS]
    assert len(prompts) <= MAX_STRANGE_FAILURES


def _quick_router(swarm: FakeSwarm):  # type: ignore[no-untyped-def]
    """Bans of 2 s pass in 20 ms."""
    loop = asyncio.get_running_loop()

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 100)

    return swarm.router(clock=lambda: loop.time() * 100, sleep=sleep)


# Opening


async def test_a_busy_peer_is_asked_again() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    swarm.nodes["a"].behaviour.busy_times = 2
    async with swarm.client() as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=2)
    assert answer.repairs == 0
    assert len(swarm.nodes["a"].opens) == 3


async def test_another_route_is_taken_instead_of_a_busy_peer() -> None:
    swarm = await FakeSwarm(a="0-5", b="0-5").start()
    for node in swarm.nodes.values():
        node.behaviour.busy_times = 1
        node.behaviour.retry_after_ms = 3_000_000
    swarm.nodes["b"].behaviour.busy_times = 0
    async with swarm.client() as model:
        for _ in range(3):
            await model.generate(PROMPT, max_new_tokens=1)


async def test_peers_that_stay_busy() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    swarm.nodes["a"].behaviour.busy_times = 1000
    async with swarm.client(router=_quick_router(swarm)) as model:
        with pytest.raises(BusyError, match="no room"):
            await model.generate(PROMPT)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"digest": "cd" * 32}, ModelMismatchError, "serves toy with digest"),
        ({"refuse": Refused(bytes(16), ErrorCode.UNSUPPORTED, "not here")}, NoRouteError, "not here"),
    ],
)
async def test_a_refusal_is_explained_at_once(change: dict, kind: type[SwarmError], text: str) -> None:
    swarm = await FakeSwarm(a="0-5").start()
    for name, value in change.items():
        setattr(swarm.nodes["a"].behaviour, name, value)
    async with swarm.client() as model:
        with pytest.raises(kind, match=text):
            await model.generate(PROMPT)


async def test_no_route_names_blocks_and_peers() -> None:
    swarm = await FakeSwarm(alice="0-3").start()
    async with swarm.client() as model:
        with pytest.raises(NoRouteError, match=r"blocks 4-5.*alice has 0-3"):
            await model.generate(PROMPT)


async def test_waiting_for_blocks_reports_progress() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    swarm.store.remove("b")
    lines: list[str] = []

    def on_progress(line: str) -> None:
        lines.append(line)
        swarm.announce("b")

    async with swarm.client(wait=60, on_progress=on_progress, router=_quick_router(swarm)) as model:
        await model.wait_for_route()
        await model.generate(PROMPT, max_new_tokens=1)
    (line,) = lines
    assert re.fullmatch(r"Waiting for blocks 3-5 \((59|60) s left\)", line)


# Stopping


async def test_closing_a_stream_frees_the_hops_at_once() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client() as model:
        stream = model.stream(PROMPT, ignore_eos=True)
        await anext(stream)
        assert swarm.open_sessions == 2
        with pytest.raises(UsageError, match="not complete"):
            _ = stream.result
        await stream.aclose()
        await stream.aclose()
        await settle()
        assert swarm.open_sessions == 0
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_leaving_a_loop_frees_the_hops() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        async for _ in model.stream(PROMPT, ignore_eos=True):
            break
        await settle()
        assert swarm.open_sessions == 0


@pytest.mark.parametrize("delay", [0.0, 0.03])
async def test_cancelling_frees_the_hops(delay: float) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    swarm.nodes["b"].behaviour.step_delay_s = delay
    async with swarm.client() as model:
        task = asyncio.create_task(model.generate(PROMPT, max_new_tokens=400, ignore_eos=True))
        await until(lambda: bool(swarm.nodes["b"].steps))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert swarm.open_sessions == 0


async def test_the_last_piece_comes_when_the_hops_are_free_already() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client(ScriptedHead(b"ab")) as model:
        stream = model.stream("hi", max_new_tokens=2)
        assert [await anext(stream), await anext(stream)] == ["a", "b"]
        assert stream.result.text == "ab"
        await settle()
        assert swarm.open_sessions == 0


async def test_closing_the_client_stops_what_runs() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    model = swarm.client()
    stream = model.stream(PROMPT, ignore_eos=True)
    await anext(stream)
    await model.close()
    await model.close()
    await settle()
    assert swarm.open_sessions == 0
    with pytest.raises(SwarmError):
        await stream.finish()
    with pytest.raises(UsageError, match="closed"):
        model.stream(PROMPT)


async def test_answers_side_by_side_do_not_mix() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    prompts = [[BOS, *f"prompt {number}".encode()] for number in range(5)]
    async with swarm.client() as model:
        answers = await asyncio.gather(
            *(model.generate_detailed(prompt, max_new_tokens=10, ignore_eos=True) for prompt in prompts)
        )
    for prompt, answer in zip(prompts, answers, strict=True):
        assert list(answer.token_ids) == expected(prompt, 10)


async def test_logits_that_are_nonsense_end_the_answer() -> None:
    class Broken(ScriptedHead):
        def logits(self, hidden):  # type: ignore[no-untyped-def]
            return super().logits(hidden) * float("nan")

    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client(Broken([1])) as model:
        with pytest.raises(RemoteProtocolError, match="not finite"):
            await model.generate("hi")
    await settle()
    assert swarm.open_sessions == 0


def test_limits_of_waiting_have_defaults_that_end() -> None:
    limits = WaitLimits()
    assert replace(limits, missing_s=0) == limits
    assert limits.failed_s < limits.busy_s <= 60


async def test_an_answer_tells_what_it_waits_for_and_keeps_what_it_has() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    told: list[Waiting | None] = []
    async with swarm.client() as model:
        stream = model.stream(PROMPT, max_new_tokens=N, ignore_eos=True, on_wait=told.append)
        assert stream.so_far is None
        async for _ in stream:
            if len(stream.so_far.token_ids) == 3:
                break
        swarm.store.remove("b")
        swarm.nodes["b"].die()
        swarm.network.kill("b")
        rest = asyncio.create_task(stream.finish())
        await until(lambda: stream.waiting is not None)
        assert stream.waiting.missing == (Span(3, 6),)
        assert re.fullmatch(r"Waiting for blocks 3-5 \(\d+ s left\)", stream.waiting.text)
        await swarm.network.transport("b").serve(PROTOCOL_ID, swarm.nodes["b"].handle)
        swarm.announce("b")
        answer = await rest
    assert stream.waiting is None
    assert isinstance(told[0], Waiting)
    assert told[-1] is None
    assert list(answer.token_ids) == GREEDY
    assert stream.so_far == answer
