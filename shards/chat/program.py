"""Renders one chat template, as transformers does; runs confined (``swarm.confined``), with Jinja alone.

Templates come with the model. They run in Jinja's immutable sandbox, which bounds what they reach but not
their time and memory; those are bounded by the process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHARACTERS, PER_CHARACTER = 2**20, 8
"""A template may write CHARACTERS, and PER_CHARACTER more for each one that it is given (JSON with an indent
and ``\\u`` escapes takes six)."""
MAX_CHARACTERS = 2**24
"""A template may write at most this many characters: more than any model's context."""
SHOWN = 300
"""At most this many characters of an error's text are shown."""


class Arguments(dict[str, Any]):
    """Those of a call: an object for a template that reads it, and its JSON for one that prints it, or adds
    it to a text, as DeepSeek's do."""

    def __str__(self) -> str:
        return _to_json(self)

    def __add__(self, text: str) -> str:
        return f"{self}{text}"

    def __radd__(self, text: str) -> str:
        return f"{text}{self}"


class GenerationTag(Extension):
    """``{% generation %}``: marks what the assistant wrote, for training; shown as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def opened(source: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, str]]]:
    """Compile. Returns the names that it reads and does not set itself (``variables``), or why it is not a
    template (``damaged``); and the function that renders it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        template = environment.from_string(source)
        tree = environment.parse(source)
        variables, asks = sorted(meta.find_undeclared_variables(tree)), _asks_for_no_content(tree)
    except RecursionError:
        return {"damaged": "it is nested too deep"}, lambda _: {}
    except (jinja2.TemplateError, SyntaxError, ValueError, ArithmeticError, TypeError) as error:
        return {"damaged": str(error)[:SHOWN]}, lambda _: {}
    return {"variables": variables}, lambda request: _rendered(template, asks, request)


def _asks_for_no_content(tree: nodes.Template) -> bool:
    """True if it tests ``content is none``, as DeepSeek's templates do for messages that only call tools."""
    asked = [test.node for test in tree.find_all(nodes.Test) if test.name == "none"]
    asked += (
        comparison.expr
        for comparison in tree.find_all(nodes.Compare)
        if any(isinstance(each.expr, nodes.Const) and each.expr.value is None for each in comparison.ops)
    )
    return any(_is_content(node) for node in asked)


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Name) and node.name == "content"


def _rendered(template: jinja2.Template, asks: bool, request: dict[str, Any]) -> dict[str, str]:
    """``request``: ``variables``, and ``characters``, of them and the template. ``asks``: the template knows
    messages whose content is none. From others it is left out, as in transformers; and where the template
    fails then, such as one that adds the content to a text, it is empty. The answer: see ``_written``."""
    _make_arguments(request["variables"]["messages"])
    silent = [
        each for each in request["variables"]["messages"] if each.get("content", "") is None and not asks
    ]
    for message in silent:
        del message["content"]
    answer = _written(template, request)
    if "text" in answer or not silent:
        return answer
    for message in silent:
        message["content"] = ""
    return _written(template, request)


def _make_arguments(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            for named in (call, call.get("function")) if isinstance(call, dict) else ():
                if isinstance(named, dict) and isinstance(named.get("arguments"), dict):
                    named["arguments"] = Arguments(named["arguments"])


def _written(template: jinja2.Template, request: dict[str, Any]) -> dict[str, str]:
    """The ``text``; or the template's reason to refuse the messages (``refused``), its error (``failed``), or
    that it writes ``too_much``."""
    room = min(MAX_CHARACTERS, CHARACTERS + PER_CHARACTER * request["characters"])
    pieces = []
    try:
        for piece in template.generate(request["variables"]):
            room -= len(piece)
            if room < 0:
                return {"too_much": ""}
            pieces.append(piece)
    except jinja2.TemplateError as error:
        return {"refused": str(error)[:SHOWN]}
    except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        return {"failed": str(error)[:SHOWN]}
    return {"text": "".join(pieces)}


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
