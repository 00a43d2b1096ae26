"""Responses that are kept for a while, so that clients can go on with them, or ask for them again.

They lie in memory alone, and are bounded for each caller and together; the oldest are forgotten first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .....swarm.fairness.owner_lru import OwnerLru
from .....swarm.fairness.shares import Holder
from ....http.body import to_json
from ....http.errors import ApiError

KEPT_S = 3600.0
MAX_BYTES = 64 * 2**20
"""Of all callers' responses. What each has of the chat before it is counted anew."""
MAX_CALLER_BYTES = 16 * 2**20
MAX_ONE_BYTES = 4 * 2**20
"""Of one, which is read again in some ten milliseconds. A larger one is not kept."""
MAX_RESPONSES = 4096


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """``body``: the JSON that was sent. ``turns``: the chat up to its end, without instructions; each is a
    JSON list of messages, and those of earlier responses are shared with them. Text takes the bytes that it
    has; what it stands for may take ten times as many."""

    caller: str
    body: str
    turns: tuple[str, ...]
    until: float

    @property
    def nbytes(self) -> int:
        return len(self.body) + sum(map(len, self.turns))

    def messages(self) -> list[Mapping[str, Any]]:
        return [message for turn in self.turns for message in json.loads(turn)]


class StoredResponses:
    """By their ids, which only those know that got them; a caller finds none of another's."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stored: dict[str, StoredResponse] = {}  # in order of their age
        self._kept: OwnerLru[str] = OwnerLru()  # the same, in bytes

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, caller: str, response_id: str, body: str, turns: tuple[str, ...]) -> None:
        """``response_id``: a new one. ``body``, ``turns``: ASCII."""
        now = self._clock()
        stored = StoredResponse(caller, body, turns, now + KEPT_S)
        if stored.nbytes > MAX_ONE_BYTES:
            return
        owner = Holder(caller)
        self._stored[response_id] = stored
        self._kept.add(owner, response_id, stored.nbytes)
        while self._stored and next(iter(self._stored.values())).until <= now:
            self._forget(next(iter(self._stored)))
        while self._kept.size_of(owner) > MAX_CALLER_BYTES:
            self._forget(self._kept.oldest_of(owner))
        while self._kept.size > MAX_BYTES or len(self._stored) > MAX_RESPONSES:
            del self._stored[self._kept.pop()]

    def get(self, caller: str, response_id: str) -> StoredResponse:
        """Changes nothing: any thread may ask. Raises ApiError 404."""
        found = self._stored.get(response_id)
        if found is None or found.caller != caller or found.until <= self._clock():
            raise ApiError(
                404,
                f"there is no response {response_id[:100]!r} here: each is kept for an hour at most; "
                "send the whole chat as input",
                param="previous_response_id",
                code="response_not_found",
            )
        return found

    def body(self, caller: str, response_id: str) -> str:
        """What is told of it. Raises ApiError 404."""
        return self.get(caller, response_id).body

    def delete(self, caller: str, response_id: str) -> str:
        """What is told of that. Raises ApiError 404."""
        self.get(caller, response_id)
        self._forget(response_id)
        return to_json({"id": response_id, "object": "response", "deleted": True})

    def _forget(self, response_id: str) -> None:
        del self._stored[response_id]
        self._kept.remove(response_id)
