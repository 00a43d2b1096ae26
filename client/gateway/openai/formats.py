"""What a request says of the form of its answer, as a guide for decoding."""

from __future__ import annotations

import json
from typing import Any

from ...guided.guide import Guide
from ...http.errors import wrong
from ..requests.fields import BodyFields
from ..requests.guides import made, schema_guide
from ..requests.tools import Tools
from .known_fields import passed_over

MAX_SOURCE = 256 * 1024
MAX_CHOICES = 1024


def read_format(body: BodyFields, tools: Tools) -> tuple[Guide | None, str]:
    """The guide, and the field that asks for it. A required tool call is one too."""
    asked = [
        (guide, field)
        for guide, field in (
            (_response_format(body), "response_format"),
            (_structured_outputs(body), "structured_outputs"),
        )
        if guide is not None
    ]
    if len(asked) > 1:
        raise body.wrong("structured_outputs", "cannot be given beside response_format")
    if asked and tools.definitions and asked[0][1] != "response_format":
        raise body.wrong(asked[0][1], 'cannot be given beside tools, unless tool_choice is "none"')
    if tools.forced is not None:
        return tools.forced, "tools"
    return asked[0] if asked else (None, "")


def _response_format(body: BodyFields) -> Guide | None:
    form = body.inner("response_format")
    if form is None:
        return None
    kind = form.one_of("type", ("text", "json_object", "json_schema"), required=True)
    if kind != "json_schema":
        form.refuse("json_schema", why="is for type 'json_schema'")
    if kind == "text":
        form.refuse("schema", why="is for type 'json_object'")
        return None
    if kind == "json_object":
        beside = form.inner("schema")  # as llama.cpp and others have it
        if beside is None:
            return Guide("json_object", "")
        wished = beside.raw_all()
        return made(form.name("schema"), lambda: schema_guide(wished, strict=False))
    form.refuse("schema", why="belongs into json_schema, beside its name")
    inner = form.required_inner("json_schema")
    inner.text("name", longest=256)
    inner.text("description", longest=64 * 1024)
    schema = inner.raw("schema")
    if not isinstance(schema, dict):
        raise inner.wrong("schema", "must be a JSON schema, which is an object")
    strict = inner.flag("strict") or False
    return made(inner.name("schema"), lambda: schema_guide(schema, strict=strict))


def _structured_outputs(body: BodyFields) -> Guide | None:
    outputs = body.inner("structured_outputs")
    if outputs is None:
        return None
    for name in ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"):
        outputs.refuse(name, False)
    outputs.refuse("structural_tag")
    given = [name for name in ("json", "regex", "grammar", "choice", "json_object") if outputs.has(name)]
    if unknown := passed_over(outputs):
        raise wrong(unknown[0], "is not known to this gateway")
    if len(given) != 1:
        raise body.wrong("structured_outputs", "must have one of json, regex, grammar, choice, json_object")
    field = outputs.name(given[0])
    match given[0]:
        case "json":
            schema = _schema(outputs)
            return made(field, lambda: Guide("json_schema", schema))
        case "regex":
            regex = outputs.required_text("regex", longest=MAX_SOURCE)
            return made(field, lambda: Guide("regex", regex))
        case "grammar":
            grammar = outputs.required_text("grammar", longest=MAX_SOURCE)
            return made(field, lambda: Guide("lark", grammar))
        case "choice":
            texts = outputs.texts("choice", most=MAX_CHOICES, longest=MAX_SOURCE)
            if not all(texts) or not texts:
                raise outputs.wrong("choice", "must hold texts that are not empty")
            options = " | ".join(json.dumps(text) for text in texts)
            return made(field, lambda: Guide("lark", f"start: {options}"))
    return Guide("json_object", "") if outputs.flag("json_object") else None


def _schema(outputs: BodyFields) -> dict[str, Any]:
    """An object, or the text of one."""
    value = outputs.raw("json")
    if isinstance(value, str):
        try:
            value = json.loads(outputs.required_text("json", longest=MAX_SOURCE))
        except (ValueError, RecursionError):
            raise outputs.wrong("json", "is not JSON") from None
    if not isinstance(value, dict):
        raise outputs.wrong("json", "must be a JSON schema, which is an object")
    return value
