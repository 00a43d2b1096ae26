"""Stop strings in streamed text: nothing of a stop string is ever shown, however tokens cut it."""

from __future__ import annotations

from collections.abc import Sequence

from ...swarm.errors import UsageError
from .checks import impossible

MAX_STOP_STRINGS = 64


class StopStrings:
    """Text in, piece by piece; out comes what cannot belong to a stop string any more.

    The text ends where the first stop string to be complete begins; of two that are complete with the same
    character, where the longer begins. How the text was cut into pieces makes no difference. Control tokens
    are not part of what is shown; a stop string may be in the text with them or without.
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
        self._hidden: list[tuple[range, str]] = []  # of it, what control tokens spell; "" once that is noted
        self._controls: list[tuple[int, str]] = []  # as ``controls`` gives them
        self.n_shown = 0
        """Characters, of all that were shown."""
        self.matched: str | None = None
        """The stop string that ended the text."""

    @property
    def is_empty(self) -> bool:
        """There is nothing to stop at."""
        return not self._stops

    def push(self, text: str, *, hidden: bool = False) -> str:
        """What of the text so far may be shown now. After a match: nothing, ever. ``hidden``: the text is a
        control token's."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return "" if hidden else text
        if hidden:
            self._hidden.append((range(len(self._held), len(self._held) + len(text)), text))
        self._held += text
        found = self._first_match()
        if found is not None:
            start, self.matched = found
            shown = self._show(start)
            self._held, self._hidden = "", []
            return shown
        return self._let_go(min(self._beginning(view) for view in self._views()))

    def flush(self) -> str:
        """The text is over: what was held back belongs to it after all."""
        return self._let_go(len(self._held))

    def controls(self) -> tuple[tuple[int, str], ...]:
        """The control tokens that came since this was last asked: each as the shown characters before it, and
        what it spells. One that may begin a stop string is held back, as text is."""
        if not self._controls:
            return ()
        controls, self._controls = self._controls, []
        return tuple(controls)

    def _let_go(self, end: int) -> str:
        """The held text up to there, as it is shown."""
        shown = self._show(end)
        self._held = self._held[end:]
        self._hidden = [
            (range(max(0, place.start - end), place.stop - end), spelled if place.start >= end else "")
            for place, spelled in self._hidden
            if place.stop > end
        ]
        return shown

    def _show(self, end: int) -> str:
        """The held text up to there without its control tokens, which are noted."""
        shown, at = "", 0
        for place, spelled in self._hidden:
            if place.start >= end:
                break
            shown += self._held[at : place.start]
            at = place.stop
            if spelled:
                self._controls.append((self.n_shown + len(shown), spelled))
        shown += self._held[at : max(at, end)]
        self.n_shown += len(shown)
        return shown

    def _places(self) -> list[int]:
        """The places of the held characters that are shown."""
        hidden = {place for each, _ in self._hidden for place in each}
        return [place for place in range(len(self._held)) if place not in hidden]

    def _views(self) -> list[tuple[str, Sequence[int]]]:
        """The held text with control tokens and without, each with its characters' places in it."""
        views: list[tuple[str, Sequence[int]]] = [(self._held, range(len(self._held)))]
        if self._hidden:
            places = self._places()
            views.append(("".join(self._held[place] for place in places), places))
        return views

    def _first_match(self) -> tuple[int, str] | None:
        """(where it begins, the stop string) of the match that ends first."""
        complete = [
            (places[start + len(stop) - 1], places[start], stop)
            for text, places in self._views()
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if not complete:
            return None
        _, start, stop = min(complete)
        return start, stop

    def _beginning(self, view: tuple[str, Sequence[int]]) -> int:
        """Where the longest end of the view that begins a stop string begins; the held text's end for
        none."""
        text, places = view
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return places[-length]
        return len(self._held)
