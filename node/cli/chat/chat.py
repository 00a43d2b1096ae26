"""``swarm-node chat``: a conversation with the model in a terminal, or line by line through a pipe.

Answers are made on the client's own event loop; this thread waits for keys and draws.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ....client import Generation, SwarmModel, SyncTextStream, TokenEvent
from ....client.hops.trace import repair_sentence
from ....client.params import GenerationParams
from ....client.parsing.pieces import Piece, Thoughts, Words
from ....client.reply import Reply
from ....swarm.errors import ChatTemplateError, OutputError, SwarmError, UsageError
from ....swarm.routing.best_route import NoRouteError
from ....swarm.runtime.extras import install_extra
from ....swarm.runtime.state_files import replace_file
from ....swarm.types import Route
from ..shared.arguments import client_options
from ..shared.output import drafts_line, route_table
from ..shared.pasting import pasteable
from .commands import COMMANDS, DEFAULT_MAX_NEW_TOKENS, SETTINGS, Command, parse, parse_setting
from .conversation import Conversation, Message, read_saved
from .held_keys import held_keys
from .input import EditorSource, History, InputSource, PipeSource, ReadlineSource, default_history
from .screen import JsonScreen, LiveScreen, PlainScreen, Screen, progress_of

NO_EDITOR = f"To edit messages of several lines, install prompt_toolkit: {install_extra('chat')}"


def run_chat(arguments: argparse.Namespace) -> None:
    """Returns when the user leaves.

    Errors end a chat that is read from a pipe; in a terminal they are shown, and it goes on.
    """
    with held_keys(has_editor(arguments)):
        _converse(arguments)


def has_editor(arguments: argparse.Namespace) -> bool:
    """Whether messages are typed into prompt_toolkit's editor."""
    return _is_live(arguments) and importlib.util.find_spec("prompt_toolkit") is not None


def _converse(arguments: argparse.Namespace) -> None:
    at_terminal = _at_terminal(arguments)
    screen = _screen(arguments)
    conversation = _load(arguments.load) if arguments.load else Conversation()
    conversation.system = arguments.system or conversation.system
    settings = {**conversation.settings, **_given(arguments)}
    _check(settings)
    conversation.settings = settings
    with progress_of(screen, "Opening the model ..."):
        model = SwarmModel.connect(
            model=arguments.model,
            **client_options(
                arguments,
                on_progress=screen.progress if at_terminal else None,
                on_decision=lambda decision: screen.show(
                    "model_choice", decision.as_dict(), Text(decision.sentence, style="yellow")
                ),
            ),
        )
    with model:
        chat = Chat(
            model,
            screen,
            conversation,
            survives=at_terminal,
            say=lambda hint, gone: pasteable(hint, arguments, gone),
        )
        if not model.tokenizer.has_chat_template:
            raise ChatTemplateError(
                f"{model.model} has no chat template, so it cannot hold a chat",
                hint="Use an instruct model, or "
                f"`swarm-node generate --model {quote(model.model.name)} --raw 'Once upon a time'`.",
            )
        source = _source(arguments, at_terminal, chat, screen)
        chat.greet()
        chat.run(source)


