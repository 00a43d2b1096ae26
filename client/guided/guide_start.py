"""When a guide begins: after a model's thoughts, and not at all where it calls a tool instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..decoding.sampling import TokenRule

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GuideStart:
    """``thinking``: tokens that end the thoughts which the prompt has opened; none where it has not.
    ``thinks``: tokens that begin thoughts and those that end them, which may come first. ``unless``: an
    answer that begins with such tokens is free."""

    thinking: Ids = ()
    thinks: tuple[tuple[Ids, Ids], ...] = ()
    unless: tuple[Ids, ...] = ()


class StartedGuide:
    """A guide that begins as ``start`` says. A TokenRule; not for several threads at once."""

    def __init__(self, begin: Callable[[], TokenRule], start: GuideStart, vocab_size: int) -> None:
        """``begin`` gives the guide at its beginning."""
        self._begin = begin
        self._guide: TokenRule | None = begin()  # None where it cannot follow, or is not wanted
        self._all = np.arange(vocab_size)
        self._end = start.thinking  # of thoughts, while there are some
        self._last: Ids = ()
        # What may come in the guide's place: the tokens, and the end of the thoughts that they begin.
        self._unless: list[tuple[Ids, Ids]] = [(ids, ()) for ids in start.unless if ids]
        self._begun = [*(each for each in start.thinks if all(each)), *self._unless]

    @property
    def is_over(self) -> bool:
        return not self._end and not self._begun and self._guide is not None and self._guide.is_over

    def allows(self, token: int) -> bool:
        if self._is_free or any(ids[0] == token for ids, _ in self._begun):
            return True
        return self._guide is not None and self._guide.allows(token)

    def allowed(self) -> np.ndarray:
        if self._is_free:
            return self._all
        ids = self._guide.allowed() if self._guide is not None else np.empty(0, self._all.dtype)
        return np.union1d(ids, [begun[0] for begun, _ in self._begun]) if self._begun else ids

    def forced(self) -> Ids:
        if self._is_free or self._begun or self._guide is None:
            return ()
        return self._guide.forced()

    def copy(self) -> StartedGuide:
        other = copy.copy(self)  # what else it has is replaced, never changed
        if self._guide is not None:
            other._guide = self._guide.copy()
        return other

    def accept(self, token: int) -> None:
        if self._end:
            self._last = (*self._last, token)[-len(self._end) :]
            if self._last == self._end:
                self._end = ()
        elif self._begun:
            self._accept_first(token)
        elif self._guide is not None:
            self._guide.accept(token)

    @property
    def _is_free(self) -> bool:
        return bool(self._end) or (self._guide is None and not self._begun)

    def _accept_first(self, token: int) -> None:
        """One of the tokens by which it is decided what begins."""
        begun = [(ids[1:], end) for ids, end in self._begun if ids[0] == token]
        chosen = [end for ids, end in begun if not ids]
        if chosen and chosen[0]:
            self._end, self._last, self._begun, self._guide = chosen[0], (), self._unless, self._begin()
            return
        if chosen:
            self._guide, self._begun = None, []
            return
        self._begun = begun
        if self._guide is not None and self._guide.allows(token):
            self._guide.accept(token)
        else:
            self._guide = None
