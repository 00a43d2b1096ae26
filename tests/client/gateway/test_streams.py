"""Streams that wait: they say that they live, and what happens in the swarm, to those who ask."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from swarm_node.client.gateway.answers import replies
from tests.client.gateway.gateway_case import Serve, Served, text_of
from tests.doubles.fake_swarm import expected, until

USER = {"role": "user", "content": "Tell me something."}
STREAM = {"model": "toy", "messages": [USER], "temperature": 0, "ignore_eos": True, "stream": True}
NEWS = {"stream_options": {"swarm_events": True}}
BEAT = {"beat_s": 0.01}


async def _lines(served: Served, **fields: Any) -> AsyncIterator[str]:
    async with served.http.stream("POST", "/v1/chat/completions", json={**STREAM, **fields}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line:
                yield line


def _data(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def _text(lines: list[str]) -> str:
    choices = [choice for event in _data(lines) for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def _news(served: Served, **fields: Any) -> list[dict[str, Any]]:
    return [
        event["swarm"]
        for event in _data([line async for line in _lines(served, **NEWS, **fields)])
        if "swarm" in event
    ]


async def test_a_stream_begins_before_its_first_token_and_says_that_it_lives(serve: Serve) -> None:
    """Others than those who ask see nothing that is not OpenAI's."""
    served = await serve(limits=BEAT, wait=30.0)
    served.swarm.store.remove("b")
    lines = []
    async for line in _lines(served, max_tokens=5):
        if not lines:
            assert line == ": waiting"
            served.swarm.announce("b")
        lines.append(line)
    assert _text(lines) == text_of(expected(served.prompt_of(USER), 5))
    assert lines[-1] == "data: [DONE]"
    assert all("swarm" not in event for event in _data(lines))


async def test_a_quiet_stream_goes_on_to_say_so(serve: Serve, monkeypatch: Any) -> None:
    monkeypatch.setattr(replies, "QUIET_S", 0.0)
    served = await serve(a="0-2", b="3-5", c="3-5", limits=BEAT, wait=30.0)
    served.swarm.nodes["b"].behaviour.step_delay_s = 0.01
    served.swarm.store.remove("c")
    lines: list[str] = []
    quiet = 0
    async for line in _lines(served, max_tokens=20):
        if not lines:
            served.swarm.store.remove("b")
            served.swarm.network.kill("b")
        quiet += line == ": waiting"
        if quiet == 3:
            served.swarm.announce("c")
        lines.append(line)
    assert quiet >= 3
    assert _text(lines) == text_of(expected(served.prompt_of(USER), 20))


async def test_what_fails_after_the_beginning_ends_the_stream_with_its_error(serve: Serve) -> None:
    served = await serve(a="0-2", limits=BEAT, wait=0.1)
    *_, failed, done = [line async for line in _lines(served)]
    assert json.loads(failed[6:])["error"]["code"] == "no_route"
    assert done == "data: [DONE]"


async def test_waiting_is_told_with_what_it_is_for(serve: Serve) -> None:
    served = await serve(a="0-2", b="3-5", limits=BEAT, wait=30.0)
    served.swarm.store.remove("b")
    told: list[dict[str, Any]] = []
    async for line in _lines(served, **NEWS, max_tokens=3):
        told += [event["swarm"] for event in _data([line]) if "swarm" in event]
        if "waiting" in told[-1] and told[-1]["waiting"]:
            served.swarm.announce("b")
    waiting = [news["waiting"] for news in told if "waiting" in news]
    assert waiting[0]["blocks"] == ["3-5"]
    assert 20 < waiting[0]["seconds_left"] <= 30
    assert waiting[0]["text"].startswith("Waiting for blocks 3-5 (")
    assert waiting[-1] is None  # it goes on


async def test_the_route_and_its_repairs_are_told(serve: Serve) -> None:
    served = await serve(a="0-2", b="3-5", c="3-5")
    for name in "bc":
        served.swarm.nodes[name].behaviour.step_delay_s = 0.01
    told: list[dict[str, Any]] = []
    async for line in _lines(served, **NEWS, max_tokens=20):
        told += [event["swarm"] for event in _data([line]) if "swarm" in event]
        if len(told) == 1:
            used = told[0]["route"][1]["peer_id"]
            served.swarm.network.kill(used)
    other = "c" if used == "b" else "b"
    first, repaired, last = told
    assert first["route"][0] == {"peer_id": "a", "name": "", "blocks": "0-2", "n_blocks": 3}
    assert [hop["peer_id"] for hop in repaired["route"]] == ["a", other]
    (repair,) = repaired["repaired"]
    assert (repair["kind"], repair["lost"]) == ("replay", [used])
    assert repair["text"].startswith(f"hop …{used} was lost, …{other} took over in ")
    assert last["timings"]["new_tokens"] == 20


async def test_a_turn_at_the_gateway_is_waited_for(serve: Serve) -> None:
    served = await serve(a="0-5", limits={**BEAT, "max_running": 1})
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.005
    async for _ in _lines(served, max_tokens=400):
        await until(lambda: served.gateway.admission.running == 1)
        news = _lines(served, **NEWS, max_tokens=2)
        assert _data([await anext(news)])[0]["swarm"] == {"queued": True}
        await news.aclose()
        break


async def test_the_oldest_questions_are_forgotten_where_that_is_asked_for(serve: Serve) -> None:
    served = await serve(a="0-5")
    turns = [{"role": ("user", "assistant")[at % 2], "content": "x" * 40} for at in range(20)]
    messages = [{"role": "system", "content": "Be brief."}, *turns, USER]
    refused = await served.chat(messages=messages)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    ask = {"messages": messages, "truncation": "auto", "max_tokens": 5000}
    news = await _news(served, **ask)
    forgotten = news[0]["forgotten"]
    assert forgotten % 2 == 0
    kept = [messages[0], *messages[1 + forgotten :]]
    answer = (await served.chat(**ask, temperature=0, ignore_eos=True)).json()
    prompt = len(served.prompt_of(*kept))
    assert answer["usage"]["prompt_tokens"] == prompt
    assert answer["usage"]["total_tokens"] == served.model.context  # as long as there is room for
    assert prompt <= served.model.context * 3 // 4 < len(served.prompt_of(*messages[forgotten - 1 :]))
    alone = await served.chat(messages=[{"role": "user", "content": "x" * 5000}], truncation="auto")
    assert alone.json()["error"]["code"] == "context_length_exceeded"
