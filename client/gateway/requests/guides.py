"""Guides for decoding, made of what a request holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....swarm.errors import UsageError
from ...guided.guide import Guide
from ...guided.schema_forms import plain, shape
from ...http.errors import said, wrong


def made(field: str, make: Callable[[], Guide]) -> Guide:
    """A guide that cannot be is the fault of ``field``: ApiError."""
    try:
        return make()
    except UsageError as error:
        raise wrong(field, said(error)) from None


def schema_guide(schema: dict[str, Any], *, strict: bool) -> Guide:
    """Unless ``strict``, the answer keeps to what it can of the schema. Raises UsageError."""
    if strict:
        return Guide("json_schema", schema)
    kept = plain(schema, lenient=True)
    return Guide("json_schema", kept, Guide("json_schema", shape(kept)))
