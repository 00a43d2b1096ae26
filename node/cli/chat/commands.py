"""What a line typed into a chat means: a message for the model, or a command. Pure."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....swarm.errors import UsageError
from ..shared.arguments import (
    MODEL_HELP,
    add_compute,
    add_draft,
    add_model,
    add_peers,
    add_sampling,
    add_sideband,
    add_speculate,
    add_wait,
    add_wire_codec,
    positive_int,
    typed_text,
)

CHAT_EXAMPLES = """\
examples:
  swarm-node chat --model PATH --initial-peers ADDR
  swarm-node chat --model PATH --initial-peers ADDR --system "You answer in French." --temperature 0.7
  swarm-node chat --model PATH --initial-peers ADDR --load chat.json
  printf 'Hello!\\nAnd now in Latin.\\n' | swarm-node chat --model PATH --initial-peers ADDR

Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves; /help shows the commands.
From a pipe, each line is a message, and the first error ends the chat with its exit code.
"""
DEFAULT_MAX_NEW_TOKENS = 1024
QUOTES = '"""'
"""A line of these begins and ends a message of several lines, where lines are read one by one."""

COMMANDS = {
    "help": ("", "show this"),
    "model": ("", "the model, its context and how much of it is used"),
    "route": ("", "the peers that computed the last answer, and what each of them cost"),
    "system": ("[TEXT|none]", "set the system prompt, remove it, or show it"),
    "set": ("[NAME VALUE]", "set an option of the answers, or show them; NAME none unsets it"),
    "retry": ("", "answer the last message again"),
    "clear": ("", "forget the chat; system prompt and options stay"),
    "save": ("FILE", "write the chat to a file"),
    "load": ("FILE", "go on with a saved chat"),
    "exit": ("", "leave (Ctrl-D does, too)"),
}
"""Name: (argument, what it does)."""
_ALIASES = {"quit": "exit", "bye": "exit", "?": "help"}


def add_chat(command: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """``positional``: the model is the command's first word, and must be given."""
    if positional:
        command.add_argument("model", metavar="PATH_OR_NAME", help=MODEL_HELP)
    else:
        add_model(command)
    add_peers(command)
    command.add_argument("--system", type=typed_text, default="", metavar="TEXT", help="the system prompt")
    command.add_argument(
        "--load", default=None, metavar="FILE", help="go on with a chat that /save has written"
    )
    command.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=None,
        metavar="N",
        help=f"longest answer, in tokens (default: {DEFAULT_MAX_NEW_TOKENS})",
    )
    add_sampling(command, unset=True)
    add_speculate(command, unset=True)
    add_draft(command)
    command.add_argument(
        "--no-history",
        dest="history",
        action="store_false",
        help="do not keep what is typed in ~/.swarm-node (or $SWARM_NODE_HOME)",
    )
    command.add_argument(
        "--plain", action="store_true", help="show answers as they are, without Markdown and movement"
    )
    add_wire_codec(command)
    add_sideband(command)
    add_compute(command, "the head's weights")
    add_wait(command)


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    argument: str = ""


def parse(text: str) -> str | Command:
    """A message, as the model gets it, or a command. A message that begins with a slash is typed with two.

    Raises UsageError for a command that there is not, and for one whose argument is missing or too many.
    """
    text = text.strip("\n")
    if text.startswith("//"):
        return text[1:]
    if not text.startswith("/"):
        return text
    word, _, argument = text[1:].partition(" ")
    name, argument = _ALIASES.get(word, word), argument.strip()
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = (
            f"Did you mean /{near[0]}?"
            if near
            else "Type /help for the commands, or // for a text with a slash."
        )
        raise UsageError(f"there is no command /{word}", hint=hint)
    usage = COMMANDS[name][0]
    if bool(argument) > bool(usage) or (usage and not usage.startswith("[") and not argument):
        raise UsageError(f"/{name} takes {usage or 'no argument'}", hint=f"Type: /{name} {usage}".rstrip())
    return Command(name, argument)


def _flag(text: str) -> bool:
    if text not in ("true", "false", "on", "off"):
        raise ValueError
    return text in ("true", "on")


_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (float, "a number"),
    "top_k": (int, "a whole number"),
    "top_p": (float, "a number"),
    "min_p": (float, "a number"),
    "repetition_penalty": (float, "a number"),
    "frequency_penalty": (float, "a number"),
    "presence_penalty": (float, "a number"),
    "seed": (int, "a whole number"),
    "max_new_tokens": (int, "a whole number"),
    "stop": (str, "a text"),
    "ignore_eos": (_flag, "true or false"),
    "speculate": (str, "auto or off"),
}
SETTINGS = tuple(_KINDS)
"""Options of ``generate`` that ``/set`` takes."""


def parse_setting(argument: str) -> tuple[str, Any]:
    """``NAME VALUE`` → the option and its value; None unsets it. Whether the value is possible is for the
    client to say. Raises UsageError."""
    name, _, text = argument.partition(" ")
    name, text = name.replace("-", "_"), text.strip()
    if name not in _KINDS:
        near = difflib.get_close_matches(name, _KINDS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no option {name!r}", hint=f"{hint}Options: {', '.join(_KINDS)}.")
    kind, what = _KINDS[name]
    if text == "none":
        return name, None
    try:
        return name, kind(text.removeprefix("=").strip() if kind is not str else text)
    except ValueError:
        raise UsageError(
            f"{name} is {what}, not {text!r}" if text else f"/set {name} lacks a value",
            hint=f"Type: /set {name} VALUE, or none for the default.",
        ) from None


class LineJoiner:
    """Messages from single lines: a line that ends in a backslash goes on in the next, and so does what
    begins with three quotes until three quotes end a line."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._quoted = False

    @property
    def is_open(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._quoted or bool(self._lines)

    def push(self, line: str) -> str | None:
        """The message that ``line`` completes; None if it goes on."""
        if self._quoted:
            if not line.rstrip().endswith(QUOTES):
                self._lines.append(line)
                return None
            self._lines.append(line.rstrip().removesuffix(QUOTES))
            return self.end()
        if not self._lines and line.lstrip().startswith(QUOTES):
            rest = line.lstrip().removeprefix(QUOTES)
            if rest.rstrip().endswith(QUOTES):
                return rest.rstrip().removesuffix(QUOTES)
            self._quoted, self._lines = True, [rest]
            return None
        if line.endswith("\\"):
            self._lines.append(line[:-1])
            return None
        self._lines.append(line)
        return self.end()

    def end(self) -> str:
        """The input is over: what there is of a message."""
        text = "\n".join(self._lines)
        self._lines, self._quoted = [], False
        return text.strip("\n")
