"""What Prometheus asks for: headers of strangers, and names of models and peers in what it gets."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse

from swarm_node.client.http.admission import ApiKeys
from swarm_node.client.http.callers import only_with_key
from swarm_node.client.http.endpoint import Endpoint
from swarm_node.client.metrics.exposition import gauge
from swarm_node.client.metrics.scrape import metrics_page

from .target import Prepared, Target

KEY = "key-of-prometheus"
LABEL = "SmolLM2-135M"


def _scrape() -> Target:
    def prepare() -> Prepared:
        loop = asyncio.new_event_loop()

        def run(data: bytes) -> str:
            accept, authorization, label = (data.split(b"\n", 2) + [b"", b""])[:3]
            shown = label.decode("utf-8", "surrogateescape")
            return loop.run_until_complete(_scraped(accept, authorization, shown))

        return Prepared(_scrapes(), run, loop.close)

    return Target("scrape", prepare, largest=4096)


def _scrapes() -> list[bytes]:
    key = f"Bearer {KEY}".encode()
    accepts = (
        b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        b"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8,text/plain;version=1.0.0",
    )
    return [b"\n".join((accept, key, LABEL.encode())) for accept in accepts]


async def _scraped(accept: bytes, authorization: bytes, label: str) -> str:
    """Raises AssertionError for an answer that is neither figures nor a refusal, and for a forged figure."""
    page = metrics_page(
        lambda: lambda: [gauge("swarm_test", "One.", {(label,): 1}, ("model",))],
        only_with_key(ApiKeys([KEY]), "the figures are", "--metrics-key-file"),
    )
    headers = [(b"host", b"localhost"), (b"accept", accept), (b"authorization", authorization)]
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "raw_path": b"/metrics",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
    }
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        told.append(message)

    await Endpoint("GET", page, 10.0, True)(scope, receive, send)
    status, media_type = told[0]["status"], dict(told[0]["headers"])[b"content-type"].decode()
    if status not in (200, 401):
        raise AssertionError(f"a scrape is answered by {status}")
    if status == 200 and media_type.startswith("text/plain"):
        families = {family.name for family in parse(told[1]["body"].decode())}
        ours = {name for name in families if not name.startswith(("process_", "python_"))}
        if ours != {"swarm_node_build_info", "swarm_test"}:
            raise AssertionError(f"a scrape shows {ours}")
    return f"{status} {media_type}"


TARGETS = [_scrape()]
