"""A model's chat templates: often one, sometimes several, of which each chat takes one by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...swarm.errors import UsageError
from ..formats.gguf.header import GGUFHeader
from ..formats.values.fields import Fields
from .control_tokens import ControlTokens
from .template import ChatTemplate

DEFAULT, WITH_TOOLS = "default", "tool_use"

TemplateSource = str | Mapping[str, str]
"""The Jinja text of a model's only template, or of each by its name."""


class ChatTemplates:
    """``source``: Jinja text, or several by name: ``tool_use`` renders chats that come with tools, even none,
    and ``default`` all others; further names are not used. See ``ChatTemplate`` for the rest.
    """

    def __init__(
        self,
        source: TemplateSource,
        special_tokens: Mapping[str, str],
        origin: str = "the model",
        control: ControlTokens | None = None,
    ) -> None:
        self.source = source
        self._by_name = {
            name: ChatTemplate(text, special_tokens, origin, control)
            for name, text in ({DEFAULT: source} if isinstance(source, str) else source).items()
        }
        self._origin = origin

    @property
    def variables(self) -> frozenset[str]:
        """Names that those in use read and do not set themselves."""
        used = [self._by_name[name] for name in (DEFAULT, WITH_TOOLS) if name in self._by_name]
        return frozenset().union(*(template.variables for template in used))

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **more: Any
    ) -> str:
        """As ``ChatTemplate.render``. UsageError also where the model has no template for such a chat."""
        template = self._chosen(with_tools=more.get("tools") is not None)
        return template.render(messages, add_generation_prompt=add_generation_prompt, **more)

    def render_apart(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **more: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """As ``ChatTemplate.render_apart``, and ``render`` here."""
        template = self._chosen(with_tools=more.get("tools") is not None)
        return template.render_apart(messages, add_generation_prompt=add_generation_prompt, **more)

    def close(self) -> None:
        for template in self._by_name.values():
            template.close()

    def _chosen(self, *, with_tools: bool) -> ChatTemplate:
        for name in (WITH_TOOLS, DEFAULT) if with_tools else (DEFAULT,):
            if name in self._by_name:
                return self._by_name[name]
        raise UsageError(
            f"{self._origin} has no chat template for this chat, only {', '.join(sorted(self._by_name))}",
            hint="Send tools with it, or plain text instead (--raw on the command line).",
        )


def texts_of(source: TemplateSource | None) -> str:
    """All of it as one text."""
    return source if isinstance(source, str) else "\n".join((source or {}).values())


_KEY = "tokenizer.chat_template"


def gguf_templates(header: GGUFHeader) -> TemplateSource | None:
    """``tokenizer.chat_template``, and ``tokenizer.chat_template.NAME`` for each other name that
    ``tokenizer.chat_templates`` lists. None if there are none. CheckpointError for a value that is not a
    text."""
    read = Fields(header.metadata, str(header.file.path))
    only = read.optional_text(_KEY)
    names = header.strings("tokenizer.chat_templates")
    named = {name: read.text(f"{_KEY}.{name}") for name in names if read.has(f"{_KEY}.{name}")}
    if only is not None:
        named[DEFAULT] = only
    return only if set(named) <= {DEFAULT} else named