class Chat:
    """Lines in, answers and what commands do out. ``survives``: an error or Ctrl-C does not end it. ``say``
    completes the commands in a hint; not by way of peers that are gone."""

    def __init__(
        self,
        model: SwarmModel,
        screen: Screen,
        conversation: Conversation,
        *,
        survives: bool,
        say: Callable[[str, Collection[str]], str] = lambda hint, gone: hint,
    ) -> None:
        self.conversation = conversation
        self._model = model
        self._screen = screen
        self._survives = survives
        self._say = say
        self._last: Generation | None = None
        self._route: Route | None = None  # of an answer that was stopped, which has no figures
        self._used = 0  # tokens of the context after it

    def greet(self) -> None:
        turns = len(self.conversation.turns)
        known = f"; {turns} messages loaded" if turns else ""
        self._screen.show(
            "ready",
            {"model": str(self._model.model), "context": self._model.context, "messages": turns},
            Text(f"{self._model.model}{known}. /help shows the commands, Ctrl-D leaves.", style="dim")
            if self._survives
            else Text("", end=""),
        )

    def run(self, source: InputSource) -> None:
        """Until the input ends, or /exit."""
        while True:
            try:
                line = source.read()
                if line is None:
                    return
                if not line.strip():
                    continue
                if not self.take(line):
                    return
            except KeyboardInterrupt:
                if not self._survives:
                    raise
                self._screen.note("Ctrl-D or /exit leaves.")
            except SwarmError as error:
                if not self._survives or isinstance(error, OutputError):
                    raise
                error.hint = self._say(error.hint, error.gone if isinstance(error, NoRouteError) else ())
                self._screen.error(error)

    def take(self, line: str) -> bool:
        """One message or command; whether the chat goes on. Raises SwarmError."""
        asked = parse(line)
        if isinstance(asked, Command):
            if asked.name == "exit":
                return False
            getattr(self, f"_do_{asked.name}")(asked.argument)
        else:
            self.conversation.ask(asked)
            self._answer()
        return True

    @property
    def toolbar(self) -> str:
        used = f"{self._used} of {self._model.context} tokens" if self._used else "a new chat"
        return f" {self._model.model}  ·  {used}  ·  Alt-Enter: new line  ·  /help"

    # Answers.

    def _answer(self) -> None:
        conversation, context = self.conversation, self._model.context
        options = {
            "max_new_tokens": DEFAULT_MAX_NEW_TOKENS,
            **self._model.chat_sampling,
            **conversation.settings,
        }
        dropped = conversation.fit(self._count, context, options["max_new_tokens"])
        if dropped:
            turns = (
                "the oldest question and its answer"
                if dropped == 1
                else f"the {dropped} oldest questions and answers"
            )
            self._screen.note(f"The context of {context} tokens is full: forgot {turns}. /clear begins anew.")
        self._last = None
        result = stream = reply = failure = None
        stop = StopKey(self._survives)
        with stop:
            self._screen.begin(lambda: stream and stream.route)
            try:
                stream = self._model.stream(conversation.messages, **options)
                reply = Reply(self._model.tokenizer, stream)
                for event in self._watched(stream, stop):
                    self._show(reply.push(event))
                if not stop.pressed:
                    result = stream.result
            except SwarmError as error:
                failure = error
            finally:
                if stream is not None:
                    self._route = stream.route or self._route
                    stream.close()
                    self._last = stream.so_far
                apart = {}
                if reply is not None:
                    rest, apart = reply.flush(), reply.as_dict()
                    conversation.answer(reply.content, reply.reasoning)
                    self._show(rest)
                self._screen.end(result, apart)
        if result is not None:
            self._used = len(result.prompt_token_ids) + len(result.token_ids)
        else:  # more may have been made than was shown
            self._used = self._count(conversation.messages)
        if failure is not None:
            if not conversation.waits_for_answer:
                self._screen.note("The answer so far is kept. /retry answers again.")
            raise failure
        if result is None:
            self._screen.note("Stopped. /retry answers again.")

    def _show(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Thoughts):
                self._screen.thought(piece.text)
            elif isinstance(piece, Words):
                self._screen.piece(piece.text)

    def _watched(self, stream: SyncTextStream, stop: StopKey) -> Iterator[TokenEvent]:
        """Its events; repairs are told when they are done."""
        told = 0
        route = before = None
        for event in stop.until_pressed(stream.events()):
            if stream.route != route:
                before, route = route, stream.route
            repairs = stream.repaired
            for repair in repairs[told:]:
                sentence, took_over = repair_sentence(repair, before, route)
                self._screen.repair(sentence, {**repair.as_dict(), "took_over": took_over})
            told = len(repairs)
            yield event

    def _count(self, messages: Sequence[Message]) -> int:
        return len(self._model.tokenizer.apply_chat_template(messages))

    # Commands.

    def _do_help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, (usage, text) in COMMANDS.items():
            table.add_row(escape(f"/{name} {usage}"), text)
        more = (
            "A message of several lines: Alt-Enter (or Ctrl-J) begins a new one; without an editor end lines "
            'with \\, or put """ before and after. Ctrl-C stops an answer.\n'
            f"Options for /set: {', '.join(SETTINGS)}."
        )
        self._screen.show(
            "help", {"commands": list(COMMANDS), "options": list(SETTINGS)}, Group(table, Text(more))
        )

    def _do_model(self, _: str) -> None:
        model = self._model
        prompt = self._count(self.conversation.messages) if self.conversation.turns else 0
        data = {
            "model": model.model.name,
            "digest": model.model.digest,
            "n_blocks": model.model.n_blocks,
            "context": model.context,
            "used_tokens": prompt,
        }
        view = (
            f"{model.model}, {model.model.n_blocks} blocks; the chat takes {prompt} of {model.context} tokens"
        )
        self._screen.show("model", data, Text(view))

    def _do_route(self, _: str) -> None:
        if self._last is None or not self._last.hops:
            if self._route is None:
                raise UsageError("there is no route yet", hint="Ask something first.")
            spans = [{"peer_id": hop.peer_id, "blocks": str(hop.span)} for hop in self._route.hops]
            view = Text(f"{self._route} (of the answer that was stopped)")
            self._screen.show("route", {"route": spans}, view)
            return
        hops = [hop.as_dict() for hop in self._last.hops]
        last, drafts = self._last, self._last.speculated
        line = drafts_line(drafts, len(last.token_ids), last.timings.decode_s)
        parts = Group(route_table(hops), *([Text(line)] if line else []))
        self._screen.show("route", {"route": hops}, parts)

    def _do_system(self, text: str) -> None:
        if text:
            self.conversation.system = "" if text == "none" else text
        system = self.conversation.system
        self._screen.show("system", {"system": system}, Text(system or "There is no system prompt."))

    def _do_set(self, argument: str) -> None:
        settings = self.conversation.settings
        if argument:
            name, value = parse_setting(argument)
            changed = {key: old for key, old in settings.items() if key != name}
            if value is not None:
                changed[name] = value
            _check(changed)
            self.conversation.settings = settings = changed
        view = ", ".join(f"{name} {value}" for name, value in settings.items())
        self._screen.show(
            "settings", {"settings": settings}, Text(view or "All options have their defaults.")
        )

    def _do_retry(self, _: str) -> None:
        self.conversation.retry()
        self._answer()

    def _do_clear(self, _: str) -> None:
        self.conversation.clear()
        self._used = 0
        self._screen.note("The chat is forgotten.")

    def _do_save(self, name: str) -> None:
        path = Path(name).expanduser()
        _save(path, self.conversation.dumps(str(self._model.model)))
        self._screen.show("saved", {"path": str(path)}, Text(f"Saved to {path}."))

    def _do_load(self, name: str) -> None:
        self.conversation = _load(name)
        self._used = self._count(self.conversation.messages)
        turns = len(self.conversation.turns)
        self._screen.show("loaded", {"path": name, "messages": turns}, Text(f"{turns} messages loaded."))


