"""Thoughts, calls and control tokens over HTTP, by the real ``openai`` client, in each dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.client.gateway.gateway_case import TOOL_TEMPLATE, Serve, Served, TemplateTokenizer
from tests.doubles.fake_swarm import EOS
from tests.doubles.toy_model import ScriptedHead

USER = {"role": "user", "content": "hi"}
GREEDY: dict[str, Any] = {"model": "toy", "messages": [USER], "temperature": 0, "max_tokens": 200}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
CALLED = [("weather", '{"city": "Oslo"}')]
NUMBER = '{"n": 5}'
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
THINKS = TOOL_TEMPLATE + "{# <think></think> #}"
OPENS = TOOL_TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}"
"""Its prompts end within thoughts."""
JSON_ALONE = TOOL_TEMPLATE.replace("<tool_call>", "").replace("</tool_call>", "")


async def _serving(serve: Serve, says: str, template: str) -> Served:
    return await serve(head=ScriptedHead([*says.encode(), EOS]), tokenizer=TemplateTokenizer(template))


async def _asked(served: Served, stream: bool, **fields: Any) -> tuple[str, str, list[tuple[str, str]], str]:
    """What came: thoughts, text, calls, and why it ended."""
    request = {**GREEDY, **fields}
    if not stream:
        choice = (await served.openai.chat.completions.create(**request)).choices[0]
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        thoughts = getattr(choice.message, "reasoning_content", "")
        return thoughts, choice.message.content or "", calls, choice.finish_reason
    thoughts = text = reason = ""
    calls = []
    async for chunk in await served.openai.chat.completions.create(**request, stream=True):
        delta = chunk.choices[0].delta
        thoughts += getattr(delta, "reasoning_content", "")
        text += delta.content or ""
        calls += [(call.function.name, call.function.arguments) for call in delta.tool_calls or []]
        reason = chunk.choices[0].finish_reason or reason
    return thoughts, text, calls, reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("template", "says"), [(THINKS, "<think>\nHm.\n</think>\n\nHi"), (OPENS, "Hm.</think>Hi")]
)
async def test_thoughts_are_apart(serve: Serve, template: str, says: str, stream: bool) -> None:
    served = await _serving(serve, says, template)
    assert await _asked(served, stream) == ("Hm.", "Hi", [], "stop")


async def test_thoughts_have_their_probabilities(serve: Serve) -> None:
    served = await _serving(serve, "Hm.</think>Hi", OPENS)
    answer = await served.openai.chat.completions.create(**GREEDY, logprobs=True)
    tokens = [entry.token for entry in answer.choices[0].logprobs.content]
    assert "".join(tokens) == "Hm.</think>Hi"
    assert answer.usage.completion_tokens == len(tokens) + 1


async def test_a_chat_is_gone_on_with_in_its_thoughts(serve: Serve) -> None:
    served = await _serving(serve, "m.</think>Hi", THINKS)
    messages = [USER, {"role": "assistant", "content": "<think>H"}]
    assert await _asked(served, True, messages=messages) == ("m.", "Hi", [], "stop")
    served = await _serving(serve, "i <think>", THINKS)
    messages = [USER, {"role": "assistant", "content": "<think>Hm.</think>H"}]
    assert await _asked(served, True, messages=messages) == ("", "i <think>", [], "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_that_are_no_json(serve: Serve, stream: bool) -> None:
    says = (
        "I look.\n<tool_call>\n<function=weather>\n<parameter=city>\n7\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    )
    served = await _serving(serve, says, TOOL_TEMPLATE + "{# <function= #}")
    _, text, calls, reason = await _asked(served, stream, tools=[WEATHER])
    assert (text, reason) == ("I look.\n", "tool_calls")
    ((name, arguments),) = calls
    assert (name, json.loads(arguments)) == ("weather", {"city": "7", "days": 3})


@pytest.mark.parametrize("template", [OPENS, OPENS + "{# <function= #}", OPENS + "{# <arg_key> #}"])
async def test_a_forced_call_comes_after_thoughts(serve: Serve, template: str) -> None:
    served = await _serving(serve, f"Hm.</think>{CALL}", template)
    asked = await _asked(served, True, tools=[WEATHER], tool_choice="required")
    assert asked == ("Hm.", "", CALLED, "tool_calls")


@pytest.mark.parametrize(
    ("template", "says", "heard"),
    [
        (THINKS, NUMBER, ("", NUMBER, [], "stop")),
        (THINKS, f"<think>Hm.</think>{NUMBER}", ("Hm.", NUMBER, [], "stop")),
        (THINKS, f"<tool_call>{CALL}</tool_call>", ("", "", CALLED, "tool_calls")),
        (THINKS, f"<think>Hm.</think><tool_call>{CALL}</tool_call>", ("Hm.", "", CALLED, "tool_calls")),
        (JSON_ALONE, NUMBER, ("", NUMBER, [], "stop")),
        (JSON_ALONE, CALL, ("", "", CALLED, "tool_calls")),
    ],
)
async def test_tools_beside_a_format(serve: Serve, template: str, says: str, heard: Any) -> None:
    served = await _serving(serve, says, template)
    assert await _asked(served, True, tools=[WEATHER], response_format=FORM) == heard


@pytest.mark.parametrize("template", [THINKS, JSON_ALONE])
async def test_beside_tools_a_format_is_kept_to(serve: Serve, template: str) -> None:
    served = await _serving(serve, "{No.", template)
    _, text, calls, _ = await _asked(served, False, tools=[WEATHER], response_format=FORM)
    assert "".join(text.split()).startswith('{"n"')
    assert not calls


async def test_a_format_comes_after_thoughts(serve: Serve) -> None:
    served = await _serving(serve, f"Hm {{ }} </think>{NUMBER}", OPENS)
    assert await _asked(served, False, response_format=FORM) == ("Hm { }", NUMBER, [], "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_to_stop_at(serve: Serve, stream: bool) -> None:
    served = await _serving(serve, "one two", TOOL_TEMPLATE)
    asked = await _asked(served, stream, extra_body={"stop_token_ids": [ord(" ")], "ignore_eos": True})
    assert asked == ("", "one", [], "stop")
    answer = await served.chat(stop_token_ids=[999])
    assert answer.json()["error"]["param"] == "stop_token_ids"


async def test_control_tokens_are_shown_to_who_asks(serve: Serve) -> None:
    served = await serve(
        head=ScriptedHead([*b"a", EOS, *b"b", EOS]), tokenizer=TemplateTokenizer(TOOL_TEMPLATE)
    )
    answer = await served.chat(ignore_eos=True, skip_special_tokens=False, temperature=0, max_tokens=3)
    assert answer.json()["choices"][0]["message"]["content"] == "a</s>b"
    answer = await served.chat(skip_special_tokens=False, tools=[WEATHER])
    assert answer.json()["error"]["param"] == "skip_special_tokens"


async def test_thoughts_go_back_as_the_template_calls_them(serve: Serve) -> None:
    template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.thinking or '' }}{{ message.content }}"
        "{% endfor %}"
    )
    served = await serve(tokenizer=TemplateTokenizer(template))
    said = {"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}
    answer = await served.openai.chat.completions.create(
        **{**GREEDY, "max_tokens": 1, "messages": [USER, said, USER]}
    )
    assert answer.usage.prompt_tokens == 1 + len("<user>hi<assistant>Hm.Hi<user>hi")


async def test_beside_a_format_any_schema_of_a_tool_will_do(serve: Serve) -> None:
    served = await _serving(serve, NUMBER, JSON_ALONE)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/none", "type": "odd"}}}
    assert await _asked(served, False, tools=[tool], response_format=FORM) == ("", NUMBER, [], "stop")
