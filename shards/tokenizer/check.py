"""What a model's tokenizer may do with a text: bounded growth, and expressions that take linear time.

Expressions in a tokenizer.json come with the weights and run on texts of strangers; the library's engine
backtracks, and panics after ten million steps. Those of ``splitting.LINEAR`` were tried with long runs of
each kind of character; a tokenizer with any other encodes in a process that can be ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from ...swarm.errors import CheckpointError, UnsupportedModelError
from .splitting import LINEAR
from .token_bytes import byte_spelling

MAX_GROWTH = 64
"""Its replacements together may make a text, or a token, this many times longer; 3 is usual, in bytes."""
MAX_STEPS = 32
"""Normalizing, splitting or decoding may each have this many steps; some ten are usual."""
MAX_WORD_CHARACTERS = 1000
"""WordPiece, which takes quadratic time, looks up words of at most this many characters; 100 are usual."""
MAX_POST_PROCESSOR = 64 * 1024
"""At most this many characters may be put around a text; a thousand are usual."""

_MODELS = frozenset(("BPE", "WordLevel"))
"""The models that take linear time. Unigram takes the length of its longest token at each character,
WordPiece the square of a word's length times that of its prefix."""
_MARKING, _MARKED = frozenset(("ByteLevel", "Metaspace")), 5
"""Steps that spell bytes as characters of two, or put one of up to four before each piece; and how many times
longer each makes a text at most. They add up: what one has spelled the next spells again."""
_NORMALIZERS = frozenset(
    ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt", "Prepend", "Replace")
    + ("ByteLevel", "BertNormalizer")
)
_PRE_TOKENIZERS = frozenset(
    ("ByteLevel", "Split", "ActivationPrecision", "Punctuation", "Whitespace", "WhitespaceSplit", "Metaspace")
    + ("BertPreTokenizer", "CharDelimiterSplit", "UnicodeScripts", "FixedLength")
)
_KEEPING = frozenset(
    ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "ByteLevel", "ActivationPrecision", "Metaspace")
)
"""Steps that remove nothing."""
_COMPOSED = 4
"""NFC makes one character of at most this many."""
_DECODERS = frozenset(
    ("ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "Replace", "WordPiece", "BPEDecoder", "CTC")
)


def takes_linear_time(backend: Backend, where: str) -> bool:
    """Whether encoding takes linear time as far as is known here. Decoding always does, as it must.

    Raises CheckpointError for steps that multiply texts, and UnsupportedModelError for decoding with
    expressions, or by steps that are not known.
    """
    normalizing = list(_steps(backend.normalizer, "normalizers"))
    splitting = list(_steps(backend.pre_tokenizer, "pretokenizers"))
    decoding = list(_steps(backend.decoder, "decoders"))
    for steps in ([*normalizing, *splitting], decoding):
        if _growth(steps) > MAX_GROWTH:
            raise CheckpointError(f"the tokenizer of {where} makes texts over {MAX_GROWTH} times longer")
    for step in decoding:
        if step["type"] not in _DECODERS or _expression(step) is not None:
            raise UnsupportedModelError(
                f"the tokenizer of {where} decodes by {step['type']!r:.60} of an unknown form"
            )
    around = backend.post_processor
    if around is not None and len(around.__getstate__()) > MAX_POST_PROCESSOR:
        raise CheckpointError(f"the tokenizer of {where} puts too much around each text")
    if max(len(normalizing), len(splitting), len(decoding)) > MAX_STEPS:
        raise CheckpointError(f"the tokenizer of {where} takes over {MAX_STEPS} steps")
    model = backend.model
    if getattr(model, "max_input_chars_per_word", 0) > MAX_WORD_CHARACTERS:
        raise CheckpointError(
            f"the tokenizer of {where} looks up words of over {MAX_WORD_CHARACTERS} characters"
        )
    expressions = {_expression(step) for step in (*normalizing, *splitting)} - {None}
    return (
        type(model).__name__ in _MODELS
        and expressions <= LINEAR
        and all(step["type"] in _NORMALIZERS for step in normalizing)
        and all(step["type"] in _PRE_TOKENIZERS for step in splitting)
    )


@dataclass(frozen=True, slots=True)
class TokenReach:
    """No token stands for more than ``characters`` of a text, those in ``ignored`` not counted: it makes
    nothing of them, or one token of many."""

    characters: int
    ignored: str

    def fewest(self, text: str) -> int:
        """The least number of tokens that ``text`` has."""
        return -(-(len(text) - sum(map(text.count, self.ignored))) // self.characters)


def token_reach(backend: Backend) -> TokenReach | None:
    """So that a text is known to be too long before it is encoded. None where a step or a token may swallow
    text without bound."""
    normalizing = list(_steps(backend.normalizer, "normalizers"))
    steps = [*normalizing, *_steps(backend.pre_tokenizer, "pretokenizers")]
    if type(backend.model).__name__ != "BPE" or not all(map(_keeps_all, steps)):
        return None
    if any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return None  # with all the space beside it
    tokens = backend.get_vocab()
    if any(step["type"] == "ByteLevel" for step in steps):
        known = [spelling in tokens for spelling in byte_spelling()]
    elif getattr(backend.model, "byte_fallback", False):
        known = [f"<0x{byte:02X}>" in tokens for byte in range(256)]
    else:
        return None
    if not all(known[0x80:0xC0]):
        return None  # every character beyond ASCII has one of these bytes
    composed = any(step["type"] in ("NFC", "NFKC") for step in normalizing)
    ignored = "".join(chr(byte) for byte in range(0x80) if not known[byte])
    return TokenReach(max(map(len, tokens)) * (_COMPOSED if composed else 1), ignored)


def _keeps_all(step: dict[str, Any]) -> bool:
    """Whether a step of normalizing or splitting leaves a text no shorter than it was, but for composing."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return bool(pattern) and len(step["content"]) >= len(pattern)
    if step["type"] in ("Split", "Punctuation"):
        return step.get("behavior") != "Removed"
    return step["type"] in _KEEPING


def normalizes_in_linear_time(backend: Backend) -> bool:
    """Whether adding tokens takes linear time; they are normalized as texts are."""
    return {_expression(step) for step in _steps(backend.normalizer, "normalizers")} <= {None, *LINEAR}


def _steps(component: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The steps of a component, those of sequences one by one; none if there is no such component."""
    waiting = [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step[inner]
        else:
            yield step


def _expression(step: dict[str, Any]) -> str | None:
    pattern = step.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _growth(steps: list[dict[str, Any]]) -> float:
    growth = 1.0
    for step in steps:
        if step["type"] == "Replace":
            pattern = step["pattern"].get("String")
            new = len(step["content"].encode())
            # An expression may match nothing at all, and so between any two characters.
            growth *= 1 + new if not pattern else max(1.0, new / len(pattern.encode()))
        elif step["type"] in _MARKING:
            growth *= _MARKED
        else:
            texts = [value for value in step.values() if isinstance(value, str)]
            growth *= max(1.0, len(max(texts, key=len, default="")) / MAX_GROWTH)  # prefixes and the like
    return growth
