"""A value of a file as a message shows it: in one short piece, for any type."""

from __future__ import annotations

import reprlib

_LONGEST = 100
"""A text or another value is shown with this many characters; longer ones lose their middle."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _LONGEST


def shown(value: object) -> str:
    """As ``repr``, cut short: also of long lists and deep ones."""
    return _repr.repr(value)
