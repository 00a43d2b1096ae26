"""What each caller has used since the gateway started: a key, or an address group where there are no keys."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...swarm.fairness.recent import RecentMap
from ..http.admission import MAX_CALLERS


@dataclass(slots=True)
class _Used:
    """Of one model."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Usage:
    """Of MAX_CALLERS callers; who asked the longest ago is forgotten first."""

    def __init__(self) -> None:
        self._since = int(time.time())
        self._callers: RecentMap[str, dict[str, _Used]] = RecentMap(MAX_CALLERS)  # by model

    def note(self, caller: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """One request that was run, to its end or not."""
        by_model = self._callers.get(caller, {})
        self._callers[caller] = by_model
        used = by_model.setdefault(model, _Used())
        used.requests += 1
        used.prompt_tokens += prompt_tokens
        used.completion_tokens += completion_tokens

    def body(self, caller: str) -> dict[str, Any]:
        """What ``/v1/usage`` tells its caller: of itself alone."""
        by_model = self._callers.get(caller, {})
        total: Counter[str] = Counter()
        for used in by_model.values():
            total.update(used.as_dict())
        return {
            "object": "usage",
            "since": self._since,
            **{name: total[name] for name in _Used().as_dict()},
            "models": {model: used.as_dict() for model, used in by_model.items()},
        }
