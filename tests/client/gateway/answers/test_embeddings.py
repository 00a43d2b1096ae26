"""Vectors over HTTP, by the clients of OpenAI and Ollama; and what each caller has used."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace

import numpy as np
import ollama
import pytest
from openai import BadRequestError

from swarm_node.shards.formats.advice.pooling import Pooling
from tests.client.gateway.gateway_case import Serve, Served
from tests.doubles.fake_swarm import MODEL, until
from tests.doubles.toy_model import FACTS


async def for_embeddings(serve: Serve, **options: object) -> Served:
    served = await serve(**options)  # type: ignore[arg-type]
    served.model._local = replace(served.model._local, facts=replace(FACTS, pooling=Pooling.MEAN))
    return served


async def test_openais_client_gets_vectors_in_order(serve: Serve) -> None:
    served = await for_embeddings(serve)
    right = await served.model.embed(["one", "two words", "one"])
    answer = await served.openai.embeddings.create(model=MODEL.name, input=["one", "two words", "one"])
    got = np.array([each.embedding for each in answer.data], np.float32)
    assert np.abs(got - right).max() < 1e-6
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4 + 10 + 4
    (whole,) = (
        await served.openai.embeddings.create(model=MODEL.name, input="one", encoding_format="float")
    ).data
    assert np.abs(np.array(whole.embedding) - right[0]).max() < 1e-6
    reply = await served.http.post(
        "/v1/embeddings", json={"input": [list(b"one")], "encoding_format": "base64", "odd": 1}
    )
    raw = base64.b64decode(reply.json()["data"][0]["embedding"])
    assert np.abs(np.frombuffer(raw, "<f4") - (await served.model.embed([list(b"one")]))[0]).max() < 1e-6
    assert reply.headers["x-ignored-fields"] == "odd"
    assert served.swarm.open_sessions == 0


async def test_ollamas_client_gets_vectors(serve: Serve) -> None:
    served = await for_embeddings(serve)
    client = ollama.AsyncClient(host=served.server.url)
    right = await served.model.embed(["one", "two"])
    answer = await client.embed(model=MODEL.name, input=["one", "two"])
    assert np.abs(np.array(answer.embeddings) - right).max() < 1e-6
    assert (answer.model, answer.prompt_eval_count) == (MODEL.name, 8)
    old = await client.embeddings(model=MODEL.name, prompt="one")
    assert np.abs(np.array(old.embedding) - right[0]).max() < 1e-6


async def test_a_model_for_answers_is_refused_with_what_to_do(serve: Serve) -> None:
    served = await serve()
    with pytest.raises(BadRequestError, match="is not a model for embeddings") as refused:
        await served.openai.embeddings.create(model=MODEL.name, input="one")
    assert "Qwen3-Embedding" in str(refused.value)
    reply = await served.http.post("/api/embed", json={"model": MODEL.name, "input": "one"})
    assert (reply.status_code, set(reply.json())) == (400, {"error"})


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "input: is required"),
        ({"input": []}, "input: is empty"),
        ({"input": ""}, "input: is empty"),
        ({"input": ["a", 3]}, r"input\[1\]"),
        ({"input": {"a": 1}}, "input: must be"),
        ({"input": ["a"] * 2049}, "input: has 2049 items"),
        ({"input": [[]]}, r"input\[0\]: is empty"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 7}, "dimensions: of this model's vectors is"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "b", "dimension": 3}, "did you mean 'dimensions'"),
        ({"input": "x" * 5000}, "the model holds"),
        ({"input": [[-1]]}, "token ids"),
    ],
)
async def test_wrong_requests_name_the_field(serve: Serve, body: dict[str, object], names: str) -> None:
    served = await for_embeddings(serve)
    reply = await served.http.post("/v1/embeddings", json=body)
    assert reply.status_code == 400, reply.text
    with pytest.raises(AssertionError, match=names):
        raise AssertionError(reply.json()["error"]["message"])


async def test_vectors_end_with_the_gateway(serve: Serve) -> None:
    served = await for_embeddings(serve, a="0-5")
    served.swarm.nodes["a"].behaviour.step_delay_s = 60.0
    asked = asyncio.create_task(served.http.post("/v1/embeddings", json={"input": ["one", "two"]}))
    await until(lambda: served.swarm.open_sessions > 0)
    served.gateway.drop_all()
    reply = await asked
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
    await until(lambda: not served.swarm.open_sessions)


async def test_each_key_sees_what_it_has_used(serve: Serve) -> None:
    served = await for_embeddings(serve, keys=["first-key-1", "other-key-2"])

    async def used(key: str) -> dict[str, int]:
        reply = await served.http.get("/v1/usage", headers={"x-api-key": key})
        return reply.json()

    assert (await served.http.get("/v1/usage")).status_code == 401
    answer = await served.openai.completions.create(model=MODEL.name, prompt="abc", max_tokens=5)
    await served.openai.embeddings.create(model=MODEL.name, input="abc")
    mine = await used("first-key-1")
    assert answer.usage is not None
    assert mine["requests"] == 2
    assert mine["prompt_tokens"] == answer.usage.prompt_tokens + 4
    assert mine["completion_tokens"] == answer.usage.completion_tokens
    assert list(mine["models"]) == [MODEL.name]  # type: ignore[call-overload]
    assert (await used("other-key-2"))["requests"] == 0


async def test_models_are_found_by_names_as_on_the_command_line(serve: Serve) -> None:
    served = await serve()
    offers = served.gateway.offers
    for name in (MODEL.name.upper(), f"{MODEL.name}.gguf", f"{MODEL.name}@{MODEL.digest[:6]}"):
        assert offers.find(name)[0] == MODEL.name
    reply = await served.http.get(f"/v1/models/{MODEL.name}@{'0' * 8}")
    assert reply.status_code == 404
