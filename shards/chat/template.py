"""A model's chat template, rendered as transformers renders it, in a process that can be ended.

A template is a program that comes with the weights, perhaps from peers: it may run for ever, take all memory,
or hold the interpreter. Its output is bounded, and its error texts are made printable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...swarm.confined.process import Bounds, ConfinedProcess, EndedError
from ...swarm.errors import ChatTemplateError, UsageError
from ...swarm.terminal_text import one_line
from .control_tokens import ControlTokens, free_characters

MAX_SOURCE = 2**20
"""A template has at most this many characters; the longest in use have some ten thousand."""
BOUNDS = Bounds()
"""The bounds of rendering one chat; a millisecond and a few MiB are usual."""
_PROGRAM = Path(__file__).with_name("program.py")
_INSTEAD = "Send plain text instead (--raw on the command line), or get the model from another source."


class ChatTemplate:
    """``source``: Jinja text. ``special_tokens``: ``bos_token``, ``eos_token`` and the like, for its use.
    ``origin``: the model, for messages. ``control``: which tokens only the template may write.

    Nothing runs before it is first used. Every use blocks, in the worst case for ``BOUNDS.wall_s``, and
    raises ChatTemplateError for a source that is not a template, or that takes more than it may.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        origin: str = "the model",
        control: ControlTokens | None = None,
    ) -> None:
        self.source = source
        self._control = control or ControlTokens(())
        self._origin = origin
        self._special_tokens = dict(special_tokens)
        self._process = ConfinedProcess(_PROGRAM, ("jinja2", "markupsafe"), source, BOUNDS)
        self._variables: frozenset[str] | None = None

    @property
    def variables(self) -> frozenset[str]:
        """Names that it reads and does not set itself."""
        if self._variables is None:
            self._variables = self._opened()
        return self._variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        **more: Any,
    ) -> str:
        """The chat as one text, special tokens written out. ``continue_final_message``: it ends with the last
        message's content, to be continued. ``more`` goes to the template (``tools``, …).

        UsageError if the template refuses these messages.
        """
        chat, variables, end = self._begun(messages, more, add_generation_prompt, continue_final_message)
        return self._cut(self._rendered(chat, variables), end)

    def render_apart(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        **more: Any,
    ) -> tuple[str, list[tuple[int, int]]]:
        """As ``render``, and the ranges (start, end) of the text where the chat itself spells control tokens:
        they are text there."""
        chat, variables, end = self._begun(messages, more, add_generation_prompt, continue_final_message)
        marked = self._control.mark(chat, variables, self.source)
        if marked is None:
            return self._cut(self._rendered(chat, variables), end), []
        return marked.found(self._cut(self._rendered(marked.messages, marked.more), end))

    def _begun(
        self,
        messages: Sequence[Mapping[str, Any]],
        more: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
        """The chat, what else the template gets, and the mark at which the text is to end, or "". Raises
        UsageError."""
        chat, variables = self._read(messages, more)
        variables["add_generation_prompt"] = add_generation_prompt
        return chat, variables, self._opened_end(chat, variables) if continue_final_message else ""

    def _opened_end(self, chat: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """Mark where the last message's content ends; the mark. Raises UsageError."""
        content = chat[-1].get("content")
        if not isinstance(content, str) or not content:
            raise UsageError("the last message has no text to continue")
        mark = free_characters(1, self.source, [chat, variables])
        chat[-1]["content"] = content + mark + " "  # of which a template that trims leaves the mark
        return mark

    @staticmethod
    def _cut(text: str, end: str) -> str:
        """The text up to the mark ``end``."""
        if not end:
            return text
        before, found, after = text.rpartition(end)
        if not found:
            raise UsageError(
                "the last message cannot be continued: the model's chat template does not show it as is",
                hint="End the chat with a user's message, or ask for a turn of its own.",
            )
        return before if after.startswith(" ") else before.rstrip()

    @staticmethod
    def _read(
        messages: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Both as plain JSON. Raises UsageError."""
        if not messages:
            raise UsageError("a chat needs at least one message")
        chat = [_said(message) for message in messages]
        for message in chat:
            if not isinstance(message.get("role"), str):
                raise UsageError("each chat message needs a role, such as user, assistant or system")
        return chat, _plain(more)

    def _rendered(self, chat: list[dict[str, Any]], more: Mapping[str, Any]) -> str:
        variables = {"tools": None, "documents": None, **self._special_tokens, **more, "messages": chat}
        _ = self.variables  # raises for what is no template
        request = {"variables": variables, "characters": len(self.source) + _characters(variables)}
        try:
            reply = self._process.ask(request)
        except EndedError as error:
            raise self._ended(error) from None
        except (ValueError, RecursionError):
            raise UsageError("the chat holds a number or a nesting that is too large for JSON") from None
        if "too_much" in reply:
            raise self._wrong("was ended on these messages: it writes far more than it is given")
        for problem in ("refused", "failed"):
            if problem in reply:
                verb = "refuses" if problem == "refused" else "fails on"
                raise UsageError(
                    f"the model's chat template {verb} these messages: {one_line(reply[problem])}"
                )
        return str(reply["text"])

    def close(self) -> None:
        """End its process; it starts anew if it is used again."""
        self._process.close()

    def _opened(self) -> frozenset[str]:
        if len(self.source) > MAX_SOURCE:
            raise self._wrong(f"has {len(self.source)} characters, {MAX_SOURCE} are possible")
        try:
            reply = self._process.opened()
        except EndedError as error:
            raise self._ended(error) from None
        if "damaged" in reply:
            raise self._wrong(f"is damaged: {one_line(reply['damaged'])}")
        return frozenset(reply["variables"])

    def _ended(self, error: EndedError) -> ChatTemplateError:
        return self._wrong(f"was ended: {error}")

    def _wrong(self, what: str) -> ChatTemplateError:
        return ChatTemplateError(f"the chat template of {self._origin} {what}", hint=_INSTEAD)


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None, as in transformers: many templates print it, or fail on it, where they handle a
    missing key well. But a message that only calls tools says nothing, and some templates ask for that by
    ``content is none``: it is None here, and what renders makes of it what the template can take."""
    kept = ("content",) if message.get("tool_calls") else ()
    return {key: _plain(value) for key, value in message.items() if value is not None or key in kept}


def _plain(value: Any) -> Any:
    """The same out of plain JSON types only, so that a template cannot call methods of a caller's objects."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return f"<{type(value).__name__}>"


def _characters(value: Any) -> int:
    """The characters of all texts in it, keys included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value)) + sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
