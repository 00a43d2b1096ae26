"""Responses by the real ``openai`` client: whole and streamed, with functions, and gone on with."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.client.gateway.gateway_case import TOOL_TEMPLATE, Serve, Served, TemplateTokenizer, text_of
from tests.doubles.fake_swarm import EOS, expected
from tests.doubles.toy_model import ScriptedHead

STORY = "Write a one-sentence bedtime story about a unicorn."
ASKED = {"role": "user", "content": STORY}
GREEDY: dict[str, Any] = {"model": "toy", "input": STORY, "temperature": 0, "max_output_tokens": 12}
SCHEMA = {
    "type": "object",
    "properties": {"location": {"type": "string"}},
    "required": ["location"],
    "additionalProperties": False,
}
WARM = {**SCHEMA, "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
WEATHER: Any = {"type": "function", "name": "get_weather", "description": "Here", "parameters": SCHEMA}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"location": "Paris"}}</tool_call>'


async def _ask(served: Served, stream: bool, **request: Any) -> Response:
    if not stream:
        return await served.openai.responses.create(**request)
    async with served.openai.responses.stream(**request) as events:
        kinds = [event.type async for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] in ("response.completed", "response.incomplete")
        if kinds[-1] == "response.completed":
            return await events.get_final_response()
    async for event in await served.openai.responses.create(**request, stream=True):
        last = event
    return last.response


async def test_the_quick_start(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*b"Once.", EOS]))
    response = await served.openai.responses.create(model="toy", input=STORY)
    assert response.output_text == "Once."
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert response.usage.input_tokens == len(served.prompt_of(ASKED))
    assert (response.usage.output_tokens, response.usage.total_tokens) == (
        6,
        len(served.prompt_of(ASKED)) + 6,
    )
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut_is_incomplete(serve: Serve, stream: bool) -> None:
    served = await serve()
    response = await _ask(served, stream, **GREEDY)
    assert response.output_text == text_of(expected(served.prompt_of(ASKED), 12))
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"


async def test_the_events_of_a_stream_come_in_their_order(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*b"ab", EOS]))
    events = [event async for event in await served.openai.responses.create(**GREEDY, stream=True)]
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.delta for event in events[4:6]] == ["a", "b"]
    assert len({event.item_id for event in events[3:8]}) == 1
    raw = await served.http.post("/v1/responses", json={**GREEDY, "stream": True})
    assert "[DONE]" not in raw.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_function_is_called_and_the_chat_goes_on(serve: Serve, stream: bool) -> None:
    head = ScriptedHead([*f"I look.{CALL}".encode(), EOS, *b"15", EOS])
    served = await serve(head=head, tokenizer=TemplateTokenizer())
    response = await _ask(served, stream, model="toy", input=STORY, tools=[WEATHER])
    said, called = response.output
    assert (said.type, said.content[0].text) == ("message", "I look.")
    assert (called.type, called.name, json.loads(called.arguments)) == (
        *("function_call", "get_weather"),
        {"location": "Paris"},
    )
    result: Any = {"type": "function_call_output", "call_id": called.call_id, "output": "15 °C"}
    prompt = served.model.tokenizer.apply_chat_template(
        [
            ASKED,
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [{"function": {"name": "get_weather", "arguments": {"location": "Paris"}}}],
            },
            {"role": "tool", "content": "15 °C"},
        ],
        tools=[
            {
                "type": "function",
                "function": {"name": "get_weather", "description": "Here", "parameters": SCHEMA},
            }
        ],
    )
    by_id: dict[str, Any] = {"input": [result], "previous_response_id": response.id}
    by_hand: dict[str, Any] = {"input": [ASKED, *response.output, result]}
    for request in (by_id, by_hand):
        counted = await served.openai.responses.input_tokens.count(model="toy", tools=[WEATHER], **request)
        assert counted.input_tokens == len(prompt)
    said = await _ask(served, stream, model="toy", tools=[WEATHER], **by_id)
    assert (said.output_text, said.previous_response_id) == ("15", response.id)


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    ],
)
async def test_a_function_must_be_called(serve: Serve, choice: Any) -> None:
    head = ScriptedHead([*b'{"name": "get_weather", "arguments": {"warm": true}}', EOS])
    served = await serve(head=head, tokenizer=TemplateTokenizer())
    tool = {**WEATHER, "parameters": WARM}
    tools = [tool, {**tool, "name": "other"}] if isinstance(choice, dict) else [tool]
    request = {**GREEDY, "max_output_tokens": 150}
    response = await served.openai.responses.create(**request, tools=tools, tool_choice=choice)
    (called,) = response.output
    assert (called.type, called.name) == ("function_call", "get_weather")
    assert json.loads(called.arguments) == {"warm": True}


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_an_item_of_their_own(serve: Serve, stream: bool) -> None:
    thinks = TOOL_TEMPLATE + "{# <think></think> #}"
    says = b"<think>Hm.</think>Hi"
    served = await serve(head=ScriptedHead([*says, EOS, *says, EOS]), tokenizer=TemplateTokenizer(thinks))
    response = await _ask(served, stream, model="toy", input=STORY, top_logprobs=1)
    thought, said = response.output
    assert "".join(entry.token for entry in said.content[0].logprobs) == "</think>Hi"
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Hm.", [])
    assert (said.type, response.output_text) == ("message", "Hi")
    assert response.usage.output_tokens == len(says) + 1
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < len(says)
    again = await served.openai.responses.create(model="toy", input=[ASKED, *response.output, ASKED])
    prompt = served.prompt_of(ASKED, {"role": "assistant", "content": "Hi"}, ASKED)
    assert again.usage.input_tokens == len(prompt)


async def test_a_schema_is_kept_to(serve: Serve) -> None:
    served = await serve()
    form: Any = {"type": "json_schema", "name": "weather", "schema": WARM, "strict": True}
    request = {**GREEDY, "max_output_tokens": 200}
    response = await served.openai.responses.create(**request, text={"format": form})
    assert list(json.loads(response.output_text)) == ["warm"]


async def test_instructions_are_of_one_response_only(serve: Serve) -> None:
    served = await serve()
    client = served.openai
    first = await client.responses.create(**GREEDY, instructions="Be brief.")
    assert first.instructions == "Be brief."
    assert first.usage.input_tokens == len(
        served.prompt_of({"role": "system", "content": "Be brief."}, ASKED)
    )
    second = await client.responses.create(**{**GREEDY, "input": "More."}, previous_response_id=first.id)
    answered = {"role": "assistant", "content": first.output_text}
    prompt = served.prompt_of(ASKED, answered, {"role": "user", "content": "More."})
    assert second.usage.input_tokens == len(prompt)


async def test_responses_are_kept_until_they_are_deleted(serve: Serve) -> None:
    served = await serve(keys=["sk-first-key", "sk-second-key"])
    client = served.openai
    response = await client.responses.create(**GREEDY)
    assert await client.responses.retrieve(response.id) == response
    with pytest.raises(openai.NotFoundError):  # another caller's is not there
        await client.with_options(api_key="sk-second-key").responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.with_options(api_key="sk-second-key").responses.create(
            **GREEDY, previous_response_id=response.id
        )
    await client.responses.delete(response.id)
    for asking in (client.responses.retrieve(response.id), client.responses.delete(response.id)):
        with pytest.raises(openai.NotFoundError, match="no response 'resp_"):
            await asking


async def test_what_is_not_to_be_stored_is_not(serve: Serve) -> None:
    served = await serve()
    response = await served.openai.responses.create(**GREEDY, store=False)
    with pytest.raises(openai.NotFoundError):
        await served.openai.responses.retrieve(response.id)


async def test_logprobs_come_with_their_tokens(serve: Serve) -> None:
    served = await serve()
    asked: dict[str, Any] = {**GREEDY, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = (await served.openai.responses.create(**asked)).output[0].content[0].logprobs
    streamed = []
    async for event in await served.openai.responses.create(**asked, stream=True):
        if event.type == "response.output_text.delta":
            streamed += event.logprobs
    assert [entry.token for entry in streamed] == [entry.token for entry in whole][: len(streamed)]
    assert len(whole) == 12
    assert all(len(entry.top_logprobs) == 2 for entry in whole)


async def test_a_stream_that_fails_says_so_twice(serve: Serve) -> None:
    served = await serve(a="0-5")
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.005
    events = await served.openai.responses.create(**{**GREEDY, "max_output_tokens": 400}, stream=True)
    created = await anext(events)
    served.gateway.drop_all()
    while (failed := await anext(events)).type != "response.failed":
        pass
    assert (failed.response.status, failed.response.error.code) == ("failed", "server_error")
    assert failed.response.id == created.response.id
    with pytest.raises(openai.APIError, match="shutting down"):
        await anext(events)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"input": []}, "input: is empty"),
        ({"input": [{"role": "wizard", "content": ""}]}, r"input\[0\].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\].type: items of type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, r"content\[0\].type"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "no function_call_output for"),
        (
            {"input": [{"type": "function_call_output", "call_id": "a", "output": ""}]},
            "is of no function_call",
        ),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type: 'web_search' is a tool of OpenAI's own"),
        ({"tool_choice": "required"}, "tool_choice: 'required' needs tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "not one of the tools"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"max_output_tokens": 5000}, "max_output_tokens: 5000 new tokens"),
        ({"max_ouput_tokens": 5}, "did you mean 'max_output_tokens'"),
    ],
)
async def test_what_is_wrong_is_named(serve: Serve, more: Any, words: str) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    with pytest.raises(openai.BadRequestError, match=words):
        await served.openai.responses.create(model="toy", input="hi", extra_body=more)


async def test_what_clients_send_beside_the_question_does_no_harm(serve: Serve) -> None:
    served = await serve()
    reply = await served.http.post(
        "/v1/responses",
        json={
            **GREEDY,
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "low", "summary": "auto"},
            "prompt_cache_key": "x",
            "service_tier": "auto",
            "text": {"verbosity": "medium"},
            "metadata": {"a": "b"},
        },
    )
    assert reply.status_code == 200
    assert "x-ignored-fields" not in reply.headers
    assert reply.json()["metadata"] == {"a": "b"}
