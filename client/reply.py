"""The answer to a chat, read while it is made: what the model thinks apart from what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..shards.chat.template_set import texts_of
from .decoding.answer import TokenEvent
from .parsing.dialect import Dialect, dialect_of
from .parsing.feed import control
from .parsing.pieces import Piece, Thoughts, Words
from .parsing.reader import Reader

if TYPE_CHECKING:
    from ..shards.tokenizer.tokenizer import Tokenizer

END_TOKENS = 16
"""So many tokens at a prompt's end show whether it opens a model's thoughts."""


class Asked(Protocol):
    """A stream that has begun."""

    @property
    def prompt_token_ids(self) -> Sequence[int]: ...


class Reply:
    """``push`` the events of a ``stream``, ``flush`` at their end; both give the pieces that are certain by
    then. Calls of tools are text: nobody is there to answer them.

    ``is_chat``: False where all is text, as after a prompt without a chat template.
    """

    def __init__(self, tokenizer: Tokenizer, stream: Asked, *, is_chat: bool = True) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._tokenizer = tokenizer
        self._stream = stream
        self._is_chat = is_chat
        self._reader: Reader | None = None
        self._begun = False

    @property
    def content(self) -> str:
        """What the model has said."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """What it has thought."""
        return "".join(self._reasoning)

    def push(self, event: TokenEvent) -> list[Piece]:
        if not self._begun:
            self._begun = True
            self._reader = self._opened() if self._is_chat else None
        if self._reader is not None:
            return self._taken(self._reader.push(with_controls(event)))
        return self._taken([Words(event.text)] if event.text else [])

    def flush(self) -> list[Piece]:
        return self._taken(self._reader.flush()) if self._reader is not None else []

    def as_dict(self) -> dict[str, object]:
        """Two keys of the JSON of an answer."""
        return {"content": self.content, "reasoning_content": self.reasoning}

    def _opened(self) -> Reader | None:
        """None where the model has no form for thoughts."""
        dialect = dialect_of_chats(self._tokenizer)
        if not (dialect.thinks or dialect.has_channels):
            return None
        end = prompt_end(self._tokenizer, self._stream.prompt_token_ids)
        return dialect.reader({}, thinking=dialect.opened(end))

    def _taken(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            if isinstance(piece, Words):
                self._content.append(piece.text)
            elif isinstance(piece, Thoughts):
                self._reasoning.append(piece.text)
        return pieces


def dialect_of_chats(tokenizer: Tokenizer) -> Dialect:
    """How the tokenizer's model writes thoughts and calls."""
    return dialect_of(texts_of(tokenizer.chat_template), tokenizer.hidden_texts.values())


def prompt_end(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The end of a prompt with its control tokens, for ``Dialect.opened`` and ``closed``."""
    return tokenizer.decode(prompt[-END_TOKENS:], skip_special=False)


def with_controls(event: TokenEvent) -> str:
    """Its text with the control tokens that it leaves out, for a reader."""
    if not event.controls:
        return event.text
    text, at = "", 0
    for place, spelled in event.controls:
        text += event.text[at:place] + control(spelled)
        at = place
    return text + event.text[at:]
