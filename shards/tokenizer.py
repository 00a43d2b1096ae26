"""Text to token ids and back."""

from __future__ import annotations


class Detokenizer:
    """Ids one by one to pieces of text that are whole characters."""

    def push(self, token: int) -> str:
        raise NotImplementedError

    def flush(self) -> str:
        raise NotImplementedError


class Tokenizer:
    eos_ids: frozenset[int]
    vocab_size: int

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        raise NotImplementedError

    def stream(self, skip_special: bool = True) -> Detokenizer:
        raise NotImplementedError

    @property
    def has_chat_template(self) -> bool:
        raise NotImplementedError

    def apply_chat_template(
        self, messages: list[dict[str, object]], add_generation_prompt: bool = True
    ) -> list[int]:
        raise NotImplementedError
