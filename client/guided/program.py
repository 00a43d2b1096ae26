"""Compiles guides to see what that takes; runs confined (``swarm.confined``), with llguidance alone.

Compiling depends on the guide and not on the model's tokens, so a vocabulary of bytes tells enough.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_EOS = 256


class _Bytes:
    """What llguidance reads of a tokenizer, by these names."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = _EOS
    tokens = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    special_token_ids = [_EOS]  # noqa: RUF012

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def opened(opening: dict[str, Any]) -> tuple[None, Callable[[str], str]]:
    """``limits`` of llguidance's parser, ``stack_bytes`` of the thread that compiles. Requests are grammars;
    the reply is why one cannot be, or nothing."""
    tokenizer: Any = _Bytes()
    vocabulary = LLTokenizer(tokenizer, n_vocab=_EOS + 1, eos_token=[_EOS])
    threading.stack_size(opening["stack_bytes"])
    thread = ThreadPoolExecutor(max_workers=1)

    def compiled(grammar: str) -> str:
        limits = LLParserLimits(verbose_errors=False, **opening["limits"])
        matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return str(matcher.get_error()) if matcher.is_error() else ""

    return None, lambda grammar: thread.submit(compiled, grammar).result()
