"""Reading requests: whatever comes, it is a checked request or an error that names a field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.client.gateway.openai.requests import read_chat, read_completion
from swarm_node.client.http import body as bodies
from swarm_node.client.http import errors
from swarm_node.client.http.body import parse_json
from swarm_node.client.http.errors import ApiError, from_swarm
from swarm_node.client.params import GenerationParams
from swarm_node.swarm import errors as swarm_errors
from swarm_node.swarm.errors import BusyError, PeerError, RemoteProtocolError, SwarmError
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.types import Span

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), st.text(max_size=8), st.just(10**400)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    *("messages", "model", "prompt", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "stream"),
    *("logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "logit_bias", "max_tokens"),
    *("max_completion_tokens", "response_format", "structured_outputs", "tools", "tool_choice", "metadata"),
    *("stream_options", "ignore_eos", "echo", "suffix", "best_of", "user", "chat_template_kwargs"),
    *("parallel_tool_calls", "repetition_penalty", "functions", "modalities", "reasoning_effort"),
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": JSON | st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": JSON
        | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": JSON}), max_size=2),
        "tool_calls": JSON | st.lists(st.fixed_dictionaries({"function": JSON}), max_size=2),
        "tool_call_id": JSON,
        "name": JSON,
    },
)
TOOL = st.fixed_dictionaries({"type": JSON | st.just("function"), "function": JSON})
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5)


@settings(max_examples=60)
@given(fields=FIELDS, messages=st.none() | st.lists(MESSAGE, max_size=3), tools=st.lists(TOOL, max_size=2))
def test_chat_requests_are_read_or_refused_by_name(fields: Any, messages: Any, tools: Any) -> None:
    body = {**CHAT, **fields, **({"messages": messages} if messages is not None else {})}
    body |= {"tools": tools} if tools else {}
    try:
        request = read_chat(body)
    except ApiError as error:
        _names_a_field(error, body)
        return
    _is_possible(request.sampling.options)
    assert all(isinstance(message["content"] or "", str) for message in request.chat.messages)


@given(fields=FIELDS, prompt=st.none() | JSON | st.lists(st.integers(-1, 300), max_size=4))
def test_text_requests_are_read_or_refused_by_name(fields: Any, prompt: Any) -> None:
    body = {**TEXT, **fields, **({"prompt": prompt} if prompt is not None else {})}
    try:
        request = read_completion(body)
    except ApiError as error:
        _names_a_field(error, body)
        return
    _is_possible(request.sampling.options)
    assert len(request.prompts) * request.sampling.n <= 32


def _names_a_field(error: ApiError, body: dict[str, Any]) -> None:
    assert error.status == 400
    assert error.param
    assert error.message.startswith(error.param)
    json.dumps(error.body())


def _is_possible(options: Any) -> None:
    """What passes here passes the client's own checks."""
    GenerationParams.of(options, vocab_size=258)


