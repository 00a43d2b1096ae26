"""``generate``, with a model that says what it likes."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Self

import pytest

from swarm_node.node.cli.generate import generate
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared import output
from swarm_node.node.cli.shared.output import EventPrinter
from swarm_node.swarm.errors import NetworkError, SwarmError
from tests.doubles.fake_swarm import FakeSwarm, ScriptedHead, until

HOSTILE = "\x1b]0;owned\x07\x1b[2Jhello\u202e"


class HostileModel:
    @classmethod
    async def connect(cls, **options: Any) -> Self:
        return cls()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def stream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        for character in HOSTILE:
            yield character


@pytest.mark.parametrize(
    ("is_terminal", "shown"), [(True, "␛]0;owned␇␛[2Jhello\N{REPLACEMENT CHARACTER}"), (False, HOSTILE)]
)
async def test_an_answer_controls_no_terminal(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shown: str
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    words = ["generate", "hi", "--model", "x", "--quiet", "--initial-peers", "/ip4/127.0.0.1/tcp/1/p2p/x"]
    monkeypatch.setattr(generate, "AsyncSwarmModel", HostileModel)
    await generate.run_generate(build_parser().parse_args(words))
    assert out.getvalue() == shown + "\n"


class ModelWithoutTemplate(HostileModel):
    tokenizer = SimpleNamespace(has_chat_template=False)

    async def stream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        yield ""
        raise NetworkError("the peer is gone")


@pytest.mark.parametrize(("option", "is_told"), [("--no-mdns", True), ("--raw", False), ("--quiet", False)])
async def test_a_text_that_no_template_frames_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, is_told: bool
) -> None:
    monkeypatch.setattr(generate, "AsyncSwarmModel", ModelWithoutTemplate)
    words = ["generate", "hi", "--model", "x", "--initial-peers", "/ip4/127.0.0.1/tcp/1/p2p/x", option]
    with pytest.raises(NetworkError):
        await generate.run_generate(build_parser().parse_args(words))
    assert ("No chat template: the text is sent as it is." in capsys.readouterr().err) == is_told


async def test_an_answer_that_fails_is_in_the_error_event(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swarm = await FakeSwarm(a="0-5").start()
    swarm.nodes["a"].behaviour.step_delay_s = 0.01
    model = swarm.client(ScriptedHead(b"x" * 200))
    events = EventPrinter()
    monkeypatch.setattr(output, "events", events)
    monkeypatch.setattr(generate, "events", events)
    stream = model.stream([1, 2, 3], max_new_tokens=200)

    async def close_later() -> None:
        await until(lambda: stream.so_far is not None)
        await model.close()

    closing = asyncio.create_task(close_later())
    with pytest.raises(SwarmError) as caught:
        await generate._finished(stream)
    await closing
    output.print_error(caught.value, as_json=True)
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["message"]) == ("error", str(caught.value))
    assert event["answer"]["finish_reason"] == "unfinished"
    assert set(event["answer"]["text"]) == {"x"}
