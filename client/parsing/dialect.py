"""How a model writes thoughts and calls, as its chat template and its tokens tell: never its name."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .channels import CHANNEL, MESSAGE, ChannelReader
from .feed import BEGIN, END, Spelling
from .forms import Form, Read, forms_of, wholes_of
from .reader import AnswerReader, Reader
from .typed import KnownTools

_THINKS = {
    ("<think>",): "</think>",
    ("[THINK]",): "[/THINK]",
    ("<seed:think>",): "</seed:think>",
    ("<seed:think>", "<seed:cot_budget_reflect>"): "</seed:think>",  # with a budget of none
    ("<|START_THINKING|>",): "<|END_THINKING|>",
    ("<|channel>", "thought"): "<channel|>",  # Gemma 4
}
"""What is around thoughts; the first word of what opens them tells whether a model knows it."""

Ids = Literal["usual", "nine", "numbered"]
"""Kinds of ids of calls: OpenAI's; Mistral's templates take nine letters and digits; Kimi's show the function
and the number of the call."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """``thinks``: the tags around thoughts, ``forms``: those of calls, all spelled as a feed has them;
    ``wholes``: of answers that are nothing but calls.
    ``has_channels``: as gpt-oss; the others say nothing then. ``calls_as_json``: an answer is one JSON object
    or list, to call tools; ``call_begins``: what calls begin with otherwise, spelled outside a feed."""

    thinks: Mapping[str, str]
    forms: tuple[Form, ...]
    wholes: tuple[Read, ...] = ()
    ids: Ids = "usual"
    has_channels: bool = False
    calls_as_json: bool = True
    call_begins: tuple[str, ...] = ()

    def opened(self, end: str) -> str:
        """What ends the thoughts that a prompt with this ``end`` has opened; "" where it has not. Control
        tokens are spelled out in it."""
        end = end.rstrip()
        return next((closes for opens, closes in self.thinks.items() if end.endswith(plain(opens))), "")

    def closed(self, end: str) -> bool:
        """Whether a prompt with this ``end`` says that there are no thoughts to come."""
        return end.rstrip().endswith(tuple(map(plain, self.thinks.values())))

    def continued(self, text: str) -> str:
        """As ``opened``, of an assistant's ``text`` that is gone on with."""
        for opens, closes in self.thinks.items():
            if text.rfind(plain(opens)) > text.rfind(plain(closes)):
                return closes
        return ""

    def reader(
        self,
        schemas: Mapping[str, Any],
        *,
        thinking: str = "",
        forced: bool = False,
        guided: bool = False,
        continues: bool = False,
        parallel: bool = True,
    ) -> Reader:
        """``schemas``: of the tools' arguments, by name. ``thinking``: what ends the thoughts that the prompt
        has opened. ``guided``: a guide makes the answer, and knows of no channels. ``forced``: all but
        thoughts is a call. ``continues``: the prompt ends within a message."""
        tools = KnownTools(schemas)
        if self.has_channels and not guided:
            return ChannelReader(self._call_id, tools=tools, continues=continues, parallel=parallel)
        return AnswerReader(
            self._call_id,
            thinks={} if continues else self.thinks,
            thinking=thinking,
            forms=self.forms,
            wholes=self.wholes,
            tools=tools,
            forced=forced,
            parallel=parallel,
        )

    def _call_id(self, name: str, number: int) -> str:
        if self.ids == "numbered":
            return f"functions.{name}:{number}"
        return secrets.token_hex(5)[:9] if self.ids == "nine" else f"call_{secrets.token_hex(12)}"


def dialect_of(template: str, special: Iterable[str]) -> Dialect:
    """``template``: the source of the chat template. ``special``: spellings of the control tokens."""
    special = frozenset(special)
    spell = Spelling(special)

    def shows(word: str) -> bool:
        return word in template or word in special

    if shows("<|channel|>") and {plain(CHANNEL), plain(MESSAGE)} <= special:
        return Dialect({}, (), has_channels=True)
    ids: Ids = "usual"
    if shows("<|tool_calls_section_begin|>"):
        ids = "numbered"
    elif shows("[TOOL_CALLS]"):
        ids = "nine"
    thinks = {
        "".join(map(spell, opens)): spell(closes)
        for opens, closes in _THINKS.items()
        if shows(opens[0]) or shows(closes)
    }
    forms = tuple(forms_of(shows, spell))
    begins = tuple(begin for form in forms if shows(begin := plain(form.opens)))
    as_json = set(begins) <= _BESIDE_JSON
    wholes = tuple(wholes_of(shows, spell))
    return Dialect(thinks, forms, wholes, ids, calls_as_json=as_json, call_begins=begins)


_BESIDE_JSON = {"<|python_tag|>", "<|python_start|>"}
"""Llama's models put this before calls of some tools, and write others as JSON alone."""


def plain(word: str) -> str:
    """As it is spelled outside a feed."""
    return word.replace(BEGIN, "").replace(END, "")