class StopKey:
    """While it is entered, Ctrl-C ends the answer: at once where a token is waited for, and after what is
    being drawn otherwise, so that no half-drawn line stays. ``catches`` False leaves Ctrl-C as it is."""

    def __init__(self, catches: bool = True) -> None:
        self.pressed = False
        self._catches = catches
        self._waiting = False
        self._before: Any = None

    def until_pressed(self, events: Iterator[TokenEvent]) -> Iterator[TokenEvent]:
        while not self.pressed:
            try:
                self._waiting = True
                try:
                    event = next(events)
                finally:
                    self._waiting = False
            except StopIteration:
                return
            except KeyboardInterrupt:
                if not self._catches:
                    raise
                return
            yield event

    def __enter__(self) -> Self:
        if self._catches:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._catches:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        if self._waiting:
            raise KeyboardInterrupt


def _check(options: dict[str, Any]) -> None:
    """Raises UsageError for options of ``generate`` that cannot be."""
    GenerationParams.of(options, vocab_size=1)  # type: ignore[arg-type] # no option of a chat names tokens


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options that were given on the command line."""
    given = {name: getattr(arguments, name, None) for name in SETTINGS}
    return {name: value for name, value in given.items() if value is not None}


def _at_terminal(arguments: argparse.Namespace) -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json


def _is_live(arguments: argparse.Namespace) -> bool:
    """Whether answers are drawn: on a terminal that can move its cursor."""
    can_draw = not arguments.plain and os.environ.get("TERM") not in (None, "", "dumb")
    return can_draw and _at_terminal(arguments)


def _screen(arguments: argparse.Namespace) -> Screen:
    if arguments.json:
        return JsonScreen()
    return LiveScreen() if _is_live(arguments) else PlainScreen()


def _source(arguments: argparse.Namespace, at_terminal: bool, chat: Chat, screen: Screen) -> InputSource:
    if not at_terminal:
        return PipeSource()
    history = default_history() if arguments.history else History(None)
    if has_editor(arguments):
        return EditorSource(history, lambda: chat.toolbar)
    if not isinstance(screen, PlainScreen):
        screen.note(NO_EDITOR)
    return ReadlineSource(history)


def _load(name: str) -> Conversation:
    """Raises UsageError, also for settings that this client does not take."""
    conversation = read_saved(name)
    _check(conversation.settings)
    return conversation


def _save(path: Path, text: str) -> None:
    """Replaces a saved chat, but no other file. Chats are private: only their owner reads them."""
    try:
        if path.exists():
            with path.open("rb") as file:
                is_chat = b'"format": "swarm-node chat ' in file.read(64)
            if not is_chat:
                raise UsageError(f"{path} exists and is not a saved chat", hint="Choose another name.")
        replace_file(path, text)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}", hint="Choose another place."
        ) from error
