"""Encodes texts with one tokenizer: here, or confined (``swarm.confined``) with that library alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

_FRAME_TEXT = "a"
"""This text is encoded to see which tokens go around a text."""
_REST = ""
"""A name for text that is not an added token; no token can have this name."""


class TextEncoder:
    """Text → ids. ``markers``: tokens that steer the model though the vocabulary does not call them special,
    such as those that a chat template writes."""

    def __init__(self, backend: Tokenizer, markers: Sequence[str] = ()) -> None:
        self._backend = backend
        names = frozenset(markers)
        added = backend.get_added_tokens_decoder().items()
        self._steering = {
            token.content: index for index, token in added if token.special or token.content in names
        }
        unknown = getattr(backend.model, "unk_token", None)
        self._forbidden = {index for spelled, index in self._steering.items() if spelled != unknown}
        self._plain: tuple[Tokenizer, Tokenizer] | None = None
        self._finder: Tokenizer | None = None

    def encode(self, text: str, add_special: bool, literal: Sequence[tuple[int, int]] = ()) -> list[int]:
        """``literal``: ranges of ``text``, in order, that hold nothing but text: special tokens and markers
        written out in them, or reaching into them, are encoded as any other characters."""
        if not self._touches(text, literal):
            # The batch call lets other threads go on, which ``encode`` does not.
            return list(self._backend.encode_batch_fast([text], add_special_tokens=add_special)[0].ids)
        ids: list[int] = []
        at = 0
        for start, end, token in self._outside(text, literal):
            if at < start:
                ids += self._encode_plain(text[at:start], first=at == 0)
            ids.append(token)
            at = end
        if at < len(text):
            ids += self._encode_plain(text[at:], first=at == 0)
        if not add_special:
            return ids
        before, after = self._frame()
        return [*before, *ids, *after]

    def _touches(self, text: str, literal: Sequence[tuple[int, int]]) -> bool:
        """Whether a token that steers the model reaches into a range, as the library would read the text."""
        ranges = (pair for pair in literal if pair[0] < pair[1])
        start, end = next(ranges, (len(text), len(text)))
        if start == len(text):
            return False
        for found, found_end, _ in self._find(text):
            while end <= found:
                start, end = next(ranges, (len(text) + 1, len(text) + 1))
            if found_end > start:
                return True
        return False

    def _outside(self, text: str, literal: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """(start, end, id) of each that steers the model, found in what is between the ranges."""
        at = 0
        for start, end in (*literal, (len(text), len(text))):
            for found, found_end, token in self._find(text[at:start]):
                yield at + found, at + found_end, token
            at = end

    def _find(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of each, with the whitespace beside it that the token takes."""
        if self._finder is None:
            self._finder = finder = Tokenizer(models.WordLevel({_REST: 0}, unk_token=_REST))
            if self._backend.normalizer is not None:
                finder.normalizer = self._backend.normalizer
            finder.add_tokens([token for token in self._added() if token.content in self._steering])
        encoded = self._finder.encode_batch([text], add_special_tokens=False)[0]
        found = zip(map(self._finder.id_to_token, encoded.ids), encoded.offsets, strict=True)
        return [(*span, self._steering[token]) for token, span in found if token in self._steering]

    def _added(self) -> list[AddedToken]:
        """The added tokens, in order."""
        return [token for _, token in sorted(self._backend.get_added_tokens_decoder().items())]

    def _encode_plain(self, text: str, *, first: bool) -> list[int]:
        """The ids of a text without any special token, not even one made by merging: the text is cut
        there."""
        if self._plain is None:
            self._plain = self._without_special(False), self._without_special(True)
        ids: list[int] = []
        waiting = [text]  # the last is next
        while waiting:
            text = waiting.pop()
            backend = self._plain[0 if first else 1]
            encoded = backend.encode_batch([text], add_special_tokens=False)[0]
            spans = zip(encoded.ids, encoded.offsets, strict=True)
            cuts = [
                start + 1 for token, (start, end) in spans if token in self._forbidden and end - start > 1
            ]
            if cuts:
                edges = [0, *cuts, len(text)]
                waiting += [text[a:b] for a, b in reversed(list(pairwise(edges)))]
            else:
                ids += encoded.ids
                first = False
        return ids

    def _without_special(self, continued: bool) -> Tokenizer:
        """The same encoder without special tokens; ``continued``: for a text that does not begin the
        whole."""
        ours = self._backend
        plain = Tokenizer(ours.model)  # shares the vocabulary
        tokens = []
        for token in self._added():
            flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            tokens.append(AddedToken(token.content, special=token.content in self._steering, **flags))
        plain.add_tokens(tokens)
        if any(ours.token_to_id(token.content) != plain.token_to_id(token.content) for token in tokens):
            raise ValueError("the ids of the added tokens are out of order")
        for part in ("normalizer", "pre_tokenizer"):
            component = getattr(ours, part)
            if component is not None:
                setattr(plain, part, component)
        if continued and ours.pre_tokenizer is not None:
            splitting = pre_tokenizers.Sequence([])  # a copy: ours would change with it
            splitting.__setstate__(_continuing(ours.pre_tokenizer.__getstate__()))
            plain.pre_tokenizer = splitting
        plain.encode_special_tokens = True
        return plain

    def _frame(self) -> tuple[list[int], list[int]]:
        """The tokens that go before a text, and after it."""
        bare, framed = (
            list(self._backend.encode_batch_fast([_FRAME_TEXT], add_special_tokens=special)[0].ids)
            for special in (False, True)
        )
        extra = len(framed) - len(bare)
        n_before = next((n for n in range(extra + 1) if framed[n : n + len(bare)] == bare), extra)
        return framed[:n_before], framed[n_before + len(bare) :]


def _continuing(state: bytes) -> bytes:
    """A pre-tokenizer's state, with no space put before the first word."""
    described = json.loads(state)
    for step in described.get("pretokenizers", [described]):
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return json.dumps(described).encode()


def opened(opening: dict[str, Any]) -> tuple[None, Callable[[dict[str, Any]], list[int]]]:
    """``opening``: ``content`` of a tokenizer.json and ``markers``. Requests have a ``text``, whether to
    ``add_special`` tokens, and ``literal`` ranges."""
    tokenizer = Tokenizer.from_str(opening["content"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoder = TextEncoder(tokenizer, opening["markers"])

    def encode(request: dict[str, Any]) -> list[int]:
        return encoder.encode(request["text"], request["add_special"], request["literal"])

    return None, encode
