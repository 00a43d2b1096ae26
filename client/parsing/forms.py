"""The forms of calls, and which of them a model writes: its chat template shows them, or its tokens are made
for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import gemma_calls, json_calls, python_calls, token_calls, xml_calls
from .feed import Feed, Reading, Spelling
from .pieces import ToolCall
from .typed import KnownTools

Read = Callable[[Feed, KnownTools], Reading[list[ToolCall]]]


@dataclass(frozen=True, slots=True)
class Form:
    """``opens``: what calls begin with. ``read``: what follows it; raises Mismatch where that is no call."""

    opens: str
    read: Read


def forms_of(shows: Callable[[str], bool], spell: Spelling) -> list[Form]:
    """``shows``: whether the model knows a word, by its template or its tokens."""
    forms = [_tool_call(shows, spell)]
    if shows("<function="):
        forms.append(Form("<function=", _function(spell("</tool_call>"))))
    if shows("[TOOL_CALLS]"):
        forms.append(Form(spell("[TOOL_CALLS]"), _mistral(spell("[CALL_ID]"), spell("[ARGS]"))))
    if shows("<|python_tag|>"):
        forms.append(Form(spell("<|python_tag|>"), lambda feed, tools: json_calls.whole(feed, tools.names)))
    if shows("<minimax:tool_call>"):
        forms.append(Form(spell("<minimax:tool_call>"), _minimax(spell("</minimax:tool_call>"))))
    if shows("<｜tool▁calls▁begin｜>"):
        forms.append(_deepseek(spell))
    if shows("<|tool_calls_section_begin|>"):
        forms.append(_kimi(spell))
    if shows("<|tool_call>") and shows('<|"|>'):
        forms.append(Form(spell("<|tool_call>"), _gemma(spell('<|"|>'), spell("<tool_call|>"))))
    if shows("<function_calls>"):
        forms.append(Form(spell("<function_calls>"), _olmo(spell("</function_calls>"))))
    if shows("<|python_start|>"):
        forms.append(Form(spell("<|python_start|>"), _llama4(spell("<|python_end|>"))))
    if shows("<seed:tool_call>"):
        forms.append(Form(spell("<seed:tool_call>"), _in_tag(spell("</seed:tool_call>"))))
    forms += (
        Form(spell(opens), _json(spell(closes))) for opens, closes in _JSON_TAGS.items() if shows(opens)
    )
    return forms


_JSON_TAGS = {
    "<|tool_call|>": "<|/tool_call|>",  # Granite and Phi
    "<TOOLCALL>": "</TOOLCALL>",  # Nemotron
    "<tool_calls>": "</tool_calls>",  # Apriel and Hunyuan
    "<|START_ACTION|>": "<|END_ACTION|>",  # Command
}
"""The tags around calls in JSON."""


def wholes_of(shows: Callable[[str], bool], spell: Spelling) -> list[Read]:
    """Those of answers that are nothing but calls."""
    wholes: list[Read] = [
        lambda feed, tools: json_calls.whole(feed, tools.names),
        lambda feed, tools: python_calls.whole(feed, tools.names),
    ]
    if shows("<|observation|>") and not shows("<arg_key>"):
        again, close = spell("<|assistant|>"), spell("<|observation|>")
        wholes.append(lambda feed, tools: token_calls.named(feed, tools.names, again, close))
    return wholes


def _tool_call(shows: Callable[[str], bool], spell: Spelling) -> Form:
    """Between ``<tool_call>`` and ``</tool_call>``: JSON (Hermes, Qwen), or as Qwen3-Coder or GLM write
    it."""
    close = spell("</tool_call>")
    keys = spell("<arg_key>"), spell("</arg_key>")
    values = spell("<arg_value>"), spell("</arg_value>")
    coder, glm = shows("<function="), shows("<arg_key>")

    def read(feed: Feed, tools: KnownTools) -> Reading[list[ToolCall]]:
        if not coder and not glm:
            return (yield from json_calls.tagged(feed, tools.names, close))
        yield from feed.space()
        if (yield from feed.is_next("{", "[")):
            return (yield from json_calls.tagged(feed, tools.names, close))
        if glm:
            return (yield from xml_calls.key_values(feed, tools, keys, values, close))
        return (yield from _in_tag(close)(feed, tools))

    return Form(spell("<tool_call>"), read)


def _function(close: str) -> Read:
    """Qwen3-Coder often leaves ``<tool_call>`` out."""

    def read(feed: Feed, tools: KnownTools) -> Reading[list[ToolCall]]:
        call = yield from xml_calls.function(feed, tools)
        if (yield from feed.is_next(close)):
            yield from feed.space()
            yield from feed.literal(close, at_end=True)
        return [call]

    return read


def _in_tag(close: str) -> Read:
    """A function as Qwen3-Coder and Seed-OSS write it, up to the outer tag's end."""

    def read(feed: Feed, tools: KnownTools) -> Reading[list[ToolCall]]:
        yield from feed.space()
        yield from feed.literal("<function=")
        call = yield from xml_calls.function(feed, tools)
        yield from feed.space()
        yield from feed.literal(close, at_end=True)
        return [call]

    return read


def _gemma(quote: str, close: str) -> Read:
    return lambda feed, tools: gemma_calls.call(feed, tools.names, quote, close)


def _olmo(close: str) -> Read:
    return lambda feed, tools: python_calls.lines(feed, tools.names, close)


def _llama4(close: str) -> Read:
    return lambda feed, tools: python_calls.tagged(feed, tools.names, close)


def _json(close: str) -> Read:
    return lambda feed, tools: json_calls.tagged(feed, tools.names, close)


def _mistral(call_id: str, args: str) -> Read:
    return lambda feed, tools: token_calls.mistral(feed, tools.names, call_id, args)


def _minimax(close: str) -> Read:
    return lambda feed, tools: xml_calls.invocations(feed, tools, close)


def _deepseek(spell: Spelling) -> Form:
    call = spell("<｜tool▁call▁begin｜>"), spell("<｜tool▁call▁end｜>")
    sep, close = spell("<｜tool▁sep｜>"), spell("<｜tool▁calls▁end｜>")
    return Form(
        spell("<｜tool▁calls▁begin｜>"),
        lambda feed, tools: token_calls.deepseek(feed, tools.names, call, sep, close),
    )


def _kimi(spell: Spelling) -> Form:
    call = spell("<|tool_call_begin|>"), spell("<|tool_call_end|>")
    sep, close = spell("<|tool_call_argument_begin|>"), spell("<|tool_calls_section_end|>")
    return Form(
        spell("<|tool_calls_section_begin|>"),
        lambda feed, tools: token_calls.kimi(feed, tools.names, call, sep, close),
    )
