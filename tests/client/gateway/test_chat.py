"""Chat completions by the real ``openai`` client: whole and streamed, with every option that changes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.client.gateway.gateway_case import Serve, text_of
from tests.doubles.fake_swarm import EOS, expected
from tests.doubles.toy_model import ScriptedHead

USER = {"role": "user", "content": "Tell me something."}
GREEDY = {"model": "toy", "messages": [USER], "temperature": 0, "max_tokens": 12}
PAST_EOS = {"extra_body": {"ignore_eos": True}}


async def test_a_whole_answer(serve: Serve) -> None:
    served = await serve()
    answer = await served.openai.chat.completions.create(**GREEDY, **PAST_EOS)
    prompt = served.prompt_of(USER)
    tokens = expected(prompt, 12)
    choice = answer.choices[0]
    assert (answer.object, answer.model) == ("chat.completion", "toy")
    assert (choice.message.role, choice.message.content) == ("assistant", text_of(tokens))
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("length", 0, None)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == len(prompt) + 12
    assert answer.system_fingerprint == "swarm-abababababab"


async def test_a_stream_says_the_same(serve: Serve) -> None:
    served = await serve()
    stream = await served.openai.chat.completions.create(**GREEDY, **PAST_EOS, stream=True)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == text_of(expected(served.prompt_of(USER), 12))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert {chunk.usage for chunk in chunks} == {None}


@pytest.mark.parametrize("continuous", [False, True])
async def test_usage_of_a_stream_is_exact(serve: Serve, continuous: bool) -> None:
    served = await serve()
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    stream = await served.openai.chat.completions.create(
        **GREEDY, **PAST_EOS, stream=True, stream_options=options
    )
    chunks = [chunk async for chunk in stream]
    prompt_tokens = len(served.prompt_of(USER))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == prompt_tokens
    assert chunks[-1].usage.completion_tokens == 12
    counts = [chunk.usage.completion_tokens if chunk.usage else None for chunk in chunks[:-1]]
    if continuous:
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (1, 12)
    else:
        assert set(counts) == {None}


async def test_content_may_be_parts_and_roles_the_new_ones(serve: Serve) -> None:
    served = await serve()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = await served.openai.chat.completions.create(
        model="toy", messages=messages, temperature=0, max_completion_tokens=4, **PAST_EOS
    )
    prompt = served.prompt_of(
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one\ntwo"}
    )
    assert answer.choices[0].message.content == text_of(expected(prompt, 4))
    assert answer.usage.prompt_tokens == len(prompt)


async def test_several_choices(serve: Serve) -> None:
    served = await serve()
    request = {**GREEDY, "temperature": 1.0, "seed": 5, "n": 3, **PAST_EOS}
    answer = await served.openai.chat.completions.create(**request)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage.completion_tokens == 36
    assert answer.usage.prompt_tokens == len(served.prompt_of(USER))
    again = await served.openai.chat.completions.create(**{**request, "n": 1, "seed": 6})
    assert again.choices[0].message.content == texts[1]
    streamed = {0: "", 1: "", 2: ""}
    async for chunk in await served.openai.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_an_answer_and_are_not_shown(serve: Serve, stream: bool) -> None:
    served = await serve(head=ScriptedHead(list(b"one two three")))
    request = {**GREEDY, "stop": ["two", "never"]}
    if stream:
        chunks = [
            chunk async for chunk in await served.openai.chat.completions.create(**request, stream=True)
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = (await served.openai.chat.completions.create(**request)).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert (text, reason) == ("one ", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_control_token_may_be_what_to_stop_at(serve: Serve, stream: bool) -> None:
    served = await serve(head=ScriptedHead([*b"one", EOS, *b" two"]))
    request: dict[str, Any] = {**GREEDY, "extra_body": {"ignore_eos": True}, "stop": ["</s>"]}
    if stream:
        chunks = [each async for each in await served.openai.chat.completions.create(**request, stream=True)]
        text = "".join(each.choices[0].delta.content or "" for each in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = (await served.openai.chat.completions.create(**request)).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert (text, reason) == ("one", "stop")


async def test_end_of_text_counts_as_a_token_and_is_no_text(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*b"abc", EOS]))
    answer = await served.openai.chat.completions.create(**GREEDY, logprobs=True)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("abc", "stop")
    assert answer.usage.completion_tokens == 4
    assert [entry.token for entry in choice.logprobs.content] == ["a", "b", "c"]


async def test_half_characters_wait_for_their_other_half(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*"é€😀".encode(), EOS]))
    stream = await served.openai.chat.completions.create(**GREEDY, stream=True)
    pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert [piece for piece in pieces if piece] == ["é", "€", "😀"]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_name_tokens_their_bytes_and_what_else_was_likely(serve: Serve, stream: bool) -> None:
    served = await serve()
    request = {**GREEDY, "logprobs": True, "top_logprobs": 3, **PAST_EOS}
    if stream:
        entries = []
        async for chunk in await served.openai.chat.completions.create(**request, stream=True):
            if chunk.choices[0].logprobs:
                entries += chunk.choices[0].logprobs.content
    else:
        entries = (await served.openai.chat.completions.create(**request)).choices[0].logprobs.content
    tokens = expected(served.prompt_of(USER), 12)
    assert [bytes(entry.bytes) for entry in entries] == [
        served.model.tokenizer.token_bytes(t) for t in tokens
    ]
    for entry in entries:
        assert entry.logprob < 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy: the chosen one is the most likely
        assert entry.top_logprobs[0].bytes == entry.bytes


async def test_logit_bias_forces_and_forbids(serve: Serve) -> None:
    served = await serve()
    answer = await served.openai.chat.completions.create(
        **{**GREEDY, "max_tokens": 5}, logit_bias={"65": 100, "66": -100}
    )
    assert answer.choices[0].message.content == "AAAAA"


async def test_penalties_change_what_repeats(serve: Serve) -> None:
    served = await serve()
    request = {**GREEDY, "max_tokens": 5, "logit_bias": {"65": 50, "66": 49}}
    answer = await served.openai.chat.completions.create(**request, frequency_penalty=2, presence_penalty=0.5)
    assert set(answer.choices[0].message.content) == {"A", "B"}


async def test_headers_tell_the_route_and_the_times(serve: Serve) -> None:
    served = await serve()
    whole = await served.chat(max_tokens=3)
    names = {part.split(";")[0].strip() for part in whole.headers["server-timing"].split(",")}
    assert names == {"queue", "total", "route", "prefill", "decode", "local", "repair"}
    assert whole.headers["x-swarm-route"] == "a=0-2, b=3-5"
    streamed = await served.chat(max_tokens=3, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["x-swarm-route"] == "a=0-2, b=3-5"
    assert "first;dur=" in streamed.headers["server-timing"]
    assert streamed.text.endswith("data: [DONE]\n\n")
    for event in streamed.text.split("\n\n")[:-2]:
        assert json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk"


async def test_a_repair_in_the_middle_is_invisible(serve: Serve) -> None:
    served = await serve(a="0-2", b="3-5", c="3-5")
    for name in "bc":
        served.swarm.nodes[name].behaviour.step_delay_s = 0.01
    stream = await served.openai.chat.completions.create(
        **{**GREEDY, "max_tokens": 20}, **PAST_EOS, stream=True
    )
    text, killed = "", False
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if not killed and len(text) > 3:
            killed = True
            served.swarm.network.kill(next(n for n in "bc" if served.swarm.nodes[n].open_sessions))
    assert killed
    assert text == text_of(expected(served.prompt_of(USER), 20))


async def test_unknown_fields_are_told_of_and_harmless_ones_taken(serve: Serve) -> None:
    served = await serve()
    fields = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "frobnicate": [1]}
    answer = await served.chat(max_tokens=2, temperature=0, **fields, logit_bias=None, stop=None, tools=[])
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "frobnicate"
