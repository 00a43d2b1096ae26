"""Models by the real ``ollama`` client, and the paths that say no."""

from __future__ import annotations

from typing import Any

import ollama
import pytest

from swarm_node.client.gateway.ollama.models import _short
from tests.client.gateway.gateway_case import Serve, TemplateTokenizer
from tests.client.gateway.ollama.test_answers import client_of
from tests.doubles.toy_model import CONTEXT, HIDDEN, MODEL, N_BLOCKS


async def test_models_that_are_served_are_listed_and_loaded(serve: Serve) -> None:
    served = await serve()
    async with client_of(served) as client:
        (listed,) = (await client.list()).models
        (loaded,) = (await client.ps()).models
    assert (listed.model, listed.digest) == ("toy:latest", MODEL.digest)
    assert listed.modified_at is not None
    assert (loaded.model, loaded.name, loaded.context_length) == ("toy:latest", "toy:latest", CONTEXT)
    assert loaded.expires_at > listed.modified_at


async def test_models_without_all_blocks_are_not_listed(serve: Serve) -> None:
    served = await serve(a="0-2")
    async with client_of(served) as client:
        assert (await client.list()).models == []
        assert (await client.show("toy")).capabilities == ["completion"]


async def test_a_model_is_shown(serve: Serve) -> None:
    served = await serve(tokenizer=TemplateTokenizer())
    async with client_of(served) as client:
        shown = await client.show("toy:latest")
        assert shown.capabilities == ["completion", "tools"]
        assert shown.modelinfo["toys.context_length"] == CONTEXT
        assert shown.modelinfo["toys.embedding_length"] == HIDDEN
        assert shown.modelinfo["toys.block_count"] == N_BLOCKS
        assert shown.details.family == shown.modelinfo["general.architecture"] == "toys"
        with pytest.raises(ollama.ResponseError, match="no model 'other'") as caught:
            await client.show("other")
    assert caught.value.status_code == 404


async def test_its_tag_may_be_said(serve: Serve) -> None:
    served = await serve()
    async with client_of(served) as client:
        answer = await client.generate("toy:latest", "hi", options={"num_predict": 1})
    assert answer.model == "toy:latest"


async def test_a_model_that_is_here_need_not_be_pulled(serve: Serve) -> None:
    served = await serve()
    async with client_of(served) as client:
        assert (await client.pull("toy")).status == "success"
        assert [part.status async for part in await client.pull("toy", stream=True)] == ["success"]
        with pytest.raises(ollama.ResponseError, match="no model 'other'"):
            await client.pull("other")


async def test_what_a_gateway_does_not_do(serve: Serve) -> None:
    served = await serve()
    async with client_of(served) as client:
        asked: dict[str, Any] = {
            "/api/push": client.push("toy"),
            "/api/create": client.create("mine", from_="toy"),
            "/api/copy": client.copy("toy", "mine"),
            "/api/delete": client.delete("toy"),
        }
        for path, asking in asked.items():
            with pytest.raises(ollama.ResponseError, match=path) as caught:
                await asking
            assert caught.value.status_code == 501
    unknown = await served.http.get("/api/other")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "there is nothing at /api/other"})


async def test_clients_find_it_where_they_look_for_ollama(serve: Serve) -> None:
    served = await serve(keys=["sk-first-key"])
    assert (await served.http.head("/")).status_code == 200
    assert (await served.http.get("/")).text == "Ollama is running"
    browser = await served.http.get(
        "/", headers={"accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
    )
    assert browser.text.lower().startswith("<!doctype html>")
    version = (await served.http.get("/api/version")).json()["version"]
    assert [int(part) for part in version.split(".")] >= [0, 6, 4]
    assert (await served.http.get("/api/tags")).status_code == 401
    keyed = {"authorization": "Bearer sk-first-key"}
    async with client_of(served, headers=keyed) as client:
        assert len((await client.list()).models) == 1


@pytest.mark.parametrize(
    ("count", "short"),
    [(0, "0"), (999, "999"), (134_515_008, "134.52M"), (7_615_616_512, "7.6B"), (1_000_000_000, "1.0B")],
)
def test_sizes_are_written_as_ollama_does(count: int, short: str) -> None:
    assert _short(count) == short
