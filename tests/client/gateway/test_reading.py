"""Requests while they are read: bounded together, in turn, and given up with their clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from swarm_node.client import prompt_reader
from swarm_node.client.http import reading
from swarm_node.client.http.body import ClientGoneError
from swarm_node.client.http.errors import ApiError
from swarm_node.client.http.reading import Reading, Readings
from swarm_node.swarm.confined.asking import ASKING
from tests.client.gateway.gateway_case import Serve, TemplateTokenizer
from tests.doubles.fake_swarm import settle, until

LARGE = "x" * (prompt_reader.SHORT_BYTES + 1)


class Held(TemplateTokenizer):
    """Large chats take until they are let go, or given up."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.given_up = 0
        self.go_on = threading.Event()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *more: Any, **options: Any
    ) -> list[int]:
        if len(messages[0]["content"]) > len(LARGE) // 2:
            self.begun += 1
            while not self.go_on.wait(0.01):
                if ASKING.get().is_given_up:
                    self.given_up += 1
                    break
            messages = [{"role": "user", "content": "cut"}]
        return super().apply_chat_template(messages, *more, **options)


async def test_short_prompts_do_not_wait_for_long_ones(serve: Serve) -> None:
    tokenizer = Held()
    served = await serve(tokenizer=tokenizer)
    long = [asyncio.create_task(served.chat(LARGE, max_tokens=1)) for _ in range(4)]
    await until(lambda: tokenizer.begun == 1)
    assert (await served.chat("short", max_tokens=1)).status_code == 200
    assert not any(task.done() for task in long)
    tokenizer.go_on.set()
    assert [response.status_code for response in await asyncio.gather(*long)] == [200] * 4


async def test_who_hangs_up_while_a_prompt_is_read_ends_the_reading(serve: Serve) -> None:
    tokenizer = Held()
    served = await serve(tokenizer=tokenizer)
    body = json.dumps({"messages": [{"role": "user", "content": LARGE}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    _, writer = await asyncio.open_connection(*served.address)
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    await until(lambda: tokenizer.begun == 1)
    writer.close()
    await until(lambda: tokenizer.given_up == 1)
    assert served.gateway._readings.held == 0
    assert served.gateway.admission.requests == 0


async def test_a_template_that_others_kill_costs_its_request_nothing(serve: Serve) -> None:
    tokenizer = TemplateTokenizer()
    served = await serve(tokenizer=tokenizer)
    assert (await served.chat(max_tokens=1)).status_code == 200
    child = tokenizer._template._process._child
    assert child is not None
    os.kill(child._process.pid, signal.SIGSTOP)
    asked = asyncio.create_task(served.chat(max_tokens=1))
    await until(lambda: served.gateway._readings.held > 0)
    os.kill(child._process.pid, signal.SIGKILL)
    assert (await asked).status_code == 200
    assert (await served.chat(max_tokens=1)).status_code == 200


async def test_bodies_are_bounded_together_and_who_holds_most_loses(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 3 * len(LARGE))
    tokenizer = Held()
    served = await serve(tokenizer=tokenizer, limits={"max_body_bytes": len(LARGE) // 4 * 3 + 200})
    content = LARGE[: len(LARGE) // 4 * 3]
    asked = [asyncio.create_task(served.chat(content, max_tokens=1)) for _ in range(5)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = (task.result() for task in done)
    assert refused.status_code == 429
    assert "large requests" in refused.json()["error"]["message"]
    assert served.gateway._readings.held <= 4 * served.gateway.limits.max_body_bytes
    tokenizer.go_on.set()
    codes = sorted(response.status_code for response in await asyncio.gather(*asked))
    assert codes == [200] * 4 + [429]
    assert served.gateway._readings.held == 0


async def test_who_has_little_is_not_the_one_that_ends() -> None:
    readings = Readings(2**20)
    limit = reading.MOST_BYTES
    with readings.of("greedy") as greedy, readings.of("modest") as modest:
        greedy.holds(limit - 10)
        modest.holds(100)
        with pytest.raises(ApiError, match="large requests"):
            await greedy.until(asyncio.sleep(60))
        assert await modest.until(asyncio.sleep(0, 5)) == 5
    assert readings.held == 0


async def test_until_tells_results_errors_and_ends_apart() -> None:
    async def fail() -> int:
        raise ZeroDivisionError

    async def gone() -> Any:
        raise ClientGoneError

    async def never() -> Any:
        await asyncio.Event().wait()

    with Readings(100).of("x") as each:
        assert isinstance(each, Reading)
        assert await each.until(asyncio.sleep(0, 5), never()) == 5
        with pytest.raises(ZeroDivisionError):
            await each.until(fail(), never())
        with pytest.raises(ClientGoneError):
            await each.until(never(), gone())
        waiting = asyncio.create_task(each.until(never(), never()))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
