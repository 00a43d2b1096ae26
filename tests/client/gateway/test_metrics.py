"""What Prometheus gets of a gateway, and who may ask."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from swarm_node.client.gateway.gateway import Gateway
from swarm_node.client.http.admission import ApiKeys
from tests.client.gateway.gateway_case import Serve, Served
from tests.doubles.fake_swarm import until

GREEDY = {"temperature": 0, "ignore_eos": True}


async def scraped(served: Served, **headers: str) -> dict[str, float]:
    """By name and values of labels."""
    reply = await served.http.get("/metrics", headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in parse(reply.text)
        for sample in family.samples
    }


async def test_a_scrape_tells_what_was_answered(serve: Serve) -> None:
    served = await serve()
    await served.chat("a secret", max_tokens=5, **GREEDY)
    await served.complete(max_tokens=3, **GREEDY)
    await served.chat(max_tokens=0)
    found = await scraped(served)
    chat = "chat swarm_node toy"
    assert found[f"gen_ai_server_request_duration_seconds_count  {chat}"] == 1
    assert found[f"gen_ai_server_time_to_first_token_seconds_count {chat}"] == 1
    assert found[f"gen_ai_server_time_per_output_token_seconds_count {chat}"] == 1
    assert found[f"gen_ai_client_token_usage_sum {chat} output"] == 5
    assert found["gen_ai_client_token_usage_sum text_completion swarm_node toy output"] == 3
    assert found["swarm_gateway_output_tokens_total toy"] == 8
    assert found["swarm_gateway_requests_total /v1/chat/completions 200"] == 1
    assert found["swarm_gateway_requests_total /v1/chat/completions 400"] == 1
    assert found["swarm_gateway_failures_total invalid_request_error"] == 1
    assert found["swarm_gateway_requests_open"] == found["swarm_gateway_generations_running"] == 0
    assert "secret" not in (await served.http.get("/metrics")).text


async def test_a_scrape_sees_what_runs_and_what_waits(serve: Serve) -> None:
    served = await serve(latency=0.001, limits={"max_running": 1})
    asking = [asyncio.create_task(served.chat(max_tokens=60, **GREEDY)) for _ in range(2)]
    await until(lambda: any(answer.tokens > 2 for answer in served.gateway.figures.answers()))
    found = await scraped(served)
    assert found["swarm_gateway_requests_open"] == 2
    assert found["swarm_gateway_generations_running"] == found["swarm_gateway_generations_queued"] == 1
    assert found["swarm_gateway_output_tokens_total toy"] > 2
    await asyncio.gather(*asking)
    assert (await scraped(served))["swarm_gateway_output_tokens_total toy"] == 120


@pytest.mark.parametrize(
    ("keys", "metrics_keys", "given", "status"),
    [
        ([], [], "", 200),
        (["key-of-an-app"], [], "", 401),
        (["key-of-an-app"], [], "key-of-an-app", 200),
        (["key-of-an-app"], ["key-of-prometheus"], "key-of-an-app", 401),
        (["key-of-an-app"], ["key-of-prometheus"], "key-of-prometheus", 200),
        ([], ["key-of-prometheus"], "", 401),
    ],
)
async def test_who_may_read_the_figures(
    serve: Serve, keys: list[str], metrics_keys: list[str], given: str, status: int
) -> None:
    served = await serve(keys=keys, metrics_keys=metrics_keys)
    headers = {"Authorization": f"Bearer {given}"} if given else {}
    assert (await served.http.get("/metrics", headers=headers)).status_code == status


def test_keys_for_figures_are_those_of_the_api_unless_given() -> None:
    keys, others = ApiKeys(["key-of-an-app"]), ApiKeys(["key-of-prometheus"])
    assert Gateway(None, keys=keys).metrics_keys is keys  # type: ignore[arg-type]
    assert Gateway(None, keys=keys, metrics_keys=others).metrics_keys is others  # type: ignore[arg-type]


async def test_a_process_that_drains_is_alive_and_not_ready(serve: Serve) -> None:
    served = await serve()
    assert (await served.http.get("/health")).json()["status"] == "ok"
    assert (await served.http.get("/ready")).status_code == 200
    served.gateway.draining = True
    health, ready = await served.http.get("/health"), await served.http.get("/ready")
    assert (health.status_code, health.json()["status"]) == (200, "draining")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (await scraped(served))["swarm_gateway_draining"] == 1
