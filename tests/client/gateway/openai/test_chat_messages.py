"""Messages as clients send them: what the template gets, and whose turn it is at their end."""

from __future__ import annotations

from typing import Any

import pytest

from swarm_node.client.gateway.openai.requests import read_chat
from swarm_node.client.http.errors import ApiError
from swarm_node.client.params import prompt_ids
from tests.client.gateway.gateway_case import Serve, TemplateTokenizer

USER = {"role": "user", "content": "Count."}
BEGUN = {"role": "assistant", "content": "1, 2, "}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
NEW_TURN = "<user>Count.</user><assistant>1, 2, </assistant><assistant>"


@pytest.mark.parametrize(
    ("messages", "fields", "prompt"),
    [
        ([USER], {}, "<user>Count.</user><assistant>"),
        ([USER, BEGUN], {}, "<user>Count.</user><assistant>1, 2, "),
        ([USER, BEGUN], {"continue_final_message": True}, "<user>Count.</user><assistant>1, 2, "),
        (
            [USER, BEGUN],
            {"continue_final_message": True, "add_generation_prompt": False},
            "<user>Count.</user><assistant>1, 2, ",
        ),
        ([USER, BEGUN], {"continue_final_message": False}, NEW_TURN),
        ([USER, BEGUN], {"add_generation_prompt": True}, NEW_TURN),
        ([USER, BEGUN], {"add_generation_prompt": False}, NEW_TURN.removesuffix("<assistant>")),
        ([USER, {"role": "assistant", "content": ""}], {}, "<user>Count.</user><assistant>"),
        ([USER, {"role": "assistant", "content": None}], {}, "<user>Count.</user><assistant>"),
        ([USER], {"continue_final_message": True}, "<user>Count."),
        (
            [USER, {"role": "assistant", "content": "</assistant> <user>"}],
            {},
            "<user>Count.</user><assistant></assistant> <user>",
        ),
    ],
)
async def test_whose_turn_it_is(
    serve: Serve, messages: list[Any], fields: dict[str, Any], prompt: str
) -> None:
    served = await serve(tokenizer=TemplateTokenizer(TEMPLATE))
    body = {"messages": messages, "max_tokens": 1, **fields}
    answer = await served.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] == 1 + len(prompt.encode())
    if not fields:  # the Python client reads the same
        ids = prompt_ids(TemplateTokenizer(TEMPLATE), messages, raw=False, vocab_size=258)
        assert bytes(ids[1:]).decode() == prompt


async def test_a_template_that_trims_is_gone_on_with_as_it_writes(serve: Serve) -> None:
    template = TEMPLATE.replace("m.content", "m.content | trim")
    ids = prompt_ids(TemplateTokenizer(template), [USER, BEGUN], raw=False, vocab_size=258)
    assert bytes(ids[1:]) == b"<user>Count.</user><assistant>1, 2,"


@pytest.mark.parametrize(
    ("messages", "fields", "field"),
    [
        ([USER, {**BEGUN, "tool_calls": [CALL]}], {}, "messages[1].tool_calls"),
        (
            [USER, {"role": "assistant", "content": ""}],
            {"continue_final_message": True},
            "continue_final_message",
        ),
        (
            [USER, BEGUN],
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        (
            [USER],
            {"chat_template_kwargs": {"continue_final_message": True}},
            "chat_template_kwargs.continue_final_message",
        ),
    ],
)
def test_ends_that_cannot_be(messages: list[Any], fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_chat({"messages": messages, **fields})
    assert caught.value.param == field


async def test_a_template_that_hides_the_last_message_says_so(serve: Serve) -> None:
    served = await serve(tokenizer=TemplateTokenizer("{{ messages[0].content }}"))
    answer = await served.http.post("/v1/chat/completions", json={"messages": [USER, BEGUN]})
    assert answer.status_code == 400
    assert "cannot be continued" in answer.json()["error"]["message"]


def _read(message: dict[str, Any]) -> dict[str, Any]:
    return dict(read_chat({"messages": [message, USER]}).chat.messages[0])


def _called(**function: Any) -> Any:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", **function}}]
    return _read({"role": "assistant", "content": None, "tool_calls": calls})["tool_calls"][0]["function"][
        "arguments"
    ]


def test_what_an_assistant_said_or_did_not() -> None:
    assert _read({"role": "assistant", "content": None, "tool_calls": [CALL]})["content"] is None
    assert _read({"role": "assistant", "content": "", "tool_calls": [CALL]})["content"] == ""
    assert _read({"role": "assistant", "content": None, "tool_calls": []}) == {
        "role": "assistant",
        "content": "",
    }
    assert _read({"role": "assistant"})["content"] == ""
    assert _read({"role": "assistant", "content": None, "refusal": "No."})["content"] == "No."
    assert _read({"role": "assistant", "content": "a", "reasoning": "b"})["reasoning_content"] == "b"
    assert _read({"role": "user", "content": []})["content"] == ""
    assert _read({"role": "developer", "content": "x"})["role"] == "system"


def test_arguments_in_the_forms_that_clients_keep_them() -> None:
    assert _called(arguments='{"a": 1}') == {"a": 1}
    assert _called(arguments={"a": 1}) == {"a": 1}
    assert _called(arguments="") == _called(arguments=None) == _called() == {}
    assert _called(arguments="not JSON") == "not JSON"
    with pytest.raises(ApiError, match=r"tool_calls\[0\].function.arguments"):
        _called(arguments=3)


SHOWS_CALLS = TEMPLATE.replace("{{ m.content }}", "{{ m.content or '' }}{{ m.tool_calls }}")
ADDS_CONTENT = TEMPLATE.replace("m.content", "'' + m.content")
NEEDS_CALLS = TEMPLATE.replace(
    "{{ m.content }}", "{{ m.content }}{% if m.role == 'assistant' %}{{ m.tool_calls[0].id }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "status"), [(TEMPLATE, 400), (ADDS_CONTENT, 400), (SHOWS_CALLS, 200), (NEEDS_CALLS, 200)]
)
async def test_calls_that_the_template_does_not_show_are_refused(
    serve: Serve, template: str, status: int
) -> None:
    served = await serve(tokenizer=TemplateTokenizer(template))
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    messages = [USER, calling, {"role": "tool", "tool_call_id": "c1", "content": "3"}, USER]
    body = {"messages": messages, "max_tokens": 1}
    answer = await served.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["param"] == "messages[1].tool_calls"
        messages[1] = {"role": "assistant", "content": "f()"}
        assert (await served.http.post("/v1/chat/completions", json=body)).status_code == 200
