"""JSON in which only a text differs from token to token: only it is written."""

from __future__ import annotations

import json

from ...http.body import to_json

quoted = json.encoder.encode_basestring_ascii
"""What ``to_json`` does with a string, without its detour."""
TEXT = "text to come"
"""Stands for the text in what a frame is made of."""


class TextFrame:
    def __init__(self, value: object) -> None:
        """``value``: with ``TEXT`` in it."""
        self._before, _, self._after = to_json(value).partition(quoted(TEXT))

    def around(self, text: str) -> str:
        return f"{self._before}{quoted(text)}{self._after}"
