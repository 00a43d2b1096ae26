"""What any API asks of the gateway, read and checked. An API adds fields of its own in a subclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...guided.guide import Guide
from .messages import Chat
from .sampling import Sampling
from .thinking import Thinking
from .tools import Tools

MAX_MODEL_NAME = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``model``: None for the only one. ``stream``: in pieces, as they are made. ``logprobs``: None, or how
    many likely tokens beside each. ``guide_field``: which field asks for the guide. ``ignored``: fields that
    are not known. ``swarm_events``: a stream says what happens in the swarm, too."""

    model: str | None
    sampling: Sampling
    stream: bool = False
    logprobs: int | None = None
    guide: Guide | None = None
    guide_field: str = ""
    ignored: tuple[str, ...] = ()
    swarm_events: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Request):
    """``thinking``: what is wished of it; ``template``: further variables for the chat template.
    ``chat_field``: what holds the messages. ``forgets``: where they are longer than the context, the oldest
    are left out."""

    chat: Chat
    tools: Tools = field(default_factory=Tools)
    thinking: Thinking = None
    template: Mapping[str, Any] = field(default_factory=dict)
    chat_field: str = "messages"
    forgets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest(Request):
    """``prompts``: texts, or lists of token ids; none asks for no answer, only whether there could be one.
    ``echo``: they come before their answers. ``all_text``: control tokens spelled out in them are text
    too."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool = False
    all_text: bool = False
