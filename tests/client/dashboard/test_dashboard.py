"""A dashboard over HTTP: the state, the events that follow it, and who gets them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import aclosing
from typing import Any

import pytest

from swarm_node.client.dashboard import dashboard as module
from swarm_node.client.dashboard.door import dashboard_handlers
from swarm_node.client.dashboard.source import RunningAnswer
from swarm_node.client.http.admission import ApiKeys
from swarm_node.client.http.call import HttpCall
from swarm_node.client.http.errors import ApiError
from tests.client.dashboard.conftest import Show, Shown
from tests.client.dashboard.simulated import SMOL, route_over, simulated_swarm, three_nodes
from tests.doubles.fake_swarm import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-0123456789"


async def events_of(shown: Shown, **headers: str) -> AsyncIterator[tuple[str, Any]]:
    """Each event's name and data."""
    async with shown.http.stream("GET", "/swarm/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: {"):
                yield name, json.loads(line.removeprefix("data: "))


async def until_read(shown: Shown) -> dict[str, Any]:
    """The state, once the directory was read."""
    while True:
        state = (await shown.http.get("/swarm/state")).json()
        if not state["swarm"]["problem"]:
            return state
        await asyncio.sleep(0.01)


async def test_the_state_is_there_as_json(show: Show) -> None:
    shown = await show(three_nodes())
    state = await until_read(shown)
    assert set(state["nodes"]) == {node.peer_id for node in three_nodes()}
    assert state["swarm"]["name"] == "home"
    assert state["models"][SMOL.digest]["name"] == SMOL.name


async def test_changes_follow_the_whole_state(show: Show) -> None:
    nodes = three_nodes()
    shown = await show(nodes[:2])
    await until_read(shown)
    async with aclosing(events_of(shown)) as events:
        name, state = await anext(events)
        assert name == "state"
        shown.store.put(nodes[2])
        shown.source.running = [RunningAnswer("1", SMOL.name, route_over(nodes, 30), tokens=5)]
        seen: set[str] = set()
        async for name, change in events:
            assert name == "changes"
            for section, said in change.items():
                state[section].update(said["set"])
            seen |= set(change)
            if {"nodes", "models", "answers"} <= seen:
                break
    assert state["models"][SMOL.digest]["coverage"] == [[0, 29, 1]]
    assert state["answers"]["1"]["tokens"] == 5


async def test_two_watchers_see_the_same_and_a_slow_one_gets_the_whole_again(show: Show) -> None:
    shown = await show(three_nodes())
    await until_read(shown)
    slow = shown.dashboard.events("slow")
    assert (await anext(slow)).startswith("event: state\n")
    for tokens in range(1, 4):
        shown.source.running = [RunningAnswer("1", SMOL.name, tokens=tokens)]
        shown.dashboard.whole()
    told = await anext(slow)
    assert told.startswith("event: state\n")
    assert '"tokens":3' in told
    await slow.aclose()


async def test_a_silent_swarm_is_kept_alive(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.05)
    shown = await show()
    await until_read(shown)
    async with shown.http.stream("GET", "/swarm/events") as response:
        async for line in response.aiter_lines():
            if line == ": still here":
                break


async def test_a_directory_that_cannot_be_read_is_said_and_nodes_stay(show: Show) -> None:
    shown = await show(three_nodes())
    await until_read(shown)
    async with aclosing(events_of(shown)) as events:
        await anext(events)
        shown.store.down = True
        problem = ""
        async for _, change in events:
            problem = change.get("swarm", {}).get("set", {}).get("problem", problem)
            if problem:
                break
    assert "cannot be reached" in problem
    assert len(json.loads(shown.dashboard.whole())["nodes"]) == 3


