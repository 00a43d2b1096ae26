"""``swarm-node chat`` over a swarm inside the test: lines in, what a screen is told out."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarm_node.client import SwarmModel
from swarm_node.client.background import BackgroundLoop
from swarm_node.client.hops.trace import Repair, Speculated, repair_sentence
from swarm_node.node.cli.chat.chat import Chat, StopKey
from swarm_node.node.cli.chat.conversation import Conversation
from swarm_node.node.cli.chat.screen import LiveScreen
from swarm_node.node.cli.shared.output import SafeConsole
from swarm_node.swarm.errors import PeerError, SwarmError, UsageError
from swarm_node.swarm.types import Hop, Route, Span
from tests.doubles import fake_swarm
from tests.doubles.fake_swarm import FakeSwarm
from tests.doubles.toy_model import CONTEXT, ScriptedHead, ToyTokenizer


class Recorder:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def begin(self, route: Any) -> None:
        self.told.append(("begin", None))

    def thought(self, text: str) -> None:
        self.told.append(("thought", text))

    def piece(self, text: str) -> None:
        self.told.append(("piece", text))

    def repair(self, sentence: str, details: dict[str, Any]) -> None:
        self.told.append(("repair", (sentence, details)))

    def end(self, result: Any | None, apart: Mapping[str, object]) -> None:
        self.told.append(("end", result))
        self.told.append(("apart", apart))

    def progress(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.told.append(("note", text))

    def error(self, error: BaseException) -> None:
        self.told.append(("error", error))

    def show(self, event: str, data: dict[str, Any], view: object) -> None:
        self.told.append((event, data))

    def all(self, kind: str) -> list[Any]:
        return [what for event, what in self.told if event == kind]


class Lines:
    """What a person types; an exception is raised where one stands."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = list(lines)

    def read(self) -> str | None:
        line = self._lines.pop(0) if self._lines else None
        if isinstance(line, BaseException):
            raise line
        return line


