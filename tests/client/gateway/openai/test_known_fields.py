"""Every field of the APIs that clients speak: it takes effect, asks for nothing, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from swarm_node.client.gateway.openai.known_fields import UNCHANGING
from swarm_node.client.gateway.openai.requests import read_chat, read_completion
from swarm_node.client.http.errors import ApiError

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"prompt": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}

EFFECT: dict[str, dict[str, Any]] = {
    # A value that changes what is asked for, with what it needs beside it.
    "messages": {"messages": [{"role": "user", "content": "other"}]},
    "prompt": {"prompt": "other"},
    "model": {"model": "m"},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "logit_bias": {"logit_bias": {"1": 1}},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "max_completion_tokens": {"max_completion_tokens": 3},
    "max_tokens": {"max_tokens": 3},
    "n": {"n": 2},
    "seed": {"seed": 3},
    "stop": {"stop": "x"},
    "stream": {"stream": True},
    "stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "tools": {"tools": [TOOL]},
    "tool_choice": {"tools": [TOOL], "tool_choice": "required"},
    "parallel_tool_calls": {"tools": [TOOL], "parallel_tool_calls": False},
    "response_format": {"response_format": {"type": "json_object"}},
    "reasoning_effort": {"reasoning_effort": "low"},
    "verbosity": {"verbosity": "low"},
    "echo": {"echo": True},
    # Of other servers.
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "repeat_penalty": {"repeat_penalty": 1.1},
    "n_predict": {"n_predict": 3},
    "num_predict": {"num_predict": 3},
    "max_new_tokens": {"max_new_tokens": 3},
    "ignore_eos": {"ignore_eos": True},
    "structured_outputs": {"structured_outputs": {"regex": "a"}},
    "chat_template_kwargs": {"chat_template_kwargs": {"a": 1}},
    "enable_thinking": {"enable_thinking": False},
    "add_generation_prompt": {"add_generation_prompt": False},
    "continue_final_message": {"continue_final_message": True},
}
REFUSED: dict[str, Any] = {
    "audio": {"voice": "x"},
    "best_of": 2,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["audio"],
    "moderation": {"a": 1},
    "prediction": {"type": "content"},
    "service_tier": "flex",
    "store": True,
    "suffix": "x",
    "web_search_options": {"a": 1},
    "min_tokens": 1,
    "truncate_prompt_tokens": 100,
    "mirostat": 1,
    "typical_p": 0.5,
    "dry_multiplier": 0.8,
    "xtc_probability": 0.5,
    "grammar": "root ::= x",
    "json_schema": {"type": "object"},
    "num_beams": 4,
    "format": "json",
    "think": True,
    "thinking": {"type": "enabled"},
    "reasoning": {"effort": "low"},
    "system": "Be brief.",
    "template": "{{ .Prompt }}",
    "raw": True,
    "context": [1],
    "images": ["AA=="],
    "n_probs": 5,
    "t_max_predict_ms": 1000,
}
NEUTRAL: list[dict[str, Any]] = [
    {"best_of": 1, "suffix": "", "functions": [], "function_call": "auto", "store": False, "stop": ""},
    {"service_tier": "auto", "min_tokens": 0, "stop_token_ids": [], "skip_special_tokens": True},
    {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "typical_p": 1, "tfs_z": 1.0, "top_a": 0},
    {"dry_multiplier": 0, "dry_base": 1.75, "xtc_probability": 0.0, "xtc_threshold": 0.1, "num_beams": 1},
    {"max_tokens": -1, "n_predict": -1, "logit_bias": {}, "features": {}, "files": [], "unheard_of": ""},
    {"options": {"num_ctx": 4096}, "keep_alive": "5m", "cache_prompt": True, "num_ctx": 1},
]


def _seen(path: str, **fields: Any) -> Any:
    return read_chat({**CHAT, **fields}) if path == "chat" else read_completion({**TEXT, **fields})


def _params(kind: Any) -> list[str]:
    return [*kind.CompletionCreateParamsBase.__annotations__, "stream"]


@pytest.mark.parametrize(
    ("path", "field"),
    [("chat", field) for field in _params(chat_params)] + [("text", field) for field in _params(text_params)],
)
def test_every_field_of_openai_is_one_of_the_three(path: str, field: str) -> None:
    if field in UNCHANGING:
        assert _seen(path, **{field: {"a": "b"}}) == _seen(path)
    elif field in REFUSED:
        with pytest.raises(ApiError) as caught:
            _seen(path, **{field: REFUSED[field]})
        assert caught.value.param == field
    else:
        value = {**EFFECT[field], **({"logprobs": 2} if path == "text" and field == "logprobs" else {})}
        assert _seen(path, **value) != _seen(path)


@pytest.mark.parametrize("field", EFFECT)
def test_what_is_taken_takes_effect(field: str) -> None:
    if field in ("echo", "prompt"):
        assert _seen("text", **EFFECT[field]) != _seen("text")
        return
    without = {name: value for name, value in EFFECT[field].items() if name != field}
    assert _seen("chat", **EFFECT[field]) != _seen("chat", **without)
    assert _seen("chat", **EFFECT[field]).ignored == ()


@pytest.mark.parametrize("path", ["chat", "text"])
@pytest.mark.parametrize("fields", NEUTRAL)
def test_what_asks_for_nothing_is_taken(path: str, fields: dict[str, Any]) -> None:
    assert _seen(path, **fields) == _seen(path)
    assert _seen(path, **dict.fromkeys(fields)) == _seen(path)


@pytest.mark.parametrize("path", ["chat", "text"])
@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_done_is_refused_by_name(path: str, field: str) -> None:
    with pytest.raises(ApiError) as caught:
        _seen(path, **{field: REFUSED[field]})
    assert (caught.value.param, caught.value.status) == (field, 400)


def test_what_nobody_knows_is_told_of_unless_it_is_a_misspelling() -> None:
    assert _seen("chat", frobnicate=1, variables={"a": 1}).ignored == ("frobnicate", "variables")
    for wrong, right in (("temprature", "temperature"), ("max_token", "max_tokens")):
        with pytest.raises(ApiError, match=f"did you mean '{right}'"):
            _seen("chat", **{wrong: 1})


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_objects_inside_are_read_as_closely() -> None:
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}, "odd": 1}],
        },
        *(
            {"role": "assistant", "content": "b", "id": "m1", "at": 5, "tool_calls": [CALL]}
            for _ in range(40)
        ),
        {"role": "user", "content": "c", "at": 6},
    ]
    tool = {"type": "function", "odd": 1, "function": {"name": "f", "odd": 1, "parameters": {"odd": 1}}}
    told = ("messages[].content[].odd", "messages[].at", "tools[].odd")
    seen = _seen("chat", messages=messages, tools=[tool])
    assert sorted(seen.ignored) == sorted(told)
    assert seen.tools.definitions[0]["function"] == tool["function"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "assistant", "content": "a", "tool_cals": [CALL]}]}, "messages[0].tool_cals"),
        ({"messages": [{"role": "user", "content": "a", "images": ["AA=="]}]}, "messages[0].images"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"a": 1}}},
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "json_object", "shema": {"a": 1}}}, "response_format.shema"),
        ({"response_format": {"type": "text", "schema": {"a": 1}}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strct": True}}},
            "response_format.json_schema.strct",
        ),
    ],
)
def test_what_is_misplaced_or_misspelled_inside_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        _seen("chat", **fields)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


def test_the_schema_beside_json_object_is_kept_to() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    beside = _seen("chat", response_format={"type": "json_object", "schema": schema})
    own = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert beside == _seen("chat", response_format=own)


def test_a_tool_without_parameters_takes_none() -> None:
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    bare = _seen("chat", tools=[TOOL], tool_choice="required").tools.forced
    full = {"type": "function", "function": {"name": "f", "parameters": nothing}}
    assert bare == _seen("chat", tools=[full], tool_choice="required").tools.forced