@given(JSON)
def test_whatever_is_json_is_read_the_same(value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return
    assert parse_json(text.encode()) == value


@given(st.binary(max_size=40) | st.text('[]{}":,0e-tnf\\u', max_size=40).map(str.encode))
def test_bytes_are_json_or_an_error(data: bytes) -> None:
    try:
        value = parse_json(data)
    except ApiError as error:
        problem = error
    else:
        assert value == json.loads(data)
        return
    assert (problem.status, problem.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt":[' + "9" * 5000 + "]}",
        '{"prompt":"a","temperature":1e999}',
        '{"prompt":"a","temperature":NaN}',
        '{"prompt":"a","max_tokens":1e999}',
        '{"prompt":"a","seed":' + "9" * 4000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"messages":[' + "[]," * 70_000 + "[]]}",
        '{"prompt":"' + "\\" * 100_001,
    ],
)
def test_numbers_and_nestings_that_cannot_be_are_refused(body: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_completion(parse_json(body.encode()))
    assert caught.value.status == 400


def test_a_text_may_hold_any_number_of_brackets() -> None:
    text = '[{"\\' * 70_000
    assert parse_json(json.dumps({"prompt": text}).encode()) == {"prompt": text}


def test_arguments_of_calls_that_nest_too_deep_stay_text() -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    call = {"type": "function", "function": {"name": "f", "arguments": deep}}
    request = read_chat({"messages": [{"role": "assistant", "tool_calls": [call]}, *CHAT["messages"]]})
    assert request.chat.messages[0]["tool_calls"][0]["function"]["arguments"] == deep


def _examples() -> list[SwarmError]:
    """One of each class of the tree."""
    cause = swarm_errors.StreamClosedError("it failed", hint="do this")
    made: list[SwarmError] = [
        swarm_errors.HopFailedError("peer", cause),
        swarm_errors.EdgeFailedError(1, cause),
        swarm_errors.ReplayRefusedError(cause, journal_lost=True),
        swarm_errors.BrokenError(),
        BusyError("full", retry_after=2.5),
        PeerError("no", code=swarm_errors.ErrorCode.INTERNAL, retriable=False),
        NoRouteError("none", hint="serve", missing=(Span(3, 6),), seen=()),
    ]
    others = (PeerError, *map(type, made))
    kinds: list[type[SwarmError]] = [SwarmError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if not issubclass(kind, others) and kind.__module__.startswith("swarm_node.swarm"):
            made.append(kind("it failed", hint="do this"))
    return made


@pytest.mark.parametrize("error", _examples(), ids=lambda error: type(error).__name__)
def test_every_error_of_ours_has_a_status(error: SwarmError) -> None:
    found = from_swarm(error, "toy", "ADDR")
    assert found.status in (400, 429, 500, 502, 503)
    if found.status in (429, 503):
        assert int(found.headers["Retry-After"]) >= 1
    if isinstance(error, BusyError):
        assert (found.status, found.headers["Retry-After"]) == (429, "3")
    if isinstance(error, RemoteProtocolError):
        assert found.status == 502
    if isinstance(error, swarm_errors.CodecRangeError):
        assert (found.status, found.body()["error"]["code"]) == (500, "wire_codec")
        assert found.body()["error"]["message"] == "it failed. do this"
    if isinstance(error, NoRouteError):
        assert found.more["missing_blocks"] == ["3-5"]
    assert found.kind in ("invalid_request_error", "server_error", "rate_limit_error")


def test_commands_are_safe_to_paste() -> None:
    (command,) = errors.serve_commands(["0-3"], "my model; rm -rf", "ADDR")
    assert "'my model; rm -rf'" in command


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([[]] * 2**16, "65536 objects and lists"),
        ({str(number): 0 for number in range(2**16 + 1)}, "65536 names"),
        ([1] * (2**19 + 2), "524288 values"),
    ],
)
def test_bodies_of_too_many_parts_are_refused_before_they_are_parsed(
    value: object, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(value).encode()
    monkeypatch.setattr(bodies.json, "loads", None)
    with pytest.raises(ApiError, match=what):
        parse_json(text)


@pytest.mark.parametrize("text", ["[{:," * 2**18, '\\\\"[' * 2**17, '"' * 2**17, "\n: [" * 2**17])
def test_what_is_in_texts_counts_for_nothing(text: str) -> None:
    value = {"a": text, "b": ["[", text]}
    assert parse_json(json.dumps(value).encode()) == value


TRICKY = st.text('"\\[{:,x', max_size=6)


@given(st.recursive(TRICKY, lambda inner: st.lists(inner) | st.dictionaries(TRICKY, inner), max_leaves=8))
def test_outside_of_strings_only_the_structure_is_left(value: object) -> None:
    def structure(of: object) -> str:
        if isinstance(of, dict):
            return "{" + ",".join(f":{structure(each)}" for each in of.values()) + "}"
        return "[" + ",".join(map(structure, of)) + "]" if isinstance(of, list) else ""

    text = json.dumps(value, separators=(",", ":"))
    assert bodies._outside_strings(text.encode()).decode() == structure(value)


@pytest.mark.parametrize("digits", [3, 63, 64, 65, 4000])
def test_long_numbers_are_read_exactly(digits: int) -> None:
    value = {"a": [-int("9" * digits), int("1" * digits)], "b": "7" * digits, "c": 1.5}
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '{"b": [{"c": {"a": 1, "a": 2}}]}'])
def test_a_name_that_is_there_twice_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="'a' more than once") as caught:
        parse_json(text.encode())
    assert caught.value.code == "invalid_json"
    assert parse_json(b'[{"a": 1}, {"a": 1}]') == [{"a": 1}, {"a": 1}]
