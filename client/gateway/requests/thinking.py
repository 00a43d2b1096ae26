"""What a request wishes of a model's thinking, in the words of the model's chat template."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

Thinking = bool | str | None
"""Whether the model is to think, or how hard, in the words of ``EFFORTS``; None: as it does by itself."""

EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""The efforts that APIs know, and the templates' words for them."""
_SWITCHES = ("enable_thinking", "thinking")
"""Variables that turn it on and off: of Qwen, GLM and SmolLM, and of DeepSeek and Granite."""
_EFFORT = "reasoning_effort"
"""The variable of gpt-oss, whose thinking is never off."""


def thinking_variables(wish: Thinking, known: Container[str]) -> dict[str, Any]:
    """Those of a template's variables that say it; none where it knows none, and the model does as it
    does."""
    if wish is None:
        return {}
    found: dict[str, Any] = {name: wish is not False for name in _SWITCHES if name in known}
    if _EFFORT in known and wish is not True:
        found[_EFFORT] = EFFORTS[wish or "low"]
    return found
