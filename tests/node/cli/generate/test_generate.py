"""``generate``, with a model that says what it likes."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import Any, Self

import pytest

from swarm_node.client import AsyncSwarmModel, TextStream
from swarm_node.client.hops.trace import Speculated
from swarm_node.client.reply import Reply
from swarm_node.node.cli.generate import generate
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared import output
from swarm_node.node.cli.shared.output import EventPrinter
from swarm_node.swarm.errors import NetworkError, SwarmError
from tests.doubles.fake_swarm import FakeSwarm, ScriptedHead, until
from tests.doubles.toy_model import EOS, ToyTokenizer

HOSTILE = "\x1b]0;owned\x07\x1b[2Jhello\u202e"


WORDS = ["generate", "hi", "--model", "x", "--initial-peers", "/ip4/127.0.0.1/tcp/1/p2p/x"]


async def model_that_says(monkeypatch: pytest.MonkeyPatch, answer: str, *, thinks: bool = False) -> None:
    """Connected to by ``generate``. ``thinks``: its template knows <think>."""
    swarm = await FakeSwarm(a="0-5").start()
    model = swarm.client(ScriptedHead([*answer.encode(), EOS]))
    if thinks:
        monkeypatch.setattr(ToyTokenizer, "chat_template", "<think>")

    async def connect(**options: Any) -> AsyncSwarmModel:
        return model

    monkeypatch.setattr(generate.AsyncSwarmModel, "connect", connect)


def standard_output(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    return out


@pytest.mark.parametrize(
    ("is_terminal", "shown"), [(True, "␛]0;owned␇␛[2Jhello\N{REPLACEMENT CHARACTER}"), (False, HOSTILE)]
)
async def test_an_answer_controls_no_terminal(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shown: str
) -> None:
    out = standard_output(monkeypatch, is_terminal=is_terminal)
    await model_that_says(monkeypatch, HOSTILE)
    await generate.run_generate(build_parser().parse_args([*WORDS, "--quiet"]))
    assert out.getvalue() == shown + "\n"


THOUGHT = "<think>hm [b]\x1b[2J</think>\n\nhello"


@pytest.mark.parametrize(
    ("options", "is_terminal", "said", "thought"),
    [
        ([], True, "hello", True),
        (["--quiet"], True, "hello", False),
        ([], False, THOUGHT, False),
        (["--raw"], True, THOUGHT.replace("\x1b", "␛"), False),
    ],
)
async def test_thoughts_are_apart_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    is_terminal: bool,
    said: str,
    thought: bool,
) -> None:
    out = standard_output(monkeypatch, is_terminal=is_terminal)
    await model_that_says(monkeypatch, THOUGHT, thinks=True)
    await generate.run_generate(build_parser().parse_args([*WORDS, *options]))
    assert out.getvalue() == said + "\n"
    assert ("thinking …\nhm [b]␛[2J\n\n" in capsys.readouterr().err) == thought


async def test_thoughts_are_apart_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await model_that_says(monkeypatch, THOUGHT, thinks=True)
    await generate.run_generate(build_parser().parse_args([*WORDS, "--json"]))
    told = json.loads(capsys.readouterr().out)
    assert (told["text"], told["content"], told["reasoning_content"]) == (THOUGHT, "hello", "hm [b]\x1b[2J")


class ModelWithoutTemplate:
    tokenizer = SimpleNamespace(has_chat_template=False)

    @classmethod
    async def connect(cls, **options: Any) -> Self:
        return cls()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def stream(self, prompt: str, **options: Any) -> TextStream:
        raise NetworkError("the peer is gone")


@pytest.mark.parametrize(("option", "is_told"), [("--no-mdns", True), ("--raw", False), ("--quiet", False)])
async def test_a_text_that_no_template_frames_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, is_told: bool
) -> None:
    monkeypatch.setattr(generate, "AsyncSwarmModel", ModelWithoutTemplate)
    with pytest.raises(NetworkError):
        await generate.run_generate(build_parser().parse_args([*WORDS, option]))
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
        await generate._finished(stream, Reply(ToyTokenizer(), stream))
    await closing
    output.print_error(caught.value, as_json=True)
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["message"]) == ("error", str(caught.value))
    assert event["answer"]["finish_reason"] == "unfinished"
    assert set(event["answer"]["text"]) == {"x"}
    assert event["answer"]["content"] == event["answer"]["text"]


def test_what_drafts_brought_is_told_where_somebody_gave_a_model_for_them() -> None:
    told = output.drafts_line(Speculated(4, 16, 6), 11, 2.0, has_draft=True)
    assert told == "6 of 16 guesses were right: 10 tokens in 4 passes through the peers"
    assert "Nothing was drafted" in output.drafts_line(Speculated(4), 5, 2.0, has_draft=True)
    assert not output.drafts_line(Speculated(4), 5, 2.0, has_draft=False)
    told = output.drafts_line(Speculated(4, 16, 6, trip_s=0.4, row_s=0.02), 11, 2.0, has_draft=True)
    assert told.endswith(
        "passes through the peers; 2.0 in the time of a plain token (400 ms), 86% of what these guesses allow"
    )
    wrong = output.drafts_line(Speculated(10, 1, 0, trip_s=0.1, row_s=0.02), 11, 2.0)
    assert wrong.endswith("10 passes through the peers")  # and not slower than a plain token
    some = output.drafts_line(Speculated(8, 3, 2, trip_s=0.1, row_s=0.02), 11, 2.0)
    assert "0.5 in the time of a plain token" in some
    few = output.drafts_line(Speculated(99, 3, 1, trip_s=0.1, row_s=0.02), 101, 20.0)
    assert few == "1 of 3 guesses were right: 100 tokens in 99 passes through the peers"
    sure = output.drafts_line(Speculated(1, 9, 9, trip_s=0.4, row_s=0.02), 11, 0.3)
    assert sure.endswith("100% of what these guesses allow")  # the times are not exact


@pytest.mark.parametrize(
    ("speculate", "draft", "has_draft"),
    [("auto", None, False), ("auto", "off", False), ("auto", "small", True), ("off", "small", False)],
)
def test_a_draft_model_that_is_not_asked_is_no_draft_model(
    speculate: str, draft: str | None, has_draft: bool
) -> None:
    assert generate._has_draft(Namespace(speculate=speculate, draft=draft)) == has_draft


def test_what_speculation_says_of_itself() -> None:
    """40 tokens behind the first, 10 of them misses: a trip each, and 30 rows at the slowest hop."""
    told = Speculated(8, 60, 30, 0.5, trip_s=0.2, row_s=0.005)
    assert told.tokens_per_trip(41, decode_s=4.0) == pytest.approx(2.0)
    assert told.most_per_trip(41) == pytest.approx(40 * 0.2 / (10 * 0.2 + 30 * 0.005))
    assert Speculated(8, 60, 30).most_per_trip(41) == Speculated().tokens_per_trip(1, 0.0) == 0.0
    assert Speculated(1, 39, 40, trip_s=0.2).most_per_trip(41) == 40.0  # never less than one trip


@pytest.mark.parametrize(("accepted", "row_s"), [(0, 0.005), (5, 0.005), (30, 0.015), (30, 0.5)])
def test_guesses_allow_no_less_than_plain_decoding(accepted: int, row_s: float) -> None:
    """A plain token's time holds its row; where a row looks dearer than that, it was measured wrongly."""
    most = Speculated(41 - accepted, 60, accepted, trip_s=0.015, row_s=row_s).most_per_trip(41)
    assert most >= 1.0
    assert accepted or most == 1.0
