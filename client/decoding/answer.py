"""What the chosen tokens of an answer say: their text as far as it may be shown, and where it ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .sampling import ChosenToken
from .stopping import StopStrings

if TYPE_CHECKING:
    from ...shards.tokenizer.tokenizer import Detokenizer

FinishReason = Literal["stop", "length", "stop_string", "unfinished"]
"""The last: of an answer that is still made, or was stopped."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token of an answer, when it is chosen.

    ``text``: what can be shown now: whole characters, nothing of a stop string. Empty while a token's text is
    held back; a later event brings it, the last at the latest. ``logprob`` and ``top`` as in ``ChosenToken``.
    ``controls``: the control tokens that the text leaves out, each as its place there and what it spells.
    """

    token: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    controls: tuple[tuple[int, str], ...] = ()


class Answer:
    """Choices in, events out. ``reason`` is None until something ends it; then nothing more may be pushed.

    ``choices``: all of them, an end-of-text token that ended the answer included.
    """

    def __init__(
        self, detokenizer: Detokenizer, eos_ids: frozenset[int], stop: Iterable[str], max_tokens: int
    ) -> None:
        self.choices: list[ChosenToken] = []
        self.reason: FinishReason | None = None
        self._detokenizer = detokenizer
        self._eos_ids = eos_ids
        self._stops = StopStrings(tuple(stop))
        self._max_tokens = max_tokens
        self._shown: list[str] = []

    @property
    def text(self) -> str:
        """What the events' texts are together."""
        return "".join(self._shown)

    @property
    def stop_string(self) -> str | None:
        """The one that ended it."""
        return self._stops.matched

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(choice.token for choice in self.choices)

    def push(self, choice: ChosenToken, *, last: bool = False) -> TokenEvent:
        """``last``: the token completes the answer, independent of its text."""
        stops = self._stops
        self.choices.append(choice)
        text, before = "", stops.n_shown
        controls: tuple[tuple[int, str], ...] = ()
        if choice.token in self._eos_ids:
            self.reason = "stop"
        else:
            text = stops.push(self._detokenizer.push(choice.token))
            if spelled := self._detokenizer.hidden(choice.token):
                if stops.is_empty:
                    controls = ((len(text), spelled),)
                else:
                    text += stops.push(spelled, hidden=True)
            if last:
                self.reason = "stop"
            elif len(self.choices) >= self._max_tokens:
                self.reason = "length"
        if stops.matched is None and self.reason is not None:
            text += stops.push(self._detokenizer.flush()) + stops.flush()
        if stops.matched is not None:
            self.reason = "stop_string"
        if text:
            self._shown.append(text)
        if not stops.is_empty:
            controls = tuple((place - before, spelled) for place, spelled in stops.controls())
        return TokenEvent(choice.token, text, choice.logprob, choice.top, controls)
