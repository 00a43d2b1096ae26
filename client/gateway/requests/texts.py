"""Texts of a request that are the model's own language: prompts, and what vectors are made of."""

from __future__ import annotations

from typing import Any

from ...http.errors import wrong
from .fields import BodyFields, integers, kind_of, text_of
from .messages import MAX_TEXT

MAX_TEXT_TOKENS = 4 * 1024 * 1024
"""Token ids of one text at most: the body's bound is usually reached first."""


def read_texts(
    body: BodyFields, field: str, *, most: int, ids: bool = True
) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of up to ``most``, or with ``ids`` token ids in place of each. Raises ApiError."""
    value = body.raw(field)
    if isinstance(value, str):
        return (_text(value, body.name(field)),)
    if value is None:
        raise body.wrong(field, "is required")
    if not isinstance(value, list):
        kinds = "a text, a list of texts, or token ids" if ids else "a text or a list of texts"
        raise body.wrong(field, f"must be {kinds}, not {kind_of(value)}")
    if not value:
        raise body.wrong(field, "is empty")
    if ids and integers(value):
        return (_ids(value, body.name(field)),)
    if len(value) > most:
        raise body.wrong(field, f"has {len(value)} items, {most} are possible")
    return tuple(
        _ids(item, f"{body.name(field)}[{number}]")
        if ids and isinstance(item, list)
        else _text(item, f"{body.name(field)}[{number}]")
        for number, item in enumerate(value)
    )


def _text(value: object, name: str) -> str:
    text = text_of(value, name, MAX_TEXT)
    if not text:
        raise wrong(name, "is empty")
    return text


def _ids(value: list[Any], name: str) -> tuple[int, ...]:
    if not value:
        raise wrong(name, "is empty")
    if len(value) > MAX_TEXT_TOKENS:
        raise wrong(name, f"has {len(value)} token ids, {MAX_TEXT_TOKENS} are possible")
    if not integers(value):
        raise wrong(name, "must hold token ids, which are whole numbers")
    return tuple(value)
