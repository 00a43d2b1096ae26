"""A model's tokens as bytes, in the form that llguidance asks for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...shards.tokenizer.tokenizer import Tokenizer

_ANCHOR = "\x02"
"""Put before a text whose tokenizer would add a space to its beginning; no merge goes over it."""


MAX_TEXT_BYTES = 4096
"""A forced text of up to this many bytes is cut into tokens as the model would do it. Of a longer one only
the beginning is cut, in the simplest way; the rest comes up again."""
MAX_TOKEN_BYTES = 128
"""Tokens of up to this many bytes are looked for in a forced text."""


class Vocabulary:
    """What llguidance reads of a tokenizer, by these names: ``tokens`` are the bytes of each; those of
    ``special_token_ids`` never are text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """``vocab_size``: how many tokens the head has; a tokenizer may have fewer, or more."""
        special = tokenizer.special_ids() | tokenizer.eos_ids
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.special_token_ids = sorted(token for token in special if token < vocab_size)
        self._special = special

    @property
    def tokens(self) -> list[bytes]:
        """Read once, by llguidance, which keeps them in a form of its own."""
        return [self._tokenizer.token_bytes(token) for token in range(self._vocab_size)]

    def __call__(self, spelled: str) -> list[int]:
        """Tokens of a text that is forced: as the model would have it where that is exactly the text, and
        never a special one, though it is spelled out."""
        text = spelled.encode()
        if self._tokenizer.is_confined or len(text) > MAX_TEXT_BYTES:  # the event loop waits for it
            return self._greedy(text[:MAX_TEXT_BYTES])
        ids = self._encode(spelled)
        if self._are(ids, text):
            return ids
        ids = self._encode(_ANCHOR + spelled)
        for number, token in enumerate(ids):
            if self._bytes(token).endswith(_ANCHOR.encode()) and self._are(ids[number + 1 :], text):
                return ids[number + 1 :]
        return self._greedy(text)

    def _encode(self, spelled: str) -> list[int]:
        return self._tokenizer.encode(spelled, add_special=False, literal=[(0, len(spelled))])

    def _are(self, ids: list[int], text: bytes) -> bool:
        known = all(token < self._vocab_size and token not in self._special for token in ids)
        return known and b"".join(map(self._bytes, ids)) == text

    def _bytes(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token)

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        """Made when first a forced text has to be cut here, which most tokenizers do themselves."""
        return {text: token for token, text in enumerate(self.tokens) if token not in self._special}

    @cached_property
    def _longest(self) -> int:
        return min(max(map(len, self._by_bytes), default=0), MAX_TOKEN_BYTES)

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token first; ends where no token goes on."""
        ids, at = [], 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                token = self._by_bytes.get(text[at:end])
                if token is not None:
                    break
            else:
                break
            ids.append(token)
            at = end
        return ids
