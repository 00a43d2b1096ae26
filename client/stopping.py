"""Stop strings in streamed text: nothing of a stop string is ever shown, however tokens cut it."""

from __future__ import annotations

from collections.abc import Sequence

from ..swarm.errors import UsageError
from .checks import impossible

MAX_STOP_STRINGS = 64


class StopStrings:
    """Text in, piece by piece; out comes what cannot belong to a stop string any more.

    The text ends where the first stop string to be complete begins; of two that are complete with the same
    character, where the longer begins. How the text was cut into pieces makes no difference.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        for stop in stops:
            if not isinstance(stop, str):
                raise impossible("stop string", stop, "a text")
            if not stop:
                raise UsageError("a stop string is empty", hint="Leave it out, or give the text to stop at.")
        if len(stops) > MAX_STOP_STRINGS:
            raise UsageError(f"{len(stops)} stop strings are too many", hint=f"At most {MAX_STOP_STRINGS}.")
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""  # not shown yet: it may be the beginning of a stop string
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """What of the text so far may be shown now. After a match: nothing, ever."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = self._first_match()
        if found is not None:
            start, self.matched = found
            shown, self._held = self._held[:start], ""
            return shown
        keep = self._beginning()
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """The text is over: what was held back belongs to it after all."""
        held, self._held = self._held, ""
        return held

    def _first_match(self) -> tuple[int, str] | None:
        """(where it begins, the stop string) of the match that ends first."""
        matches = ((self._held.find(stop), stop) for stop in self._stops)
        complete = [(start + len(stop), start, stop) for start, stop in matches if start >= 0]
        if not complete:
            return None
        _, start, stop = min(complete)
        return start, stop

    def _beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
