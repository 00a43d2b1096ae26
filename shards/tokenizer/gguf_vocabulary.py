"""The tokens of a GGUF file: their spelling, their types, their roles."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ...swarm.errors import CheckpointError
from ..formats.gguf.config import gguf_eos_ids
from ..formats.gguf.header import GGUFHeader
from ..formats.values.fields import Fields
from ..formats.values.shown import shown
from .end_tokens import ALL_ENDS, FILL_MARKS, end_tokens, looks_like_a_mark

MAX_TOKEN_CHARACTERS = 8 * 1024
"""One token's spelling has at most this many characters; the longest in use have some hundred."""

_ROLES = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
"""The roles of tokens, as chat templates name them and as GGUF does."""
_SENTENCEPIECE_ROLES = {"bos": 1, "eos": 2, "unk": 0}
"""The roles' ids for a file with SentencePiece tokens that does not give them."""
_SHOWN_PARTS = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))
"""Marks of an answer in parts (gpt-oss), which the reader of the answer has to see."""
_TAG = "</s>"
"""Ends texts of SentencePiece models; where a file calls it normal, it is a tag of HTML."""
_NO_TEXT = "\ufffd"
"""The character that stands in a token whose bytes are not UTF-8."""


class TokenType(IntEnum):
    """llama.cpp's ``llama_token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """``ids``: of each token's spelling; ``types``: by id; ``special``: the spelling of ``bos_token`` and so
    on, as chat templates want them; ``ends``: ids that end an answer."""

    ids: dict[str, int]
    types: list[int]
    special: dict[str, str]
    ends: frozenset[int]

    def is_text(self, index: int) -> bool:
        """Whether pieces of a text may come together to this token."""
        return self.types[index] not in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)


def read_vocabulary(header: GGUFHeader) -> GGUFVocabulary:
    """CheckpointError for a damaged vocabulary. It must not be empty."""
    path = header.file.path
    tokens = header.strings("tokenizer.ggml.tokens")
    if max(map(len, tokens)) > MAX_TOKEN_CHARACTERS:
        raise CheckpointError(f"{path} has a token of over {MAX_TOKEN_CHARACTERS} characters")
    types = header.numbers("tokenizer.ggml.token_type")
    if types and len(types) != len(tokens):
        raise CheckpointError(f"{path} has {len(tokens)} tokens but {len(types)} token types")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if not token or (token in ids and _NO_TEXT in token):
            tokens[index] = token = f"[TOKEN_{index}]"  # nothing that a text could hold
        if ids.setdefault(token, index) != index:
            raise CheckpointError(f"{path} has the token {shown(token)} twice")
    kinds = [int(kind) for kind in types] or [int(TokenType.NORMAL)] * len(tokens)
    special = _special(Fields(header.metadata, str(path)), tokens, kinds)
    named = {token for token in gguf_eos_ids(header) if token < len(tokens)}
    if "eos_token" in special:
        named.add(ids[special["eos_token"]])
    found = {token: index for token, index in ids.items() if token in ALL_ENDS}
    if types and kinds[found.get(_TAG, 0)] == TokenType.NORMAL and found.get(_TAG) not in named:
        found.pop(_TAG, None)
    ends = end_tokens(named, found)
    roles = {ids[token] for token in special.values() if not types or looks_like_a_mark(token)}
    for index in (*found.values(), *roles, *(ids[token] for token in FILL_MARKS & ids.keys())):
        if kinds[index] != TokenType.UNKNOWN:
            kinds[index] = TokenType.CONTROL  # for any type in the file: it is never text
    for token in _SHOWN_PARTS & ids.keys():
        kinds[ids[token]] = TokenType.USER_DEFINED
    return GGUFVocabulary(ids, kinds, special, ends)


def _special(read: Fields, tokens: list[str], kinds: list[int]) -> dict[str, str]:
    sentencepiece = read.optional_text("tokenizer.ggml.model") == "llama"
    special = {}
    for role, key in _ROLES:
        name = f"tokenizer.ggml.{key}_token_id"
        token = read.optional_integer(name)
        if token is None:
            token = _SENTENCEPIECE_ROLES.get(role, len(tokens)) if sentencepiece else len(tokens)
            if token >= len(tokens) or kinds[token] not in (TokenType.CONTROL, TokenType.UNKNOWN):
                continue
        if token >= len(tokens):
            if role == "pad":  # shapes no answer: fine-tunes name one that they never added, or -1
                continue
            raise CheckpointError(f"{read.named(name)}: {token} is outside the vocabulary of {len(tokens)}")
        special[f"{role}_token"] = tokens[token]
    return special
