"""Encodes texts with one tokenizer; runs confined (``swarm.confined``), with the tokenizers library alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer


def opened(content: str) -> tuple[None, Callable[[dict[str, Any]], list[int]]]:
    """``content``: of a tokenizer.json. Requests have a ``text`` and whether to ``add_special`` tokens."""
    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(request: dict[str, Any]) -> list[int]:
        encoded = tokenizer.encode_batch_fast([request["text"]], add_special_tokens=request["add_special"])
        return list(encoded[0].ids)

    return None, encode
