"""Structured answers and tools over HTTP, by the real ``openai`` client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.client.gateway.gateway_case import Serve, TemplateTokenizer
from tests.doubles.fake_swarm import EOS, ScriptedHead

MESSAGES: list[Any] = [{"role": "user", "content": "Give me something."}]
REQUEST = {"model": "toy", "messages": MESSAGES, "temperature": 0, "max_tokens": 100}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOTHING = {"type": "object", "maxProperties": 0}
TIME = {"type": "function", "function": {"name": "time", "parameters": NOTHING}}
BLANK = {"32": -100, "10": -100, "9": -100, "13": -100}
"""No spaces: the toy model would go on with them."""


class City(BaseModel):
    name: str
    people: int


async def test_json_object(serve: Serve) -> None:
    served = await serve()
    answer = await served.openai.chat.completions.create(
        **{**REQUEST, "temperature": 1, "seed": 1}, response_format={"type": "json_object"}
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.lstrip().startswith("{")


@pytest.mark.parametrize("stream", [False, True])
async def test_json_schema(serve: Serve, stream: bool) -> None:
    served = await serve()
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["kind", "age"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema, "strict": True}}
    if stream:
        text = ""
        async for chunk in await served.openai.chat.completions.create(
            **REQUEST, response_format=form, stream=True, logit_bias=BLANK
        ):
            text += chunk.choices[0].delta.content or ""
    else:
        answer = await served.openai.chat.completions.create(
            **REQUEST, response_format=form, logit_bias=BLANK
        )
        assert answer.choices[0].finish_reason == "stop"
        text = answer.choices[0].message.content
    pet = json.loads(text)
    assert pet["kind"] in ("cat", "dog")
    assert 0 <= pet["age"] <= 9


async def test_a_pydantic_model_is_parsed(serve: Serve) -> None:
    """What the client makes of a class of ours, title and all, is taken."""
    served = await serve(head=ScriptedHead([*b'{"name":"Oslo","people":7}', EOS]))
    answer = await served.openai.chat.completions.parse(**REQUEST, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Oslo", people=7)


async def test_other_guides(serve: Serve) -> None:
    served = await serve()
    for outputs, allowed in (
        ({"regex": "(yes|no)!"}, {"yes!", "no!"}),
        ({"choice": ["red", 'a "b"']}, {"red", 'a "b"'}),
        ({"grammar": 'start: "x" "y"'}, {"xy"}),
        ({"json": {"enum": [1, 2]}}, {"1", "2"}),
    ):
        answer = await served.openai.chat.completions.create(
            **REQUEST, extra_body={"structured_outputs": outputs}
        )
        assert answer.choices[0].message.content in allowed
    answer = await served.openai.completions.create(
        model="toy", prompt="x", extra_body={"structured_outputs": {"regex": "[ab]{3}"}}
    )
    assert set(answer.choices[0].text) <= {"a", "b"}


def _schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema, **more}}}


@pytest.mark.parametrize("pattern", ["^(?=a)a+$", "a{,3}["])
async def test_what_cannot_be_kept_to_is_left_out_unless_strict(serve: Serve, pattern: str) -> None:
    served = await serve()
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a"]},
            "n": {"type": ["string", "null"], "pattern": pattern, "title": "N"},
        },
        "required": ["kind", "n"],
        "additionalProperties": False,
        "$schema": "http://json-schema.org/draft-07/schema#",
    }
    null = {**BLANK, str(ord("n")): 100}
    answer = await served.chat(**_schema(schema), temperature=0, max_tokens=100, logit_bias=null)
    assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"kind": "a", "n": None}
    assert (await served.chat(**_schema(schema, strict=True))).status_code == 400


async def test_guides_that_cannot_be_name_their_field(serve: Serve) -> None:
    served = await serve()
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"properties": {"a": deep}}
    for form, field in (
        (_schema({"type": "banana"}, strict=True), "response_format"),
        (_schema({"$ref": "http://x"}, strict=True), "response_format.json_schema.schema"),
        (_schema(deep), ""),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs"),
    ):
        for stream in (False, True):
            response = await served.chat(stream=stream, **form)
            assert response.status_code == 400, (form, response.text)
            assert (response.json()["error"]["param"] or "") == field
    assert (
        await served.chat(response_format={"type": "json_schema", "json_schema": {"schema": deep}})
    ).status_code == 400
    assert (await served.chat(max_tokens=1)).status_code == 200


async def test_the_template_shows_tools_and_calls(serve: Serve) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = await served.openai.chat.completions.create(
        model="toy", messages=messages, tools=[TIME], max_tokens=1, temperature=0
    )
    text = (
        f"<tools>{json.dumps([TIME])}</tools><user>Give me something.<assistant>"
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call><tool>sunny<assistant>'
    )
    assert answer.usage.prompt_tokens == 1 + len(text.encode())


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_are_read_out_of_the_answer(serve: Serve, stream: bool) -> None:
    said = b'I look.<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    served = await serve(tokenizer=TemplateTokenizer(), head=ScriptedHead([*said, EOS]))
    request = {**REQUEST, "tools": [WEATHER, TIME], "tool_choice": "auto"}
    if stream:
        calls, text, reasons = [], "", []
        async for chunk in await served.openai.chat.completions.create(**request, stream=True):
            text += chunk.choices[0].delta.content or ""
            calls += chunk.choices[0].delta.tool_calls or []
            reasons.append(chunk.choices[0].finish_reason)
        reason = reasons[-1]
        assert [call.index for call in calls] == [0]
    else:
        choice = (await served.openai.chat.completions.create(**request)).choices[0]
        calls, text, reason = choice.message.tool_calls, choice.message.content, choice.finish_reason
    assert (text, reason, len(calls)) == ("I look.", "tool_calls", 1)
    assert calls[0].function.name == "weather"
    assert json.loads(calls[0].function.arguments) == {"city": "Oslo"}
    assert calls[0].id.startswith("call_")


async def test_a_call_can_be_demanded(serve: Serve) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = await served.openai.chat.completions.create(
            **REQUEST, tools=[WEATHER, TIME], tool_choice=choice, logit_bias=BLANK
        )
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        assert message.content is None
        (call,) = message.tool_calls
        assert call.function.name in (("weather",) if choice is named else ("weather", "time"))
        arguments = json.loads(call.function.arguments)
        assert arguments == {} if call.function.name == "time" else arguments["city"] in ("Rome", "Oslo")


async def test_tool_choice_none_shows_no_tools(serve: Serve) -> None:
    served = await serve()  # whose template takes none
    answer = await served.openai.chat.completions.create(
        **{**REQUEST, "max_tokens": 2}, tools=[WEATHER], tool_choice="none"
    )
    assert answer.choices[0].message.tool_calls is None
    with pytest.raises(openai.BadRequestError, match="takes no tools"):
        await served.openai.chat.completions.create(**REQUEST, tools=[WEATHER])


async def test_tools_and_other_outputs_exclude_each_other(serve: Serve) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    with pytest.raises(openai.BadRequestError, match="cannot be given beside tools"):
        await served.openai.chat.completions.create(
            **REQUEST, tools=[WEATHER], extra_body={"structured_outputs": {"regex": "a"}}
        )