async def test_watchers_are_bounded_and_those_that_left_free_their_place(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WATCHERS", 2)
    shown = await show(three_nodes())
    async with aclosing(events_of(shown)) as one, aclosing(events_of(shown)) as other:
        await anext(one)
        await anext(other)
        refused = await shown.http.get("/swarm/events")
        assert refused.status_code == 429
        assert "too many browsers" in refused.json()["error"]["message"]
    await until(lambda: not shown.dashboard._watchers)
    async with aclosing(events_of(shown)) as one:
        await anext(one)


async def test_one_caller_cannot_take_all_places(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OF_ONE_CALLER", 1)
    shown = await show(keys=(KEY, "sk-another-key"))
    async with aclosing(events_of(shown, Authorization=f"Bearer {KEY}")) as events:
        await anext(events)
        again = await shown.http.get("/swarm/events", headers={"Authorization": f"Bearer {KEY}"})
        assert again.status_code == 429
        async with aclosing(events_of(shown, Authorization="Bearer sk-another-key")) as theirs:
            await anext(theirs)


async def test_a_key_is_needed_where_there_is_one(show: Show) -> None:
    shown = await show(three_nodes(), keys=(KEY,))
    for path in ("/swarm/state", "/swarm/events"):
        assert (await shown.http.get(path)).status_code == 401
        wrong = await shown.http.get(path, headers={"Authorization": "Bearer sk-wrong-key-1"})
        assert wrong.status_code == 401
    assert (await shown.http.get("/swarm")).status_code == 200  # the page says nothing of the swarm
    right = await shown.http.get("/swarm/state", headers={"Authorization": f"Bearer {KEY}"})
    assert right.status_code == 200


async def test_others_see_nothing_without_a_key(show: Show) -> None:
    """A server that was told to answer everybody without keys still shows the swarm to this computer only."""
    shown = await show(three_nodes())
    handlers = dashboard_handlers(shown.dashboard, ApiKeys())
    told: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        told.append(message)

    def call_of(host: str, name: bytes = b"localhost:8000") -> HttpCall:
        scope = {"type": "http", "http_version": "1.1", "headers": [(b"host", name)], "client": (host, 1)}
        return HttpCall(scope, asyncio.Event().wait, send, stall_s=1.0)  # type: ignore[arg-type]

    for host in ("192.168.1.4", "8.8.8.8", "fe80::1%eth0", "nonsense"):
        for path in ("/swarm/state", "/swarm/events"):
            with pytest.raises(ApiError, match="--api-key-file") as refused:
                await handlers[path](call_of(host))
            assert refused.value.status == 403
    for path in ("/swarm/state", "/swarm/events"):  # a strange page that has a name of its own lead here
        with pytest.raises(ApiError, match="evil") as refused:
            await handlers[path](call_of("127.0.0.1", b"evil.example:8000"))
        assert refused.value.status == 403
    assert told == []
    for host in ("127.0.0.1", "::1"):
        await handlers["/swarm/state"](call_of(host))
    assert [message["status"] for message in told if "status" in message] == [200, 200]


async def test_names_of_other_computers_are_refused(show: Show) -> None:
    shown = await show()
    for path in ("/swarm", "/swarm/state", "/swarm/events", "/"):
        response = await shown.http.get(path, headers={"Host": "evil.example"})
        assert response.status_code == 403


async def test_other_methods_and_paths_are_refused(show: Show) -> None:
    shown = await show()
    assert (await shown.http.post("/swarm/events", json={})).status_code == 405
    assert (await shown.http.get("/swarm/nothing")).status_code == 404


async def test_the_server_ends_at_once_although_somebody_watches(show: Show) -> None:
    shown = await show(three_nodes())
    async with aclosing(events_of(shown)) as events:
        await anext(events)
        async with asyncio.timeout(5):
            await shown.server.stop(drain_s=60)


async def test_who_asks_often_costs_no_more_readings(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = await show(simulated_swarm(20))
    await until_read(shown)
    monkeypatch.setattr(module, "WATCHED_S", 60.0)
    directory = shown.dashboard._directory
    all_nodes, reads = directory.all_nodes, 0

    async def counted() -> Any:
        nonlocal reads
        reads += 1
        return await all_nodes()

    monkeypatch.setattr(directory, "all_nodes", counted)
    async with aclosing(events_of(shown)) as events:
        await anext(events)
        for _ in range(30):
            assert (await shown.http.get("/swarm/state")).status_code == 200
    assert reads <= 1


async def test_a_watcher_is_told_of_each_reading(show: Show) -> None:
    nodes = three_nodes()
    shown = await show(nodes[:1])
    async with aclosing(events_of(shown)) as events:
        for node in nodes[1:]:
            shown.store.put(node)
            async for _, change in events:
                if node.peer_id in change.get("nodes", {}).get("set", {}):
                    break


async def test_a_figure_that_cannot_be_had_ends_nothing(
    show: Show, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> list[RunningAnswer]:
        raise RuntimeError

    shown = await show(three_nodes())
    await until_read(shown)
    async with aclosing(events_of(shown)) as events:
        await anext(events)
        with monkeypatch.context() as broken:
            broken.setattr(shown.source, "answers", fails)
            await until(lambda: "event=dashboard_telling_failed" in caplog.text)
        shown.source.running = [RunningAnswer("1", "toy")]
        while "answers" not in (await anext(events))[1]:
            pass
