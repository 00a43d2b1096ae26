"""Encodes texts with one tokenizer: here, or confined (``swarm.confined``) with that library alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

_FRAME_TEXT = "a"
"""What is encoded to see which tokens go around a text."""


class TextEncoder:
    """Text → ids. ``markers``: tokens that steer the model though the vocabulary does not call them special,
    such as those that a chat template writes."""

    def __init__(self, backend: Tokenizer, markers: Sequence[str] = ()) -> None:
        self._backend = backend
        added = sorted(backend.get_added_tokens_decoder().items())
        names = frozenset(markers)
        self._steering = {
            token.content: (index, token)
            for index, token in added
            if token.content and (token.special or token.content in names)
        }
        by_length = sorted(self._steering, key=len, reverse=True)
        self._longest = len(by_length[0]) if by_length else 0
        spelled = "|".join(map(re.escape, by_length))
        self._found = re.compile(spelled) if by_length else None
        unknown = getattr(backend.model, "unk_token", None)
        self._forbidden = {index for index, token in self._steering.values() if token.content != unknown}
        self._plain: tuple[Tokenizer, Tokenizer] | None = None

    def encode(self, text: str, add_special: bool, literal: Sequence[tuple[int, int]] = ()) -> list[int]:
        """``literal``: ranges of ``text``, in order, that hold nothing but text: special tokens and markers
        written out in them, or reaching into them, are encoded as any other characters."""
        if not any(self._spells_token(text, start, end) for start, end in literal):
            # The batch call lets other threads go on, which ``encode`` does not.
            return list(self._backend.encode_batch_fast([text], add_special_tokens=add_special)[0].ids)
        ids: list[int] = []
        for start, fragment, token in self._fragments(text, literal):
            ids += [token] if token is not None else self._encode_plain(fragment, first=start == 0)
        if not add_special:
            return ids
        before, after = self._frame()
        return [*before, *ids, *after]

    def _spells_token(self, text: str, start: int, end: int) -> bool:
        if self._found is None:
            return False
        at = max(0, start - self._longest + 1)
        while (match := self._found.search(text, at)) and match.start() < end:
            if match.end() > start:
                return True
            at = match.start() + 1
        return False

    def _fragments(
        self, text: str, literal: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, str, int | None]]:
        """(where, text, id) of each special token outside of ``literal``, and (where, text, None) between."""
        start = at = 0  # of the text not yet given out, and of what is searched
        for literal_start, literal_end in (*literal, (len(text), len(text))):
            while self._found and (match := self._found.search(text, at, literal_start)):
                at = match.end()
                index, token = self._steering[match[0]]
                if token.single_word and _in_word(text, match.start(), match.end()):
                    continue
                before = text[start : match.start()]
                before = before.rstrip() if token.lstrip else before
                if before:
                    yield start, before, None
                yield match.start(), match[0], index
                start = at
                if token.rstrip:
                    start += len(text[at:]) - len(text[at:].lstrip())
                    at = max(at, min(start, literal_start))
            at = max(at, literal_end)
        if start < len(text):
            yield start, text[start:], None

    def _encode_plain(self, text: str, *, first: bool) -> list[int]:
        """No special token may come of it, not even by merging: where one does, the text is cut."""
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
        """The same, blind for special tokens; ``continued``: for a text that does not begin the whole."""
        ours = self._backend
        plain = Tokenizer(ours.model)  # shares the vocabulary
        tokens = []
        for _, token in sorted(ours.get_added_tokens_decoder().items()):
            flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            tokens.append(AddedToken(token.content, special=token.content in self._steering, **flags))
        plain.add_tokens(tokens)
        if any(ours.token_to_id(token.content) != plain.token_to_id(token.content) for token in tokens):
            raise ValueError("added tokens have ids of no order")
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
        """What goes before a text, and after it."""
        bare, framed = (
            list(self._backend.encode_batch_fast([_FRAME_TEXT], add_special_tokens=special)[0].ids)
            for special in (False, True)
        )
        extra = len(framed) - len(bare)
        n_before = next((n for n in range(extra + 1) if framed[n : n + len(bare)] == bare), extra)
        return framed[:n_before], framed[n_before + len(bare) :]


def _in_word(text: str, start: int, end: int) -> bool:
    """Whether a letter, digit or underscore stands on either side."""
    return bool(re.match(r"\w", text[end : end + 1]) or re.match(r"\w", text[max(0, start - 1) : start]))


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
