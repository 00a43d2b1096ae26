"""The exact bytes that each token stands for: half characters included, which text cannot show."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNFINISHED = "\ufffd"
_OF_A_TEXT = ("Fuse", "Strip")
"""Decoding steps that leave a token's own bytes alone: Strip takes the space off the beginning of a text."""


class TokenBytes:
    """Of a vocabulary whose tokenizer decodes by known steps (byte-level BPE, SentencePiece): from a token's
    spelling. Of any other: what the token adds to a decoded text, where that is whole characters."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        steps = _decoding_steps(backend)
        kinds = [step["type"] for step in steps]
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._replacements: list[tuple[str, str]] = []
        self._known = bool(steps)
        for step in steps:
            if step["type"] == "Metaspace":
                self._replacements.append((step["replacement"], " "))
            elif step["type"] == "Replace" and "String" in step["pattern"]:
                self._replacements.append((step["pattern"]["String"], step["content"]))
            elif step["type"] not in ("ByteLevel", "ByteFallback", *_OF_A_TEXT):
                self._known = False
        self._anchor = () if self._known else _plain_token(backend)

    def of(self, token: int) -> bytes:
        """The bytes of a token; none for an id that is not a token, or whose bytes are not known."""
        spelling = self._backend.id_to_token(token)
        if spelling is None:
            return b""
        if not self._known:
            return self._added_by(token)
        if self._byte_level:
            table = byte_of_letter()
            try:
                return bytes(table[letter] for letter in spelling)
            except KeyError:  # an added token, spelled as it is
                return spelling.encode()
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(spelling)):
            return bytes([int(byte[1], 16)])
        for old, new in self._replacements:
            spelling = spelling.replace(old, new)
        return spelling.encode()

    def _added_by(self, token: int) -> bytes:
        context = self._backend.decode(self._anchor, skip_special_tokens=False)
        text = self._backend.decode([*self._anchor, token], skip_special_tokens=False)
        if not text.startswith(context) or _UNFINISHED in text[len(context) :]:
            return b""
        return text[len(context) :].encode()


def _decoding_steps(backend: Backend) -> list[dict[str, Any]]:
    """How tokens become text, a step each; none where the tokenizer has no decoder."""
    if backend.decoder is None:
        return []
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return steps


def _plain_token(backend: Backend) -> tuple[int, ...]:
    """Some token that is ordinary text: others are decoded behind it, as in the middle of a text."""
    for spelling in ("a", "e", "the", "1", "0"):
        token = backend.token_to_id(spelling)
        if token is not None:
            return (token,)
    return ()


def byte_spelling() -> list[str]:
    """Byte → letter, GPT-2's table: printable Latin-1 stands for itself, the rest follow from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


@cache
def byte_of_letter() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_spelling())}
