"""A model's chat template, rendered as transformers renders it.

Templates come with the model, so they run in Jinja's immutable sandbox and see nothing but plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..swarm.errors import CheckpointError, UsageError
from .generation_tag import GenerationTag


class ChatTemplate:
    """``source``: Jinja text. ``special_tokens``: ``bos_token``, ``eos_token`` and the like, for its use.

    ``variables``: names that it reads and does not set itself. CheckpointError: the source is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"the model's chat template is damaged: {error}") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **more: Any
    ) -> str:
        """The chat as one text, special tokens written out. ``more`` goes to the template (``tools``, …).

        UsageError where the template refuses these messages.
        """
        if not messages:
            raise UsageError("a chat needs at least one message")
        # Many templates print None or fail on it where they handle a missing key well.
        chat = [
            {key: _plain(value) for key, value in message.items() if value is not None}
            for message in messages
        ]
        for message in chat:
            if not isinstance(message.get("role"), str):
                raise UsageError("each chat message needs a role, such as user, assistant or system")
        try:
            return self._template.render(
                **{
                    "tools": None,
                    "documents": None,
                    **self._special_tokens,
                    **_plain(more),
                    "messages": chat,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise UsageError(f"the model's chat template refuses these messages: {error}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise UsageError(f"the model's chat template fails on these messages: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which would end up in the prompt.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


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
