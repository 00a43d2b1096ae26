"""What an answer is made of, in the order in which it comes. Nobody changes a part; it is not frozen, since
making a frozen one takes twice as long, and one is made for each token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...decoding.answer import FinishReason, TokenEvent
from ...generation import Generation
from ...parsing.pieces import ToolCall

Reason = FinishReason | Literal["tool_calls"]
"""Why an answer is over; "tool_calls": to have tools called. It never is "unfinished"."""


@dataclass(slots=True)
class Text:
    """``tokens``: whose log-probabilities come with it; none where they are not asked for."""

    text: str
    tokens: tuple[TokenEvent, ...] = ()


@dataclass(slots=True)
class Thinking:
    """What the model says to itself. ``tokens``: as in Text."""

    text: str
    tokens: tuple[TokenEvent, ...] = ()


@dataclass(slots=True)
class Call:
    """A complete call of a tool."""

    call: ToolCall


@dataclass(slots=True)
class Finish:
    """The last part. ``tokens``: as in Text, those that no text came with."""

    reason: Reason
    result: Generation
    tokens: tuple[TokenEvent, ...] = ()


Part = Text | Thinking | Call | Finish


@dataclass(slots=True)
class Said:
    """A choice's parts together, once all were added. ``text_tokens``: those of ``tokens`` that texts came
    with."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[TokenEvent] = field(default_factory=list)
    text_tokens: list[TokenEvent] = field(default_factory=list)
    _finish: Finish | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def thinking(self) -> str:
        return "".join(self.thoughts)

    @property
    def finish(self) -> Finish:
        if self._finish is None:
            raise ValueError("the choice is not over")
        return self._finish

    def add(self, part: Part) -> None:
        match part:
            case Text():
                self.texts.append(part.text)
                self.tokens += part.tokens
                self.text_tokens += part.tokens
            case Thinking():
                self.thoughts.append(part.text)
                self.tokens += part.tokens
            case Call():
                self.calls.append(part.call)
            case Finish():
                self.tokens += part.tokens
                self._finish = part


@dataclass(slots=True)
class Usage:
    """Tokens. ``prompt``: of all prompts together, each counted once, however many answers it has;
    ``cached``: of those, what the peers held from before, as far as prompts are known to be read.
    ``thinking``: of the completion's, those that the model thought with."""

    prompt: int
    completion: int = 0
    thinking: int = 0
    cached: int = 0
