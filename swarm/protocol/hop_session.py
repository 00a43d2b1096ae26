"""The node's side of one session as a pure state machine: which steps fit, which repeat, which roll back.

A session is one client sequence with its KV cache on this hop. The machine knows only numbers:

* ``length`` is how many tokens the KV cache holds.
* A step appends ``tokens`` tokens at ``position``. ``position < length`` rolls the cache back to it first
  (speculative decoding, edits); ``position > length`` would leave a hole and is refused.
* Step numbers strictly increase, gaps allowed. The last step sent again, the same in every number, is a
  ``Duplicate``: the answer to it got lost, and the stored one is to be sent again without computing.
* Steps may be void before they come (``void``). They are not for ``on_step``, and are never missed.

A refused step raises RemoteProtocolError and leaves the session as it was.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..errors import ErrorCode, RemoteProtocolError, UsageError

MAX_VOID_RANGES = 8
"""Ranges of void steps that a session remembers. A step that comes late is of the last one, or of one of few
before it; one that was forgotten is refused for its number, which harms nobody."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Compute the step, after the KV cache is cut to its first ``rollback_to`` tokens.

    ``rollback_to`` is the step's position: equal to the length before the step when nothing is undone.
    """

    rollback_to: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The last step once more: answer as before, compute nothing."""


class HopSession:
    """Position and step bookkeeping of one session, at most ``max_tokens`` tokens long.

    ``max_step_tokens`` bounds one step (0: only by ``max_tokens``); ``length`` is what a reused prefix
    already holds.
    """

    def __init__(self, max_tokens: int, *, max_step_tokens: int = 0, length: int = 0) -> None:
        if max_tokens < 1 or max_step_tokens < 0 or not 0 <= length <= max_tokens:
            raise UsageError(
                f"a session of {max_tokens} tokens, {length} held, {max_step_tokens} a step is not possible"
            )
        self._max_tokens = max_tokens
        self._max_step_tokens = max_step_tokens or max_tokens
        self._length = length
        self._last: tuple[int, int, int] | None = None  # step, position, tokens
        self._void: deque[tuple[int, int]] = deque(maxlen=MAX_VOID_RANGES)  # first, last

    @property
    def length(self) -> int:
        """Tokens in the KV cache once every accepted step is computed."""
        return self._length

    @property
    def last_step(self) -> int | None:
        """The highest step number accepted, None before the first."""
        return None if self._last is None else self._last[0]

    @property
    def received(self) -> int:
        """The highest step number accepted; void ones count as if they had not come. 0: none."""
        step = self.last_step or 0
        for first, last in reversed(self._void):
            if first <= step <= last:
                step = first - 1
        return max(0, step)

    def void(self, first: int, last: int) -> None:
        """The steps from ``first`` to ``last`` are void, whether they have come or not."""
        if self._void and first <= self._void[-1][1] + 1 and self._void[-1][0] <= last + 1:
            newest = self._void.pop()
            first, last = min(first, newest[0]), max(last, newest[1])
        self._void.append((first, last))

    def forget_void(self) -> None:
        """Others send its steps from now on: what was said of void ones was of those before, or a lie."""
        self._void.clear()

    def is_void(self, step: int) -> bool:
        return bool(self._void) and any(first <= step <= last for first, last in self._void)

    def on_step(self, step: int, position: int, tokens: int) -> Apply | Duplicate:
        """Accept a step or raise RemoteProtocolError (BAD_STEP, CONTEXT_EXCEEDED), the session unchanged."""
        if step < 0 or position < 0 or tokens < 1:
            raise _bad_step(f"step {step} of {tokens} tokens at position {position} is not possible")
        if self._last is not None and step <= self._last[0]:
            if (step, position, tokens) == self._last:
                return Duplicate()
            last_step, last_position, last_tokens = self._last
            if step == last_step:
                raise _bad_step(
                    f"step {step} came again with {tokens} tokens at position {position}, "
                    f"but it had {last_tokens} at {last_position}"
                )
            raise _bad_step(f"step {step} came after step {last_step}; step numbers must increase")
        if tokens > self._max_step_tokens:
            raise _bad_step(f"step {step} has {tokens} tokens; a step may have {self._max_step_tokens}")
        if position > self._length:
            raise _bad_step(
                f"step {step} starts at position {position}, but the session holds {self._length} tokens"
            )
        if position + tokens > self._max_tokens:
            raise RemoteProtocolError(
                f"step {step} would make {position + tokens} tokens; the session reserved {self._max_tokens}",
                hint="Open the session for more tokens.",
                code=ErrorCode.CONTEXT_EXCEEDED,
            )
        self._last = (step, position, tokens)
        self._length = position + tokens
        return Apply(rollback_to=position)


def _bad_step(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, code=ErrorCode.BAD_STEP)