class SlowHead(ScriptedHead):
    """Tells when the first token is asked for."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens)
        self.asked = threading.Event()

    def logits(self, hidden: Any) -> Any:
        self.asked.set()
        return super().logits(hidden)


class Talk:
    """A chat with the toy model, which says what its head is given."""

    def __init__(
        self, head: ScriptedHead | None = None, *, survives: bool = True, settings: Any = None
    ) -> None:
        self.loop = BackgroundLoop()

        async def start() -> SwarmModel:
            self.swarm = await FakeSwarm(a="0-2", b="3-5", c="3-5").start()
            return SwarmModel(self.loop, self.swarm.client(head))

        self.model = self.loop.run(start())
        self.screen = Recorder()
        self.chat = Chat(self.model, self.screen, Conversation(settings=settings or {}), survives=survives)

    def type(self, *lines: str | BaseException) -> None:
        self.chat.run(Lines(*lines))

    def sessions(self) -> int:
        async def count() -> int:
            return self.swarm.open_sessions

        return self.loop.run(count())

    def close(self) -> None:
        self.model.close()
        self.loop.close()


@pytest.fixture
def talks() -> Iterator[list[Talk]]:
    made: list[Talk] = []
    yield made
    for talk in made:
        talk.close()


EOS = 257


def test_two_turns(talks: list[Talk]) -> None:
    talks.append(talk := Talk(ScriptedHead([*b"hi!", EOS, *b"bye"])))
    talk.type("hello", "  ", "and now?")
    assert "".join(talk.screen.all("piece")) == "hi!bye"
    first, second = talk.screen.all("end")
    assert (first.text, second.text) == ("hi!", "bye")
    assert [turn["content"] for turn in talk.chat.conversation.turns] == ["hello", "hi!", "and now?", "bye"]
    prompt = bytes(token for token in second.prompt_token_ids if token < 256).decode()
    assert prompt == "<user>hello<assistant>hi!<user>and now?<assistant>"
    assert not talk.screen.all("error")


class ThinkingTokenizer(ToyTokenizer):
    """Of a model that thinks. ``shows``: its template shows thoughts of earlier answers."""

    chat_template = "<think>"
    shows = False

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *args: Any, **more: Any
    ) -> list[int]:
        shown = [{**each, "content": self._shown(each)} for each in messages]
        return super().apply_chat_template(shown, *args, **more)

    def _shown(self, message: Mapping[str, Any]) -> str:
        thoughts = message.get("reasoning_content", "") if self.shows else ""
        return f"({thoughts}){message['content']}" if thoughts else message["content"]


@pytest.mark.parametrize("shows", [False, True])
def test_thoughts_are_apart_and_the_template_decides_on_them(
    talks: list[Talk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shows: bool
) -> None:
    monkeypatch.setattr(fake_swarm, "ToyTokenizer", ThinkingTokenizer)
    monkeypatch.setattr(ThinkingTokenizer, "shows", shows)
    talks.append(talk := Talk(ScriptedHead([*b"<think>hm</think>\n\nhi", EOS, *b"ho"])))
    path = tmp_path / "chat.json"
    talk.type("hello", f"/save {path}", "more", f"/load {path}")
    assert "".join(talk.screen.all("thought")) == "hm"
    assert "".join(talk.screen.all("piece")) == "hiho"
    assert talk.screen.all("apart")[0] == {"content": "hi", "reasoning_content": "hm"}
    first, second = talk.screen.all("end")
    assert first.text == "<think>hm</think>\n\nhi"
    prompt = bytes(token for token in second.prompt_token_ids if token < 256).decode()
    assert prompt == f"<user>hello<assistant>{'(hm)' if shows else ''}hi<user>more<assistant>"
    assert talk.chat.conversation.turns == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "reasoning_content": "hm"},
    ]


def test_an_answer_cut_within_its_thoughts_leaves_the_question_open(
    talks: list[Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_swarm, "ToyTokenizer", ThinkingTokenizer)
    talks.append(talk := Talk(ScriptedHead(b"<think>hm, well"), settings={"max_new_tokens": 12}))
    talk.type("hello")
    assert "".join(talk.screen.all("thought")) == "hm, w"
    assert talk.chat.conversation.waits_for_answer


def test_commands(talks: list[Talk], tmp_path: Path) -> None:
    talks.append(talk := Talk(ScriptedHead([*b"hi", EOS, *b"ho", EOS])))
    path = tmp_path / "chat.json"
    talk.type(
        *("/route", "/model", "/set temperature 0.001", "/set top_p 2", "/system be brief", "hello"),
        *("/route", "/retry", f"/save {path}", "/clear", "/system none", "/set temperature none"),
        *(f"/load {path}", "/xyzzy", "/exit", "never read"),
    )
    assert str(talk.screen.all("error")[0]).startswith("there is no route yet")
    assert [type(error) for error in talk.screen.all("error")] == [UsageError] * 3
    assert talk.screen.all("model")[0]["context"] == CONTEXT
    assert [told["settings"] for told in talk.screen.all("settings")] == [{"temperature": 0.001}, {}]
    assert [result.text for result in talk.screen.all("end")] == ["hi", "ho"]
    (route,) = talk.screen.all("route")
    assert [hop["blocks"] for hop in route["route"]] == ["0-2", "3-5"]
    assert talk.screen.all("loaded")[0]["messages"] == 2
    assert path.stat().st_mode & 0o777 == 0o600
    talk_ = talk.chat.conversation
    assert (talk_.system, talk_.settings) == ("be brief", {"temperature": 0.001})
    assert [turn["content"] for turn in talk_.turns] == ["hello", "ho"]


def test_the_route_is_shown_with_what_guesses_brought(talks: list[Talk]) -> None:
    talks.append(talk := Talk(ScriptedHead([*b"hi", EOS])))
    talk.type("hello")
    assert talk.chat._last is not None
    talk.chat._last = replace(talk.chat._last, speculated=Speculated(2, 4, 3))
    out = io.StringIO()
    talk.chat._screen = LiveScreen(SafeConsole(file=out, force_terminal=True, width=120, highlight=False))
    talk.type("/route")
    assert "3 of 4 guesses were right" in out.getvalue()


def test_only_saved_chats_are_overwritten(talks: list[Talk], tmp_path: Path) -> None:
    talks.append(talk := Talk())
    other, saved = tmp_path / "thesis.txt", tmp_path / "chat.json"
    other.write_text("years of work")
    talk.type(f"/save {other}", f"/save {saved}", f"/save {saved}", f"/save {tmp_path / 'none' / 'x'}")
    assert other.read_text() == "years of work"
    assert len(talk.screen.all("saved")) == 2
    assert ["is not a saved chat" in str(error) for error in talk.screen.all("error")] == [True, False]


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"raw": True}, {"temperature": "hot"}])
def test_a_loaded_chat_is_checked(talks: list[Talk], tmp_path: Path, settings: dict[str, object]) -> None:
    talks.append(talk := Talk())
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(json.loads(Conversation().dumps("m")) | {"settings": settings}))
    talk.type(f"/load {path}")
    assert len(talk.screen.all("error")) == 1
    assert talk.chat.conversation == Conversation()


def test_a_full_context_forgets_with_notice(talks: list[Talk]) -> None:
    talks.append(talk := Talk(ScriptedHead([*b"ok", EOS] * 3), settings={"max_new_tokens": 10}))
    talk.type("a" * 300, "b" * 300, "c" * CONTEXT)
    assert [note for note in talk.screen.all("note") if "forgot the oldest question" in note]
    (error,) = talk.screen.all("error")
    assert f"context holds {CONTEXT}" in str(error)
    assert [turn["content"][0] for turn in talk.chat.conversation.turns] == ["b", "o", "c"]


def test_ctrl_c_stops_the_answer_and_not_the_chat(talks: list[Talk]) -> None:
    talks.append(talk := Talk(SlowHead(b"x" * 400)))
    for node in talk.swarm.nodes.values():
        node.behaviour.step_delay_s = 0.01
    before = signal.getsignal(signal.SIGINT)
    pieces: list[str] = []

    def piece(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    talk.screen.piece = piece  # type: ignore[method-assign]
    talk.type("hello", KeyboardInterrupt(), "/model")
    assert talk.screen.all("end") == [None]
    assert 3 <= len(pieces) < 400
    assert talk.chat.conversation.turns[-1] == {"role": "assistant", "content": "".join(pieces)}
    assert talk.screen.all("note") == ["Stopped. /retry answers again.", "Ctrl-D or /exit leaves."]
    held = len(f"<user>hello<assistant>{''.join(pieces)}<assistant>")
    assert f"{talk.chat._count(talk.chat.conversation.messages)} of {CONTEXT} tokens" in talk.chat.toolbar
    assert 0 <= talk.chat._count(talk.chat.conversation.messages) - len(pieces) < held
    assert len(talk.screen.all("model")) == 1, "the chat went on"
    assert talk.sessions() == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_nothing_comes(talks: list[Talk]) -> None:
    head = SlowHead(b"x" * 400)
    talks.append(talk := Talk(head))
    for node in talk.swarm.nodes.values():
        node.behaviour.step_delay_s = 0.2

    def press() -> None:
        head.asked.wait(5)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    talk.type("hello")
    presser.join()
    assert talk.screen.all("end") == [None]
    assert talk.sessions() == 0


def test_in_a_pipe_ctrl_c_and_errors_end_it(talks: list[Talk]) -> None:
    talks.append(talk := Talk(survives=False))
    with pytest.raises(UsageError):
        talk.type("/xyzzy", "never read")
    with pytest.raises(KeyboardInterrupt):
        talk.type(KeyboardInterrupt())
    assert not talk.screen.all("error")


def test_a_failure_keeps_the_question(talks: list[Talk]) -> None:
    talks.append(talk := Talk(ScriptedHead(b"hi")))
    answers = iter([PeerError("gone", code="internal", retriable=False)])  # type: ignore[arg-type]
    stream = talk.model.stream

    def failing(*arguments: Any, **options: Any) -> Any:
        error = next(answers, None)
        if error is not None:
            raise error
        return stream(*arguments, **options)

    talk.model.stream = failing  # type: ignore[method-assign]
    talk.type("hello", "/retry")
    assert [isinstance(error, SwarmError) for error in talk.screen.all("error")] == [True]
    assert [turn["content"] for turn in talk.chat.conversation.turns] == ["hello", "hi"]


def test_a_failure_keeps_what_was_said(talks: list[Talk]) -> None:
    talks.append(talk := Talk(ScriptedHead(b"x" * 20)))
    for node in talk.swarm.nodes.values():
        node.behaviour.step_delay_s = 0.01
    record = talk.screen.piece

    async def close() -> None:
        await talk.model.core.close()

    def piece(text: str) -> None:
        record(text)
        if len(talk.screen.all("piece")) == 5:
            talk.loop.run(close())

    talk.screen.piece = piece  # type: ignore[method-assign]
    talk.type("hello")
    (error,) = talk.screen.all("error")
    assert isinstance(error, SwarmError)
    assert talk.screen.all("note") == ["The answer so far is kept. /retry answers again."]
    said = "".join(talk.screen.all("piece"))
    assert talk.chat.conversation.turns[-1] == {"role": "assistant", "content": said}


def test_an_answer_is_sampled_unless_the_user_says_otherwise(talks: list[Talk]) -> None:
    """The same question gets another answer when it is asked again."""
    talks.append(talk := Talk(ScriptedHead([*b"a", EOS] * 3)))
    stream, asked = talk.model.stream, []

    def noting(prompt: Any, **options: Any) -> Any:
        asked.append(options)
        return stream(prompt, **options)

    talk.model.stream = noting  # type: ignore[method-assign]
    talk.type("hello", "/retry", "/set temperature 0", "/retry")
    assert [options["temperature"] for options in asked] == [0.7, 0.7, 0]
    assert talk.model.chat_sampling == {"temperature": 0.7, "top_p": 0.95}


def test_a_repair_is_told_with_who_took_over(talks: list[Talk]) -> None:
    talks.append(talk := Talk(ScriptedHead(b"x" * 20)))
    lost: list[str] = []
    record = talk.screen.piece

    async def kill(peer_id: str) -> None:
        talk.swarm.network.kill(peer_id)

    def piece(text: str) -> None:
        record(text)
        if len(talk.screen.all("piece")) == 5:
            lost.append(next(peer for peer in "bc" if talk.swarm.nodes[peer].open_sessions))
            talk.loop.run(kill(lost[0]))

    talk.screen.piece = piece  # type: ignore[method-assign]
    for node in talk.swarm.nodes.values():
        node.behaviour.step_delay_s = 0.01
    talk.type("hello")
    (result,) = talk.screen.all("end")
    assert result.text == "x" * 20
    ((sentence, details),) = talk.screen.all("repair")
    (took_over,) = {"b", "c"} - set(lost)
    assert sentence.startswith(f"hop …{lost[0]} was lost, …{took_over} took over in ")
    assert (details["lost"], details["took_over"]) == (lost, [took_over])


@pytest.mark.parametrize("kind", ["planned", "relay", "reopen"])
def test_every_kind_of_repair_has_a_sentence(kind: Any) -> None:
    route = Route((Hop("a", Span(0, 6)),))
    for lost in ((), ("b",)):
        sentence, took_over = repair_sentence(Repair(kind, lost, "", 1.0), None, route)
        assert "1.0 s" in sentence
        assert took_over == ["a"]


def test_the_terminal_shows_markdown_and_no_controls(talks: list[Talk]) -> None:
    text = b"# Head\n\n- **one**\x1b[2J\n\nend"
    talks.append(talk := Talk(ScriptedHead([*text, EOS])))
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, width=70, height=20, highlight=False)
    talk.chat._screen = LiveScreen(console)
    talk.type("hello", "/help", "/route", "/set")
    shown = out.getvalue()
    assert "\x1b[2J" not in shown
    assert "• " in shown
    assert "tokens/s" in shown
    assert "/retry" in shown


def test_the_stop_key_without_catching() -> None:
    def pieces() -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    with StopKey(catches=False) as stop, pytest.raises(KeyboardInterrupt):
        list(stop.until_pressed(pieces()))
