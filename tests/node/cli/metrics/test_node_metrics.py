"""``--metrics``: what a node, and a bootstrap node, tell of themselves over HTTP."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.cli.metrics.node import bootstrap_metrics, node_metrics
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.config import NodeConfig, NodeEvent
from swarm_node.node.node import Node
from swarm_node.node.weights.sharing import WeightOptions, WeightService
from swarm_node.swarm.errors import ListenError, UsageError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span


def arguments(words: str, command: str = "serve --model x") -> argparse.Namespace:
    return build_parser().parse_args([*command.split(), *words.split(), "--json"])


class Case:
    def __init__(self, model: str) -> None:
        self.events: list[NodeEvent] = []
        self.rests = False
        config = NodeConfig(
            model=model, blocks=Span(1, 3), threads=1, kv_cache_tokens=300, quantize="none", name="kitchen"
        )
        network = GivenNetwork(MemoryNetwork().transport("node"), MemoryDirectory(MemoryStore()))
        self.node = Node(config, self.events.append, network=network)
        self.weights = WeightService(WeightOptions())

    @asynccontextmanager
    async def served(self, words: str = "--metrics 0") -> AsyncIterator[httpx2.AsyncClient]:
        async with node_metrics(arguments(words), self.events.append, lambda: self.rests) as metrics:
            (event,) = (event for event in self.events if event.event == "metrics")
            async with httpx2.AsyncClient(base_url=str(event.details["url"]), verify=False) as http:
                with metrics.of(self.node, self.weights):
                    yield http


@pytest.fixture
async def case(tiny_dir) -> AsyncIterator[Case]:
    case = Case(str(tiny_dir))
    yield case
    await case.node.stop()


async def scraped(http: httpx2.AsyncClient, **headers: str) -> dict[str, float]:
    reply = await http.get("/metrics", headers=headers)
    assert reply.status_code == 200, reply.text
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in parse(reply.text)
        for sample in family.samples
    }


async def test_a_node_is_alive_before_it_is_ready_and_tells_what_it_does(case: Case) -> None:
    async with case.served() as http:
        assert (await http.get("/health")).json() == {"status": "joining"}
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "joining", "ready": False})
        assert (await scraped(http))["swarm_node_ready"] == 0
        await case.node.start()
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "online", "ready": True})
        case.weights.fetched_bytes = 5
        found = await scraped(http)
        assert found["swarm_node_ready"] == found["swarm_node_state online"] == 1
        assert found[f"swarm_node_info 1-2 {case.node.model.name} kitchen node"] == 1
        assert found["swarm_node_kv_tokens"] == found["swarm_node_kv_free_tokens"] == 320
        assert found["swarm_node_state_sessions"] == found["swarm_node_state_free_sessions"] == 0
        assert found["swarm_node_loads_total"] == 1
        assert found["swarm_node_weights_bytes_total received"] == 5
        assert found["swarm_node_tokens_total prefill"] == 0
        await case.node.drain()
        assert (await http.get("/health")).json() == {"status": "draining"}
        assert (await http.get("/ready")).status_code == 503


async def test_a_command_without_a_node_is_alive_and_tells_whether_it_rests(case: Case) -> None:
    async with node_metrics(arguments("--metrics 0"), case.events.append, lambda: case.rests) as metrics:
        url = str(case.events[0].details["url"])
        async with httpx2.AsyncClient(base_url=url, verify=False) as http:
            assert (await http.get("/health")).json() == {"status": "joining"}
            case.rests = True
            assert (await http.get("/health")).json() == {"status": "resting"}
            ready = await http.get("/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": "resting", "ready": False})
            found = await scraped(http)
            assert (found["swarm_node_state resting"], found["swarm_node_state online"]) == (1, 0)
            assert found["swarm_node_ready"] == 0
            with metrics.of(case.node, case.weights):
                assert "swarm_node_loads_total" in await scraped(http)
            assert "swarm_node_loads_total" not in await scraped(http)


async def test_nothing_is_served_unless_asked_for(case: Case) -> None:
    async with node_metrics(arguments(""), case.events.append, lambda: False):
        assert not case.events


async def test_figures_may_need_a_key_and_health_does_not(case: Case, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-of-prometheus\n")
    async with case.served(f"--metrics 0 --metrics-key-file {keys}") as http:
        assert (await http.get("/metrics")).status_code == 401
        assert "swarm_node_ready" in await scraped(http, Authorization="Bearer key-of-prometheus")
        assert (await http.get("/health")).status_code == 200


async def test_only_this_computer_is_answered_where_nothing_is_asked_for(case: Case) -> None:
    async with case.served() as http:
        assert (await http.get("/metrics", headers={"Host": "evil.example"})).status_code == 403
        assert (await http.get("/nothing")).status_code == 404
        assert (await http.post("/metrics", content=b"x")).status_code == 405


async def test_what_cannot_be_served_is_told(case: Case) -> None:
    async with case.served() as http:
        words = arguments(f"--metrics {http.base_url.port}")
        with pytest.raises(ListenError):
            async with node_metrics(words, case.events.append, lambda: False):
                pass
    with pytest.raises(UsageError, match="cannot be read"):
        async with case.served("--metrics 0 --metrics-key-file /nowhere"):
            pass


async def test_a_bootstrap_node_is_ready_while_it_is_in_its_network() -> None:
    events: list[NodeEvent] = []
    async with bootstrap_metrics(arguments("--metrics 0", "bootstrap"), events.append) as told:
        url = str(events[0].details["url"])
        async with httpx2.AsyncClient(base_url=url, verify=False) as http:
            for name, status in (
                *(("listening", 503), ("online", 200), ("peer_found", 200)),
                *(("network_lost", 503), ("network_restored", 200)),
            ):
                told(NodeEvent(name))
                assert (await http.get("/ready")).status_code == status
            assert (await scraped(http))["swarm_node_ready"] == 1
    assert [event.event for event in events[1:]][:2] == ["listening", "online"]
