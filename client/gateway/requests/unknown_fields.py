"""Fields that nobody reads: told to the caller, or refused where they are misspelled."""

from __future__ import annotations

import re
from collections.abc import Container
from difflib import get_close_matches
from typing import Any

from ...http.body import MAX_SHOWN
from ...http.errors import refused
from .fields import BodyFields

MAX_UNKNOWN = 32
"""Unknown fields in one object."""
_CLOSE = 0.85
"""difflib's ratio; ``temprature`` and ``max_token`` are nearer."""
_NUMBER = re.compile(r"\[\d+\]")
_NOTHING: tuple[Any, ...] = ({}, [], "")


def passed_over(fields: BodyFields, harmless: Container[str] = ()) -> tuple[str, ...]:
    """The unread and unknown fields, inner objects included: the reply names them. ``harmless`` ones need no
    mention. Raises ApiError for a name that is nearly a known one, as a misspelled option would be ignored
    without notice."""
    unknown: dict[str, tuple[BodyFields, str]] = {}  # by how they are told
    for inner, name, value in fields.unread():
        if name not in harmless and value not in _NOTHING:
            unknown.setdefault(_NUMBER.sub("[]", inner.name(name[:MAX_SHOWN])), (inner, name[:MAX_SHOWN]))
    if len(unknown) > MAX_UNKNOWN:
        raise refused(next(iter(unknown)), f"is one of {len(unknown)} fields that this gateway does not know")
    for inner, name in unknown.values():
        if near := get_close_matches(name, sorted(inner.read), 1, cutoff=_CLOSE):
            raise refused(inner.name(name), f"is not known to this gateway; did you mean {near[0]!r}?")
    return tuple(unknown)
