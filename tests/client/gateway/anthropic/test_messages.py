"""Messages by the real ``anthropic`` client: whole and streamed, with tools and with what they stop at."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from tests.client.gateway.gateway_case import TOOL_TEMPLATE, Serve, Served, TemplateTokenizer, text_of
from tests.doubles.fake_swarm import EOS, expected
from tests.doubles.toy_model import CONTEXT, ScriptedHead

HELLO = {"role": "user", "content": "Hello, Claude"}
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0, "top_k": 1, "top_p": 0.9}}
QUESTION: dict[str, Any] = {"model": "toy", "max_tokens": 12, "messages": [HELLO], **GREEDY}
SCHEMA = {
    "type": "object",
    "properties": {"location": {"type": "string"}},
    "required": ["location"],
    "additionalProperties": False,
}
WARM = {**SCHEMA, "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
WEATHER: Any = {"name": "get_weather", "description": "Get the weather in a place", "input_schema": SCHEMA}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"location": "Paris"}}</tool_call>'


def client_of(served: Served, **options: Any) -> AsyncAnthropic:
    given = {"api_key": "none", "max_retries": 0, "http_client": served.http, **options}
    return AsyncAnthropic(base_url=served.server.url, **given)


async def test_the_quick_start(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*b"Hello!", EOS]))
    message = await client_of(served).messages.create(
        model="toy", max_tokens=1024, messages=[{"role": "user", "content": "Hello, Claude"}]
    )
    assert [(block.type, block.text) for block in message.content] == [("text", "Hello!")]
    assert (message.role, message.type, message.model) == ("assistant", "message", "toy")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens == len(served.prompt_of(HELLO))
    assert message.usage.output_tokens == 7
    assert message.id.startswith("msg_")


async def test_a_stream_builds_up_the_same_message(serve: Serve) -> None:
    served = await serve()
    client = client_of(served)
    whole = await client.messages.create(**QUESTION)
    async with client.messages.stream(**QUESTION) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        streamed = await stream.get_final_message()
    assert text == streamed.content[0].text == whole.content[0].text
    assert text == text_of(expected(served.prompt_of(HELLO), 12))
    assert streamed.stop_reason == whole.stop_reason == "max_tokens"
    assert streamed.usage.output_tokens == whole.usage.output_tokens == 12
    total = [each.usage.input_tokens + each.usage.cache_read_input_tokens for each in (whole, streamed)]
    assert total == [len(served.prompt_of(HELLO))] * 2


async def test_the_events_of_a_stream_come_in_their_order(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*b"ab", EOS]))
    kinds = [event.type async for event in await client_of(served).messages.create(**QUESTION, stream=True)]
    assert kinds == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    raw = await served.http.post("/v1/messages", json={**_body(), "stream": True})
    assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "event: ping\n" in raw.text
    assert "[DONE]" not in raw.text


def _body(**more: Any) -> dict[str, Any]:
    return {"model": "toy", "max_tokens": 4, "messages": [HELLO], **more}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_goes_back(serve: Serve, stream: bool) -> None:
    served = await serve(head=ScriptedHead([*f"I look.{CALL}".encode(), EOS]), tokenizer=TemplateTokenizer())
    client = client_of(served)
    request: dict[str, Any] = {**QUESTION, "max_tokens": 200, "tools": [WEATHER]}
    if stream:
        async with client.messages.stream(**request) as streamed:
            message = await streamed.get_final_message()
    else:
        message = await client.messages.create(**request)
    said, used = message.content
    assert (message.stop_reason, said.type, said.text) == ("tool_use", "text", "I look.")
    assert (used.type, used.name, used.input) == ("tool_use", "get_weather", {"location": "Paris"})
    result = {"type": "tool_result", "tool_use_id": used.id, "content": [{"type": "text", "text": "15 °C"}]}
    turn: Any = {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]}
    counted = await client.messages.count_tokens(
        model="toy", messages=[HELLO, message.to_param(), turn], tools=[WEATHER]
    )
    function = {"name": "get_weather", "description": WEATHER["description"], "parameters": SCHEMA}
    prompt = served.model.tokenizer.apply_chat_template(
        [
            HELLO,
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [{"function": {"name": "get_weather", "arguments": {"location": "Paris"}}}],
            },
            {"role": "tool", "content": "15 °C"},
            {"role": "user", "content": "Well?"},
        ],
        tools=[{"type": "function", "function": function}],
    )
    assert counted.input_tokens == len(prompt)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
async def test_a_tool_must_be_called(serve: Serve, choice: Any) -> None:
    head = ScriptedHead([*b'{"name": "get_weather", "arguments": {"warm": true}}', EOS])
    served = await serve(head=head, tokenizer=TemplateTokenizer())
    request: dict[str, Any] = {**QUESTION, "max_tokens": 200, "tools": [{**WEATHER, "input_schema": WARM}]}
    message = await client_of(served).messages.create(**request, tool_choice=choice)
    (used,) = message.content
    assert (used.type, used.name, used.input) == ("tool_use", "get_weather", {"warm": True})


async def test_tools_may_be_left_alone(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*CALL.encode(), EOS]), tokenizer=TemplateTokenizer())
    request: dict[str, Any] = {**QUESTION, "max_tokens": 200, "tools": [WEATHER]}
    message = await client_of(served).messages.create(**request, tool_choice={"type": "none"})
    assert [block.type for block in message.content] == ["text"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shown", [True, False])
async def test_thoughts_are_blocks_of_their_own(serve: Serve, stream: bool, shown: bool) -> None:
    thinks = TOOL_TEMPLATE + "{# <think></think> #}"
    says = b"<think>Hm.</think>Hi"
    served = await serve(head=ScriptedHead([*says, EOS]), tokenizer=TemplateTokenizer(thinks))
    thinking = {"type": "adaptive", "display": "summarized" if shown else "omitted"}
    request: dict[str, Any] = {**QUESTION, "max_tokens": 50, "thinking": thinking}
    if stream:
        async with client_of(served).messages.stream(**request) as streamed:
            message = await streamed.get_final_message()
    else:
        message = await client_of(served).messages.create(**request)
    thought, said = message.content
    assert (thought.type, thought.thinking, said.text) == ("thinking", "Hm." if shown else "", "Hi")
    again = await client_of(served).messages.count_tokens(
        model="toy", messages=[HELLO, message.to_param(), HELLO]
    )
    answered = {"role": "assistant", "content": "Hi"}
    assert again.input_tokens == len(served.model.tokenizer.apply_chat_template([HELLO, answered, HELLO]))


@pytest.mark.parametrize(
    ("thinking", "output", "told"),
    [
        (None, None, "[none,none]"),
        ({"type": "adaptive"}, None, "[True,none]"),
        ({"type": "enabled", "budget_tokens": 2000}, {"effort": "max"}, "[True,high]"),
        ({"type": "disabled"}, {"effort": "max"}, "[False,low]"),
    ],
)
async def test_what_is_wished_of_thinking_is_told_to_the_template(
    serve: Serve, thinking: Any, output: Any, told: str
) -> None:
    wishes = "[{{ enable_thinking|default('none') }},{{ reasoning_effort|default('none') }}]"
    served = await serve(tokenizer=TemplateTokenizer(wishes))
    counted = await served.http.post(
        "/v1/messages/count_tokens", json={**_body(), "thinking": thinking, "output_config": output}
    )
    assert counted.json()["input_tokens"] == 1 + len(told)


@pytest.mark.parametrize("stream", [False, True])
async def test_it_says_which_sequence_stopped_it(serve: Serve, stream: bool) -> None:
    served = await serve(head=ScriptedHead(list(b"one two three")))
    request: dict[str, Any] = {**QUESTION, "stop_sequences": ["four", "two"]}
    if stream:
        async with client_of(served).messages.stream(**request) as streamed:
            message = await streamed.get_final_message()
    else:
        message = await client_of(served).messages.create(**request)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "two")
    assert message.content[0].text == "one "


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
async def test_a_system_prompt_is_a_text_or_blocks(serve: Serve, system: Any) -> None:
    served = await serve()
    message = await client_of(served).messages.create(**QUESTION, system=system)
    prompt = served.prompt_of({"role": "system", "content": "Be brief."}, HELLO)
    assert message.content[0].text == text_of(expected(prompt, 12))


async def test_messages_of_one_role_are_one_turn(serve: Serve) -> None:
    served = await serve()
    parts: Any = [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": parts}]
    counted = await client_of(served).messages.count_tokens(model="toy", messages=messages)
    assert counted.input_tokens == len(served.prompt_of({"role": "user", "content": "a\nb"}))


async def test_the_assistant_is_gone_on_with(serve: Serve) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    begun = {"role": "assistant", "content": "The best answer is ("}
    message = await client_of(served).messages.create(**{**QUESTION, "messages": [HELLO, begun]})
    prompt = served.model.tokenizer.apply_chat_template([HELLO, begun], False, continue_final_message=True)
    assert message.content[0].text == text_of(expected(prompt, 12))


async def test_an_answer_longer_than_the_context_is_cut_to_it(serve: Serve) -> None:
    served = await serve()
    request = {**_body(max_tokens=32_000), "temperature": 0}
    reply = (await served.http.post("/v1/messages", json=request)).json()
    prompt = served.prompt_of(HELLO)
    ended = EOS in expected(prompt, CONTEXT - len(prompt))
    assert reply["stop_reason"] == ("end_turn" if ended else "model_context_window_exceeded")


async def test_models_are_listed_as_its_clients_read_them(serve: Serve) -> None:
    served = await serve()
    client = client_of(served)
    (model,) = [model async for model in await client.models.list()]
    assert (model.id, model.type, model.display_name, model.max_tokens) == ("toy", "model", "toy", CONTEXT)
    assert (await client.models.retrieve("toy")).created_at == model.created_at
    with pytest.raises(anthropic.NotFoundError, match="no model 'other'"):
        await client.models.retrieve("other")
    assert [each.id for each in (await served.openai.models.list()).data] == ["toy"]


async def test_a_key_goes_into_its_own_header(serve: Serve) -> None:
    served = await serve(keys=["sk-first-key"])
    assert (await client_of(served, api_key="sk-first-key").messages.create(**QUESTION)).content
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await client_of(served, api_key="sk-other-key").messages.create(**QUESTION)
    assert caught.value.type == "authentication_error"


async def test_what_clients_send_beside_the_question_does_no_harm(serve: Serve) -> None:
    served = await serve()
    body = _body(
        metadata={"user_id": "x"},
        service_tier="auto",
        cache_control={"type": "ephemeral"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "high"},
    )
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "some-beta-2031-01-01,another"}
    reply = await served.http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "context_management"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"messages": []}, "messages: must hold at least one message"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature: must be from 0 to 2"),
        ({"stop_sequences": [""]}, "stop_sequences: holds an empty text"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type: 'any' needs tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "'x' is not one of the tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[0\].type"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, r"tools\[0\].defer_loading"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"thinking": {"type": "often"}}, "thinking.type"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"messages\[0\].content\[0\].type",
        ),
        (
            {
                "messages": [
                    HELLO,
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}],
                    },
                ]
            },
            "no tool_result answers",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
            "is of no tool_use before it",
        ),
    ],
)
async def test_what_is_wrong_is_named(serve: Serve, more: Any, words: str) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        await client_of(served).messages.create(**{**QUESTION, "extra_body": more})
    assert caught.value.type == "invalid_request_error"


async def test_a_schema_is_kept_to(serve: Serve) -> None:
    served = await serve()
    form = {"type": "json_schema", "schema": WARM}
    reply = await served.http.post(
        "/v1/messages", json=_body(max_tokens=200, temperature=0, output_config={"format": form})
    )
    assert list(json.loads(reply.json()["content"][0]["text"])) == ["warm"]


async def test_what_fails_says_so_in_its_form(serve: Serve) -> None:
    served = await serve(a="0-2")
    with pytest.raises(anthropic.InternalServerError) as caught:
        await client_of(served).messages.create(**QUESTION)
    assert (caught.value.status_code, caught.value.type) == (503, "overloaded_error")
    assert caught.value.error_code == "no_route"
    assert caught.value.response.json()["error"]["details"]["missing_blocks"] == ["3-5"]
    wrong = await served.http.get("/v1/messages")
    assert (wrong.status_code, wrong.json()["type"]) == (405, "error")
