"""The dashboard for Grafana, and the guide, ask for figures that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from swarm_node.client.gateway.figures import Figures
from swarm_node.client.gateway.gateway import Gateway
from swarm_node.client.gateway.metrics import families as of_gateway
from swarm_node.client.hops.trace import Repair
from swarm_node.client.metrics.exposition import exposition
from swarm_node.node.cli.metrics.families import families as of_node
from swarm_node.node.figures.work import SessionEnd
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.messages import Refused
from tests import ROOT
from tests.node.cli.metrics.test_node_metrics import Case

DASHBOARD = ROOT / "docs/operations/grafana.json"
GUIDE = ROOT / "docs/guides/monitoring.md"
OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels that a scrape adds."""


class _Stream:
    """An answer's, as far as repairs go."""

    repaired = (Repair("replay", ("peer",), "text", 1.0, reason="stream_closed"),)
    waiting = so_far = None


class _Answering:
    streams = (_Stream(),)
    tokens = 3
    first_at = 1.0
    queued_s = 0.0


class _Call:
    status = 200
    failure = None


def _gateway() -> Gateway:
    """One that has done a bit of everything."""
    gateway = Gateway(None)  # type: ignore[arg-type]
    figures: Figures = gateway.figures
    with figures.answer(_Answering(), "toy", "chat", 5, 0.0, {}):  # type: ignore[arg-type]
        figures.requested("/v1/chat/completions", _Call())  # type: ignore[arg-type]
    figures._failures["no_route"] += 1
    return gateway


@pytest.fixture
async def series(tiny_dir) -> dict[str, set[str]]:
    """The names of labels, by the name of what a gateway and a node show."""
    case = Case(str(tiny_dir))
    await case.node.start()
    work = case.node._work
    work.ended_session(SessionEnd.IDLE)
    work.refused(Refused(b"s" * 16, ErrorCode.DRAINING, "", ""))
    work._traffic[("incoming", "direct")] = _Bytes  # type: ignore[index, assignment]
    texts = [
        exposition(families, "")[0] for families in (of_gateway(_gateway()), of_node(case.node, case.weights))
    ]
    await case.node.stop()
    return {
        sample.name: set(sample.labels)
        for text in texts
        for family in parse(text)
        for sample in family.samples
    }


class _Bytes:
    received = sent = 1


def _asked() -> Iterator[str]:
    """What the dashboard's panels ask for."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


async def test_the_dashboard_asks_for_what_there_is(series: dict[str, set[str]]) -> None:
    asked = list(_asked())
    assert len(asked) > 40
    for expression in asked:
        names = set(re.findall(r"[a-z_]{4,}(?=[{\[])", expression))
        assert names, expression
        assert names <= series.keys(), expression
        labels = {word for by in re.findall(r"by \((.*?)\)", expression) for word in by.split(", ")}
        for name in names:
            assert labels <= series[name] | OF_PROMETHEUS, expression


async def test_the_dashboard_shows_all_memory_that_can_run_out(series: dict[str, set[str]]) -> None:
    asked = " ".join(_asked())
    free = {name for name in series if "_free_" in name}
    assert len(free) == 2
    assert free == {name for name in free if f"{name}{{" in asked}


def test_panels_name_labels_that_their_figures_are_summed_by() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            by = {word for each in re.findall(r"by \((.*?)\)", target["expr"]) for word in each.split(", ")}
            assert shown <= by or not by, panel["title"]


def test_panels_have_room_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


async def test_the_guide_names_every_figure(series: dict[str, set[str]]) -> None:
    ours = {
        re.sub(r"_(bucket|count|sum)$", "", name) for name in series if name.startswith(("swarm_", "gen_ai_"))
    }
    told = set(re.findall(r"`((?:swarm|gen_ai)_\w+)`", GUIDE.read_text()))
    labels = set().union(*series.values())
    assert ours <= told
    assert told - labels - {"swarm_node"} <= ours
