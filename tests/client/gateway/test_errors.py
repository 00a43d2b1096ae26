"""What goes wrong over HTTP: the status, the field that is named, and that nothing else is disturbed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import openai
import pytest

from swarm_node.client.gateway.models import MAX_OTHERS
from swarm_node.shards.chat import template
from swarm_node.swarm.confined.process import Bounds
from swarm_node.swarm.types import ModelRef, NodeState, Span
from tests.client.gateway.gateway_case import Serve, TemplateTokenizer
from tests.doubles.fake_swarm import CONTEXT, until

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "toy", "prompt": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

WRONG_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -1}, "min_p"),
    ({"seed": "x"}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"max_tokens": CONTEXT}, "max_tokens"),
    ({"max_completion_tokens": CONTEXT}, "max_completion_tokens"),
    ({"num_predict": CONTEXT}, "num_predict"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"258": 1}}, "logit_bias"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usag": True}}, "stream_options.include_usag"),
    ({"temprature": 1}, "temprature"),
    ({"max_token": 1}, "max_token"),
    ({"stop_sequences": ["x"]}, "stop_sequences"),
    ({"options": {"temperature": 0}}, "options.temperature"),
    ({"mirostat": 2}, "mirostat"),
    ({"enable_thinking": False}, "enable_thinking"),
    ({"max_tokens": 5, "n_predict": 6}, "max_tokens"),
    ({"repetition_penalty": 1.1, "repeat_penalty": 1.2}, "repetition_penalty"),
    ({"prompt": "x"}, "prompt"),
    ({"structured_outputs": {"regex": "a", "mystery": 1}}, "structured_outputs.mystery"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"uniqueItems": True}, "strict": True},
            }
        },
        "response_format.json_schema.schema",
    ),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [TOOL]}, "tools"),  # the toy's own template takes none
    ({"tool_choice": "required"}, "tool_choice"),
    ({"best_of": 2}, "best_of"),
    ({"functions": [{}]}, "functions"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"chat_template": "x"}, "chat_template"),
    ({"chat_template_kwargs": {"thinking": True}}, "thinking"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"guided_json": {}}, "guided_json"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
]
WRONG_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["x", 5]}, "prompt[1]"),
    ({"prompt": [[1, "x"]]}, "prompt[0]"),
    ({"prompt": [258]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [1] * CONTEXT}, "prompt"),
    ({"prompt": ["x"] * 20, "n": 2}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"messages": [{}]}, "messages"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"suffix": "x"}, "suffix"),
    ({"echo": True, "logprobs": 1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"tools": [{}]}, "tools"),
]


@pytest.mark.slow
async def test_each_wrong_field_is_named(serve: Serve) -> None:
    served = await serve()
    cases = [("/v1/chat/completions", CHAT, *case) for case in WRONG_CHAT]
    cases += [("/v1/completions", TEXT, *case) for case in WRONG_TEXT]
    for number, (path, base, change, field) in enumerate(cases):
        # What is wrong has its status before a stream begins, too.
        stream = {"stream": True} if number % 2 and not {"stream", "stream_options"} & set(change) else {}
        response = await served.http.post(path, json={**base, **stream, **change})
        assert response.status_code == 400, (change, response.text)
        error = response.json()["error"]
        assert error["param"] == field, (change, error)
        assert field.split(".")[-1] in error["message"]
        assert error["type"] == "invalid_request_error"
        assert set(error) == {"message", "type", "param", "code"}
    assert not served.swarm.open_sessions
    assert (await served.chat(max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "is not JSON"),
        (b"{", 400, "line 1, column 2"),
        (b"\xff", 400, "UTF-8"),
        (b"[]", 400, "must be an object"),
        (b'{"temperature": NaN}', 400, "number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "number"),
        (b"[" * 5000, 400, "deep"),
        (b"[" * 100 + b"]" * 100, 400, "deeper than 64"),
        (b'{"a": "' + b"x" * 3_000_000 + b'"}', 413, "larger than 2097152 bytes"),
    ],
)
async def test_bodies_that_are_none(serve: Serve, body: bytes, status: int, words: str) -> None:
    served = await serve()
    response = await served.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_web_pages_send_json_or_nothing(serve: Serve, kind: str) -> None:
    """A web page may send other types anywhere without being allowed to; ``curl -d`` and others name one that
    is wrong, or none."""
    served = await serve()
    told = {"content-type": kind} if kind else {}
    body = json.dumps({**CHAT, "max_tokens": 1})
    for page in ({"origin": "https://page.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        response = await served.http.post("/v1/chat/completions", content=body, headers={**told, **page})
        assert response.status_code == 415
    response = await served.http.post("/v1/chat/completions", content=body, headers=told)
    assert response.status_code == 200


async def test_paths_and_methods(serve: Serve) -> None:
    served = await serve()
    assert (await served.http.get("/v1/nothing")).status_code == 404
    wrong = await served.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert (await served.http.post("/health")).status_code == 405
    assert (await served.http.head("/health")).status_code == 200


async def test_models_and_near_names(serve: Serve) -> None:
    served = await serve()
    models = await served.openai.models.list()
    assert [model.id for model in models.data] == ["toy"]
    assert (await served.openai.models.retrieve("toy")).owned_by == "swarm"
    with pytest.raises(openai.NotFoundError, match="did you mean 'toy'") as caught:
        await served.openai.chat.completions.create(**{**CHAT, "model": "Toy2"})
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="there are 'toy'"):
        await served.openai.models.retrieve("org/some-other-model")


async def test_a_list_of_models_is_bounded_however_many_nodes_claim_to_serve(serve: Serve) -> None:
    served = await serve()
    node = served.swarm.store.live()[0]
    for number in range(MAX_OTHERS + 20):
        model = ModelRef("other", f"{number:064x}", 4)
        served.swarm.store.put(replace(node, peer_id=f"o{number}", model=model, span=Span(0, 4)))
    served.gateway.offers._read_at = float("-inf")
    listing = (await served.http.get("/v1/models")).json()
    assert [model["id"] for model in listing["data"]] == ["toy"]
    assert len(listing["unavailable"]) == MAX_OTHERS


@pytest.mark.parametrize("stream", [False, True])
async def test_no_route_says_what_is_missing_and_what_would_fill_it(serve: Serve, stream: bool) -> None:
    served = await serve(a="0-2", b="3-5")
    served.swarm.store.remove("b")
    response = await served.chat(stream=stream)
    error = response.json()["error"]
    assert response.status_code == 503
    assert error["code"] == "no_route"
    assert error["missing_blocks"] == ["3-5"]
    command = "swarm-node serve --model toy --blocks 3-5 --initial-peers /ip4/192.0.2.1/tcp/1"
    assert error["serve_commands"] == [command]
    assert int(response.headers["retry-after"]) >= 1
    listing = (await served.http.get("/v1/models")).json()
    assert (listing["data"], listing["alone"]) == ([], False)
    served.swarm.store.is_alone = True
    served.swarm.announce("b", state=NodeState.JOINING)
    assert (await served.http.get("/v1/models")).json()["alone"] is True
    assert listing["unavailable"][0]["id"] == "toy"
    assert listing["unavailable"][0]["swarm"]["loading"] == []
    assert listing["unavailable"][0]["swarm"]["serve_commands"] == [command]
    served.gateway.offers._read_at = float("-inf")
    one = (await served.http.get("/v1/models/toy")).json()["swarm"]
    assert (one["available"], one["loading"]) == (False, [{"peer_id": "b", "name": "", "blocks": "3-5"}])


async def test_prompts_that_do_not_fit(serve: Serve) -> None:
    served = await serve()
    with pytest.raises(openai.BadRequestError, match=str(CONTEXT)) as caught:
        await served.openai.completions.create(model="toy", prompt="x" * CONTEXT)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        await served.openai.completions.create(model="toy", prompt="x" * 500, max_tokens=100)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


async def test_an_error_in_mid_stream_is_an_event_and_then_the_end(serve: Serve) -> None:
    served = await serve(a="0-2", b="3-5")
    served.swarm.nodes["b"].behaviour.step_delay_s = 0.01
    stream = await served.openai.chat.completions.create(
        **CHAT, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(3):
        await anext(stream)
    served.gateway.drop_all()
    with pytest.raises(openai.APIError) as caught:
        await _read_all(stream)
    assert caught.value.code == "shutting_down"
    await until(lambda: not served.swarm.open_sessions)
    raw = await served.chat(max_tokens=2, stream=True)
    assert raw.text.endswith("data: [DONE]\n\n")


async def _read_all(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_fault_inside_tells_nothing_of_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await serve()

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(served.model, "streams", broken)
        for stream in (False, True):
            response = await served.chat(stream=stream)
            assert response.status_code == 500
            assert "secret" not in response.text
            assert response.json()["error"]["code"] == "internal_error"
    assert (await served.chat(max_tokens=1)).status_code == 200


@pytest.mark.slow
async def test_a_hostile_template_fails_its_own_requests_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "BOUNDS", Bounds(cpu_s=0))
    endless = (
        "{% if messages[0].content == 'go' %}{{ (9 ** (9 ** (messages|length + 8)))|string }}{% endif %}hi"
    )
    served = await serve(tokenizer=TemplateTokenizer(endless))
    asked = asyncio.create_task(served.chat("go"))
    alive = 0
    while not asked.done():
        assert (await served.http.get("/health")).status_code == 200
        alive += 1
    assert alive > 3
    response = await asked
    assert (response.status_code, response.json()["error"]["code"]) == (500, "model_error")
    assert "chat template" in response.json()["error"]["message"]
    assert (await served.chat("hi", max_tokens=1)).status_code == 200
    assert (await served.complete("hi", max_tokens=1)).status_code == 200


async def test_draining_refuses_and_says_so(serve: Serve) -> None:
    served = await serve()
    served.gateway.draining = True
    assert (await served.http.get("/health")).status_code == 200  # it is alive still
    response = await served.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
