"""Chats and texts by the real ``ollama`` client: whole and streamed, with tools, formats and options."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ollama
import pytest
from ollama import AsyncClient

from swarm_node.client.gateway.ollama.requests import read_ollama_chat, read_ollama_text
from swarm_node.client.gateway.requests.prompts import wanted
from swarm_node.client.gateway.requests.request import ChatRequest
from tests.client.gateway.gateway_case import TOOL_TEMPLATE, Serve, Served, TemplateTokenizer, text_of
from tests.doubles.fake_swarm import EOS, expected
from tests.doubles.toy_model import ScriptedHead

SKY = {"role": "user", "content": "Why is the sky blue?"}
GREEDY = {"temperature": 0, "num_predict": 12}
CALL = '<tool_call>{"name": "add_two_numbers", "arguments": {"a": 3, "b": 1}}</tool_call>'


def add_two_numbers(a: int, b: int) -> int:
    """
    Add two numbers

    Args:
      a (int): The first number
      b (int): The second number

    Returns:
      int: The sum of the two numbers
    """
    return a + b


@asynccontextmanager
async def client_of(served: Served, **options: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(host=served.server.url, verify=False, **options) as client:
        yield client


async def _read(answer: Any) -> None:
    """To its end, if it is a stream."""
    if isinstance(answer, AsyncIterator):
        _ = [part async for part in answer]


async def test_the_quick_start(serve: Serve) -> None:
    served = await serve(head=ScriptedHead([*b"Rayleigh.", EOS]))
    async with client_of(served) as client:
        response = await client.chat(
            model="toy", messages=[{"role": "user", "content": "Why is the sky blue?"}]
        )
    assert response["message"]["content"] == response.message.content == "Rayleigh."
    assert (response.model, response.done, response.done_reason) == ("toy", True, "stop")
    assert response.prompt_eval_count == len(served.prompt_of(SKY))
    assert response.eval_count == 10
    assert response.total_duration >= response.prompt_eval_duration > 0
    assert response.eval_duration > 0


async def test_a_stream_says_the_same(serve: Serve) -> None:
    served = await serve()
    text = text_of(expected(served.prompt_of(SKY), 12))
    async with client_of(served) as client:
        whole = await client.chat(model="toy", messages=[SKY], options=GREEDY)
        chunks = [chunk async for chunk in await client.chat("toy", [SKY], options=GREEDY, stream=True)]
    assert whole.message.content == text == "".join(chunk.message.content or "" for chunk in chunks)
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {chunk.message.role for chunk in chunks} == {"assistant"}
    assert (chunks[-1].done_reason, chunks[-1].eval_count) == ("length", 12)
    assert chunks[0].created_at


async def test_a_body_that_names_no_stream_gets_one(serve: Serve) -> None:
    served = await serve()
    body = {"model": "toy", "messages": [SKY], "options": GREEDY}
    reply = await served.http.post("/api/chat", json=body)
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert len(lines) > 2
    assert list(lines[0]) == ["model", "created_at", "done", "message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text(serve: Serve, stream: bool) -> None:
    served = await serve()
    prompt = served.prompt_of({"role": "system", "content": "Be brief."}, SKY)
    asked: dict[str, Any] = {"prompt": SKY["content"], "system": "Be brief.", "options": GREEDY}
    async with client_of(served) as client:
        if stream:
            parts = [part async for part in await client.generate("toy", **asked, stream=True)]
            text, last = "".join(part.response for part in parts), parts[-1]
        else:
            last = await client.generate("toy", **asked)
            text = last.response
    assert text == text_of(expected(prompt, 12))
    assert (last.done_reason, last.prompt_eval_count) == ("length", len(prompt))


async def test_a_raw_text_goes_without_the_template(serve: Serve) -> None:
    served = await serve()
    async with client_of(served) as client:
        response = await client.generate("toy", "Once", raw=True, options=GREEDY)
    assert response.response == text_of(expected(served.model.tokenizer.encode("Once"), 12))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_function_is_called_and_its_result_goes_back(serve: Serve, stream: bool) -> None:
    served = await serve(head=ScriptedHead([*CALL.encode(), EOS, *b"4", EOS]), tokenizer=TemplateTokenizer())
    messages: list[Any] = [{"role": "user", "content": "What is three plus one?"}]
    async with client_of(served) as client:
        if stream:
            parts = [
                part
                async for part in await client.chat("toy", messages, tools=[add_two_numbers], stream=True)
            ]
            (message,) = [part.message for part in parts if part.message.tool_calls]
        else:
            message = (await client.chat("toy", messages, tools=[add_two_numbers])).message
        (call,) = message.tool_calls
        assert call.function.name == "add_two_numbers"
        result = add_two_numbers(**call.function.arguments)
        messages += [message, {"role": "tool", "content": str(result), "tool_name": call.function.name}]
        said = await client.chat("toy", messages, tools=[add_two_numbers])
    assert said.message.content == "4"


async def test_calls_without_ids_get_some_and_results_find_theirs(serve: Serve) -> None:
    ids = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}{% endfor %}{{ m.tool_call_id }},"
    )
    served = await serve(tokenizer=TemplateTokenizer(f"{ids}{{{{ m.name }}}};{{% endfor %}}{{{{ tools }}}}"))
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("f", "g")]
    messages: list[Any] = [
        SKY,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "of g", "tool_name": "g"},
        {"role": "tool", "content": "of f"},
    ]
    shown = served.model.tokenizer.apply_chat_template(
        [
            SKY,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "call00001"}, {"id": "call00002"}]},
            {"role": "tool", "name": "g", "tool_call_id": "call00002"},
            {"role": "tool", "name": "f", "tool_call_id": "call00001"},
        ]
    )
    async with client_of(served) as client:
        response = await client.chat("toy", messages, options=GREEDY)
    assert response.prompt_eval_count == len(shown)


def test_a_result_is_of_the_newest_message_that_calls() -> None:
    messages: list[Any] = [
        {"role": "assistant", "tool_calls": [{"function": {"name": name}}]} for name in ("f", "g")
    ]
    request = read_ollama_chat({"model": "toy", "messages": [*messages, {"role": "tool", "content": "1"}]})
    assert isinstance(request, ChatRequest)
    result = request.chat.messages[-1]
    assert (result["name"], result["tool_call_id"]) == ("g", "call00002")


async def test_a_result_is_read_whose_call_the_client_left_out(serve: Serve) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    result = {"role": "tool", "tool_name": "f", "content": "4"}
    async with client_of(served) as client:
        response = await client.chat("toy", [result, SKY], options=GREEDY)
    assert response.prompt_eval_count == len(served.prompt_of(result, SKY))


@pytest.mark.parametrize("path", ["chat", "generate"])
@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_apart(serve: Serve, path: str, stream: bool) -> None:
    thinks = TOOL_TEMPLATE + "{# <think></think> #}"
    says = b"<think>Hm.</think>Hi"
    served = await serve(head=ScriptedHead([*says, EOS]), tokenizer=TemplateTokenizer(thinks))
    async with client_of(served) as client:
        assert "thinking" in ((await client.show("toy")).capabilities or ())
        asked: Any = {"messages": [SKY]} if path == "chat" else {"prompt": "Why?"}
        answer = await getattr(client, path)("toy", **asked, think=True, stream=stream)
        parts = [part async for part in answer] if stream else [answer]
    said = [part.message if path == "chat" else part for part in parts]
    assert "".join(part.thinking or "" for part in said) == "Hm."
    texts = [part.content if path == "chat" else part.response for part in said]
    assert "".join(texts) == "Hi"


@pytest.mark.parametrize(
    "form", ["json", {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}]
)
async def test_a_format_is_kept_to(serve: Serve, form: Any) -> None:
    served = await serve(head=ScriptedHead([*b'{"ok": true}', EOS]))
    async with client_of(served) as client:
        response = await client.chat("toy", [SKY], format=form)
    assert json.loads(response.message.content or "") == {"ok": True}


async def test_options_change_the_answer(serve: Serve) -> None:
    served = await serve(head=ScriptedHead(list(b"one two three")))
    async with client_of(served) as client:
        response = await client.chat("toy", [SKY], options={"stop": ["two"], "num_ctx": 8192, "seed": 7})
    assert (response.message.content, response.done_reason) == ("one ", "stop")


async def test_what_options_leave_open_is_as_the_model_is_advised(serve: Serve) -> None:
    served = await serve()
    for given in ({}, {"temperature": 0.2, "top_k": 7}):
        sampling = read_ollama_text({"model": "toy", "prompt": "hi", "options": given}).sampling
        (choice,) = wanted(served.model, [(1,)], sampling, {}, default_tokens=5)
        assert choice.options.items() >= {**served.model.chat_sampling, **given}.items()
        assert choice.options["max_new_tokens"] == 5


async def test_logprobs_come_with_their_tokens(serve: Serve) -> None:
    served = await serve()
    async with client_of(served) as client:
        whole = await client.chat("toy", [SKY], options=GREEDY, logprobs=True, top_logprobs=2)
        parts = await client.chat("toy", [SKY], options=GREEDY, logprobs=True, top_logprobs=2, stream=True)
        streamed = [entry for part in [part async for part in parts] for entry in part.logprobs or ()]
    at_once = list(whole.logprobs or ())
    assert [entry.token for entry in at_once] == [entry.token for entry in streamed]
    # Rows that are computed together, as guesses are, differ in the last bits of float32.
    assert [entry.logprob for entry in at_once] == pytest.approx(
        [entry.logprob for entry in streamed], abs=1e-5
    )
    assert len(streamed) == 12
    assert all(len(entry.top_logprobs) == 2 for entry in streamed)


async def test_nothing_asked_loads_the_model(serve: Serve) -> None:
    served = await serve()
    async with client_of(served) as client:
        loaded = await client.generate("toy", "")
        assert (loaded.response, loaded.done, loaded.done_reason) == ("", True, "load")
        let_go = await client.generate("toy", keep_alive=0)
        assert let_go.done_reason == "unload"
        assert (await client.chat("toy", [])).message.content == ""
        with pytest.raises(ollama.ResponseError, match="no model 'other'"):
            await client.generate("other", "")
    assert served.swarm.open_sessions == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_what_fails_says_so_in_its_form(serve: Serve, stream: bool) -> None:
    served = await serve(a="0-2")
    async with client_of(served) as client:
        with pytest.raises(ollama.ResponseError, match="blocks 3-5") as caught:
            await _read(await client.chat("toy", [SKY], stream=stream))
    assert caught.value.status_code == 503


async def test_a_stream_that_fails_ends_with_an_error(serve: Serve) -> None:
    served = await serve(a="0-5")
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.005
    async with client_of(served) as client:
        parts = await client.chat("toy", [SKY], options={"num_predict": 400, "temperature": 0}, stream=True)
        assert not (await anext(parts)).done
        served.gateway.drop_all()
        with pytest.raises(ollama.ResponseError, match="shutting down"):
            await _read(parts)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("chat", {"messages": [{**SKY, "images": ["aGk="]}]}, "messages[0].images: text is all"),
        ("chat", {"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ("chat", {"messages": [SKY], "format": "yaml"}, "format: must be 'json'"),
        ("chat", {"messages": [SKY], "think": "often"}, "think: must be one of"),
        ("chat", {"messages": [SKY], "options": {"mirostat": 2}}, "options.mirostat"),
        ("chat", {"messages": [SKY], "options": {"temprature": 1}}, "did you mean 'temperature'"),
        (
            "chat",
            {"messages": [SKY], "options": {"repeat_penalty": 1.1, "repeat_last_n": 64}},
            "repeat_last_n",
        ),
        ("chat", {"messages": [SKY], "options": {"num_predict": 0}}, "num_predict"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template: the model's own is used"),
        ("generate", {"prompt": "x", "context": [1, 2]}, "context: is not kept here"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "system: is of no use"),
        ("generate", {"prompt": "x", "images": ["aGk="]}, "images: text is all"),
        ("generate", {"prompt": 5}, "prompt: must be a text"),
    ],
)
async def test_what_is_wrong_is_named(serve: Serve, path: str, body: Any, words: str) -> None:
    served = await serve()
    reply = await served.http.post(f"/api/{path}", json={"model": "toy", **body})
    assert reply.status_code == 400
    assert words in reply.json()["error"]


async def test_a_model_must_be_named(serve: Serve) -> None:
    served = await serve()
    for path in ("chat", "generate", "show"):
        reply = await served.http.post(f"/api/{path}", json={})
        assert (reply.status_code, reply.json()) == (400, {"error": "model: is required"})
